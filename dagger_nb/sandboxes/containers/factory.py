"""Docker sandboxes: a container an episode, single use.

Covered (`guarantees()` says how each is held by the daemon at hand):
- network, host files, other processes, privileges; memory, processors and number of processes of the whole
  container; wall-clock time and output of a command; nothing outlives its command;
- an image with a repository at /testbed, and tasks that bring their files (`workspace`);
- equal observations: the environment of the local sandbox, and `canonical`.

Not covered:
- disk: a container writes any number of files to the daemon's disk, unless its storage driver has quotas;
- what lies outside /testbed, staging and commits last from command to command (in the local sandbox they end
  with their command); the patch contains the tree alone, as everywhere;
- holes in the kernel, which containers share with their host.
"""

from __future__ import annotations

import threading
import uuid
from collections.abc import Callable, Iterable
from pathlib import Path

from dagger_nb.errors import SandboxError
from dagger_nb.records import Task
from dagger_nb.sandboxes.containers import archives, host_image, lease, protections, workspace
from dagger_nb.sandboxes.containers.book import Book
from dagger_nb.sandboxes.containers.container import (
    ARGUMENT_BYTES,
    NO_TESTBED,
    ROOTS,
    Container,
    Ended,
    host_config,
    start,
)
from dagger_nb.sandboxes.containers.errors import connect, explained
from dagger_nb.sandboxes.containers.shelf import Shelf
from dagger_nb.sandboxes.containers.workspace import Start
from dagger_nb.sandboxes.limits import READ_FACTOR, Limits
from dagger_nb.sandboxes.observation import shorten
from dagger_nb.sandboxes.protocol import CommandResult
from dagger_nb.settings import SandboxSettings

WALL_S = 120.0  # of a command that names no limit of its own
OUTPUT_BYTES = Limits().output_bytes  # as in the local sandbox


class DockerSandbox:
    """One episode's container; made by `DockerFactory.open`. Use it from one thread at a time."""

    def __init__(self, factory: DockerFactory, container: Container, begin: Start) -> None:
        self._factory, self._container, self._begin = factory, container, begin

    def run(self, command: str, timeout_s: float | None = None) -> CommandResult:
        """Run `bash -c command` in /testbed.

        Raises:
            SandboxError: the daemon or the container failed, or the sandbox is closed.
        """
        if "\0" in command:
            return CommandResult("bash: the command holds a NUL byte", 126)
        if len(command.encode(errors="replace")) > ARGUMENT_BYTES:
            return CommandResult("bash: Argument list too long", 126)
        wall_s, limit = timeout_s or WALL_S, self._factory.output_bytes
        ended = self._open.run(command, wall_s, limit * READ_FACTOR)
        text, cut = shorten(ended.output, limit, of_image=self._begin.of_image)
        lines = [text, *_notes(ended, wall_s, self._factory.settings)]
        return CommandResult(
            "\n".join(line for line in lines if line), ended.exit_code, ended.timed_out, cut or ended.overflow
        )

    def read(self, path: str) -> str:
        """Text of a file (UTF-8, undecodable bytes replaced).

        Raises:
            FileNotFoundError, IsADirectoryError: as the words say.
            PermissionError: the path leads outside /testbed.
            SandboxError: the daemon or the container failed, or the sandbox is closed.
        """
        return workspace.read(self._open, path)

    def write(self, path: str, text: str) -> None:
        """Create or overwrite a file, making its folders.

        Raises:
            IsADirectoryError, NotADirectoryError: the path, or a parent of it, is of the other kind.
            PermissionError: the path leads outside /testbed or into .git.
            OSError: the disk is full, or the name is too long.
            SandboxError: the daemon or the container failed, or the sandbox is closed.
        """
        workspace.write(self._open, path, text)

    def diff(self) -> str:
        """The patch from the first tree to the tree as it is now. Raises SandboxError."""
        return workspace.diff(self._open, self._begin.tree)

    def close(self) -> None:
        """Remove the container; safe to call twice. Raises SandboxError: the daemon fails."""
        container, self._container = self._container, None
        if container:
            container.remove()

    def __enter__(self) -> DockerSandbox:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    @property
    def _open(self) -> Container:
        if self._container is None:
            raise SandboxError("this sandbox is closed; open a new one")
        return self._container


