"""Words of docstrings that stand for one piece of code, the same in every shape."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Choice:
    """Rows of (words, code, code, ...); a bug puts the code of another row."""

    kinds: tuple[str, ...]  # of a bug, one a code column
    rows: tuple[tuple[str, ...], ...]
    columns: tuple[str, ...] = ()  # names of the code columns, where there are several


_CMP = (("at least", ">="), ("more than", ">"), ("at most", "<="), ("less than", "<"))

CHOICES = {
    "cmp": Choice(("comparison",), _CMP),
    "above": Choice(("comparison",), _CMP[:2]),
    "below": Choice(("comparison",), _CMP[2:]),
    "op": Choice(("operator",), (("plus", "+"), ("minus", "-"), ("times", "*"))),
    "opb": Choice(("operator",), (("plus", "+"), ("minus", "-"), ("times", "*"))),
    "add": Choice(("operator",), (("plus", "+"), ("minus", "-"))),
    "agg": Choice(
        ("operator", "start_value"), (("sum", "+=", "0"), ("product", "*=", "1")), ("op", "start")
    ),
    "most": Choice(("comparison",), (("largest", ">"), ("smallest", "<"))),
    "long": Choice(("comparison",), (("longest", ">"), ("shortest", "<"))),
    "mm": Choice(("min_max",), (("larger", "max"), ("smaller", "min"))),
    "mms": Choice(("min_max",), (("largest", "max"), ("smallest", "min"))),
    "num": Choice(("constant",), tuple((digit, digit) for digit in "2345")),
    "lim": Choice(("constant",), tuple((digit, digit) for digit in "4567")),
    "len": Choice(("constant",), (("3", "3"), ("4", "4"), ("5", "5"))),
    "wid": Choice(("constant",), tuple((digit, digit) for digit in ("8", "9", "10", "12"))),
    "st": Choice(("start_value",), (("0", "0"), ("1", "1"), ("2", "2"))),
    "mod": Choice(("constant",), (("2", "2"), ("3", "3"), ("4", "4"))),
    "sep": Choice(
        ("constant",), (("a dash", "'-'"), ("a space", "' '"), ("a comma", "','"), ("a dot", "'.'"))
    ),
    "case": Choice(("method",), (("upper case", "upper"), ("lower case", "lower"), ("title case", "title"))),
    "side": Choice(("method",), (("left", "rjust"), ("right", "ljust"))),
    "edge": Choice(("method",), (("start", "startswith"), ("end", "endswith"))),
    "end": Choice(("constant",), (("first", "[0]"), ("last", "[-1]"))),
    "order": Choice(("constant",), (("low to high", "False"), ("high to low", "True"))),
    "than": Choice(("comparison",), (("larger", ">"), ("smaller", "<"))),
    "par": Choice(("comparison",), (("even", "=="), ("odd", "!="))),
    "nth": Choice(("constant",), (("second", "2"), ("third", "3"))),
    "lens": Choice(("constant",), (("short to long", "False"), ("long to short", "True"))),
    "truth": Choice(("boolean",), (("true", ""), ("false", "not "))),
    "put": Choice(("method",), (("end", "append("), ("front", "insert(0, "))),
}  # fmt: skip
