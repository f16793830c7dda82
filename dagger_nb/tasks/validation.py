"""Runs tasks for real: the buggy tree must fail exactly FAIL_TO_PASS, the gold patch must mend everything.

The verdicts are committed in data/tasks/verdicts.jsonl by content hash, so that a changed generator
cannot lean on old ones. `python -m dagger_nb.tasks.validate` makes them.
"""

from __future__ import annotations

import functools
import json
import random
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from dagger_nb import paths
from dagger_nb.errors import DataError, SandboxError
from dagger_nb.records import Task, digest, from_json
from dagger_nb.tasks.evaluation import END, START
from dagger_nb.tasks.generate import generate
from dagger_nb.tasks.gold import gold_edits
from dagger_nb.tasks.splits import SPLITS

if TYPE_CHECKING:
    from dagger_nb.sandboxes.protocol import Sandbox, SandboxFactory

VALIDATED = {name: spec.size for name, spec in SPLITS.items() if spec.size} | {"train": 1000}
TIMEOUT_S = 60.0
_CONTENT = ("files", "patch", "test_patch", "problem_statement", "FAIL_TO_PASS", "PASS_TO_PASS", "eval_script")


@dataclass(frozen=True, slots=True)
class Verdict:
    """What running a task showed. `problem` is empty when it is valid."""

    hash: str
    instance_id: str
    problem: str = ""

    @property
    def valid(self) -> bool:
        return not self.problem


def content_hash(task: Task) -> str:
    """SHA-256 (hex) of what the agent and the tests see; equal repositories of two splits are equal here."""
    return digest({name: _plain(getattr(task, name)) for name in _CONTENT})


def _plain(value: object) -> object:
    return dict(value) if isinstance(value, Mapping) else value


def load_jsonl(path: str | Path) -> list[Task]:
    """Tasks of a file of `records.to_json` lines. Raises DataError for a torn or foreign line."""
    with open(path, encoding="utf-8") as file:
        return [from_json(line, Task) for line in file if line.strip()]


def validate(task: Task, sandbox_factory: SandboxFactory) -> Verdict:
    """Run the task's eval_script on the buggy tree and again with the gold patch applied.

    Raises:
        SandboxError: the tests could not be run at all.
    """
    sandbox = sandbox_factory.open(task)
    try:
        before = run_tests(task, sandbox)
        for path, text in _gold_files(task).items():
            sandbox.write(path, text)
        problem = _problem(task, before, run_tests(task, sandbox))
    finally:
        sandbox.close()
    return Verdict(content_hash(task), task.instance_id, problem)


def run_tests(task: Task, sandbox: Sandbox) -> dict[str, str]:
    """Outcome (PASSED, FAILED or ERROR) of each test that the eval_script reports; ERROR names a whole file.

    Raises:
        SandboxError: the script was cut off, or printed no markers.
    """
    result = sandbox.run(task.eval_script, TIMEOUT_S)
    parts = result.output.partition(START)[2].partition(END)
    if not parts[1] or result.truncated or result.timed_out:
        raise SandboxError(f"{task.instance_id}: the tests did not run to their end:\n{result.output[-2000:]}")
    rows = [line.split() for line in parts[0].split("\n")]
    return {row[1]: row[0] for row in rows if len(row) > 1 and row[0] in ("PASSED", "FAILED", "ERROR")}


def _gold_files(task: Task) -> dict[str, str]:
    """The files that the gold patch changes, as it leaves them."""
    changed: dict[str, list[str]] = {}
    for edit in gold_edits(task):
        changed.setdefault(edit.path, task.files[edit.path].split("\n"))[edit.line - 1] = edit.new
    return {path: "\n".join(lines) for path, lines in changed.items()}


def _problem(task: Task, before: Mapping[str, str], after: Mapping[str, str]) -> str:
    due = {*task.FAIL_TO_PASS, *task.PASS_TO_PASS}
    failing = {test for test in due if before.get(test) != "PASSED"}
    if failing != set(task.FAIL_TO_PASS):
        return f"the buggy tree should fail otherwise: {sorted(failing ^ set(task.FAIL_TO_PASS))}"
    if missing := {test for test in due if after.get(test) != "PASSED"}:
        return f"still failing with the gold patch: {sorted(missing)}"
    if strange := {test for test in after if test not in due}:
        return f"tests that the task does not name: {sorted(strange)}"
    return ""


def verdicts_path() -> Path:
    return paths.data() / "tasks" / "verdicts.jsonl"


def read_verdicts(path: Path) -> dict[str, Verdict]:
    """Verdicts of a file by content hash; a last line that was torn off is ignored.

    Raises:
        DataError: a line before the last is not a verdict.
    """
    lines = path.read_text(encoding="utf-8").split("\n") if path.exists() else [""]
    found = (_verdict(path, number, line) for number, line in enumerate(lines[:-1], start=1))
    return {verdict.hash: verdict for verdict in found}


def _verdict(path: Path, number: int, line: str) -> Verdict:
    try:
        return Verdict(**json.loads(line))
    except (TypeError, ValueError) as error:
        raise DataError(f"{path}:{number} is not a verdict ({error}); delete the file and validate again") from error


def verdict_line(verdict: Verdict) -> str:
    return json.dumps(asdict(verdict), sort_keys=True) + "\n"


@functools.cache
def _committed() -> Mapping[str, Verdict]:
    return read_verdicts(verdicts_path())


def verdict_of(task: Task) -> Verdict | None:
    """The committed verdict on exactly this task, or None when it was never validated."""
    return _committed().get(content_hash(task))


def validated_tasks() -> Iterator[Task]:
    """Every task that must have a committed verdict, in the order of the file."""
    return (generate(split, index) for split in sorted(VALIDATED) for index in range(VALIDATED[split]))


def recheck(sample: int, seed: int, sandbox_factory: SandboxFactory) -> list[Verdict]:
    """Validate a sample of the committed tasks again.

    `seed` chooses them.

    Raises:
        DataError: a task has no committed verdict, or another one than it gets now.
    """
    places = [(split, index) for split in sorted(VALIDATED) for index in range(VALIDATED[split])]
    chosen = random.Random(f"recheck/{seed}").sample(places, min(sample, len(places)))
    return [_recheck(generate(split, index), sandbox_factory) for split, index in sorted(chosen)]


def _recheck(task: Task, sandbox_factory: SandboxFactory) -> Verdict:
    now, committed = validate(task, sandbox_factory), verdict_of(task)
    if now != committed:
        raise DataError(
            f"{task.instance_id}: the committed verdict is {committed}, but running it gives {now};"
            " run `python -m dagger_nb.tasks.validate`"
        )
    return now
