"""The scripted teacher: labels any state of a generated task, using the history and the gold patch.

It works as a careful engineer would: run the tests; take the first failure; find the function under test
and read it; write its lines as the docstring wants them and let `diff` compare; where nothing differs go on to the
functions that it calls; replace the line that differs; run the tests again; when they pass read the diff, and
finish. What the gold patch adds is only the answer to "what should these lines be?", which the docstring above
them answers for the student; what is wrong the tool says, so that no comparison by eye is needed.
The teacher never uses the state of the files, only what the history has shown:

* damage counts once a test, a diff or a listing has shown it: an edit after which the first failure is the
  same as before (or a new failure appears) leads to `git diff`; a wrong hunk or a damaged function that is
  on the screen leads to `git checkout` of that file; when nothing explains a failure everything is reset;
* any command but a replacement may leave new files: before it undoes and before it finishes it lists and removes them;
* after a failed `str_replace` it views the lines again and then replaces by line number with `sed`;
* nothing is done again in vain: where a look showed nothing, or a change did not hold, it takes the next way.
"""

from __future__ import annotations

import itertools
import re
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from dagger_nb.policies import history
from dagger_nb.policies.history import Failure
from dagger_nb.records import Action, Task, Turn
from dagger_nb.tasks.gold import Edit, call_graph, function_under_test, gold_edits, locate

NAME = "oracle-2"

RUN_TESTS = "python -m pytest"
SHOW_DIFF = "git diff -U0"
SHOW_NEW_FILES = "git status --short"
CLEAN = "git clean -fdxq"
RESET_ALL = f"git checkout . && {CLEAN}"
EXPLAIN_IMPORT = "python -c 'import {module}' 2>&1 | tail -3"
COMPARE = "diff <(sed -n {first},{last}p {path}) - <<'EOF'\n{lines}\nEOF"  # what stands there with what should
WINDOW = 8  # lines of a view after the first: no generated function is longer

_IMPORT_LINE = re.compile(
    r'File "/testbed/([^"]+)", line (\d+), in <module>\n\s+(.*)\nImportError: cannot import name \'(\w+)\''
)
IN_VAIN = 2  # times that the same change may be made before its third need resets everything


def label(task: Task, turns: Sequence[Turn]) -> Action:
    """The teacher's action in the state that `turns` leads to. Deterministic; sees nothing but its arguments."""
    return _Reading(task, turns).decide()


@dataclass(frozen=True)
class _Gold:
    """What the gold patch says of one task, worked out once."""

    edits: tuple[Edit, ...]
    calls: Mapping[str, tuple[str, ...]]
    functions: Mapping[str, tuple[str, ...]]  # name -> its lines in the repaired tree
    paths: frozenset[str]


_KNOWN: OrderedDict[tuple[str, str], _Gold] = OrderedDict()
_KNOWN_LIMIT = 1024


def _gold_of(task: Task) -> _Gold:
    """The gold facts of a task, remembered for the tasks used last."""
    key = task.instance_id, task.patch
    if key not in _KNOWN:
        _KNOWN[key] = _work_out(task)
        if len(_KNOWN) > _KNOWN_LIMIT:
            _KNOWN.popitem(last=False)
    return _KNOWN[key]


def _work_out(task: Task) -> _Gold:
    edits = gold_edits(task)
    repaired = dict(task.files)
    for edit in edits:
        lines = repaired[edit.path].split("\n")
        lines[edit.line - 1] = edit.new
        repaired[edit.path] = "\n".join(lines)
    calls = call_graph(repaired)
    return _Gold(edits, calls, {name: _lines_of(repaired, name) for name in calls}, frozenset(repaired))


def _lines_of(files: Mapping[str, str], function: str) -> tuple[str, ...]:
    path, first, last = locate(files, function)
    return tuple(files[path].split("\n")[first - 1 : last])


