"""A git repository of exactly one commit, written without git: the `.git` that every command sees.

Pure: the same files give the same bytes and the same commit on any machine. The commit, its trees
and blobs lie in one pack; the index holds each file's size and time, so that git need not read the
files again to see that nothing changed (with `core.checkStat = minimal` only those two count).
Formats: gitformat-pack(5), gitformat-index(5).
"""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Mapping

from dagger_nb.tasks.git import AUTHOR, DATE, EMAIL, MESSAGE

BRANCH = "main"
TIME = int(DATE.split()[0])  # seconds since 1970; the commit's time is also every base file's

CONFIG = b"""[core]
\trepositoryformatversion = 0
\tbare = false
\tfilemode = true
\tcheckStat = minimal
\ttrustctime = false
\tquotePath = false
[gc]
\tauto = 0
[advice]
\tstatusHints = false
\tdetachedHead = false
"""

_KINDS = {"commit": 1, "tree": 2, "blob": 3}  # of pack entries
_Objects = dict[bytes, tuple[str, bytes]]  # hash -> kind and content


def repository(files: Mapping[str, bytes]) -> tuple[dict[str, bytes], str]:
    """The files below /testbed that make up `.git`, and the commit's hash (hex).

    `files` are plain files (mode 644), path relative to the root -> content.

    >>> sorted(repository({"a.py": b"x = 1\\n"})[0])[:3]
    ['.git/HEAD', '.git/config', '.git/index']
    """
    objects: _Objects = {}
    blobs = {path: _add(objects, "blob", data) for path, data in files.items()}
    root = _add_tree(objects, _nested(blobs))
    who = f"{AUTHOR} <{EMAIL}> {DATE}"
    commit = _add(objects, "commit", f"tree {root.hex()}\nauthor {who}\ncommitter {who}\n\n{MESSAGE}\n".encode())
    name, pack, index = _pack(objects)
    written = {
        "HEAD": f"ref: refs/heads/{BRANCH}\n".encode(),
        "config": CONFIG,
        "index": _stage(files, blobs),
        f"refs/heads/{BRANCH}": f"{commit.hex()}\n".encode(),
        f"objects/pack/pack-{name}.pack": pack,
        f"objects/pack/pack-{name}.idx": index,
    }
    return {f".git/{path}": data for path, data in written.items()}, commit.hex()


def _add(objects: _Objects, kind: str, data: bytes) -> bytes:
    name = hashlib.sha1(b"%s %d\0%s" % (kind.encode(), len(data), data)).digest()
    objects[name] = (kind, data)
    return name


def _nested(blobs: Mapping[str, bytes]) -> dict:
    root: dict = {}
    for path, name in blobs.items():
        *folders, last = path.split("/")
        here = root
        for folder in folders:
            here = here.setdefault(folder, {})
        here[last] = name
    return root


def _add_tree(objects: _Objects, tree: dict) -> bytes:
    """Write the tree below-first; git sorts a folder as if its name ended in a slash."""
    rows = []
    for name, child in tree.items():
        if isinstance(child, dict):
            rows.append((name.encode() + b"/", b"40000", name, _add_tree(objects, child)))
        else:
            rows.append((name.encode(), b"100644", name, child))
    return _add(objects, "tree", b"".join(b"%s %s\0%s" % (m, n.encode(), h) for _, m, n, h in sorted(rows)))


def _pack(objects: _Objects) -> tuple[str, bytes, bytes]:
    """Name, pack and pack index (version 2) of all objects, undeltified."""
    body = b"PACK" + _number(2) + _number(len(objects))
    offsets, sums = {}, {}
    for name in sorted(objects):
        kind, data = objects[name]
        row = _size(_KINDS[kind], len(data)) + zlib.compress(data, 1)
        offsets[name], sums[name] = len(body), zlib.crc32(row)
        body += row
    checksum = hashlib.sha1(body).digest()
    names = sorted(objects)
    fan = b"".join(_number(sum(name[0] <= first for name in names)) for first in range(256))
    index = b"\xfftOc" + _number(2) + fan + b"".join(names)
    index += b"".join(_number(sums[name]) for name in names)
    index += b"".join(_number(offsets[name]) for name in names) + checksum
    return checksum.hex(), body + checksum, index + hashlib.sha1(index).digest()


def _size(kind: int, size: int) -> bytes:
    """A pack entry's header: kind and size, seven bits a byte after the first four."""
    byte, size = kind << 4 | size & 15, size >> 4
    out = bytearray()
    while size:
        out.append(byte | 128)
        byte, size = size & 127, size >> 7
    out.append(byte)
    return bytes(out)


def _stage(files: Mapping[str, bytes], blobs: Mapping[str, bytes]) -> bytes:
    """The index (version 2) of all files, with the base time."""
    body = b"DIRC" + _number(2) + _number(len(files))
    for path in sorted(files, key=str.encode):
        name = path.encode()
        status = [0, 0, TIME, 0, 0, 0, 0o100644, 0, 0, len(files[path])]  # ctime, mtime, dev, ino, mode, owner, size
        row = b"".join(map(_number, status)) + blobs[path] + min(len(name), 0xFFF).to_bytes(2, "big") + name
        body += row + bytes(8 - len(row) % 8)
    return body + hashlib.sha1(body).digest()


def _number(value: int) -> bytes:
    return value.to_bytes(4, "big")
