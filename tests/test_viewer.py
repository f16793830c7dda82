"""The viewer shows everything, and what was written in an episode can neither run nor hide."""

from __future__ import annotations

import dataclasses
import unicodedata
from html.parser import HTMLParser

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dagger_nb import viewer
from dagger_nb.errors import DataError
from dagger_nb.records import Action, Label, StopReason, Trajectory, Turn

HOSTILE = "</pre><script>alert('x')</script> & \"q\" <img src=x onerror=y>"
BASH = Action("Run the tests.", "execute_bash", {"command": "python -m pytest"})
EDIT = Action(
    "Mend it.", "str_replace_editor", {"command": "str_replace", "path": "a.py", "old_str": "x - 1", "new_str": "x + 1"}
)
BROKEN = Action("", "", raw="I give <up>", error="no <tool_call> in the reply")


def turn(index: int, action: Action, observation: str = "ok", actor: str = "student", **more: float) -> Turn:
    return Turn(index, actor, action, observation, (1, 2, 3), 4, **more)


def episode(*turns: Turn, **more: str) -> Trajectory:
    return Trajectory("toy__toy-1", 0, 2, "base", turns, StopReason.FINISH, **{"patch": "", "prompt_tokens": 9} | more)


def label(index: int, action: Action, *, lesson: bool, **more: str | int) -> Label:
    lineage = {"instance_id": "toy__toy-1", "attempt": 0, "round": 2, "policy": "base"} | more
    return Label(
        **lineage, turn=index, actor="student", beta=0.6, teacher="oracle", template="t", action=action, token_ids=(1,),
        lesson=lesson,
    )  # fmt: skip


class Reader(HTMLParser):
    """Checks that tags are balanced while it collects them, their attributes and the text between them."""

    def __init__(self, page: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags, self.attributes, self.words, self.open = set(), set(), [], []
        self.feed(page)
        self.close()
        assert not self.open, f"never closed: {self.open}"

    def handle_starttag(self, tag: str, attrs: list) -> None:
        self.tags.add(tag)
        self.attributes |= {name for name, _ in attrs}
        self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words.append(data)


def assert_harmless(page: str) -> Reader:
    reader = Reader(page)
    assert reader.tags <= {"div", "p", "b", "i", "small", "pre", "details", "summary"}
    assert reader.attributes <= {"style"}
    return reader


def test_text_tells_the_whole_story_in_order() -> None:
    path = episode(
        turn(0, BASH, "1 failed", "teacher", beta=0.6, draw=0.25),
        turn(1, EDIT, "File edited."),
        turn(2, BROKEN, "ERROR: no <tool_call> in the reply"),
        turn(3, Action("Done.", "finish"), ""),
        patch="--- a/a.py\n+++ b/a.py",
    )
    shown = viewer.text(path, [label(1, EDIT, lesson=False), label(2, BASH, lesson=True)])
    place = 0
    for part in (
        "toy__toy-1 · attempt 0, round 2 · student base · 4 turns, 1 by the teacher · ended by finish",
        "turn 0 · teacher · beta 0.6, draw 0.25 · 3 tokens said, 4 seen",
        "  Run the tests.\n  $ python -m pytest\n  | 1 failed",
        "turn 1 · student · 3 tokens said",
        "  Mend it.\n  str_replace a.py\n  - x - 1\n  + x + 1\n  > oracle: the same\n  | File edited.",
        "  malformed (no <tool_call> in the reply)\n  I give <up>",
        "  > oracle instead: Run the tests.\n  > $ python -m pytest\n  | ERROR",
        "turn 3",
        "  Done.\n  finish",
        "patch\n  --- a/a.py\n  +++ b/a.py",
    ):
        place = shown.find(part, place)
        assert place >= 0, f"missing, or out of order: {part!r}"


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        ({"command": "view", "path": "a.py", "view_range": [3, 9]}, "view a.py view_range=[3, 9]"),
        ({"command": "insert", "path": "a.py", "insert_line": 2, "new_str": "pass"}, "insert a.py insert_line=2"),
        ({"command": "create", "path": "b.py", "file_text": "x = 1\ny = 2"}, "create b.py"),
    ],
)
def test_every_editor_command_is_readable(arguments: dict, line: str) -> None:
    shown = viewer.text(episode(turn(0, Action("", "str_replace_editor", arguments)))).splitlines()
    assert f"  {line}" in shown
    for name in ("new_str", "file_text"):
        assert all(f"  + {part}" in shown for part in str(arguments.get(name, "")).splitlines())


def test_html_shows_what_text_shows_and_folds_long_observations() -> None:
    long = "\n".join(f"line {n}" for n in range(viewer.FOLD + 1))
    path = episode(turn(0, BASH, long), turn(1, EDIT, "File edited."), patch="--- a/a.py")
    reader = assert_harmless(viewer.html(path, [label(1, BASH, lesson=True)]))
    words = "".join(reader.words)
    for part in ("toy__toy-1", long, "$ python -m pytest", "- x - 1", "File edited.", "oracle instead", "--- a/a.py"):
        assert part in words
    assert viewer.html(path).count("<details>") == 2  # the long observation and the patch
    assert viewer.html(path, fold=100).count("<details>") == 1


def test_hostile_text_is_shown_and_never_obeyed() -> None:
    action = Action(HOSTILE, "execute_bash", {"command": HOSTILE})
    told = (turn(0, action, HOSTILE, HOSTILE), turn(1, Action("", "", raw=HOSTILE, error=HOSTILE)))
    path = dataclasses.replace(episode(*told, patch=HOSTILE), instance_id=HOSTILE, policy=HOSTILE, detail=HOSTILE)
    lesson = dataclasses.replace(label(0, action, lesson=True), instance_id=HOSTILE, policy=HOSTILE, teacher=HOSTILE)
    words = "".join(assert_harmless(viewer.html(path, [lesson])).words)
    assert words.count(HOSTILE) >= 10


@settings(max_examples=60, deadline=None)
@given(body=st.text(alphabet=st.characters(exclude_categories=()), max_size=60), thought=st.text(max_size=20))
def test_no_text_breaks_the_page_or_commands_the_terminal(body: str, thought: str) -> None:
    path = episode(turn(0, Action(thought, "execute_bash", {"command": body}), body), patch=body)
    reader = assert_harmless(viewer.html(path))
    assert "".join(reader.words).count(viewer.spelt_out(body)) >= 2
    shown = viewer.text(path)
    shown.encode("utf-8")
    commanding = {"Cc", "Cf", "Cs", "Zl", "Zp"}
    assert not [c for c in shown if c not in "\t\n" and unicodedata.category(c) in commanding]


def test_labels_of_other_episodes_are_left_aside_and_lost_ones_refused() -> None:
    path = episode(turn(0, BASH))
    others = [label(0, EDIT, lesson=True, attempt=1), label(7, EDIT, lesson=True, round=1)]
    assert viewer.text(path, others) == viewer.text(path)
    with pytest.raises(DataError, match="turn 7"):
        viewer.text(path, [label(7, EDIT, lesson=True)])
    with pytest.raises(DataError, match="turn 7"):
        viewer.html(path, [label(7, EDIT, lesson=True)])


def test_an_infrastructure_failure_says_what_failed() -> None:
    path = dataclasses.replace(episode(), stop=StopReason.INFRASTRUCTURE, detail="the sandbox died")
    assert "ended by infrastructure · the sandbox died" in viewer.text(path)
    assert "the sandbox died" in viewer.html(path)
