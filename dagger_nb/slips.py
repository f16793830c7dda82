"""The slip test's disturbance, fixed before any result: a plausible wrong edit in place of the student's action.

The edit changes one operator or number of a line that the agent has read and that was right, the way a
hasty engineer would. It is made through the ordinary tool, so the student finds it in its own history.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Sequence

from dagger_nb.records import Action, Task, Turn
from dagger_nb.tasks.gold import removed_lines

_SWAPS = {
    " + ": " - ", " - ": " + ", " * ": " + ", " >= ": " > ", " <= ": " < ", " > ": " >= ", " < ": " <= ",
    " == ": " != ",
}  # fmt: skip
_LINE = re.compile(r"^\d+ ([ \t]+\S.*)$", re.MULTILINE)
_NUMBER = re.compile(r"(?<=[ (\[:,])\d+(?=[\s)\],:]|$)")


def plausible_wrong_edit(task: Task, turns: Sequence[Turn], choice: float) -> Action | None:
    """A wrong edit of the latest view that offers one, chosen by `choice` in [0, 1); None where no view does."""
    buggy = removed_lines(task.patch)
    for turn in reversed(turns):
        edits = _edits(turn.observation, buggy) if _is_view(turn) else []
        if edits:
            line, wrong = edits[int(choice * len(edits))]
            arguments = {"path": turn.action.arguments["path"], "old_str": line.strip(), "new_str": wrong.strip()}
            return Action("This line is wrong.", "str_replace_editor", {"command": "str_replace", **arguments})
    return None


def _is_view(turn: Turn) -> bool:
    return turn.action.arguments.get("command") == "view" and not turn.observation.startswith("ERROR")


def _edits(shown: str, buggy: Collection[str]) -> list[tuple[str, str]]:
    """(right line, wrong line) of every edit that the lines of a view offer, sorted."""
    lines = {line for line in _LINE.findall(shown) if line.strip() not in buggy and '"""' not in line}
    return sorted((line, wrong) for line in lines for wrong in _wrong(line))


def _wrong(line: str) -> Iterator[str]:
    for right, wrong in _SWAPS.items():
        if right in line:
            yield line.replace(right, wrong, 1)
    for match in _NUMBER.finditer(line):
        yield f"{line[: match.start()]}{int(match[0]) + 1}{line[match.end() :]}"
