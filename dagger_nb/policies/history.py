"""What the turns of a history have shown, one at a time: readings for a teacher that must not look anywhere else."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from dagger_nb.records import Turn

# `teacher.COMPARE` as it was called: the number of the first line, the path, and the lines that should stand there
COMPARISON = re.compile(r"diff <\(sed -n (\d+),\d+p ([\w./-]+)\) - <<'EOF'\n((?:(?!EOF\n).*\n)*)EOF")
_READ_ONLY = re.compile(
    r"(grep|cat|ls|head|tail|wc|pwd|echo|git (diff|status|log|show)|python -m pytest)\b[^<>|;&`$\n]*"
    r"|python -c 'import [\w.]+' 2>&1 \| tail -3"
    rf"|{COMPARISON.pattern}"
)
_LEAVES_NO_FILE = re.compile(r'git checkout [^<>|;&`$\n]*|sed -i "\d+s\|[^|"]*\|[^|"]*\|" \S+')
CUT = re.compile(r"^\.\.\. \d+ characters cut \.\.\.$", re.MULTILINE)
_FAILURE = re.compile(r"^(FAILED|ERROR) ([^\s]+)", re.MULTILINE)
_SUMMARY = re.compile(r"^=*\s*\d+ (?:passed|failed|errors?)\b", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Failure:
    """One line of pytest's summary: FAILED and the test, or ERROR and the file that cannot be imported."""

    kind: str
    test: str


def command(turn: Turn) -> str:
    """The bash command of a turn; empty for another tool."""
    return str(turn.action.arguments.get("command", "")) if turn.action.tool == "execute_bash" else ""


def ends_in_summary(turn: Turn) -> bool:
    """Whether a test run came to its end."""
    return bool(_SUMMARY.search(turn.observation))


def failed_call(turn: Turn) -> bool:
    """Whether the scaffold refused the call or the tool failed: its observation starts with ERROR."""
    return turn.observation.startswith("ERROR")


def _is_edit(turn: Turn) -> bool:
    return turn.action.tool == "str_replace_editor" and turn.action.arguments["command"] != "view"


def is_failed_edit(turn: Turn) -> bool:
    """Whether an edit was refused or failed."""
    return _is_edit(turn) and failed_call(turn)


def shows(turn: Turn, path: str) -> bool:
    """Whether a turn is a view of the file that worked and was not cut."""
    arguments = turn.action.arguments
    asked = arguments.get("command") == "view" and same_path(arguments["path"], path)
    return asked and not failed_call(turn) and not CUT.search(turn.observation)


def may_change(turn: Turn) -> bool:
    """Whether a turn may have changed the tree, judged by the command and its observation alone."""
    if _is_edit(turn):
        return not failed_call(turn)
    return bool(command(turn)) and not _READ_ONLY.fullmatch(command(turn))


def may_leave_files(turn: Turn) -> bool:
    """Whether a turn that may have changed the tree is of a kind that can make new files."""
    made = turn.action.arguments["command"] == "create"
    return made or bool(command(turn)) and not _LEAVES_NO_FILE.fullmatch(command(turn))


def failures(observation: str) -> list[Failure]:
    """The lines of pytest's summary that name a failure or an error, in its order."""
    return [Failure(kind, test) for kind, test in _FAILURE.findall(observation)]


def numbered(observation: str) -> list[tuple[int, str]]:
    """(number, text) of each line of a view."""
    return [(int(m[1]), m[2]) for m in re.finditer(r"^(\d+) ?(.*)$", observation, re.MULTILINE)]


def hunks(diff: str) -> Iterator[tuple[str, list[str], list[str]]]:
    """(path, removed lines, added lines) of each hunk of a `git diff -U0`; of a cut one, those before the cut.

    A change of a file's mode or of bytes that are no text counts as a hunk without lines.
    """
    whole = diff if not CUT.search(diff) else CUT.split(diff)[0].rpartition("\n@@")[0]
    for part in re.split(r"^diff --git ", whole, flags=re.MULTILINE)[1:]:
        path = re.match(r"a/(\S+)", part)[1]
        head, *parts = re.split(r"^@@", part, flags=re.MULTILINE)
        if not parts or "\nnew mode " in head:
            yield path, [], []
        for hunk in parts:
            lines = hunk.split("\n")[1:]
            yield path, [x[1:] for x in lines if x[:1] == "-"], [x[1:] for x in lines if x[:1] == "+"]


def relative(path: str) -> str:
    """A path relative to /testbed."""
    return path.removeprefix("/testbed/")


def same_path(a: str, b: str) -> bool:
    """Whether two paths, each relative to /testbed or below it, name one file."""
    return relative(a) == relative(b)
