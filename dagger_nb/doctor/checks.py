"""One finding of the doctor."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from dagger_nb.errors import DaggerError


@dataclass(frozen=True, slots=True)
class Check:
    """One finding. Only `fail` stops a run; `next_step` is empty where there is nothing to do."""

    name: str
    status: Literal["ok", "warn", "fail"]
    what: str
    next_step: str = ""
    room: bool = False  # whether a failure means too little free space, and nothing else


def existing(folder: Path) -> Path:
    """The folder, or the nearest one above it that exists."""
    return next(each for each in (folder, *folder.parents) if each.exists())


def on_its_disk(folder: Path, claims: Mapping[Path, float]) -> float:
    """GB that the claims on the disk of a folder come to; `claims` has the GB that each folder needs."""
    device = existing(folder).stat().st_dev
    return sum(gb for claimed, gb in claims.items() if existing(claimed).stat().st_dev == device)


def disk(name: str, folder: Path, needed_gb: float, variable: str) -> Check:
    """Whether the disk of a folder, which an environment variable moves, has so much free space (GB)."""
    free = shutil.disk_usage(existing(folder)).free / 1e9
    what = f"{free:.0f} GB free at {existing(folder)}; the profile needs about {needed_gb:.0f}"
    if free >= needed_gb:
        return Check(name, "ok", what)
    return Check(name, "fail", what, f"free some, or set {variable} to another disk", room=True)


def failed(name: str, error: DaggerError) -> Check:
    """An error as a finding: what it says up to the first semicolon, and the rest as the next step."""
    what, _, step = str(error).partition("; ")
    return Check(name, "fail", what, step)
