"""Runs tasks for real: the buggy tree must fail exactly FAIL_TO_PASS, the gold patch must mend everything."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from dagger_nb.errors import SandboxError
from dagger_nb.records import Task, digest
from dagger_nb.tasks.evaluation import END, START
from dagger_nb.tasks.gold import gold_edits

if TYPE_CHECKING:
    from dagger_nb.sandboxes.protocol import Sandbox, SandboxFactory

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
    return digest({name: getattr(task, name) for name in _CONTENT} | {"files": dict(task.files)})


def validate(task: Task, sandbox_factory: SandboxFactory) -> Verdict:
    """Run the task's eval_script on the buggy tree and again with the gold patch applied.

    Raises:
        SandboxError: the tests could not be run at all.
    """
    sandbox = sandbox_factory.open(task)
    try:
        before = run_tests(task, sandbox)
        for path, text in gold_files(task).items():
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
    body, end, _ = result.output.partition(START)[2].partition(END)
    if not end or result.truncated or result.timed_out:
        raise SandboxError(f"{task.instance_id}: the tests did not run to their end:\n{result.output[-2000:]}")
    rows = [line.split() for line in body.split("\n")]
    return {row[1]: row[0] for row in rows if len(row) > 1 and row[0] in ("PASSED", "FAILED", "ERROR")}


def gold_files(task: Task) -> dict[str, str]:
    """The files that the gold patch changes, as it leaves them. Raises DataError when it does not fit."""
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
    if strange := set(after) - due:
        return f"tests that the task does not name: {sorted(strange)}"
    return ""
