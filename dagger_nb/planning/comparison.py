"""A prediction beside what the runs used."""

from __future__ import annotations

from collections.abc import Iterable

import pandas as pd

from dagger_nb.errors import DataError
from dagger_nb.experiment import Experiment
from dagger_nb.planning import usage
from dagger_nb.planning.plan import Plan
from dagger_nb.planning.usage import Usage

TOLERANCE = 2.0  # a prediction of tokens or test runs may be off by this factor
_TOTALS = ("tokens", "test_runs", "fresh_runs")


def compare(predicted: Plan, runs: Iterable[Experiment]) -> pd.DataFrame:
    """Predicted over actual, a row for each phase that both have and a last one for all of these.

    Columns: for tokens, test_runs and fresh_runs the prediction, the count, and <name>_ratio (NaN for 0 / 0).

    Raises:
        DataError: there is no run of these settings, or a phase that was predicted is missing.
    """
    actual = {phase.phase: phase for phase in usage.count(runs)}
    if missing := [phase.phase for phase in predicted.phases if phase.phase not in actual]:
        raise DataError(
            f"nothing to compare with: {len(missing)} phases have not run, e.g. {missing[0]!r}; "
            f"run notebooks 03 and 04 with profile {predicted.settings.profile!r} first"
        )
    rows = {phase.phase: _beside(phase, actual[phase.phase]) for phase in predicted.phases}
    table = pd.DataFrame(rows).T
    table.loc["all"] = table.sum()
    for name in _TOTALS:
        table[f"{name}_ratio"] = table[f"{name}_predicted"] / table[f"{name}_used"]
    return table


def _beside(predicted: Usage, used: Usage) -> dict[str, float]:
    pairs = (("predicted", predicted), ("used", used))
    return {f"{name}_{word}": float(getattr(phase, name)) for name in _TOTALS for word, phase in pairs}


def misses(table: pd.DataFrame) -> list[str]:
    """Which totals of `compare` are off by more than `TOLERANCE`, in words; empty where the prediction held."""
    ratios = {name: table.loc["all", f"{name}_ratio"] for name in _TOTALS}
    return [
        f"{name}: predicted {ratio:.2f} times what was used"
        for name, ratio in ratios.items()
        if not 1 / TOLERANCE <= ratio <= TOLERANCE
    ]
