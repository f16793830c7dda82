"""One verdict an instance, and the append-only file that lets grading go on where it stopped."""

from __future__ import annotations

import enum
import fcntl
import json
import logging
import os
import threading
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from dagger_nb.errors import DataError
from dagger_nb.evaluation.predictions import patch_hash
from dagger_nb.records import Task, digest

GRADER = 4  # raise it when a verdict may change: grades of an older grader are then made again
LOST = "lost to the infrastructure"  # said of what a later call tries again, and looked for by `reproduction`
LOG = logging.getLogger(__name__)


class Status(str, enum.Enum):
    """What became of a patch. Only `resolved` is a success; only `infrastructure` is not the agent's doing."""

    RESOLVED = "resolved"  # every expected test passed, and the evidence holds
    UNRESOLVED = "unresolved"  # an expected test failed or did not run
    EMPTY_PATCH = "empty_patch"  # nothing was submitted
    PATCH_FAILED = "patch_failed"  # the patch does not apply
    TAMPERED = "tampered"  # the log claims success, the evidence says that it cannot be trusted
    INFRASTRUCTURE = "infrastructure"  # the sandbox failed; try again


@dataclass(frozen=True, slots=True)
class Grade:
    """The verdict on one patch.

    `report` is swebench's: {"FAIL_TO_PASS": {"success": [ids], "failure": [ids]}, "PASS_TO_PASS": ...};
    it is empty where the tests did not run. `detail` says in words why the status is what it is.
    """

    instance_id: str
    status: Status
    report: Mapping[str, Mapping[str, list[str]]] = field(default_factory=dict)
    detail: str = ""

    @property
    def resolved(self) -> bool:
        return self.status is Status.RESOLVED


def grade_key(task: Task, model_patch: str, timeout_s: float) -> str:
    """What a grade depends on: the grader and its time limit, the task's content and the patch (SHA-256, hex)."""
    content = {"grader": GRADER, "timeout_s": timeout_s, "task": task.to_instance(), "files": dict(task.files)}
    return digest(content | {"patch": patch_hash(model_patch)})


class Gradebook:
    """Grades on disk, one JSON line each, synced before `add` returns; safe to share between threads.

    A process killed while it wrote leaves a torn last line: it is dropped with a warning and that
    instance is graded again. Infrastructure failures are not kept, so that the next run tries them again.
    """

    def __init__(self, path: Path) -> None:
        """Read what is there. Raises DataError when a line other than the last is not a grade."""
        self._path = path
        self._lock = threading.Lock()
        self._grades = _read(path)

    def get(self, key: str) -> Grade | None:
        """The stored grade of `grade_key`, or None."""
        return self._grades.get(key)

    def add(self, key: str, grade: Grade) -> None:
        """Keep a grade; an infrastructure failure is left out."""
        if grade.status is Status.INFRASTRUCTURE:
            return
        line = json.dumps({"key": key} | asdict(grade), sort_keys=True) + "\n"
        with self._lock, self._path.open("ab+") as file:
            fcntl.flock(file, fcntl.LOCK_EX)  # other processes grade as well
            _whole_lines(file, self._path)
            file.write(line.encode("ascii"))
            file.flush()
            os.fsync(file.fileno())
            self._grades[key] = grade


def _read(path: Path) -> dict[str, Grade]:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab+") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        _whole_lines(file, path)
        file.seek(0)
        lines = file.read().decode().split("\n")[:-1]
    return dict(_parse(line, f"{path}:{number}") for number, line in enumerate(lines, 1))


def _whole_lines(file: BinaryIO, path: Path) -> None:
    """Drop a torn last line: whoever wrote it was killed, as nobody else has the lock."""
    end = file.seek(0, os.SEEK_END)
    if end == 0 or (file.seek(end - 1), file.read(1))[1] == b"\n":
        return
    file.seek(0)
    whole = file.read().rfind(b"\n") + 1
    LOG.warning("%s: dropped a torn last line (%d bytes); its patch is graded again", path, end - whole)
    file.truncate(whole)


def _parse(line: str, where: str) -> tuple[str, Grade]:
    try:
        row: dict[str, Any] = json.loads(line)
        key = row.pop("key")
        return key, Grade(**row | {"status": Status(row["status"])})
    except (json.JSONDecodeError, KeyError, TypeError, ValueError, AttributeError) as error:
        raise DataError(f"{where}: not a grade ({error}); move the file away to grade again") from error
