"""Observations in canonical form: the one place where text that differs from run to run is made equal.

What can be made equal at its source is, by the sandbox: fixed file times, addresses (no address
randomisation), hash seed, commit dates, 80 columns, and folders that list their names in order.
`canonical` does the rest, and shortens what only costs tokens. It is pure and idempotent:

1. Terminal codes go; carriage returns become line ends; trailing spaces, and blank lines at the end, go.
2. pytest and unittest: durations and the header of versions and folders go; a rule of 80 columns
   shrinks to `= short test summary info =`, the padding before a percentage to one space.
3. Addresses (`at 0x7f...`, or 12 hex digits) become 0x0; ids in the range of addresses become 0.
4. Random names below /tmp become /tmp/tmp; the folder of a Python installation becomes <python>.
5. git: `index abc..def` lines go; hashes in `commit ...`, `HEAD is now at ...`, `[main ...]` and in
   what `git stash` prints become <hash>.
6. `ls -l` lines keep mode, size (of files) and name, its `total` line goes; bash's messages about a
   killed job lose the process id.
7. Order: in an unbroken run of `path:line:` lines (grep -n) the files are sorted while each file's
   lines keep their order; an unbroken run of `./path` lines (find) is sorted. Only these two forms:
   sorting anything else could change what a text says.

Where a task has an image, every host has that image's Python and files: paths of Python and bare hexadecimal numbers
stay as they are, because an agent opens the ones and edits the others (`of_image`).

Not covered: commands whose purpose is to print a time, a random number or a process id, and pytest's
list of slowest tests. Rules 2 to 6 leave lines of more than 1000 characters alone.
"""

from __future__ import annotations

import re
from itertools import groupby

_LONG = 1000
_ANSI = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)|[@-Z\\-_])?")

# (what a line must contain, pattern, replacement): the first is a cheap test before the second.
_RULES = tuple(
    (needle, re.compile(pattern), new)
    for needle, pattern, new in (
        ("s", r"^((?:= )?(?:\d+ \w+, )*(?:\d+ \w+|no tests \w+)) in \d+\.\d+s(?: \(\d+:\d+:\d+\))?(?= =$|$)", r"\1"),
        ("Ran ", r"^(Ran \d+ tests?) in \d+\.\d+s$", r"\1"),
        ("%]", r" {2,}(\[ *\d+%\])$", r" \1"),
        (" at 0x", r"(?<= at )0x[0-9a-fA-F]{6,16}\b", "0x0"),
        ("0x", r"\b0x[0-9a-f]{12}\b", "0x0"),
        ("", r"\b(?:1(?:39|40)\d{12}|9[345]\d{12})\b", "0"),
        ("/tmp/tmp", r"/tmp/tmp(?:[a-z0-9_]{8}|\.[A-Za-z0-9]{10})(?![\w.])", "/tmp/tmp"),
        ("/lib/python3.", r"(?:/[\w.+-]{1,64}){0,12}/lib/python3\.\d+/(?=\w)", "<python>/"),
        ("", r"^(commit |HEAD is now at )[0-9a-f]{7,40}\b", r"\1<hash>"),
        ("[", r"^(\[[\w/.-]+(?: \([\w-]+\))? )[0-9a-f]{7,40}\]", r"\1<hash>]"),
        (" on ", r"( on [\w/.-]+: )[0-9a-f]{7,40} ", r"\1<hash> "),
        ("refs/stash@", r"\([0-9a-f]{40}\)$", "(<hash>)"),
        (": line ", r"^(\S+: line \d+:) +\d+ (?=[A-Z][a-z]+ )", r"\1 "),
    )
)
_OF_IMAGES = tuple(rule for rule in _RULES if rule[0] not in ("0x", "/lib/python3."))
_DROPPED = re.compile(
    r"platform \w+ -- Python .*|(?:cachedir: \.pytest_cache|rootdir: /\S*|plugins: [a-z][\w-]*-\d+\.\d.*)"
    r"|index [0-9a-f]{7,40}\.\.[0-9a-f]{7,40}(?: \d{6})?"
)
_DATE = r"(?:\w{3} [ \d]\d +\S+|\d{4}-\d\d-\d\d \S+(?: [+-]\d{4})?)"
_LS = re.compile(rf"([-dlbcps][-rwxsStT]{{9}})[+.@]? +\d+ \S+ +\S+ +(\d\S*(?:, +\d+)?) {_DATE} (.+)")
_RULER = re.compile(r"([=_!-])\1{2,} (\S.*?) \1{3,}")
_DOTTED_RULER = "_ " * 39 + "_"
_GREP = re.compile(r"([\w@+./-]+):\d+:")
_FIND = re.compile(r"((?:\.|/testbed)(?:/[^\s:]+)?)$")


def canonical(text: str, *, of_image: bool = False) -> str:
    """The text without what varies between equal runs; the module's docstring lists the rules.

    >>> canonical("\\x1b[32m1 passed\\x1b[0m in 0.03s  \\r\\n")
    '1 passed'
    >>> canonical("./b.py:3:x\\n./a.py:7:y\\n")
    './a.py:7:y\\n./b.py:3:x'
    """
    text = _ANSI.sub("", text).replace("\r\n", "\n").replace("\r", "\n")
    lines = _without_totals([line.rstrip(" \t\f\v") for line in text.split("\n")])
    rules = _OF_IMAGES if of_image else _RULES
    lines = [_line(line, rules) for line in lines if not _DROPPED.fullmatch(line)]
    for form in (_GREP, _FIND):
        lines = _sorted_runs(lines, form)
    return "\n".join(lines).rstrip("\n")


def _line(line: str, rules: tuple[tuple[str, re.Pattern[str], str], ...]) -> str:
    """Rules 2 to 6 on one line."""
    if len(line) > _LONG:
        return line
    line = _ruler(line)
    for needle, pattern, new in rules:
        if needle in line:
            line = pattern.sub(new, line)
    return _listed(line)


def _ruler(line: str) -> str:
    """A title between two rules that fill 80 columns, with short rules."""
    if line == _DOTTED_RULER:
        return "_ _"
    match = _RULER.fullmatch(line) if len(line) == 80 else None
    return f"{match[1]} {match[2]} {match[1]}" if match else line


def _listed(line: str) -> str:
    """An `ls -l` line as mode, size and name."""
    match = _LS.fullmatch(line)
    if not match:
        return line
    mode, size, name = match.groups()
    return f"{mode} {size} {name}" if mode.startswith("-") else f"{mode} {name}"


def _without_totals(lines: list[str]) -> list[str]:
    """Without `total N` before an `ls -l` line."""
    following = [*lines[1:], ""]
    return [
        line for line, after in zip(lines, following, strict=True)
        if not (line.startswith("total ") and line[6:].rstrip("KMG").isdigit() and _LS.fullmatch(after))
    ]  # fmt: skip


def _sorted_runs(lines: list[str], form: re.Pattern[str]) -> list[str]:
    """Each unbroken run of lines of this form, sorted stably by the form's first group, parts of a path compared."""
    out: list[str] = []
    for matches, run in groupby(lines, lambda line: form.match(line) is not None):
        found = list(run)
        out += sorted(found, key=lambda line: form.match(line)[1].split("/")) if matches else found
    return out
