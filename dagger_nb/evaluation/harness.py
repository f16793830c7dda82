"""The official way: the same predictions through swebench 5's command line, and its report read back.

`write_inputs` lays down a folder in which `command` runs (it needs Docker and the instances' images); swebench writes
its logs and reports below that folder. A run may go a few instances at a time (`unjudged` names what is left);
`summarise` then lets swebench write the report of all, and `read_report` turns it into grades. The command line knows
no canaries, so `tampered` never comes from here.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from swebench.harness.constants import APPLY_PATCH_FAIL, LOG_INSTANCE, LOG_REPORT, RUN_EVALUATION_LOG_DIR

from dagger_nb.errors import DataError
from dagger_nb.evaluation.grades import Grade, Status
from dagger_nb.evaluation.predictions import Prediction, read_predictions, run_id, write_predictions
from dagger_nb.records import Task, digest

DATASET = "instances.json"  # the harness tells a local file from a hub name by this suffix
PREDICTIONS = "predictions.jsonl"
PARTS = "parts"  # below a run's folder: swebench's reports of some of its instances, which nobody reads
_TIMED_OUT = "Test timed out after"
_NO_TEXT = "UnicodeDecodeError: 'utf-8' codec can't decode"  # of the tree's diff, before the tests
# In the place of the tree's diff after the tests: the daemon's word that the container is over. No test prints there.
_ENDED = re.compile(r"Git diff after:\n.*(stopped state|is not running|OCI runtime exec failed|[Nn]o such container)")
_SUMMARY = """
import json, pathlib, sys
from swebench.harness.reporting import make_run_report
predictions = map(json.loads, pathlib.Path(sys.argv[2]).read_text().splitlines())
instances = json.loads(pathlib.Path(sys.argv[1]).read_text())
make_run_report({row["instance_id"]: row for row in predictions}, instances, sys.argv[3], report_dir=sys.argv[4])
"""


@dataclass(frozen=True, slots=True)
class HarnessRun:
    """One run of the command line: its folder, the run id that carries the predictions' hash, the model's name."""

    folder: Path
    run_id: str
    model: str

    @property
    def report_path(self) -> Path:
        return self.folder / f"{self._model_folder}.{self.run_id}.json"

    def log_folder(self, instance_id: str) -> Path:
        """Where swebench keeps one instance's report, test output and log."""
        return self.folder / RUN_EVALUATION_LOG_DIR / self.run_id / self._model_folder / instance_id

    @property
    def _model_folder(self) -> str:
        return self.model.replace("/", "__")


def write_inputs(folder: Path, tasks: Sequence[Task], predictions: Sequence[Prediction]) -> HarnessRun:
    """Write instances and predictions of one model as the command line reads them.

    The run id names both: swebench keeps reports by it and would take an old one for a changed test as well. It names
    the folder too, because swebench names containers by it and removes those of that name that it finds.

    Raises:
        DataError: no predictions, several models, or a prediction for an instance that is not among `tasks`.
    """
    models = sorted({row.model_name_or_path for row in predictions})
    if len(models) != 1:
        raise DataError(f"{folder}: one harness run is for the predictions of one model, got {models}")
    if unknown := sorted({row.instance_id for row in predictions} - {task.instance_id for task in tasks}):
        raise DataError(f"{folder}: predictions for instances that are not in the data set: {unknown[:3]}")
    write_predictions(folder / PREDICTIONS, predictions)
    rows = [task.to_instance() for task in sorted(tasks, key=lambda task: task.instance_id)]
    (folder / DATASET).write_text(json.dumps(rows, indent=1, sort_keys=True) + "\n", encoding="ascii")
    name = f"dagger-nb-{digest([str(folder.resolve()), rows])[:8]}"
    return HarnessRun(folder, run_id(predictions, name=name), models[0])


def command(run: HarnessRun, *, workers: int, timeout_s: int = 1800, instances: Sequence[str] = ()) -> list[str]:
    """The command line that grades the run, or some of its instances; `run.folder` is its working directory."""
    options = ["--run-id", run.run_id, "--workers", str(workers), "--timeout", str(timeout_s)]
    some = [word for name in instances for word in ("--instance", name)]
    reports = ["--report-dir", PARTS if instances else "."]
    return ["swebench", "eval", DATASET, "--predictions", PREDICTIONS, *options, *reports, *some]


