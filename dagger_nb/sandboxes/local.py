"""Local sandboxes: a snapshot of files, and commands as pure functions of it.

A `LocalSandbox` holds an immutable snapshot (path -> bytes). Reading and writing are dictionary
operations; `run` unpacks the snapshot into a fresh memory file system at /testbed inside an
isolation, runs `bash -c command` there, and takes the changed files back. So a command's result
depends on (snapshot, command, limits, back end) alone, and equal ones are looked up, not run.

Covered (each held by the isolating back ends; `guarantees()` says how it is here):
- network, host files, other processes, the host's environment, devices, privileges, kernel settings;
- memory and number of processes (of the whole command with a cgroup, else weaker), processor time of
  a process, wall-clock time, disk, number of files, output; nothing outlives its command;
- forged replies: the command cannot reach the supervisor's descriptors or memory;
- equal observations: fixed addresses, hash seed, file times, dates of commits, order of folders, and
  `canonical` for the rest; what a time limit ended is never kept in the cache.

Not covered:
- clocks, random numbers and races inside a command: `date` differs from run to run (the cache repeats it);
- owners, times and modes of files other than the executable bit, hard links, special files, and
  anything outside /testbed (so also /tmp): gone after the command, as are background processes;
- .git: every command finds a fresh one with the single commit base_commit. Commits, staging and
  stashes work within a command and end with it; the files stay. (In a container they would last.)
  The same holds for .pytest_cache, so `pytest --lf` remembers nothing from command to command;
- side channels (processor load, timing) and holes in the kernel itself; a task that must withstand
  a determined attacker belongs on a machine of its own.
"""

from __future__ import annotations

import dataclasses
import errno
import hashlib
import threading
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path

from dagger_nb.errors import SandboxError
from dagger_nb.records import Task
from dagger_nb.sandboxes import cgroups, launch, supervisor
from dagger_nb.sandboxes.base import Base, path_bytes
from dagger_nb.sandboxes.cache import Cache
from dagger_nb.sandboxes.choice import choose, identity, resource_guarantees, warn_plain
from dagger_nb.sandboxes.launch import Job, Reply
from dagger_nb.sandboxes.limits import READ_FACTOR, Limits
from dagger_nb.sandboxes.observation import Observation, observe
from dagger_nb.sandboxes.protocol import CommandResult
from dagger_nb.sandboxes.snapshot import ROOT, Snapshot
from dagger_nb.sandboxes.view import precompile

DEFAULT = Limits()

# The tree's own attributes must not convert or filter what goes into the patch.
_ATTRIBUTES = "* -text -ident -filter -working-tree-encoding"
_DIFF = (
    "mkdir -p .git/info && echo '{attributes}' > .git/info/attributes && git add -A -N . && "
    "git -c core.quotePath=true diff HEAD --no-color --no-ext-diff --no-textconv --no-renames --binary"
)
_DIFF_FACTOR = 4  # a patch takes at most this many times the disk limit: old and new, in base 85
_DIFF_ROOM_MB = 8  # for git's index beside a tree that fills its disk
_DIFF_WALL_S = 60.0


