"""Where actions run: one protocol, and an isolated local sandbox behind it."""

from __future__ import annotations

from dagger_nb.sandboxes.canonical import canonical
from dagger_nb.sandboxes.limits import Limits
from dagger_nb.sandboxes.local import LocalFactory, LocalSandbox, local_factory
from dagger_nb.sandboxes.protocol import CommandResult, Sandbox, SandboxFactory

__all__ = [
    "CommandResult",
    "Limits",
    "LocalFactory",
    "LocalSandbox",
    "Sandbox",
    "SandboxFactory",
    "canonical",
    "local_factory",
]
