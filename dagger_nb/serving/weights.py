"""The base that adapters sit on, as the engine can load it.

An adapter is right only on the weights it was trained on. A student trained on an NF4 base is served on NF4 (packed
by vLLM, which a CPU build cannot), or on the same NF4 weights unpacked to a checkpoint of full precision.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from pathlib import Path

from dagger_nb import paths
from dagger_nb.errors import ConfigError
from dagger_nb.records import digest
from dagger_nb.revisions import commit_of, no_checkpoint
from dagger_nb.serving.engine import Engine
from dagger_nb.store import file_sha256

_NOTE = "dequantised.json"  # written last: a folder without it is incomplete
_NOT_WEIGHTS = ("*.json", "*.jinja", "*.txt", "*.model")
_WANTED = ["*.safetensors", *_NOT_WEIGHTS]


def served_folder(base: str, *, weights: str, engine: Engine, revision: str = "") -> Path:
    """The checkpoint to serve for a student, whose adapters are trained on `weights` (`serving.weights`).

    "dequantised" writes the unpacked checkpoint once into the cache. `revision` is of a hub id, as in `commit_of`.

    Raises:
        ConfigError: the engine cannot load such weights.
    """
    if weights == "nf4" and engine.cpu:
        raise ConfigError("serving.weights = 'nf4': vLLM's build for CPUs cannot load it; use 'dequantised'")
    folder = local_checkpoint(base, revision)
    return dequantised(folder, engine.dtype) if weights == "dequantised" else folder


def local_checkpoint(base: str, revision: str = "") -> Path:
    """The folder of a base: itself, or the hub's snapshot of an id, downloaded where it is not yet here.

    Raises:
        EnvironmentProblem: neither a folder nor a hub id that can be had.
    """
    if Path(base).is_dir():
        return Path(base).absolute()
    from huggingface_hub import snapshot_download

    commit = commit_of(base, revision)
    try:
        return Path(snapshot_download(base, revision=commit, allow_patterns=_WANTED))
    except (OSError, ValueError) as error:
        raise no_checkpoint(base, error) from error


def content_digest(folder: Path) -> str:
    """SHA-256 (hex) of a checkpoint's configuration and weights; equal for copies of it."""
    files = sorted([folder / "config.json", *folder.glob("*.safetensors")])
    return digest({file.name: file_sha256(file) for file in files})


def dequantised(base: Path, dtype: str) -> Path:
    """A checkpoint whose linear weights are those of the NF4 base, unpacked to `dtype`; written once, atomically.

    Its folder's name is a digest of the base's content and of how it was packed, so a changed base is a new folder.
    """
    recipe = {"base": content_digest(base), "packing": "nf4, double quantised, blocks of 64", "dtype": dtype}
    folder = paths.cache() / "dequantised" / digest(recipe)[:16]
    if not (folder / _NOTE).exists():
        with tempfile.TemporaryDirectory(dir=paths.writable(folder.parent)) as work:
            fresh = Path(work) / "checkpoint"
            _write_unpacked(base, dtype, fresh)
            (fresh / _NOTE).write_text(json.dumps(recipe, indent=1))
            _publish(fresh, folder)
    return folder


def _write_unpacked(base: Path, dtype: str, folder: Path) -> None:
    import torch

    from dagger_nb.training.accelerator import accelerator
    from dagger_nb.training.model import free_accelerator, load_student, no_progress_bar

    precision = getattr(torch, dtype)
    model = load_student(base, dtype=precision, device=accelerator()).dequantize(precision)  # as training packs it
    with no_progress_bar():
        model.save_pretrained(folder)
    del model
    free_accelerator()  # the server wants the GPU
    for pattern in _NOT_WEIGHTS:
        for file in sorted(base.glob(pattern)):
            if not (folder / file.name).exists() and not file.name.endswith(".index.json"):
                shutil.copy(file, folder)


def _publish(fresh: Path, folder: Path) -> None:
    """Move the finished checkpoint to its place, unless another process was first."""
    try:
        os.rename(fresh, folder)
    except OSError:
        if not (folder / _NOTE).exists():
            raise
