"""Who plays in a collector's tests: a model of this process in the place of a served one, the oracle, the executor."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager

import numpy as np

from dagger_nb.collector import Cast, Casting, Collector
from dagger_nb.episode import Conditions, Plan
from dagger_nb.fleet import CohortJob, Executor
from dagger_nb.labelling import Labelled, label_trajectory
from dagger_nb.policies import teacher
from dagger_nb.policies.oracle import OraclePolicy
from dagger_nb.policies.protocol import Answer, Policy, Sampling
from dagger_nb.records import Task, Trajectory, Turn
from dagger_nb.rendering import Renderer
from dagger_nb.store import CohortRecord
from dagger_nb.students import LocalStudent, Version

BASE = Version("a base")
GREEDY = Sampling(max_new_tokens=8)
NO_LABELS = Labelled((), ())


class Local:
    """A student in this process behind `Policy`: it reads the whole episode again, in a cohort of one slot."""

    name = "local"

    def __init__(self, student: LocalStudent, limit: int) -> None:
        self.student, self.limit = student, limit

    async def answer(self, task: Task, turns: Sequence[Turn], sampling: Sampling, seed: int) -> Answer:
        session, renderer = self.student.session(1, self.limit), self.student.renderer
        session.extend(0, renderer.prompt_ids(task))
        for turn in turns:
            session.extend(0, (*turn.token_ids, *renderer.observation_ids(turn.observation)))
        said = session.generate([0], sampling, {0: np.random.default_rng(seed)})[0]
        return Answer(renderer.parse(said), said)


def casting(student, *, by=None, label=None, renderer=None, heard: list[str] | None = None, **more):
    """A casting of these players, by default labelled by the oracle or not at all; `heard` opening and closing."""
    heard = [] if heard is None else heard

    async def labels(task: Task, trajectory: Trajectory) -> Labelled:
        if renderer is None:
            return NO_LABELS
        found = label_trajectory(task, trajectory, teacher=teacher.label, name=teacher.NAME, renderer=renderer)
        return Labelled(tuple(found), ())

    @asynccontextmanager
    async def cast(version: Version) -> AsyncIterator[Cast]:
        heard.append(f"open {version.name}")
        yield Cast(student, by or OraclePolicy(), label or labels, GREEDY, **more)
        heard.append(f"close {version.name}")

    return cast


def loading(load: Callable[[Version], Policy], renderer: Renderer) -> Casting:
    """A casting of whichever student is asked for, as `load` makes it, labelled by the oracle."""

    @asynccontextmanager
    async def cast(version: Version) -> AsyncIterator[Cast]:
        async with casting(load(version), renderer=renderer)(version) as players:
            yield players

    return cast


def jobs(tasks: Sequence[Task], conditions: Conditions, size: int = 1) -> list[CohortJob]:
    cuts = [tasks[start : start + size] for start in range(0, len(tasks), size)]
    return [CohortJob(n, tuple(map(Plan, cut)), conditions, BASE, None) for n, cut in enumerate(cuts)]


def silent(line: str) -> None:
    pass


def collected(collector: Collector, work: Sequence[CohortJob]) -> dict[int, CohortRecord]:
    return {job.number: record for job, record, _ in collector.run(work)}


class Crew(Executor):
    """A collector alone as the executor of an experiment; `given` are the jobs that it had."""

    lockstep = False

    def __init__(self, collector: Collector) -> None:
        self.collector, self.given = collector, []

    def run(self, work: Sequence[CohortJob]) -> Iterator[tuple[CohortJob, CohortRecord, float]]:
        self.given += work
        return self.collector.run(work)
