"""A command in a session of its own that cannot outlive us, with everything it says in a log file."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from dagger_nb.paths import writable

GRACE_S = 10.0  # between asking a server to end and killing its tree
_GUARD = Path(__file__).with_name("guard.py")


class GuardedProcess:
    """A running command behind `guard.py`; close() or our own end, however it comes, ends its whole tree."""

    def __init__(self, command: Sequence[str], environment: Mapping[str, str], log: Path) -> None:
        """Start it in the log's folder; what it says is appended to `log`.

        Raises:
            EnvironmentProblem: the log's folder cannot be written.
        """
        self.log = log.absolute()
        with (writable(self.log.parent) / log.name).open("ab") as sink:
            self._start = sink.tell()
            self._guard = subprocess.Popen(
                [sys.executable, "-I", str(_GUARD), str(GRACE_S), *command],
                stdin=subprocess.PIPE,
                stdout=sink,
                stderr=subprocess.STDOUT,
                cwd=self.log.parent,
                env=dict(environment),
                start_new_session=True,
            )

    @property
    def exit_code(self) -> int | None:
        """None while it runs."""
        return self._guard.poll()

    def wait(self) -> int:
        """Its exit code, once it has ended."""
        return self._guard.wait()

    def tail(self, lines: int = 25) -> str:
        """The end of what this command has said."""
        with self.log.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(self._start, size - 64 * 1024))
            said = file.read().decode(errors="replace")
        return "\n".join(said.splitlines()[-lines:])

    def close(self) -> None:
        """End the tree and wait until it is gone. Closing twice is closing once."""
        self._guard.terminate()  # not by closing the pipe: a fork of ours may hold its end too
        self._guard.wait()
        self._guard.stdin.close()
