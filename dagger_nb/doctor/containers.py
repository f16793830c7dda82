"""What sandboxes that are containers need: an engine that answers, room for images, memory and processors."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

from dagger_nb import crew, paths
from dagger_nb.doctor.checks import Check, failed, on_its_disk
from dagger_nb.errors import DaggerError
from dagger_nb.planning import footprint
from dagger_nb.settings import Settings
from dagger_nb.sizing import memory


def containers(settings: Settings, beside: Mapping[Path, float]) -> list[Check]:
    """Whether an engine answers, has room for the images that are kept, and the machine for its containers.

    `beside`: GB that the profile needs for other things, by folder, which may be on the engine's disk.
    """
    try:
        from dagger_nb.sandboxes.containers.errors import connect
    except ImportError as error:
        return [Check("Docker", "fail", str(error), "pip install 'dagger-nb[docker]'")]
    try:
        about = connect(timeout_s=20.0).info()
    except DaggerError as error:
        return [failed("Docker", error)]
    room = images(settings, about, _held_gb(), beside)
    return [room, container_memory(settings, about), container_cores(settings, about)]


def _held_gb() -> float:
    """GB of images that this project pulled before; 0 where the engine does not say."""
    from dagger_nb.sandboxes.containers.book import Book
    from dagger_nb.sandboxes.containers.errors import connect
    from dagger_nb.sandboxes.containers.shelf import Shelf

    try:
        with closing(connect()) as client:
            return Shelf(client, 0.0, Book(paths.images())).held_gb()
    except DaggerError:
        return 0.0


def images(settings: Settings, about: Mapping[str, Any], held: float, beside: Mapping[Path, float]) -> Check:
    """Room for images where the engine (`about`: what `docker info` says) keeps them, `held` GB of which are there."""
    folder, wanted = Path(about["DockerRootDir"]), max(0.0, footprint.images_gb(settings) - held)
    what = f"engine {about['ServerVersion']}, images in {folder}"
    if not folder.exists():  # an engine on another machine
        return Check("Docker", "warn", what, f"see that {wanted:g} GB are free there")
    free, others = shutil.disk_usage(folder).free / 1e9, on_its_disk(folder, beside)
    what += f", {free:.0f} GB free; up to {wanted:.0f} GB of images are pulled and kept beside {held:.0f} that are here"
    what += f", and {others:.0f} GB are needed there for models and runs" if others else ""
    if free >= wanted + others:
        return Check("Docker", "ok", what)
    return Check("Docker", "fail", what, "lower sandbox.images_gb", room=True)


def container_memory(settings: Settings, about: Mapping[str, Any]) -> Check:
    """The memory that all containers may take at once, and one of them, against the engine's machine.

    A limit is no reservation, and few tests come near it: too little for all of them is a risk and only a warning.
    """
    each, at_once, there = settings.sandbox.memory_gb, crew.sandboxes_at_once(settings), about["MemTotal"] / memory.GB
    what = f"{at_once} x {each:g} GB may be taken at once; the engine's machine ({about['Name']}) has {there:.0f} GB"
    if each > there:
        return Check("container memory", "fail", what, f"lower sandbox.memory_gb to less than {there:.0f}")
    if each * at_once <= there:
        return Check("container memory", "ok", what)
    return Check(
        "container memory",
        "warn",
        f"{what}: if it runs out, the kernel kills commands, servers or training",
        f"lower {_of_containers(settings)} so that at most {int(there / each)} are open, or sandbox.memory_gb",
    )


def container_cores(settings: Settings, about: Mapping[str, Any]) -> Check:
    """The processors that commands may keep busy at once, against the engine's machine."""
    each, at_once, there = settings.sandbox.cpus, settings.workers, about["NCPU"]
    what = f"{at_once} x {each:g} may be busy at once; the engine's machine ({about['Name']}) has {there}"
    if each * at_once <= there:
        return Check("container cores", "ok", what)
    cut = f", and a container gets {there} of its {each:g}" if each > there else ""
    return Check(
        "container cores",
        "warn",
        f"{what}{cut}: commands are slower and may reach their time limit",
        f"lower workers to {max(1, int(there / each))}, or raise episode.command_timeout_s",
    )


def _of_containers(settings: Settings) -> str:
    """The settings that decide how many containers are open at once."""
    return "serving.concurrency and workers" if settings.served else "episode.cohort or workers"
