"""An image of this machine's own Python, pytest, git, bash and their libraries, made without a registry.

For tasks that bring their files: the same programs as in the local sandbox, imported in seconds and kept under
a name that holds a digest of what is in it. Linux only; elsewhere name an image in `sandbox.image`.
"""

from __future__ import annotations

import hashlib
import io
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
from collections.abc import Iterable, Iterator
from pathlib import Path

import docker
from docker.errors import ImageNotFound

from dagger_nb.errors import EnvironmentProblem
from dagger_nb.sandboxes import view
from dagger_nb.sandboxes.containers.errors import explained

REPOSITORY = "dagger-nb/host"
PROGRAMS = tuple(
    "awk base64 basename bash cat chmod cmp comm cp cut date dd df diff dirname du echo egrep env expr false fgrep "
    "find git grep gunzip gzip head hostname id install ln ls md5sum mkdir mkfifo mktemp mv nl nohup nproc od paste "
    "patch pgrep pkill printenv printf ps pwd readlink realpath rm rmdir sed seq setsid sh sha1sum sha256sum sleep "
    "sort split stat sync tac tail tar tee test timeout touch tr true truncate tty uname uniq unlink wc which "
    "whoami xargs yes zcat".split()
)
_REQUIRED = {"awk", "bash", "base64", "cat", "env", "find", "git", "grep", "gzip", "patch", "realpath", "sed", "tar"}
_VARIABLES = {"PATH": "/usr/local/bin:/usr/bin:/bin", "PYTHONPATH": view.SITE, "LD_LIBRARY_PATH": "/usr/local/lib"}
_UNUSED = set("test idlelib tkinter turtledemo ensurepip lib2to3 site-packages dist-packages".split())
_LINKS = {"bin": "usr/bin", "lib": "usr/lib", "lib64": "usr/lib64", "usr/local/bin/python3": "python"}
_FOLDERS = {"tmp": 0o1777, "root": 0o700, "usr/share/git-core/templates": 0o755}
_SCHEMA = b"1"  # raise it when the same files would make another image

Files = dict[str, str]  # path inside, without the first slash -> path on this machine


def build(client: docker.DockerClient) -> str:
    """The name of the image, imported now if the daemon does not have it.

    Raises:
        EnvironmentProblem: this machine is no Linux, or lacks a program.
        SandboxError: the daemon refused the image.
    """
    files = contents()
    name, tag = REPOSITORY, _digest(files)
    with explained(f"importing image {name}:{tag}"):
        try:
            client.api.inspect_image(f"{name}:{tag}")
        except ImageNotFound:
            changes = [f"ENV {variable}={value}" for variable, value in _VARIABLES.items()]
            client.api.import_image_from_data(layer(files), name, tag, changes=changes)
    return f"{name}:{tag}"


def contents() -> Files:
    """What the image holds of this machine."""
    if sys.platform != "linux":
        raise EnvironmentProblem("this machine's programs do not run in a container; name an image in sandbox.image")
    view.precompile()
    files = _programs() | _python() | _packages() | _locale()
    executable = [path for path in files.values() if ".so" in path or os.access(path, os.X_OK)]
    return dict(sorted((files | _libraries(executable)).items()))


