"""Which commit of a model on the Hugging Face hub: asked once, then the same for tokenizer, training and servers.

The answer is kept in data/runs/models.json, beside the runs that rest on it: what was newest when the first of them
began stays, whatever is pushed to the hub later, until those runs are removed with it.
"""

from __future__ import annotations

import re
from pathlib import Path

from dagger_nb import paths
from dagger_nb.errors import EnvironmentProblem
from dagger_nb.store import read_json, write_json

_COMMIT = re.compile(r"[0-9a-f]{40}")


def commit_of(base: str, revision: str = "") -> str:
    """The commit of a hub id at a branch, a tag or a commit (empty: the newest); empty for a folder.

    Raises:
        EnvironmentProblem: neither a folder nor a hub id that can be had.
    """
    if Path(base).is_dir():
        return ""
    if known := recorded(base, revision):
        return known
    found = _asked(base, revision)
    write_json(record(), _known() | {_key(base, revision): found})
    return found


def recorded(base: str, revision: str = "") -> str:
    """As `commit_of`, of what is known here already; empty where nobody asked yet."""
    if Path(base).is_dir():
        return ""
    return revision if _COMMIT.fullmatch(revision) else _known().get(_key(base, revision), "")


def _asked(base: str, revision: str) -> str:
    """From the hub, or without a network from its cache on this machine."""
    from huggingface_hub import hf_hub_download

    try:
        return Path(hf_hub_download(base, "config.json", revision=revision or None)).parent.name
    except (OSError, ValueError) as error:
        raise no_checkpoint(base, error) from error


def no_checkpoint(base: str, error: Exception) -> EnvironmentProblem:
    """The error that says how to get a base that is not here."""
    return EnvironmentProblem(
        f"no checkpoint {base!r}: it is no folder, and the hub did not give it ({type(error).__name__}); "
        "check student.path or teacher.path, its revision, and HF_TOKEN for a gated model; where there is a network "
        f"`hf download {base}` fetches it, elsewhere name its folder"
    )


def _key(base: str, revision: str) -> str:
    return f"{base}@{revision}" if revision else base


def record() -> Path:
    """The file of what was newest when it was asked."""
    return paths.runs() / "models.json"


def _known() -> dict[str, str]:
    return read_json(record()) if record().exists() else {}
