"""Every answer that was ever paid for, by content, in one SQLite file with the calls that brought them.

An answer is found by the digest of everything that was sent: rendered messages, tools, model and sampling, and
the seed where chance decides. What was answered once is not asked again, by any run. The file may be shared by
threads and processes and survives a kill (write-ahead log): answer and bill change in one transaction, so that
neither is there without the other. Keys and addresses of servers are no part of what is kept.
"""

from __future__ import annotations

import json
import os
import sqlite3
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from dagger_nb.errors import DataError, EnvironmentProblem

FORMAT = 1
BUSY_S = 60.0  # that one process waits for another's transaction, which takes well under a millisecond

_SCHEMA = """
CREATE TABLE IF NOT EXISTS answers (key TEXT PRIMARY KEY, reply TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS calls (
    id INTEGER PRIMARY KEY, run TEXT NOT NULL, round INTEGER NOT NULL, model TEXT NOT NULL, key TEXT NOT NULL,
    state TEXT NOT NULL, until REAL NOT NULL,
    prompt INTEGER NOT NULL, cached INTEGER NOT NULL, completion INTEGER NOT NULL, picos INTEGER NOT NULL);
CREATE INDEX IF NOT EXISTS open_calls ON calls (run, round) WHERE state = 'open';
CREATE TABLE IF NOT EXISTS totals (
    run TEXT, round INTEGER, queries INTEGER NOT NULL, tokens INTEGER NOT NULL, picos INTEGER NOT NULL,
    PRIMARY KEY (run, round)) WITHOUT ROWID;
"""


class AnswerFile:
    """The file at `path`, made when it does not exist; safe in threads, across processes and after a fork.

    It belongs on a local disk: SQLite's write-ahead log does not work over a network file system.

    Raises:
        EnvironmentProblem: it cannot be made or opened. DataError: it is no database, or of another format.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = threading.RLock()
        self._pid = 0
        self._connection: sqlite3.Connection | None = None
        with self._told():
            path.parent.mkdir(parents=True, exist_ok=True)
            self._connect()

    def find(self, key: str) -> dict[str, Any] | None:
        """The reply that was kept under a key, or None."""
        with self._told(), self._lock:
            row = self._connect().execute("SELECT reply FROM answers WHERE key = ?", (key,)).fetchone()
        return json.loads(row[0]) if row else None

    def keep(self, key: str, reply: Mapping[str, Any]) -> None:
        """Keep a reply, within a transaction of `writing`; the first one under a key stays."""
        text = json.dumps(reply, sort_keys=True, separators=(",", ":"))
        self._connect().execute("INSERT OR IGNORE INTO answers VALUES (?, ?)", (key, text))

    @contextmanager
    def writing(self) -> Iterator[sqlite3.Connection]:
        """One transaction that reads and writes alone: kept whole, or not at all where it raises or is killed."""
        with self._told(), self._lock:
            connection = self._connect()
            connection.execute("BEGIN IMMEDIATE")
            try:
                yield connection
            except BaseException:
                connection.execute("ROLLBACK")
                raise
            connection.execute("COMMIT")

    def rows(self, statement: str, *values: object) -> list[tuple[Any, ...]]:
        """What a SELECT finds."""
        with self._told(), self._lock:
            return self._connect().execute(statement, values).fetchall()

    def close(self) -> None:
        with self._lock:
            if self._connection is not None and self._pid == os.getpid():
                self._connection.close()
            self._connection = None

    def _connect(self) -> sqlite3.Connection:
        """The connection of this process; a forked child opens its own and never touches the parent's."""
        if self._connection is None or self._pid != os.getpid():
            self._connection, self._pid = self._open(), os.getpid()
        return self._connection

    def _open(self) -> sqlite3.Connection:
        connection = sqlite3.connect(self.path, timeout=BUSY_S, check_same_thread=False, isolation_level=None)
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = NORMAL")  # a kill loses nothing; a power cut the last moments
        found = connection.execute("PRAGMA user_version").fetchone()[0]
        if found not in (0, FORMAT):
            raise DataError(f"{self.path} is of format {found}, this version reads {FORMAT}; move it aside")
        connection.executescript(f"BEGIN IMMEDIATE; {_SCHEMA} PRAGMA user_version = {FORMAT}; COMMIT;")
        return connection

    @contextmanager
    def _told(self) -> Iterator[None]:
        """Errors of disk and database in the project's words: answers that were paid for are never passed over."""
        try:
            yield
        except (OSError, sqlite3.OperationalError) as error:
            raise EnvironmentProblem(f"{self.path}: {error}; free the disk or name a folder that can be written") from (
                error
            )
        except sqlite3.DatabaseError as error:
            raise DataError(f"{self.path} is no usable file of answers ({error}); move it aside") from error
