"""The teacher's answer at every visited state, whoever acted there.

A label is another branch of a state: it is kept apart from what was executed and never enters the context.
"""

from __future__ import annotations

from dagger_nb.records import Label, Task, Trajectory
from dagger_nb.rendering import Renderer
from dagger_nb.rollout import Teacher


def label_trajectory(
    task: Task, trajectory: Trajectory, *, teacher: Teacher, name: str, renderer: Renderer
) -> list[Label]:
    """One label for each turn of a trajectory, with its lineage; `name` is the teacher's version."""
    labels = []
    for turn in trajectory.turns:
        action = teacher(task, trajectory.turns[: turn.index])
        label = Label(
            instance_id=trajectory.instance_id,
            attempt=trajectory.attempt,
            round=trajectory.round,
            policy=trajectory.policy,
            turn=turn.index,
            actor=turn.actor,
            beta=turn.beta,
            teacher=name,
            template=renderer.template_hash,
            action=action,
            token_ids=renderer.action_ids(action),
            lesson=not action.same_call(turn.action),
        )
        labels.append(label)
    return labels
