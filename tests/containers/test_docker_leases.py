"""Who holds a container: a killed run's go, a living run's stay, and nothing is left when a factory closes."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest
from common import SETTINGS, TASK

from dagger_nb.errors import EnvironmentProblem, SandboxError
from dagger_nb.sandboxes.containers import DockerFactory, lease
from dagger_nb.sandboxes.containers.lease import Owner

HOLDER = """
import sys, time
sys.path[:0] = {path!r}
from pathlib import Path
from common import SETTINGS, TASK
from dagger_nb.sandboxes.containers import DockerFactory
factory = DockerFactory(SETTINGS, book=Path({book!r}))
opened = factory.open(TASK)
opened.run("sleep 1000 > /dev/null 2>&1 & disown; true", 60)
print(opened._open.id, flush=True)
time.sleep(1000)
"""


@pytest.fixture
def holders(client, tmp_path):
    """Starts processes that hold a sandbox; each is (process, container id)."""
    running = []

    def start() -> tuple[subprocess.Popen, str]:
        here = Path(__file__).parent
        script = HOLDER.format(path=[str(here), str(here.parents[1])], book=str(tmp_path / "book"))
        process = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
        running.append(process)
        return process, process.stdout.readline().strip()

    yield start
    for process in running:
        process.kill()
        process.wait()
    lease.sweep(client)


def alive(client) -> set[str]:
    return {row["Id"] for row in client.api.containers(all=True, filters={"label": lease.LABEL})}


def test_a_sweep_takes_what_a_killed_run_left_and_nothing_else(client, factory, holders):
    before = alive(client)
    (killed, its), (_, other) = holders(), holders()
    mine = factory.open(TASK)
    assert {its, other} <= alive(client)
    assert lease.sweep(client) == []
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    assert len(lease.sweep(client)) == 1
    assert alive(client) == before | {other, mine._open.id}
    mine.close()


def test_a_new_factory_sweeps(client, holders, tmp_path):
    killed, its = holders()
    killed.kill()
    killed.wait()
    DockerFactory(SETTINGS, book=tmp_path / "book").close()
    assert its not in alive(client)


def test_closing_a_factory_removes_its_own_containers_only(client, factory, tmp_path):
    mine = factory.open(TASK)
    other = DockerFactory(factory.settings, book=tmp_path / "book")
    left = other.open(TASK)._open.id
    other.close()
    assert left not in alive(client) and mine._open.id in alive(client)
    mine.close()


def test_an_owner_elsewhere_is_left_alone_until_its_container_has_ended(client, base_name):
    label = {lease.LABEL: Owner("another-machine", 1, "1").label()}
    made = client.api.create_container(base_name, ["sleep", "1000"], labels=label)["Id"]
    assert lease.sweep(client) == [] and made in alive(client)
    client.api.start(made)
    client.api.kill(made)
    client.api.wait(made)
    assert len(lease.sweep(client)) == 1 and made not in alive(client)


def test_a_container_removed_behind_our_back_is_an_infrastructure_failure(client, factory):
    opened = factory.open(TASK)
    client.api.remove_container(opened._open.id, force=True)
    for use in (lambda: opened.run("true"), lambda: opened.read("README.md"), opened.diff):
        with pytest.raises(SandboxError):
            use()
    opened.close()


def test_no_daemon_is_said_in_words(monkeypatch, tmp_path):
    monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path}/none.sock")
    with pytest.raises(EnvironmentProblem, match="no Docker daemon answers .*start it"):
        DockerFactory(SETTINGS, book=tmp_path / "book")
