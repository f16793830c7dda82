"""Intervals and tests for outcomes that are paired by task: rates, differences, what a test could have seen.

Nothing here knows an agent. Outcomes are 0/1 arrays of shape [tasks] or [seeds, tasks]; NaN marks an
infrastructure failure, which is left out and counted, never scored as 0. Chance enters through the
`numpy.random.Generator` that is passed in, and nowhere else.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import bdtr
from scipy.stats import norm

from dagger_nb.errors import ConfigError, DataError

Floats = NDArray[np.float64]
_BLOCK = 500  # resamples drawn at once: bounds the memory, does not change the stream of random numbers


@dataclass(frozen=True, slots=True)
class Estimate:
    """A value with its interval. `low` and `high` are NaN where one cluster alone cannot give an interval.

    `n` counts the observations (or pairs) behind it, `excluded` those left out for an infrastructure failure.
    """

    value: float
    low: float
    high: float
    n: int
    method: str
    excluded: int = 0


@dataclass(frozen=True, slots=True)
class McNemar:
    """Counts of paired outcomes. `p_value`: two-sided, exact, under the hypothesis of equal rates."""

    both: int
    only_a: int
    only_b: int
    neither: int
    p_value: float
    excluded: int

    @property
    def discordance(self) -> float:
        """The share of pairs that differ."""
        return (self.only_a + self.only_b) / (self.both + self.only_a + self.only_b + self.neither)


@dataclass(frozen=True, slots=True)
class TurnBin:
    """The mean over turns first..last (both included)."""

    first: int
    last: int
    estimate: Estimate


def wilson(k: float, n: float, level: float = 0.95) -> tuple[float, float]:
    """Wilson's score interval of a share of k hits among n trials (Wilson 1927, JASA 22:209).

    Neither must be whole: an effective number of trials is allowed.

    >>> [round(100 * bound, 1) for bound in wilson(127, 466)]
    [23.4, 31.5]

    Raises:
        ConfigError: `level` is not in (0, 1). DataError: not 0 <= k <= n with n > 0.
    """
    z = norm.isf((1 - _inside("level", level)) / 2)
    if not (0 <= k <= n and n > 0):
        raise DataError(f"a share needs 0 <= hits <= trials and trials > 0, not {k} of {n}; leave an empty group out")
    centre = (k + z**2 / 2) / (n + z**2)
    half = z / (n + z**2) * math.sqrt(k * (n - k) / n + z**2 / 4)
    low = 0.0 if k == 0 else max(0.0, centre - half)
    high = 1.0 if k == n else min(1.0, centre + half)
    return float(low), float(high)


def mean_interval(
    values: ArrayLike,
    *,
    clusters: Sequence[object] | None,
    rng: np.random.Generator,
    samples: int = 10_000,
    level: float = 0.95,
) -> Estimate:
    """Mean with a percentile bootstrap interval: clusters of tasks are resampled and, crossed with them, seeds.

    Every seed meets the same tasks, so a resample is one draw of clusters and one of seeds (the pigeonhole
    bootstrap, Owen 2007, Ann. Appl. Stat. 1:386). It is conservative where the chance of single episodes
    dominates (standard errors up to sqrt(3) too wide), and too narrow where few seeds differ much from
    each other. With one seed the interval speaks of new tasks, not of new training runs. Where all
    values are equal the interval has no width; that is not certainty.

    Args:
        values: [tasks] or [seeds, tasks]; NaN is left out.
        clusters: a name for each task (its repository); None takes every task as a cluster of its own.
        samples: number of resamples.

    >>> found = mean_interval([0, 1, 1, 1], clusters=None, rng=np.random.default_rng(0), samples=1000)
    >>> found.value, found.low < 0.75 < found.high, found.n
    (0.75, True, 4)

    Raises:
        ConfigError: `level` or `samples` is out of range. DataError: wrong shapes, or no value at all.
    """
    tail = (1 - _inside("level", level)) / 2
    if samples < 1:
        raise ConfigError(f"a bootstrap needs samples >= 1, not {samples}")
    table = _table("values", values)
    names, place = _clusters(clusters, table.shape[1])
    present = ~np.isnan(table)
    sums, counts = _by_cluster(np.where(present, table, 0.0), place), _by_cluster(present.astype(float), place)
    total = int(present.sum())
    if not total:
        raise DataError("no observation is left (every value is NaN: an infrastructure failure); nothing to estimate")
    low = high = math.nan
    used = counts.any(axis=0)
    if used.sum() > 1:
        means = np.concatenate(list(_resampled_means(sums[:, used], counts[:, used], rng, samples)))
        low, high = np.nanquantile(means, [tail, 1 - tail])
    method = _method(int(used.sum()), names, table.shape[0], samples, level)
    value = float(sums.sum() / total)
    return Estimate(value, float(low), float(high), total, method, table.size - total)


def paired_difference(
    a: ArrayLike,
    b: ArrayLike,
    *,
    clusters: Sequence[object] | None,
    rng: np.random.Generator,
    samples: int = 10_000,
    level: float = 0.95,
) -> Estimate:
    """Mean of a - b over pairs (same task, same row of seeds), with the interval of `mean_interval`.

    Args:
        a, b: 0/1 outcomes of shape [tasks] or [seeds, tasks]; a pair with a NaN on either side is left
            out and counted in `excluded`.

    >>> found = paired_difference([1, 1, 0, 1], [0, 1, 0, np.nan], clusters=None, rng=np.random.default_rng(0))
    >>> round(found.value, 3), found.n, found.excluded
    (0.333, 3, 1)

    Raises:
        ConfigError, DataError: as `mean_interval`; outcomes other than 0, 1 and NaN.
    """
    first, second = _outcomes(a, b)
    return mean_interval(first - second, clusters=clusters, rng=rng, samples=samples, level=level)


def mcnemar_exact(a: ArrayLike, b: ArrayLike) -> McNemar:
    """McNemar's test by the exact binomial law of the discordant pairs, two-sided (McNemar 1947).

    The seeds of one task hang together, so this takes one seed: a and b of shape [tasks].

    >>> mcnemar_exact([1, 1, 1, 1, 0], [0, 0, 0, 1, 0])
    McNemar(both=1, only_a=3, only_b=0, neither=1, p_value=0.25, excluded=0)

    Raises:
        DataError: shapes differ or are not [tasks], outcomes other than 0, 1 and NaN, or no complete pair.
    """
    first, second = _outcomes(a, b)
    if len(first) > 1:
        raise DataError(f"McNemar's test takes the outcomes of one seed, not of {len(first)}; test each seed alone")
    kept = ~np.isnan(first - second)
    if not kept.any():
        raise DataError("no pair of outcomes is complete; nothing to test")
    x, y = first[kept].astype(bool), second[kept].astype(bool)
    only_a, only_b = int((x & ~y).sum()), int((~x & y).sum())
    p_value = min(1.0, 2 * float(bdtr(min(only_a, only_b), only_a + only_b, 0.5)))
    return McNemar(int((x & y).sum()), only_a, only_b, int((~x & ~y).sum()), p_value, int((~kept).sum()))


def holm(p_values: ArrayLike) -> Floats:
    """The p-values of one family of tests, adjusted so that 5 % is the chance of any false one (Holm 1979, SJS 6:65).

    >>> holm([0.04, 0.01, 0.3]).round(2).tolist()
    [0.08, 0.03, 0.3]
    """
    given = np.asarray(p_values, float)
    order = np.argsort(given, kind="stable")
    stepped = np.maximum.accumulate(given[order] * np.arange(len(given), 0, -1))
    adjusted = np.empty_like(given)
    adjusted[order] = np.minimum(stepped, 1.0)
    return adjusted


def smallest_detectable_difference(
    n_tasks: int, discordance: float, *, alpha: float = 0.05, power: float = 0.8, seeds: int = 1
) -> float:
    """The smallest true difference of two rates that McNemar's test finds with probability `power`.

    With n pairs of which a share psi differs, the difference d of the two rates is found where
    sqrt(n) d = z_(1-alpha/2) sqrt(psi) + z_power sqrt(psi - d^2)   (Connor 1987, Biometrics 43:207), hence
    d = sqrt(psi) [ z_a sqrt(n) + z_b sqrt(n + z_b^2 - z_a^2) ] / (n + z_b^2).

    Assumes pairs that are independent, n = n_tasks * seeds, and the normal approximation. Seeds of one task
    are not independent, and tasks of one repository neither, so the answer is a lower limit. It is
    infinite where even a difference as large as the discordance (all pairs in favour of one) would be missed.

    >>> round(smallest_detectable_difference(466, 0.2), 3)
    0.058

    Raises:
        ConfigError: a share is not in (0, 1) (discordance: [0, 1]), or a count is below 1.
    """
    if n_tasks < 1 or seeds < 1:
        raise ConfigError(f"n_tasks and seeds must be >= 1, not {n_tasks} and {seeds}")
    if not 0 <= discordance <= 1:
        raise ConfigError(f"discordance must lie in [0, 1], not {discordance}")
    n, z_a = n_tasks * seeds, norm.isf(_inside("alpha", alpha) / 2)
    z_b = norm.ppf(_inside("power", power))
    inner = n + z_b**2 - z_a**2
    if inner < 0 or discordance == 0:
        return math.inf
    found = math.sqrt(discordance) * (z_a * math.sqrt(n) + z_b * math.sqrt(inner)) / (n + z_b**2)
    return float(found) if found <= discordance else math.inf


def by_turn(
    values: ArrayLike,
    turns: ArrayLike,
    *,
    edges: Sequence[int],
    clusters: Sequence[object] | None,
    rng: np.random.Generator,
    samples: int = 10_000,
    level: float = 0.95,
) -> tuple[TurnBin, ...]:
    """Means of something observed once a turn, in bins of turns, each with the interval of `mean_interval`.

    Args:
        values, turns: [observations], the value and its turn (from 0).
        edges: rising; [0, 4, 8] gives turns 0-3 and 4-7. Other turns, and bins without a value, are left out.
        clusters: [observations], the task of each, because the turns of one episode hang together.

    >>> rng = np.random.default_rng(0)
    >>> [(bin.first, bin.last, bin.estimate.value)
    ...  for bin in by_turn([0, 1, 1], [0, 1, 5], edges=[0, 2, 4, 6], clusters=None, rng=rng)]
    [(0, 1, 0.5), (4, 5, 1.0)]

    Raises:
        ConfigError: `edges` do not rise. DataError: shapes differ.
    """
    data, at = np.asarray(values, float), np.asarray(turns)
    if data.ndim != 1 or data.shape != at.shape:
        raise DataError(f"values and turns must both be [observations], not {data.shape} and {at.shape}")
    if len(edges) < 2 or any(end <= first for first, end in zip(edges, edges[1:], strict=False)):
        raise ConfigError(f"edges of turn bins must rise and be two at least, not {list(edges)}")
    _, place = _clusters(clusters, len(data))
    bins = []
    for first, end in zip(edges, edges[1:], strict=False):
        inside = (first <= at) & (at < end) & ~np.isnan(data)
        if inside.any():
            found = mean_interval(data[inside], clusters=place[inside], rng=rng, samples=samples, level=level)
            bins.append(TurnBin(first, end - 1, found))
    return tuple(bins)


# --- parts --------------------------------------------------------------------------------------------------


def _inside(name: str, share: float) -> float:
    if not 0 < share < 1:
        raise ConfigError(f"{name} must lie in (0, 1), not {share}; 95 % is 0.95")
    return share


def _table(name: str, values: ArrayLike) -> Floats:
    """Values as [seeds, tasks]."""
    table = np.asarray(values, dtype=float)
    if table.ndim not in (1, 2) or not table.size:
        raise DataError(f"{name} must have the shape [tasks] or [seeds, tasks] and not be empty, not {table.shape}")
    if np.isinf(table).any():
        raise DataError(f"{name} holds an infinite value")
    return np.atleast_2d(table)


def _outcomes(a: ArrayLike, b: ArrayLike) -> tuple[Floats, Floats]:
    first, second = _table("a", a), _table("b", b)
    if first.shape != second.shape:
        raise DataError(f"paired outcomes need equal shapes, not {first.shape} and {second.shape}; align them by task")
    for name, table in (("a", first), ("b", second)):
        if strange := sorted(set(table[~np.isnan(table)]) - {0.0, 1.0}):
            raise DataError(f"{name} holds {strange[0]}; an outcome is 0, 1 or NaN (infrastructure failure)")
    return first, second


def _clusters(clusters: Sequence[object] | None, tasks: int) -> tuple[str, NDArray[np.intp]]:
    """What is resampled, and the number of each task's cluster [tasks]."""
    if clusters is None:
        return "tasks", np.arange(tasks)
    if len(clusters) != tasks:
        raise DataError(f"{len(clusters)} clusters for {tasks} tasks; give one for each")
    number = {name: index for index, name in enumerate(dict.fromkeys(clusters))}
    return "clusters of tasks", np.array([number[name] for name in clusters], dtype=np.intp)


