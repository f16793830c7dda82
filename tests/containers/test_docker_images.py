"""Images from a registry on this machine: pulled a few at once, tried again, pruned to a budget, refused in words."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import docker
import pytest
from common import SETTINGS
from docker_engine import started
from docker_images import Image, load, noise, of_task
from docker_registry import Registry, registry_of, serving
from players import Crew, casting

from dagger_nb import config, paths
from dagger_nb.collector import Capacity, Collector
from dagger_nb.errors import SandboxError
from dagger_nb.evaluation.grading import grade_all
from dagger_nb.experiment import Experiment
from dagger_nb.policies.protocol import Answer, Sampling
from dagger_nb.records import Action, Task, Turn
from dagger_nb.sandboxes.containers import shelf
from dagger_nb.sandboxes.containers.book import Book
from dagger_nb.sandboxes.containers.factory import DockerFactory
from dagger_nb.sandboxes.containers.shelf import Shelf
from dagger_nb.students import renderer_of
from dagger_nb.tasks import generate, tasks

MB = 1_000_000
NAMES = [f"team/image-{number}" for number in range(6)]


@pytest.fixture
def registry(client, monkeypatch) -> Iterator[Registry]:
    """Six images of 3 MB each, of which 1 MB is common to all."""
    monkeypatch.setattr(shelf, "WAIT_S", 0.05)
    common = Image({}, (noise(1, seed=99),))
    images = {name: common.on_top(noise(2, seed=number)) for number, name in enumerate(NAMES)}
    with registry_of(client, images) as found:
        yield found


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
    monkeypatch.setattr(shelf, "EVERY_S", 0.1)
    bounded, told = Shelf(client, 1.0, keep._book), []
    assert bounded.prefetch(registry.names, told.append) == {}
    assert here(bounded, registry) == list(range(6))
    assert len(told) > 1 and told[0] < told[-1] == "images: 6 of 6: 6 pulled"
    # two images at a time, each of a configuration and at most two layers
    assert 2 <= registry.most_busy <= 6


def test_what_is_needed_at_once_is_measured_one_after_the_other(client, registry, tmp_path):
    """An older daemon refuses to measure disk for two at once, here or for another process."""
    shelves = [Shelf(client, 8 * MB / shelf.GB, Book(tmp_path / "images.sqlite")) for _ in range(2)]
    with ThreadPoolExecutor(6) as pool:
        list(pool.map(lambda number: shelves[number % 2].need(registry.names[number]), range(6)))
    with ThreadPoolExecutor(6) as pool:
        assert all(pool.map(lambda _: shelves[0].prune() and shelves[1].prune(), range(6)))


def test_a_daemon_that_cannot_measure_its_disk_costs_no_episode(keep, registry, monkeypatch, caplog):
    def late() -> None:
        raise SandboxError("measuring the disk that images take: timed out")

    monkeypatch.setattr(keep, "_measured", late)
    keep.need(registry.names[0])
    assert keep.identity(registry.names[0]) and "no image is removed now: measuring" in caplog.text
    assert keep.prefetch(registry.names[1:3], print) == {} and not keep.identity(registry.names[1])


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
    told: list[str] = []
    failed = keep.prefetch([registry.names[0], missing], told.append)
    assert list(failed) == [missing] and "check the image's name" in str(failed[missing])
    assert told[-1] == f"images: 2 of 2: 1 pulled, 1 cannot be had; the first that is lost: {failed[missing]}"
    task = Task("a", "a/a", "", "", "", "", (), (), "1", missing, "", "", "")
    with pytest.raises(SandboxError, match="is not on this machine and cannot be pulled"):
        factory.open(task)
    assert list(factory.prefetch([task], told.append)) == [missing]


def test_what_was_pulled_ahead_never_goes_for_another_that_is_still_to_be_used(client, registry, tmp_path):
    """The budget of two images is full with the third; an older one goes, and the rest is left until it is needed."""
    small, told = Shelf(client, 6 * MB / shelf.GB, Book(tmp_path / "images.sqlite")), []
    small.need(registry.names[5])
    registry.delay_s = 0.1
    assert small.prefetch(registry.names[:5], told.append) == {}
    found = here(small, registry)
    assert 5 not in found and found == list(range(len(found))) and 3 <= len(found) <= 2 + shelf.PARALLEL
    left = f", {5 - len(found)} left until they are needed" if len(found) < 5 else ""
    assert told[-1] == f"images: 5 of 5: {len(found)} pulled{left}"
    told.clear()
    assert small.prefetch(registry.names[:5], told.append) == {} and not told
    assert here(small, registry) == found


def test_a_registry_that_is_gone_is_not_asked_for_every_image(keep, registry):
    missing = [registry.names[0].replace("image-0", f"nowhere-{number}") for number in range(100)]
    told: list[str] = []
    lost = keep.prefetch([*missing, registry.names[0]], told.append)
    assert shelf.HOPELESS <= len(lost) < 100 and here(keep, registry) == []
    count = f"images: 101 of 101: {len(lost)} cannot be had, {101 - len(lost)} left until they are needed"
    assert told[-1] == f"{count}; the first that is lost: {next(iter(lost.values()))}"


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
    assert tiny.prune() and here(tiny, registry) == [2]


class Repairs:
    """A student that applies the gold patch and submits."""

    name = "repairs"

    async def answer(self, task: Task, turns: Sequence[Turn], sampling: Sampling, seed: int) -> Answer:
        line = {"command": f"git apply <<'END'\n{task.patch}\nEND"}
        return Answer(Action("", "finish") if turns else Action("", "execute_bash", line))


def test_a_missing_image_is_the_failure_of_its_task_alone(client, base, factory, own_home, monkeypatch):
    """Images are pulled before a round; the same ones are here for the exam and its grading."""
    found = tasks("test", 3)
    with registry_of(client, {f"team/{task.instance_id}": of_task(base, task) for task in found[:2]}) as registry:
        names = [*registry.names, registry.names[0].replace("/team/", "/nobody/")]
        bare = [replace(task, files={}, image=name) for task, name in zip(found, names, strict=True)]
        monkeypatch.setattr("dagger_nb.experiment.tasks_of", lambda *_, **__: bare)
        settings = replace(config.load("smoke", {"tasks.tasks_per_round": 3, "dagger.rounds": 1}), sandbox=SETTINGS)
        student, renderer, told = Repairs(), renderer_of(str(paths.data() / "base")), []
        collector = Collector(casting(student, by=student), factory, renderer, Capacity(3, 2, 2), told.append)
        experiment = Experiment("sft", settings, Crew(collector), told.append)
        (record,) = experiment.collect(1)
        stops = [trajectory.stop.value for trajectory in record.trajectories]
        assert stops == ["finish", "finish", "infrastructure"]
        assert "cannot be pulled" in record.trajectories[2].detail
        why = f"; the first that is lost: image {names[2]} is not on this machine and cannot be pulled"
        assert any(line.startswith(f"images: 3 of 3: 2 pulled, 1 cannot be had{why}") for line in told)
        graded = experiment.grade("test", round_=0)
        assert [grade.status.value for grade in graded] == ["resolved", "resolved", "infrastructure"]
        assert any(line.startswith(f"images: 3 of 3: 2 here already, 1 cannot be had{why}") for line in told)
        (lost,) = grade_all([(bare[2], bare[2].patch)], factory, log=told.append)
        assert lost.status.value == "infrastructure" and "cannot be pulled" in lost.detail
        assert told[-1].startswith(f"images: 1 of 1: 1 cannot be had{why}")


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
    settings = replace(factory.settings, image="dagger-nb/with-tree:latest")
    with DockerFactory(settings, tmp_path / "book") as other, pytest.raises(SandboxError, match="has a /testbed"):
        other.open(task)
