"""Process 1 inside the isolation: unpack the tree, run one command, pack what changed.

The same file is imported on the host for its wire format and executed inside by a bare interpreter
(`python -ISE`, standard library only), so it must import nothing of this package.

A message is a list of byte strings, each length-prefixed. Request and reply travel over the
supervisor's own stdin and stdout; the command gets /dev/null and a pipe of its own, so whatever it
prints cannot be taken for a reply. Inside a process namespace the supervisor is process 1: no signal
of the command reaches it, it is not dumpable (its descriptors cannot be opened through /proc), and
when it ends the kernel ends everything else.

Request: command, settings, root, tools root, environment, tools, repository, tree.
Reply: status, output, changed entries, removed paths, dropped paths.
An entry is four strings: path, kind (f file, x executable, l link, d empty folder), mtime, data.
"""

from __future__ import annotations

import errno
import os
import resource
import select
import signal
import stat
import sys
import time

SETTINGS = ("memory", "processes", "cpu_s", "wall_ms", "disk", "read", "files")
STATUS = ("exit_code", "timed_out", "overflow", "too_large")
PATH_LIMIT = 1024  # bytes; a longer path counts as a tree that is too large
PAGE = 4096
NOT_KEPT = (b".git", b".pytest_cache")  # wherever they lie in the tree: what one command leaves there ends with it

# An entry is (path, kind, mtime in seconds, data); a tree maps path -> (kind, data).
Entry = tuple[bytes, bytes, int, bytes]
Tree = dict[bytes, tuple[bytes, bytes]]


class TooLargeError(Exception):
    """The tree after the command exceeds the disk or file limit."""


def pack(parts: list[bytes]) -> bytes:
    """A list of byte strings as one: the count, then length and content of each (8 bytes, big endian)."""
    out = [len(parts).to_bytes(8, "big")]
    for part in parts:
        out += [len(part).to_bytes(8, "big"), part]
    return b"".join(out)


def unpack(data: bytes) -> list[bytes]:
    """The inverse of `pack`. Raises ValueError when the bytes are torn or too many."""
    view, parts, at = memoryview(data), [], 8
    for _ in range(int.from_bytes(view[:8], "big") if len(data) >= 8 else -1):
        size = int.from_bytes(view[at : at + 8], "big")
        at += 8 + size
        if at > len(data):
            raise ValueError("torn message")
        parts.append(bytes(view[at - size : at]))
    if at != len(data):
        raise ValueError("torn message")
    return parts


def pack_entries(entries: list[Entry]) -> bytes:
    return pack([part for path, kind, mtime, data in entries for part in (path, kind, b"%d" % mtime, data)])


def unpack_entries(data: bytes) -> list[Entry]:
    parts = iter(unpack(data))
    return [(path, kind, int(mtime), body) for path, kind, mtime, body in zip(parts, parts, parts, parts, strict=True)]


def rounded(size: int) -> int:
    """Bytes that a file of `size` bytes takes on a tmpfs."""
    return -(-size // PAGE) * PAGE


def listing_is_reversed(folder: bytes) -> bool:
    """Whether this file system lists the newest entry first (tmpfs of some kernels does)."""
    probe = os.path.join(folder, b".order")
    os.mkdir(probe)
    for name in (b"a", b"b"):
        os.mkdir(os.path.join(probe, name))
    names = os.listdir(probe)
    for name in (b"a", b"b", b"."):
        os.rmdir(os.path.normpath(os.path.join(probe, name)))
    return names == [b"b", b"a"]


def materialise(root: bytes, entries: list[Entry]) -> None:
    """Create the entries so that each folder lists its names in sorted order."""
    reverse = listing_is_reversed(root)
    made = {b""}
    for path, kind, mtime, data in sorted(entries, key=lambda entry: entry[0].split(b"/"), reverse=reverse):
        folder = path if kind == b"d" else os.path.dirname(path)
        if folder not in made:
            os.makedirs(os.path.join(root, folder), exist_ok=True)
            made.add(folder)
        target = os.path.join(root, path)
        if kind == b"l":
            os.symlink(data, target)
        elif kind != b"d":
            write_file(target, data, 0o755 if kind == b"x" else 0o644, mtime)


def write_file(target: bytes, data: bytes, mode: int, mtime: int) -> None:
    descriptor = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, mode)
    with open(descriptor, "wb", buffering=0) as file:
        file.write(data)
    os.utime(target, (mtime, mtime))


