"""One container: its limits, and commands that are really over when they are over.

`docker exec` has no time limit, and what it started survives its client. So a command runs under a small shell
that kills every other process of the container when the command ends; and where that did not happen (the time
is up, too much was printed, the shell itself was killed) the whole container is restarted, which the kernel
turns into the end of every process in it. Files stay.

Commands may remove what starting a command needs, bash or its libraries. The image had it, so that is their doing
and no failure of the daemon: every later command ends with `NO_PROGRAM`.
"""

from __future__ import annotations

import errno
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import docker
from docker.errors import APIError
from docker.types import CancellableStream, LogConfig, Ulimit

from dagger_nb.errors import SandboxError
from dagger_nb.sandboxes.containers import lease
from dagger_nb.sandboxes.containers.errors import FAILURES, explained, reason
from dagger_nb.settings import SandboxSettings

GB = 1_000_000_000
LIFETIME_S = 86_400  # a container ends by itself after a day, whatever became of its owner
GRACE_S = 30.0  # from the end of a command's processes to the end of its output
ARGUMENT_BYTES = 131_000  # Linux takes at most 128 KiB in one argument
FILE_BYTES = 8 * GB  # of one file: a program that prints without end into one is ended
HOSTNAME = "testbed"  # as in the local sandbox
# What root has over its container's own files and processes. SWE-bench's expected outcomes were made with it: tests
# unlink in folders that are read-only, give files away, and run parts as another user.
ROOTS = ("CHOWN", "DAC_OVERRIDE", "FOWNER", "FSETID", "KILL", "SETGID", "SETUID")
KILLED = 137  # exit code of what SIGKILL ended
_MEMORY_EVENTS = ("/sys/fs/cgroup/memory.events", "/sys/fs/cgroup/memory/memory.oom_control")  # cgroup 2 and 1
NO_TESTBED = 126  # exit code of a command where there is no /testbed to run it in
NO_PROGRAM = 127  # and where a program is not found, bash included
_NOT_FOUND = 'exec: "'  # how the daemon begins to say which program it could not start

# Process 1: nothing inside can kill it; with SIGCHLD ignored the kernel collects orphans.
_WAIT = f'trap "" CHLD; exec sleep {LIFETIME_S}'
# The command, its two outputs in one, and the end of everything else; -1 spares process 1 and this shell.
_COMMAND = f"""cd /testbed || {{ echo "bash: cd: /testbed: No such file or directory"; exit {NO_TESTBED}; }}
exec 2>/dev/null
bash -c "$1" </dev/null 2>&1
code=$?
kill -KILL -1
exit $code"""


@dataclass(frozen=True, slots=True)
class Ended:
    """How a command ended and what it printed (stdout and stderr in the order written)."""

    exit_code: int
    output: bytes
    timed_out: bool = False
    overflow: bool = False
    memory: bool = False  # the kernel killed a process because memory ran out


