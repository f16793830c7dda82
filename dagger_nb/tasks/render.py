"""The text of a repository's files: modules of the package and test files."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from dagger_nb.tasks.repository import WIDTH, Module


@dataclass(frozen=True, slots=True)
class Source:
    """The correct text of one module, as lines; `starts` is the first line of each unit (0-based)."""

    path: str
    lines: tuple[str, ...]
    starts: tuple[int, ...]
    imports: range  # the lines that import

    def text(self, changes: Mapping[int, str]) -> str:
        """The file with other lines at some places."""
        return "\n".join(changes.get(number, line) for number, line in enumerate(self.lines)) + "\n"


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
    return Source(f"{package}/{module.name}.py", tuple(lines), tuple(starts), range(2, 2 + len(imports)))


def import_lines(package: str, module: str, names: list[str]) -> list[str]:
    """`from package.module import a, b` in as few lines as the width allows."""
    head = f"from {package}.{module} import "
    lines: list[str] = []
    for name in names:
        if lines and len(lines[-1]) + len(name) + 2 <= WIDTH:
            lines[-1] += ", " + name
        else:
            lines.append(head + name)
    return lines
