"""Which student: a base and, after training, an adapter; and how it is made ready to act."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dagger_nb import paths
from dagger_nb.errors import DataError
from dagger_nb.policies.local import ATTENTION, Cohort
from dagger_nb.rendering import Renderer
from dagger_nb.revisions import commit_of, no_checkpoint


@dataclass(frozen=True, slots=True)
class Version:
    """One student: the base's folder or hub id, the adapter's folder (None: untrained), and whether the base is NF4.

    `name` goes into every record: "base", or the first 12 hex digits of the adapter's digest.
    """

    base: str
    adapter: str | None = None
    quantise: bool = True
    name: str = "base"
    template: str = ""  # see `renderer_of`
    revision: str = ""  # of a hub id, see `commit_of`


@dataclass(frozen=True, slots=True)
class LocalStudent:
    """A student in this process: a plain full-precision model that equals NF4 base plus adapter."""

    version: Version
    model: object
    renderer: Renderer

    def session(self, slots: int, limit: int) -> Cohort:
        """A fresh KV cache for `slots` episodes of at most `limit` tokens each."""
        return Cohort(self.model, slots, end_id=self.renderer.end_id, limit=limit)


def quiet() -> None:
    """Keep the libraries' remarks about optional kernels and dequantised modules out of progress and notebooks."""
    from transformers.utils import logging as transformers_logging

    transformers_logging.set_verbosity_error()
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)


def renderer_of(base: str, template: str = "", revision: str = "") -> Renderer:
    """The renderer of a base's tokenizer and chat template, or of the template in a file of the project.

    `revision` is of a hub id: its commit is that of the weights.

    Raises:
        DataError: the folder has no tokenizer, there is no such file, or the template rewrites earlier messages.
        EnvironmentProblem: neither a folder nor a hub id whose tokenizer is on this machine or can be fetched.
    """
    from transformers import AutoTokenizer

    if Path(base).exists() and not (Path(base) / "tokenizer.json").exists():
        raise DataError(
            f"{base} holds no tokenizer (tokenizer.json); rebuild it with `python -m dagger_nb.base.pretrain`"
        )
    commit = commit_of(base, revision) or None
    try:
        tokenizer = AutoTokenizer.from_pretrained(base, revision=commit)
    except OSError as error:
        raise no_checkpoint(base, error) from error
    use_template(tokenizer, template)
    return Renderer(tokenizer)


def use_template(tokenizer: Any, template: str) -> None:
    """Give a tokenizer the chat template in a file of the project; "" leaves it its own.

    Raises:
        DataError: there is no such file.
    """
    if not template:
        return
    file = paths.project() / template
    if not file.is_file():
        raise DataError(f"student.template = {template!r}: no such file in {paths.project()}")
    tokenizer.chat_template = file.read_text(encoding="utf-8")


def load_for_acting(version: Version) -> LocalStudent:
    """Load a version for inference on this machine, its adapter merged into the unpacked base."""
    import torch

    from dagger_nb.training.model import load_adapter, load_student, merged_full_precision

    commit = commit_of(version.base, version.revision)
    model = load_student(version.base, quantise=version.quantise, revision=commit)
    if version.adapter:
        model = merged_full_precision(load_adapter(model, Path(version.adapter)))
    elif version.quantise:
        model = model.dequantize(torch.float32)
    model.eval().set_attn_implementation(ATTENTION)
    return LocalStudent(version, model, renderer_of(version.base, version.template, version.revision))
