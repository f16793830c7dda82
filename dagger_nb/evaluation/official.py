"""Predictions through swebench's own command line in Docker: gold patches first, resumable, doubtful instances marked.

A gold patch that is not resolved shows a broken instance (an image that has rotted, a machine too small or too
slow); one that is resolved in one run and not in another a flaky one. Both are marked beside the verdicts and
never left out of them: the score over all instances and the score without them are each reported.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from dagger_nb.errors import EnvironmentProblem, PullLimit
from dagger_nb.evaluation.grades import LOST, Grade, Status
from dagger_nb.evaluation.harness import HarnessRun, command, read_report, summarise, unjudged, write_inputs
from dagger_nb.evaluation.predictions import Prediction
from dagger_nb.records import Task
from dagger_nb.sandboxes.protocol import PAUSE_S, PAUSED, PAUSES, SandboxFactory
from dagger_nb.store import alone

if TYPE_CHECKING:
    import docker

    from dagger_nb.sandboxes.containers import DockerFactory

TIMEOUT_S = 1800  # swebench's own default, for one instance
PART = 4  # instances for each worker whose images are fetched at once: few enough for the disk, enough to keep all busy
LOG = "harness.log"
Log = Callable[[str], None]
Harness = Callable[[Sequence[Task], Sequence[Prediction]], Sequence[Grade]]


@dataclass(frozen=True, slots=True)
class Official:
    """The harness's verdicts, sorted by instance, and the instances whose verdicts are in doubt.

    `broken`: the gold patch was resolved in no run here. `flaky`: in some runs and not in others.
    """

    grades: tuple[Grade, ...]
    broken: tuple[str, ...]
    flaky: tuple[str, ...]

    @property
    def undoubted(self) -> tuple[Grade, ...]:
        """The grades of instances that are neither broken nor flaky."""
        return tuple(row for row in self.grades if row.instance_id not in (*self.broken, *self.flaky))


def harness_for(factory: SandboxFactory, folder: Path, *, workers: int, log: Log = print) -> Harness | None:
    """What gives grades without a look at the gold patches, kept below `folder`; None where sandboxes are not Docker's.

    It raises what `evaluate` does.
    """

    def judged(tasks: Sequence[Task], predictions: Sequence[Prediction]) -> Sequence[Grade]:
        models = {"predictions": predictions}
        return evaluate(folder, tasks, models, factory, workers=workers, gold_runs=0, log=log)["predictions"].grades

    return judged if factory.name == "docker" else None


def evaluate(
    folder: Path,
    tasks: Sequence[Task],
    models: Mapping[str, Sequence[Prediction]],
    factory: DockerFactory,
    *,
    workers: int,
    timeout_s: int = TIMEOUT_S,
    gold_runs: int = 1,
    log: Log = print,
) -> dict[str, Official]:
    """Grade the predictions of each of `models`, after the gold patches of all `tasks`; its name -> its verdicts.

    A few instances at a time: `factory` fetches their images, waiting where the registry limits pulls, and then every
    patch of theirs is graded, so that an image is pulled once. All is kept below `folder`, and a call that was
    interrupted goes on at the instance: swebench keeps an instance's report by run id, and the run id carries the hash
    of what is graded. What was lost to the infrastructure is tried again.

    Args:
        workers: containers at once.
        timeout_s: wall clock of one instance's tests.
        gold_runs: how often the gold patches are run; from 2 on flaky instances show. 0 checks nothing.

    Raises:
        EnvironmentProblem: no Docker daemon answers, another process works in the folder, or the command line failed;
            its log's end is in the message.
        DataError: what `harness.write_inputs` refuses.
    """
    gold = [Prediction(task.instance_id, "gold", task.patch) for task in tasks]
    checks = {f"gold-{number}": gold for number in range(1, gold_runs + 1)}
    runs = {name: write_inputs(folder / name, tasks, rows) for name, rows in (checks | dict(models)).items()}
    with alone(folder):
        left = {run: unjudged(run) for run in runs.values()}
        for part in _parts(tasks, PART * workers):
            _judge(part, left, factory, workers, timeout_s, log)
        grades = {name: _told(name, run, tasks, log) for name, run in runs.items()}
    doubts = marks([grades[name] for name in checks])
    return {name: Official(grades[name], *doubts) for name in models}


def marks(gold: Sequence[Sequence[Grade]]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The broken and the flaky instances, by the grades of their gold patches in each run that graded them.

    >>> marks([[Grade("a", Status.RESOLVED), Grade("b", Status.UNRESOLVED)], [Grade("a", Status.PATCH_FAILED)]])
    (('b',), ('a',))
    """
    outcomes: dict[str, set[bool]] = {}
    for row in (row for run in gold for row in run):
        if row.status is not Status.INFRASTRUCTURE:
            outcomes.setdefault(row.instance_id, set()).add(row.resolved)
    broken = tuple(sorted(name for name, found in outcomes.items() if found == {False}))
    return broken, tuple(sorted(name for name, found in outcomes.items() if len(found) == 2))


