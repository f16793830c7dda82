"""The scripted teacher: it solves every split, from any state, by what the history has shown."""

from __future__ import annotations

import copy
import random
import re
from collections.abc import Callable, Sequence
from dataclasses import replace

import pytest

from dagger_nb import scaffold
from dagger_nb.base import reenact
from dagger_nb.evaluation.grading import grade
from dagger_nb.policies import history, teacher
from dagger_nb.records import Action, Task, Turn, from_json, to_json
from dagger_nb.tasks import generate
from dagger_nb.tasks.gold import gold_edits

TEACHER_TURNS = 60  # that the teacher needs at most after a walk of JUNK_TURNS
JUNK_TURNS = 12
BREADTH = 30  # tasks of each split


def bash(command: str) -> Action:
    return Action("", "execute_bash", {"command": command})


def edit(command: str, path: str, **arguments: object) -> Action:
    return Action("", "str_replace_editor", {"command": command, "path": path, **arguments})


def act(action: Action, turns: list[Turn], sandbox, actor: str = "student") -> None:
    observation = scaffold.execute(action, sandbox)
    turns.append(Turn(len(turns), actor, action, observation, (), 0))


def finish_alone(task: Task, turns: list[Turn], sandbox, limit: int = TEACHER_TURNS) -> int:
    """Let the teacher act until it submits; returns how many turns it took."""
    for count in range(1, limit + 1):
        act(teacher.label(task, turns), turns, sandbox, "teacher")
        if turns[-1].action.tool == "finish":
            return count
    last = [dict(turn.action.arguments) for turn in turns[-12:]]
    raise AssertionError(f"{task.instance_id}: no end within {limit} turns; the last: {last}")


def gold_diff(task: Task, factory) -> str:
    """The patch of the repaired tree and nothing else, as the sandbox writes it."""
    sandbox = factory.open(task)
    for change in gold_edits(task):
        lines = sandbox.read(change.path).split("\n")
        lines[change.line - 1] = change.new
        sandbox.write(change.path, "\n".join(lines))
    return sandbox.diff()


# --- alone ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("split", ["train", "dev", "test", "longer", "unseen"])
def test_it_solves_every_task_of_a_split_without_a_detour(split):
    for index in range(BREADTH):
        task = generate(split, index)
        turns = reenact.episode(task)
        edits = [turn.action for turn in turns if turn.action.arguments.get("command") == "str_replace"]
        assert sorted(action.arguments["new_str"] for action in edits) == sorted(
            change.new.strip() for change in gold_edits(task)
        ), task.instance_id
        assert turns[-1].action.tool == "finish" and "failed" not in turns[-3].observation


@pytest.mark.parametrize(("split", "index"), [("train", 1), ("unseen", 3), ("longer", 2)])
def test_its_patch_is_graded_as_resolved(split, index, sandboxes):
    task, turns = generate(split, index), []
    sandbox = sandboxes.open(task)
    finish_alone(task, turns, sandbox)
    assert sandbox.diff() == gold_diff(task, sandboxes)
    assert grade(task, sandbox.diff(), sandboxes).resolved


def test_a_whole_diff_is_never_cut_and_no_edit_needs_quoting_in_sed():
    for split in ("longer", "unseen"):
        for index in range(BREADTH):
            for change in gold_edits(generate(split, index)):
                assert len(f"{change.old}{change.new}{change.path}") * 2 + 200 < scaffold.OBSERVATION_CHARS / 3
                assert not set(change.new) & set('|&\\"$`'), change


def test_no_line_is_replaced_before_a_comparison_has_shown_it():
    for index in range(BREADTH):
        seen = ""
        for turn in reenact.episode(generate("longer", index)):
            arguments = turn.action.arguments
            if arguments.get("command") == "str_replace" and "import" not in arguments["old_str"]:
                removed, added = (f"{arguments[name]}\n" for name in ("old_str", "new_str"))
                assert re.search(rf"^< *{re.escape(removed)}---\n> *{re.escape(added)}", seen, re.MULTILINE)
            seen = turn.observation


def test_a_comparison_with_wrong_lines_is_made_again(sandboxes):
    task, turns = generate("train", 3), []
    sandbox = sandboxes.open(task)
    while not (right := teacher.label(task, turns)).arguments["command"].startswith("diff"):
        act(right, turns, sandbox)
    wrong = right.arguments["command"].replace("upper", "title")
    act(bash(wrong), turns, sandbox)
    assert wrong != right.arguments["command"] and ".title" in turns[-1].observation
    assert teacher.label(task, turns) == right


@pytest.mark.parametrize(
    ("command", "changes"),
    [
        ("diff <(sed -n 3,4p /testbed/a/b.py) - <<'EOF'\n    x = 1\n    return x\nEOF", False),
        ("diff <(sed -n 3,4p /testbed/a/b.py) - <<'EOF'\n    x = 1\nEOF\nrm a", True),
        ("diff <(sed -n 3,4p /testbed/a/b.py) - <<'EOF'\nEOF\nEOF", True),
        ("diff <(sed -n 3,4p $(rm a)) - <<'EOF'\n    x = 1\nEOF", True),
        ("diff <(sed -i 3d /testbed/a/b.py) - <<'EOF'\n    x = 1\nEOF", True),
    ],
)
def test_a_comparison_changes_nothing_and_what_follows_one_may(command, changes):
    assert history.may_change(Turn(0, "student", bash(command), "", (), 0)) is changes


