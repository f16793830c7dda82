"""Who holds a container, and the sweep of what a killed run left.

Every container carries its owner in a label: machine, process id and the time that process started, so that
a number used again by another process is told apart. The kernel decides who lives; no lease has to be renewed.
"""

from __future__ import annotations

import os
import platform
from dataclasses import dataclass
from pathlib import Path

import docker
from docker.errors import APIError

from dagger_nb.sandboxes.containers.errors import explained

LABEL = "dagger-nb.owner"
FACTORY_LABEL = "dagger-nb.factory"  # one factory's containers among those of its process
_ENDED = ("exited", "dead")


@dataclass(frozen=True, slots=True)
class Owner:
    """A process: the machine (this boot, this process namespace), its id, and when it started (clock ticks)."""

    machine: str
    pid: int
    started: str

    def label(self) -> str:
        return f"{self.machine} {self.pid} {self.started}"

    @classmethod
    def of_label(cls, text: str) -> Owner | None:
        """The owner that a label names; None where another tool wrote it."""
        parts = text.split(" ")
        return cls(parts[0], int(parts[1]), parts[2]) if len(parts) == 3 and parts[1].isdigit() else None

    def known_dead(self) -> bool:
        """Whether the process was on this machine and is no more; of another machine nothing is known."""
        return self.machine == machine() and started_at(self.pid) != self.started


def owner() -> Owner:
    """This process."""
    return Owner(machine(), os.getpid(), started_at(os.getpid()))


def machine() -> str:
    """This boot of this machine, and the process namespace in which process ids mean something."""
    boot = Path("/proc/sys/kernel/random/boot_id")
    if not boot.exists():
        return platform.node()
    return f"{boot.read_text().strip()}/{os.readlink('/proc/self/ns/pid')}"


def started_at(pid: int) -> str:
    """When a living process started, in ticks since boot ("-" where there is no /proc); empty for a dead one."""
    if not Path("/proc/self/stat").exists():
        return "-" if _answers(pid) else ""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()  # from the third field on
    except OSError:
        return ""
    return "" if fields[0] in "ZX" else fields[19]


def _answers(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def sweep(client: docker.DockerClient) -> list[str]:
    """Remove the containers of owners that are dead; the names of those removed, sorted.

    What a living process holds stays. Of an owner on another machine (or before a reboot) nothing is known:
    its containers go only when they have ended by themselves, which they do (see `container.LIFETIME_S`).

    Raises:
        SandboxError: the daemon does not answer.
    """
    gone = []
    with explained("sweeping containers of earlier runs"):
        for row in client.api.containers(all=True, filters={"label": LABEL}):
            holder = Owner.of_label(row["Labels"][LABEL])
            if holder is None or not (holder.known_dead() or _abandoned(holder, row["State"])):
                continue
            if remove(client, row["Id"]):
                gone.append(row["Names"][0].lstrip("/") if row["Names"] else row["Id"])
    return sorted(gone)


def _abandoned(holder: Owner, state: str) -> bool:
    return holder.machine != machine() and state in _ENDED


def remove(client: docker.DockerClient, container: str) -> bool:
    """Remove a container, running or not; whether it was this call that did it."""
    try:
        client.api.remove_container(container, force=True, v=True)
    except APIError as error:
        if error.status_code in (404, 409):  # gone already, or somebody is removing it
            return False
        raise
    return True
