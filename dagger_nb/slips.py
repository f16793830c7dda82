"""The slip test's disturbance, fixed before any result: a plausible wrong edit in place of the student's action.

The edit changes one operator or number of a line that the agent has just read and that was right, the way a
hasty engineer would. It is made through the ordinary tool, so the student finds it in its own history.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from dagger_nb.records import Action, Task, Turn
from dagger_nb.tasks.gold import gold_edits

_SWAPS = {" + ": " - ", " - ": " + ", " * ": " + ", " >= ": " > ", " <= ": " < ", " > ": " >= ", " < ": " <= ", " == ": " != "}
_LINE = re.compile(r"^\d+ (\s+\S.*)$", re.MULTILINE)
_NUMBER = re.compile(r"(?<=[ (\[:,])\d+(?=[\s)\],:]|$)")


def plausible_wrong_edit(task: Task, turns: Sequence[Turn], choice: float) -> Action | None:
    """A wrong edit of the file that was read last, chosen by `choice` in [0, 1); None where nothing was read."""
    viewed = [turn for turn in turns if turn.action.arguments.get("command") == "view"]
    if not viewed or viewed[-1].observation.startswith("ERROR"):
        return None
    buggy = {edit.old.strip() for edit in gold_edits(task)}
    edits = sorted(
        (line, wrong)
        for line in set(_LINE.findall(viewed[-1].observation))
        if line.strip() not in buggy and '"""' not in line
        for wrong in _wrong(line)
    )
    if not edits:
        return None
    line, wrong = edits[int(choice * len(edits))]
    arguments = {"path": viewed[-1].action.arguments["path"], "old_str": line.strip(), "new_str": wrong.strip()}
    return Action("This line is wrong.", "str_replace_editor", {"command": "str_replace", **arguments})


def _wrong(line: str) -> Iterator[str]:
    for right, wrong in _SWAPS.items():
        if right in line:
            yield line.replace(right, wrong, 1)
    for match in _NUMBER.finditer(line):
        yield f"{line[: match.start()]}{int(match[0]) + 1}{line[match.end() :]}"
