"""Covariate shift, small enough to compute exactly: what imitation costs over a horizon of T turns.

The cliff walk: a learner errs with a small probability on the path that the teacher walks. Cloning never
shows it what to do beside the path, so one slip costs the rest of the episode and the expected cost grows
as T^2 eps. DAgger labels the states that the learner itself reaches, and the cost grows as T eps.

    Ross and Bagnell 2010 (AISTATS), restated as Theorem 2.1 of Ross, Gordon and Bagnell 2011
    (arXiv 1011.0686): an error of eps on the TEACHER's states gives J(pi) <= J(pi*) + T^2 eps.
    The same paper, Theorem 2.2: an error of eps on the learner's OWN states gives J(pi) <= J(pi*) + u T eps,
    where u bounds what one mistake costs a teacher who takes over after it.

Nothing is sampled: distributions over states are propagated with matrices, and a learner is fitted to
expected counts. Turns count from 0 here; a horizon of T has the turns 0..T-1.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dagger_nb.errors import ConfigError

Floats = NDArray[np.float64]

FOLLOW, SLIP = 0, 1  # the two actions of the cliff walk
ON_PATH = 0  # its first state; state k > 0 is k steps beside the path


@dataclass(frozen=True, slots=True)
class MDP:
    """A finite decision process with a deterministic teacher.

    transitions [states, actions, states]: probabilities of the next state; cost [states, actions], in [0, 1];
    start [states]: the first state's distribution; teacher [states]: the teacher's action.
    """

    transitions: Floats
    cost: Floats
    start: Floats
    teacher: NDArray[np.intp]


@dataclass(frozen=True, slots=True)
class Round:
    """One round of the exact DAgger loop, after its fit.

    beta: the teacher's probability to act while the round was collected; visited [turns, states]: where that
    mixture went (what was labelled); counts [states]: expected labels so far, all rounds together; policy
    [states, actions]: the learner fitted to them; cost: its expected cost when it acts alone.
    """

    beta: float
    visited: Floats
    counts: Floats
    policy: Floats
    cost: float


@dataclass(frozen=True, slots=True)
class CostCurves:
    """Expected costs by horizon, and the bounds of Theorems 2.1 and 2.2; every array is [horizons]."""

    eps: float
    horizons: NDArray[np.intp]
    cloning: Floats
    cloning_bound: Floats
    dagger: Floats
    dagger_bound: Floats


def cliff_walk(depth: int = 1, *, recoverable: bool = True) -> MDP:
    """A path beside a slope of `depth` steps. FOLLOW leads one step back up, SLIP one step further down.

    A slip on the path, and every turn beside it, costs 1. The teacher always follows. Without `recoverable`
    no action leads back: then one mistake costs the teacher too the rest of the episode, and no choice of
    training states can help.

    Raises:
        ConfigError: `depth` is below 1.
    """
    if depth < 1:
        raise ConfigError(f"a cliff walk needs depth >= 1, not {depth}")
    states = depth + 1
    transitions = np.zeros((states, 2, states))
    for state in range(states):
        back = max(0, state - 1) if recoverable else state
        transitions[state, FOLLOW, back] = 1.0
        transitions[state, SLIP, min(state + 1, depth)] = 1.0
    cost = np.ones((states, 2))
    cost[ON_PATH, FOLLOW] = 0.0
    return MDP(transitions, cost, np.eye(states)[ON_PATH], np.full(states, FOLLOW))


def teacher_policy(mdp: MDP) -> Floats:
    """The teacher as probabilities [states, actions]."""
    return np.eye(mdp.cost.shape[1])[mdp.teacher]


def mixture(mdp: MDP, learner: Floats, beta: float) -> Floats:
    """The policy [states, actions] of a turn-level mixture: the teacher acts with probability `beta`.

    Raises:
        ConfigError: `beta` is not in [0, 1].
    """
    if not 0 <= beta <= 1:
        raise ConfigError(f"beta must lie in [0, 1], not {beta}")
    return beta * teacher_policy(mdp) + (1 - beta) * learner


def occupancy(mdp: MDP, policy: Floats, horizon: int) -> Floats:
    """The distribution over states at each turn, [turns, states]: d_(t+1) = d_t P_pi.

    >>> walk = cliff_walk()
    >>> occupancy(walk, np.array([[0.9, 0.1], [0.0, 1.0]]), 3).round(2).tolist()
    [[1.0, 0.0], [0.9, 0.1], [0.81, 0.19]]
    """
    if horizon < 1:
        raise ConfigError(f"the horizon must be >= 1 turn, not {horizon}")
    step = np.einsum("sa,sax->sx", policy, mdp.transitions)
    visits = [mdp.start]
    for _ in range(horizon - 1):
        visits.append(visits[-1] @ step)
    return np.array(visits)


def expected_cost(mdp: MDP, policy: Floats, horizon: int) -> float:
    """J(pi): the expected sum of costs over `horizon` turns.

    >>> round(expected_cost(cliff_walk(), np.array([[0.9, 0.1], [0.0, 1.0]]), 3), 3)  # .1 + .19 + .271
    0.561
    """
    return float((occupancy(mdp, policy, horizon) * (policy * mdp.cost).sum(axis=1)).sum())


def disagreement(mdp: MDP, learner: Floats, visits: Floats) -> Floats:
    """The learner's probability to act differently from the teacher, by turn [turns].

    `visits` [turns, states] says whose states: `occupancy` of the learner itself, or of the teacher.
    """
    wrong = 1 - learner[np.arange(len(mdp.teacher)), mdp.teacher]
    return visits @ wrong


def mistake_cost(mdp: MDP, horizon: int) -> float:
    """u of Theorem 2.2: the most that one wrong action adds to the cost when the teacher acts ever after.

    The maximum over turns, states and actions of Q*(s, a) - V*(s) under the teacher, by backward induction.

    >>> mistake_cost(cliff_walk(3), 50), mistake_cost(cliff_walk(recoverable=False), 50)
    (2.0, 50.0)
    """
    value, most = np.zeros(len(mdp.start)), 0.0
    for _ in range(horizon):
        action_values = mdp.cost + mdp.transitions @ value
        value = action_values[np.arange(len(value)), mdp.teacher]
        most = max(most, float((action_values - value[:, None]).max()))
    return most


def fit(mdp: MDP, counts: Floats, *, eps: float, prior: float, untrained: float = 1.0) -> Floats:
    """A learner [states, actions] fitted to expected label counts [states].

    Its error in a state falls from `untrained` (no label there) to `eps` (what capacity and noise leave
    over): (eps n + untrained prior) / (n + prior) with n labels. Errors fall equally on the other actions.

    Args:
        prior: how many labels the untrained habit weighs; with 0 a single expected label is enough.

    Raises:
        ConfigError: an error rate is not in [0, 1], or `prior` is negative.
    """
    if not (0 <= eps <= 1 and 0 <= untrained <= 1 and prior >= 0):
        raise ConfigError(f"eps and untrained must lie in [0, 1] and prior be >= 0, not {eps}, {untrained}, {prior}")
    weight = counts + prior
    error = np.full(len(counts), float(untrained))
    np.divide(eps * counts + untrained * prior, weight, out=error, where=weight > 0)
    policy = np.repeat(error[:, None] / (mdp.cost.shape[1] - 1), mdp.cost.shape[1], axis=1)
    policy[np.arange(len(counts)), mdp.teacher] = 1 - error
    return policy


def dagger(
    mdp: MDP, *, horizon: int, betas: Sequence[float], episodes: float, eps: float, prior: float
) -> tuple[Round, ...]:
    """DAgger in expectation: collect with the mixture, label every visited state, fit to the union, repeat.

    Args:
        betas: one a round; (1.0,) is behaviour cloning, and a first 1.0 starts from it.
        episodes: how many episodes a round's expected counts stand for.
        eps, prior: as in `fit`.

    >>> rounds = dagger(cliff_walk(), horizon=20, betas=(1.0, 0.5), episodes=100, eps=0.01, prior=0)
    >>> [round(r.cost, 2) for r in rounds]
    [1.97, 0.39]

    Raises:
        ConfigError: a beta is not in [0, 1], no round, or no episode.
    """
    if not betas or episodes <= 0:
        raise ConfigError(f"DAgger needs a beta for each round and episodes > 0, not {list(betas)} and {episodes}")
    counts, rounds = np.zeros(len(mdp.start)), []
    learner = fit(mdp, counts, eps=eps, prior=prior)
    for beta in betas:
        visited = occupancy(mdp, mixture(mdp, learner, beta), horizon)
        counts = counts + episodes * visited.sum(axis=0)
        learner = fit(mdp, counts, eps=eps, prior=prior)
        rounds.append(Round(float(beta), visited, counts, learner, expected_cost(mdp, learner, horizon)))
    return tuple(rounds)


def cost_curves(mdp: MDP, horizons: Sequence[int], *, betas: Sequence[float], eps: float) -> CostCurves:
    """Cloning against DAgger as the horizon grows, with labels without end (`prior` 0), beside the two bounds.

    Cloning's bound is T^2 eps (the teacher's states are seen with error eps), DAgger's is u T times its error
    on its own states, both with J(pi*) = 0.
    """
    rows = []
    for horizon in horizons:
        cloned = dagger(mdp, horizon=horizon, betas=(1.0,), episodes=1, eps=eps, prior=0)[-1]
        trained = dagger(mdp, horizon=horizon, betas=betas, episodes=1, eps=eps, prior=0)[-1]
        own = disagreement(mdp, trained.policy, occupancy(mdp, trained.policy, horizon)).mean()
        bound = mistake_cost(mdp, horizon) * horizon * own
        rows.append((cloned.cost, horizon**2 * eps, trained.cost, bound))
    return CostCurves(eps, np.array(horizons, dtype=np.intp), *np.array(rows).T)


def growth_exponent(horizons: Sequence[int] | NDArray[np.intp], costs: Sequence[float] | Floats) -> float:
    """The slope of log cost against log T by least squares: 2 is quadratic growth, 1 linear.

    >>> round(growth_exponent([10, 20, 40], [1.0, 4.0, 16.0]), 6)
    2.0
    """
    return float(np.polyfit(np.log(horizons), np.log(costs), 1)[0])
