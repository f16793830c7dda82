"""The three tools: what each observation says, and what becomes of a call that is wrong."""

from __future__ import annotations

import json

import pytest

from dagger_nb import config, paths, scaffold
from dagger_nb.base import reenact
from dagger_nb.records import Action, StopReason, Trajectory, Turn, from_json, to_json
from dagger_nb.sandboxes.protocol import CommandResult
from dagger_nb.students import renderer_of
from dagger_nb.tasks import SPLITS, generate


class Files:
    """A sandbox of a few files, whose command results are given."""

    def __init__(self, files: dict[str, str], result: CommandResult = CommandResult("", 0)) -> None:  # noqa: B008
        self.files, self.result = dict(files), result

    def run(self, command: str, timeout_s: float | None = None) -> CommandResult:
        return self.result

    def read(self, path: str) -> str:
        if path not in self.files:
            raise FileNotFoundError(path)
        return self.files[path]

    def write(self, path: str, text: str) -> None:
        self.files[path] = text


def edit(command: str, **arguments: object) -> Action:
    return Action("", "str_replace_editor", {"command": command, "path": "a.py", **arguments})


def bash(output: str, code: int = 0, timed_out: bool = False) -> str:
    result = CommandResult(output, code, timed_out)
    return scaffold.execute(Action("", "execute_bash", {"command": "x"}), Files({}, result))


# --- observations --------------------------------------------------------------------------------------------


def test_a_commands_observation_tells_output_exit_code_and_timeout():
    assert bash("hello\n") == "hello"
    assert bash("") == "(no output)"
    assert bash("oh\n", 2) == "oh\n[exit 2]"
    assert bash("", 1) == "[exit 1]"
    assert bash("half\n", 124, True) == "half\nERROR: timed out"
    assert bash("", 124, True) == "ERROR: timed out"


@pytest.mark.parametrize(
    ("bounds", "seen"),
    [
        (None, "1 one\n2 two\n3 three"),
        ([2, 3], "2 two\n3 three"),
        ([2, -1], "2 two\n3 three"),
        ([3, 99], "3 three"),
        ([3, 2], "ERROR: view_range [3, 2] is outside the 3 lines"),
        ([0, 2], "ERROR: view_range [0, 2] is outside the 3 lines"),
        ([4, 9], "ERROR: view_range [4, 9] is outside the 3 lines"),
        ([1], "ERROR: view_range must be [first, last]"),
        ([], "ERROR: view_range must be [first, last]"),
        (["1", "2"], "ERROR: view_range must be [first, last]"),
        ([True, 2], "ERROR: view_range must be [first, last]"),
        ([1.0, 2.0], "ERROR: view_range must be [first, last]"),
    ],
)
def test_view(bounds, seen):
    arguments = {} if bounds is None else {"view_range": bounds}
    assert scaffold.execute(edit("view", **arguments), Files({"a.py": "one\ntwo\nthree\n"})) == seen


def test_view_of_an_empty_file():
    assert scaffold.execute(edit("view"), Files({"a.py": ""})) == "(empty file)"


@pytest.mark.parametrize(
    ("action", "seen", "after"),
    [
        (edit("create", file_text="x\n"), "File written.", "x\n"),
        (edit("create"), "ERROR: create needs file_text", None),
        (edit("str_replace", old_str="b", new_str="c"), "File edited.", "a\nc\na\n"),
        (edit("str_replace", old_str="b", new_str=""), "File edited.", "a\n\na\n"),
        (edit("str_replace", old_str="z", new_str="c"), "ERROR: old_str not found", None),
        (edit("str_replace", old_str="", new_str="c"), "ERROR: old_str not found", None),
        (edit("str_replace", old_str="a", new_str="c"), "ERROR: old_str found 2 times", None),
        (edit("str_replace", old_str="b", new_str="b"), "ERROR: old_str and new_str are equal", None),
        (edit("str_replace", old_str="b"), "ERROR: str_replace needs new_str", None),
        (edit("str_replace", new_str="b"), "ERROR: str_replace needs old_str", None),
        (edit("insert", insert_line=0, new_str="n"), "File edited.", "n\na\nb\na\n"),
        (edit("insert", insert_line=3, new_str="n\n"), "File edited.", "a\nb\na\nn\n"),
        (edit("insert", insert_line=4, new_str="n"), "ERROR: insert_line 4 is outside 0..3", None),
        (edit("insert", insert_line=-1, new_str="n"), "ERROR: insert_line -1 is outside 0..3", None),
        (edit("insert", new_str="n"), "ERROR: insert needs insert_line", None),
        (edit("insert", insert_line=1), "ERROR: insert needs new_str", None),
        (edit("undo"), "ERROR: unknown command 'undo'; use view, create, str_replace, insert", None),
    ],
)
def test_edits(action, seen, after):
    files = Files({"a.py": "a\nb\na\n"})
    assert scaffold.execute(action, files) == seen
    assert files.files["a.py"] == (after or "a\nb\na\n")