# --- pure ----------------------------------------------------------------------------------------------------


def test_a_label_depends_on_its_arguments_alone(train_tasks):
    task = train_tasks[0]
    turns = reenact.episode(task)
    labels = [teacher.label(task, turns[:length]) for length in range(len(turns))]
    assert labels == [turn.action for turn in turns]
    stripped = replace(task, problem_statement="", bug_kinds=(), split="", FAIL_TO_PASS=(), PASS_TO_PASS=())
    copies = [from_json(to_json(task), Task), stripped]
    for length in reversed(range(len(turns))):
        for twin in copies:
            teacher._KNOWN.clear()
            assert teacher.label(twin, copy.deepcopy(tuple(turns[:length]))) == labels[length]


def test_what_no_one_has_shown_is_not_known(train_tasks, sandboxes):
    """Two trees that differ where nobody has looked give the same label."""
    task = train_tasks[0]
    change = gold_edits(task)[0]
    histories = []
    for damage in ("true", f"echo '# junk' >> {change.path}"):
        sandbox, turns = sandboxes.open(task), []
        act(bash("python -m pytest"), turns, sandbox)
        sandbox.run(damage)  # behind the history's back
        act(teacher.label(task, turns), turns, sandbox)
        histories.append(turns)
    assert histories[0] == histories[1]
    assert teacher.label(task, histories[0]) == teacher.label(task, histories[1])


# --- from any state ------------------------------------------------------------------------------------------

Junk = Callable[[random.Random, Task], Action]


def source(rng: random.Random, task: Task) -> str:
    return rng.choice(sorted(p for p in task.files if p.endswith(".py") and task.files[p].strip()))


def line_of(rng: random.Random, task: Task, path: str) -> tuple[int, str]:
    """Number and text of a line that is not blank."""
    lines = task.files[path].split("\n")
    return rng.choice([(number, text) for number, text in enumerate(lines, 1) if text.strip()])


def wrong_replacement(rng: random.Random, task: Task) -> Action:
    path = source(rng, task)
    _, text = line_of(rng, task, path)
    new = rng.choice([text.replace("return", "return not"), text.replace("(", "((", 1), "pass", text + "  #", ""])
    return edit("str_replace", rng.choice([path, f"/testbed/{path}"]), old_str=text.strip(), new_str=new.strip())


def half_right(rng: random.Random, task: Task) -> Action:
    """A gold line in the wrong place, or the right place with a wrong line."""
    one, other = rng.choice(gold_edits(task)), rng.choice(gold_edits(task))
    return edit("str_replace", f"/testbed/{one.path}", old_str=one.old.strip(), new_str=other.new.strip())


def failing_replacement(rng: random.Random, task: Task) -> Action:
    path = f"/testbed/{source(rng, task)}"
    return rng.choice(
        [
            edit("str_replace", path, old_str="no such line", new_str="x"),
            edit("str_replace", path, old_str="return", new_str="return"),
            edit("str_replace", path, old_str="", new_str="x"),
            edit("str_replace", path, old_str="return"),
            edit("str_replace", "/testbed/nowhere.py", old_str="a", new_str="b"),
            edit("insert", path, insert_line=10_000, new_str="x"),
            edit("undo_edit", path),
        ]
    )


def created(rng: random.Random, task: Task) -> Action:
    package = task.repo.rpartition("/")[2]
    path, text = rng.choice(
        [
            ("conftest.py", "collect_ignore_glob = ['*']\n"),
            ("conftest.py", "import pytest\n\n\ndef pytest_collection_modifyitems(items):\n    items.clear()\n"),
            ("tests/conftest.py", "raise ValueError('no')\n"),
            ("conftest.py", f"open('{source(rng, task)}', 'a').write('\\nJUNK = 1\\n')\n"),
            ("pytest.ini", "[pytest]\naddopts = -q -rN\n"),
            ("pytest.ini", "[pytest]\naddopts = -q --nonsense\n"),
            ("re.py", "x = 1\n"),
            ("pytest.py", "print('3 passed')\n"),
            ("random.py", "import sys\nsys.exit(0)\n"),
            ("tests/test_new.py", "def test_new():\n    assert False\n"),
            ("tests/test_new.py", "import nowhere\n"),
            (f"{package}/extra.py", task.files[source(rng, task)]),
            ("aaa.py", task.files[source(rng, task)]),
            ("note.txt", "todo\n"),
            (source(rng, task), "x = 1\n"),
            (source(rng, task), ""),
            (source(rng, task), "def broken(:\n"),
            (source(rng, task), task.files[source(rng, task)]),
            (source(rng, task), "# " + "long " * 900 + "\n"),
        ]
    )
    return edit("create", f"/testbed/{path}", file_text=text)


