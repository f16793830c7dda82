"""What every notebook calls first and last; the notebooks themselves stay a story of short cells."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping
from importlib import metadata

from dagger_nb import config, paths
from dagger_nb.config import Settings
from dagger_nb.crew import executor
from dagger_nb.fleet import Executor

_executors: dict[int | Settings, Executor] = {}


def begin(profile: str, seed: int, overrides: Mapping[str, object] | None = None) -> Settings:
    """The settings of a notebook; prints what it runs on and where its results go.

    Raises:
        ConfigError: an unknown profile or setting, or a value that cannot be.
    """
    settings = config.load(profile, {"seed": seed, **(overrides or {})})
    versions = ", ".join(f"{name} {metadata.version(name).partition('+')[0]}" for name in ("torch", "transformers"))
    print(f"profile {profile}, seed {seed}; Python {platform.python_version()}, {versions}, {os.cpu_count()} CPUs")
    for name, value in (overrides or {}).items():
        print(f"in the place of the profile's: {name} = {value!r}")
    print(f"results go to {_short(paths.result_folder(profile, seed, overrides))}")
    return settings


def needs(settings: Settings, number: str) -> None:
    """Print what notebook `number` ("02" to "06") needs and takes in this profile, before anything is spent.

    Raises:
        ConfigError: the profile does not fit this machine's GPU.
    """
    from dagger_nb import plan

    print(plan.needs(settings, number))


def fleet(settings: Settings) -> Executor:
    """Who runs this notebook's episodes, made at the first call and kept for the others."""
    key = settings if settings.served else settings.workers
    if key not in _executors:
        _executors[key] = executor(settings)
    return _executors[key]


def check(holds: bool, claim: str) -> None:
    """One line of a Checks cell: print the claim that holds, or stop the notebook with the one that does not."""
    assert holds, f"this check failed: {claim}"
    print(f"ok: {claim}")


def _short(path: object) -> str:
    """A path relative to the home folder, so that saved outputs name no folder of this machine."""
    return os.path.relpath(str(path), paths.home())
