"""The records that every room shares: tasks, actions, turns, trajectories and labels.

A record is frozen and becomes plain JSON through `to_json` and `from_json`; each JSON object carries
the format number of the code that wrote it, and a reader refuses a number that it does not know.
"""

from __future__ import annotations

import dataclasses
import enum
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

from dagger_nb.errors import DataError

FORMAT = 1

SWEBENCH_FIELDS = (
    "instance_id", "repo", "base_commit", "problem_statement", "patch", "test_patch",
    "FAIL_TO_PASS", "PASS_TO_PASS", "version", "image", "eval_script", "log_parser", "eval_type",
)  # fmt: skip


class StopReason(str, enum.Enum):
    """Why an episode ended. When several hold at once the first in this order is recorded."""

    FINISH = "finish"  # the agent submitted
    LOOP = "loop"  # the same action met the same observation too often in a row
    CONTEXT = "context"  # the next turn would not fit the context window
    TURNS = "turns"  # the turn budget is spent
    TIME = "time"  # the wall-clock budget is spent
    INFRASTRUCTURE = "infrastructure"  # the sandbox or a policy failed; not the agent's doing


@dataclass(frozen=True, slots=True)
class Task:
    """One problem in SWE-bench 5's instance schema, plus what a local sandbox needs.

    `files` is the tree at `base_commit` (path relative to /testbed -> text); it is empty where the
    tree lives in a container image. `split` and `bug_kinds` are for selection and tables only.
    """

    instance_id: str
    repo: str
    base_commit: str
    problem_statement: str
    patch: str
    test_patch: str
    FAIL_TO_PASS: tuple[str, ...]
    PASS_TO_PASS: tuple[str, ...]
    version: str
    image: str
    eval_script: str
    log_parser: str
    eval_type: str
    files: Mapping[str, str] = field(default_factory=dict)
    split: str = ""
    bug_kinds: tuple[str, ...] = ()

    def to_instance(self) -> dict[str, Any]:
        """The instance as swebench 5 reads it: its own fields and nothing else."""
        row = {name: getattr(self, name) for name in SWEBENCH_FIELDS}
        return row | {"FAIL_TO_PASS": list(self.FAIL_TO_PASS), "PASS_TO_PASS": list(self.PASS_TO_PASS)}


@dataclass(frozen=True, slots=True)
class Action:
    """One canonical turn of an agent: reasoning text and a tool call.

    A reply that does not parse keeps its text in `raw`, has an empty `tool` and an `error` that says
    what was wrong with it; it is executed as a no-op whose observation is that error.
    """

    thought: str
    tool: str
    arguments: Mapping[str, Any] = field(default_factory=dict)
    raw: str = ""
    error: str = ""

    @property
    def malformed(self) -> bool:
        return not self.tool

    def same_call(self, other: Action) -> bool:
        """Whether two actions call the same tool with the same arguments (thoughts may differ)."""
        return not self.malformed and self.tool == other.tool and dict(self.arguments) == dict(other.arguments)


@dataclass(frozen=True, slots=True)
class Turn:
    """One executed turn: who acted, what was done, what came back.

    `beta` is the probability that the teacher acts, `draw` the uniform number in [0, 1) compared with
    it. `token_ids` are the ids that the student sampled, or the rendering of a teacher's action;
    both end with the end-of-turn token.
    """

    index: int
    actor: str  # "student", "teacher" or "slip"
    action: Action
    observation: str
    token_ids: tuple[int, ...]
    observation_tokens: int
    beta: float | None = None
    draw: float | None = None


@dataclass(frozen=True, slots=True)
class Trajectory:
    """One episode, complete: enough to render, label, grade and train on without running anything."""

    instance_id: str
    attempt: int
    round: int
    policy: str  # version of the student: "base", or the digest of its adapter
    turns: tuple[Turn, ...]
    stop: StopReason
    patch: str  # git diff of the final tree against base_commit
    prompt_tokens: int
    detail: str = ""  # of an infrastructure failure what failed; of a full context whose it is, where not the student's

    @property
    def key(self) -> tuple[str, int]:
        return self.instance_id, self.attempt


@dataclass(frozen=True, slots=True)
class Label:
    """The teacher's action at one visited state; kept apart from what was executed there.

    `turn` is the index of the turn whose state (everything before its action) was labelled.
    `token_ids` is the action rendered for the student; `lesson` says whether it differs from what
    was executed. Lineage: round, policy, instance, attempt, turn, actor, beta, teacher, template.
    """

    instance_id: str
    attempt: int
    round: int
    policy: str
    turn: int
    actor: str
    beta: float | None
    teacher: str
    template: str  # hash of the student's chat template
    action: Action
    token_ids: tuple[int, ...]
    lesson: bool


@dataclass(frozen=True, slots=True)
class Missing:
    """A state that was to be labelled and has no label.

    `reason` is "no answer" (the endpoint failed in spite of retries), "malformed" (two answers that are no call of a
    tool, or one that the student's format cannot say) or "budget" (asking would have overrun a limit); `detail` says
    more.
    """

    instance_id: str
    attempt: int
    round: int
    policy: str
    turn: int
    actor: str
    teacher: str
    reason: str
    detail: str


Record = TypeVar("Record", Task, Trajectory, Label, Missing)


def to_json(record: Task | Trajectory | Label | Missing) -> str:
    """One line of JSON with sorted keys, so that equal records are equal bytes."""
    row = dataclasses.asdict(record) | {"format": FORMAT, "type": type(record).__name__}
    return json.dumps(row, sort_keys=True, ensure_ascii=False, separators=(",", ":"))


def from_json(line: str, kind: type[Record]) -> Record:
    """The record of one line written by `to_json`.

    Raises:
        DataError: the line is torn, of another type, of another format, or lacks a field.
    """
    try:
        row = json.loads(line)
        if row.pop("type") != kind.__name__ or row.pop("format") != FORMAT:
            raise DataError(f"expected a {kind.__name__} of format {FORMAT}: {line[:120]!r}")
        return _BUILD[kind](row)
    except (json.JSONDecodeError, KeyError, TypeError, AttributeError, ValueError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"not a complete {kind.__name__} record ({error}): {line[:120]!r}") from error


def digest(value: Any) -> str:
    """SHA-256 (hex) of a JSON-able value, independent of key order."""
    text = json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def _task(row: dict[str, Any]) -> Task:
    lists = {name: tuple(row[name]) for name in ("FAIL_TO_PASS", "PASS_TO_PASS", "bug_kinds")}
    return Task(**row | lists)


def _turn(row: dict[str, Any]) -> Turn:
    return Turn(**row | {"action": Action(**row["action"]), "token_ids": tuple(row["token_ids"])})


def _trajectory(row: dict[str, Any]) -> Trajectory:
    turns = tuple(_turn(turn) for turn in row["turns"])
    return Trajectory(**row | {"turns": turns, "stop": StopReason(row["stop"])})


def _label(row: dict[str, Any]) -> Label:
    return Label(**row | {"action": Action(**row["action"]), "token_ids": tuple(row["token_ids"])})


_BUILD = {Task: _task, Trajectory: _trajectory, Label: _label, Missing: lambda row: Missing(**row)}
