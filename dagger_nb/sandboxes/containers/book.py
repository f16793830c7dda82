"""Which images this project pulled, and when each was last used: a small SQLite file that processes share."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from dagger_nb.errors import SandboxError

_BUSY_S = 30.0


class Book:
    """Images by last use. Every method raises SandboxError when the file cannot be read or written."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def oldest_first(self) -> list[str]:
        return [image for (image,) in self._ask("SELECT image FROM pulled ORDER BY used, image")]

    def pulled(self, image: str) -> None:
        self._ask("INSERT OR REPLACE INTO pulled VALUES (?, ?)", image, time.time())

    def used(self, image: str) -> None:
        """Note a use; an image that was not pulled by this project is not in the book and stays out."""
        self._ask("UPDATE pulled SET used = ? WHERE image = ?", time.time(), image)

    def forget(self, image: str) -> None:
        self._ask("DELETE FROM pulled WHERE image = ?", image)

    def _ask(self, statement: str, *values: object) -> list[tuple]:
        try:
            with self._open() as connection:
                return connection.execute(statement, values).fetchall()
        except (OSError, sqlite3.Error) as error:
            raise SandboxError(
                f"the book of pulled images {self.path}: {error}; remove it (its images are then never pruned) "
                "or free disk space"
            ) from error

    @contextmanager
    def _open(self) -> Iterator[sqlite3.Connection]:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with closing(sqlite3.connect(self.path, timeout=_BUSY_S)) as connection, connection:
            connection.execute("CREATE TABLE IF NOT EXISTS pulled (image TEXT PRIMARY KEY, used REAL)")
            yield connection
