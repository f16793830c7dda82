"""Where problems come from: generated mini repositories, SWE-Gym and SWE-bench Verified, all in SWE-bench's schema.

`tasks_of(settings.tasks.source, "train", 8)` gives the tasks of a split wherever they come from (`hub` says what the
splits of real tasks are); `generate("train", 0)` draws one mini repository, and `gold` tells a scripted teacher where
its bugs are.

The mini repositories cover small pure Python packages, one-line bugs, real pytest tests, a part of them hidden, and
not bugs over several lines, input and output, state between calls, dependencies.
"""

from __future__ import annotations

from pathlib import Path

from dagger_nb.records import Task, from_json
from dagger_nb.settings import GENERATED
from dagger_nb.tasks import hub
from dagger_nb.tasks.assembly import generate, tasks
from dagger_nb.tasks.splits import SPLITS, SplitSpec
from dagger_nb.tasks.validation import Verdict, content_hash, validate
from dagger_nb.tasks.verdicts import recheck, verdict_of

__all__ = [
    "SPLITS",
    "SplitSpec",
    "Verdict",
    "content_hash",
    "generate",
    "load_jsonl",
    "recheck",
    "tasks",
    "tasks_of",
    "validate",
    "verdict_of",
]


def load_jsonl(path: str | Path) -> list[Task]:
    """Tasks of a file of `records.to_json` lines. Raises DataError for a torn or foreign line."""
    with open(path, encoding="utf-8") as file:
        return [from_json(line, Task) for line in file if line.strip()]


def tasks_of(source: str, split: str, count: int, *, start: int = 0) -> list[Task]:
    """Tasks `start` to `start + count - 1` of a split, from `settings.tasks.source`.

    The same tasks for the same arguments on any machine; a series of real training tasks can hold a task again.

    Raises:
        ConfigError: there is no such split, or not so many tasks in it.
        DataError: a file of tasks is torn or of another schema.
        EnvironmentProblem: real tasks are not on this machine and cannot be fetched.
    """
    if source == GENERATED:
        return tasks(split, count, start=start)
    return hub.tasks(source, split, count, start=start)
