"""The scripted teacher in the place of a served one."""

from __future__ import annotations

from collections.abc import Sequence

from dagger_nb.policies import teacher
from dagger_nb.policies.protocol import Answer, Sampling
from dagger_nb.records import Task, Turn


class OraclePolicy:
    """The oracle of the generated tasks behind the Policy protocol: free, and never without an answer."""

    name = teacher.NAME

    async def answer(self, task: Task, turns: Sequence[Turn], sampling: Sampling, seed: int) -> Answer:
        """Its action in the state after `turns`; `sampling` and `seed` change nothing."""
        return Answer(teacher.label(task, turns))
