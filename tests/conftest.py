"""What several rooms' tests share: a few tasks, a local sandbox factory, and a random tiny Qwen3."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from dagger_nb.records import Task
from dagger_nb.sandboxes import Limits, LocalFactory, local_factory
from dagger_nb.tasks import tasks


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """Models this small only lose time to a second thread."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def train_tasks() -> list[Task]:
    """Four training tasks."""
    return tasks("train", 4)


@pytest.fixture(scope="session")
def sandboxes() -> Iterator[LocalFactory]:
    """The isolated local sandbox, patient with a busy machine; it remembers observations for the whole run."""
    with local_factory(limits=Limits(wall_s=120.0)) as factory:
        yield factory


@pytest.fixture(scope="session")
def tiny_base(tmp_path_factory) -> Path:
    """A folder with a random Qwen3 of one layer, a tokenizer trained as the project's is, and its chat template."""
    from dagger_nb.base import corpus
    from dagger_nb.base.pretrain import Recipe, new_model
    from dagger_nb.base.tokenizer import train_tokenizer

    folder = tmp_path_factory.mktemp("base")
    tokenizer = train_tokenizer(corpus.texts(list(corpus.documents(0, 6))), vocab_size=700)
    tokenizer.save_pretrained(folder)
    recipe = Recipe(seed=1, hidden=64, layers=1, heads=2, groups=1, intermediate=64)
    new_model(recipe, tokenizer).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def renderer(tiny_base):
    """The renderer of the tiny base's own tokenizer."""
    from dagger_nb.students import renderer_of

    return renderer_of(str(tiny_base))


@pytest.fixture
def own_home(tmp_path, monkeypatch) -> Path:
    """A fresh DAGGER_NB_HOME, for this process and its workers."""
    monkeypatch.setenv("DAGGER_NB_HOME", str(tmp_path / "home"))
    return tmp_path / "home"