def test_insert_after_a_last_line_without_line_end():
    files = Files({"a.py": "a\nb"})
    scaffold.execute(edit("insert", insert_line=2, new_str="c"), files)
    assert files.files["a.py"] == "a\nb\nc\n"


def test_lines_are_counted_as_grep_and_sed_count_them():
    assert scaffold.execute(edit("view", view_range=[2, 2]), Files({"a.py": "a\x0cb\u2028\nc\n"})) == "2 c"


@pytest.mark.parametrize("command", ["view", "create", "str_replace", "insert"])
@pytest.mark.parametrize(
    "path", ["/etc/passwd", "../x", "/testbed/../etc/passwd", "tests", "/testbed", "no.py/x", ".git/x"]
)
def test_a_path_that_is_not_an_ordinary_file_gives_an_error_and_changes_nothing(command, path, train_tasks, sandboxes):
    sandbox = sandboxes.open(train_tasks[0])
    arguments = {"command": command, "path": path, "old_str": "a", "new_str": "b", "file_text": "x", "insert_line": 0}
    seen = scaffold.execute(Action("", "str_replace_editor", arguments), sandbox)
    if command == "create" and path == "no.py/x":
        assert seen == "File written."
    else:
        assert seen.startswith("ERROR: ") and path in seen and sandbox.diff() == ""


def test_long_observations_lose_their_middle_and_say_how_much():
    text = "a" * 1500 + "b" * 1500
    seen = bash(text)
    assert seen == f"{'a' * 1000}\n... 1000 characters cut ...\n{'b' * 1000}"
    assert bash("c" * 2000) == "c" * 2000
    assert bash(text, 1).endswith("b\n[exit 1]")
    view = scaffold.execute(edit("view"), Files({"a.py": text}))
    assert view.startswith("1 aaa") and "1002 characters cut" in view
    assert "1002 characters cut" not in scaffold.execute(edit("view"), Files({"a.py": text}), chars=3002)
    run = Action("", "execute_bash", {"command": "x"})
    longer = scaffold.execute(run, Files({}, CommandResult(text, 0, False)), chars=2500)
    assert "... 500 characters cut ..." in longer


# --- malformed calls -----------------------------------------------------------------------------------------


def call(**fields: object) -> str:
    return f"Well.\n<tool_call>\n{json.dumps(fields)}\n</tool_call>"


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("", "no <tool_call> in the reply"),
        ("<tool_call>{}", "no <tool_call> in the reply"),
        (call(name="finish") * 2, "more than one <tool_call> in the reply"),
        ("<tool_call>\n{'name': 1}\n</tool_call>", "the tool call is not valid JSON"),
        ("<tool_call>[1]</tool_call>", "the tool call is not an object with name and arguments"),
        (call(name="finish", arguments=[]), "the tool call is not an object with name and arguments"),
        (call(), "unknown tool None; the tools are execute_bash, str_replace_editor, finish"),
        (call(name=["finish"]), "unknown tool ['finish']; the tools are execute_bash, str_replace_editor, finish"),
        (call(name="rm"), "unknown tool 'rm'; the tools are execute_bash, str_replace_editor, finish"),
        (call(name="execute_bash"), "execute_bash needs command"),
        (call(name="execute_bash", arguments={"command": 1}), "execute_bash: command must be of type str"),
        (call(name="execute_bash", arguments={"cmd": "ls"}), "execute_bash has no argument 'cmd'"),
        (call(name="str_replace_editor", arguments={"path": "a"}), "str_replace_editor needs command"),
        (call(name="str_replace_editor"), "str_replace_editor needs command, path"),
        (
            call(name="str_replace_editor", arguments={"command": "insert", "path": "a", "insert_line": True}),
            "str_replace_editor: insert_line must be of type int",
        ),
        (call(name="finish", arguments={"message": "hi"}), "finish has no argument 'message'"),
    ],
)
def test_a_malformed_call_is_kept_and_answered(text, error):
    action = scaffold.parse(text)
    assert action == Action("", "", {}, raw=text, error=error)
    assert action.malformed
    assert scaffold.execute(action, Files({})) == f"ERROR: {error}"
    assert scaffold.action_message(action) == {"role": "assistant", "content": text}


