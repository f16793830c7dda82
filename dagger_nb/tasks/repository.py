"""Draws a correct repository: layered modules of units, and the inputs that its tests use."""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from typing import Any

from dagger_nb.tasks import words
from dagger_nb.tasks.inputs import draw_arguments
from dagger_nb.tasks.markup import Shape
from dagger_nb.tasks.shapes import CALLING, CLASSES, LEAVES
from dagger_nb.tasks.units import Helper, Probe, Unit, draw_unit

WIDTH = 72
MAX_DEPTH = 3  # longest chain of calls
INPUTS = 40  # inputs tried until one works


class Redraw(Exception):
    """This draw leads nowhere (a name twice, a line too long, no input that works): draw again."""


@dataclass(frozen=True, slots=True)
class Case:
    """One assertion: a call and the value it has in the correct repository, both as source text."""

    call: str
    value: str

    @property
    def line(self) -> str:
        return f"    assert {self.call} == {self.value}"


@dataclass(slots=True)
class Module:
    """One module of the package, drawn unit by unit."""

    name: str
    units: list[Unit] = field(default_factory=list)

    @property
    def imports(self) -> dict[str, list[str]]:
        """Module -> names imported from it, both in order of first use."""
        found: dict[str, list[str]] = {}
        for helper in (helper for unit in self.units for helper in unit.helpers):
            names = found.setdefault(helper.module, [])
            if helper.name not in names:
                names.append(helper.name)
        return found


@dataclass(slots=True)
class Repository:
    """A correct repository. `space` holds all its functions, executed."""

    package: str
    modules: list[Module]
    space: dict[str, Any]


def draw_repository(rng: random.Random, modules: tuple[int, int]) -> Repository:
    """A repository of so many modules; a module calls only modules drawn before it."""
    names = rng.sample(words.MODULES, rng.randint(*modules))
    repository = Repository(rng.choice(words.PACKAGES), [], {})
    helpers: list[Helper] = []
    used: set[str] = set()
    class_at = rng.randrange(len(names)) if rng.random() < 0.3 else None
    for level, name in enumerate(names):
        module = Module(name)
        if level == class_at:
            module.units.append(_draw(rng, CLASSES, [], used, repository))
        count = rng.randint(3, 4) - (2 if level == class_at else 0)
        for _ in range(count):
            calling = helpers and rng.random() < 0.6
            unit = _draw(rng, CALLING, helpers, used, repository) if calling else None
            module.units.append(unit or _draw(rng, LEAVES, [], used, repository))
        repository.modules.append(module)
        helpers += [_helper(unit, module) for unit in module.units if unit.signature]
    return repository


def _helper(unit: Unit, module: Module) -> Helper:
    depth = 1 + max((helper.depth for helper in unit.helpers), default=-1)
    return Helper(unit.probes[0].owner, module.name, unit.signature, depth)


def _draw(
    rng: random.Random, shapes: tuple[Shape, ...], helpers: list[Helper], used: set[str], repository: Repository
) -> Unit | None:
    """A unit of a shape that the repository does not have yet, executed in its space; None: found none."""
    for _ in range(30):
        shape = rng.choice(shapes)
        chosen = _choose_helpers(rng, shape, helpers)
        if shape.key in used or chosen is None:
            continue
        unit = draw_unit(rng, shape, chosen)
        names = {probe.owner.split(".")[0] for probe in unit.probes}
        if names & repository.space.keys() or max(map(len, unit.lines)) > WIDTH:
            continue
        space = dict(repository.space)
        exec("\n".join(unit.lines), space)
        if all(_testable(rng, probe, space) for probe in unit.probes):
            used.add(shape.key)
            repository.space = space
            return unit
    return None


def _choose_helpers(rng: random.Random, shape: Shape, helpers: list[Helper]) -> dict[str, Helper] | None:
    """A different helper for each helper slot, or None when there are too few."""
    chosen: dict[str, Helper] = {}
    for slot, signature in shape.helpers:
        taken = list(chosen.values())
        fitting = [h for h in helpers if h.signature == signature and h.depth < MAX_DEPTH and h not in taken]
        if not fitting:
            return None
        chosen[slot] = rng.choice(fitting)
    return chosen


def _testable(rng: random.Random, probe: Probe, space: dict[str, Any]) -> bool:
    try:
        draw_case(rng, probe, space)
    except Redraw:
        return False
    return True


def draw_case(rng: random.Random, probe: Probe, space: dict[str, Any]) -> Case:
    """An input on which the correct function works, with its value.

    Raises:
        Redraw: none was found in so many draws.
    """
    for _ in range(INPUTS):
        arguments = draw_arguments(rng, probe)
        call = probe.call.format(**{slot: repr(value) for slot, value in arguments.items()})
        try:
            case = Case(call, repr(eval(call, space)))
        except Exception:
            continue
        if len(case.line) <= WIDTH and "\\" not in case.line and '"' not in case.line:
            return case
    raise Redraw(f"no input for {probe.owner}")
