"""Hundreds of episodes at once against models that answer one state at a time; none waits for another.

Each episode is a coroutine of its own. It waits for a sandbox before it starts and gives it back before its states
are labelled; commands run in a bounded number of threads. What an episode computes depends on its plan and on the
answers it is given, and on nothing that happens in other episodes.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, TypeVar

from dagger_nb import episode as core
from dagger_nb.background import reports_of
from dagger_nb.episode import Conditions, Episode, Move, Plan, Rollout
from dagger_nb.errors import ConfigError, EnvironmentProblem, ImageMissing, PolicyError, PullLimit, SandboxError
from dagger_nb.labelling import Labelled, ask_teacher
from dagger_nb.policies.protocol import Answer, Policy, Sampling
from dagger_nb.progress import Progress
from dagger_nb.records import StopReason, Task, Trajectory
from dagger_nb.rendering import Renderer
from dagger_nb.sandboxes.protocol import PAUSE_S, PAUSES, SandboxFactory
from dagger_nb.store import CohortRecord

if TYPE_CHECKING:  # they come with torch, which a collector does without
    from dagger_nb.fleet import CohortJob
    from dagger_nb.students import Version

    Result = tuple[CohortJob, CohortRecord, float]

Labeller = Callable[[Task, Trajectory], Awaitable[Labelled]]
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Cast:
    """Who plays in the episodes of one student: who acts, who labels, and what that has cost so far.

    `label` is asked about each finished episode (see `labelling.label_episode`). `teaching` is how the teacher samples
    where it acts; `spent` says how much money was spent.
    """

    student: Policy
    teacher: Policy
    label: Labeller
    teaching: Sampling
    spent: Callable[[], float] | None = None


Casting = Callable[["Version"], AbstractAsyncContextManager[Cast]]


@dataclass(frozen=True, slots=True)
class Capacity:
    """How much goes on at once: episodes in all, those of them that have a sandbox, and commands in these."""

    episodes: int = 128
    sandboxes: int = 64
    commands: int = 8

    def __post_init__(self) -> None:
        if min(self.episodes, self.sandboxes, self.commands) < 1:
            raise ConfigError(f"a collector needs room for at least one of each: {self}")


@dataclass(frozen=True, slots=True)
class Collector:
    """Runs jobs as `fleet.Fleet` does, with models behind `Policy`; nothing is left of a run but its results.

    `casting` opens the cast of a student in the run's loop and closes it at the run's end; `renderer` is of the
    student's tokenizer and chat template. `log` is told one line of progress at most every `every_s` seconds and at
    the end, in the thread that takes the results.
    """

    casting: Casting
    factory: SandboxFactory
    renderer: Renderer
    capacity: Capacity = Capacity()
    log: Callable[[str], None] = print
    every_s: float = 10.0

    def run(self, jobs: Sequence[CohortJob]) -> Iterator[Result]:
        """Yield (job, record, seconds) as jobs finish, in no fixed order; a job of one plan is one episode.

        What the sandboxes need is fetched first. An episode that its sandbox or a policy fails ends as an
        infrastructure failure. Leaving the iterator, by whatever way, cancels the episodes that run, waits for their
        commands and closes their sandboxes.

        Raises:
            BudgetError: a hard limit is reached. EnvironmentProblem: an endpoint is gone, or no sandbox can be
                opened. Every job that had finished by then was yielded before.
        """
        if not jobs:
            return
        self.factory.prefetch([plan.task for job in jobs for plan in job.plans], self.log)
        progress = Progress(sum(len(job.plans) for job in jobs), time.monotonic(), self.every_s)
        run = _Run(self, progress)
        yield from reports_of(
            lambda report: run.collect(jobs, report), meanwhile=lambda: self._tell(progress), every_s=self.every_s
        )
        self.log(progress.line(time.monotonic()))

    def _tell(self, progress: Progress) -> None:
        if progress.due(time.monotonic()):
            self.log(progress.line(time.monotonic()))


class _Run:
    """One run, inside its loop. Rendering stays in the loop's thread: two threads may not share a tokenizer."""

    def __init__(self, collector: Collector, progress: Progress) -> None:
        self.casting, self.factory, self.renderer = collector.casting, collector.factory, collector.renderer
        self.progress, self.capacity = progress, collector.capacity
        self._episodes = asyncio.Semaphore(self.capacity.episodes)
        self._sandboxes = asyncio.Semaphore(self.capacity.sandboxes)
        self._commands = ThreadPoolExecutor(self.capacity.commands, "command")
        self._doors = ThreadPoolExecutor(self.capacity.commands, "door")  # opening may pull an image; commands go on
        self._with_sandbox: set[Episode] = set()
        self._unopened = 0  # in a row
        self._opened_at, self._limited_at = time.monotonic(), -PAUSE_S  # the last sandbox; the last refusal to pull
        self._unanswered = 0  # episodes in a row that a policy ended

    async def collect(self, jobs: Sequence[CohortJob], report: Callable[[Result], None]) -> None:
        async with AsyncExitStack() as stack:
            stack.callback(self._clear)
            casts = {}
            for version in dict.fromkeys(job.student for job in jobs):
                casts[version] = await stack.enter_async_context(self.casting(version))
            bills = [cast.spent for cast in casts.values() if cast.spent]
            self.progress.spent = (lambda: sum(spent() for spent in bills)) if bills else None
            stack.callback(self.progress.settle)
            async with asyncio.TaskGroup() as group:
                for job in jobs:
                    group.create_task(self._job(job, casts[job.student], report))

    def _clear(self) -> None:
        """Wait for what runs in threads, then close the sandboxes that cancelled episodes left."""
        for pool in (self._commands, self._doors):
            pool.shutdown(cancel_futures=True)
        left = [episode for episode in self._with_sandbox if episode.sandbox is not None]
        with ThreadPoolExecutor(self.capacity.commands) as closing:
            list(closing.map(core.close_sandbox, left))

    async def _job(self, job: CohortJob, cast: Cast, report: Callable[[Result], None]) -> None:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(self._episode(plan, job.conditions, cast)) for plan in job.plans]
        played = [task.result() for task in tasks]
        trajectories = tuple(one.rollout.trajectory for one in played)
        labels = tuple(label for one in played for label in one.labelled.labels)
        missing = tuple(state for one in played for state in one.labelled.missing)
        shadows = {key: action for one in played for key, action in one.shadows()}
        seconds = time.monotonic() - min(one.began for one in played)
        report((job, CohortRecord(trajectories, labels, shadows, missing), seconds))

    async def _episode(self, plan: Plan, conditions: Conditions, cast: Cast) -> _Played:
        """An episode, begun when the registry hands out its image; until then others have its place.

        What it hands out in hours is shared by all that wait: they give up when nobody has got a sandbox for so long.
        """
        waited = False
        while True:
            try:
                return await self._at_once(plan, conditions, cast, waited)
            except PullLimit:
                waited = True
                await self._pause()

    @property
    def _patient(self) -> bool:
        return time.monotonic() - self._opened_at <= PAUSES * PAUSE_S

    async def _pause(self) -> None:
        """Wait until the registry may be asked again; those who come back first find out for the others."""
        self.progress.waiting += 1
        try:
            await asyncio.sleep(max(0.0, self._limited_at + PAUSE_S - time.monotonic()))
        finally:
            self.progress.waiting -= 1

    async def _at_once(self, plan: Plan, conditions: Conditions, cast: Cast, waited: bool) -> _Played:
        """The episode as it is now. Raises PullLimit: its image cannot be had yet."""
        async with self._episodes:
            began = time.monotonic()
            prompt = self.renderer.prompt_ids(plan.task)
            if waited and self._patient and time.monotonic() < self._limited_at + PAUSE_S:
                raise PullLimit("another one was refused meanwhile")
            rollout = await self._roll_out(core.begin(plan, conditions, len(prompt)), cast)
            asked = conditions.labelled
            labelled = await cast.label(plan.task, rollout.trajectory) if asked else Labelled((), ())
        self.progress.episode(rollout.trajectory, len(labelled.labels), len(labelled.missing))
        return _Played(rollout, labelled, began)

    async def _roll_out(self, episode: Episode, cast: Cast) -> Rollout:
        if episode.stop is not None:
            return core.finish(episode)
        async with self._sandboxes:
            await self._open(episode)
            await self._play(episode, cast)
            rollout = await _in(self._commands, core.finish, episode)
            self._with_sandbox.remove(episode)
            return rollout

    async def _open(self, episode: Episode) -> None:
        """Open a sandbox. Where none can be opened for anybody, the run ends before it has spoilt every episode.

        Raises PullLimit where the image may be had later; where nobody waits longer that is a failure like others.
        """
        self._with_sandbox.add(episode)
        try:
            error = await _in(self._doors, core.open_sandbox, episode, self.factory)
        except PullLimit as limit:
            self._limited_at = time.monotonic()
            if self._patient:
                self._with_sandbox.remove(episode)
                raise
            error = limit
            core.fail(episode, limit)
        if isinstance(error, ImageMissing):  # some of a data set's may be; it tells nothing of the daemon
            return
        if error is None:
            self._opened_at, self._unopened = time.monotonic(), 0
            return
        self._unopened += 1
        if self._unopened == 2 * self.capacity.sandboxes:
            raise EnvironmentProblem(
                f"{self._unopened} sandboxes in a row could not be opened, the last one because: {episode.detail}"
            )

    async def _play(self, episode: Episode, cast: Cast) -> None:
        began = time.monotonic()
        try:
            while episode.stop is None:
                move = await self._move(episode, cast)
                observation = await _in(self._commands, core.observe, episode, move)
                core.record(episode, move, observation, self.renderer)
                core.stop_late(episode, began)
                self.progress.turn(move.actor, len(move.token_ids))
            self._unanswered = 0
        except SandboxError as error:
            core.fail(episode, error)
        except PolicyError as error:
            core.fail(episode, error)
            if episode.stop is StopReason.INFRASTRUCTURE:  # and no context that is full
                self._refuse_more(error)

    def _refuse_more(self, error: PolicyError) -> None:
        """End the run where no episode comes to its end, before its models have failed every one."""
        self._unanswered += 1
        if self._unanswered == 2 * self.capacity.sandboxes:
            raise EnvironmentProblem(f"{self._unanswered} episodes in a row ended without an answer, the last: {error}")

    async def _move(self, episode: Episode, cast: Cast) -> Move:
        choice = core.choose(episode)
        wrong = core.slip(episode, choice)
        if wrong is not None:
            return core.rendered_move("slip", wrong, choice, self.renderer)
        if not choice.teacher_acts:
            return core.student_move(await _ask_student(episode, cast), choice, self.renderer)
        if episode.conditions.shadow:
            episode.shadows[len(episode.turns)] = (await _ask_student(episode, cast)).action
        seed = core.answer_seed(episode)
        taught = await ask_teacher(cast.teacher, episode.plan.task, episode.turns, cast.teaching, seed)
        return core.rendered_move("teacher", taught.action, choice, self.renderer)


@dataclass(frozen=True, slots=True)
class _Played:
    """A finished episode, its labels, and when it began."""

    rollout: Rollout
    labelled: Labelled
    began: float

    def shadows(self) -> Iterator[tuple[tuple[str, int, int], Any]]:
        for turn, action in self.rollout.shadows.items():
            yield (*self.rollout.trajectory.key, turn), action


async def _ask_student(episode: Episode, cast: Cast) -> Answer:
    """The student's answer, no longer than the context has room for."""
    sampling = episode.conditions.sampling
    room = min(sampling.max_new_tokens, episode.room)
    shorter = replace(sampling, max_new_tokens=room)
    return await cast.student.answer(episode.plan.task, episode.turns, shorter, core.answer_seed(episode))


async def _in(pool: ThreadPoolExecutor, function: Callable[..., T], *arguments: Any) -> T:
    return await asyncio.get_running_loop().run_in_executor(pool, function, *arguments)