class LocalSandbox:
    """One episode's workspace; made by `LocalFactory.open`. Use it from one thread at a time."""

    def __init__(self, factory: LocalFactory, base: Base) -> None:
        self._factory, self._base = factory, base
        self._snapshot: Snapshot | None = base.snapshot

    @property
    def snapshot(self) -> Snapshot:
        """The tree as it is now. Raises SandboxError after `close`."""
        if self._snapshot is None:
            raise SandboxError("this sandbox is closed; open a new one")
        return self._snapshot

    def run(self, command: str, timeout_s: float | None = None) -> CommandResult:
        """Run `bash -c command` in /testbed; equal commands on equal trees are answered from the cache.

        Raises:
            SandboxError: the sandbox itself failed, or is closed.
        """
        limits = self._factory.limits.within(timeout_s)
        seen = self._factory.observation(self._base, self.snapshot, command, limits)
        self._snapshot = seen.apply(self.snapshot)
        return seen.result

    def read(self, path: str) -> str:
        """Text of a file.

        Raises:
            UnicodeDecodeError: it is no UTF-8.
            FileNotFoundError, IsADirectoryError: as the words say.
            PermissionError: the path leads outside /testbed.
        """
        place = self.snapshot.resolve(path)
        if place in self.snapshot.folders:
            raise IsADirectoryError(f"{ROOT}/{place} is a folder")
        if place not in self.snapshot.entries:
            raise FileNotFoundError(f"{ROOT}/{place} does not exist")
        return self.snapshot.entries[place].data.decode()

    def write(self, path: str, text: str) -> None:
        """Create or overwrite a file, making its folders.

        Raises:
            IsADirectoryError, NotADirectoryError: the path, or a parent of it, is of the other kind.
            PermissionError: the path leads outside /testbed or into .git.
            OSError: the tree would exceed the disk limit, or the name is too long.
        """
        place = self.snapshot.resolve(path)
        if ".git" in place.split("/"):
            raise PermissionError(f"{path}: .git is made anew for every command and cannot be written")
        after = self.snapshot.put(place, text.encode(errors="replace"))
        self._factory.check_room(place, after)
        self._snapshot = after

    def diff(self) -> str:
        """The patch from base_commit to the tree as it is now, untracked files included, ignored ones not.

        Raises:
            SandboxError: git failed inside, or the sandbox is closed.
        """
        if self.snapshot.digest == self._base.snapshot.digest:
            return ""
        return self._factory.patch(self._base, self.snapshot)

    def close(self) -> None:
        """Forget the tree; safe to call twice."""
        self._snapshot = None

    def __enter__(self) -> LocalSandbox:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


