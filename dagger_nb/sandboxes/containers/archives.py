"""Files on their way into a container, as tar archives."""

from __future__ import annotations

import io
import os
import tarfile
from collections.abc import Iterable

from dagger_nb.records import Task
from dagger_nb.sandboxes import supervisor
from dagger_nb.sandboxes.base import Base
from dagger_nb.sandboxes.containers.scripts import OWN
from dagger_nb.sandboxes.limits import Limits
from dagger_nb.sandboxes.repository import TIME

AGENT = "1000:1000"  # who owns, and works on, files that a task brings
_KINDS = {b"d": tarfile.DIRTYPE, b"l": tarfile.SYMTYPE}
_OWN = OWN[1:].encode()
_ROOMY = Limits(disk_mb=1024, files=1_000_000)


def own_folder() -> bytes:
    """The folder OWN, open to whoever runs commands."""
    return tar([(_OWN, b"d", 0, b"")], mode=0o777)


def one_file(name: str, data: bytes) -> bytes:
    """A single file that everybody may read and replace."""
    return tar([(os.fsencode(name), b"f", 0, data)], mode=0o666)


def files_of(task: Task) -> bytes:
    """The task's tree with its repository at /testbed, and the second copy of the repository in OWN.

    Raises:
        DataError: the task has no files, or they are not those of its base_commit.
    """
    base = Base(task, _ROOMY)
    rows = [(b"testbed", b"d", TIME, b""), (_OWN, b"d", TIME, b"")]
    rows += [(b"testbed/" + path, *rest) for path, *rest in (*base.entries(base.snapshot), *base.repository)]
    rows += [(_OWN + b"/" + path.removeprefix(b"."), *rest) for path, *rest in base.repository]
    return tar(rows, owner=AGENT)


def tar(entries: Iterable[supervisor.Entry], *, owner: str = "0:0", mode: int = 0) -> bytes:
    """A tar archive of entries (path, kind, mtime, data) and the folders in which they lie.

    `mode` stands in for the usual one (644, and 755 for folders and executables).
    """
    body, made = io.BytesIO(), {b""}
    with tarfile.open(fileobj=body, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for path, kind, mtime, data in entries:
            parents = [path[:at] for at in range(len(path)) if path[at : at + 1] == b"/"]
            for name in [parent for parent in parents if parent not in made]:
                archive.addfile(_member(name, b"d", b"", mtime, owner, mode))
            if path not in made:
                archive.addfile(_member(path, kind, data, mtime, owner, mode), io.BytesIO(data))
            made.update(parents, [path])
    return body.getvalue()


def _member(path: bytes, kind: bytes, data: bytes, mtime: int, owner: str, mode: int) -> tarfile.TarInfo:
    member = tarfile.TarInfo(os.fsdecode(path))
    member.type = _KINDS.get(kind, tarfile.REGTYPE)
    member.mode = mode or (0o755 if kind in (b"d", b"x") else 0o644)
    member.size = len(data) if member.isreg() else 0
    member.linkname = os.fsdecode(data) if kind == b"l" else ""
    member.mtime = mtime
    member.uid, member.gid = map(int, owner.split(":"))
    return member
