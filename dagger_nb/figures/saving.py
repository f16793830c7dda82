"""The one saver: a picture as PDF and PNG, and the numbers behind it as JSON, all byte-stable.

The same figure gives the same bytes on the same versions of matplotlib: no dates, no names of programs.
"""

from __future__ import annotations

import dataclasses
import io
import json
import math
import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib import rc_context
from matplotlib.figure import Figure

from dagger_nb import paths
from dagger_nb.errors import DataError, EnvironmentProblem
from dagger_nb.figures.style import RC, caption_of

DPI = 150  # of the PNG
_NO_METADATA = {"pdf": {"CreationDate": None, "Creator": None, "Producer": None}, "png": {"Software": None}}


def save(figure: Figure, name: str, data: object, folder: Path) -> tuple[Path, Path, Path]:
    """Write <folder>/<name>.pdf, .png and .json, and return the three paths.

    The JSON holds the caption and `data`: what is plotted, as a table, dataclass, array, mapping or list of
    such; NaN and missing values become null. Each file is replaced as a whole or not at all.

    Raises:
        DataError: `data` holds something that JSON cannot say.
        EnvironmentProblem: the folder cannot be written (permission, full disk).
    """
    plotted = {"caption": caption_of(figure), "data": plain(data)}
    text = json.dumps(plotted, sort_keys=True, ensure_ascii=False, indent=1, allow_nan=False) + "\n"
    contents = {"pdf": _drawn(figure, "pdf"), "png": _drawn(figure, "png"), "json": text.encode()}
    paths.writable(folder)
    pdf, png, numbers = (_written(folder / f"{name}.{kind}", content) for kind, content in contents.items())
    return pdf, png, numbers


def plain(data: object) -> object:
    """Data as JSON can say it: a table becomes a list of rows, a missing number None.

    >>> plain({"x": np.array([1.0, np.nan]), "n": np.int64(3)})
    {'x': [1.0, None], 'n': 3}

    Raises:
        DataError: a value has no plain form, or is infinite.
    """
    if isinstance(data, pd.DataFrame):
        return [plain(row) for row in data.to_dict(orient="records")]
    if dataclasses.is_dataclass(data) and not isinstance(data, type):
        return {field.name: plain(getattr(data, field.name)) for field in dataclasses.fields(data)}
    if isinstance(data, Mapping):
        return {str(key): plain(value) for key, value in data.items()}
    if isinstance(data, np.ndarray | np.generic):
        return plain(data.tolist())
    if isinstance(data, list | tuple):
        return [plain(value) for value in data]
    if data is pd.NA or (isinstance(data, float) and math.isnan(data)):
        return None
    if data is None or isinstance(data, str | bool | int) or (isinstance(data, float) and math.isfinite(data)):
        return data
    raise DataError(f"cannot write {data!r} ({type(data).__name__}) as the data of a figure; give numbers and text")


def _drawn(figure: Figure, kind: str) -> bytes:
    buffer = io.BytesIO()
    with rc_context(RC):
        figure.savefig(buffer, format=kind, dpi=DPI, metadata=_NO_METADATA[kind])
    return buffer.getvalue()


def _written(path: Path, content: bytes) -> Path:
    part = path.with_name(path.name + ".part")
    try:
        part.write_bytes(content)
        os.replace(part, path)
    except OSError as error:
        raise EnvironmentProblem(f"cannot write {path} ({error.strerror or error}); free or change the disk") from error
    return path