def inserted(rng: random.Random, task: Task) -> Action:
    path = source(rng, task)
    number, text = line_of(rng, task, path)
    new = rng.choice([text, "    return None", "x = (", "", "# note", "    " + "#" * 2500])
    return edit("insert", path, insert_line=number, new_str=new)


def shell_edit(rng: random.Random, task: Task) -> Action:
    path = source(rng, task)
    number, _ = line_of(rng, task, path)
    other, _ = line_of(rng, task, path)
    return bash(
        rng.choice(
            [
                f"sed -i '{number}d' {path}",
                f"sed -i 's/return/retrun/' {path}",
                f"sed -i.bak '{number}s/.*/x/' {path}",
                f'sed -i "{number}s|.*|    return None|" /testbed/{path}',
                f"sed -i '{number}p;{other}p' {path}",
                "sed -i 's/assert/assert not/' tests/*.py",
                "sed -i 's/def /def x/' */*.py",
                f"ls\nrm {path}",
                f"grep -n x {path} > {path}.txt",
                f"python -c \"open('{path}', 'a').write('x = 1 / 0')\"",
                f"python -c \"print(open('{path}').read())\"",
                f"printf '\\0\\1' > {path}",
                f"tr '\\n' '\\r' < {path} > t && mv t {path}",
                f"chmod +x {path}",
                f"cp {path} {source(rng, task)}",
            ]
        )
    )


def removed(rng: random.Random, task: Task) -> Action:
    path = source(rng, task)
    commands = [f"rm {path}", "rm -rf tests", "rm pytest.ini", f"mv {path} moved.py", f"rm {path} && mkdir -p {path}/x"]
    return bash(rng.choice([*commands, "rm -rf *", f"rm -r {path.partition('/')[0]}", f"ln -sf nowhere {path}"]))


def git_command(rng: random.Random, task: Task) -> Action:
    commands = [
        "git checkout .",
        "git stash",
        "git commit -qam x",
        "git add -A && git stash",
        "git clean -fdxq",
        "git log",
    ]
    commands += ["git status", "git diff", "git show", "git init -q sub", "git mv pytest.ini x.ini", "rm -rf .git"]
    return bash(rng.choice([*commands, f"git checkout -- {source(rng, task)}", "git checkout -- nowhere.py"]))


def look(rng: random.Random, task: Task) -> Action:
    path = source(rng, task)
    number, text = line_of(rng, task, path)
    return rng.choice(
        [
            edit("view", path),
            edit("view", f"/testbed/{path}", view_range=[number, -1]),
            edit("view", f"/testbed/{path}", view_range=[number, number + rng.randrange(4)]),
            edit("view", path, view_range=[]),
            edit("view", path, view_range=["a", 1]),
            edit("view", "/testbed"),
            edit("view", "/etc/passwd"),
            bash("ls -la"),
            bash("grep -rn 'def ' /testbed"),
            bash(f"grep -rn '{text.split()[-1][:4].translate(str.maketrans('', '', chr(39)))}' ."),
            bash(f"cat {path}"),
            bash("cat */*.py"),
        ]
    )


def try_tests(rng: random.Random, task: Task) -> Action:
    test = rng.choice(sorted(p for p in task.files if p.startswith("tests/")))
    commands = [teacher.RUN_TESTS, f"python -m pytest {test}", "python -m pytest -x", "python -m pytest -q", "pytest"]
    return bash(rng.choice([*commands, teacher.SHOW_DIFF, teacher.SHOW_NEW_FILES]))


def malformed(rng: random.Random, task: Task) -> Action:
    return scaffold.parse(rng.choice(["", "I give up", "<tool_call>{}</tool_call>", "<tool_call>\n{\n</tool_call>"]))


JUNK: Sequence[Junk] = (
    wrong_replacement, wrong_replacement, half_right, failing_replacement, created, created, inserted, shell_edit,
    shell_edit, removed, git_command, look, look, try_tests, malformed,
)  # fmt: skip


def walk(seed: int, factory) -> tuple[Task, list[Turn], object]:
    """A random walk of junk, in which the teacher acts now and then."""
    rng = random.Random(seed)
    task = generate(rng.choice(["train", "dev"]), rng.randrange(4))
    sandbox, turns = factory.open(task), []
    for _ in range(rng.randrange(1, JUNK_TURNS + 1)):
        action = teacher.label(task, turns) if rng.random() < 0.25 else rng.choice(JUNK)(rng, task)
        act(action, turns, sandbox)
    return task, turns, sandbox


@pytest.mark.parametrize("seed", [*range(20), 31, 38, 148, 302, 485])
def test_after_any_walk_of_junk_it_leaves_the_gold_patch_and_nothing_else(seed, sandboxes):
    task, turns, sandbox = walk(seed, sandboxes)
    finish_alone(task, turns, sandbox)
    assert sandbox.diff() == gold_diff(task, sandboxes)
