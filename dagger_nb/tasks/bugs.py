"""Chooses the bugs of a repository: one line each, in different functions, and visible to a test."""

from __future__ import annotations

import dataclasses
import random
import re
from collections.abc import Sequence
from dataclasses import dataclass

from dagger_nb.tasks.render import Source
from dagger_nb.tasks.repository import Case, Redraw, Repository, draw_case
from dagger_nb.tasks.splits import SplitSpec
from dagger_nb.tasks.units import Helper, Unit

TRIES = 12  # bugs looked at for each one taken
WEIGHTS = {"dict_key": 4, "off_by_one": 2, "swapped_arguments": 2}  # kinds that few files have room for
INPUTS = 40  # inputs tried until a bug shows


@dataclass(frozen=True, slots=True)
class Bug:
    """Line `line` (0-based) of a module's file becomes `text`."""

    module: int
    line: int
    text: str
    kind: str
    unit: int | None  # the changed unit's number in its module; None for an import
    case: tuple[str, Case] | None = None  # (tested function, an assertion that fails)

    @property
    def owner(self) -> tuple[int, int | None]:
        return self.module, self.unit


def draw_bugs(
    rng: random.Random, repository: Repository, sources: Sequence[Source], spec: SplitSpec
) -> tuple[Bug, ...]:
    """As many bugs as the split asks for, kinds drawn about evenly, spread over the files; by path and line.

    Raises:
        Redraw: the repository has no room for them.
    """
    candidates = _candidates(rng, repository, sources)
    bugs: list[Bug] = []
    for number in range(rng.randint(*spec.bugs)):
        kinds = spec.must_kinds if spec.must_kinds and not number else spec.kinds
        free = [bug for bug in _free(candidates, bugs, len(sources)) if bug.kind in kinds]
        bugs.append(_draw_bug(rng, repository, sources, free, bugs))
    return tuple(sorted(bugs, key=lambda bug: (sources[bug.module].path, bug.line)))


def _free(candidates: list[Bug], bugs: list[Bug], modules: int) -> list[Bug]:
    """Candidates in units without a bug, in the files that have the fewest."""
    crowd = [sum(bug.module == level for bug in bugs) for level in range(modules)]
    taken = {bug.owner for bug in bugs}
    return [bug for bug in candidates if bug.owner not in taken and crowd[bug.module] == min(crowd)]


def _draw_bug(
    rng: random.Random, repository: Repository, sources: Sequence[Source], free: list[Bug], bugs: list[Bug]
) -> Bug:
    by_kind: dict[str, list[Bug]] = {}
    for bug in free:
        by_kind.setdefault(bug.kind, []).append(bug)
    kinds = sorted(by_kind)
    weights = [WEIGHTS.get(kind, 1) for kind in kinds]
    for _ in range(TRIES if kinds else 0):
        bug = rng.choice(by_kind[rng.choices(kinds, weights)[0]])
        if not _findable(sources[bug.module], bug, bugs):
            continue
        if bug.unit is None:
            return bug
        caught = _caught(rng, repository, sources[bug.module], bug)
        if caught:
            return caught
    raise Redraw("no bug fits")


def _findable(source: Source, bug: Bug, bugs: list[Bug]) -> bool:
    """Whether each buggy line of the file, stripped, occurs once in it, whichever others are mended."""
    mine = [bug, *(other for other in bugs if other.module == bug.module)]
    for each in mine:
        rest = [line for number, line in enumerate(source.lines) if number != each.line]
        rest += [other.text for other in mine if other is not each]
        if each.text.strip() in "\n".join(rest):
            return False
    return True


def _candidates(rng: random.Random, repository: Repository, sources: Sequence[Source]) -> list[Bug]:
    found = []
    for level, (module, source) in enumerate(zip(repository.modules, sources, strict=True)):
        imported = [helper for unit in module.units for helper in unit.helpers]
        for number, unit in enumerate(module.units):
            faults = [(fault.line, fault.text, fault.kind) for fault in unit.faults]
            faults += [(line, text, "wrong_call") for line, text in _wrong_calls(unit, imported)]
            found += [Bug(level, source.starts[number] + line, text, kind, number) for line, text, kind in faults]
        for line in source.imports:
            texts = _wrong_imports(repository, level, source.lines[line])
            found += [Bug(level, line, text, "wrong_import", None) for text in texts]
    return found


def _wrong_calls(unit: Unit, imported: list[Helper]) -> list[tuple[int, str]]:
    """(line, text) with another imported function called in a helper's place."""
    called = {helper.name for helper in unit.helpers}
    names = list(dict.fromkeys(helper.name for helper in imported))
    pairs = [(name, other) for name in names if name in called for other in names if other != name]
    changed = [
        (number, line, re.sub(rf"\b{name}\(", f"{other}(", line))
        for number, line in enumerate(unit.lines)
        for name, other in pairs
    ]
    return [(number, text) for number, line, text in changed if text != line]


def _wrong_imports(repository: Repository, level: int, line: str) -> list[str]:
    """The import from each other module below this one, which lacks the names.

    Never from above, which would be a circle whose error names another line, and never with a misspelt name,
    which no listing of definitions would find: what is wrong must be readable from what the tools show.
    """
    head, names = line.split(" import ")
    right = head.rpartition(".")[2]
    others = [
        module.name
        for module in repository.modules[:level]
        if module.name != right and not set(names.split(", ")) & set(module.imports.get(right, ()))
    ]
    return [f"from {repository.package}.{other} import {names}" for other in others]


def _caught(rng: random.Random, repository: Repository, source: Source, bug: Bug) -> Bug | None:
    """The bug with an assertion that fails because of it, or None when no input shows a difference."""
    unit = repository.modules[bug.module].units[bug.unit]
    lines = list(unit.lines)
    lines[bug.line - source.starts[bug.unit]] = bug.text
    space = dict(repository.space)
    exec("\n".join(lines), space)
    for _ in range(INPUTS):
        for probe in unit.probes:
            case = draw_case(rng, probe, repository.space)
            if not _holds(case, space):
                return dataclasses.replace(bug, case=(probe.owner, case))
    return None


def _holds(case: Case, space: dict) -> bool:
    try:
        return bool(eval(f"{case.call} == {case.value}", space))
    except Exception:
        return False
