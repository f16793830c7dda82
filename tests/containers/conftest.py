"""What needs a Docker engine: collected only where this folder is asked for, as `make test-docker` does."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import docker
import pytest
from common import SETTINGS
from docker_engine import connected
from docker_images import Image, saved

from dagger_nb.sandboxes import Limits, LocalFactory, local_factory
from dagger_nb.sandboxes.containers import DockerFactory, host_image

HERE = Path(__file__).parent


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Leave this folder out unless it, or something in it, is named on the command line."""
    named = [(config.invocation_params.dir / argument.partition("::")[0]).resolve() for argument in config.args]
    return None if any(path.is_relative_to(HERE) for path in named) else True


@pytest.fixture(scope="session")
def client() -> Iterator[docker.DockerClient]:
    with connected() as found:
        yield found


@pytest.fixture(scope="session")
def base_name(client: docker.DockerClient) -> str:
    """The image made of this machine's own programs."""
    return host_image.build(client)


@pytest.fixture(scope="session")
def base(client: docker.DockerClient, base_name: str) -> Image:
    return saved(client, base_name)


@pytest.fixture(scope="session")
def factory(client: docker.DockerClient, tmp_path_factory: pytest.TempPathFactory) -> Iterator[DockerFactory]:
    with DockerFactory(SETTINGS, book=tmp_path_factory.mktemp("book") / "images.sqlite") as opened:
        yield opened


@pytest.fixture(scope="session")
def local() -> Iterator[LocalFactory]:
    """The isolated local sandbox, patient with a busy machine."""
    with local_factory(limits=Limits(wall_s=120.0)) as opened:
        yield opened
