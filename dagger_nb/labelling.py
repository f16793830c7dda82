"""The teacher's answer at every visited state, whoever acted there.

A label is another branch of a state: it is kept apart from what was executed and never enters the context.

A teacher behind the Policy protocol may fail. A malformed answer is asked for once more, by chance where the first was
greedy (which would only repeat itself), whether the teacher acts or labels: its turn and its label of a state are one
answer. Where the second is malformed too, its turn is executed as it is, an error that costs a turn and that the
teacher reads in its next one, as any agent does; but it is no label, because the student would learn to say what no
tool understands: the state counts as missing. So does one whose label the student's own format cannot say, one without
an answer, or beyond the budget. Missing labels are recorded with their reason and never invented.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from dagger_nb.errors import BudgetError, PolicyError
from dagger_nb.mixing import sampling_seed
from dagger_nb.policies.protocol import Answer, Policy, Sampling, Teacher
from dagger_nb.records import Action, Label, Missing, Task, Trajectory, Turn
from dagger_nb.rendering import Renderer
from dagger_nb.settings import LabelSettings

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


def tally(records: Iterable[CohortRecord], states: str, k: int) -> Tally:
    """Count the labels of cohorts against the states that `states` and `k` choose in them (`states_to_label`)."""
    asked, labels, missing = [], [], []
    for record in records:
        for path in record.trajectories:
            asked += [(*path.key, index) for index in states_to_label(path.turns, states, k)]
        labels += record.labels
        missing += record.missing
    found = [(state.instance_id, state.attempt, state.turn) for state in (*labels, *missing)]
    return Tally(
        asked=len(asked),
        labels=len(labels),
        missing=dict(sorted(Counter(state.reason for state in missing).items())),
        complete=sorted(found) == sorted(asked),
        differing=sum(label.lesson for label in labels),
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
    pairs = zip(states, answers, strict=True)
    longest = sampling.max_new_tokens
    found = [_outcome(trajectory, turn, answer, policy.name, renderer, longest) for turn, answer in pairs]
    labels = tuple(state for state in found if isinstance(state, Label))
    return Labelled(labels, tuple(state for state in found if isinstance(state, Missing)))


def states_to_label(turns: Sequence[Turn], states: str, k: int) -> tuple[int, ...]:
    """The indices of the turns whose states are labelled: every one, every k-th, all but the teacher's, or the first k.

    An episode in which the teacher alone acted is a demonstration: it has no other turns to teach by, and keeps its
    labels also where only those of others are chosen.

    >>> states_to_label([Turn(i, "student", Action("", ""), "", (), 0) for i in range(5)], "kth", 2)
    (0, 2, 4)
    """
    demonstration = all(turn.actor == "teacher" for turn in turns)
    chosen = {
        "every": lambda turn: True,
        "kth": lambda turn: turn.index % k == 0,
        "student": lambda turn: demonstration or turn.actor != "teacher",
        "first": lambda turn: turn.index < k,
    }[states]
    return tuple(turn.index for turn in turns if chosen(turn))


async def ask_teacher(policy: Policy, task: Task, turns: Sequence[Turn], sampling: Sampling, seed: int) -> Answer:
    """The teacher's answer in a state, asked for once more where the first is malformed; the second stands.

    Its usage is that of both. Raises as `Policy.answer` does.
    """
    first = await policy.answer(task, turns, sampling, seed)
    if not first.action.malformed:
        return first
    by_chance = replace(sampling, temperature=sampling.temperature or SECOND_TEMPERATURE)
    second = await policy.answer(task, turns, by_chance, seed + 1)
    return replace(second, usage=first.usage + second.usage)


async def _answer(
    task: Task, trajectory: Trajectory, turn: Turn, policy: Policy, sampling: Sampling, seed: int
) -> Action | tuple[str, str]:
    """The teacher's well-formed action in the state before a turn, or (reason, detail) of its absence."""
    before = trajectory.turns[: turn.index]
    try:
        action = (await ask_teacher(policy, task, before, sampling, seed)).action
        return ("malformed", action.error) if action.malformed else action
    except BudgetError as error:
        return "budget", str(error)
    except PolicyError as error:
        return "no answer", str(error)


def _outcome(
    trajectory: Trajectory, turn: Turn, answer: Action | tuple[str, str], name: str, renderer: Renderer, longest: int
) -> Label | Missing:
    """The label that an answer is, or why there is none; what the student could not say it cannot learn to say.

    Nor in as many tokens as a turn may have (`longest`): the student's format takes more of them than another's.
    """
    if isinstance(answer, Action):
        label = _label(trajectory, turn, answer, name, renderer)
        if renderer.means(label.token_ids[:longest], answer):
            return label
        answer = "malformed", f"the student's format cannot say it in {longest} tokens"
    return _missing(trajectory, turn, name, *answer)


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
