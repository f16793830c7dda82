"""Runs a generated repository's tests in this process, with the outcome that pytest would report.

Only for trusted sources that this package wrote: they are executed without a sandbox.
"""

from __future__ import annotations

import builtins
import types
from collections.abc import Iterable, Mapping
from types import CodeType
from typing import Any


class Program:
    """Compiled files of one repository (path -> code); variants share the code of unchanged files."""

    def __init__(self, files: Mapping[str, str]):
        self.codes = {path: compile_file(path, text) for path, text in files.items() if path.endswith(".py")}

    def replaced(self, codes: Mapping[str, CodeType]) -> Program:
        """The same repository with other code in some files."""
        other = Program({})
        other.codes = {**self.codes, **codes}
        return other

    def run(self, path: str) -> dict[str, Any]:
        """Execute one file, with what it imports; its namespace. Raises whatever the file raises."""
        return _Modules(self.codes).run(path, path)

    def failing(self, test_files: Iterable[str]) -> set[str]:
        """Ids of the failing tests. A file that cannot be imported fails as a whole, as in pytest."""
        modules = _Modules(self.codes)
        return {test for path in test_files for test in self._failing_in(path, modules)}

    def _failing_in(self, path: str, modules: _Modules) -> list[str]:
        names = [name for name in self.codes[path].co_names if name.startswith("test_")]
        try:
            space = modules.run(path, path)
        except Exception:
            return [f"{path}::{name}" for name in names]
        return [f"{path}::{name}" for name in names if not _passes(space[name])]


def compile_file(path: str, text: str) -> CodeType:
    return compile(text, path, "exec", dont_inherit=True)


def _passes(test: types.FunctionType) -> bool:
    try:
        test()
    except Exception:
        return False
    return True


class _Modules:
    """A small import system over compiled files: `from package.module import name` and nothing else."""

    def __init__(self, codes: Mapping[str, CodeType]):
        self.codes = codes
        self.loaded: dict[str, types.ModuleType] = {}
        self.builtins = {**vars(builtins), "__import__": self._import}

    def run(self, path: str, name: str) -> dict:
        """Execute one file; its namespace."""
        module = types.ModuleType(name)
        module.__dict__["__builtins__"] = self.builtins
        self.loaded[name] = module
        try:
            exec(self.codes[path], module.__dict__)
        except BaseException:
            del self.loaded[name]  # as Python does: a failed import is tried again
            raise
        return module.__dict__

    def _import(self, name: str, globals=None, locals=None, fromlist=(), level=0) -> types.ModuleType:
        path = name.replace(".", "/") + ".py"
        if path not in self.codes:
            raise ModuleNotFoundError(f"No module named {name!r}")
        if name not in self.loaded:
            self.run(path, name)
        return self.loaded[name]  # a missing name makes the `from ... import` raise ImportError itself
