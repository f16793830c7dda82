"""Puts a task together: a repository, its bugs, its tests, and the fields of SWE-bench's schema."""

from __future__ import annotations

import itertools
import random
from collections.abc import Sequence
from dataclasses import dataclass

from dagger_nb.records import Task
from dagger_nb.tasks import git
from dagger_nb.tasks.bugs import Bug, draw_bugs
from dagger_nb.tasks.evaluation import eval_script, image
from dagger_nb.tasks.execution import Program, compile_file
from dagger_nb.tasks.gold import HIDDEN, test_name, visible
from dagger_nb.tasks.render import Source, import_lines, render
from dagger_nb.tasks.repository import Case, Module, Redraw, Repository, draw_case, draw_repository
from dagger_nb.tasks.splits import SplitSpec, split_spec

PYTEST_INI = (
    "[pytest]\naddopts = -q --tb=no -p no:cacheprovider --continue-on-collection-errors\n"
    "pythonpath = .\ntestpaths = tests\n"
)
STATEMENTS = (
    "Some tests of the {} package fail. Make all tests pass; the docstrings are right.",
    "The {} package has bugs. Fix them so that every test passes. The docstrings say what is right.",
    "Tests fail in {}. Find the wrong lines and correct them; trust the docstrings and the tests.",
    "Please repair the {} package: its functions should do what their docstrings say.",
    "Something in {} is broken. Make the test suite pass again without changing any test.",
    "A change to {} went wrong and tests fail now. Correct the code, not the tests or the docstrings.",
)
VISIBLE_CASES = (1, 1, 2, 2, 2, 3)  # assertions of a visible test: one of these
HIDDEN_CASES = (2,)


@dataclass(frozen=True, slots=True)
class Draft:
    """A repository in files: correct, buggy, and what only the grader adds."""

    package: str
    gold: dict[str, str]
    buggy: dict[str, str]
    hidden: dict[str, str]
    failing: frozenset[str]  # tests, on the buggy tree with the hidden files
    kinds: tuple[str, ...]


def generate(split: str, index: int) -> Task:
    """Task `index` of a split: the same bytes for the same arguments on any machine.

    Raises:
        ConfigError: there is no such split, or no such index in it.
    """
    spec = split_spec(split)
    spec.check(index)
    rng = random.Random(f"{spec.seed}/{index}")
    while True:
        try:
            return _task(rng, spec, index, _draft(rng, spec))
        except Redraw:
            continue


def tasks(split: str, count: int, *, start: int = 0) -> list[Task]:
    """Tasks `start` to `start + count - 1` of a split. Raises ConfigError as `generate` does."""
    return [generate(split, index) for index in range(start, start + count)]


def _draft(rng: random.Random, spec: SplitSpec) -> Draft:
    repository = draw_repository(rng, spec.modules)
    sources = [render(repository.package, module) for module in repository.modules]
    bugs = draw_bugs(rng, repository, sources, spec)
    title = rng.choice(("", f'"""The {repository.package} package."""\n'))
    gold = {"pytest.ini": PYTEST_INI, f"{repository.package}/__init__.py": title}
    gold |= _test_files(rng, repository, bugs, VISIBLE_CASES, ".py") | _sources(sources, range(len(sources)), ())
    hidden = _test_files(rng, repository, (), HIDDEN_CASES, HIDDEN)
    failing = _failing(gold | hidden, sources, bugs)
    buggy = gold | _sources(sources, range(len(sources)), bugs)
    return Draft(repository.package, gold, buggy, hidden, frozenset(failing), tuple(bug.kind for bug in bugs))


def _sources(sources: Sequence[Source], levels: Sequence[int], bugs: Sequence[Bug]) -> dict[str, str]:
    """The files of some modules with some bugs in them."""
    changes = {level: {bug.line: bug.text for bug in bugs if bug.module == level} for level in levels}
    return {sources[level].path: sources[level].text(changes[level]) for level in levels}


