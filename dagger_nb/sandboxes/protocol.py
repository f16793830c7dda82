"""What a sandbox is: a single-use workspace at /testbed in which one episode's actions run."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from dagger_nb.errors import SandboxError
from dagger_nb.records import Task

PAUSE_S = 600.0  # between two tries to pull what a registry does not hand out yet
PAUSES = 48  # 8 hours; Docker Hub counts pulls over 6
PAUSED = f"the registry hands out no more images for now; it is asked again in {PAUSE_S / 60:.0f} minutes"


@dataclass(frozen=True, slots=True)
class CommandResult:
    """What a command printed (canonical: see `sandboxes.canonical`) and how it ended."""

    output: str  # stdout and stderr in the order written, canonical, cut to the output limit
    exit_code: int  # of bash; 124 when the wall-clock limit ended it
    timed_out: bool = False
    truncated: bool = False


@runtime_checkable
class Sandbox(Protocol):
    """One episode's workspace. Paths are relative to /testbed or absolute below it."""

    def run(self, command: str, timeout_s: float | None = None) -> CommandResult:
        """Run `bash -c command` in /testbed. Raises SandboxError when the sandbox itself fails."""

    def read(self, path: str) -> str:
        """Text of a file. Raises FileNotFoundError, IsADirectoryError, PermissionError (outside /testbed), and
        UnicodeDecodeError where it is no UTF-8, as writing it back would change what was not edited."""

    def write(self, path: str, text: str) -> None:
        """Create or overwrite a file, making its folders. Raises IsADirectoryError, PermissionError, OSError."""

    def diff(self) -> str:
        """The patch (git diff, untracked files included) from base_commit to the tree as it is now.

        Empty where the episode's commands have removed what it is made with. Raises SandboxError.
        """

    def close(self) -> None:
        """Destroy the workspace; safe to call twice."""


class SandboxFactory(Protocol):
    """Opens sandboxes of one kind and says what they protect."""

    name: str

    def open(self, task: Task) -> Sandbox:
        """A fresh sandbox with the task's tree at base_commit, history scrubbed to that one commit."""

    def prefetch(self, tasks: Iterable[Task], log: Callable[[str], None] = print) -> Mapping[str, SandboxError]:
        """Fetch what sandboxes of these tasks are about to need, in this order; what cannot be had -> why.

        Nothing is raised for what is missing: it is the failure of the sandbox that needs it, when that is opened.
        """

    def guarantees(self) -> dict[str, str]:
        """For the log and the manifest: each protection ('network', 'files', 'memory', ...) and how it is held."""
