"""A share with its counts and its interval: the one form in which this room reports a rate."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from dagger_nb.statistics import wilson

LEVEL = 0.95
_NAN = float("nan")


@dataclass(frozen=True, slots=True)
class Share:
    """hits / count and its 95 % interval; NaN where there was nothing to count."""

    hits: int
    count: int
    value: float
    low: float
    high: float

    def interval(self, name: str = "share", suffix: str = "") -> dict[str, float]:
        """The columns share (or `name`), low and high of a table."""
        return {name: self.value, f"low{suffix}": self.low, f"high{suffix}": self.high}


def share(hits: int, count: int) -> Share:
    """Share of independent outcomes, with Wilson's interval.

    >>> share(0, 0).value
    nan
    """
    if not count:
        return Share(0, 0, _NAN, _NAN, _NAN)
    low, high = wilson(hits, count, LEVEL)
    return Share(hits, count, hits / count, low, high)


def clustered_share(clusters: Sequence[Sequence[bool]]) -> Share:
    """Share of outcomes that hang together within clusters, with Wilson's interval on the effective sample size.

    The linearised variance of a ratio over n clusters of sizes m_i with d_i hits is
    n / (n - 1) * sum (d_i - p m_i)^2 / (sum m_i)^2 (Cochran, Sampling Techniques, 6.4); p (1 - p) / variance
    independent outcomes would be as uncertain. That number is kept between the number of clusters and that
    of outcomes, and is the former where the variance says nothing (one cluster, p of 0 or 1).
    """
    n, count, hits = len(clusters), sum(map(len, clusters)), sum(map(sum, clusters))
    if not count:
        return share(0, 0)
    p = hits / count
    spread = sum((sum(cluster) - p * len(cluster)) ** 2 for cluster in clusters)
    variance = n / (n - 1) * spread / count**2 if n > 1 else 0.0
    effective = min(max(p * (1 - p) / variance, n), count) if variance else n
    low, high = wilson(p * effective, effective, LEVEL)
    return Share(hits, count, p, low, high)
