"""Git objects and patches without git: a tree's commit hash, and unified diffs that `git apply` takes."""

from __future__ import annotations

import difflib
import hashlib
from collections.abc import Mapping

# Whoever commits the tree with these gets the same commit hash.
AUTHOR = "dagger-nb"
EMAIL = "dagger-nb@example.org"
DATE = "1767225600 +0000"  # 2026-01-01, in git's own form
MESSAGE = "base"


def commit_hash(files: Mapping[str, str]) -> str:
    """SHA-1 of the parentless commit that holds exactly these files."""
    who = f"{AUTHOR} <{EMAIL}> {DATE}"
    body = f"tree {_tree(files)}\nauthor {who}\ncommitter {who}\n\n{MESSAGE}\n"
    return _object("commit", body.encode())


def _tree(files: Mapping[str, str]) -> str:
    folders: dict[str, dict[str, str]] = {}
    entries: dict[str, tuple[str, str]] = {}
    for path, text in files.items():
        head, slash, rest = path.partition("/")
        if slash:
            folders.setdefault(head, {})[rest] = text
        else:
            entries[head] = "100644", _object("blob", text.encode())
    for name, inside in folders.items():
        entries[name + "/"] = "40000", _tree(inside)  # git sorts a folder as if its name ended in a slash
    rows = (
        f"{mode} {name.rstrip('/')}\0".encode() + bytes.fromhex(sha) for name, (mode, sha) in sorted(entries.items())
    )
    return _object("tree", b"".join(rows))


def _object(kind: str, body: bytes) -> str:
    return hashlib.sha1(f"{kind} {len(body)}\0".encode() + body).hexdigest()


def diff(old: Mapping[str, str], new: Mapping[str, str]) -> str:
    """A git-style patch from one tree to another; files are changed or added, never removed."""
    return "".join(_file_diff(path, old.get(path), new[path]) for path in sorted(new) if old.get(path) != new[path])


def _file_diff(path: str, old: str | None, new: str) -> str:
    head = f"diff --git a/{path} b/{path}\n" + ("new file mode 100644\n" if old is None else "")
    before = "/dev/null" if old is None else f"a/{path}"
    lines = difflib.unified_diff((old or "").splitlines(True), new.splitlines(True), before, f"b/{path}")
    return head + "".join(lines)
