"""Where things lie: committed inputs in the project folder, everything that is written below one home folder.

The project folder is found from the package (editable installation) or from the working directory upwards,
so a notebook runs from anywhere. `DAGGER_NB_HOME` moves what is written (runs, caches, results, figures,
reports) to another disk; committed inputs and notebooks stay where they are.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping
from pathlib import Path

from dagger_nb import records
from dagger_nb.errors import EnvironmentProblem

HOME_VARIABLE = "DAGGER_NB_HOME"


def project() -> Path:
    """The folder with `pyproject.toml`, `notebooks/` and the committed `data/`.

    Raises:
        EnvironmentProblem: neither the package nor the working directory lies in a checkout of dagger-nb.
    """
    here = Path.cwd()
    for folder in (Path(__file__).resolve().parents[1], here, *here.parents):
        if (folder / "pyproject.toml").is_file() and (folder / "dagger_nb").is_dir():
            return folder
    raise EnvironmentProblem(
        f"no checkout of dagger-nb around {here}; run from inside one, or install it with `pip install -e .`"
    )


def home() -> Path:
    """The folder below which everything is written: `DAGGER_NB_HOME`, or else the project folder."""
    chosen = os.environ.get(HOME_VARIABLE)
    return Path(chosen).expanduser().resolve() if chosen else project()


def data() -> Path:
    """Committed inputs: the base model, the paper's numbers, published results."""
    return project() / "data"


def checkpoint(path_or_id: str) -> Path:
    """A student's folder: an absolute path as it is, a relative one below the project, a hub id unchanged."""
    local = project() / path_or_id
    return local if local.is_dir() else Path(path_or_id)


def notebooks() -> Path:
    return project() / "notebooks"


def runs() -> Path:
    return home() / "data" / "runs"


def cache() -> Path:
    return home() / "data" / "cache"


def answers() -> Path:
    """The file of every answer that was paid for, and of what each run has spent: not to be had again for nothing."""
    return home() / "data" / "answers" / "answers.sqlite"


def images() -> Path:
    """The book of images that this project pulled, and may remove."""
    return cache() / "images.sqlite"


def results() -> Path:
    """Where result tables are written; published ones are read from `data() / "results"`."""
    return home() / "data" / "results"


def result_folder(profile: str, seed: int, overrides: Mapping[str, object] | None = None) -> Path:
    """The folder of one reproduction's result tables: data/results/<profile>-s<seed>, see `_reproduction`."""
    return results() / _reproduction(profile, seed, overrides)


def figures() -> Path:
    return home() / "figures"


def reports() -> Path:
    return home() / "reports"


def report_folder(profile: str, seed: int, overrides: Mapping[str, object] | None = None) -> Path:
    """The folder of one reproduction's executed notebooks and HTML report: reports/<profile>-s<seed>, likewise."""
    return reports() / _reproduction(profile, seed, overrides)


def _reproduction(profile: str, seed: int, overrides: Mapping[str, object] | None) -> str:
    """<profile>-s<seed>, with 8 hex of the digest of the overrides behind it where there are any."""
    return f"{profile}-s{seed}" + (f"-{records.digest(dict(overrides))[:8]}" if overrides else "")


def run_folder(recipe: str, seed: int, digest: str) -> Path:
    """The folder of one run: data/runs/<recipe>-s<seed>-<8 hex of the configuration's digest>."""
    return runs() / f"{recipe}-s{seed}-{digest[:8]}"


def writable(folder: Path) -> Path:
    """The folder, made with its parents and proven writable by creating a file in it.

    Raises:
        EnvironmentProblem: it cannot be made or written (permission, full disk, a file in its place).
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return folder
    except OSError as error:
        raise EnvironmentProblem(
            f"cannot write to {folder} ({error.strerror or error}); "
            f"free or change its permissions, or set {HOME_VARIABLE} to a folder that you may write to"
        ) from error
