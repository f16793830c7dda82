"""The repository in a container: stripped of its history, files read and written, the patch.

Two kinds of image. One has a repository at /testbed (SWE-bench, SWE-Gym): its future commits, branches, tags,
stashes, reflogs and remotes are removed, and what is left is checked. The other has none, and the task's own
files are put there with a repository of one commit.

A second copy of the stripped `.git` lies outside /testbed. The patch is made with it, so that whatever is done
to /testbed/.git (commits, a reset, its removal) the patch still leads from the first tree to the last one. Where
that copy, git or /testbed itself was removed, which only the episode's own commands can do, the patch is empty.
"""

from __future__ import annotations

import errno
import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass

from dagger_nb.errors import SandboxError
from dagger_nb.sandboxes.containers.archives import one_file
from dagger_nb.sandboxes.containers.container import NO_PROGRAM, NO_TESTBED, Container
from dagger_nb.sandboxes.containers.scripts import DIFF, NO_START, OWN, READ, STRIP, WRITE, script
from dagger_nb.sandboxes.snapshot import ROOT, Snapshot
from dagger_nb.sandboxes.view import environment

LOG = logging.getLogger(__name__)
READ_BYTES = 256 << 20  # of a file
PATCH_BYTES = 32 << 20
SCRIPT_S = 600.0  # wall clock of one script; stripping a large repository takes some seconds

_REMOVED = (NO_START, NO_TESTBED, NO_PROGRAM)  # exit codes of a script that lacks what every image had at first
_ATTRIBUTES = "* -text -ident -filter -working-tree-encoding"  # the tree's own must not change what is in the patch
_NAME = re.compile(r"[A-Za-z_]\w*")
_SHELLS_OWN = {"PWD", "OLDPWD", "SHLVL", "_", "HOSTNAME"}
_IMAGES_OWN = {"PATH", "PYTHONPATH"}
_USERS_OWN = {"HOME", "TMPDIR", "USER", "LOGNAME", "SHELL", "PYTEST_DISABLE_PLUGIN_AUTOLOAD"}
_TRUST = {"GIT_CONFIG_COUNT": "1", "GIT_CONFIG_KEY_0": "safe.directory", "GIT_CONFIG_VALUE_0": "*"}

# the last words of a failed program -> what Python raises for it
_PROBLEMS = {
    "Permission denied": errno.EACCES,
    "Too many levels of symbolic links": errno.EACCES,
    "No such file or directory": errno.ENOENT,
    "Is a directory": errno.EISDIR,
    "Not a directory": errno.ENOTDIR,
    "File exists": errno.ENOTDIR,  # mkdir's word for a file in a folder's place
    "File name too long": errno.ENAMETOOLONG,
    "No space left on device": errno.ENOSPC,
}


@dataclass(frozen=True, slots=True)
class Start:
    """What a sandbox starts from: the tree that patches are made against, the environment of commands, and whether the
    repository is the image's own."""

    tree: str
    environment: Mapping[str, str]
    of_image: bool


def start_of_files() -> Start:
    """For a task that brings its files: the one commit, and the environment of the local sandbox."""
    return Start("HEAD", _variables(without=_IMAGES_OWN), of_image=False)


def shared_variables() -> dict[str, str]:
    """What an image's own environment is completed with: the same locale, dates, hash seed and width everywhere."""
    return _variables(without=_IMAGES_OWN | _USERS_OWN) | _TRUST


def _variables(without: set[str]) -> dict[str, str]:
    pairs = (line.split("=", 1) for line in environment().decode().split("\0"))
    return {name: value for name, value in pairs if name not in without | _SHELLS_OWN}


def strip(container: Container, base_commit: str) -> Start:
    """Leave HEAD's tree, and of the history `base_commit` (with what the image's makers put on top of it).

    Submodules keep their own history. The environment is the image's own after its .bashrc, which is where
    SWE-bench images activate the tests' Python.

    Raises:
        SandboxError: there is no repository, it is another task's, or it could not be stripped.
    """
    ended = container.run(script(STRIP, base=base_commit, attributes=_ATTRIBUTES), SCRIPT_S, READ_BYTES)
    if ended.exit_code != 0:
        words = ended.output[-500:].decode(errors="replace").strip()
        words = "no folder /testbed" if ended.exit_code == NO_TESTBED else words or f"exit status {ended.exit_code}"
        raise SandboxError(f"its repository cannot be used: {words}; use the image that was made for this instance")
    tree, _, rest = ended.output.decode(errors="replace").partition("\n")
    pairs = (line.split("=", 1) for line in rest.split("\0") if "=" in line)
    found = {name: value for name, value in pairs if _NAME.fullmatch(name) and name not in _SHELLS_OWN}
    return Start(tree, found | shared_variables(), of_image=True)


def read(container: Container, path: str) -> str:
    """Text of a file; errors as `sandboxes.protocol.Sandbox.read` says."""
    place = Snapshot().resolve(path)
    ended = container.run(script(READ, path=f"{ROOT}/{place}"), SCRIPT_S, READ_BYTES)
    if ended.exit_code != 0:
        raise _problem(ended.output, path)
    return ended.output.decode()


def write(container: Container, path: str, text: str) -> None:
    """Create or overwrite a file; errors as `sandboxes.protocol.Sandbox.write` says."""
    place = Snapshot().resolve(path)
    if ".git" in place.split("/"):
        raise PermissionError(errno.EACCES, "the repository's own files are not written", path)
    if not place:
        raise IsADirectoryError(errno.EISDIR, "is a folder", path)
    container.put(one_file("incoming", text.encode(errors="replace")), OWN)
    ended = container.run(script(WRITE, path=f"{ROOT}/{place}"), SCRIPT_S, READ_BYTES)
    if ended.exit_code != 0:
        raise _problem(ended.output, path)


def diff(container: Container, start: str) -> str:
    """The patch from tree `start` to the tree as it is, untracked files included, ignored ones not.

    A changed file that is not UTF-8 makes git's binary form of them all. The patch is empty where commands have removed
    what it is made with, or have left more than there is room, time or memory for: that is the episode's own doing.

    Raises:
        SandboxError: git failed.
    """
    for attributes in (_ATTRIBUTES, f"{_ATTRIBUTES} -diff"):
        ended = container.run(script(DIFF, start=start, attributes=attributes), SCRIPT_S, PATCH_BYTES)
        if ended.exit_code in _REMOVED:
            LOG.warning("git or /testbed was removed by the episode's own commands: its patch is empty")
            return ""
        if ended.overflow or ended.timed_out or ended.memory:
            LOG.warning("the episode left more than %d MB of changes, or too much to read: no patch", PATCH_BYTES >> 20)
            return ""
        if ended.exit_code != 0:
            words = ended.output[-500:].decode(errors="replace")
            raise SandboxError(f"git diff failed in the container (exit status {ended.exit_code}): {words}")
        try:
            return ended.output.decode()
        except UnicodeDecodeError:
            continue
    raise SandboxError("git wrote a patch that is no text even with every file as binary")


def _problem(output: bytes, path: str) -> OSError:
    """The error that a failed program's last words stand for, as Python would raise it."""
    words = output[-500:].decode(errors="replace").strip().rpartition(": ")[2]
    return OSError(_PROBLEMS.get(words, errno.EIO), words or "no answer", path)