def layer(files: Files) -> bytes:
    """The image's one layer as a tar archive."""
    body = io.BytesIO()
    with tarfile.open(fileobj=body, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for name, mode in _FOLDERS.items():
            archive.addfile(_member(name, tarfile.DIRTYPE, mode))
        for name, target in _LINKS.items():
            member = _member(name, tarfile.SYMTYPE, 0o777)
            member.linkname = target
            archive.addfile(member)
        for name, data, mode in _written():
            archive.addfile(_member(name, tarfile.REGTYPE, mode, len(data)), io.BytesIO(data))
        for name, source in files.items():
            with open(source, "rb") as file:
                status = os.fstat(file.fileno())
                mode = 0o755 if status.st_mode & 0o100 else 0o644
                archive.addfile(_member(name, tarfile.REGTYPE, mode, status.st_size, int(status.st_mtime)), file)
    return body.getvalue()


def _member(name: str, kind: bytes, mode: int, size: int = 0, mtime: int = 0) -> tarfile.TarInfo:
    """A header; the time of a file stays as it is here, since compiled Python names its source's time."""
    member = tarfile.TarInfo(name)
    member.type, member.mode, member.size, member.mtime = kind, mode, size, mtime
    return member


def _written() -> Iterator[tuple[str, bytes, int]]:
    """What is in the image and on no disk: the pytest command and the users."""
    yield "usr/local/bin/pytest", view.launcher(), 0o755
    for path, kind, _, data in view.tools():
        if kind == b"f":
            yield path.decode(), data, 0o644


def _programs() -> Files:
    found = {name: shutil.which(name, path="/usr/local/bin:/usr/bin:/bin") for name in PROGRAMS}
    if missing := sorted(name for name in _REQUIRED if not found[name]):
        raise EnvironmentProblem(
            f"an image of this machine's programs lacks {', '.join(missing)}: install them, or name an image in "
            "sandbox.image"
        )
    return {f"usr/bin/{name}": os.path.realpath(path) for name, path in found.items() if path}


def _python() -> Files:
    """The interpreter and its standard library, moved to /usr/local, where it finds itself."""
    version = f"python3.{sys.version_info.minor}"
    files = {"usr/local/bin/python": view.interpreter()}
    return files | _modules(sysconfig.get_path("stdlib"), f"usr/local/lib/{version}")


def _locale() -> Files:
    """The locale C.UTF-8, which is not part of every C library itself."""
    folder = Path("/usr/lib/locale/C.utf8")
    return {str(path)[1:]: str(path) for path in sorted(folder.rglob("*")) if path.is_file()}


def _packages() -> Files:
    files: Files = {}
    for name, source in view.packages().items():
        inside = f"{view.SITE[1:]}/{name}"
        files |= _modules(source, inside) if os.path.isdir(source) else {inside: source}
    return files


def _modules(source: str, inside: str) -> Files:
    """Python's files below a folder: sources, their compiled form, extensions, and packages' metadata."""
    compiled = f".{sys.implementation.cache_tag}.pyc"
    files: Files = {}
    for folder, folders, names in os.walk(source):
        folders[:] = sorted(name for name in folders if name not in _UNUSED and not name.startswith("config-"))
        below = os.path.normpath(os.path.join(inside, os.path.relpath(folder, source)))
        for name in sorted(names):
            if name.endswith((".py", ".so", compiled, ".txt", "METADATA", "RECORD")):
                files[f"{below}/{name}"] = os.path.join(folder, name)
    return files


def _libraries(programs: Iterable[str]) -> Files:
    """The shared libraries of programs; those of no system folder go to /usr/local/lib."""
    told = subprocess.run(["ldd", *programs], capture_output=True, text=True, check=False, env={"LC_ALL": "C"}).stdout
    paths = sorted(set(re.findall(r"(?:=> |^\t)(/\S+) \(0x", told, re.MULTILINE)))
    return {_library(path): os.path.realpath(path) for path in paths}


def _library(path: str) -> str:
    """
    >>> _library("/lib/x86_64-linux-gnu/libc.so.6"), _library("/opt/x/libz.so")
    ('usr/lib/x86_64-linux-gnu/libc.so.6', 'usr/local/lib/libz.so')
    """
    path = path.removeprefix("/usr")
    return f"usr{path}" if path.startswith("/lib") else f"usr/local/lib/{Path(path).name}"


def _digest(files: Files) -> str:
    """12 hex digits of names, sizes and times, which is what a package manager changes when it changes a file."""
    total = hashlib.sha256(_SCHEMA + repr((_LINKS, _FOLDERS, _VARIABLES, list(_written()))).encode())
    for name, source in files.items():
        status = os.stat(source)
        total.update(f"{name} {status.st_size} {status.st_mtime_ns}\n".encode())
    return total.hexdigest()[:12]
