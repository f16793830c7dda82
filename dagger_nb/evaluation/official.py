"""Predictions through swebench's own command line in Docker: gold patches first, resumable, doubtful instances marked.

A gold patch that is not resolved shows a broken instance (an image that has rotted, a machine too small or too
slow); one that is resolved in one run and not in another a flaky one. Both are marked beside the verdicts and
never left out of them: the score over all instances and the score without them are each reported.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from dagger_nb.errors import DataError, EnvironmentProblem
from dagger_nb.evaluation.grades import Grade, Status
from dagger_nb.evaluation.harness import HarnessRun, command, read_report, write_inputs
from dagger_nb.evaluation.predictions import Prediction
from dagger_nb.records import Task
from dagger_nb.settings import SandboxSettings
from dagger_nb.store import alone

TIMEOUT_S = 1800  # swebench's own default, for one instance
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


def harness_for(sandbox: SandboxSettings, folder: Path, *, workers: int, log: Log = print) -> Harness | None:
    """What gives grades without a look at the gold patches, kept below `folder`; None where sandboxes are not Docker's.

    It raises what `evaluate` does.
    """

    def judged(tasks: Sequence[Task], predictions: Sequence[Prediction]) -> Sequence[Grade]:
        return evaluate(folder, tasks, predictions, workers=workers, gold_runs=0, log=log).grades

    return judged if sandbox.back_end == "docker" else None


def evaluate(
    folder: Path,
    tasks: Sequence[Task],
    predictions: Sequence[Prediction],
    *,
    workers: int,
    timeout_s: int = TIMEOUT_S,
    gold_runs: int = 1,
    gold_folder: Path | None = None,
    log: Log = print,
) -> Official:
    """Grade the predictions of one model, after the gold patches of all `tasks`.

    Everything is kept below `folder`, and a call that was interrupted goes on at the instance: swebench keeps an
    instance's report by run id, and the run id carries the hash of what is graded.

    Args:
        workers: containers at once.
        timeout_s: wall clock of one instance's tests.
        gold_runs: how often the gold patches are run; from 2 on flaky instances show. 0 checks nothing.
        gold_folder: where these runs are kept, for several models of the same tasks; below `folder` by default.

    Raises:
        EnvironmentProblem: no Docker daemon answers, another process works in the folder, or the command line failed;
            its log's end is in the message.
        DataError: what `harness.write_inputs` refuses.
    """
    wanted = {row.instance_id for row in predictions}
    chosen = [task for task in tasks if task.instance_id in wanted]
    gold = [Prediction(task.instance_id, "gold", task.patch) for task in tasks]
    seen = []
    for number in range(1, gold_runs + 1):
        run = write_inputs((gold_folder or folder) / f"gold-{number}", tasks, gold)
        seen.append(_finished(run, workers, timeout_s, log, f"gold patches, run {number} of {gold_runs}"))
    run = write_inputs(folder / "predictions", chosen, predictions)
    grades = _finished(run, workers, timeout_s, log, f"predictions of {run.model}")
    return Official(tuple(grades), *marks(seen))


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


def _finished(run: HarnessRun, workers: int, timeout_s: int, log: Log, title: str) -> list[Grade]:
    """The grades of a run; only what has no verdict yet is started."""
    grades = _read(run)
    if grades is None or any(row.status is Status.INFRASTRUCTURE for row in grades):
        log(f"{title}: swebench eval at work, see {run.folder / LOG}")
        with alone(run.folder):
            _start(run, workers, timeout_s)
        grades = read_report(run)
    lost = sum(row.status is Status.INFRASTRUCTURE for row in grades)
    tail = f", {lost} lost to the infrastructure: the same call tries them again" if lost else ""
    log(f"{title}: {sum(row.resolved for row in grades)} of {len(grades)} resolved{tail}")
    return grades


def _read(run: HarnessRun) -> list[Grade] | None:
    try:
        return read_report(run)
    except DataError:
        return None


def _start(run: HarnessRun, workers: int, timeout_s: int) -> None:
    from dagger_nb.sandboxes.containers.errors import connect
    from dagger_nb.sandboxes.containers.lease import remove

    client = connect()  # before any work: no daemon, no run
    program, *arguments = command(run, workers=workers, timeout_s=timeout_s)
    beside = Path(sys.executable).with_name(program)
    try:
        with open(run.folder / LOG, "ab") as out:
            line = [str(beside) if beside.exists() else program, *arguments]
            code = subprocess.run(line, cwd=run.folder, stdin=subprocess.DEVNULL, stdout=out, stderr=out).returncode
    finally:  # swebench names its containers after the run; an interrupted run leaves them
        for row in client.api.containers(all=True, filters={"name": run.run_id}):
            remove(client, row["Id"])
        client.close()
    if code != 0 or not run.report_path.exists():
        end = (run.folder / LOG).read_text(errors="replace")[-1500:]
        raise EnvironmentProblem(f"`{' '.join(line[:2])}` ended with {code}; see {run.folder / LOG}. Its end:\n{end}")
