"""Intervals must cover, tests must agree with scipy, and failures of the infrastructure must never count as 0."""

from __future__ import annotations

import doctest
import math

import numpy as np
import pytest
from scipy.stats import binomtest, norm

from dagger_nb import statistics
from dagger_nb.errors import ConfigError, DataError
from dagger_nb.statistics import (
    by_turn,
    holm,
    mcnemar_exact,
    mean_interval,
    paired_difference,
    smallest_detectable_difference,
    wilson,
)

NAN = math.nan


def fresh(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def test_the_examples_in_the_docstrings() -> None:
    failed, tried = doctest.testmod(statistics)
    assert not failed and tried >= 6


# --- Wilson ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("k", "low", "high"), [(127, 23.4, 31.5), (109, 19.8, 27.4)])
def test_wilson_gives_the_published_intervals(k: int, low: float, high: float) -> None:
    assert [round(100 * bound, 1) for bound in wilson(k, 466)] == [low, high]


@pytest.mark.parametrize(("k", "n"), [(0, 7), (7, 7), (1, 1), (3, 11), (150, 300)])
@pytest.mark.parametrize("level", [0.8, 0.95, 0.99])
def test_wilson_agrees_with_scipy(k: int, n: int, level: float) -> None:
    known = binomtest(k, n).proportion_ci(level, method="wilson")
    assert wilson(k, n, level) == pytest.approx((known.low, known.high), abs=1e-12)


def test_wilson_stays_within_0_and_1_and_takes_an_effective_number_of_trials() -> None:
    assert wilson(0, 5)[0] == 0.0 and wilson(5, 5)[1] == 1.0
    wide, narrow = wilson(2.5, 10.5), wilson(25, 105)
    assert wide[0] < narrow[0] < 25 / 105 < narrow[1] < wide[1]


@pytest.mark.parametrize(("k", "n"), [(1, 0), (-1, 4), (5, 4), (NAN, 4)])
def test_wilson_refuses_counts_that_cannot_be(k: float, n: float) -> None:
    with pytest.raises(DataError, match="hits"):
        wilson(k, n)


@pytest.mark.parametrize("level", [0, 1, 95, -0.1, NAN])
def test_a_level_lies_between_0_and_1(level: float) -> None:
    with pytest.raises(ConfigError, match="level"):
        wilson(1, 2, level)
    with pytest.raises(ConfigError, match="level"):
        mean_interval([0, 1], clusters=None, rng=fresh(), level=level)


# --- bootstrap ------------------------------------------------------------------------------------------------


def test_the_bootstrap_of_independent_tasks_has_the_known_standard_error() -> None:
    values = fresh(1).random(400) < 0.3
    found = mean_interval(values, clusters=None, rng=fresh(), samples=4000)
    half = norm.isf(0.025) * values.std() / math.sqrt(400)
    assert found.value == pytest.approx(values.mean()) and found.n == 400
    assert (found.high - found.low) / 2 == pytest.approx(half, rel=0.06)
    assert "400 tasks" in found.method and "95%" in found.method


def test_tasks_of_one_repository_are_resampled_together() -> None:
    values = np.repeat(fresh(1).random(20) < 0.5, 10)  # all tasks of a repository share their outcome
    repos = [f"repo{i // 10}" for i in range(200)]
    alone = mean_interval(values, clusters=None, rng=fresh(), samples=2000)
    together = mean_interval(values, clusters=repos, rng=fresh(), samples=2000)
    ratio = (together.high - together.low) / (alone.high - alone.low)
    assert ratio == pytest.approx(math.sqrt(10), rel=0.12)
    assert "20 clusters" in together.method


def test_seeds_that_differ_widen_the_interval() -> None:
    same, shifted = np.zeros((4, 100)), np.zeros((4, 100))
    same[:, :50] = 1
    shifted[:2] = 1  # the same mean, but all of it is a difference between seeds
    assert mean_interval(shifted, clusters=None, rng=fresh(), samples=500).low == 0.0
    assert mean_interval(same, clusters=None, rng=fresh(), samples=500).low > 0.35


def test_an_infrastructure_failure_is_left_out_pairwise_and_counted() -> None:
    a, b = [[1, NAN, 1, 0], [1, 1, 0, 0]], [[0, 0, 1, 0], [1, NAN, 0, 1]]
    found = paired_difference(a, b, clusters=None, rng=fresh(), samples=200)
    assert (found.n, found.excluded) == (6, 2)
    assert found.value == pytest.approx((1 + 0 + 0 + 0 + 0 - 1) / 6)


def test_the_same_generator_gives_the_same_interval_and_another_another() -> None:
    values = fresh(3).random((2, 60))
    first, again, other = (mean_interval(values, clusters=None, rng=fresh(s), samples=700) for s in (0, 0, 1))
    assert first == again != other


def test_blocks_do_not_change_the_result(monkeypatch: pytest.MonkeyPatch) -> None:
    values = fresh(3).random(40)
    whole = mean_interval(values, clusters=None, rng=fresh(), samples=300)
    monkeypatch.setattr(statistics, "_BLOCK", 300)
    assert mean_interval(values, clusters=None, rng=fresh(), samples=300) == whole


def test_one_cluster_gives_no_interval_rather_than_a_false_one() -> None:
    found = mean_interval([0, 1, 1], clusters=["a"] * 3, rng=fresh())
    assert found.value == pytest.approx(2 / 3) and math.isnan(found.low) and math.isnan(found.high)
    assert found.method.startswith("no interval")


@pytest.mark.parametrize(
    ("a", "b", "clusters", "message"),
    [
        ([], [], None, "empty"),
        ([1, 0], [1], None, "equal shapes"),
        ([1, 2], [1, 0], None, "outcome is 0, 1 or NaN"),
        ([1, math.inf], [1, 0], None, "infinite"),
        ([NAN, NAN], [1, 0], None, "no observation"),
        ([1, 0], [1, 0], ["a"], "clusters for 2 tasks"),
        ([[[1]]], [[[1]]], None, "shape"),
    ],
)
def test_outcomes_that_cannot_be_paired_are_refused(a: list, b: list, clusters: list | None, message: str) -> None:
    with pytest.raises(DataError, match=message):
        paired_difference(a, b, clusters=clusters, rng=fresh())


def test_no_resample_is_a_wrong_setting() -> None:
    with pytest.raises(ConfigError, match="samples"):
        mean_interval([0, 1], clusters=None, rng=fresh(), samples=0)


def _coverage(seeds: int, spread: tuple[float, float, float], trials: int = 300) -> float:
    """How often a 95 % interval holds the true mean 0: spread of tasks, of seeds, and of single episodes."""
    rng, hits = fresh(7), 0
    for _ in range(trials):
        parts = [rng.normal(0, s, shape) for s, shape in zip(spread, [(1, 80), (seeds, 1), (seeds, 80)], strict=True)]
        found = mean_interval(sum(parts), clusters=None, rng=rng, samples=400)
        hits += found.low <= 0 <= found.high
    return hits / trials


def test_the_interval_covers_as_often_as_it_says() -> None:
    """300 simulated studies have a standard error of 1.3 points, so 95 % may look like 91 to 99 %."""
    assert 0.91 <= _coverage(1, (1, 0, 0)) <= 0.99
    assert 0.91 <= _coverage(5, (1, 0, 0)) <= 0.99


def test_the_stated_limits_of_crossed_seeds() -> None:
    """The docstring says: conservative where single episodes dominate, too narrow where few seeds differ."""
    assert _coverage(5, (0, 0, 1)) >= 0.98
    assert 0.70 <= _coverage(5, (0, 1, 0.1)) <= 0.92


# --- McNemar ----------------------------------------------------------------------------------------------------


def test_mcnemar_agrees_with_scipys_binomial_test() -> None:
    rng = fresh(5)
    for n in (1, 5, 40, 300):
        a, b = rng.random(n) < 0.5, rng.random(n) < 0.6
        found = mcnemar_exact(a, b)
        wins = int((a & ~b).sum())
        losses = int((~a & b).sum())
        assert (found.only_a, found.only_b, found.both) == (wins, losses, int((a & b).sum()))
        expected = binomtest(wins, wins + losses).pvalue if wins + losses else 1.0
        assert found.p_value == pytest.approx(expected, rel=1e-9)


def test_mcnemar_counts_every_pair_once_and_leaves_failures_out() -> None:
    found = mcnemar_exact([1, 0, 1, 0, NAN, 1], [1, 0, 0, 1, 1, NAN])
    assert (found.both, found.neither, found.only_a, found.only_b, found.excluded) == (1, 1, 1, 1, 2)
    assert found.discordance == 0.5 and found.p_value == 1.0


def test_mcnemar_takes_one_seed_and_some_complete_pair() -> None:
    with pytest.raises(DataError, match="one seed"):
        mcnemar_exact(np.ones((2, 3)), np.zeros((2, 3)))
    with pytest.raises(DataError, match="no pair"):
        mcnemar_exact([NAN], [1])


# --- the smallest difference that a test could see ---------------------------------------------------------------


def test_holms_correction_rejects_what_bonferroni_does_and_more() -> None:
    p = np.random.default_rng(0).uniform(size=40) ** 4
    adjusted = holm(p)
    assert (adjusted >= p).all() and (adjusted <= 1).all() and adjusted.min() == pytest.approx(min(1, 40 * p.min()))
    assert (adjusted <= np.minimum(1, 40 * p)).all() and (np.diff(adjusted[np.argsort(p)]) >= 0).all()
    assert holm([0.03, 0.02, 0.9]).tolist() == pytest.approx([0.06, 0.06, 0.9])  # never below a smaller one's
    assert holm([]).tolist() == []


def test_the_detectable_difference_solves_its_own_formula() -> None:
    n, psi = 300, 0.25
    d = smallest_detectable_difference(n, psi)
    z_a, z_b = norm.isf(0.025), norm.isf(0.2)
    assert math.sqrt(n) * d == pytest.approx(z_a * math.sqrt(psi) + z_b * math.sqrt(psi - d**2))


def test_the_power_is_reached_in_simulation() -> None:
    """The exact test is a little conservative, so 80 % power comes out as 74 to 84 % in 2000 simulated studies."""
    n, psi = 300, 0.25
    d = smallest_detectable_difference(n, psi)
    wins, losses, _ = fresh(2).multinomial(n, [(psi + d) / 2, (psi - d) / 2, 1 - psi], size=2000).T
    found = np.mean([binomtest(int(w), int(w + x)).pvalue <= 0.05 for w, x in zip(wins, losses, strict=True)])
    assert 0.74 <= found <= 0.84


def test_the_detectable_difference_falls_with_tasks_and_seeds_and_grows_with_discordance() -> None:
    few, many = smallest_detectable_difference(100, 0.2), smallest_detectable_difference(400, 0.2)
    assert many < few and smallest_detectable_difference(100, 0.2, seeds=4) == pytest.approx(many)
    assert smallest_detectable_difference(400, 0.4) > many
    assert smallest_detectable_difference(400, 0.2, power=0.9) > many


def test_too_few_tasks_detect_nothing() -> None:
    assert smallest_detectable_difference(5, 0.2) == math.inf
    assert smallest_detectable_difference(1, 0.2) == math.inf
    assert smallest_detectable_difference(500, 0.0) == math.inf  # pairs never differ: no difference could show


@pytest.mark.parametrize(
    "wrong", [{"n_tasks": 0}, {"seeds": 0}, {"discordance": -0.1}, {"discordance": 1.1}, {"alpha": 1}, {"power": 0}]
)
def test_settings_out_of_range_are_refused(wrong: dict) -> None:
    settings = {"n_tasks": 10, "discordance": 0.2, **wrong}
    with pytest.raises(ConfigError):
        smallest_detectable_difference(settings.pop("n_tasks"), settings.pop("discordance"), **settings)


# --- by turn ------------------------------------------------------------------------------------------------------


def test_turns_fall_into_their_bins_and_the_rest_is_left_out() -> None:
    bins = by_turn([1, 0, 1, NAN, 1, 1], [0, 3, 4, 5, 8, -1], edges=[0, 4, 8], clusters=None, rng=fresh())
    assert [(bin.first, bin.last, bin.estimate.n, bin.estimate.value) for bin in bins] == [
        (0, 3, 2, 0.5),
        (4, 7, 1, 1.0),
    ]


def test_turns_of_one_task_hang_together() -> None:
    values, tasks = np.tile(np.repeat([0.0, 1.0], 10), 10), np.repeat(np.arange(20), 10)
    (alone,) = by_turn(values, np.zeros(200, int), edges=[0, 1], clusters=None, rng=fresh(), samples=1000)
    (together,) = by_turn(values, np.zeros(200, int), edges=[0, 1], clusters=list(tasks), rng=fresh(), samples=1000)
    width = [bin.estimate.high - bin.estimate.low for bin in (alone, together)]
    assert width[1] > 2.5 * width[0]


@pytest.mark.parametrize("edges", [[0], [0, 4, 4], [4, 0]])
def test_edges_must_rise(edges: list[int]) -> None:
    with pytest.raises(ConfigError, match="edges"):
        by_turn([1], [0], edges=edges, clusters=None, rng=fresh())


def test_every_value_needs_its_turn() -> None:
    with pytest.raises(DataError, match="observations"):
        by_turn([1, 2], [0], edges=[0, 1], clusters=None, rng=fresh())
