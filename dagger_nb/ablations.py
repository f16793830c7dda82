"""Ablations: a study's recipes again with a setting in the place of the profile's, published beside the study.

Only the recipes that the setting changes are kept: the others would be the same runs. An ablation is read against the
study's own tables, whose seeds and tasks it shares, and its differences count among those that are adjusted.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import pandas as pd

from dagger_nb import config, paths, results
from dagger_nb.errors import ConfigError
from dagger_nb.provenance import identity
from dagger_nb.recipes import RECIPES


def name_of(overrides: Mapping[str, object]) -> str:
    """What an ablation is called, in tables and as a folder.

    >>> name_of({"dagger.schedule": "linear", "training.passes": 2})
    'dagger.schedule=linear,training.passes=2'
    """
    return re.sub(r"[^\w.,=-]", "-", ",".join(f"{name}={value}" for name, value in sorted(overrides.items())))


def folder() -> Path:
    """The committed ablations, each a folder of tables as `results.published` is."""
    return paths.data() / "results" / "ablations"


def changed(profile: str, overrides: Mapping[str, object]) -> tuple[str, ...]:
    """The recipes whose runs differ from the profile's own. Raises ConfigError where none does."""
    plain, other = config.load(profile), config.load(profile, overrides)
    found = tuple(name for name in RECIPES if identity(name, plain) != identity(name, other))
    if not found:
        raise ConfigError(f"{name_of(overrides)} changes no run of profile {profile}; there is nothing to publish")
    return found


def published() -> dict[str, dict[str, pd.DataFrame]]:
    """The tables of every committed ablation by its name, recipes as in the study."""
    places = sorted(path for path in folder().glob("*") if path.is_dir())
    return {place.name: results.load(place) for place in places}


def beside(study: pd.DataFrame, table: str) -> pd.DataFrame:
    """A table of the study with the rows of all ablations below, whose recipes are called `dagger (name=value)`."""
    others = [
        tables[table].assign(recipe=tables[table].recipe + f" ({name})")
        for name, tables in published().items()
        if table in tables
    ]
    return pd.concat([study, *others], ignore_index=True)
