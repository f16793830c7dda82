"""Puts a task together: a repository, its bugs, its tests, and the fields of SWE-bench's schema."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterable

from dagger_nb.records import Task
from dagger_nb.tasks import git
from dagger_nb.tasks.bugs import Bug, Source, draw_bugs, import_lines, render
from dagger_nb.tasks.evaluation import eval_script, image
from dagger_nb.tasks.execution import Program, compile_file
from dagger_nb.tasks.gold import HIDDEN, test_name, visible
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
)


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
            return _draw(rng, spec, index)
        except Redraw:
            continue


def tasks(split: str, count: int, *, start: int = 0) -> list[Task]:
    """Tasks `start` to `start + count - 1` of a split. Raises ConfigError as `generate` does."""
    return [generate(split, index) for index in range(start, start + count)]


def _draw(rng: random.Random, spec: SplitSpec, index: int) -> Task:
    repository = draw_repository(rng, spec.modules)
    sources = [render(repository.package, module) for module in repository.modules]
    bugs = draw_bugs(rng, repository, sources, spec)
    shared = _shared_files(rng, repository, bugs)
    hidden = _test_files(rng, repository, [], 2, HIDDEN)
    paths = [f"{repository.package}/{module.name}.py" for module in repository.modules]
    gold = shared | dict(zip(paths, map(_text, sources)))
    buggy = gold | {paths[bug.module]: _text(sources[bug.module], bugs, bug.module) for bug in bugs}
    failing = _check(gold | hidden, sources, paths, bugs)
    return _task(rng, spec, index, repository.package, gold, buggy, hidden, failing, bugs)


def _shared_files(rng: random.Random, repository: Repository, bugs: list[Bug]) -> dict[str, str]:
    """Everything but the package's modules."""
    title = rng.choice(("", f'"""The {repository.package} package."""\n'))
    files = {"pytest.ini": PYTEST_INI, f"{repository.package}/__init__.py": title}
    return files | _test_files(rng, repository, bugs, None, ".py")


def _test_files(
    rng: random.Random, repository: Repository, bugs: list[Bug], count: int | None, suffix: str
) -> dict[str, str]:
    """One test file a module, one test a function; each bug's own assertion is among them."""
    due = {bug.case[0]: bug.case[1] for bug in bugs if bug.case}
    return {
        f"tests/test_{module.name}{suffix}": _test_file(rng, repository, module, due, count)
        for module in repository.modules
    }


def _test_file(
    rng: random.Random, repository: Repository, module: Module, due: dict[str, Case], count: int | None
) -> str:
    names = list(dict.fromkeys(probe.owner.split(".")[0] for unit in module.units for probe in unit.probes))
    lines = import_lines(repository.package, module.name, names)
    for probe in (probe for unit in module.units for probe in unit.probes):
        wanted = count or rng.choice((1, 1, 2, 2, 2, 3))
        cases = [due[probe.owner]] if probe.owner in due else []
        cases += [draw_case(rng, probe, repository.space) for _ in range(wanted - len(cases))]
        lines += ["", "", f"def {test_name(probe.owner)}():", *dict.fromkeys(case.line for case in cases)]
    return "\n".join(lines) + "\n"


def _text(source: Source, bugs: Iterable[Bug] = (), module: int = -1) -> str:
    lines = list(source.lines)
    for bug in bugs:
        if bug.module == module:
            lines[bug.line] = bug.text
    return "\n".join(lines) + "\n"


def _check(gold: dict[str, str], sources: list[Source], paths: list[str], bugs: list[Bug]) -> set[str]:
    """The tests that fail with all bugs in.

    Raises:
        Redraw: a test fails on the correct tree, or some of the bugs together pass every visible test.
    """
    program = Program(gold)
    tests = sorted(path for path in gold if path.startswith("tests/"))
    shown = [path for path in tests if visible(path)]
    if program.failing(tests):
        raise Redraw("the correct tree fails")
    variants = {}
    for size in range(1, len(bugs) + 1):
        for subset in itertools.combinations(bugs, size):
            codes = {}
            for level in {bug.module for bug in subset}:
                mine = tuple(bug for bug in subset if bug.module == level)
                if mine not in variants:
                    variants[mine] = compile_file(paths[level], _text(sources[level], mine, level))
                codes[paths[level]] = variants[mine]
            broken = program.replaced(codes)
            if not broken.failing(shown):
                raise Redraw("bugs hide each other")
    return broken.failing(tests)


def _task(rng, spec: SplitSpec, index: int, package: str, gold, buggy, hidden, failing: set[str], bugs) -> Task:
    names = [
        f"{path}::{line[4:-3]}"
        for path, text in sorted({**gold, **hidden}.items())
        for line in text.split("\n")
        if path.startswith("tests/") and line.startswith("def ")
    ]
    instance = f"dagger-nb__{spec.name}-{index:05d}"
    base, test_patch = git.commit_hash(buggy), git.diff({}, hidden)
    return Task(
        instance_id=instance,
        repo=f"dagger-nb/{package}",
        base_commit=base,
        problem_statement=rng.choice(STATEMENTS).format(package),
        patch=git.diff(buggy, gold),
        test_patch=test_patch,
        FAIL_TO_PASS=tuple(name for name in names if name in failing),
        PASS_TO_PASS=tuple(name for name in names if name not in failing),
        version="1.0",
        image=image(instance),
        eval_script=eval_script(base, sorted(gold), sorted(hidden), test_patch),
        log_parser="parse_log_pytest",
        eval_type="pass_and_fail",
        files=dict(sorted(buggy.items())),
        split=spec.name,
        bug_kinds=tuple(bug.kind for bug in bugs),
    )
