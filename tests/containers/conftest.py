"""What needs a Docker engine: collected only where this folder is asked for, as `make test-docker` does."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import docker
import pytest
from common import SETTINGS
from engine import NoEngine, engine
from images import Image, saved

from dagger_nb.sandboxes import Limits, LocalFactory, local_factory
from dagger_nb.sandboxes.containers import DockerFactory, host_image
from dagger_nb.sandboxes.containers.errors import connect

HERE = Path(__file__).parent


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Leave this folder out unless it, or something in it, is named on the command line."""
    named = [(config.invocation_params.dir / argument.partition("::")[0]).resolve() for argument in config.args]
    return None if any(path.is_relative_to(HERE) for path in named) else True


@pytest.fixture(scope="session")
def client() -> Iterator[docker.DockerClient]:
    """A client of an engine that answers, started where that is allowed; DOCKER_HOST names it meanwhile."""
    before = os.environ.get("DOCKER_HOST")
    try:
        with engine() as host:
            if host:
                os.environ["DOCKER_HOST"] = host
            found = connect()
            yield found
            found.close()
    except NoEngine as why:
        pytest.skip(f"no Docker engine: {why}")
    finally:
        os.environ.pop("DOCKER_HOST", None)
        if before is not None:
            os.environ["DOCKER_HOST"] = before


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
