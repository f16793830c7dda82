"""The back ends, best first: bubblewrap, namespaces made by util-linux, a plain subprocess.

A back end turns the supervisor's command line into one that runs it isolated. `plain` is no
isolation: it keeps accidents in a temporary folder, and it says so.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Callable
from dataclasses import dataclass

from dagger_nb.sandboxes.limits import MIB
from dagger_nb.sandboxes.snapshot import ROOT
from dagger_nb.sandboxes.view import TOOLS, View, view

_NEW = "/sys"  # util-linux: becomes the new root, inside the namespace only; nothing we show lies there
_DEVICES = ("null", "zero", "full", "random", "urandom")
# Of /proc, shown read-only: where dagger-nb runs as root, the user inside is the host's root without its
# capabilities, and by its file modes alone such a user may still write kernel settings.
_COVERED = ("acpi", "bus", "dynamic_debug", "fs", "irq", "mtrr", "pressure", "scsi", "sys", "sysrq-trigger", "tty")

# Flags up and running for the loopback interface, as bubblewrap sets them; `ip` need not be installed.
_LOOPBACK = 'import fcntl,socket,struct;fcntl.ioctl(socket.socket(),0x8914,struct.pack("16sh",b"lo",65))'

_HELD = {
    "network": "held: own network namespace without any interface but loopback",
    "files": "held: private root; only system programs, this Python and pytest are visible, all read-only",
    "processes seen": "held: own process namespace; all of it is killed when the command ends",
    "environment": "held: a fixed environment, nothing of the host's",
    "privileges": "held: no capabilities, no new privileges, no further namespaces",
    "disk": "held: /testbed, /tmp and /dev/shm are memory file systems of fixed size",
}
_PLAIN = {
    "network": "NOT held: commands reach the network",
    "files": "NOT held: commands read and write whatever this user may",
    "processes seen": "NOT held: commands see and may signal this user's processes; a daemon may outlive its command",
    "environment": "weak: a fixed environment, but the host's can be read through /proc",
    "privileges": "NOT held: commands run with this user's rights",
    "disk": "weak: a limit per file, and on the tree after the command",
}


@dataclass(frozen=True, slots=True)
class Backend:
    """One way to run the supervisor.

    `wrap(inside, testbed, disk)` is the command line that runs `inside` with /testbed of `testbed`
    bytes and /tmp and /dev/shm of `disk` bytes. `advice` says what to do when it is not to be had.
    """

    name: str
    program: str
    isolates: bool
    wrap: Callable[[list[str], int, int], list[str]]
    protections: dict[str, str]
    advice: str


def _bubblewrap(inside: list[str], testbed: int, disk: int) -> list[str]:
    seen = view()
    line = ["bwrap", "--unshare-user", "--unshare-all", "--disable-userns", "--die-with-parent", "--new-session"]
    line += ["--as-pid-1", "--cap-drop", "ALL", "--uid", "1000", "--gid", "1000", "--hostname", "testbed"]
    for source, target in seen.binds:
        line += ["--ro-bind", source, target]
    for target, name in seen.links:
        line += ["--symlink", target, name]
    line += ["--proc", "/proc", "--dev", "/dev"]
    for name in _COVERED:
        line += ["--ro-bind-try", f"/proc/{name}", f"/proc/{name}"]
    for folder, size in _temporary(seen, testbed, disk):
        line += ["--size", str(size), "--tmpfs", folder]
    return [*line, "--remount-ro", "/dev", "--remount-ro", "/", "--chdir", ROOT, *inside]


def _temporary(seen: View, testbed: int, disk: int) -> list[tuple[str, int]]:
    """Folder and size (bytes) of each memory file system."""
    hidden = [(folder, MIB) for folder in seen.hidden]
    return [*hidden, (TOOLS, MIB), ("/tmp", disk), ("/dev/shm", disk), (ROOT, testbed)]


def _unshare(inside: list[str], testbed: int, disk: int) -> list[str]:
    line = [
        "setpriv",
        "--pdeathsig",
        "KILL",
        "unshare",
        "--user",
        "--map-root-user",
        "--mount",
        "--pid",
        "--fork",
        "--kill-child",
        "--net",
        "--ipc",
    ]
    script = _root_script(view(), inside[0], testbed, disk)
    return [*line, "--uts", "--cgroup", "--propagation", "private", "/bin/sh", "-euc", script, "sandbox", *inside]


def _root_script(seen: View, python: str, testbed: int, disk: int) -> str:
    """Shell lines that build the private root at _NEW, enter it, drop every capability and run "$@"."""
    devices = [(f"/dev/{name}", f"/dev/{name}") for name in _DEVICES]
    temporary = _temporary(seen, testbed, disk)
    lines = [f"mount -t tmpfs -o size=1m,mode=755 none {_NEW}", f"cd {_NEW}"]
    lines += _mount_points([*seen.binds, *devices], ["/proc", "/old", "/etc", *(folder for folder, _ in temporary)])
    lines += [_bind(source, target, "ro,nosuid,nodev") for source, target in seen.binds]
    lines += [_bind(source, target, "nosuid") for source, target in devices]
    lines += [f"ln -s {shlex.quote(target)} {_at(name)}" for target, name in seen.links]
    lines += [f"mount -t tmpfs -o size={size},nosuid,nodev,mode=755 none {_at(folder)}" for folder, size in temporary]
    lines += ["mount -t proc none ./proc", "echo 0 > ./proc/sys/user/max_user_namespaces"]
    covered = [f"/proc/{name}" for name in _COVERED]
    lines += [f"[ ! -e .{path} ] || {_bind('.' + path, path, 'ro,nosuid,nodev')}" for path in covered]
    lines += ["hostname testbed", "pivot_root . old", "cd /", "umount -l /old", "rmdir /old"]
    lines += ["mount -o remount,bind,ro,nosuid,nodev /", f"{python} -ISE -c '{_LOOPBACK}'", f"cd {ROOT}"]
    return "\n".join([*lines, 'exec setpriv --bounding-set=-all --inh-caps=-all --no-new-privs "$@"'])


def _at(path: str) -> str:
    """A path of the new root, as the shell that builds it names it."""
    return shlex.quote("." + path)


def _mount_points(shown: list[tuple[str, str]], folders: list[str]) -> list[str]:
    """Make the folders and files on which something is mounted; those below a shown path are there already."""
    own = [(source, target) for source, target in shown if not target.startswith("/usr/")]
    below = tuple(f"{target}/" for _, target in own)
    files = [target for source, target in own if not os.path.isdir(source)]
    wanted = {target for source, target in own if os.path.isdir(source)} | {os.path.dirname(name) for name in files}
    wanted |= {folder for folder in folders if not folder.startswith(below)}
    return ["mkdir -p " + " ".join(map(_at, sorted(wanted))), *(f": > {_at(name)}" for name in files)]


def _bind(source: str, target: str, flags: str) -> str:
    return f"mount -o bind,{flags} {shlex.quote(source)} {_at(target)}"


def _plain(inside: list[str], testbed: int, disk: int) -> list[str]:
    return inside


BACKENDS = {
    backend.name: backend
    for backend in (
        Backend("bubblewrap", "bwrap", True, _bubblewrap, _HELD, "apt-get install bubblewrap (0.8 or later)"),
        Backend("unshare", "unshare", True, _unshare, _HELD, "install util-linux and allow user namespaces"),
        Backend("plain", "bash", False, _plain, _PLAIN, "install bash and git"),
    )
}
