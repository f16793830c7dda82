"""The pre-training corpus: tool drills and pieces of teacher episodes on one-bug tasks of the `pretrain` split.

The base learns the skills (copying names and numbers, calling the tools, repairing a line that it sees) and the
local habits of one-bug repairs. It sees no task of another split, no episode with several bugs, no failed tool
call, no wrong edit and no recovery.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator, Sequence

import numpy as np

from dagger_nb import scaffold
from dagger_nb.base.reenact import episode
from dagger_nb.policies import teacher
from dagger_nb.records import Action, Task, Turn
from dagger_nb.rendering import Renderer
from dagger_nb.tasks import generate

SAID, READ = 1.0, 0.3  # weight in the loss of what the model says and of what it only reads
DRILLS_PER_TASK = 2


def documents(first: int, count: int) -> Iterator[tuple[Task, list[Turn], list[tuple[str, Action]]]]:
    """For each task of the pretrain split: the task, the teacher's whole episode on it, and its tool drills."""
    for index in range(first, first + count):
        task = generate("pretrain", index)
        rng = random.Random(f"drills-{index}")
        yield task, episode(task), [_drill(rng, task) for _ in range(DRILLS_PER_TASK)]


def episodes(first: int, count: int) -> Iterator[list[Turn]]:
    """The teacher's whole episode on each task of the pretrain split."""
    return (episode(generate("pretrain", index)) for index in range(first, first + count))


def texts(documents: Sequence[tuple[Task, list[Turn], list[tuple[str, Action]]]]) -> Iterator[str]:
    """Plain text of some documents, to train the tokenizer on before there is a renderer."""
    tools = "\n".join(json.dumps(tool["function"]) for tool in scaffold.TOOLS)
    for task, turns, drills in documents:
        yield f"system\n{scaffold.SYSTEM_PROMPT}<tools>\n{tools}\n</tools>\nuser\n"
        yield task.problem_statement
        for turn in turns:
            yield turn.action.thought
            yield turn.observation
            yield from (str(value) for value in turn.action.arguments.values())
        for request, action in drills:
            yield request
            yield from (str(value) for value in action.arguments.values())


def encode(
    renderer: Renderer, task: Task, turns: Sequence[Turn], drills: Sequence[tuple[str, Action]], rng: random.Random
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """(ids, loss weights) of each document that one task gives: an episode cut in pieces, and its drills."""
    starts = sorted({0, *(rng.randrange(len(turns)) for _ in range(2))})
    for start, end in zip(starts, [*starts[1:], len(turns)], strict=True):
        before = renderer.observation_ids(turns[start - 1].observation) if start else renderer.prompt_ids(task)
        yield _joined([(before, READ), *_played(renderer, turns[start:end])])
    for request, action in drills:
        yield _joined([(renderer.request_ids(request), READ), (renderer.action_ids(action), SAID)])


def encode_search(renderer: Renderer, turns: Sequence[Turn]) -> tuple[np.ndarray, np.ndarray]:
    """(ids, loss weights) of the way from an episode's first failure to its first repair.

    What the lines that one reads should be is the hardest skill, and this is the part of an episode that needs it.
    """
    end = next(t for t, turn in enumerate(turns) if turn.action.arguments.get("command") == "str_replace")
    failure, repair = renderer.observation_ids(turns[0].observation), renderer.action_ids(turns[end].action)
    return _joined([(failure, READ), *_played(renderer, turns[1:end]), (repair, SAID)])


def _played(renderer: Renderer, turns: Sequence[Turn]) -> Iterator[tuple[Sequence[int], float]]:
    for turn in turns:
        yield renderer.action_ids(turn.action), SAID
        yield renderer.observation_ids(turn.observation), READ


def _joined(pieces: Sequence[tuple[Sequence[int], float]]) -> tuple[np.ndarray, np.ndarray]:
    ids = np.concatenate([np.asarray(ids, dtype=np.int32) for ids, _ in pieces])
    weights = np.concatenate([np.full(len(ids), weight, dtype=np.float32) for ids, weight in pieces])
    return ids, weights


def _drill(rng: random.Random, task: Task) -> tuple[str, Action]:
    """A request in words and the one tool call that meets it."""
    path = rng.choice(sorted(p for p in task.files if p.endswith(".py") and task.files[p].strip()))
    lines = task.files[path].split("\n")
    number = rng.choice([n for n, line in enumerate(lines, 1) if line.strip()])
    line, full = lines[number - 1], f"/testbed/{path}"
    other = rng.choice([text for text in lines if text.strip()])
    name = rng.choice([word for word in line.replace("(", " ").split() if word.isidentifier()] or ["return"])

    def bash(command: str) -> Action:
        return Action("", "execute_bash", {"command": command})

    def edit(command: str, **arguments: object) -> Action:
        return Action("", "str_replace_editor", {"command": command, "path": full, **arguments})

    return rng.choice(
        [
            ("Run the tests.", bash(teacher.RUN_TESTS)),
            ("Show what changed.", bash(teacher.SHOW_DIFF)),
            ("Start again from a clean tree.", bash(teacher.RESET_ALL)),
            ("Submit.", Action("", "finish", {})),
            (f"Undo the changes of {path}.", bash(f"git checkout -- {path}")),
            (f"Undo the changes of {path}.", bash(f"git checkout -- {path}")),
            (f"Find {name}.", bash(f"grep -rn {name} /testbed")),
            (f"Find the function {name}.", bash(f"grep -rn 'def {name}' /testbed")),
            (f"Read {full} from line {number}.", edit("view", view_range=[number, number + teacher.WINDOW])),
            (f"Line {number} of {full} must be:\n{other}", bash(f'sed -i "{number}s|.*|{other}|" {full}')),
            (f"Line {number} of {full} must be:\n{other}", bash(f'sed -i "{number}s|.*|{other}|" {full}')),
            (
                f"In {full} replace\n{line}\nby\n{other}",
                edit("str_replace", old_str=line.strip(), new_str=other.strip()),
            ),
            (f"After line {number} of {full} insert\n{other}", edit("insert", insert_line=number, new_str=other)),
        ]
    )
