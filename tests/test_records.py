"""Records: one line of JSON each, the same bytes for the same record, and nothing else is read back."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dagger_nb.errors import DataError
from dagger_nb.records import FORMAT, Action, Label, StopReason, Task, Trajectory, Turn, digest, from_json, to_json

ACTION = Action("Look.", "str_replace_editor", {"command": "view", "path": "a.py", "view_range": [1, 3]})
BROKEN = Action("", "", raw='<tool_call>{"näme', error="no <tool_call> in the reply")
TURNS = (
    Turn(0, "student", BROKEN, "ERROR: no\u2028line\r\n\x00", (1, 2), 3, 0.6, 0.25),
    Turn(1, "teacher", ACTION, "1 x", (), 0),
)
TRAJECTORY = Trajectory("a__b-1", 2, 3, "base", TURNS, StopReason.LOOP, "diff --git\n", 17, "detail")
LABEL = Label("a__b-1", 2, 3, "base", 0, "student", 0.6, "oracle-1", "0" * 16, ACTION, (5, 6), True)


@pytest.mark.parametrize("record", [TRAJECTORY, LABEL], ids=["trajectory", "label"])
def test_a_record_survives_json_and_its_bytes_are_stable(record):
    line = to_json(record)
    again = from_json(line, type(record))
    assert again == record
    assert to_json(again) == line
    assert "\n" not in line


def test_a_task_survives_json(train_tasks):
    for task in train_tasks:
        again = from_json(to_json(task), Task)
        assert again == task
        assert to_json(again) == to_json(task)


@given(text=st.text(), number=st.floats(0, 1), ids=st.lists(st.integers(0, 10**6)))
@settings(max_examples=60, deadline=None)
def test_any_text_and_number_survive_json(text, number, ids):
    turn = Turn(0, "student", Action(text, "execute_bash", {"command": text}), text, tuple(ids), 1, number, number)
    record = Trajectory(text, 0, 1, "base", (turn,), StopReason.FINISH, text, 1)
    assert from_json(to_json(record), Trajectory) == record


def test_the_order_of_arguments_does_not_change_the_bytes():
    swapped = Action("Look.", "str_replace_editor", dict(reversed(list(ACTION.arguments.items()))))
    first = Label(**{**{f: getattr(LABEL, f) for f in LABEL.__slots__}, "action": swapped})
    assert to_json(first) == to_json(LABEL)
    assert digest({"a": 1, "b": 2}) == digest({"b": 2, "a": 1}) != digest({"a": 1, "b": 3})


def changed(**fields: object) -> str:
    return json.dumps(json.loads(to_json(TRAJECTORY)) | fields)


def without(name: str) -> str:
    return json.dumps({key: value for key, value in json.loads(to_json(TRAJECTORY)).items() if key != name})


@pytest.mark.parametrize(
    "line",
    [
        "",
        "null",
        "[]",
        "7",
        '"Trajectory"',
        "{}",
        to_json(TRAJECTORY)[:-1],
        to_json(TRAJECTORY)[: len(to_json(TRAJECTORY)) // 2],
        to_json(LABEL),
        changed(format=FORMAT + 1),
        changed(type="Task"),
        changed(stop="bored"),
        changed(turns=[{}]),
        changed(turns=7),
        changed(surprise=1),
        *(without(name) for name in ("type", "format", "turns", "stop", "patch", "instance_id")),
    ],
)
def test_a_torn_foreign_or_other_line_is_a_data_error(line):
    with pytest.raises(DataError, match="Trajectory"):
        from_json(line, Trajectory)


def test_equal_calls_are_told_from_equal_thoughts():
    assert ACTION.same_call(Action("Other words.", ACTION.tool, dict(ACTION.arguments)))
    assert not ACTION.same_call(Action("Look.", ACTION.tool, {**ACTION.arguments, "path": "b.py"}))
    assert not BROKEN.same_call(BROKEN)
    assert BROKEN.malformed and not ACTION.malformed


def test_the_instance_has_the_fields_of_swebench_and_no_others(train_tasks):
    instance = train_tasks[0].to_instance()
    assert "files" not in instance and "split" not in instance
    assert isinstance(instance["FAIL_TO_PASS"], list) and json.dumps(instance)
