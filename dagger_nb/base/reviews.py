"""Reviews for the pre-training corpus: from a failing test to the wrong line, in repositories with several of them.

Which lines do not do what their docstring says is the hardest skill, and which function to read next the second. An
episode on a one-bug task teaches each about once. Here the teacher repairs repositories in which a quarter of the
functions are wrong, and every repair is a document of its own: from the failing tests, or where the first function
that was read is the wrong one mostly from its lines alone, to the edit. What follows an edit is never shown: how
a task with several bugs goes on is left for SFT to learn.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence

from dagger_nb import scaffold
from dagger_nb.base.reenact import Reenactment
from dagger_nb.policies import teacher
from dagger_nb.records import Task, Turn
from dagger_nb.tasks import git
from dagger_nb.tasks.assembly import VISIBLE_CASES, test_files
from dagger_nb.tasks.bugs import WEIGHTS, Bug, caught, findable, possible_bugs
from dagger_nb.tasks.render import Source, render
from dagger_nb.tasks.repository import Redraw, Repository, draw_repository
from dagger_nb.tasks.splits import SplitSpec, split_spec

VARIANTS = 4  # ways in which the functions of one repository are spoilt
WRONG = 0.25  # share of the functions that are
WHOLE = 0.3  # share of the repairs of the function under test that begin at the tests


def reviews(index: int) -> Iterator[list[Turn]]:
    """The pieces of episodes, about a dozen, in repository number `index` of the pretrain split's seed.

    A piece begins with a turn of which only the observation counts (a test run, or a view), and ends with an edit.
    """
    spec = split_spec("pretrain")
    rng = random.Random(f"{spec.seed}/review/{index}")
    repository = draw_repository(rng, spec.modules)
    sources = [render(repository.package, module) for module in repository.modules]
    for variant in range(VARIANTS):
        try:
            task = _spoilt(rng, f"review-{index}-{variant}", repository, sources, spec)
        except Redraw:  # some test has no input
            continue
        for piece in _repairs(task):
            direct = len(piece) == 4  # tests, search, view, edit
            yield piece[2:] if direct and rng.random() >= WHOLE else piece


def _spoilt(rng: random.Random, name: str, repository: Repository, sources: Sequence[Source], spec: SplitSpec) -> Task:
    """A spoilt repository, as far as the teacher needs to know it. Raises Redraw."""
    bugs = _draw(rng, repository, sources, spec)
    changes = [{bug.line: bug.text for bug in bugs if bug.module == level} for level in range(len(sources))]
    gold = {source.path: source.text({}) for source in sources}
    spoilt = {source.path: source.text(changed) for source, changed in zip(sources, changes, strict=True)}
    tests = test_files(rng, repository, bugs, VISIBLE_CASES, ".py")
    files = {f"{repository.package}/__init__.py": ""} | spoilt | tests
    return Task(name, "", "", "", git.diff(spoilt, gold), "", (), (), "", "", "", "", "", files=files)


def _draw(rng: random.Random, repository: Repository, sources: Sequence[Source], spec: SplitSpec) -> list[Bug]:
    """A bug that a test catches, of a kind that the split knows, in about `WRONG` of the functions."""
    candidates = [bug for bug in possible_bugs(repository, sources) if bug.unit is not None and bug.kind in spec.kinds]
    bugs: list[Bug] = []
    for owner in sorted({bug.owner for bug in candidates}):
        mine = [bug for bug in candidates if bug.owner == owner]
        if rng.random() >= WRONG:
            continue
        bug = rng.choices(mine, [WEIGHTS.get(bug.kind, 1) for bug in mine])[0]
        if findable(sources[bug.module], bug, bugs):
            shown = caught(rng, repository, sources[bug.module], bug)
            bugs += [shown] if shown else []
    return bugs


def _repairs(task: Task) -> Iterator[list[Turn]]:
    """The teacher's episode from each test run to the edit after it, until the tests pass or nothing explains them."""
    sandbox, turns, began = Reenactment(task), [], 0
    while True:
        action = teacher.label(task, turns)
        if action.tool == "finish" or action.arguments["command"] == teacher.SHOW_DIFF:
            return
        turns.append(Turn(len(turns), "teacher", action, scaffold.execute(action, sandbox), (), 0))
        if action.arguments["command"] == teacher.RUN_TESTS:
            began = len(turns) - 1
        elif action.arguments["command"] == "str_replace":
            yield turns[began:]