class Container:
    """A started container. Use it from one thread at a time."""

    def __init__(self, client: docker.DockerClient, identity: str, user: str, environment: Mapping[str, str]) -> None:
        self._api, self._client, self.id = client.api, client, identity
        self._user, self.environment = user, dict(environment)

    def run(self, command: str, timeout_s: float, read_bytes: int) -> Ended:
        """Run `bash -c command` in /testbed; reads at most `read_bytes` of its output, then kills it.

        Raises:
            SandboxError: the daemon or the container failed.
        """
        with explained("running a command in a container"):
            try:
                return self._run(["bash", "-c", _COMMAND, "bash", command], timeout_s, read_bytes)
            except APIError as error:
                if not self._ruined(error):
                    raise
                return Ended(NO_PROGRAM, b"bash: command not found")

    def put(self, archive: bytes, folder: str) -> None:
        """Unpack a tar archive below `folder`. Raises FileNotFoundError (commands have removed it), SandboxError."""
        with explained(f"copying files into {folder} of a container"):
            try:
                self._api.put_archive(self.id, folder, archive)
            except APIError as error:
                if not any(words in reason(error) for words in ("Could not find the file", "not a directory")):
                    raise
                raise FileNotFoundError(errno.ENOENT, "its folder was removed", folder) from error

    def remove(self) -> None:
        """Kill and remove; safe to call twice. Raises SandboxError: the daemon fails."""
        with explained("removing a container"):
            lease.remove(self._client, self.id)

    def _run(self, line: list[str], timeout_s: float, read_bytes: int) -> Ended:
        handle = self._execute(line)
        reader = _Reader(self._api.exec_start(handle, stream=True), read_bytes)
        ended = reader.done.wait(timeout_s)
        timed_out = not ended
        code = None if timed_out or reader.overflow else self._exit_code(handle)
        memory = code == KILLED and self._out_of_memory()
        if code is None or code >= 128:  # something may live on
            self._restart()
            if not reader.done.wait(GRACE_S):
                raise SandboxError("a killed command's output did not end; look at the log of the Docker daemon")
        code = 124 if timed_out else KILLED if code is None else code
        return Ended(code, reader.output(), timed_out, reader.overflow, memory)

    def _execute(self, line: list[str]) -> str:
        options = {"user": self._user, "environment": self.environment, "stderr": False}
        try:
            return self._api.exec_create(self.id, line, **options)["Id"]
        except APIError as error:
            if error.status_code != 409:  # 409: not running; process 1 fell to a lack of memory
                raise
        self._restart()
        return self._api.exec_create(self.id, line, **options)["Id"]

    def _exit_code(self, handle: str) -> int | None:
        """The exit code; None where the daemon does not say that the command is over, though its output is."""
        for _ in range(50):
            state = self._api.exec_inspect(handle)
            if not state["Running"]:
                return state["ExitCode"]
            time.sleep(0.02)
        return None

    def _out_of_memory(self) -> bool:
        """Whether the kernel has killed a process of this container; it counts from the last start."""
        try:
            events = self._api.exec_start(self._execute(["cat", *_MEMORY_EVENTS])).decode(errors="replace")
        except APIError:  # what is left of the command leaves no room for another process
            return False
        return any(line.startswith("oom_kill ") and line != "oom_kill 0" for line in events.split("\n"))

    def _ruined(self, error: APIError) -> bool:
        """Whether a command, or process 1 after a restart, found no program to run; what is killed ends otherwise."""
        if _NOT_FOUND in reason(error):
            return True
        state = self._api.inspect_container(self.id)["State"]
        return not state["Running"] and 0 < state["ExitCode"] <= NO_PROGRAM

    def _restart(self) -> None:
        self._api.restart(self.id, timeout=0)


class _Reader:
    """Collects a command's output in a thread of its own; `done` is set at its end, or when there is too much."""

    def __init__(self, parts: CancellableStream, limit: int) -> None:
        self._parts, self._limit, self._output = parts, limit, bytearray()
        self.overflow, self.error, self.done = False, None, threading.Event()
        threading.Thread(target=self._read, name="container-output", daemon=True).start()

    def output(self) -> bytes:
        """What was read, at most the limit. Raises the failure that ended the reading, if one did."""
        if self.error:
            raise self.error
        return bytes(self._output[: self._limit])

    def _read(self) -> None:
        try:
            for part in self._parts:
                self._output += part
                if len(self._output) > self._limit:
                    self.overflow = True
                    self._parts.close()
                    break
        except FAILURES as error:
            self.error = error
        finally:
            self.done.set()


def start(
    client: docker.DockerClient,
    image: str,
    limits: Mapping[str, object],
    *,
    user: str,
    environment: Mapping[str, str],
    labels: Mapping[str, str],
    archive: bytes = b"",
) -> Container:
    """Create a container under `limits` (see `host_config`), unpack `archive` at its root, and start it.

    Raises:
        SandboxError: it cannot be made or started; nothing of it is left.
    """
    with explained(f"starting a container of {image}"):
        identity = client.api.create_container(
            image,
            ["bash", "-c", _WAIT],
            entrypoint=[],
            user=user,
            labels=dict(labels),
            hostname=HOSTNAME,
            host_config=dict(limits),
        )["Id"]
        try:
            if archive:
                client.api.put_archive(identity, "/", archive)
            client.api.start(identity)
        except BaseException:
            lease.remove(client, identity)
            raise
    return Container(client, identity, user, environment)


def host_config(
    client: docker.DockerClient, settings: SandboxSettings, processors: int, capabilities: Sequence[str] = ()
) -> dict[str, object]:
    """What the daemon is asked to hold; it refuses more than its `processors`, so they are cut to what is there.

    Without a network the daemon still writes /etc/hosts: `localhost` and the container's own name are the loopback.
    """
    memory = int(settings.memory_gb * GB)
    return client.api.create_host_config(
        network_mode="none",
        extra_hosts={HOSTNAME: "127.0.0.1"},
        mem_limit=memory,
        memswap_limit=memory,  # memory and swap together: no swap
        nano_cpus=int(min(settings.cpus, processors) * 1e9),
        pids_limit=settings.processes,
        cap_drop=["ALL"],
        cap_add=list(capabilities),
        security_opt=["no-new-privileges"],
        ipc_mode="private",
        ulimits=[Ulimit(name="core", soft=0, hard=0), Ulimit(name="fsize", soft=FILE_BYTES, hard=FILE_BYTES)],
        log_config=LogConfig(type="none"),
    )
