"""Code reviews for the pre-training corpus: one function is read, and the teacher says what follows.

Whether the lines on the screen do what their docstring says is the hardest skill. An episode on a one-bug task
teaches it once, and nearly always on a function that is wrong; in a review as many functions are right as wrong, so
that the base learns to tell them apart: a wrong line is repaired, a right function leads to the one that it calls.
What follows an edit is never shown: how a task with several bugs goes on is left for SFT to learn.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence

from dagger_nb import scaffold
from dagger_nb.base.reenact import Reenactment
from dagger_nb.policies import teacher
from dagger_nb.records import Action, Task, Turn
from dagger_nb.tasks import git
from dagger_nb.tasks.bugs import WEIGHTS, Bug, findable, possible_bugs
from dagger_nb.tasks.gold import call_graph, functions, gold_edits, test_name
from dagger_nb.tasks.render import Source, render
from dagger_nb.tasks.repository import draw_repository
from dagger_nb.tasks.splits import SplitSpec, split_spec

VARIANTS = 3  # ways in which the functions of one repository are spoilt
WRONG = 0.5  # share of the functions that are


def reviews(first: int, count: int) -> Iterator[list[Turn]]:
    """Short histories (tests, search, view, answer), about twenty for each repository of the pretrain split's seed."""
    spec = split_spec("pretrain")
    for index in range(first, first + count):
        rng = random.Random(f"{spec.seed}/review/{index}")
        repository = draw_repository(rng, spec.modules)
        sources = [render(repository.package, module) for module in repository.modules]
        candidates = [bug for bug in possible_bugs(repository, sources) if bug.unit is not None]
        for variant in range(VARIANTS):
            bugs = _spoil(rng, sources, candidates, spec)
            yield from _reviews_of(_task(f"review-{index}-{variant}", sources, bugs))


def _spoil(rng: random.Random, sources: Sequence[Source], candidates: Sequence[Bug], spec: SplitSpec) -> list[Bug]:
    """A bug of a kind that the split knows in about `WRONG` of the functions."""
    bugs: list[Bug] = []
    for owner in sorted({bug.owner for bug in candidates}):
        mine = [bug for bug in candidates if bug.owner == owner and bug.kind in spec.kinds]
        if not mine or rng.random() >= WRONG:
            continue
        bug = rng.choices(mine, [WEIGHTS.get(bug.kind, 1) for bug in mine])[0]
        if findable(sources[bug.module], bug, bugs):
            bugs.append(bug)
    return bugs


def _task(name: str, sources: Sequence[Source], bugs: Sequence[Bug]) -> Task:
    """What the teacher needs to know of a spoilt repository: its files and the patch."""
    changes = {number: {bug.line: bug.text for bug in bugs if bug.module == number} for number in range(len(sources))}
    gold = {source.path: source.text({}) for source in sources}
    spoilt = {source.path: source.text(changes[number]) for number, source in enumerate(sources)}
    patch = git.diff(spoilt, gold)
    return Task(name, "", "", "", patch, "", (), (), "", "", "", "", "", files=spoilt)


def _reviews_of(task: Task) -> Iterator[list[Turn]]:
    """A review of each function about which the teacher has something to say."""
    calls = call_graph(task.files)
    for path in sorted(task.files):
        for name in functions(task.files[path]):
            wrong = any(edit for edit in gold_edits(task) if edit.function == name)
            if wrong or calls[name]:
                yield _review(task, name)


def _review(task: Task, name: str) -> list[Turn]:
    failed = f"FAILED tests/test_it.py::{test_name(name)}\n1 failed"
    turns = [_turn(0, Action("Run the tests.", "execute_bash", {"command": teacher.RUN_TESTS}), failed)]
    sandbox = Reenactment(task)
    for number in range(1, 4):
        action = teacher.label(task, turns)
        looks = number < 3
        turns.append(_turn(number, action, scaffold.execute(action, sandbox) if looks else ""))
    return turns


def _turn(number: int, action: Action, observation: str) -> Turn:
    return Turn(number, "teacher", action, observation, (), 0)
