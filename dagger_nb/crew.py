"""Who runs an experiment's episodes, as its settings want it: worker processes here, or models behind servers."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager, closing
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dagger_nb import paths
from dagger_nb.background import result_of
from dagger_nb.errors import ConfigError
from dagger_nb.fleet import CohortJob, Executor, Fleet
from dagger_nb.policies.oracle import OraclePolicy
from dagger_nb.policies.protocol import Policy, Sampling
from dagger_nb.records import Task, Trajectory
from dagger_nb.sandboxes import factory_for
from dagger_nb.settings import Settings
from dagger_nb.sizing import memory
from dagger_nb.sizing.gpus import local_gpus
from dagger_nb.store import CohortRecord
from dagger_nb.students import Version, renderer_of

if TYPE_CHECKING:  # what belongs to the extra `serving`
    import pandas as pd

    from dagger_nb.answers import AnswerFile
    from dagger_nb.bill import Account
    from dagger_nb.collector import Cast
    from dagger_nb.labelling import Labelled
    from dagger_nb.policies.endpoint import EndpointPolicy
    from dagger_nb.serving import Server


def executor(settings: Settings) -> Executor:
    """The executor that the settings want.

    Raises:
        ConfigError: a teacher that is a model labels served students only.
    """
    refuse_teacher(settings)
    return ServedCrew(settings) if settings.served else Fleet(settings.workers)


def refuse_teacher(settings: Settings) -> None:
    """Raise ConfigError for a teacher that is a model where the student is not served."""
    if not settings.served and not settings.teacher.scripted:
        raise ConfigError(
            f"teacher.path = {settings.teacher.path!r} labels served students only; give -p student.back_end=vllm (and "
            "the interpreter that has vLLM as serving.python), or keep teacher.path = 'scripted'"
        )


def sandboxes_at_once(settings: Settings) -> int:
    """How many sandboxes are open at once, at the most: of episodes (a cohort opens all of its own), or of gradings."""
    episodes = settings.serving.concurrency if settings.served else settings.workers * settings.episode.cohort
    return max(episodes, settings.workers)


class ServedCrew(Executor):
    """Episodes of a student that vLLM serves, with the teacher that the settings name, hundreds at once.

    The servers start with the first episodes and stop when their GPU is needed for training.
    """

    lockstep = False

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        student = settings.student
        self.renderer = renderer_of(str(paths.checkpoint(student.path)), student.template, student.revision)
        self._servers = ExitStack()
        self._up: list[Server] = []  # the student's last
        self._teacher = settings.teacher  # with its address once it is served here
        self._examined = False  # whether the teacher has shown that it can label

    def __enter__(self) -> ServedCrew:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def rest(self) -> None:
        """Stop the servers where they hold a GPU; those of a CPU build are in nobody's way and keep their caches."""
        if any(server.on_gpu for server in self._up):
            self.close()

    def close(self) -> None:
        self._servers.close()
        self._up = []

    def facts(self) -> dict[str, Any]:
        """How the student is served, whether or not this process has had to serve it: a resumed run may find all done.

        Raises:
            ConfigError, EnvironmentProblem: as `run` does; no server is started.
        """
        with closing(self._student_server(self._shares()[0])) as server:
            return {"serving": server.provenance()}

    def bill(self, run: str) -> dict[str, pd.DataFrame]:
        from dagger_nb.bill import bill_table, calls_table

        if not self._asks:
            return {}
        with closing(_answers()) as file:
            return {"bill": bill_table(file, run).reset_index(), "calls": calls_table(file, run)}

    def run(self, jobs: Sequence[CohortJob]) -> Iterator[tuple[CohortJob, CohortRecord, float]]:
        """As `collector.Collector.run`, the servers started before.

        Raises:
            ConfigError: the profile does not fit the GPU, or the endpoint cannot label.
            EnvironmentProblem: no vLLM, or it does not start.
        """
        from dagger_nb.collector import Capacity, Collector

        if not jobs:
            return
        self._start()
        result_of(self._admitted(jobs[0]))
        episodes = self.settings.serving.concurrency
        capacity = Capacity(episodes, sandboxes=episodes, commands=self.settings.workers)
        with factory_for(self.settings.sandbox, cache=jobs[0].cache) as factory:
            casting = partial(self._cast, jobs[0])
            yield from Collector(casting, factory, self.renderer, capacity).run(jobs)

    # -- servers

    def _start(self) -> None:
        """Start the servers, and again where one of them has ended; where one does not come up none is left."""
        from dagger_nb.serving import at, teacher_server

        if self._up and all(server.running for server in self._up):
            return
        self.close()
        for_student, for_teacher = self._shares()
        with ExitStack() as servers:
            if memory.teacher_here(self.settings):
                self._up.append(servers.enter_context(teacher_server(for_teacher, log=_log("teacher"))))
                self._teacher = at(self._up[0], self.settings.teacher)
            self._up.append(servers.enter_context(self._student_server(for_student)))
            self._servers = servers.pop_all()

    def _alive(self) -> None:
        """Raise EnvironmentProblem where a server has ended, which nobody starts again while it is waited for."""
        for server in self._up:
            server.check_alive()

    def _student_server(self, settings: Settings) -> Server:
        from dagger_nb.serving import student_server

        return student_server(settings, log=_log("student"))

    def _shares(self) -> tuple[Settings, Settings]:
        """The settings with the student's and with the teacher's share of the GPU, where there is one."""
        gpus = local_gpus()
        if not gpus:
            return self.settings, self.settings
        memory.refuse_misfit(self.settings, gpus[0].bytes)
        student, teacher = memory.shares(self.settings, gpus[0].bytes)
        return _with_share(self.settings, student), _with_share(self.settings, teacher)

    # -- who plays

    @asynccontextmanager
    async def _cast(self, job: CohortJob, version: Version) -> AsyncIterator[Cast]:
        from dagger_nb.bill import Account
        from dagger_nb.collector import Cast

        async with AsyncExitStack() as stack:
            student = await stack.enter_async_context(self._up[-1].student(version, self.renderer))
            account = Account(job.run, job.round)
            teacher, spent = await self._labeller(account, stack) if self._asks else (OraclePolicy(), None)
            yield Cast(student, teacher, partial(self._label, teacher), teaching(self.settings), spent)

    async def _admitted(self, job: CohortJob) -> None:
        """Have the teacher examined, once, before images are pulled for hours. Its answers are kept."""
        from dagger_nb.bill import Account
        from dagger_nb.policies.admission import check

        if self._asks and not self._examined:
            async with AsyncExitStack() as stack:
                policy, _ = await self._labeller(Account(job.run, job.round), stack)
                await check(policy, **admission(self.settings))
            self._examined = True

    @property
    def _asks(self) -> bool:
        return not self.settings.teacher.scripted

    async def _labeller(self, account: Account, stack: AsyncExitStack) -> tuple[EndpointPolicy, Any]:
        """The teacher at its endpoint, and what its round has cost."""
        from dagger_nb.bill import Bill, tariff
        from dagger_nb.policies.endpoint import EndpointPolicy

        file = _answers()
        stack.callback(file.close)
        bill = Bill(file, account, tariff(self.settings.labels))
        policy = EndpointPolicy(
            self._teacher,
            bill,
            jitter=random.Random(self.settings.seed),
            concurrency=self.settings.serving.concurrency,
            check=self._alive,
            answered=self._examined,
        )
        await stack.enter_async_context(policy)
        return policy, bill.spent

    async def _label(self, teacher: Policy, task: Task, trajectory: Trajectory) -> Labelled:
        from dagger_nb.labelling import label_episode

        return await label_episode(
            task,
            trajectory,
            policy=teacher,
            renderer=self.renderer,
            sampling=teaching(self.settings),
            settings=self.settings.labels,
            run_seed=self.settings.seed,
        )


def teaching(settings: Settings) -> Sampling:
    """How a teacher that is a model samples, whether it acts or labels."""
    return Sampling(settings.episode.temperature, settings.episode.top_p, settings.episode.max_new_tokens)


def admission(settings: Settings) -> dict[str, Any]:
    """What a teacher is examined for (`policies.admission.check`)."""
    return {"student": settings.student.path, "context": settings.episode.context, "sampling": teaching(settings)}


def _answers() -> AnswerFile:
    from dagger_nb.answers import AnswerFile

    return AnswerFile(paths.answers())


def _with_share(settings: Settings, share: float) -> Settings:
    return replace(settings, serving=replace(settings.serving, memory_share=share)) if share else settings


def _log(who: str) -> Path:
    folder = paths.cache() / "serving"
    folder.mkdir(parents=True, exist_ok=True)
    return folder / f"{who}.log"