class LocalFactory:
    """Opens local sandboxes and holds what they share: back end, limits, cgroups and cache.

    Thread-safe, and usable after a fork or pickled into a worker process (where it opens its own
    cgroups and its own connection to the cache file).
    """

    def __init__(self, limits: Limits, cache: Path | None, backend: str | None) -> None:
        self.limits, self._cache_path, self._wanted = limits, cache, backend
        precompile()
        self.backend, versions = choose(backend)
        self.name = f"local-{self.backend.name}"
        self._cgroups = cgroups.find()
        self._cache = Cache(cache)
        self._identity = identity(self.name, versions, self._cgroups)
        self._counts: Counter[str] = Counter()
        self._lock = threading.Lock()
        if not self.backend.isolates:
            warn_plain()

    def open(self, task: Task) -> LocalSandbox:
        """A fresh sandbox with the task's tree at base_commit.

        Raises:
            DataError: the task has no files, or they are not those of its base_commit.
            ConfigError: the tree is larger than the disk limit.
        """
        return LocalSandbox(self, Base(task, self.limits))

    def prefetch(self, tasks: Iterable[Task], log: Callable[[str], None] = print) -> dict[str, SandboxError]:
        """Nothing: tasks bring their files."""
        return {}

    def guarantees(self) -> dict[str, str]:
        """Each protection and how it is held here; for the log and the manifest."""
        return (
            {"back end": self.backend.name} | self.backend.protections | resource_guarantees(self.limits, self._cgroups)
        )

    def stats(self) -> dict[str, int]:
        """Commands answered from the cache (hits), run and kept (misses), run and not kept (uncached)."""
        with self._lock:
            return {name: self._counts[name] for name in ("hits", "misses", "uncached")}

    def observation(self, base: Base, snapshot: Snapshot, command: str, limits: Limits) -> Observation:
        """What the command does to the snapshot, looked up or run. Raises SandboxError."""
        key = self._key(base, snapshot, command, limits, "observe")
        return self._cached(key, lambda: observe(self._execute(base, snapshot, command, limits), limits))

    def patch(self, base: Base, snapshot: Snapshot) -> str:
        """The diff of the snapshot against its base. Raises SandboxError."""
        limits = dataclasses.replace(
            self.limits,
            output_bytes=self.limits.disk * _DIFF_FACTOR // READ_FACTOR,
            disk_mb=self.limits.disk_mb + _DIFF_ROOM_MB,
            wall_s=max(self.limits.wall_s, _DIFF_WALL_S),
        )
        key = self._key(base, snapshot, _DIFF, limits, "patch")
        return self._cached(key, lambda: self._diff(base, snapshot, limits)).result.output

    def check_room(self, place: str, snapshot: Snapshot) -> None:
        """Raises OSError when the tree exceeds the limits or a path is too long."""
        if len(path_bytes(place)) > supervisor.PATH_LIMIT or max(map(len, map(path_bytes, place.split("/")))) > 255:
            raise OSError(errno.ENAMETOOLONG, "the file name is too long", place)
        if snapshot.size > self.limits.disk or len(snapshot.entries) > self.limits.files:
            raise OSError(errno.ENOSPC, f"no space left: the tree is limited to {self.limits.disk_mb} MiB", place)

    def close(self) -> None:
        """Give back cgroups and the cache file; safe to call twice."""
        if self._cgroups:
            self._cgroups.close()
        self._cache.close()

    def __enter__(self) -> LocalFactory:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def __reduce__(self) -> tuple:
        return LocalFactory, (self.limits, self._cache_path, self._wanted)

    def _diff(self, base: Base, snapshot: Snapshot, limits: Limits) -> Observation:
        """The patch as text; where a changed file is not UTF-8 every file goes in as git's binary patch."""
        for attributes in (_ATTRIBUTES, f"{_ATTRIBUTES} -diff"):
            reply = self._execute(base, snapshot, _DIFF.format(attributes=attributes), limits)
            if reply.exit_code != 0 or reply.overflow:
                end = reply.output[-500:].decode(errors="replace")
                raise SandboxError(f"git diff failed inside the sandbox (exit status {reply.exit_code}): {end}")
            try:
                return Observation(CommandResult(reply.output.decode(), 0))
            except UnicodeDecodeError:
                continue
        raise SandboxError("git wrote a patch that is no text even with every file as binary")

    def _execute(self, base: Base, snapshot: Snapshot, command: str, limits: Limits) -> Reply:
        if "\0" in command:
            return Reply(126, output=b"bash: the command holds a NUL byte")
        job = Job(command.encode(errors="replace"), limits, base.entries(snapshot), base.repository)
        return launch.execute(job, self.backend, self._cgroups)

    def _key(self, base: Base, snapshot: Snapshot, command: str, limits: Limits, form: str) -> bytes:
        text = [part.encode(errors="replace") for part in (command, repr(limits), form)]
        return hashlib.sha256(supervisor.pack([self._identity, base.snapshot.digest, snapshot.digest, *text])).digest()

    def _cached(self, key: bytes, make: Callable[[], Observation]) -> Observation:
        if (seen := _unpacked(self._cache.get(key))) is not None:
            self._count("hits")
            return seen
        made = make()
        if not made.keep:
            self._count("uncached")
        else:
            self._cache.put(key, made.pack())
            self._count("misses")
        return made

    def _count(self, name: str) -> None:
        with self._lock:
            self._counts[name] += 1


def local_factory(*, limits: Limits = DEFAULT, cache: Path | None = None, backend: str | None = None) -> LocalFactory:
    """A factory of local sandboxes on the best back end that works here, or on the named one.

    `cache` is the file in which observations are kept (made when missing); without it they are
    remembered by this process only. `backend` is "bubblewrap", "unshare" or "plain".

    Raises:
        ConfigError: no such back end.
        EnvironmentProblem: the named back end does not work here, or none does.
    """
    return LocalFactory(limits, cache, backend)


def _unpacked(value: bytes | None) -> Observation | None:
    """A cached observation; a torn one counts as not there."""
    try:
        return None if value is None else Observation.unpack(value)
    except ValueError:
        return None