def read_tree(root: bytes, disk: int, files: int) -> tuple[Tree, list[bytes]]:
    """The tree below `root` without NOT_KEPT, and the sorted paths of special files, which are left out.

    Raises:
        TooLargeError: more than `disk` bytes (in pages), more than `files` entries, or a path too long.
    """
    tree: Tree = {}
    special: list[bytes] = []
    folders, used = [b""], 0
    while folders:
        folder = folders.pop()
        here = os.path.join(root, folder)
        os.chmod(here, 0o755)
        names = sorted(os.listdir(here))
        if folder and not names:
            tree[folder] = (b"d", b"")
        for name in names:
            if name in NOT_KEPT:
                continue
            path = os.path.join(folder, name)
            status = os.lstat(os.path.join(root, path))
            used += rounded(status.st_size) if stat.S_ISREG(status.st_mode) else 0
            if used > disk or len(tree) + len(special) + len(folders) > files or len(path) > PATH_LIMIT:
                raise TooLargeError
            if stat.S_ISDIR(status.st_mode):
                folders.append(path)
            elif entry := read_entry(os.path.join(root, path), status.st_mode):
                tree[path] = entry
            else:
                special.append(path)
    return tree, sorted(special)


def read_entry(target: bytes, mode: int) -> tuple[bytes, bytes] | None:
    """Kind and content of a file or link; None for anything else (fifo, socket, device)."""
    if stat.S_ISLNK(mode):
        return b"l", os.readlink(target)
    if not stat.S_ISREG(mode):
        return None
    if not mode & stat.S_IRUSR:
        os.chmod(target, 0o600)
    with open(target, "rb") as file:
        return (b"x" if mode & stat.S_IXUSR else b"f"), file.read()


def harden() -> None:
    """No dumping or tracing of this process; fixed addresses and no keys for the command (Linux only).

    With fixed addresses the order of sets of objects and every printed address repeat from run to run.
    """
    if sys.platform != "linux":
        return
    import ctypes

    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(4, 0, 0, 0, 0)  # PR_SET_DUMPABLE
    libc.prctl(38, 1, 0, 0, 0)  # PR_SET_NO_NEW_PRIVS
    libc.personality(0x0040000)  # ADDR_NO_RANDOMIZE
    keyctl = {"x86_64": 250, "aarch64": 219}.get(os.uname().machine)
    if keyctl:
        libc.syscall(keyctl, 1, None)  # KEYCTL_JOIN_SESSION_KEYRING: an empty one instead of the host's


def limit_resources(settings: dict[str, int]) -> None:
    wanted = (
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_AS, settings["memory"]),
        (resource.RLIMIT_CPU, settings["cpu_s"]),
        (resource.RLIMIT_FSIZE, settings["disk"]),
        (resource.RLIMIT_NPROC, settings["processes"]),
        (resource.RLIMIT_NOFILE, 256),
    )
    for what, value in wanted:
        try:
            resource.setrlimit(what, (value, value))
        except (ValueError, OSError):  # not every system has every limit
            pass


def become(command: bytes, root: bytes, environment: dict[bytes, bytes], pipe: int, settings: dict[str, int]) -> None:
    """In the child: own session, own limits, stdin empty, stdout and stderr the pipe; then bash."""
    os.setsid()
    null = os.open("/dev/null", os.O_RDONLY)
    for source, target in ((null, 0), (pipe, 1), (pipe, 2)):
        os.dup2(source, target)
    os.closerange(3, 1024)
    for number in (signal.SIGPIPE, signal.SIGXFSZ, signal.SIGINT):
        signal.signal(number, signal.SIG_DFL)
    try:
        with open("/proc/self/oom_score_adj", "w") as file:  # out of memory: the command goes first
            file.write("1000")
    except OSError:
        pass
    os.chdir(root)
    limit_resources(settings)
    os.execvpe(b"bash", [b"bash", b"-c", command], environment)


