"""Chooses the bugs of a repository: one line each, in different functions, and visible to a test."""

from __future__ import annotations

import random
import re
from dataclasses import dataclass

from dagger_nb.tasks.markup import Helper, Unit
from dagger_nb.tasks.repository import Case, Module, Redraw, Repository, draw_case
from dagger_nb.tasks.splits import SplitSpec


@dataclass(frozen=True, slots=True)
class Bug:
    """Line `line` (0-based, in the file of its module) becomes `text`."""

    module: int
    line: int
    text: str
    kind: str
    owner: str  # the unit's first name, or the module's for an import line
    case: tuple[str, Case] | None  # (tested function, an assertion that fails)


@dataclass(frozen=True, slots=True)
class Source:
    """The correct text of one module, as lines, and where its units begin."""

    lines: tuple[str, ...]
    starts: tuple[int, ...]
    import_lines: int  # how many lines after the first are imports


def render(package: str, module: Module) -> Source:
    """One-line docstring, imports, and the units two blank lines apart."""
    lines = [f'"""{module.name.capitalize()} of the {package}."""']
    imports = [line for name, names in module.imports.items() for line in import_lines(package, name, names)]
    lines += ["", *imports] if imports else []
    starts = []
    for unit in module.units:
        lines += ["", ""]
        starts.append(len(lines))
        lines += unit.lines
    return Source(tuple(lines), tuple(starts), len(imports))


def import_lines(package: str, module: str, names: list[str]) -> list[str]:
    """`from package.module import a, b` in as few lines of at most 72 characters as it takes."""
    head, lines = f"from {package}.{module} import ", []
    for name in names:
        if lines and len(lines[-1]) + len(name) + 2 <= 72:
            lines[-1] += ", " + name
        else:
            lines.append(head + name)
    return lines


def draw_bugs(rng: random.Random, repository: Repository, sources: list[Source], spec: SplitSpec) -> list[Bug]:
    """As many bugs as the split asks for, kinds drawn evenly.

    Raises:
        Redraw: the repository has no room for them.
    """
    bugs: list[Bug] = []
    for number in range(rng.randint(*spec.bugs)):
        kinds = spec.must_kinds if spec.must_kinds and not number else spec.kinds
        bugs.append(_draw_bug(rng, repository, sources, kinds, bugs))
    return sorted(bugs, key=lambda bug: (bug.module, bug.line))


def _draw_bug(rng, repository: Repository, sources: list[Source], kinds: tuple[str, ...], bugs: list[Bug]) -> Bug:
    crowd = [sum(bug.module == level for bug in bugs) for level in range(len(sources))]
    taken = {bug.owner for bug in bugs}
    by_kind: dict[str, list[Bug]] = {}
    for bug in _candidates(rng, repository, sources):
        if bug.owner not in taken and crowd[bug.module] == min(crowd) and bug.kind in kinds:
            by_kind.setdefault(bug.kind, []).append(bug)
    for _ in range(12 if by_kind else 0):
        bug = rng.choice(by_kind[rng.choice(sorted(by_kind))])
        if not _unique(sources[bug.module], bug, bugs):
            continue
        if bug.kind == "wrong_import":
            return bug
        caught = _caught(rng, repository, bug)
        if caught:
            return caught
    raise Redraw("no bug fits")


def _unique(source: Source, bug: Bug, bugs: list[Bug]) -> bool:
    """Whether the buggy line of each bug, stripped, occurs once in its file, whichever others are fixed."""
    mine = [bug, *(other for other in bugs if other.module == bug.module)]
    for each in mine:
        rest = [line for number, line in enumerate(source.lines) if number != each.line]
        rest += [other.text for other in mine if other is not each]
        if each.text.strip() in "\n".join(rest):
            return False
    return True


def _candidates(rng: random.Random, repository: Repository, sources: list[Source]) -> list[Bug]:
    found = []
    for level, (module, source) in enumerate(zip(repository.modules, sources)):
        imported = [helper for unit in module.units for helper in unit.helpers]
        for unit, start in zip(module.units, source.starts):
            faults = [(fault.line, fault.text, fault.kind) for fault in unit.faults]
            faults += [(line, text, "wrong_call") for line, text in _wrong_calls(unit, imported)]
            owner = unit.probes[0].owner
            found += [Bug(level, start + line, text, kind, owner, None) for line, text, kind in faults]
        for line in range(2, 2 + source.import_lines):
            for text in _wrong_imports(repository, level, source.lines[line]):
                found.append(Bug(level, line, text, "wrong_import", module.name, None))
    return found


def _wrong_calls(unit: Unit, imported: list[Helper]) -> list[tuple[int, str]]:
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
    """The import from each other module below this one, which lacks the name; never in a circle.

    A listing of the name shows both the import and the definition, so the right module can be read off.
    """
    head, names = line.split(" import ")
    right = head.rpartition(".")[2]
    others = [module.name for module in repository.modules[:level] if module.name != right]
    return [f"from {repository.package}.{other} import {names}" for other in others]


def _caught(rng: random.Random, repository: Repository, bug: Bug) -> Bug | None:
    """The bug with an assertion that fails because of it, or None when 40 inputs show no difference."""
    module = repository.modules[bug.module]
    unit = next(unit for unit in module.units if unit.probes[0].owner == bug.owner)
    start = bug.line - render(repository.package, module).starts[module.units.index(unit)]
    lines = list(unit.lines)
    lines[start] = bug.text
    space = dict(repository.space)
    exec("\n".join(lines), space)
    for _ in range(40):
        for probe in unit.probes:
            case = draw_case(rng, probe, repository.space)
            if not _holds(case, space):
                return Bug(bug.module, bug.line, bug.text, bug.kind, bug.owner, (probe.owner, case))
    return None


def _holds(case: Case, space: dict) -> bool:
    try:
        return bool(eval(f"{case.call} == {case.value}", space))
    except Exception:
        return False
