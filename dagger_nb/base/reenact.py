"""Teacher episodes without a sandbox, for the pre-training corpus only.

The commands that an undisturbed teacher uses (the tests, grep, diff, git diff) are re-enacted in this process
for trusted, generated repositories, thousands a minute. What they print equals the sandbox's observations: a
test compares whole episodes. Nothing else in the package uses this.
"""

from __future__ import annotations

import ast
import re
import threading
import traceback
from collections.abc import Iterator

from dagger_nb import scaffold
from dagger_nb.policies import history, teacher
from dagger_nb.records import Task, Turn
from dagger_nb.sandboxes.protocol import CommandResult
from dagger_nb.tasks.execution import Program

_PARSING = threading.Lock()  # in CPython 3.11 ast.parse counts its recursion wrongly when two threads use it at once
WIDTH = 80  # columns of the terminal that pytest believes in


class Reenactment:
    """A `Sandbox` that knows the teacher's commands and nothing else."""

    def __init__(self, task: Task) -> None:
        self.base = dict(task.files)
        self.files = dict(task.files)

    def read(self, path: str) -> str:
        return self.files[path.removeprefix("/testbed/")]

    def write(self, path: str, text: str) -> None:
        self.files[path.removeprefix("/testbed/")] = text

    def run(self, command: str, timeout_s: float | None = None) -> CommandResult:
        if command == teacher.RUN_TESTS:
            return self._pytest()
        if command == teacher.SHOW_DIFF:
            return CommandResult("".join(self._diff()), 0)
        module = re.fullmatch(r"python -c 'import (\S+)' 2>&1 \| tail -3", command)
        if module:
            return CommandResult(self._import_error(module[1].replace(".", "/") + ".py"), 0)
        compared = history.COMPARISON.fullmatch(command)
        if compared:
            return self._compare(int(compared[1]), compared[2], compared[3].removesuffix("\n").split("\n"))
        lines = list(self._grep(re.fullmatch(r"grep -rn '([^']+)' /testbed", command)[1]))
        return CommandResult("\n".join(lines), 0 if lines else 1)

    def _grep(self, text: str) -> Iterator[str]:
        for path in sorted(self.files):
            for number, line in enumerate(self.files[path].split("\n"), 1):
                if text in line:
                    yield f"/testbed/{path}:{number}:{line}"

    def _compare(self, first: int, path: str, wanted: list[str]) -> CommandResult:
        """What `diff` says of lines of which one at most is another; there are as many on both sides."""
        shown = self.read(path).split("\n")[first - 1 : first - 1 + len(wanted)]
        found = [(n, a, b) for n, (a, b) in enumerate(zip(shown, wanted, strict=True), 1) if a != b]
        return CommandResult("".join(f"{n}c{n}\n< {a}\n---\n> {b}\n" for n, a, b in found), int(bool(found)))

    def _diff(self) -> Iterator[str]:
        for path in sorted(self.files):
            old, new = self.base[path].split("\n"), self.files[path].split("\n")
            if old != new:
                yield f"diff --git a/{path} b/{path}\n--- a/{path}\n+++ b/{path}\n"
            for number, (a, b) in enumerate(zip(old, new, strict=True)):
                if a != b:
                    yield f"@@ -{number + 1} +{number + 1} @@{_context(new, number)}\n-{a}\n+{b}\n"

    def _import_error(self, path: str) -> str:
        """The last three lines of the traceback of a file that cannot be imported."""
        error = _namespace(Program(self.files), path)
        frame = [f for f in traceback.extract_tb(error.__traceback__) if f.filename in self.files][-1]
        line = self.files[frame.filename].split("\n")[frame.lineno - 1]
        module, name = re.match(r"from (\S+) import", line)[1], re.search(r"name '(\w+)'", str(error))[1]
        where = f"from '{module}' (/testbed/{module.replace('.', '/')}.py)"
        head = f'  File "/testbed/{frame.filename}", line {frame.lineno}, in <module>'
        return f"{head}\n    {line}\nImportError: cannot import name '{name}' {where}"

    def _pytest(self) -> CommandResult:
        program = Program(self.files)
        files = sorted(path for path in self.files if path.startswith("tests/test_"))
        failing = program.failing(files)
        dots, summary, broken, failed, passed = "", [], [], 0, 0
        for path in files:
            space = _namespace(program, path)
            if isinstance(space, Exception):
                broken.append(f"ERROR {path}")
                continue
            for name in re.findall(r"^def (test_\w+)", self.files[path], re.MULTILINE):
                bad = f"{path}::{name}" in failing
                dots += "F" if bad else "."
                failed, passed = failed + bad, passed + (not bad)
                if bad:
                    summary.append(_cut(f"FAILED {path}::{name} - {_failure(space, self.files[path], name)}"))
        return CommandResult(_report(dots, [*summary, *broken], failed, passed, len(broken)), int(bool(failing)))


def _report(dots: str, summary: list[str], failed: int, passed: int, errors: int) -> str:
    counts = [f"{failed} failed"] * bool(failed) + [f"{passed} passed"] * bool(passed)
    counts += [f"{errors} error" + "s" * (errors > 1)] * bool(errors)
    lines = [f"{dots} [100%]"] if dots else []
    lines += ["= short test summary info =", *summary] if summary else []
    return "\n".join([*lines, ", ".join(counts)])


def _namespace(program: Program, path: str) -> dict | Exception:
    try:
        return program.run(path)
    except Exception as error:
        return error


def _failure(space: dict, source: str, name: str) -> str:
    """What pytest says in one line of the first assert that does not hold."""
    with _PARSING:
        tree = ast.parse(source)
    function = next(n for n in tree.body if isinstance(n, ast.FunctionDef) and n.name == name)
    for statement in function.body:
        left, right = (ast.unparse(side) for side in (statement.test.left, statement.test.comparators[0]))
        try:
            got, wanted = eval(left, space), eval(right, space)
        except Exception as error:
            return _described(error)
        if got != wanted:
            quoted = "'" in f"{got!r}{wanted!r}{left}"  # pytest shortens messages whose repr has single quotes
            return f"{'AssertionError: ' * quoted}assert {got!r} == {wanted!r}"
    raise AssertionError(f"{name} does not fail")


def _described(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"


def _cut(line: str) -> str:
    return line if len(line) <= WIDTH else line[: WIDTH - 3] + "..."


def _context(lines: list[str], number: int) -> str:
    """The function that git names behind a hunk's line numbers."""
    heads = [line for line in lines[:number] if line[:1].isalpha() or line.startswith(("_", "$"))]
    return f" {heads[-1]}" if heads else ""


def episode(task: Task) -> list[Turn]:
    """The teacher alone on a task, from the first turn to `finish`."""
    sandbox, turns = Reenactment(task), []
    while not turns or turns[-1].action.tool != "finish":
        action = teacher.label(task, turns)
        observation = scaffold.execute(action, sandbox)
        turns.append(Turn(len(turns), "teacher", action, observation, (), 0))
    return turns
