"""Ablations: a study's recipes again with a setting in the place of the profile's, published beside the study.

Only the recipes that the setting changes are kept: the others would be the same runs. An ablation is read against the
study's own tables, whose seeds and tasks it shares, and its differences count among those that are adjusted.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import pandas as pd

from dagger_nb import config, paths
from dagger_nb.errors import ConfigError
from dagger_nb.provenance import identity


def name_of(overrides: Mapping[str, object]) -> str:
    """What an ablation is called, in tables and as a folder.

    >>> name_of({"dagger.schedule": "linear", "training.passes": 2})
    'dagger.schedule=linear,training.passes=2'
    """
    return re.sub(r"[^\w.,=-]", "-", ",".join(f"{name}={value}" for name, value in sorted(overrides.items())))


def folder() -> Path:
    """The committed ablations, each a folder of tables as `results.published` is."""
    return paths.data() / "results" / "ablations"


def changed(profile: str, overrides: Mapping[str, object], recipes: Sequence[str]) -> tuple[str, ...]:
    """Those of `recipes` whose runs differ from the profile's own. Raises ConfigError where none does."""
    plain, other = config.load(profile), config.load(profile, overrides)
    found = tuple(name for name in recipes if identity(name, plain) != identity(name, other))
    if not found:
        asked = f"{', '.join(recipes)} in profile {profile}"
        raise ConfigError(f"{name_of(overrides)} changes no run of {asked}; there is nothing to publish")
    return found


def beside(study: pd.DataFrame, table: str) -> pd.DataFrame:
    """A table of the study with the rows of all ablations below, whose recipes are called `dagger (name=value)`."""
    return pd.concat([study, *map(_named, sorted(folder().glob(f"*/{table}.csv")))], ignore_index=True)


def _named(path: Path) -> pd.DataFrame:
    rows = pd.read_csv(path)
    return rows.assign(recipe=rows.recipe + f" ({path.parent.name})")
