"""The exact theory: probabilities are probabilities, closed forms hold, T^2 eps and T eps come out."""

from __future__ import annotations

import doctest

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dagger_nb import theory
from dagger_nb.errors import ConfigError
from dagger_nb.theory import (
    MDP,
    cliff_walk,
    cost_curves,
    dagger,
    disagreement,
    expected_cost,
    fit,
    growth_exponent,
    mistake_cost,
    mixture,
    occupancy,
    teacher_policy,
)

HORIZONS = [8, 16, 32, 64, 128]
PAPER = (1.0, 0.8, 0.6, 0.6, 0.6)


def cloned(mdp: MDP, horizon: int, eps: float) -> np.ndarray:
    return dagger(mdp, horizon=horizon, betas=(1.0,), episodes=1, eps=eps, prior=0)[-1].policy


def test_the_examples_in_the_docstrings() -> None:
    failed, tried = doctest.testmod(theory)
    assert not failed and tried >= 5


@given(depth=st.integers(1, 5), beta=st.floats(0, 1), eps=st.floats(0, 1), prior=st.floats(0, 10), ways=st.booleans())
@settings(max_examples=40, deadline=None)
def test_probabilities_sum_to_one(depth: int, beta: float, eps: float, prior: float, ways: bool) -> None:
    mdp = cliff_walk(depth, recoverable=ways)
    assert np.allclose(mdp.transitions.sum(axis=2), 1)
    counts = np.arange(depth + 1.0)
    policy = mixture(mdp, fit(mdp, counts, eps=eps, prior=prior), beta)
    visits = occupancy(mdp, policy, 12)
    assert visits.shape == (12, depth + 1) and (policy >= 0).all()
    assert np.allclose(policy.sum(axis=1), 1) and np.allclose(visits.sum(axis=1), 1)


@pytest.mark.parametrize("eps", [0.0, 0.001, 0.1, 1.0])
def test_cloning_on_the_simplest_chain_has_the_closed_form(eps: float) -> None:
    """Off the path with probability 1 - (1 - eps)^t after t turns, and never back."""
    turns = np.arange(1, 51)
    mdp = cliff_walk()
    policy = cloned(mdp, 50, eps)
    assert expected_cost(mdp, policy, 50) == pytest.approx((1 - (1 - eps) ** turns).sum())
    assert np.allclose(occupancy(mdp, policy, 50)[:, 0], (1 - eps) ** (turns - 1))
    assert np.allclose(disagreement(mdp, policy, occupancy(mdp, policy, 50)), 1 - (1 - eps) ** turns)


def test_a_learner_that_recovers_has_the_closed_form_of_two_states() -> None:
    """With error eps in both states every turn but the first is off the path with probability eps."""
    mdp, eps, horizon = cliff_walk(), 0.03, 40
    policy = fit(mdp, np.ones(2), eps=eps, prior=0)
    assert np.allclose(occupancy(mdp, policy, horizon)[1:, 1], eps)
    assert expected_cost(mdp, policy, horizon) == pytest.approx(eps + (horizon - 1) * (eps + (1 - eps) * eps))


def test_cloning_grows_quadratically_and_dagger_linearly() -> None:
    for depth in (1, 4):
        curves = cost_curves(cliff_walk(depth), HORIZONS, betas=PAPER, eps=1e-5)
        assert growth_exponent(HORIZONS, curves.cloning) == pytest.approx(2, abs=0.06)
        assert growth_exponent(HORIZONS, curves.dagger) == pytest.approx(1, abs=0.06)


def test_costs_stay_below_the_bounds_of_the_theorems() -> None:
    for eps in (1e-4, 0.01, 0.2):
        curves = cost_curves(cliff_walk(3), HORIZONS, betas=PAPER, eps=eps)
        assert (curves.cloning <= curves.cloning_bound).all()
        assert (curves.dagger <= curves.dagger_bound * (1 + 1e-12)).all()


def test_dagger_cannot_help_where_no_teacher_could_recover() -> None:
    curves = cost_curves(cliff_walk(2, recoverable=False), HORIZONS, betas=PAPER, eps=1e-5)
    assert np.allclose(curves.dagger, curves.cloning)
    assert mistake_cost(cliff_walk(2, recoverable=False), 30) == 30


