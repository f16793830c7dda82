"""The pre-training corpus: tool drills and pieces of teacher episodes on one-bug tasks of the `pretrain` split.

The base learns the skills: copying names and numbers, calling the tools, getting from a failing test to the wrong line
and repairing it; `reviews` adds practice in telling wrong functions from right ones. The protocol of a long task is
left for SFT to learn: what follows an edit is never shown. It sees no task of another split, no episode with several
bugs, no failed tool call, no wrong edit and no recovery.
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

SAID, READ = 1.0, 1.2  # weight in the loss of what the model says, and of the part of what it only reads that counts
COUNTED = 0.25  # share of the tokens it only reads that counts: the head need not see the others
DRILLS_PER_TASK = 2


def document(index: int) -> tuple[Task, list[Turn], list[tuple[str, Action]]]:
    """Task number `index` of the pretrain split, the teacher's whole episode on it, and its tool drills."""
    task = generate("pretrain", index)
    rng = random.Random(f"drills-{index}")
    return task, episode(task), [_drill(rng, task) for _ in range(DRILLS_PER_TASK)]


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


def encode_task(renderer: Renderer, index: int, rng: random.Random) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """(ids, loss weights) of each document that one task gives.

    They are the episode from the prompt to the edit, what follows the test run after it, and the drills.
    """
    task, turns, drills = document(index)
    edit = next(n for n, turn in enumerate(turns) if turn.action.arguments.get("command") == "str_replace")
    yield _encoded(renderer, renderer.prompt_ids(task), turns[: edit + 1], rng)
    yield encode_review(renderer, turns[edit + 1 :], rng)
    for request, action in drills:
        yield _joined([(renderer.request_ids(request), False), (renderer.action_ids(action), True)], rng)


def encode_review(renderer: Renderer, turns: Sequence[Turn], rng: random.Random) -> tuple[np.ndarray, np.ndarray]:
    """(ids, loss weights) of a piece of an episode, from its first observation to its last action."""
    return _encoded(renderer, renderer.observation_ids(turns[0].observation), turns[1:], rng)


def _encoded(
    renderer: Renderer, before: Sequence[int], turns: Sequence[Turn], rng: random.Random
) -> tuple[np.ndarray, np.ndarray]:
    pieces = [(before, False)]
    for turn in turns:
        pieces += [(renderer.action_ids(turn.action), True), (renderer.observation_ids(turn.observation), False)]
    return _joined(pieces[:-1], rng)


def _joined(pieces: Sequence[tuple[Sequence[int], bool]], rng: random.Random) -> tuple[np.ndarray, np.ndarray]:
    """Ids and weights [N] of (ids, said by the model?) in a row."""
    ids = [token for piece, _ in pieces for token in piece]
    weights = [
        SAID if said else READ if rng.random() < COUNTED else 0.0 for piece, said in pieces for _ in range(len(piece))
    ]
    return np.asarray(ids, dtype=np.int32), np.asarray(weights, dtype=np.float32)


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