def test_any_reply_whatever_parses_to_something():
    for text in ("<tool_call>" * 3, "</tool_call><tool_call>", "<tool_call>NaN</tool_call>", "\x00\ud800", "[" * 5000):
        assert scaffold.parse(text).malformed
    assert scaffold.parse(f"<tool_call>{'[' * 100_000}</tool_call>").malformed
    half = scaffold.parse('<tool_call>{"name": "execute_bash", "arguments": {"command": "\\ud800"}}</tool_call>')
    assert half.error == "the tool call is not valid JSON"  # it could not be written to disk


def test_a_thought_and_its_call_are_told_apart():
    action = scaffold.parse("  Run it. \n" + call(name="execute_bash", arguments={"command": "ls </tool_x> | wc"}))
    assert action == Action("Run it. \nWell.", "execute_bash", {"command": "ls </tool_x> | wc"})
    assert scaffold.parse('<tool_call>{"name": "finish"}</tool_call>').tool == "finish"


def test_arguments_are_said_in_the_schemas_order_also_after_json():
    arguments = {"path": "a.py", "command": "str_replace", "new_str": "y", "old_str": "x"}
    turn = Turn(0, "student", Action("", "str_replace_editor", arguments), "File edited.", (), 0)
    kept = Trajectory("i", 0, 1, "base", (turn,), StopReason.TURNS, "", 1)
    for action in (turn.action, from_json(to_json(kept), Trajectory).turns[0].action):
        message = scaffold.action_message(action)
        said = message["tool_calls"][0]["function"]["arguments"]
        assert list(said) == ["command", "path", "old_str", "new_str"]


def test_schemas_and_parser_know_the_same_arguments():
    for tool in scaffold.TOOLS:
        function = tool["function"]
        assert list(function["parameters"]["properties"]) == list(scaffold._ARGUMENTS[function["name"]])


# --- loops ---------------------------------------------------------------------------------------------------


def turns(pattern: str) -> list[Turn]:
    """A letter a turn; the same letter is the same action and observation, '!' a malformed reply."""
    actions = {letter: Action("", "execute_bash", {"command": letter}) for letter in pattern}
    actions["!"] = Action("", "", raw="!", error="e")
    return [Turn(i, "student", actions[x], x, (), 0) for i, x in enumerate(pattern)]


@pytest.mark.parametrize(
    ("pattern", "looping"),
    [
        ("aaa", True),
        ("aa", False),
        ("baaa", True),
        ("aaab", False),
        ("ababab", True),
        ("babab", False),
        ("abcabcabc", True),
        ("abcabcab", False),
        ("abcdabcdabcd", False),
        ("!!!", True),
        ("x!!", False),
        ("", False),
    ],
)
def test_loops_of_one_to_three_turns_are_seen(pattern, looping):
    assert scaffold.is_loop(turns(pattern), 3) is looping


def test_the_same_action_with_another_observation_is_no_loop():
    again = [Turn(i, "student", Action("", "execute_bash", {"command": "a"}), str(i), (), 0) for i in range(5)]
    assert not scaffold.is_loop(again, 3)


# --- the budget ----------------------------------------------------------------------------------------------

PROMPT = 512  # tokens that system prompt, schemas and problem statement may take
EPISODE = 5120  # and with them the teacher's whole episode on any task of the hardest split
DETOURS = 2048  # that must be left in the context for wrong turns: fifteen views or test runs


def test_the_prompt_and_the_longest_teacher_episode_leave_room_for_detours():
    """The written token budget, for all `longer` tasks and the committed tokenizer."""
    episode, student = config.load("tiny").episode, config.load("tiny").student
    renderer = renderer_of(str(paths.checkpoint(student.path)))
    assert EPISODE + DETOURS <= episode.context
    for index in range(SPLITS["longer"].size):
        task = generate("longer", index)
        turns = reenact.episode(task)
        chat = renderer._ids(renderer._text(scaffold.messages_before(task, turns), speak=True))
        assert len(chat) <= EPISODE and len(turns) < episode.max_turns, task.instance_id
        assert len(renderer.prompt_ids(task)) <= PROMPT
        longest = max(len(renderer.action_text(turn.action)) for turn in turns)
        assert longest < episode.max_new_tokens * 4, task.instance_id
