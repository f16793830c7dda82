"""Draws one function or class from a shape, with every place where a bug could be put."""

from __future__ import annotations

import random
import re
from dataclasses import dataclass

from dagger_nb.tasks import words
from dagger_nb.tasks.choices import CHOICES, Choice
from dagger_nb.tasks.markup import PLACE, SLOT, Shape

POOLS = {
    "ints": words.NUMBERS, "words": words.NAMES, "int": words.AMOUNTS, "pos": words.AMOUNTS, "large": words.AMOUNTS,
    "text": words.TEXTS, "word": words.TEXTS, "letter": words.LETTERS, "counts": words.TABLES,
    "record": tuple(singular for _, singular in words.NAMES), "matrix": words.NUMBERS,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Fault:
    """One possible bug: line `line` (0-based, within its unit) becomes `text`."""

    line: int
    text: str
    kind: str


@dataclass(frozen=True, slots=True)
class Helper:
    """A function of a lower module that a shape may call."""

    name: str
    module: str
    signature: str  # 'ints,int->int'
    depth: int  # longest chain of calls below it


@dataclass(frozen=True, slots=True)
class Probe:
    """How a test calls something: `Box({a}).total({b})` with one type for each parameter."""

    owner: str  # 'total_prices' or 'Box.total'
    call: str
    parameters: tuple[tuple[str, str], ...]  # (slot, type)
    keys: tuple[str, ...] = ()  # of the dictionaries that a record parameter takes


@dataclass(frozen=True, slots=True)
class Unit:
    """One drawn function or class."""

    shape: str
    lines: tuple[str, ...]
    faults: tuple[Fault, ...]
    probes: tuple[Probe, ...]
    helpers: tuple[Helper, ...]
    signature: str  # '' for a class, which nothing else calls


class Draw:
    """The names and words that one unit has drawn; every name is used for one thing only."""

    def __init__(self, rng: random.Random, shape: Shape, helpers: dict[str, Helper]):
        self.rng, self.shape, self.names = rng, shape, {slot: helper.name for slot, helper in helpers.items()}
        self.rows: dict[str, tuple[Choice, int]] = {}
        for slot, kind in shape.parameters:
            self._parameter(slot, kind)

    def fresh(self, pool: tuple) -> str | tuple[str, str]:
        """A word of the pool that the unit does not use yet."""
        used = set(self.names.values())
        free = [entry for entry in pool if entry not in used and not used & set(entry if _pair(entry) else ())]
        return self.rng.choice(free)

    def _parameter(self, slot: str, kind: str) -> None:
        entry = self.fresh(POOLS[kind])
        self.names[slot] = entry[0] if _pair(entry) else entry
        if _pair(entry):
            self.names[slot + "1"] = entry[1]

    def word(self, slot: str) -> str:
        """The name or word of `$slot`, drawn at its first use."""
        if slot in CHOICES:
            return self._row(slot)[0]
        if slot not in self.names:
            self.names[slot] = self.fresh(words.KEYS if slot in ("k", "l") else words.LOCALS[slot])
        return self.names[slot]

    def _row(self, slot: str) -> tuple[str, ...]:
        if slot not in self.rows:
            choice = CHOICES[slot]
            self.rows[slot] = choice, self.rng.randrange(len(choice.rows))
        choice, index = self.rows[slot]
        return choice.rows[index]

    def code(self, slot: str, column: str | None) -> str:
        """The marked place of `%slot`: its right code first, the code of other rows as wrong ones."""
        row, choice = self._row(slot), CHOICES[slot]
        place = choice.columns.index(column) + 1 if column else 1
        wrong = dict.fromkeys(other[place] for other in choice.rows if other[place] != row[place])
        return f"«{'|'.join((row[place], *wrong))}:{choice.kinds[place - 1]}»"

    def fill(self, line: str) -> str:
        """A line with all slots replaced."""
        return SLOT.sub(lambda m: self.word(m[1]) if m[1] else self.code(m[2], m[3]), line)


def _pair(entry: str | tuple[str, str]) -> bool:
    return isinstance(entry, tuple)


def draw_unit(rng: random.Random, shape: Shape, helpers: dict[str, Helper]) -> Unit:
    """One function or class of a shape, with every place where a bug could be put."""
    draw = Draw(rng, shape, helpers)
    draw.names["f"] = _name(draw)
    marked = [draw.fill(line) for line in shape.body]
    lines = tuple(PLACE.sub(lambda m: m[1].split("|")[0], line) for line in marked)
    faults = [fault for number, line in enumerate(marked) for fault in _faults(number, line)]
    faults += [fault for number, line in enumerate(lines) for fault in _missing_return(number, line)]
    signature = "" if shape.is_class else ",".join(kind for _, kind in shape.parameters) + "->" + shape.result
    return Unit(shape.key, lines, tuple(faults), _probes(draw, lines), tuple(helpers.values()), signature)


def _name(draw: Draw) -> str:
    if draw.shape.is_class:
        return draw.rng.choice(words.CLASSES)
    first = draw.names[draw.shape.parameters[0][0]]
    noun = first if draw.shape.parameters[0][1] in ("ints", "words", "counts") else draw.rng.choice(words.THINGS)
    return f"{draw.rng.choice(draw.shape.verbs)}_{noun}"


def _faults(number: int, line: str) -> list[Fault]:
    found = []
    for place in PLACE.finditer(line):
        for wrong in place[1].split("|")[1:]:
            text = line[: place.start()] + wrong + line[place.end() :]
            found.append(Fault(number, PLACE.sub(lambda m: m[1].split("|")[0], text), place[2]))
    return found


def _missing_return(number: int, line: str) -> list[Fault]:
    indent, found, value = line.partition("return ")
    if not found or indent.strip() or value.isidentifier():
        return []
    return [Fault(number, indent + value, "missing_return")]


def _probes(draw: Draw, lines: tuple[str, ...]) -> tuple[Probe, ...]:
    keys = tuple(draw.names[slot] for slot in ("k", "l") if slot in draw.names)
    parameters, name = draw.shape.parameters, draw.names["f"]
    if not draw.shape.is_class:
        return (Probe(name, f"{name}({_holes(parameters)})", parameters, keys),)
    heads = [re.match(r"    def (\w+)\(self(?:, )?(.*)\):", line) for line in lines]
    methods = {head[1]: tuple(filter(None, head[2].split(", "))) for head in heads if head}
    slots = {draw.names[slot]: (slot, kind) for slot, kind in parameters}
    held = tuple(slots[name] for name in methods.pop("__init__"))
    return tuple(
        Probe(
            f"{name}.{method}",
            f"{name}({_holes(held)}).{method}({_holes(tuple(slots[arg] for arg in arguments))})",
            held + tuple(slots[arg] for arg in arguments),
            keys,
        )
        for method, arguments in methods.items()
    )


def _holes(parameters: tuple[tuple[str, str], ...]) -> str:
    return ", ".join(f"{{{slot}}}" for slot, _ in parameters)
