"""Which back end serves here, what its observations depend on, and what it guarantees."""

from __future__ import annotations

import hashlib
import importlib.metadata
import logging
import os
import platform
import warnings
from pathlib import Path

from dagger_nb.errors import ConfigError, EnvironmentProblem, SandboxError
from dagger_nb.sandboxes import cgroups, launch, supervisor
from dagger_nb.sandboxes.isolation import BACKENDS, Backend
from dagger_nb.sandboxes.limits import READ_FACTOR, Limits

log = logging.getLogger(__name__)


def choose(wanted: str | None) -> tuple[Backend, str]:
    """The wanted or best back end that works here, and the versions of what runs inside.

    Raises:
        ConfigError: no such back end.
        EnvironmentProblem: it does not work here, or none does.
    """
    if wanted is not None and wanted not in BACKENDS:
        raise ConfigError(f"no sandbox back end {wanted!r}; there are {', '.join(BACKENDS)}")
    reasons = []
    for name in [wanted] if wanted else BACKENDS:
        try:
            return BACKENDS[name], launch.probe(BACKENDS[name])
        except SandboxError as error:
            reasons.append(f"{name}: {error}; next step: {BACKENDS[name].advice}")
    raise EnvironmentProblem("no usable sandbox back end. " + " | ".join(reasons))


def identity(name: str, inside: str, groups: cgroups.Cgroups | None) -> bytes:
    """What a cached observation depends on beside its command: versions, limits' keeper, this room's own code."""
    code = [path.read_bytes() for path in sorted(Path(__file__).parent.glob("*.py"))]
    versions = [name, inside, groups.kind if groups else "rlimits", importlib.metadata.version("pytest")]
    versions.append(platform.platform())
    return hashlib.sha256(supervisor.pack([text.encode() for text in versions] + code)).digest()


def resource_guarantees(limits: Limits, groups: cgroups.Cgroups | None) -> dict[str, str]:
    """How each resource limit is held here."""
    memory, processes = f"{limits.memory_mb} MiB", str(limits.processes)
    if groups:
        memory, processes = (f"held: {value} for the whole command ({groups.kind})" for value in (memory, processes))
    else:
        why = "(no cgroup may be made here)"
        memory = f"weak: {memory} for each process {why}"
        root = "NOT held: root is exempt from process limits"
        processes = f"{root if os.geteuid() == 0 else f'weak: {processes}, by rlimit'} {why}"
    return {
        "memory": memory,
        "processes": processes,
        "wall time": f"held: {limits.wall_s:g} s",
        "cpu time": f"held: {limits.cpu_s} s for each process",
        "output": f"held: {limits.output_bytes} bytes seen, {limits.output_bytes * READ_FACTOR} read",
    }


def warn_plain() -> None:
    """Say in the log and as a warning what the plain back end does not protect."""
    text = "commands run WITHOUT isolation (plain back end): " + "; ".join(
        f"{name} {how}" for name, how in BACKENDS["plain"].protections.items()
    )
    log.warning(text)
    warnings.warn(text, stacklevel=4)
