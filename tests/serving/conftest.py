"""A real vLLM that serves the project's own base, and two adapters on it that change what it says.

Collected only where this folder is asked for, as `make test-serving` does.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from dagger_nb import paths
from dagger_nb.serving import Engine, ServedModel, Server, find_engine, served_folder
from dagger_nb.settings import LoraSettings, ServingSettings
from dagger_nb.students import Version, renderer_of
from dagger_nb.training.model import add_adapter, load_student, save_adapter

VARIABLE = "DAGGER_NB_VLLM"
CONTEXT, RANK = 8192, 8
HERE = Path(__file__).parent


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Leave this folder out unless it, or something in it, is named on the command line."""
    named = [(config.invocation_params.dir / argument.partition("::")[0]).resolve() for argument in config.args]
    return None if any(path.is_relative_to(HERE) for path in named) else True


@pytest.fixture(scope="session", autouse=True)
def cores_for_the_engine() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def engine() -> Engine:
    """The vLLM of the interpreter that the environment names."""
    python = os.environ.get(VARIABLE)
    if not python:
        pytest.skip(
            f"{VARIABLE} names no interpreter that has vLLM; `make test-serving` makes one and runs these tests"
        )
    return find_engine(str(Path(python).absolute()))


@pytest.fixture(scope="session")
def home(tmp_path_factory) -> Iterator[Path]:
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("home")
        patch.setenv("DAGGER_NB_HOME", str(folder))
        yield folder


@pytest.fixture(scope="session")
def base() -> str:
    return str(paths.checkpoint("data/base"))


@pytest.fixture(scope="session")
def renderer(base):
    return renderer_of(base)


@pytest.fixture(scope="session")
def settings(engine) -> ServingSettings:
    return ServingSettings(python=engine.python, start_timeout_s=1800.0, concurrency=64)


@pytest.fixture(scope="session")
def served(base, engine, home) -> ServedModel:
    """What every server here serves: the unpacked NF4 base, with room for adapters."""
    folder = served_folder(base, weights="dequantised", engine=engine)
    return ServedModel(folder, CONTEXT, rank=RANK, base=base)


@pytest.fixture(scope="session")
def server(served, engine, settings, home) -> Iterator[Server]:
    with Server(served, engine, settings, log=home / "vllm.log") as running:
        yield running


@pytest.fixture(scope="session")
def versions(base, tmp_path_factory) -> list[Version]:
    """The base, and two random adapters on it whose B matrices are not zero."""
    return [Version(base)] + [_adapter(base, tmp_path_factory.mktemp("adapter"), seed) for seed in (1, 2)]


def _adapter(base: str, folder: Path, seed: int) -> Version:
    model = add_adapter(load_student(base), LoraSettings(rank=RANK, alpha=2 * RANK), seed=seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.02, generator=generator)
    return Version(base, str(folder), True, save_adapter(model, folder)[:12])