class DockerFactory:
    """Opens Docker sandboxes and holds what they share: the client, the images, the lease.

    Thread-safe, and usable when pickled into a worker process, which then is an owner of its own. A new factory
    first removes the containers of processes that are dead.

    Args:
        settings: limits of a container, and the disk that pulled images may take.
        book: the file that remembers which images were pulled, and when they were used (made when missing).
        output_bytes: what is kept of a command's output.

    Raises:
        EnvironmentProblem: no daemon answers.
    """

    name = "docker"

    def __init__(self, settings: SandboxSettings, book: Path, output_bytes: int = OUTPUT_BYTES) -> None:
        self.settings, self.output_bytes, self._book = settings, output_bytes, book
        self._client = connect()
        with explained("asking the daemon what it can hold"):
            self._daemon = self._client.info()
        processors = self._daemon["NCPU"]
        self._limits = host_config(self._client, settings, processors)  # of a container that a user of ours works in
        self._images_limits = host_config(self._client, settings, processors, ROOTS)  # and of one with its image's
        self._shelf = Shelf(self._client, settings.images_gb, Book(book))
        self._labels = {lease.LABEL: lease.owner().label(), lease.FACTORY_LABEL: uuid.uuid4().hex}
        self._files_image, self._lock = "", threading.Lock()
        lease.sweep(self._client)

    def open(self, task: Task) -> DockerSandbox:
        """A fresh container with the task's tree at base_commit, its image pulled when it is not here.

        Raises:
            SandboxError: the image cannot be had or used, or the daemon fails; nothing is left behind.
            DataError: the task's files are not those of its base_commit.
        """
        return self._with_files(task) if task.files else self._with_repository(task)

    def prefetch(self, tasks: Iterable[Task], log: Callable[[str], None] = print) -> dict[str, SandboxError]:
        """Pull the images of these tasks, a few at once and as far as `images_gb` goes (see `Shelf.prefetch`)."""
        images = (self.settings.image if task.files else task.image for task in tasks)
        return self._shelf.prefetch(filter(None, images), log)

    def holds(self, task: Task) -> bool:
        """Whether the task's own image is here. Raises SandboxError: the daemon fails."""
        return bool(self._shelf.identity(task.image))

    def guarantees(self) -> dict[str, str]:
        """Each protection and how it is held by this daemon; for the log and the manifest."""
        return protections.of(self._daemon, self.settings, self.output_bytes)

    def close(self) -> None:
        """Remove what this factory's sandboxes left; safe to call twice."""
        with explained("removing this run's containers"):
            mine = {"label": f"{lease.FACTORY_LABEL}={self._labels[lease.FACTORY_LABEL]}"}
            for row in self._client.api.containers(all=True, filters=mine):
                lease.remove(self._client, row["Id"])
        self._client.close()

    def __enter__(self) -> DockerFactory:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def __reduce__(self) -> tuple:
        return DockerFactory, (self.settings, self._book, self.output_bytes)

    def _with_files(self, task: Task) -> DockerSandbox:
        begin = workspace.start_of_files()
        container = self._start(self._image_for_files(), archives.files_of(task), archives.AGENT, begin.environment)
        return DockerSandbox(self, container, begin)

    def _with_repository(self, task: Task) -> DockerSandbox:
        container = self._start(task.image, archives.own_folder(), "", workspace.shared_variables())
        try:
            begin = workspace.strip(container, task.base_commit)
        except BaseException as error:
            container.remove()
            if isinstance(error, SandboxError):
                raise SandboxError(f"{task.instance_id}, image {task.image}: {error}") from error
            raise
        container.environment = dict(begin.environment)
        return DockerSandbox(self, container, begin)

    def _start(self, image: str, archive: bytes, user: str, environment: dict[str, str]) -> Container:
        """A container of the image; the image's own user works in it where none is named."""
        self._shelf.need(image)
        limits = self._limits if user else self._images_limits
        return start(
            self._client, image, limits, user=user, environment=environment, labels=self._labels, archive=archive
        )

    def _image_for_files(self) -> str:
        """The named image, or else one made of this machine's own Python, git and bash; looked at once."""
        with self._lock:
            if not self._files_image:
                self._files_image = self._named_image() if self.settings.image else host_image.build(self._client)
            return self._files_image

    def _named_image(self) -> str:
        image = self.settings.image
        container = self._start(image, archives.own_folder(), archives.AGENT, {})
        try:
            if container.run("true", WALL_S, OUTPUT_BYTES).exit_code != NO_TESTBED:
                raise SandboxError(
                    f"image {image} has a /testbed of its own, and sandbox.image is for tasks that bring their files: "
                    "name one with Python, pytest and git and without a repository, or leave the setting empty"
                )
        finally:
            container.remove()
        return image


def _notes(ended: Ended, wall_s: float, settings: SandboxSettings) -> list[str]:
    """One line for each limit that the command met."""
    found = {
        f"[timed out after {wall_s:g} s]": ended.timed_out,
        "[killed: too much output]": ended.overflow,
        f"[killed: more than {settings.memory_gb:g} GB of memory]": ended.memory,
    }
    return [line for line, met in found.items() if met]
