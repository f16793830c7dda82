"""Images made by hand: a base and layers on top, as an archive for `docker load` or behind a registry's API.

An image is a configuration and the tar archives of its layers; the base's own are taken from `docker save`.
`loaded` brings any number of images into the daemon with one call, each sharing the base's layers.
"""

from __future__ import annotations

import hashlib
import io
import json
import subprocess
import tarfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import docker

from dagger_nb.records import Task
from dagger_nb.sandboxes.base import Base
from dagger_nb.sandboxes.containers.archives import tar
from dagger_nb.sandboxes.limits import Limits


@dataclass(frozen=True, slots=True)
class Image:
    """An image: its configuration (Env, Cmd, ...) and its layers, uncompressed tar archives, lowest first."""

    settings: Mapping[str, object]
    layers: tuple[bytes, ...]

    @property
    def configuration(self) -> bytes:
        """The JSON document whose SHA-256 is the image's id."""
        body = {"architecture": "amd64", "os": "linux", "config": dict(self.settings)}
        body["rootfs"] = {"type": "layers", "diff_ids": [f"sha256:{digest(layer)}" for layer in self.layers]}
        body["history"] = [{"created_by": "dagger-nb tests"} for _ in self.layers]
        return json.dumps(body, sort_keys=True).encode()

    def on_top(self, layer: bytes, **settings: object) -> Image:
        """This image with one more layer and some settings replaced."""
        return replace(self, settings={**self.settings, **settings}, layers=(*self.layers, layer))


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def saved(client: docker.DockerClient, name: str) -> Image:
    """An image of the daemon, to build on."""
    body = io.BytesIO(b"".join(client.api.get_image(name)))
    with tarfile.open(fileobj=body) as archive:
        (row,) = json.load(archive.extractfile("manifest.json"))
        settings = json.load(archive.extractfile(row["Config"]))["config"]
        layers = tuple(archive.extractfile(path).read() for path in row["Layers"])
    # a container that waits is stopped at once instead of after the 15 seconds that swebench gives it
    return Image({"Env": settings["Env"], "StopSignal": "SIGKILL"}, layers)


def load(client: docker.DockerClient, images: Mapping[str, Image]) -> None:
    """Bring images into the daemon under their names, in one archive in which equal layers lie once."""
    body, rows, written = io.BytesIO(), [], set()
    with tarfile.open(fileobj=body, mode="w") as archive:
        for name, image in images.items():
            paths = [f"{digest(layer)}/layer.tar" for layer in image.layers]
            config = f"{digest(image.configuration)}.json"
            rows.append({"Config": config, "RepoTags": [name], "Layers": paths})
            for path, data in [*zip(paths, image.layers, strict=True), (config, image.configuration)]:
                if path not in written:
                    written.add(path)
                    _add(archive, path, data)
        _add(archive, "manifest.json", json.dumps(rows).encode())
    client.images.load(body.getvalue())


def of_task(base: Image, task: Task) -> Image:
    """The instance's image as SWE-bench has it: the task's repository at /testbed, owned by root."""
    tree = Base(task, Limits())
    rows = [(b"testbed/" + path, *rest) for path, *rest in (*tree.entries(tree.snapshot), *tree.repository)]
    return base.on_top(tar(rows))


def of_folder(base: Image, folder: Path, *, owner: str = "0:0", **settings: object) -> Image:
    """An image with a folder of this machine at /testbed."""
    uid, gid = map(int, owner.split(":"))

    def owned(member: tarfile.TarInfo) -> tarfile.TarInfo:
        member.uid, member.gid, member.uname, member.gname = uid, gid, "", ""
        member.mode |= 0o755 if member.isdir() else 0o644
        return member

    body = io.BytesIO()
    with tarfile.open(fileobj=body, mode="w") as archive:
        archive.add(folder, "testbed", filter=owned)
    return base.on_top(body.getvalue(), **settings)


def git(folder: Path, *lines: str) -> str:
    """Run git commands in a folder, one a line; the last one's output."""
    out = ""
    for line in lines:
        command = ["git", "-c", "user.name=a", "-c", "user.email=a@example.org", *line.split()]
        out = subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True).stdout.strip()
    return out


def _add(archive: tarfile.TarFile, path: str, data: bytes) -> None:
    member = tarfile.TarInfo(path)
    member.size = len(data)
    archive.addfile(member, io.BytesIO(data))


def noise(megabytes: int, seed: int) -> bytes:
    """A layer of so many MB that nothing compresses, the same for the same seed."""
    import random

    return tar([(b"noise", b"f", 0, random.Random(seed).randbytes(megabytes * 1_000_000))])
