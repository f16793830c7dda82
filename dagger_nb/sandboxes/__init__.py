"""Where actions run: one protocol, an isolated local sandbox behind it, and Docker (`containers`) for real images."""

from __future__ import annotations

from pathlib import Path

from dagger_nb import paths
from dagger_nb.sandboxes.canonical import canonical
from dagger_nb.sandboxes.limits import Limits
from dagger_nb.sandboxes.local import LocalFactory, LocalSandbox, local_factory
from dagger_nb.sandboxes.protocol import CommandResult, Sandbox, SandboxFactory
from dagger_nb.settings import SandboxSettings

__all__ = [
    "CommandResult",
    "Limits",
    "LocalFactory",
    "LocalSandbox",
    "Sandbox",
    "SandboxFactory",
    "canonical",
    "factory_for",
    "local_factory",
]


def factory_for(settings: SandboxSettings, *, cache: Path | None = None) -> SandboxFactory:
    """The factory of the back end that the settings name; a context manager.

    `cache` is the local back end's file of observations. Docker runs every command, and keeps beside the other
    caches which images it pulled.

    Raises:
        EnvironmentProblem: no local back end works here, or no Docker daemon answers.
    """
    if settings.back_end == "local":
        return local_factory(cache=cache)
    from dagger_nb.sandboxes.containers import DockerFactory

    return DockerFactory(settings, book=paths.images())