def start(command: bytes, root: bytes, environment: dict[bytes, bytes], settings: dict[str, int]) -> tuple[int, int]:
    """Fork the command; its process id and the reading end of its output."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            become(command, root, environment, writing, settings)
        except BaseException as error:
            os.write(1, f"bash: {error.strerror if isinstance(error, OSError) else error}\n".encode())
        finally:
            os._exit(126)
    os.close(writing)
    os.set_blocking(reading, False)
    return child, reading


class Watch:
    """The command's output and end: reads at most `cap` bytes and notes how the command ended."""

    def __init__(self, child: int, pipe: int, cap: int) -> None:
        self.child, self.pipe, self.cap = child, pipe, cap
        self.output = bytearray()
        self.status: int | None = None
        self.overflow = False
        self.open = True

    def read(self) -> None:
        """Take what is in the pipe, one byte over the cap at most."""
        while self.open and not self.overflow:
            try:
                part = os.read(self.pipe, min(65536, self.cap + 1 - len(self.output)))
            except BlockingIOError:
                return
            self.open = bool(part)
            self.output += part
            self.overflow = len(self.output) > self.cap

    def reap(self) -> bool:
        """Collect every child that has ended; whether any is left."""
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return False
            if pid == 0:
                return True
            if pid == self.child:
                self.status = os.waitstatus_to_exitcode(status)

    def until(self, deadline: float) -> None:
        """Read until the command ends, prints too much or the time is over."""
        poll = select.poll()
        poll.register(self.pipe, select.POLLIN)
        if hasattr(os, "pidfd_open"):
            poll.register(os.pidfd_open(self.child), select.POLLIN)
        while self.status is None and not self.overflow and time.monotonic() < deadline:
            poll.poll(20)  # also the rate at which orphans are collected
            self.reap()
            if self.open:
                self.read()
                if not self.open:
                    poll.unregister(self.pipe)

    def end(self) -> None:
        """Kill everything that the command left, then read the rest of its output."""
        alone = os.getpid() == 1
        for _ in range(200):
            try:
                os.kill(-1, signal.SIGKILL) if alone else os.killpg(self.child, signal.SIGKILL)
            except (ProcessLookupError, PermissionError):
                pass
            if not self.reap():
                break
            self.read()
            time.sleep(0.005)
        self.read()


def run(request: bytes) -> bytes:
    """Serve one request; the reply."""
    command, numbers, root, tools_root, variables, tools, repository, tree = unpack(request)
    settings = dict(zip(SETTINGS, map(int, numbers.split()), strict=True))
    environment = dict(line.split(b"=", 1) for line in variables.split(b"\0"))
    before = unpack_entries(tree)
    materialise(tools_root, unpack_entries(tools))
    materialise(root, before + unpack_entries(repository))
    child, pipe = start(command, root, environment, settings)
    watch = Watch(child, pipe, settings["read"])
    watch.until(time.monotonic() + settings["wall_ms"] / 1000)
    timed_out = watch.status is None and not watch.overflow
    code = 124 if timed_out else 137 if watch.status is None else watch.status
    watch.end()
    return reply(watch, code, timed_out, root, settings, {path: (kind, data) for path, kind, _, data in before})


def reply(watch: Watch, code: int, timed_out: bool, root: bytes, settings: dict[str, int], before: Tree) -> bytes:
    too_large = False
    try:
        after, special = read_tree(root, settings["disk"], settings["files"])
    except (TooLargeError, OSError) as error:
        if isinstance(error, OSError) and error.errno not in (errno.ENAMETOOLONG, errno.ENOSPC):
            raise
        after, special, too_large = before, [], True
    changed = [(path, *after[path]) for path in sorted(after) if before.get(path) != after[path]]
    status = (code if code >= 0 else 128 - code, timed_out, watch.overflow, too_large)
    return pack(
        [
            b" ".join(b"%d" % value for value in status),
            bytes(watch.output[: watch.cap]),
            pack_entries([(path, kind, 0, data) for path, kind, data in changed]),
            pack(sorted(before.keys() - after.keys())),
            pack(special),
        ]
    )


def main() -> None:
    harden()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.umask(0o022)
    answer = run(sys.stdin.buffer.read())
    sys.stdout.buffer.write(answer)
    sys.stdout.buffer.flush()


if __name__ == "__main__":
    main()
