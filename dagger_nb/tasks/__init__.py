"""Where problems come from: deterministic mini repositories in SWE-bench's instance schema.

`generate("train", 0)` draws one; `gold` tells a scripted teacher where its bugs are.

Covered: small pure Python packages, one-line bugs, real pytest tests, a part of them hidden.
Not covered: bugs over several lines, input and output, state between calls, dependencies.
"""

from __future__ import annotations

from pathlib import Path

from dagger_nb.records import Task, from_json
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
    "validate",
    "verdict_of",
]


def load_jsonl(path: str | Path) -> list[Task]:
    """Tasks of a file of `records.to_json` lines. Raises DataError for a torn or foreign line."""
    with open(path, encoding="utf-8") as file:
        return [from_json(line, Task) for line in file if line.strip()]
