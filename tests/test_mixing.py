"""Who acts: the schedules against their formulas, and chance that depends on nothing but its key."""

from __future__ import annotations

import math
import random
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from itertools import product

import pytest
from scipy.stats import chisquare, kstest

from dagger_nb.errors import ConfigError
from dagger_nb.mixing import STUDENT_ALONE, TEACHER_ALONE, BernoulliMixer, Schedule, SwitchMixer, uniform

ROUNDS = range(1, 12)


def release(kind: str, round_: int, start: float, end: float, decay: int, warmup: int) -> float:
    """The release's formulas as PAPER tells them; its rounds count from 0."""
    i = round_ - 1
    if i < warmup:
        return start
    d = i - warmup
    if d >= decay:
        return end
    p = d / decay
    if kind == "linear":
        return start + (end - start) * p
    if kind == "cosine":
        return end + (start - end) * (1 + math.cos(math.pi * p)) / 2
    if kind == "exponential":
        return max(start, 1e-8) * (max(end, 1e-8) / max(start, 1e-8)) ** p
    return start if p < 0.5 else end


@pytest.mark.parametrize("kind", ["linear", "cosine", "exponential", "step"])
@pytest.mark.parametrize(("start", "end", "decay", "warmup"), [(1, 0, 5, 0), (0.9, 0.2, 4, 2), (0.3, 0.8, 1, 1)])
def test_schedules_follow_their_formulas(kind, start, end, decay, warmup):
    schedule = Schedule(kind, start, end, decay, warmup)
    for round_ in ROUNDS:
        assert schedule.beta(round_) == pytest.approx(release(kind, round_, start, end, decay, warmup), abs=1e-12)


def test_the_papers_schedule_by_name():
    assert [Schedule("paper").beta(i) for i in ROUNDS] == [max(0.6, round(1 - 0.2 * (i - 1), 9)) for i in ROUNDS]


@pytest.mark.parametrize("kind", ["linear", "cosine", "exponential", "step"])
def test_a_floor_holds_and_changes_nothing_above_it(kind):
    free, held = Schedule(kind, decay=5), Schedule(kind, decay=5, floor=0.35)
    for round_ in ROUNDS:
        assert held.beta(round_) == max(0.35, free.beta(round_))


def test_a_constant_never_moves():
    assert {Schedule("constant", start=0.25, warmup=2).beta(i) for i in ROUNDS} == {0.25}


@pytest.mark.parametrize(
    "bad",
    [
        {"kind": "square"},
        {"start": 1.1},
        {"end": -0.1},
        {"floor": 2.0},
        {"floor": float("nan")},
        {"decay": 0},
        {"warmup": -1},
    ],
)
def test_a_wrong_schedule_is_refused(bad):
    with pytest.raises(ConfigError, match="beta schedule"):
        Schedule(**bad)


def test_rounds_count_from_one():
    with pytest.raises(ConfigError, match="from 1"):
        Schedule().beta(0)


# --- chance --------------------------------------------------------------------------------------------------

KEYS = [
    (seed, round_, f"task-{task}", attempt, turn)
    for seed, round_, task, attempt, turn in product((0, 1), (1, 2), range(10), (0, 1), range(40))
]


def test_draws_do_not_depend_on_order_or_concurrency():
    mixer = BernoulliMixer(Schedule("constant", start=0.5))
    in_order = {key: mixer.choose(*key) for key in KEYS}
    shuffled = random.Random(0).sample(KEYS, len(KEYS))
    with ThreadPoolExecutor(8) as pool:
        threaded = dict(zip(shuffled, pool.map(lambda key: mixer.choose(*key), shuffled), strict=True))
    assert threaded == in_order


def test_draws_are_pinned():
    """Another number here would silently change every run."""
    assert uniform("mix", 0, 1, "task", 0, 0) == 0.8211858285244986
    assert uniform("a", "b") != uniform("ab") and uniform("1") != uniform(1)


def test_draws_are_uniform_and_each_part_of_the_key_counts():
    mixer = BernoulliMixer(Schedule("constant", start=0.5))
    draws = [mixer.choose(*key).draw for key in KEYS]
    assert len(set(draws)) == len(KEYS)
    assert kstest(draws, "uniform").pvalue > 0.001


@pytest.mark.parametrize("beta", [0.0, 0.2, 0.6, 1.0])
def test_the_teacher_acts_with_probability_beta(beta):
    mixer = BernoulliMixer(Schedule("constant", start=beta))
    choices = [mixer.choose(*key) for key in KEYS]
    share = sum(choice.teacher_acts for choice in choices) / len(choices)
    assert abs(share - beta) < 4 * math.sqrt(beta * (1 - beta) / len(choices)) + 1e-9
    assert all(choice.beta == beta and choice.teacher_acts == (choice.draw < beta) for choice in choices)


def test_alone_means_alone():
    assert all(TEACHER_ALONE.choose(*key).teacher_acts and not STUDENT_ALONE.choose(*key).teacher_acts for key in KEYS)


@pytest.mark.parametrize(("round_", "top"), [(1, 4), (2, 8), (3, 9), (9, 9)])
def test_kappa_is_uniform_from_zero_to_its_largest(round_, top):
    mixer = SwitchMixer(per_round=4, longest=9)
    counts = Counter(mixer.kappa(0, round_, f"task-{task}", attempt) for task in range(400) for attempt in range(3))
    assert set(counts) == set(range(top + 1))
    assert chisquare([counts[k] for k in range(top + 1)]).pvalue > 0.001


def test_one_switch_and_no_way_back():
    mixer = SwitchMixer()
    for task in range(60):
        kappa = mixer.kappa(0, 1, f"task-{task}", 0)
        choices = [mixer.choose(0, 1, f"task-{task}", 0, turn) for turn in range(40)]
        assert [choice.teacher_acts for choice in choices] == [turn >= kappa for turn in range(40)]
        assert {choice.beta for choice in choices if choice.teacher_acts} <= {1.0}
        assert {choice.beta for choice in choices if not choice.teacher_acts} <= {0.0}


def test_the_switchs_largest_turn_is_the_releases():
    mixer = SwitchMixer()
    for round_, top in ((1, 20), (2, 40), (5, 100), (7, 100)):
        assert max(mixer.kappa(0, round_, f"task-{task}", 0) for task in range(2000)) == top
