"""Inputs of tests: small values of each parameter type, leaning to the borders that bugs move."""

from __future__ import annotations

import random
from typing import Any

from dagger_nb.tasks.units import Probe
from dagger_nb.tasks.words import SAMPLES, SHORT


def draw_arguments(rng: random.Random, probe: Probe) -> dict[str, Any]:
    """One value for each parameter of a probe, by slot."""
    values: dict[str, Any] = {}
    for slot, kind in probe.parameters:
        values[slot] = _DRAW[kind](rng, list(values.values()), probe.keys)
    return values


def _ints(rng: random.Random, seen: list, keys: tuple[str, ...]) -> list[int]:
    return [rng.randint(0, 9) for _ in range(rng.randint(2, 4))]


def _int(rng: random.Random, seen: list, keys: tuple[str, ...]) -> int:
    """Often a number that occurs in an earlier argument, so that `>` and `>=` differ."""
    known = [number for value in seen for number in _numbers(value)]
    if known and rng.random() < 0.6:
        return rng.choice(known)
    return rng.randint(0, 9)


def _numbers(value: Any) -> list[int]:
    if isinstance(value, dict):
        value = list(value.values())
    items = value if isinstance(value, list) else [value]
    return [item for item in items if type(item) is int]


def _text(rng: random.Random, seen: list, keys: tuple[str, ...]) -> str:
    return " ".join(rng.sample(SAMPLES, rng.randint(1, 2)))


def _letter(rng: random.Random, seen: list, keys: tuple[str, ...]) -> str:
    """Mostly a letter of an earlier text, at a border of it half of the time."""
    if rng.random() < 0.3:
        return rng.choice("abcdefghijklmnoprstuw")
    texts = [text for value in seen for text in (value if isinstance(value, (list, dict)) else [value]) if text]
    word = rng.choice([text for text in texts if isinstance(text, str)] or ["able"])
    return rng.choice((word[0], word[-1], rng.choice(word.replace(" ", ""))))


def _word(rng: random.Random, seen: list, keys: tuple[str, ...]) -> str:
    """Mostly a key or an item of an earlier argument."""
    known = [word for value in seen if isinstance(value, (list, dict)) for word in value if isinstance(word, str)]
    return rng.choice(known) if known and rng.random() < 0.6 else rng.choice(SAMPLES)


def _words(rng: random.Random, seen: list, keys: tuple[str, ...]) -> list[str]:
    drawn = rng.sample(SAMPLES, rng.randint(2, 3))
    return [*drawn, rng.choice(drawn)] if rng.random() < 0.3 else drawn


def _counts(rng: random.Random, seen: list, keys: tuple[str, ...]) -> dict[str, int]:
    return {word: rng.randint(0, 9) for word in rng.sample(SHORT, rng.randint(1, 3))}


def _record(rng: random.Random, seen: list, keys: tuple[str, ...]) -> dict[str, int]:
    return {key: rng.randint(1, 9) for key in keys}


_DRAW = {
    "ints": _ints,
    "int": _int,
    "large": lambda rng, seen, keys: rng.randint(10, 299),
    "pos": lambda rng, seen, keys: rng.randint(1, 4),
    "text": _text,
    "word": _word,
    "letter": _letter,
    "words": _words,
    "counts": _counts,
    "record": _record,
    "matrix": lambda rng, seen, keys: [[rng.randint(0, 9) for _ in range(2)] for _ in range(rng.randint(2, 3))],
}
