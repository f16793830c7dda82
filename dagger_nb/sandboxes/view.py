"""What a command sees: which host paths, which environment, which tools. The same for every back end."""

from __future__ import annotations

import compileall
import functools
import importlib.metadata
import os
import re
import sys
from dataclasses import dataclass
from pathlib import Path

from dagger_nb.errors import EnvironmentProblem
from dagger_nb.sandboxes import supervisor
from dagger_nb.tasks.git import AUTHOR, DATE, EMAIL

TOOLS = "/opt/tools"  # a small tmpfs: bin/ with python, python3 and pytest, etc/passwd
SITE = "/opt/site"  # pytest and what it imports, nothing else
_PYTEST = """#!/usr/bin/env python
import sys
from {module} import {function}
sys.argv[0] = "pytest"
sys.exit({function}())
"""
_USERS = b"root:x:0:0::/root:/bin/sh\nagent:x:1000:1000::/tmp:/bin/bash\n"


@dataclass(frozen=True, slots=True)
class View:
    """Host paths shown read-only (host -> inside), links, and folders hidden under an empty tmpfs."""

    binds: tuple[tuple[str, str], ...]
    links: tuple[tuple[str, str], ...]  # target, name
    hidden: tuple[str, ...]


@functools.cache
def view() -> View:
    """The system's programs and libraries, this interpreter's base installation, and pytest."""
    prefix = sys.base_prefix
    binds = [("/usr", "/usr")] + [
        (path, path) for path in ("/etc/alternatives", "/etc/ld.so.cache") if os.path.exists(path)
    ]
    links = [(f"{TOOLS}/etc/{name}", f"/etc/{name}") for name in ("passwd", "group")]
    for path in ("/bin", "/sbin", "/lib", "/lib32", "/lib64"):
        if os.path.islink(path):
            links.append((os.readlink(path), path))
        elif os.path.exists(path):
            binds.append((path, path))
    if not Path(prefix).is_relative_to("/usr"):
        binds.append((prefix, prefix))
    binds += [(source, f"{SITE}/{name}") for name, source in packages().items()]
    version = f"python3.{sys.version_info.minor}"
    sites = (f"{prefix}/lib/{version}/site-packages", f"/usr/local/lib/{version}/dist-packages",
             f"/usr/local/lib/{version}/site-packages", "/usr/lib/python3/dist-packages")  # fmt: skip
    return View(tuple(binds), tuple(links), tuple(sorted({site for site in sites if os.path.exists(site)})))


def interpreter() -> str:
    """The base interpreter, not a virtual environment's: that one may lie in a folder that is not shown.

    Raises:
        EnvironmentProblem: it is not where Python says.
    """
    found = getattr(sys, "_base_executable", None) or sys.executable
    path = os.path.realpath(found)
    if not os.path.exists(path):
        raise EnvironmentProblem(
            f"no Python interpreter at {path}: repair the installation that {sys.prefix} is made of"
        )
    return path


@functools.cache
def packages() -> dict[str, str]:
    """Importable name -> host path, for pytest and everything that it requires, metadata included.

    Raises:
        EnvironmentProblem: pytest is not installed.
    """
    found: dict[str, str] = {}
    todo, seen = ["pytest"], set()
    while todo:
        name = todo.pop()
        if name in seen:
            continue
        seen.add(name)
        try:
            distribution = importlib.metadata.distribution(name)
        except importlib.metadata.PackageNotFoundError as error:
            if name == "pytest":
                raise EnvironmentProblem("pytest is not installed beside dagger-nb: pip install pytest") from error
            continue  # a requirement of another system or version
        todo += [re.split(r"[^\w.-]", line)[0] for line in distribution.requires or () if "extra ==" not in line]
        for file in distribution.files or ():
            top = file.parts[0]
            if re.fullmatch(r"\w+(\.py)?|.*\.dist-info", top) and top != "__pycache__":
                found[top] = str(distribution.locate_file(top))
    return dict(sorted(found.items()))


@functools.cache
def precompile() -> None:
    """Byte-compile pytest and what it imports where an installer left that out: inside nothing can be written,
    and every start of pytest would take over a second. Where the files cannot be written, that is how it stays.
    """
    for path in packages().values():
        if os.path.isdir(path):
            compileall.compile_dir(path, quiet=2)


@functools.cache
def launcher() -> bytes:
    """The `pytest` command."""
    points = importlib.metadata.distribution("pytest").entry_points.select(group="console_scripts", name="pytest")
    module, _, function = next(iter(points)).value.partition(":")
    return _PYTEST.format(module=module, function=function).encode()


def tools(site: dict[str, str] | None = None) -> list[supervisor.Entry]:
    """The content of TOOLS; `site` adds links to packages where nothing can be bound into place."""
    python = os.fsencode(interpreter())
    entries = [
        (b"bin/python", b"l", 0, python),
        (b"bin/python3", b"l", 0, python),
        (b"bin/pytest", b"x", 0, launcher()),
    ]
    entries += [(b"etc/passwd", b"f", 0, _USERS), (b"etc/group", b"f", 0, b"root:x:0:\nagent:x:1000:\n")]
    return entries + [(b"site/" + os.fsencode(n), b"l", 0, os.fsencode(path)) for n, path in (site or {}).items()]


def environment(root: str = "/testbed", tools_root: str = TOOLS, site: str = SITE, home: str = "/tmp") -> bytes:
    """The whole environment of a command, NUL-separated; nothing of the host's own comes through.

    git's global configuration is in `home`: were it named /dev/null, root's `git config --global` would write a file
    in the place of the device.
    """
    folders = (f"{tools_root}/bin", "/usr/local/bin", "/usr/bin", "/bin")
    if not any(os.path.exists(f"{folder}/git") for folder in folders):
        folders += (f"{sys.base_prefix}/bin",)  # as in a conda environment
    values = {
        "PATH": ":".join(folders), "HOME": home, "PWD": root, "TMPDIR": home, "USER": "agent", "LOGNAME": "agent",
        "SHELL": "/bin/bash", "LANG": "C.UTF-8", "LC_ALL": "C.UTF-8", "TZ": "UTC", "TERM": "dumb", "COLUMNS": "80",
        "LINES": "24", "PYTHONPATH": site, "PYTHONDONTWRITEBYTECODE": "1", "PYTHONHASHSEED": "0",
        "PYTHONNOUSERSITE": "1", "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
        "PAGER": "cat", "GIT_PAGER": "cat",
        "GIT_EDITOR": "true", "GIT_TERMINAL_PROMPT": "0", "GIT_CONFIG_NOSYSTEM": "1",
        "GIT_AUTHOR_NAME": AUTHOR, "GIT_AUTHOR_EMAIL": EMAIL, "GIT_AUTHOR_DATE": DATE,
        "GIT_COMMITTER_NAME": AUTHOR, "GIT_COMMITTER_EMAIL": EMAIL, "GIT_COMMITTER_DATE": DATE,
    }  # fmt: skip
    return b"\0".join(os.fsencode(f"{name}={value}") for name, value in values.items())
