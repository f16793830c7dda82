"""The teacher's answer at every visited state, whoever acted there.

A label is another branch of a state: it is kept apart from what was executed and never enters the context.

A teacher behind the Policy protocol may fail. Its malformed answer is no label, because the student would learn to
say what no tool understands; the state is asked once more, by chance where the first answer was greedy (which would
only repeat itself), and counts as missing when that fails too. A state without an answer, or beyond the budget, is
missing as well. Missing labels are recorded with their reason and never invented.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from dagger_nb.config import LabelSettings
from dagger_nb.errors import BudgetError, PolicyError
from dagger_nb.mixing import sampling_seed
from dagger_nb.policies.protocol import Policy, Sampling, Teacher
from dagger_nb.records import Action, Label, Missing, Task, Trajectory, Turn
from dagger_nb.rendering import Renderer

if TYPE_CHECKING:
    from dagger_nb.store import CohortRecord

SECOND_TEMPERATURE = 0.7  # of the second try, where the first was greedy


@dataclass(frozen=True, slots=True)
class Labelled:
    """What became of the states of one episode that were to be labelled, each in the order of the turns."""

    labels: tuple[Label, ...]
    missing: tuple[Missing, ...]


@dataclass(frozen=True, slots=True)
class Tally:
    """What became of every state of some cohorts that was to be labelled."""

    asked: int
    labels: int
    missing: Mapping[str, int]  # by reason
    complete: bool  # each of these states, and no other, has one label or is missing once
    differing: int  # labels that differ from what was executed
    after_malformed: int  # of these, labels of states in which a malformed turn was executed


def tally(records: Iterable[CohortRecord], states: str, k: int) -> Tally:
    """Count the labels of cohorts against the states that `states` and `k` choose in them (`states_to_label`)."""
    turns, asked, labels, missing = {}, [], [], []
    for record in records:
        for path in record.trajectories:
            turns |= {(*path.key, turn.index): turn for turn in path.turns}
            asked += [(*path.key, index) for index in states_to_label(path.turns, states, k)]
        labels += record.labels
        missing += record.missing
    found = [(state.instance_id, state.attempt, state.turn) for state in (*labels, *missing)]
    lessons = [(label.instance_id, label.attempt, label.turn) for label in labels if label.lesson]
    return Tally(
        asked=len(asked),
        labels=len(labels),
        missing=dict(sorted(Counter(state.reason for state in missing).items())),
        complete=sorted(found) == sorted(asked),
        differing=len(lessons),
        after_malformed=sum(key in turns and turns[key].action.malformed for key in lessons),
    )


def label_trajectory(
    task: Task, trajectory: Trajectory, *, teacher: Teacher, name: str, renderer: Renderer
) -> list[Label]:
    """One label for each turn of a trajectory, with its lineage; `name` is the teacher's version."""
    return [
        _label(trajectory, turn, teacher(task, trajectory.turns[: turn.index]), name, renderer)
        for turn in trajectory.turns
    ]


async def label_episode(
    task: Task,
    trajectory: Trajectory,
    *,
    policy: Policy,
    renderer: Renderer,
    sampling: Sampling,
    settings: LabelSettings,
    run_seed: int,
) -> Labelled:
    """Labels of the states that `settings` chooses, asked for at the same time, in order of the turns.

    Chance, where `sampling` has any, comes from `run_seed` and the state alone, and is that of the teacher's own turn
    there: a state in which the teacher acted is labelled with what it did.

    Raises:
        EnvironmentProblem: the policy is gone for good (no PolicyError, which only leaves a state without a label).
    """
    states = [trajectory.turns[index] for index in states_to_label(trajectory.turns, settings.states, settings.k)]
    jobs = [
        asyncio.ensure_future(
            _answer(task, trajectory, turn, policy, sampling, sampling_seed(run_seed, *trajectory.key, turn.index))
        )
        for turn in states
    ]
    try:
        answers = await asyncio.gather(*jobs)
    finally:
        for job in jobs:  # those that still wait when one of them has failed for good
            job.cancel()
    pairs = list(zip(states, answers, strict=True))
    labels = [_label(trajectory, t, a, policy.name, renderer) for t, a in pairs if isinstance(a, Action)]
    missing = [_missing(trajectory, t, policy.name, *a) for t, a in pairs if not isinstance(a, Action)]
    return Labelled(tuple(labels), tuple(missing))


def states_to_label(turns: Sequence[Turn], states: str, k: int) -> tuple[int, ...]:
    """The indices of the turns whose states are labelled: every one, every k-th, all but the teacher's, or the first k.

    >>> states_to_label([Turn(i, "student", Action("", ""), "", (), 0) for i in range(5)], "kth", 2)
    (0, 2, 4)
    """
    chosen = {
        "every": lambda turn: True,
        "kth": lambda turn: turn.index % k == 0,
        "student": lambda turn: turn.actor != "teacher",
        "first": lambda turn: turn.index < k,
    }[states]
    return tuple(turn.index for turn in turns if chosen(turn))


async def _answer(
    task: Task, trajectory: Trajectory, turn: Turn, policy: Policy, sampling: Sampling, seed: int
) -> Action | tuple[str, str]:
    """The teacher's well-formed action in the state before a turn, or (reason, detail) of its absence."""
    before = trajectory.turns[: turn.index]
    try:
        for tried, seeded in _tries(sampling, seed):
            action = (await policy.answer(task, before, tried, seeded)).action
            if not action.malformed:
                return action
        return "malformed", action.error
    except BudgetError as error:
        return "budget", str(error)
    except PolicyError as error:
        return "no answer", str(error)


def _tries(sampling: Sampling, seed: int) -> Iterator[tuple[Sampling, int]]:
    yield sampling, seed
    yield replace(sampling, temperature=sampling.temperature or SECOND_TEMPERATURE), seed + 1


def _label(trajectory: Trajectory, turn: Turn, action: Action, name: str, renderer: Renderer) -> Label:
    return Label(
        **_lineage(trajectory, turn, name),
        beta=turn.beta,
        template=renderer.template_hash,
        action=action,
        token_ids=renderer.action_ids(action),
        lesson=not action.same_call(turn.action),
    )


def _missing(trajectory: Trajectory, turn: Turn, name: str, reason: str, detail: str) -> Missing:
    return Missing(**_lineage(trajectory, turn, name), reason=reason, detail=detail)


def _lineage(trajectory: Trajectory, turn: Turn, name: str) -> dict[str, Any]:
    """Whose state it is, and who was asked there."""
    return {
        "instance_id": trajectory.instance_id,
        "attempt": trajectory.attempt,
        "round": trajectory.round,
        "policy": trajectory.policy,
        "turn": turn.index,
        "actor": turn.actor,
        "teacher": name,
    }
