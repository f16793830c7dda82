"""Cohorts spread over worker processes; what is computed does not depend on how many there are.

Each worker is a fresh process with one torch thread, its own student and its own sandboxes. A cohort is the
unit of work and of loss: a killed one is run again from its plans and gives the same bytes.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from dagger_nb.episode import Conditions, Plan
from dagger_nb.errors import EnvironmentProblem
from dagger_nb.labelling import label_trajectory
from dagger_nb.policies import teacher
from dagger_nb.rollout import run_cohort
from dagger_nb.sandboxes import SandboxFactory, factory_for
from dagger_nb.settings import SandboxSettings
from dagger_nb.store import CohortRecord
from dagger_nb.students import LocalStudent, Version, load_for_acting, quiet

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True, slots=True)
class CohortJob:
    """One cohort to run: its number, its plans, and under which conditions which student acts."""

    number: int
    plans: tuple[Plan, ...]
    conditions: Conditions
    student: Version
    cache: Path | None  # of observations, shared by all workers
    run: str = ""  # the run folder's name: who pays for the labels that cost money
    round: int = 0  # of the run's bill; 0 for exams
    sandbox: SandboxSettings = SandboxSettings()


class Executor(Protocol):
    """Runs cohorts for an experiment. One that holds no accelerator has nothing to free and no facts to tell.

    `lockstep` says whether the episodes of a cohort are decoded together. What they compute then depends on all of
    its plans, so a cohort that lost an episode is run again whole; otherwise that episode alone is.
    """

    lockstep: bool = True

    def run(self, jobs: Sequence[CohortJob]) -> Iterator[tuple[CohortJob, CohortRecord, float]]:
        """Yield (job, record, seconds) as cohorts finish, in no fixed order."""

    def rest(self) -> None:
        """Free the accelerator; the next `run` takes it again."""

    def close(self) -> None:
        """End what runs in the background; nothing is run after it."""

    def facts(self) -> dict[str, Any]:
        """What belongs into a run's manifest."""
        return {}

    def bill(self, run: str) -> dict[str, pd.DataFrame]:
        """What a run's labels have cost, if anything: tables "bill" (a row a round; exams are round 0) and "calls"."""
        return {}


class Fleet(Executor):
    """Worker processes that are started once and reused; a context manager."""

    def __init__(self, workers: int) -> None:
        context = multiprocessing.get_context("spawn")
        self._pool = ProcessPoolExecutor(max_workers=workers, mp_context=context, initializer=_prepare)

    def __enter__(self) -> Fleet:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._pool.shutdown(wait=True, cancel_futures=True)

    def run(self, jobs: Sequence[CohortJob]) -> Iterator[tuple[CohortJob, CohortRecord, float]]:
        """Yield (job, record, seconds) as cohorts finish, in no fixed order.

        Raises:
            EnvironmentProblem: a worker died (out of memory, killed); finished cohorts are not lost.
        """
        futures = {}
        try:
            futures = {self._pool.submit(run_job, job): job for job in jobs}
            for future in as_completed(futures):
                record, seconds = future.result()
                yield futures[future], record, seconds
        except BrokenProcessPool as error:
            raise EnvironmentProblem(
                "a worker process died (killed, or out of memory); finished cohorts are kept: run the same command "
                "again, with a smaller `episode.cohort` or fewer `workers` if memory is short"
            ) from error
        finally:
            for future in futures:
                future.cancel()


_loaded: dict[Version, LocalStudent] = {}
_factories: dict[tuple[SandboxSettings, Path | None], SandboxFactory] = {}


def _prepare() -> None:
    import torch

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # an interrupt is the parent's to handle; it closes the pool
    threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()
    torch.set_num_threads(1)
    quiet()


def _end_with(parent: int) -> None:
    """End this worker when its parent was killed: else it waits for ever for the next cohort, its model in memory."""
    while os.getppid() == parent:
        time.sleep(1.0)
    os._exit(1)


def run_job(job: CohortJob) -> tuple[CohortRecord, float]:
    """Run one cohort in this process: episodes, then the teacher's label at every visited state, if wanted."""
    began = time.monotonic()
    student, factory = _student(job.student), _factory(job.sandbox, job.cache)
    session = student.session(len(job.plans), job.conditions.limits.context)
    rollouts = run_cohort(
        job.plans, job.conditions, session=session, teacher=teacher.label, renderer=student.renderer, factory=factory
    )
    labels, shadows = [], {}
    for plan, rollout in zip(job.plans, rollouts, strict=True):
        trajectory = rollout.trajectory
        if job.conditions.labelled:
            labels += label_trajectory(
                plan.task, trajectory, teacher=teacher.label, name=teacher.NAME, renderer=student.renderer
            )
        shadows |= {(*trajectory.key, turn): action for turn, action in rollout.shadows.items()}
    record = CohortRecord(tuple(r.trajectory for r in rollouts), tuple(labels), shadows)
    return record, time.monotonic() - began


def _student(version: Version) -> LocalStudent:
    if version not in _loaded:
        _loaded.clear()  # one model at a time
        _loaded[version] = load_for_acting(version)
    return _loaded[version]


def _factory(settings: SandboxSettings, cache: Path | None) -> SandboxFactory:
    if (settings, cache) not in _factories:
        _factories[settings, cache] = factory_for(settings, cache=cache)
    return _factories[settings, cache]


def in_cohorts(plans: Sequence[Plan], size: int) -> list[tuple[Plan, ...]]:
    """Plans cut into cohorts in their order; the cut depends on the plans alone.

    >>> in_cohorts([1, 2, 3, 4, 5], 2)
    [(1, 2), (3, 4), (5,)]
    """
    return [tuple(plans[start : start + size]) for start in range(0, len(plans), size)]


def progress_line(title: str, done: int, total: int, record: CohortRecord, seconds: float) -> str:
    """One line of progress for a finished cohort."""
    turns = [turn for trajectory in record.trajectories for turn in trajectory.turns]
    finished = sum(trajectory.stop.value == "finish" for trajectory in record.trajectories)
    dose = sum(turn.actor == "teacher" for turn in turns) / max(1, len(turns))
    lessons = sum(label.lesson for label in record.labels)
    return (
        f"{title} · {done}/{total} cohorts · {len(record.trajectories)} episodes, {finished} submitted · "
        f"{len(turns)} turns, {dose:.0%} by the teacher · {lessons} lessons · {seconds:.0f} s"
    )
