"""Predictions as SWE-bench's harness reads them: one JSON object a line, three fields each."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

from dagger_nb.errors import DataError
from dagger_nb.records import digest


@dataclass(frozen=True, slots=True)
class Prediction:
    """One agent's patch for one instance; an empty patch is a prediction too, and never resolves."""

    instance_id: str
    model_name_or_path: str
    model_patch: str


def write_predictions(path: Path, predictions: Iterable[Prediction]) -> None:
    """Write the predictions, sorted by instance, under a temporary name and then rename: all or nothing.

    Raises:
        DataError: an instance is predicted twice.
    """
    rows = _checked(predictions, path)
    partial = path.with_name(path.name + ".partial")
    path.parent.mkdir(parents=True, exist_ok=True)
    with partial.open("w", encoding="ascii", newline="\n") as file:  # ASCII: the harness reads in the locale's encoding
        file.writelines(json.dumps(asdict(row), sort_keys=True) + "\n" for row in rows)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)


def read_predictions(path: Path) -> tuple[Prediction, ...]:
    """The predictions of a file, sorted by instance.

    Raises:
        DataError: a line is not a JSON object of exactly the three text fields, or an instance comes twice.
    """
    with path.open(encoding="utf-8") as lines:
        return _checked((_parse(line, f"{path}:{number}") for number, line in enumerate(lines, 1)), path)


def run_id(predictions: Iterable[Prediction], *, name: str = "dagger-nb") -> str:
    """A run id for the harness that names these very predictions.

    The harness keeps results by (run id, model, instance) and never looks at the patch again, so an id
    without the predictions' hash would return the grades of an earlier patch.

    >>> run_id([Prediction("a", "m", "")]) == run_id([Prediction("a", "m", "x")])
    False
    """
    if not re.fullmatch(r"[A-Za-z0-9_.-]+", name):
        raise DataError(f"run id {name!r}: it names folders and containers; use letters, digits, '_', '.', '-'")
    rows = _checked(predictions, "the predictions")
    content = [(row.instance_id, row.model_name_or_path, patch_hash(row.model_patch)) for row in rows]
    return f"{name}-{digest(content)[:12]}"


def patch_hash(model_patch: str) -> str:
    """SHA-256 (hex) of a patch; a patch of a file that is not UTF-8 may hold lone surrogates."""
    return hashlib.sha256(model_patch.encode("utf-8", "surrogatepass")).hexdigest()


def _checked(predictions: Iterable[Prediction], where: object) -> tuple[Prediction, ...]:
    rows = tuple(sorted(predictions, key=lambda row: row.instance_id))
    for before, after in zip(rows, rows[1:], strict=False):
        if before.instance_id == after.instance_id:
            raise DataError(f"{where}: {after.instance_id} is predicted twice; keep one patch an instance")
    return rows


def _parse(line: str, where: str) -> Prediction:
    try:
        prediction = Prediction(**json.loads(line))
    except (json.JSONDecodeError, TypeError) as error:
        raise DataError(f"{where}: not a prediction ({error}); write the file again") from error
    if not all(isinstance(value, str) for value in asdict(prediction).values()):
        raise DataError(f"{where}: every field of a prediction is text; write an empty patch as ''")
    return prediction
