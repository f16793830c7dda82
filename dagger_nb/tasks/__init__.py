"""Where problems come from: deterministic mini repositories in SWE-bench's instance schema.

`generate("train", 0)` draws one; `gold` tells a scripted teacher where its bugs are.

Covered: small pure Python packages, one-line bugs, real pytest tests, a part of them hidden.
Not covered: bugs over several lines, input and output, state between calls, dependencies.
"""

from __future__ import annotations

from dagger_nb.tasks.generate import generate, tasks
from dagger_nb.tasks.splits import SPLITS, SplitSpec
from dagger_nb.tasks.validation import Verdict, content_hash, load_jsonl, recheck, validate, verdict_of

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
