"""One supervisor run: request in, reply out, whatever back end carries it."""

from __future__ import annotations

import functools
import marshal
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from dagger_nb.errors import SandboxError
from dagger_nb.sandboxes import supervisor
from dagger_nb.sandboxes.cgroups import Cgroups, Slot
from dagger_nb.sandboxes.isolation import Backend
from dagger_nb.sandboxes.limits import MIB, Limits
from dagger_nb.sandboxes.snapshot import ROOT
from dagger_nb.sandboxes.view import SITE, TOOLS, environment, interpreter, packages, tools

GRACE_S = 20.0  # beyond the command's own time, for starting, unpacking and packing
_BOOT = "import sys,marshal;exec(marshal.loads(sys.stdin.buffer.read(int(sys.argv[1]))))"
_ENTER = 'n=$1; shift; while [ $n -gt 0 ]; do echo $$ > "$1" || exit 125; shift; n=$((n-1)); done; exec "$@"'


@dataclass(frozen=True, slots=True)
class Reply:
    """What the supervisor reports of one command; `memory` says that the kernel ended it for its memory."""

    exit_code: int
    timed_out: bool = False
    overflow: bool = False
    too_large: bool = False
    memory: bool = False
    output: bytes = b""
    changed: tuple[supervisor.Entry, ...] = ()
    removed: tuple[bytes, ...] = ()
    special: tuple[bytes, ...] = ()


@dataclass(frozen=True, slots=True)
class Places:
    """Where things are inside."""

    root: str = ROOT
    tools: str = TOOLS
    site: str = SITE
    home: str = "/tmp"

    def inward(self, text: bytes) -> bytes:
        """For the plain back end, where no /testbed exists: the real folder's name instead."""
        return text if self.root == ROOT else text.replace(ROOT.encode(), self.root.encode())

    def outward(self, text: bytes) -> bytes:
        return text if self.root == ROOT else text.replace(self.root.encode(), ROOT.encode())


@dataclass(frozen=True, slots=True)
class Job:
    """One command and the entries it runs on; `repository` is the packed `.git`."""

    command: bytes
    limits: Limits
    tree: list[supervisor.Entry]
    repository: list[supervisor.Entry]

    def request(self, places: Places, isolated: bool) -> bytes:
        inside = tools() if isolated else tools(packages())
        parts = [places.inward(self.command), self.limits.settings(), places.root.encode(), places.tools.encode()]
        parts.append(environment(places.root, places.tools, places.site, places.home))
        return supervisor.pack(parts + [supervisor.pack_entries(part) for part in (inside, self.repository, self.tree)])

    @property
    def testbed(self) -> int:
        """Bytes for /testbed: the tree at its largest and `.git`."""
        return self.limits.disk + sum(supervisor.rounded(len(data)) for _, _, _, data in self.repository)


def execute(job: Job, backend: Backend, cgroups: Cgroups | None) -> Reply:
    """Run one job.

    Raises:
        SandboxError: the back end did not start or its reply is torn.
    """
    with ExitStack() as stack:
        slot = _slot(cgroups, job.limits, stack)
        places = stack.enter_context(_places(backend))
        code = _supervisor()
        inside = [interpreter(), "-ISE", "-c", _BOOT, str(len(code))]
        line = backend.wrap(inside, job.testbed, job.limits.disk)
        kills = slot.kills() if slot else 0
        status, out, err = _exchange(_enter(slot, line), code + job.request(places, backend.isolates), job.limits)
        if slot and status != 0 and slot.kills() > kills:  # memory ran out and even the supervisor fell
            return Reply(137, memory=True)
        return _reply(status, out, err, places, backend)


def _slot(cgroups: Cgroups | None, limits: Limits, stack: ExitStack) -> Slot | None:
    try:
        return cgroups and stack.enter_context(cgroups.slot(limits.memory_mb * MIB, limits.processes))
    except OSError as error:
        raise SandboxError(f"cannot make or limit a cgroup: {error}; remove stale dagger-nb-* groups") from error


def _enter(slot: Slot | None, line: list[str]) -> list[str]:
    """The line behind a small shell that first puts itself into the cgroup."""
    return (
        line if slot is None else ["/bin/sh", "-c", _ENTER, "enter", str(len(slot.entrances)), *slot.entrances, *line]
    )


@contextmanager
def _places(backend: Backend) -> Iterator[Places]:
    if backend.isolates:
        yield Places()
        return
    folder = Path(tempfile.mkdtemp(prefix="dagger-nb-")).resolve()
    try:
        for name in ("testbed", "tools", "home"):
            (folder / name).mkdir()
        yield Places(*(str(folder / name) for name in ("testbed", "tools", "tools/site", "home")))
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@functools.cache
def _supervisor() -> bytes:
    """The supervisor as code that the bare interpreter inside (the same version) executes."""
    path = Path(supervisor.__file__)
    return marshal.dumps(compile(path.read_text(), "supervisor.py", "exec"))


def _exchange(line: list[str], request: bytes, limits: Limits) -> tuple[int, bytes, bytes]:
    """Exit status, stdout and stderr of the back end, which starts with an empty environment."""
    clean = {"PATH": "/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin"}
    pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    try:
        process = subprocess.Popen(line, env=clean, cwd="/", start_new_session=True, **pipes)
    except OSError as error:
        raise SandboxError(f"cannot start {line[0]}: {error}") from error
    with process:
        try:
            out, err = process.communicate(request, timeout=limits.wall_s + GRACE_S)
        except subprocess.TimeoutExpired as error:
            raise SandboxError(f"the sandbox did not answer in {limits.wall_s + GRACE_S:.0f} s") from error
        finally:
            if process.poll() is None:
                process.kill()
    return process.returncode, out, err


def _reply(status: int, out: bytes, err: bytes, places: Places, backend: Backend) -> Reply:
    try:
        numbers, output, changed, removed, special = supervisor.unpack(out)
        code, *flags = map(int, numbers.split())
        timed_out, overflow, too_large = map(bool, flags)
        return Reply(
            exit_code=code,
            timed_out=timed_out,
            overflow=overflow,
            too_large=too_large,
            output=places.outward(output),
            changed=tuple(supervisor.unpack_entries(changed)),
            removed=tuple(supervisor.unpack(removed)),
            special=tuple(supervisor.unpack(special)),
        )
    except ValueError as error:
        end = err.decode(errors="replace").strip()[-1000:] or "(nothing on stderr)"
        raise SandboxError(
            f"{backend.name}: no complete reply (exit status {status}); its last words: {end}"
        ) from error


def probe(backend: Backend) -> str:
    """The versions of bash, git and Python inside.

    Raises:
        SandboxError: the back end does not work here.
    """
    if shutil.which(backend.program) is None:
        raise SandboxError(f"{backend.program} is not installed")
    command = b"echo $BASH_VERSION && git --version && python -VV && python -c 'import pytest'"
    reply = execute(Job(command, Limits(), [], []), backend, None)
    output = reply.output.decode(errors="replace").strip()
    if reply.exit_code != 0:
        raise SandboxError(f"a command inside failed: {output}")
    return output
