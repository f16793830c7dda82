"""Observations by content: (tree, command, limits, back end) -> what was printed and what changed."""

from __future__ import annotations

import contextlib
import os
import sqlite3
import threading
import warnings
from collections import OrderedDict
from pathlib import Path

from dagger_nb.errors import EnvironmentProblem

MEMORY_BYTES = 64 << 20
_BUSY_S = 30.0


class Cache:
    """A bounded memory of the most recent values, over an optional SQLite file that only grows.

    The file may be shared by processes and survives a kill (write-ahead log). A file that is no
    database is moved aside with a warning. Safe in threads and after a fork.

    Raises:
        EnvironmentProblem: the file cannot be made or opened.
    """

    def __init__(self, path: Path | None = None) -> None:
        self.path = path
        self._fresh()
        try:
            if path:
                self._database()
        except (OSError, sqlite3.OperationalError) as error:
            raise EnvironmentProblem(f"observation cache {path}: {error}; name a file that can be written") from error

    def _fresh(self) -> None:
        self._pid, self._lock, self._connection = os.getpid(), threading.RLock(), None
        self._values: OrderedDict[bytes, bytes] = OrderedDict()
        self._bytes = 0

    def get(self, key: bytes) -> bytes | None:
        with self._mine():
            value = self._values.get(key)
            if value is None and self.path:
                row = self._ask("SELECT value FROM observations WHERE key = ?", key)
                value = row[0] if row else None
            if value is not None:
                self._remember(key, value)
            return value

    def put(self, key: bytes, value: bytes) -> None:
        with self._mine():
            self._remember(key, value)
            if self.path:
                self._ask("INSERT OR REPLACE INTO observations VALUES (?, ?)", key, value)

    def close(self) -> None:
        with self._mine():
            if self._connection:
                self._connection.close()
            self._fresh()

    def _mine(self) -> threading.RLock:
        """The lock; a forked child first forgets the parent's lock and connection."""
        if self._pid != os.getpid():
            self._fresh()
        return self._lock

    def _remember(self, key: bytes, value: bytes) -> None:
        self._bytes += len(value) - len(self._values.pop(key, b""))
        self._values[key] = value
        while self._bytes > MEMORY_BYTES:
            self._bytes -= len(self._values.popitem(last=False)[1])

    def _ask(self, statement: str, *values: bytes) -> tuple | None:
        """One statement in its own transaction; a broken file is replaced, a full or busy disk only costs time."""
        try:
            with self._database() as connection:
                return connection.execute(statement, values).fetchone()
        except sqlite3.OperationalError as error:
            warnings.warn(f"observation cache {self.path}: {error}; going on without it", stacklevel=2)
        except sqlite3.DatabaseError as error:
            self._set_aside(error)
        return None

    def _database(self) -> sqlite3.Connection:
        if self._connection is None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            try:
                self._connection = self._open()
            except sqlite3.DatabaseError as error:
                if isinstance(error, sqlite3.OperationalError):  # a matter of permissions or disk, not of content
                    raise
                self._set_aside(error)
                self._connection = self._open()
        return self._connection

    def _open(self) -> sqlite3.Connection:
        connection = sqlite3.connect(self.path, timeout=_BUSY_S, check_same_thread=False)
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = NORMAL")
        connection.execute("CREATE TABLE IF NOT EXISTS observations (key BLOB PRIMARY KEY, value BLOB) WITHOUT ROWID")
        connection.commit()
        return connection

    def _set_aside(self, error: Exception) -> None:
        aside = next(p for n in range(1000) if not (p := self.path.with_name(f"{self.path.name}.broken-{n}")).exists())
        warnings.warn(f"{self.path} is not a usable cache ({error}); moved to {aside.name}", stacklevel=2)
        if self._connection:
            self._connection.close()
        self._connection = None
        for ending in ("", "-wal", "-shm"):
            with contextlib.suppress(FileNotFoundError):
                Path(f"{self.path}{ending}").rename(f"{aside}{ending}")
