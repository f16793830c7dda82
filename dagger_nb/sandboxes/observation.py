"""From the supervisor's reply to what the agent sees and what the tree becomes; and to bytes for the cache."""

from __future__ import annotations

import os
from dataclasses import dataclass

from dagger_nb.sandboxes import supervisor
from dagger_nb.sandboxes.canonical import canonical
from dagger_nb.sandboxes.launch import Reply
from dagger_nb.sandboxes.limits import Limits
from dagger_nb.sandboxes.protocol import CommandResult
from dagger_nb.sandboxes.snapshot import Entry, Snapshot


@dataclass(frozen=True, slots=True)
class Observation:
    """A command's result and what it did to the tree.

    `keep` is false where the result depends on how fast or how full the machine was.
    """

    result: CommandResult
    changed: tuple[supervisor.Entry, ...] = ()
    removed: tuple[bytes, ...] = ()
    keep: bool = True

    def apply(self, snapshot: Snapshot) -> Snapshot:
        """The tree after the command; the same object when nothing changed."""
        if not self.changed and not self.removed:
            return snapshot
        changed = {os.fsdecode(path): Entry(kind.decode(), data) for path, kind, _, data in self.changed}
        return snapshot.change(changed, map(os.fsdecode, self.removed))

    def pack(self) -> bytes:
        numbers = b"%d %d %d" % (self.result.exit_code, self.result.timed_out, self.result.truncated)
        parts = [numbers, self.result.output.encode(), supervisor.pack_entries(list(self.changed))]
        return supervisor.pack([*parts, supervisor.pack(list(self.removed))])

    @classmethod
    def unpack(cls, data: bytes) -> Observation:
        """The inverse of `pack`. Raises ValueError when the bytes are torn."""
        numbers, output, changed, removed = supervisor.unpack(data)
        code, timed_out, truncated = map(int, numbers.split())
        result = CommandResult(output.decode(), code, bool(timed_out), bool(truncated))
        return cls(result, tuple(supervisor.unpack_entries(changed)), tuple(supervisor.unpack(removed)))


def observe(reply: Reply, limits: Limits) -> Observation:
    """The canonical observation of a reply, cut to the output limit, with a note for each limit that was met."""
    text, cut = shorten(reply.output, limits.output_bytes)
    lines = [text, *notes(reply, limits)]
    output = "\n".join(line for line in lines if line)
    result = CommandResult(output, reply.exit_code, reply.timed_out, cut or reply.overflow)
    return Observation(result, reply.changed, reply.removed, keep=not (reply.timed_out or reply.memory))


def notes(reply: Reply, limits: Limits) -> list[str]:
    """One line for each limit that the command met."""
    found = []
    if reply.timed_out:
        found.append(f"[timed out after {limits.wall_s:g} s]")
    if reply.overflow:
        found.append("[killed: too much output]")
    if reply.memory:
        found.append(f"[killed: more than {limits.memory_mb} MiB of memory; changes are dropped]")
    if reply.too_large:
        found.append(f"[more than {limits.disk_mb} MiB or {limits.files} files; changes are dropped]")
    if reply.special:
        found.append(f"[special files are dropped: {', '.join(map(os.fsdecode, reply.special[:5]))}]")
    return found


def shorten(raw: bytes, limit: int, *, of_image: bool = False) -> tuple[str, bool]:
    """The `canonical` text of an output, its middle cut out so that about `limit` bytes stay; whether it was cut.

    Of a very long output only the two ends are made canonical, and its bytes are counted as written.

    >>> shorten(b"a" * 50, 20)
    ('aaaaaaaaaa\\n[30 bytes cut]\\naaaaaaaaaa', True)
    """
    ends = (raw,) if len(raw) <= 4 * limit else (raw[: 2 * limit], raw[-2 * limit :])
    texts = [canonical(end.decode(errors="replace"), of_image=of_image).encode() for end in ends]
    total = len(texts[0]) if len(ends) == 1 else len(raw)
    if total <= limit:
        return texts[0].decode(), False
    half = limit // 2
    head, tail = texts[0][:half].rstrip(), texts[-1][-half:].lstrip()
    gone = total - len(head) - len(tail)
    return f"{head.decode(errors='ignore')}\n[{gone} bytes cut]\n{tail.decode(errors='ignore')}", True
