"""Images from a registry on this machine: pulled a few at once, tried again, pruned to a budget, refused in words."""

from __future__ import annotations

import dataclasses
import os
import threading
from collections.abc import Iterator

import docker
import pytest
from engine import started
from images import Image, load, noise, of_task
from registry import Registry, serving

from dagger_nb.errors import SandboxError
from dagger_nb.records import Task
from dagger_nb.sandboxes.containers import shelf
from dagger_nb.sandboxes.containers.book import Book
from dagger_nb.sandboxes.containers.factory import DockerFactory
from dagger_nb.sandboxes.containers.shelf import Shelf
from dagger_nb.tasks import generate

MB = 1_000_000
NAMES = [f"team/image-{number}" for number in range(6)]


@pytest.fixture
def registry(client, monkeypatch) -> Iterator[Registry]:
    """Six images of 3 MB each, of which 1 MB is common to all; none is in the daemon when a test begins or ends."""
    monkeypatch.setattr(shelf, "WAIT_S", 0.05)
    common = Image({}, (noise(1, seed=99),))
    found = Registry({name: common.on_top(noise(2, seed=number)) for number, name in enumerate(NAMES)})
    with serving(found) as address:
        found.names = [f"{address}/{name}:latest" for name in NAMES]
        yield found
        for name in found.names:
            if client.images.list(name):
                client.api.remove_image(name, force=True)


@pytest.fixture
def keep(client, tmp_path) -> Shelf:
    return Shelf(client, 1.0, Book(tmp_path / "images.sqlite"))


def here(keep: Shelf, registry: Registry) -> list[int]:
    return [number for number, name in enumerate(registry.names) if keep.identity(name)]


def test_a_missing_image_is_pulled_once_however_many_ask(keep, registry):
    threads = [threading.Thread(target=keep.need, args=(registry.names[0],)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    asked = registry.asked[NAMES[0]]
    keep.need(registry.names[0])
    assert here(keep, registry) == [0] and registry.asked[NAMES[0]] == asked <= 3


def test_pulls_are_parallel_and_bounded(client, keep, registry, monkeypatch):
    registry.delay_s = 0.3
    monkeypatch.setattr(shelf, "PARALLEL", 2)
    bounded = Shelf(client, 1.0, keep._book)
    assert bounded.prefetch(registry.names) == {}
    assert here(bounded, registry) == list(range(6))
    # two images at a time, each of a configuration and at most two layers
    assert 2 <= registry.most_busy <= 6


def test_a_registry_that_stumbles_is_asked_again(keep, registry):
    registry.failures[NAMES[1]] = 2
    keep.need(registry.names[1])
    assert here(keep, registry) == [1]


def test_a_registry_that_fails_is_an_infrastructure_failure(keep, registry):
    registry.failures[NAMES[1]] = 1000
    with pytest.raises(SandboxError, match="cannot be pulled"):
        keep.need(registry.names[1])


def test_what_cannot_be_had_is_said_with_what_to_do(keep, registry, factory):
    missing = registry.names[0].replace("image-0", "image-nowhere")
    failed = keep.prefetch([registry.names[0], missing])
    assert list(failed) == [missing] and "check the image's name" in failed[missing]
    task = Task("a", "a/a", "", "", "", "", (), (), "1", missing, "", "", "")
    with pytest.raises(SandboxError, match="is not on this machine and cannot be pulled"):
        factory.open(task)
    assert list(factory.prefetch([task])) == [missing]


def test_the_least_recently_used_go_first_and_what_was_not_pulled_here_stays(client, registry, tmp_path):
    client.api.pull(registry.names[5])  # somebody else's
    small = Shelf(client, 8 * MB / shelf.GB, Book(tmp_path / "images.sqlite"))  # three images: 1 + 3 * 2 MB
    for number in (0, 1, 2):
        small.need(registry.names[number])
    small.need(registry.names[0])
    small.need(registry.names[3])
    assert here(small, registry) == [0, 2, 3, 5]
    small.need(registry.names[4])
    assert here(small, registry) == [0, 3, 4, 5]


def test_an_image_in_use_stays_and_one_removed_by_hand_is_forgotten(client, registry, tmp_path):
    tiny = Shelf(client, 4 * MB / shelf.GB, Book(tmp_path / "images.sqlite"))
    tiny.need(registry.names[0])
    held = client.api.create_container(registry.names[0], ["x"])
    try:
        tiny.need(registry.names[1])
        assert here(tiny, registry) == [0, 1]
        client.api.remove_image(registry.names[1])
        tiny.need(registry.names[2])
        assert here(tiny, registry) == [0, 2]
    finally:
        client.api.remove_container(held["Id"])
    assert tiny.prune() == [registry.names[0]]


def test_a_full_disk_is_told_apart(client, tmp_path):
    """A second daemon, whose disk is smaller than the image."""
    if os.geteuid() != 0:
        pytest.skip("only root may start a second daemon on a small disk of its own: run this as root")
    registry = Registry({"team/large": Image({}, (noise(60, seed=7),))})
    with serving(registry) as address, started(disk_mb=40) as host:
        cramped = Shelf(docker.DockerClient(host), 1.0, Book(tmp_path / "images.sqlite"))
        with pytest.raises(SandboxError, match="the disk is full: free some"):
            cramped.need(f"{address}/team/large:latest")


def test_an_image_with_a_tree_of_its_own_does_not_take_files(factory, client, base, base_name, tmp_path):
    task = generate("dev", 0)
    load(client, {"dagger-nb/with-tree:latest": of_task(base, task)})
    settings = dataclasses.replace(factory.settings, image="dagger-nb/with-tree:latest")
    with DockerFactory(settings, tmp_path / "book") as other, pytest.raises(SandboxError, match="has a /testbed"):
        other.open(task)
