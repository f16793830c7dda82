"""Runs one command and leaves nothing of it behind: started by `serving.process`, never imported.

It ends with its command, on SIGTERM, and as soon as whoever started it is gone: the starter holds the other end
of our standard input, and a killed process holds nothing. Orphans of the command's tree become our children
(Linux child subreaper), so that the tree is gone when we have no child left.

Usage: python guard.py GRACE_SECONDS COMMAND...; the exit code is the command's own (128 + n for signal n).
"""

from __future__ import annotations

import ctypes
import os
import select
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

PR_SET_CHILD_SUBREAPER = 36  # linux/prctl.h
TICK_S = 0.25


def main(grace_s: float, command: Sequence[str]) -> int:
    """Run the command to its end, or stop its whole tree; `grace_s` passes between asking and killing."""
    told: list[int] = []  # signals that came; a handler that raised could lose a child that is just being made
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # an interrupted cell keeps its server
    signal.signal(signal.SIGTERM, lambda number, _: told.append(number))
    child, parent = subprocess.Popen(command, stdin=subprocess.DEVNULL), os.getppid()
    while child.poll() is None and not told and _held(parent):
        pass
    _stop(child, grace_s)
    return child.returncode if child.returncode >= 0 else 128 - child.returncode


def _held(parent: int) -> bool:
    """Waits a tick; false once the parent is gone: its end of the pipe is closed, or (a fork has it) we are adopted."""
    readable = select.select([sys.stdin], [], [], TICK_S)[0]
    return os.getppid() == parent and (not readable or bool(os.read(sys.stdin.fileno(), 1)))


def _stop(child: subprocess.Popen[bytes], grace_s: float) -> None:
    child.terminate()
    try:
        child.wait(timeout=grace_s)
    except subprocess.TimeoutExpired:
        child.kill()
        child.wait()
    while orphans := _children():  # killing one hands us its own children
        for pid in orphans:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)


def _children() -> list[int]:
    """Our children, dead ones that nobody waited for included."""
    me = os.getpid()
    return [int(path.name) for path in Path("/proc").glob("[0-9]*") if _parent(path) == me]


def _parent(process: Path) -> int:
    try:
        return int((process / "stat").read_text().rpartition(")")[2].split()[1])
    except (OSError, IndexError):
        return 0  # it ended meanwhile


if __name__ == "__main__":
    sys.exit(main(float(sys.argv[1]), sys.argv[2:]))
