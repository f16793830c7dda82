"""Cells of notebooks under settings that no laptop profile has."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import matplotlib
import nbformat
import pytest

from dagger_nb import config

FOLDER = Path(__file__).resolve().parents[1] / "notebooks"


def cells_of(name: str) -> dict[str, str]:
    """The code cells of a notebook, by their ids."""
    found = nbformat.read(FOLDER / f"{name}.ipynb", as_version=4).cells
    return {cell.id: cell.source for cell in found if cell.cell_type == "code"}


@pytest.mark.parametrize(("profile", "dev", "shown"), [("qwen3-4b", 0, 2), ("smoke", 1, 1)])
def test_the_first_figure_takes_generated_tasks_where_the_profile_has_no_dev_tasks(
    tmp_path: Path, sandboxes: Any, monkeypatch: pytest.MonkeyPatch, profile: str, dev: int, shown: int
) -> None:
    matplotlib.use("Agg")
    monkeypatch.setattr("dagger_nb.paths.figures", lambda: tmp_path)
    cells = cells_of("00_environment")
    imports = cells["settings"].partition("\nbegan")[0]
    names = {"settings": config.load(profile, {"tasks.dev": dev}), "episodes": 2, "factory": sandboxes}
    names |= {"began": time.monotonic()}
    exec(f"{imports}\ntask = generate('dev', 0)", names)
    for cell in ("loop", "dozen", "kinds", "figure", "figure-said"):
        exec(cells[cell], names)
    assert names["count"] == shown == names["per_episode"].turns.size
    assert config.load("qwen3-4b").tasks.dev == 0
    assert (tmp_path / "00_teacher_turns.png").exists()