class _Reading:
    """One reading of a history: the facts it has shown, and the decision that follows from them."""

    def __init__(self, task: Task, turns: Sequence[Turn]) -> None:
        self.turns = turns
        self.gold = _gold_of(task)
        self.runs = [t for t, turn in enumerate(turns) if _is_test_run(turn)]
        self.changes = [t for t, turn in enumerate(turns) if history.may_change(turn)]

    # -- the decision, top down

    def decide(self) -> Action:
        if not self.runs or any(t > self.runs[-1] for t in self.changes):
            return self._run_tests()
        failures = history.failures(self.turns[self.runs[-1]].observation)
        shown = self._shown_diff()
        if shown is not None:
            wrong = self._wrong_paths(shown)
            if wrong:
                undo = f"git checkout -- {' '.join(wrong)}"
                return self._clean() or self._if_it_holds(self._bash("This change is wrong. Undo it.", undo))
            if history.CUT.search(shown):
                return self._bash("Too much has changed. Start again.", RESET_ALL)
        if not failures:
            return self._close(shown)
        if shown is None and self._damage_shown(failures):
            return self._bash("That did not help. See what changed.", SHOW_DIFF)
        step = self._next_step(failures[0])
        return self._lost(shown) if step is None or self._looked_already(step) else self._if_it_holds(step)

    def _run_tests(self) -> Action:
        if self.turns and history.command(self.turns[-1]) == RUN_TESTS:  # and it did not end in a summary
            return self._bash("The tests do not start. Clean the tree.", RESET_ALL)
        return self._bash("Run the tests.", RUN_TESTS)

    def _close(self, shown: str | None) -> Action:
        if shown is None and self.changes:
            return self._bash("All pass. Check the diff.", SHOW_DIFF)
        return self._clean() or Action("Done.", "finish", {})

    def _lost(self, shown: str | None) -> Action:
        if shown is None:
            return self._bash("Nothing here is wrong. See what changed.", SHOW_DIFF)
        return self._clean() or self._bash("Start again from a clean tree.", RESET_ALL)

    def _clean(self) -> Action | None:
        """List the new files and remove them, where something may have left any."""
        if not self._may_have_left_files():
            return None
        listed = self._latest(lambda turn: history.command(turn) == SHOW_NEW_FILES)
        if listed is None:
            return self._bash("Are there new files?", SHOW_NEW_FILES)
        found = re.search(r"^\?\? ", self.turns[listed].observation, re.MULTILINE)
        return self._bash("Remove the new files.", CLEAN) if found else None

    def _looked_already(self, step: Action) -> bool:
        """Whether the step was taken since the last test run or failed edit; it would show the same again."""
        failed = self._latest(history.is_failed_edit)
        start = self.runs[-1] if failed is None else failed
        return any(turn.action.same_call(step) for turn in self.turns[start + 1 :])

    def _if_it_holds(self, step: Action) -> Action:
        """The step, or a reset where it was the last change, or was made `IN_VAIN` times since the last reset."""
        resets = [t for t in self.changes if history.command(self.turns[t]) == RESET_ALL]
        since = [self.turns[t].action for t in self.changes if not resets or t > resets[-1]]
        if sum(action.same_call(step) for action in since) < IN_VAIN and not (since and since[-1].same_call(step)):
            return step
        return self._bash("It does not hold. Start again.", RESET_ALL)

    # -- from a failure to the wrong line

    def _next_step(self, failure: Failure) -> Action | None:
        if failure.kind == "ERROR":
            return self._repair_import(failure)
        seen: set[str] = set()
        for name in self._reachable(function_under_test(failure.test), seen):
            step = self._inspect(name)
            if step:
                return step
        return None

    def _reachable(self, name: str, seen: set[str]) -> Iterator[str]:
        """The function and what it calls, depth first, in the order of the calls."""
        if name in seen or name not in self.gold.functions:
            return
        seen.add(name)
        yield name
        for callee in self.gold.calls[name]:
            yield from self._reachable(callee, seen)

    def _inspect(self, name: str) -> Action | None:
        """The next action that concerns one function, or None when its shown text is right."""
        short = _short(name)
        place = self._definition(short)
        if place is None:
            return self._find(short)
        path, line = place
        viewed = self._view_of(path, line, len(self.gold.functions[name]))
        if viewed is None:
            return self._view(f"Read {short}.", path, line)
        compare = self._compare(name, path, line)
        if self._latest(lambda turn: turn.action.same_call(compare)) is None:
            return compare
        t, numbered = viewed
        body = numbered[: len(self.gold.functions[name])]
        if [text for _, text in body] == list(self.gold.functions[name]):
            return None
        edits = [edit for edit in self.gold.edits if edit.function == name and history.same_path(path, edit.path)]
        return self._repair_shown(path, line, t, body, edits)

    def _repair_shown(
        self, path: str, line: int, viewed_at: int, body: Sequence[tuple[int, str]], edits: Sequence[Edit]
    ) -> Action:
        for edit in edits:
            for number, text in body:
                if text == edit.old:
                    return self._replace(path, line, viewed_at, number, edit)
        return self._bash("This was damaged. Restore it.", f"git checkout -- {history.relative(path)}")

    def _replace(self, path: str, line: int, viewed_at: int, number: int, edit: Edit) -> Action:
        failed = self._failed_edit_at(path)
        if failed is None:
            return self._str_replace("That line is wrong.", path, edit)
        if viewed_at < failed:
            return self._view("That failed. Look again.", path, line)
        return self._by_number(path, number, edit)

    def _repair_import(self, failure: Failure) -> Action | None:
        explain = EXPLAIN_IMPORT.format(module=failure.test.removesuffix(".py").replace("/", "."))
        shown = self._latest(lambda turn: history.command(turn) == explain)
        if shown is None:
            return self._bash("Why does it not load?", explain)
        found = _IMPORT_LINE.search(self.turns[shown].observation)
        edits = [edit for edit in self.gold.edits if found and (edit.path, edit.old) == (found[1], found[3])]
        if not edits:
            return None
        if self._definition(found[4]) is None:
            return self._find(found[4])
        path, number = f"/testbed/{found[1]}", int(found[2])
        failed = self._failed_edit_at(path)
        if failed is None:
            return self._str_replace(f"Line {number} is wrong.", path, edits[0])
        if shown < failed:
            return self._bash("That failed. Look again.", explain)
        return self._by_number(path, number, edits[0])

    # -- what the history has shown since the last test run

    def _since_run(self) -> Iterator[tuple[int, Turn]]:
        start = self.runs[-1] + 1
        yield from enumerate(self.turns[start:], start)

    def _latest(self, wanted: Callable[[Turn], bool]) -> int | None:
        """The last turn since the last test run for which `wanted` holds."""
        return next((t for t, turn in reversed(list(self._since_run())) if wanted(turn)), None)

    def _definition(self, short: str) -> tuple[str, int] | None:
        pattern = re.compile(rf"^(/testbed/[^:\n]+):(\d+):\s*def {short}\(", re.MULTILINE)
        for _, turn in self._since_run():
            for path, line in pattern.findall(turn.observation):
                if history.relative(path) in self.gold.paths:
                    return path, int(line)
        return None

    def _view_of(self, path: str, line: int, length: int) -> tuple[int, list[tuple[int, str]]] | None:
        """Turn and (number, text) rows from `line` on of the latest view of `path` that shows the whole function."""
        for t, turn in reversed(list(self._since_run())):
            if not history.shows(turn, path):
                continue
            rows = [row for row in history.numbered(turn.observation) if row[0] >= line]
            asked = turn.action.arguments.get("view_range", [1, -1])[-1]
            if rows and rows[0][0] == line and (len(rows) >= length or asked == -1 or asked >= line + WINDOW):
                return t, rows
        return None

    def _failed_edit_at(self, path: str) -> int | None:
        """The last turn since the test run at which an edit of `path` failed."""
        return self._latest(
            lambda turn: history.is_failed_edit(turn) and history.same_path(turn.action.arguments["path"], path)
        )

    def _shown_diff(self) -> str | None:
        """The latest diff shown since the last test run (nothing has changed since that run)."""
        at = self._latest(lambda turn: history.command(turn) == SHOW_DIFF)
        return None if at is None else self.turns[at].observation

    def _wrong_paths(self, diff: str) -> list[str]:
        """The files in a `git diff -U0` with a hunk that the gold patch does not have, in its order."""
        wanted = {(edit.path, edit.old, edit.new) for edit in self.gold.edits}
        wrong = {}
        for path, removed, added in history.hunks(diff):
            pairs = zip(removed, added, strict=False)
            if not removed or len(removed) != len(added) or any((path, old, new) not in wanted for old, new in pairs):
                wrong[path] = True
        return list(wrong)

    def _may_have_left_files(self) -> bool:
        """Whether a change since the last cleaning was of a kind that can make new files."""
        for t in reversed(self.changes):
            if history.command(self.turns[t]) in (CLEAN, RESET_ALL):
                return False
            if history.may_leave_files(self.turns[t]):
                return True
        return False

    def _damage_shown(self, failures: Sequence[Failure]) -> bool:
        """Whether tests show that a change since the run before was wrong (not a gold edit and no restoring)."""
        if len(self.runs) < 2:
            return False
        previous = history.failures(self.turns[self.runs[-2]].observation)
        suspicious = any(not self._is_good_change(self.turns[t]) for t in self.changes if t > self.runs[-2])
        worse = {f.test for f in failures} - {f.test for f in previous}
        same = bool(previous) and previous[0].test == failures[0].test
        return suspicious and (bool(worse) or same)

    def _is_good_change(self, turn: Turn) -> bool:
        command, arguments = history.command(turn), turn.action.arguments
        if command:
            return command.startswith("git checkout") or any(f"|{edit.new}|" in command for edit in self.gold.edits)
        return any(
            history.same_path(arguments["path"], edit.path) and arguments.get("new_str") == edit.new.strip()
            for edit in self.gold.edits
        )

    # -- actions

    def _bash(self, thought: str, command: str) -> Action:
        return Action(thought, "execute_bash", {"command": command})

    def _find(self, name: str) -> Action:
        return self._bash(f"Find {name}.", f"grep -rn 'def {name}' /testbed")

    def _compare(self, name: str, path: str, line: int) -> Action:
        """Compare the lines of a function below its docstring, which begins at `line`, with what they should be."""
        lines = self.gold.functions[name]
        head = 1 + sum(1 for _ in itertools.takewhile(_is_remark, lines[1:]))
        asked = {"first": line + head, "last": line + len(lines) - 1, "path": path, "lines": "\n".join(lines[head:])}
        return self._bash(f"Compare {_short(name)} with its docstring.", COMPARE.format_map(asked))

    def _by_number(self, path: str, number: int, edit: Edit) -> Action:
        return self._bash("Use the line number.", f'sed -i "{number}s|.*|{edit.new}|" {path}')

    def _view(self, thought: str, path: str, line: int) -> Action:
        arguments = {"command": "view", "path": path, "view_range": [line, line + WINDOW]}
        return Action(thought, "str_replace_editor", arguments)

    def _str_replace(self, thought: str, path: str, edit: Edit) -> Action:
        arguments = {"command": "str_replace", "path": path, "old_str": edit.old.strip(), "new_str": edit.new.strip()}
        return Action(thought, "str_replace_editor", arguments)


def _short(function: str) -> str:
    """The name of a function without that of its class."""
    return function.rpartition(".")[2]


def _is_remark(line: str) -> bool:
    return line.lstrip().startswith(("#", '"'))


def _is_test_run(turn: Turn) -> bool:
    return history.command(turn) == RUN_TESTS and history.ends_in_summary(turn)
