"""One finding of the doctor."""

from __future__ import annotations

from dataclasses import dataclass
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


def failed(name: str, error: DaggerError) -> Check:
    """An error as a finding: what it says up to the first semicolon, and the rest as the next step."""
    what, _, step = str(error).partition("; ")
    return Check(name, "fail", what, step)
