"""The files of a sandbox as an immutable value: path -> kind and bytes."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from types import MappingProxyType

from dagger_nb.sandboxes import supervisor

ROOT = "/testbed"
LINK_HOPS = 40


@dataclass(frozen=True, slots=True)
class Entry:
    """A file ("f"), executable ("x"), symbolic link ("l", data is its target) or empty folder ("d")."""

    kind: str
    data: bytes = b""


@dataclass(frozen=True)
class Snapshot:
    """An immutable tree; folders exist through what they hold, only empty ones have an entry.

    Paths are relative to /testbed with single slashes. File modes keep the executable bit only, and
    owners and times are not part of the tree.
    """

    entries: Mapping[str, Entry] = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "entries", MappingProxyType(dict(self.entries)))

    @cached_property
    def digest(self) -> bytes:
        """SHA-256 of paths, kinds and contents."""
        total = hashlib.sha256()
        for path in sorted(self.entries):
            entry = self.entries[path]
            total.update(supervisor.pack([os.fsencode(path), entry.kind.encode(), entry.data]))
        return total.digest()

    @cached_property
    def size(self) -> int:
        """Bytes on disk, in whole pages."""
        return sum(supervisor.rounded(len(entry.data)) for entry in self.entries.values() if entry.kind in "fx")

    @cached_property
    def folders(self) -> frozenset[str]:
        """Every folder below /testbed, the root as ""."""
        found = {path for path, entry in self.entries.items() if entry.kind == "d"} | {""}
        for path in self.entries:
            while path:
                path = path.rpartition("/")[0]
                found.add(path)
        return frozenset(found)

    def change(self, changed: Mapping[str, Entry], removed: Iterable[str] = ()) -> Snapshot:
        """A new snapshot with entries replaced or added and paths removed."""
        gone = set(removed)
        kept = {path: entry for path, entry in self.entries.items() if path not in gone}
        return Snapshot(kept | dict(changed))

    def put(self, path: str, data: bytes) -> Snapshot:
        """A new snapshot in which the file has these bytes; its executable bit stays.

        Raises:
            IsADirectoryError: the path is a folder.
            NotADirectoryError: one of its parents is a file.
        """
        if path in self.folders:
            raise IsADirectoryError(f"{ROOT}/{path} is a folder")
        parents = [path[:at] for at, letter in enumerate(path) if letter == "/"]
        for parent in parents:
            if self.entries.get(parent, Entry("d")).kind != "d":
                raise NotADirectoryError(f"{ROOT}/{parent} is a file, so {ROOT}/{path} cannot be made")
        kind = self.entries[path].kind if path in self.entries else "f"
        return self.change({path: Entry(kind, data)}, parents)

    def resolve(self, path: str) -> str:
        """The path relative to /testbed with links followed ("" is the root).

        Raises:
            PermissionError: the path leads outside /testbed, by itself or through a link.
        """
        todo = _parts(path)
        done: list[str] = []
        hops = 0
        while todo:
            part = todo.pop(0)
            if part == "..":
                _leave(done, path)
                continue
            done.append(part)
            entry = self.entries.get("/".join(done))
            if entry is None or entry.kind != "l":
                continue
            hops += 1
            if hops > LINK_HOPS:
                raise PermissionError(f"{path}: too many symbolic links")
            target = os.fsdecode(entry.data)
            done = [] if target.startswith("/") else done[:-1]
            todo = _inside(target, path) + todo
        return "/".join(done)


def _leave(done: list[str], path: str) -> None:
    if not done:
        raise PermissionError(f"{path} leads outside {ROOT}")
    done.pop()


def _parts(path: str) -> list[str]:
    """The components of a path that a caller named: below /testbed and without '..'."""
    parts = _inside(path, path)
    if ".." in parts:
        raise PermissionError(f"{path}: '..' is not allowed; name the file from {ROOT}")
    return parts


def _inside(target: str, path: str) -> list[str]:
    """The components of a relative path or of one below /testbed."""
    if target.startswith("/"):
        if target.rstrip("/") != ROOT and not target.startswith(ROOT + "/"):
            raise PermissionError(f"{path} leads outside {ROOT}")
        target = target[len(ROOT) :]
    if "\0" in target:
        raise PermissionError(f"{path!r}: a path cannot hold a NUL byte")
    return [part for part in target.split("/") if part not in ("", ".")]
