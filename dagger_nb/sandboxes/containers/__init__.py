"""Docker behind the sandbox protocol: leases, images, containers, and the repository inside one.

errors      the daemon's failures as SandboxError, each with its next step
lease       who holds a container, and the sweep of what a killed run left
shelf       images on this machine: present, pulled, the least recently used removed
host_image  an image of this machine's own Python, git and bash, for tasks that bring their files
container   one container: limits, and commands that are really over when they are over
workspace   the repository in it: history stripped, files read and written, the patch
factory     the sandbox and its factory
"""

from __future__ import annotations

from dagger_nb.sandboxes.containers.factory import DockerFactory, DockerSandbox

__all__ = ["DockerFactory", "DockerSandbox"]
