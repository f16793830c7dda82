"""What a scripted teacher needs of a task: the gold edits, who calls whom, and where a function stands."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from dagger_nb.errors import DataError
from dagger_nb.records import Task

HUNK = re.compile(r"@@ -(\d+)(?:,\d+)? \+\d+(?:,\d+)? @@")
HIDDEN = "_hidden.py"


@dataclass(frozen=True, slots=True)
class Edit:
    """One line of the gold patch. `function` is 'name' or 'Class.method', and '' for an import line."""

    path: str
    line: int  # 1-based
    function: str
    old: str  # whole lines, with indentation
    new: str


def test_name(function: str) -> str:
    """The test of a function: `total_prices` -> `test_total_prices`, `Box.total` -> `test_Box_total`."""
    return "test_" + function.replace(".", "_")


def function_under_test(test: str) -> str:
    """The inverse of `test_name`; takes a test's name or its whole id.

    A class name begins with a capital, which no function name does.

    >>> function_under_test("tests/test_cart.py::test_Box_total")
    'Box.total'
    """
    name = test.rpartition("::")[2].removeprefix("test_")
    return name.replace("_", ".", 1) if name[:1].isupper() else name


def visible(path: str) -> bool:
    """Whether a test file (or the file of a test id) is in the repository that the agent sees."""
    return not path.partition("::")[0].endswith(HIDDEN)


def gold_edits(task: Task) -> tuple[Edit, ...]:
    """The edits of `task.patch`, in file and line order.

    Raises:
        DataError: the patch does anything but replace single lines of `task.files`.
    """
    edits = []
    for path, line, old, new in _replacements(task.patch):
        lines = task.files.get(path, "").split("\n")
        if not old or lines[line - 1 : line] != [old]:
            raise DataError(f"{task.instance_id}: the gold patch does not fit {path} at line {line}")
        edits.append(Edit(path, line, _enclosing(task.files[path], line), old, new))
    return tuple(edits)


def removed_lines(patch: str) -> frozenset[str]:
    """The lines that a patch removes or replaces, without indentation; of any patch, also a real repository's.

    >>> removed_lines("--- a/x.py\\n+++ b/x.py\\n@@ -1 +1 @@\\n-    return 1\\n+    return 2\\n")
    frozenset({'return 1'})
    """
    lines = patch.split("\n")
    return frozenset(line[1:].strip() for line in lines if line.startswith("-") and not line.startswith("--- "))


def _replacements(patch: str) -> Iterator[tuple[str, int, str, str]]:
    """(path, line, old, new) of each replaced line; removed and added lines of a hunk pair up in order."""
    path, line, removed = "", 0, []
    for text in patch.split("\n"):
        if text.startswith("+++ "):
            path = text[6:]
        elif hunk := HUNK.match(text):
            line, removed = int(hunk[1]), []
        elif text.startswith("-") and not text.startswith("--- "):
            removed.append((line, text[1:]))
            line += 1
        elif text.startswith("+"):
            where, old = removed.pop(0) if removed else (0, "")
            yield path, where, old, text[1:]
        elif text.startswith(" "):
            line += 1


def functions(source: str) -> dict[str, tuple[int, int]]:
    """(first, last) line of each function and method of a file; methods as 'Class.method'."""
    found = {}
    for node in ast.parse(source).body:
        inside = node.body if isinstance(node, ast.ClassDef) else [node]
        prefix = f"{node.name}." if isinstance(node, ast.ClassDef) else ""
        found |= {prefix + f.name: (f.lineno, f.end_lineno) for f in inside if isinstance(f, ast.FunctionDef)}
    return found


def _enclosing(source: str, line: int) -> str:
    spans = functions(source).items()
    return next((name for name, (first, last) in spans if first <= line <= last), "")


def locate(files: Mapping[str, str], function: str) -> tuple[str, int, int]:
    """(path, first line, last line) of a function outside the tests.

    Raises:
        DataError: no file defines it.
    """
    for path in _sources(files):
        spans = functions(files[path])
        if function in spans:
            return path, *spans[function]
    raise DataError(f"no file of the repository defines {function!r}; there are: {', '.join(_sources(files))}")


def call_graph(files: Mapping[str, str]) -> dict[str, tuple[str, ...]]:
    """Each function and method -> the repository's functions that it calls, in order of appearance.

    `Box(x).total()` is a call of `Box.total`. Names are unique in a repository, so a wrong import
    does not hide a callee.
    """
    trees = {path: ast.parse(files[path]) for path in _sources(files)}
    known = {name for path in trees for name in functions(files[path])}
    graph: dict[str, tuple[str, ...]] = {}
    for tree in trees.values():
        for node in tree.body:
            inside = node.body if isinstance(node, ast.ClassDef) else [node]
            prefix = f"{node.name}." if isinstance(node, ast.ClassDef) else ""
            graph |= {prefix + f.name: _callees(f, known) for f in inside if isinstance(f, ast.FunctionDef)}
    return graph


def _sources(files: Mapping[str, str]) -> list[str]:
    return sorted(path for path in files if path.endswith(".py") and not path.startswith("tests/"))


def _callees(function: ast.FunctionDef, known: set[str]) -> tuple[str, ...]:
    calls = [node for node in ast.walk(function) if isinstance(node, ast.Call)]
    calls.sort(key=lambda node: (node.lineno, node.col_offset))
    names = dict.fromkeys(_callee(call.func) for call in calls)
    return tuple(name for name in names if name in known)


def _callee(func: ast.expr) -> str:
    if isinstance(func, ast.Name):
        return func.id
    if isinstance(func, ast.Attribute) and isinstance(func.value, ast.Call):
        return f"{_callee(func.value.func)}.{func.attr}"
    return ""