def unjudged(run: HarnessRun) -> list[str]:
    """The instances that have no verdict yet, sorted: not started, interrupted, or lost to the infrastructure.

    A report that was cut short, or is of a container that had ended, is removed: swebench would take it for a verdict.
    """
    rows = read_predictions(run.folder / PREDICTIONS)
    return [row.instance_id for row in rows if row.model_patch and not _judged(run, row.instance_id)]


def summarise(run: HarnessRun) -> None:
    """Let swebench write its report of the whole run from the reports of its instances. It needs no Docker."""
    (run.folder / PARTS).mkdir(exist_ok=True)
    program = [sys.executable, "-c", _SUMMARY, DATASET, PREDICTIONS, run.run_id, PARTS]
    ended = subprocess.run(program, cwd=run.folder, capture_output=True, text=True, errors="replace")
    if ended.returncode != 0:
        raise DataError(f"{run.folder}: swebench cannot write its report of this run: {ended.stderr[-1500:]}")
    os.replace(run.folder / PARTS / run.report_path.name, run.report_path)  # whole, or not there


def read_report(run: HarnessRun) -> list[Grade]:
    """A grade for each prediction of a finished run, sorted by instance.

    swebench counts an instance that gave no report as an error: it is `patch_failed` or, after the time
    limit, `unresolved` where its log says so, and `infrastructure` otherwise. swebench's own suspicion of
    an infrastructure failure is advisory (a patch could print the words) and only goes into `detail`.

    Raises:
        DataError: there is no report, it has another form, or it lacks a prediction.
    """
    report = _load(run.report_path)
    try:
        grades = [_grade(run, report, instance) for instance in sorted(report["submitted_ids"])]
    except KeyError as error:
        raise DataError(f"{run.report_path}: no field {error}; was it written by swebench >= 5?") from error
    return grades


def _judged(run: HarnessRun, instance: str) -> bool:
    path = run.log_folder(instance) / LOG_REPORT
    try:
        row = json.loads(path.read_text(encoding="utf-8"))[instance]
    except FileNotFoundError:
        return _error(run, instance).status is not Status.INFRASTRUCTURE
    except (ValueError, KeyError):
        row = {}
    if row and ("tests_status" in row or not _ENDED.search(_log(run, instance))):
        return True
    path.unlink()
    return False


def _grade(run: HarnessRun, report: dict[str, Any], instance: str) -> Grade:
    if instance in report["empty_patch_ids"]:
        return Grade(instance, Status.EMPTY_PATCH, detail="the patch is empty")
    if instance in report["error_ids"]:
        return _error(run, instance)
    verdicts = {Status.RESOLVED: report["resolved_ids"], Status.UNRESOLVED: report["unresolved_ids"]}
    found = [status for status, ids in verdicts.items() if instance in ids]
    if len(found) != 1:
        raise DataError(f"{run.report_path}: {instance} has {len(found)} verdicts; run the harness again")
    row = _load(run.log_folder(instance) / LOG_REPORT)[instance]
    return Grade(instance, found[0], _expected(row), report["failure_reasons"].get(instance, ""))


def _error(run: HarnessRun, instance: str) -> Grade:
    log = _log(run, instance)
    if APPLY_PATCH_FAIL in log:
        return Grade(instance, Status.PATCH_FAILED, detail="the patch does not apply")
    if _TIMED_OUT in log:
        return Grade(instance, Status.UNRESOLVED, detail="the tests reached the time limit")
    if _NO_TEXT in log:
        return Grade(instance, Status.UNRESOLVED, detail="swebench reads no diff that is not UTF-8")
    return Grade(instance, Status.INFRASTRUCTURE, detail=f"no report; see {run.log_folder(instance) / LOG_INSTANCE}")


def _log(run: HarnessRun, instance: str) -> str:
    path = run.log_folder(instance) / LOG_INSTANCE
    return path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""


def _expected(row: dict[str, Any]) -> dict[str, dict[str, list[str]]]:
    """The two kinds of tests that decide; swebench's report has two more that stay empty."""
    return {name: row["tests_status"][name] for name in ("FAIL_TO_PASS", "PASS_TO_PASS") if "tests_status" in row}


def _load(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError) as error:
        raise DataError(f"{path}: no readable report ({error}); run the harness first, or again") from error
