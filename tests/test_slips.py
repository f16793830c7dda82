"""The slip test's disturbance: plausible, wrong, in a line that was read and was right, and fixed in advance."""

from __future__ import annotations

import pytest

from dagger_nb import scaffold
from dagger_nb.base import reenact
from dagger_nb.records import Action, Turn
from dagger_nb.slips import plausible_wrong_edit
from dagger_nb.tasks import generate
from dagger_nb.tasks.gold import gold_edits


def states(index: int):
    """(task, history, sandbox at that point) of the teacher's episode, turn by turn."""
    task = generate("test", index)
    sandbox, turns = reenact.Reenactment(task), []
    for turn in reenact.episode(task):
        yield task, list(turns), sandbox
        scaffold.execute(turn.action, sandbox)
        turns.append(turn)


def viewed(turns: list[Turn]) -> str:
    return "\n".join(turn.observation for turn in turns if turn.action.arguments.get("command") == "view")


@pytest.mark.parametrize("index", [1, 3, 4, 5])  # in 0 and 2 every line that could slip is a bug
def test_a_slip_edits_a_right_line_that_was_just_read_into_a_wrong_one(index):
    slips = 0
    for task, turns, sandbox in states(index):
        for choice in (0.0, 0.37, 0.99999):
            slip = plausible_wrong_edit(task, turns, choice)
            assert slip == plausible_wrong_edit(task, tuple(turns), choice)
            if slip is None:
                continue
            slips += 1
            old, new = slip.arguments["old_str"], slip.arguments["new_str"]
            assert old in viewed(turns) and old != new
            assert old not in {change.old.strip() for change in gold_edits(task)}
            assert new not in {change.new.strip() for change in gold_edits(task)}
            path = slip.arguments["path"].removeprefix("/testbed/")
            twin = reenact.Reenactment(task)
            twin.files = dict(sandbox.files)
            if scaffold.execute(slip, twin) == "File edited.":
                lines = zip(sandbox.files[path].split("\n"), twin.files[path].split("\n"), strict=True)
                assert [(a.strip(), b.strip()) for a, b in lines if a != b] == [(old, new)]
    assert slips


def test_most_slips_are_edits_that_succeed():
    done = []
    for index in range(4):
        for task, turns, sandbox in states(index):
            slip = plausible_wrong_edit(task, turns, 0.5)
            if slip:
                twin = reenact.Reenactment(task)
                twin.files = dict(sandbox.files)
                done.append(scaffold.execute(slip, twin) == "File edited.")
    assert sum(done) / len(done) > 0.8


def test_nothing_read_nothing_slips():
    task = generate("test", 0)
    assert plausible_wrong_edit(task, [], 0.5) is None
    arguments = {"command": "view", "path": "nowhere"}
    failed = Turn(0, "student", Action("", "str_replace_editor", arguments), "ERROR: no such file nowhere", (), 0)
    assert plausible_wrong_edit(task, [failed], 0.5) is None


def test_choices_reach_different_edits():
    found = set()
    for task, turns, _ in states(3):
        for choice in (0.0, 0.3, 0.6, 0.9):
            slip = plausible_wrong_edit(task, turns, choice)
            found |= {slip.arguments["new_str"]} if slip else set()
    assert len(found) > 2
