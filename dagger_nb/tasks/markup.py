"""The notation in which function shapes are written.

A shape is a block of text: a header line and a function (or class) whose words and operators vary.

    @sum_where add total | a:ints b:int -> int
    def $f($a, $b):
        ...

Header: `@key verbs | parameters -> result | helpers`; a helper is `h:type,type->type`.
Body: `$x` is a drawn name or word, `%x` the code that belongs to the drawn word `$x`, and
`«right|wrong|wrong:kind»` a place where a bug of that kind can be put. Every such place is spelled
out in words in the docstring or in a comment above the line.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

PLACE = re.compile(r"«(.+?):(\w+)»")
SLOT = re.compile(r"\$([a-z]+1?)|%([a-z]+)(?:\.(op|start))?")


@dataclass(frozen=True, slots=True)
class Shape:
    """A parsed block. `result` is `class` for a class, whose methods take the parameters that they name."""

    key: str
    verbs: tuple[str, ...]
    parameters: tuple[tuple[str, str], ...]
    result: str
    helpers: tuple[tuple[str, str], ...]
    body: tuple[str, ...]

    @property
    def is_class(self) -> bool:
        return self.result == "class"


def parse(text: str) -> tuple[Shape, ...]:
    """All shapes of a text of blocks, in order."""
    blocks = [block.strip("\n").split("\n") for block in text.split("\n@")[1:]]
    return tuple(_shape(header, [line.replace("'''", '"""') for line in lines]) for header, *lines in blocks)


def _shape(header: str, lines: list[str]) -> Shape:
    label, signature, *rest = (part.strip() for part in header.split("|"))
    key, *verbs = label.split()
    parameters, result = signature.split("->")
    helpers = rest[0].split() if rest else []
    return Shape(key, tuple(verbs), _pairs(parameters.split()), result.strip(), _pairs(helpers), tuple(lines))


def _pairs(fields: list[str]) -> tuple[tuple[str, str], ...]:
    return tuple(tuple(field.split(":", 1)) for field in fields)
