"""Recipes against each other on the same tasks: paired differences, never two intervals side by side.

A pair (seed, task) counts where both recipes have an outcome; seed s of one recipe is paired with seed s of
the other. Tasks are the units of inference, grouped by repository: more seeds sharpen a task's mean and
give no new tasks.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import combinations

import numpy as np
import pandas as pd

from dagger_nb.evaluation.tables import checked
from dagger_nb.statistics import (
    Estimate,
    mcnemar_exact,
    mean_interval,
    paired_difference,
    smallest_detectable_difference,
)


def comparison(outcomes: pd.DataFrame, *, seed: int = 0, samples: int = 10_000) -> pd.DataFrame:
    """Every pair of recipes on every split, sorted; `difference` is the rate of `recipe` minus that of `baseline`.

    Args:
        outcomes: rows of `tables.outcomes`, several recipes and seeds together.
        seed: of the bootstrap; each row draws a stream of its own, which no other row can shift.
        samples: number of resamples.

    Returns:
        Columns: split, recipe, baseline, seeds, tasks, repositories, pairs, rate, baseline_rate, difference with
        low and high (95 %) and the method behind them (bootstrap over tasks, clustered by repository, crossed
        with seeds), p_by_seed (exact McNemar, one a seed), p_pooled, and detectable: the smallest difference that
        one seed on this many tasks shows with 80 % power at the observed discordance (NaN without any).

        p_pooled does not count a task once for each seed: every task casts one vote, for the recipe that
        solved it with more seeds (ties abstain), and the exact McNemar test is made of these votes. With
        one seed it is McNemar's test itself, with several an exact sign test on majorities. It says how sure
        the difference is for these seeds.
    """
    return pd.DataFrame([_row(*row, _stream(seed, *row[:3]), samples) for row in _pairings(checked(outcomes))])


def slip_costs(outcomes: pd.DataFrame, baseline: str, *, seed: int = 0, samples: int = 10_000) -> pd.DataFrame:
    """What slips cost each recipe on the same tasks, and whether they cost the baseline more.

    That recipe A beats B with slips shows nothing about slips where it beats B without them as well.

    Args:
        outcomes: rows of `tables.outcomes` of the splits "test" and "test-slips".
        baseline: the recipe whose cost the others' is subtracted from.
        seed: of the bootstrap, as in `comparison`.

    Returns:
        One row a recipe: tasks, clean (rate), slipped (rate), cost (clean - slipped) with low and high (95 %, as in
        `comparison`), and saved (the baseline's cost - this cost) with saved_low and saved_high.
    """
    exams = dict(iter(checked(outcomes).groupby("split")))
    clean, slipped = ({r: _matrix(rows) for r, rows in exams[s].groupby("recipe")} for s in ("test", "test-slips"))
    both = {recipe: clean[recipe].align(slipped[recipe], join="inner") for recipe in sorted(clean.keys() & slipped)}
    costs = {recipe: x - y for recipe, (x, y) in both.items()}
    rows = []
    for recipe, (x, y) in both.items():
        stream = _stream(seed, "slip costs", recipe, baseline)
        cost = _mean(costs[recipe], stream, samples)
        saved = _mean((costs[baseline] - costs[recipe]).dropna(how="all"), stream, samples)
        rates = {"recipe": recipe, "tasks": len(x), "clean": x.mean(axis=None), "slipped": y.mean(axis=None)}
        ends = {"cost": cost.value, "low": cost.low, "high": cost.high}
        rows.append(rates | ends | {"saved": saved.value, "saved_low": saved.low, "saved_high": saved.high})
    return pd.DataFrame(rows)


def _stream(seed: int, *names: str) -> np.random.Generator:
    """The resamples of the row of these names: the same ones whichever other rows the table has."""
    return np.random.default_rng([seed, *"/".join(names).encode()])


def _mean(values: pd.DataFrame, rng: np.random.Generator, samples: int) -> Estimate:
    repos = values.index.get_level_values("repo").tolist()
    return mean_interval(values.T, clusters=repos, rng=rng, samples=samples)


def _pairings(outcomes: pd.DataFrame) -> Iterator[tuple[str, str, str, pd.DataFrame, pd.DataFrame]]:
    """(split, recipe, baseline, [tasks, seeds] outcomes of both) for every pair of recipes with common tasks."""
    for split, part in outcomes.groupby("split", sort=True):
        tables = {recipe: _matrix(rows) for recipe, rows in part.groupby("recipe", sort=True)}
        for baseline, recipe in combinations(tables, 2):
            x, y = tables[recipe].align(tables[baseline], join="inner")
            kept = (x.notna() & y.notna()).any(axis=1)
            if kept.any():
                yield split, recipe, baseline, x[kept], y[kept]


def _matrix(rows: pd.DataFrame) -> pd.DataFrame:
    """Outcomes as 0.0 and 1.0, tasks (with their repository) by seeds; NaN where an episode is missing."""
    numbers = rows.assign(resolved=rows.resolved.astype(float))
    return numbers.pivot(index=["instance_id", "repo"], columns="seed", values="resolved").sort_index()


def _row(
    split: str, recipe: str, baseline: str, x: pd.DataFrame, y: pd.DataFrame, rng: np.random.Generator, samples: int
) -> dict[str, object]:
    repos = x.index.get_level_values("repo").tolist()
    found = paired_difference(x.T, y.T, clusters=repos, rng=rng, samples=samples)
    by_seed = [mcnemar_exact(x[seed], y[seed]) for seed in x if (x[seed] - y[seed]).notna().any()]
    votes = (x - y).sum(axis=1)
    pooled = mcnemar_exact(votes > 0, votes < 0)
    discordance = float(np.mean([test.discordance for test in by_seed]))
    paired = (x - y).notna()
    return {
        "split": split,
        "recipe": recipe,
        "baseline": baseline,
        "seeds": len(by_seed),
        "tasks": len(x),
        "repositories": len(set(repos)),
        "pairs": found.n,
        "rate": x.to_numpy()[paired].mean(),
        "baseline_rate": y.to_numpy()[paired].mean(),
        "difference": found.value,
        "low": found.low,
        "high": found.high,
        "method": found.method,
        "p_by_seed": [test.p_value for test in by_seed],
        "p_pooled": pooled.p_value,
        "detectable": smallest_detectable_difference(len(x), discordance) if discordance else float("nan"),
    }
