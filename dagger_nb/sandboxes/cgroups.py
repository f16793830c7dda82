"""Memory and process limits over a whole command, through cgroup version 2 or 1, where this process may.

A slot is one cgroup (two folders with version 1), used by one command at a time and again by the next.
"""

from __future__ import annotations

import itertools
import os
import re
import threading
import time
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

MOUNT = Path("/sys/fs/cgroup")
PREFIX = "dagger-nb"
# file -> what is written: "memory" in bytes, "processes" a count, or a literal; the first file must exist
_V2 = {"memory.max": "memory", "pids.max": "processes", "memory.swap.max": "0", "memory.oom.group": "0"}
_V1_MEMORY = {"memory.limit_in_bytes": "memory", "memory.memsw.limit_in_bytes": "memory"}
_V1_PIDS = {"pids.max": "processes"}


@dataclass(frozen=True, slots=True)
class Slot:
    """One cgroup: its folders, each with the files that hold its limits."""

    folders: tuple[tuple[Path, dict[str, str]], ...]

    def limit(self, memory: int, processes: int) -> None:
        values = {"memory": str(memory), "processes": str(processes)}
        for folder, files in self.folders:
            for name, value in files.items():
                if (folder / name).exists():
                    (folder / name).write_text(values.get(value, value))

    @property
    def entrances(self) -> list[str]:
        """The files into which a process writes its id to be limited."""
        return [str(folder / "cgroup.procs") for folder, _ in self.folders]

    def kills(self) -> int:
        """How often the kernel has killed a process here because memory ran out."""
        found = 0
        for folder, _ in self.folders:
            for name in ("memory.events", "memory.oom_control"):
                if (folder / name).exists():
                    match = re.search(r"^oom_kill (\d+)$", (folder / name).read_text(), re.MULTILINE)
                    found += int(match.group(1)) if match else 0
        return found

    def remove(self) -> None:
        for folder, _ in self.folders:
            _remove(folder)


class Cgroups:
    """The slots of this process. Thread-safe; a forked child makes slots of its own."""

    def __init__(self, parents: list[tuple[Path, dict[str, str]]], kind: str) -> None:
        self.kind = kind
        self._parents = parents
        self._fresh()

    def _fresh(self) -> None:
        self._pid, self._free, self._all = os.getpid(), [], []
        self._count, self._lock = itertools.count(), threading.Lock()
        self._finalizer = weakref.finalize(self, _remove_all, self._pid, self._all)

    @contextmanager
    def slot(self, memory: int, processes: int) -> Iterator[Slot]:
        """A limited cgroup for one command.

        Raises:
            OSError: the cgroup cannot be made or limited.
        """
        if self._pid != os.getpid():
            self._fresh()
        with self._lock:
            slot = self._free.pop() if self._free else self._make()
        slot.limit(memory, processes)
        yield slot
        with self._lock:  # after an error the slot is not used again
            self._free.append(slot)

    def _make(self) -> Slot:
        name = f"{PREFIX}-{os.getpid()}-{id(self):x}-{next(self._count)}"
        slot = Slot(tuple((parent / name, files) for parent, files in self._parents))
        for folder, _ in slot.folders:
            folder.mkdir()
        self._all.append(slot)
        return slot

    def close(self) -> None:
        self._finalizer()
        self._fresh()


def find() -> Cgroups | None:
    """The cgroups that this process may make and limit, or None."""
    for parents, kind in _candidates():
        if all((parent / "cgroup.procs").exists() for parent, _ in parents):
            _sweep(parents)
            groups = Cgroups(parents, kind)
            try:
                with groups.slot(64 << 20, 16) as slot:
                    if _limited(slot):
                        return groups
            except OSError:
                pass
            finally:
                groups.close()
    return None


def _limited(slot: Slot) -> bool:
    """Whether both a memory and a process limit are there, and a process may enter."""
    present = {value for folder, files in slot.folders for name, value in files.items() if (folder / name).exists()}
    child = os.fork()
    if child == 0:
        try:
            for entrance in slot.entrances:
                Path(entrance).write_text("0")
            os._exit(0)
        finally:
            os._exit(1)
    return {"memory", "processes"} <= present and os.waitpid(child, 0)[1] == 0


def _candidates() -> Iterator[tuple[list[tuple[Path, dict[str, str]]], str]]:
    try:
        lines = Path("/proc/self/cgroup").read_text().splitlines()
    except OSError:
        return
    rows = [line.split(":", 2) for line in lines]  # number, controllers, path
    own = {name: path.lstrip("/") for _, names, path in rows for name in names.split(",")}
    if "memory" in own and "pids" in own:
        memory, pids = MOUNT / "memory" / own["memory"], MOUNT / "pids" / own["pids"]
        yield [(memory, _V1_MEMORY), (pids, _V1_PIDS)], "cgroup v1"
    if "" in own:  # a child of the own group, or else a sibling where the parent is delegated
        for folder in (MOUNT / own[""], (MOUNT / own[""]).parent):
            if folder.is_relative_to(MOUNT):
                yield [(folder, _V2)], "cgroup v2"


def _remove_all(owner: int, slots: list[Slot]) -> None:
    """At close, or when the owner ends without one; a forked child leaves its parent's slots alone."""
    if owner == os.getpid():
        for slot in slots:
            slot.remove()


def _sweep(parents: list[tuple[Path, dict[str, str]]]) -> None:
    """Remove the empty slots of processes that are gone."""
    for parent, _ in parents:
        for folder in sorted(parent.glob(f"{PREFIX}-*")):
            if not Path("/proc", folder.name.split("-")[2]).exists():
                _remove(folder)


def _remove(folder: Path) -> None:
    for _ in range(20):
        try:
            folder.rmdir()
            return
        except FileNotFoundError:
            return
        except OSError:  # still busy: the last process is being reaped
            time.sleep(0.01)
