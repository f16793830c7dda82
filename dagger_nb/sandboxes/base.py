"""A task's tree at base_commit, ready for any number of commands."""

from __future__ import annotations

from dagger_nb.errors import ConfigError, DataError
from dagger_nb.records import Task
from dagger_nb.sandboxes import supervisor
from dagger_nb.sandboxes.limits import Limits
from dagger_nb.sandboxes.repository import TIME, repository
from dagger_nb.sandboxes.snapshot import Entry, Snapshot


class Base:
    """A task's tree at base_commit: its snapshot and the `.git` that belongs to it."""

    def __init__(self, task: Task, limits: Limits) -> None:
        if not task.files:
            raise DataError(f"{task.instance_id} has no files (they live in a container image): use Docker")
        self.snapshot = Snapshot({path: Entry("f", text.encode()) for path, text in task.files.items()})
        if self.snapshot.size > limits.disk:
            raise ConfigError(f"{task.instance_id}: the tree needs more than Limits.disk_mb = {limits.disk_mb} MiB")
        files, commit = repository({path: entry.data for path, entry in self.snapshot.entries.items()})
        if task.base_commit and task.base_commit != commit:
            raise DataError(f"{task.instance_id}: files give commit {commit}, not base_commit {task.base_commit}")
        self.repository = [
            (path.encode(), b"f", TIME + path.endswith("index"), data) for path, data in sorted(files.items())
        ]

    def entries(self, snapshot: Snapshot) -> list[supervisor.Entry]:
        """The snapshot for the supervisor; a file as in the base has the base's time, so git need not read it."""
        base = self.snapshot.entries
        return [
            (path_bytes(path), entry.kind.encode(), TIME + 60 * (base.get(path) != entry), entry.data)
            for path, entry in snapshot.entries.items()
        ]


def path_bytes(path: str) -> bytes:
    """A path of a snapshot as the file system has it."""
    return path.encode(errors="surrogateescape")