def _parts(tasks: Sequence[Task], size: int) -> Iterator[Sequence[Task]]:
    """The tasks in the order of their names, which puts a repository's together: their images share layers."""
    ordered = sorted(tasks, key=lambda task: task.instance_id)
    return (ordered[first : first + size] for first in range(0, len(ordered), size))


def _judge(
    part: Sequence[Task],
    left: Mapping[HarnessRun, Sequence[str]],
    factory: DockerFactory,
    workers: int,
    timeout_s: int,
    log: Log,
) -> None:
    """Have the command line judge what is `left` of these tasks in each run.

    Images beyond `sandbox.images_gb` take the place of those that were used; what has none is not started.
    """
    wanted = {name for names in left.values() for name in names}
    todo = [replace(task, files={}) for task in part if task.instance_id in wanted]  # in images of their own
    while todo:
        _fetch(todo, factory, log)
        here = {task.instance_id for task in todo if factory.holds(task)}
        for run, names in left.items():
            if some := [name for name in names if name in here]:
                log(f"{run.folder.name}: swebench eval of {len(some)} from {some[0]} on, see {run.folder / LOG}")
                run.report_path.unlink(missing_ok=True)  # it says less than is known from now on
                _start(run, some, workers, timeout_s)
        todo = [task for task in todo if task.instance_id not in here] if here else []


def _fetch(tasks: Sequence[Task], factory: DockerFactory, log: Log) -> None:
    """Fetch the images, where need be when the registry hands them out again; others are lost to the infrastructure."""
    for _ in range(PAUSES):
        lost = factory.prefetch(tasks, log)
        if not any(isinstance(why, PullLimit) for why in lost.values()):
            return
        log(PAUSED)
        time.sleep(PAUSE_S)


def _told(name: str, run: HarnessRun, tasks: Sequence[Task], log: Log) -> tuple[Grade, ...]:
    """The grades of a run, from swebench's report of it; a task without a prediction was lost with its episode."""
    if not run.report_path.exists():
        summarise(run)
    grades = read_report(run)
    without = sorted({task.instance_id for task in tasks} - {row.instance_id for row in grades})
    lost = sum(row.status is Status.INFRASTRUCTURE for row in grades)
    tail = f", {lost} {LOST}: the same call tries them again" if lost else ""
    tail += f"; {len(without)} tasks have no prediction" if without else ""
    log(f"{name}: {sum(row.resolved for row in grades)} of {len(grades)} resolved{tail}")
    grades += [Grade(one, Status.INFRASTRUCTURE, detail="no prediction: its episode was lost") for one in without]
    return tuple(sorted(grades, key=lambda row: row.instance_id))


def _start(run: HarnessRun, instances: Sequence[str], workers: int, timeout_s: int) -> None:
    from dagger_nb.sandboxes.containers.errors import connect
    from dagger_nb.serving.process import GuardedProcess

    program, *arguments = command(run, workers=workers, timeout_s=timeout_s, instances=instances)
    beside = Path(sys.executable).with_name(program)
    line = [str(beside) if beside.exists() else program, *arguments]
    with closing(connect()) as client:  # before any work: no daemon, no run
        _clear(client, run)
        try:
            with closing(GuardedProcess(line, os.environ, run.folder / LOG)) as process:
                code = process.wait()
        finally:
            _clear(client, run)
    if code != 0:
        raise EnvironmentProblem(
            f"`{' '.join(line[:2])}` ended with {code}; see {run.folder / LOG}. Its end:\n{process.tail()}"
        )


def _clear(client: docker.DockerClient, run: HarnessRun) -> None:
    """Remove the containers of a run, which swebench names after it: one that was interrupted leaves them."""
    from dagger_nb.sandboxes.containers.lease import remove

    for row in client.api.containers(all=True, filters={"name": run.run_id}):
        remove(client, row["Id"])
