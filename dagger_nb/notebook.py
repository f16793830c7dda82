"""What every notebook calls first and last; the notebooks themselves stay a story of short cells."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping
from importlib import metadata

from dagger_nb import config, paths
from dagger_nb.config import Settings
from dagger_nb.fleet import Fleet

_fleets: dict[int, Fleet] = {}


def begin(profile: str, seed: int, overrides: Mapping[str, object] | None = None) -> Settings:
    """The settings of a notebook; prints what it runs on and where its results go.

    Raises:
        ConfigError: an unknown profile or setting, or a value that cannot be.
    """
    settings = config.load(profile, {"seed": seed, **(overrides or {})})
    versions = ", ".join(f"{name} {metadata.version(name).partition('+')[0]}" for name in ("torch", "transformers"))
    print(f"profile {profile}, seed {seed}; Python {platform.python_version()}, {versions}, {os.cpu_count()} CPUs")
    print(f"results go to {_short(paths.result_folder(profile, seed))}")
    return settings


def fleet(settings: Settings) -> Fleet:
    """This notebook's worker processes, started at the first call and kept for the others."""
    if settings.workers not in _fleets:
        _fleets[settings.workers] = Fleet(settings.workers)
    return _fleets[settings.workers]


def check(holds: bool, claim: str) -> None:
    """One line of a Checks cell: print the claim that holds, or stop the notebook with the one that does not."""
    assert holds, f"this check failed: {claim}"
    print(f"ok: {claim}")


def _short(path: object) -> str:
    """A path relative to the home folder, so that saved outputs name no folder of this machine."""
    return os.path.relpath(str(path), paths.home())