def _by_cluster(table: Floats, place: NDArray[np.intp]) -> Floats:
    """Sums over the tasks of each cluster: [seeds, tasks] -> [seeds, clusters]."""
    return np.stack([np.bincount(place, weights=row) for row in table])


def _resampled_means(sums: Floats, counts: Floats, rng: np.random.Generator, samples: int) -> Iterator[Floats]:
    """Blocks of means under resampled clusters and seeds; NaN where a resample holds no observation."""
    seeds, clusters = sums.shape
    for start in range(0, samples, _BLOCK):
        size = min(_BLOCK, samples - start)
        by_cluster = rng.multinomial(clusters, np.full(clusters, 1 / clusters), size=size)
        by_seed = rng.multinomial(seeds, np.full(seeds, 1 / seeds), size=size)
        total, count = (((by_seed @ table) * by_cluster).sum(axis=1) for table in (sums, counts))
        yield np.divide(total, count, out=np.full(size, np.nan), where=count > 0)


def _method(clusters: int, names: str, seeds: int, samples: int, level: float) -> str:
    if clusters < 2:
        return f"no interval: 1 of {names}"
    crossed = f" x {seeds} seeds" if seeds > 1 else ""
    return f"{level:.0%} percentile bootstrap over {clusters} {names}{crossed}, {samples} resamples"