def test_the_performance_difference_lemma_holds() -> None:
    """J(pi) is the sum over pi's own states of what its mistakes cost when the teacher acts ever after.

    From k steps beside the path the teacher needs k turns back: with r turns left it pays min(k, r).
    """
    mdp, horizon, eps = cliff_walk(60), 25, 0.1
    policy = fit(mdp, np.ones(61), eps=eps, prior=0)
    extra = [
        [1 + min(k + 1, left) - (k > 0) - min(max(0, k - 1), left) for k in range(61)]
        for left in reversed(range(horizon))
    ]
    assert np.max(extra) == mistake_cost(mdp, horizon) == 2
    assert expected_cost(mdp, policy, horizon) == pytest.approx((occupancy(mdp, policy, horizon) * extra).sum() * eps)


def test_disagreement_grows_on_own_states_for_cloning_only() -> None:
    mdp, horizon = cliff_walk(2), 60
    rounds = dagger(mdp, horizon=horizon, betas=PAPER, episodes=1000, eps=0.01, prior=1)
    sft, last = rounds[0].policy, rounds[-1].policy
    teachers = occupancy(mdp, teacher_policy(mdp), horizon)
    own = {name: disagreement(mdp, policy, occupancy(mdp, policy, horizon)) for name, policy in
           (("sft", sft), ("dagger", last))}  # fmt: skip
    assert np.ptp(disagreement(mdp, sft, teachers)) == 0  # flat on the teacher's states
    assert (np.diff(own["sft"]) > 0).all() and own["sft"][-1] > 0.4
    assert own["dagger"].max() < 0.03


def test_the_loop_adds_up_its_rounds_and_improves() -> None:
    mdp = cliff_walk(3)
    rounds = dagger(mdp, horizon=30, betas=PAPER, episodes=50, eps=0.02, prior=5)
    assert [r.beta for r in rounds] == list(PAPER)
    for before, after in zip(rounds, rounds[1:], strict=False):
        assert np.allclose(after.counts, before.counts + 50 * after.visited.sum(axis=0))
        assert after.cost < before.cost
    assert rounds[0].visited[:, 0].tolist() == [1.0] * 30  # the teacher alone never leaves the path
    assert rounds[-1].counts.sum() == pytest.approx(50 * 30 * 5)


def test_more_labels_bring_a_state_from_habit_to_its_floor() -> None:
    policy = fit(cliff_walk(3), np.array([0.0, 1.0, 10.0, 1e9]), eps=0.05, prior=1)
    errors = policy[:, theory.SLIP]
    assert errors[0] == 1.0 and errors[1] == pytest.approx(0.525) and (np.diff(errors) < 0).all()
    assert errors[3] == pytest.approx(0.05, abs=1e-6)


def test_mixing_with_beta_1_is_the_teacher_and_with_0_the_learner() -> None:
    mdp = cliff_walk(2)
    learner = fit(mdp, np.zeros(3), eps=0.1, prior=0)
    assert (mixture(mdp, learner, 1.0) == teacher_policy(mdp)).all()
    assert (mixture(mdp, learner, 0.0) == learner).all()


@pytest.mark.parametrize(
    ("call", "word"),
    [
        (lambda m: cliff_walk(0), "depth"),
        (lambda m: occupancy(m, teacher_policy(m), 0), "horizon"),
        (lambda m: mixture(m, teacher_policy(m), 1.5), "beta"),
        (lambda m: fit(m, np.zeros(2), eps=2, prior=0), "eps"),
        (lambda m: fit(m, np.zeros(2), eps=0.1, prior=-1), "prior"),
        (lambda m: dagger(m, horizon=5, betas=(), episodes=1, eps=0.1, prior=0), "beta"),
        (lambda m: dagger(m, horizon=5, betas=(1.0,), episodes=0, eps=0.1, prior=0), "episodes"),
    ],
)
def test_settings_out_of_range_are_refused(call, word: str) -> None:
    with pytest.raises(ConfigError, match=word):
        call(cliff_walk())