def _test_files(
    rng: random.Random, repository: Repository, bugs: Sequence[Bug], counts: Sequence[int], suffix: str
) -> dict[str, str]:
    """One test file a module, one test a function; the assertion that shows a bug comes first in its test."""
    due = dict(bug.case for bug in bugs if bug.case)
    return {
        f"tests/test_{module.name}{suffix}": _test_file(rng, repository, module, due, counts)
        for module in repository.modules
    }


def _test_file(
    rng: random.Random, repository: Repository, module: Module, due: dict[str, Case], counts: Sequence[int]
) -> str:
    probes = [probe for unit in module.units for probe in unit.probes]
    names = list(dict.fromkeys(probe.owner.split(".")[0] for probe in probes))
    lines = import_lines(repository.package, module.name, names)
    for probe in probes:
        cases = [due[probe.owner]] if probe.owner in due else []
        cases += [draw_case(rng, probe, repository.space) for _ in range(rng.choice(counts) - len(cases))]
        lines += ["", "", f"def {test_name(probe.owner)}():", *dict.fromkeys(case.line for case in cases)]
    return "\n".join(lines) + "\n"


def _failing(gold: dict[str, str], sources: Sequence[Source], bugs: Sequence[Bug]) -> set[str]:
    """The tests that fail with all bugs in.

    Raises:
        Redraw: a test fails on the correct tree, or some bugs left alone pass every visible test.
    """
    program = Program(gold)
    tests = sorted(path for path in gold if path.startswith("tests/"))
    if program.failing(tests):
        raise Redraw("the correct tree fails")
    shown = [path for path in tests if visible(path)]
    compiled = {mine: compile_file(*_only(sources, mine)) for mine in _mixes(bugs)}
    for subset in _subsets(bugs):
        by_module = (tuple(bug for bug in subset if bug.module == level) for level in range(len(sources)))
        broken = program.replaced({sources[mine[0].module].path: compiled[mine] for mine in by_module if mine})
        if not broken.failing(shown):
            raise Redraw("bugs hide each other")
    return broken.failing(tests)


def _subsets(bugs: Sequence[Bug]) -> list[tuple[Bug, ...]]:
    """All that are not empty; the last holds every bug."""
    return [subset for size in range(1, len(bugs) + 1) for subset in itertools.combinations(bugs, size)]


def _mixes(bugs: Sequence[Bug]) -> list[tuple[Bug, ...]]:
    """Every combination of bugs of one and the same file."""
    return [subset for subset in _subsets(bugs) if len({bug.module for bug in subset}) == 1]


def _only(sources: Sequence[Source], mine: Sequence[Bug]) -> tuple[str, str]:
    """(path, text) of the file that these bugs are in."""
    return next(iter(_sources(sources, [mine[0].module], mine).items()))


def _task(rng: random.Random, spec: SplitSpec, index: int, draft: Draft) -> Task:
    names = [name for path, text in sorted((draft.gold | draft.hidden).items()) for name in _test_ids(path, text)]
    instance = f"dagger-nb__{spec.name}-{index:05d}"
    base, test_patch = git.commit_hash(draft.buggy), git.diff({}, draft.hidden)
    tests = sorted(path for path in draft.gold if path.startswith("tests/"))
    return Task(
        instance_id=instance,
        repo=f"dagger-nb/{draft.package}",
        base_commit=base,
        problem_statement=rng.choice(STATEMENTS).format(draft.package),
        patch=git.diff(draft.buggy, draft.gold),
        test_patch=test_patch,
        FAIL_TO_PASS=tuple(name for name in names if name in draft.failing),
        PASS_TO_PASS=tuple(name for name in names if name not in draft.failing),
        version="1.0",
        image=image(instance),
        eval_script=eval_script(base, tests, sorted(draft.hidden), test_patch),
        log_parser="parse_log_pytest",
        eval_type="pass_and_fail",
        files=dict(sorted(draft.buggy.items())),
        split=spec.name,
        bug_kinds=draft.kinds,
    )


def _test_ids(path: str, text: str) -> list[str]:
    """Ids of a test file's tests, in its order; none of any other file."""
    lines = text.split("\n") if path.startswith("tests/") else []
    return [f"{path}::{line[4:-3]}" for line in lines if line.startswith("def ")]
