"""What a container protects, told from what the daemon says of itself."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dagger_nb.sandboxes.containers.container import FILE_BYTES, GB
from dagger_nb.sandboxes.limits import READ_FACTOR
from dagger_nb.settings import SandboxSettings


def of(daemon: Mapping[str, Any], settings: SandboxSettings, output_bytes: int) -> dict[str, str]:
    """Each protection and how it is held; `daemon` is the answer of `docker info`."""
    cpus = min(settings.cpus, daemon["NCPU"])
    return {
        "back end": f"docker {daemon['ServerVersion']}, {daemon['Driver']}",
        "network": "held: no network but loopback",
        "files": "held: the image's files in a layer of its own; nothing of the host is mounted",
        "processes seen": "held: own process namespace; all but process 1 is killed when a command ends",
        "environment": "held: the image's and a fixed one, nothing of the host's",
        "privileges": _privileges(daemon.get("SecurityOptions") or ()),
        "memory": _kept(daemon["MemoryLimit"], f"{settings.memory_gb:g} GB for the container")
        + ("" if daemon["SwapLimit"] else "; swap comes on top where the host has any"),
        "processes": _kept(daemon["PidsLimit"], f"{settings.processes} in the container, threads counted"),
        "cpus": _kept(daemon["CpuCfsQuota"], f"{cpus:g} processors' time"),
        "wall time": "held: at its limit the container is restarted, which ends every process in it",
        "output": f"held: {output_bytes} bytes seen, {output_bytes * READ_FACTOR} read",
        "disk": f"NOT held: files of {FILE_BYTES // GB} GB at the most, but as many as the daemon's disk has room for",
    }


def _kept(able: bool, what: str) -> str:
    return f"held: {what}" if able else f"NOT held: {what} was asked for, but the daemon's kernel has no such limit"


def _privileges(options: tuple[str, ...]) -> str:
    names = {part.partition("=")[2] for option in options for part in option.split(",") if part.startswith("name=")}
    base = "no capabilities but an image's root's over its files and processes, no new privileges, never privileged"
    if names & {"rootless", "userns"}:
        return f"held: {base}; root inside is nobody outside"
    if "seccomp" not in names:
        return f"weak: {base}, but the daemon filters no system calls (no seccomp)"
    return f"held: {base}, seccomp; a task that brings its files is run by uid 1000, another by its image's user"
