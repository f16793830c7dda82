"""A Docker engine for tests: one that answers already, or one started here and stopped afterwards.

Where no engine answers and this is root on Debian or Ubuntu, docker.io is installed and `dockerd` started with
its own socket and data folder, without bridge or firewall rules; it ends with this process, also when that is
killed. Elsewhere `NoEngine` says in plain words why there is none.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest import mock

import docker
import pytest

from dagger_nb.errors import EnvironmentProblem
from dagger_nb.sandboxes.containers.errors import connect

PACKAGES = ("docker.io", "iptables")
START_S = 120.0
STOP_S = 60.0
PREFIX = "dagger-nb-docker-"


class NoEngine(Exception):
    """There is no engine and none may be started; the message says why."""


@contextmanager
def connected() -> Iterator[docker.DockerClient]:
    """A client of an engine that answers, started where that is allowed; DOCKER_HOST names it meanwhile.

    Where there is none, the test is skipped with the reason.
    """
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


@contextmanager
def engine() -> Iterator[str]:
    """The DOCKER_HOST of an engine that answers, for as long as the block runs. Raises NoEngine."""
    given = os.environ.get("DOCKER_HOST", "")
    if answers(given):
        yield given
        return
    if given:
        raise NoEngine(f"DOCKER_HOST = {given} does not answer; start that daemon, or unset the variable")
    if os.geteuid() != 0:
        raise NoEngine("no Docker daemon answers, and only root may start one: start Docker, or run this as root")
    install()
    if answers(""):  # the package started it
        yield ""
        return
    with started() as host:
        yield host


def answers(host: str) -> bool:
    """Whether a daemon answers at `host` (empty: the default socket)."""
    with mock.patch.dict(os.environ, {"DOCKER_HOST": host} if host else {}):
        try:
            connect().close()
        except EnvironmentProblem:
            return False
    return True


def install() -> None:
    if shutil.which("dockerd"):
        return
    if not shutil.which("apt-get"):
        raise NoEngine("dockerd is not installed, and there is no apt-get to install it with: install Docker")
    line = ["apt-get", "install", "-y", "--no-install-recommends", *PACKAGES]
    for commands in ([line], [["apt-get", "update"], line]):
        if all(subprocess.run(command, capture_output=True).returncode == 0 for command in commands):
            return
    raise NoEngine(f"`{' '.join(line)}` failed: install Docker by hand")


@contextmanager
def started(disk_mb: int = 0) -> Iterator[str]:
    """A daemon of our own in a temporary folder; stopped by its process id, and its folder removed.

    With `disk_mb` its images and containers lie on a memory file system of that size (MiB).
    """
    _clear()
    folder = Path(tempfile.mkdtemp(prefix=f"{PREFIX}{os.getpid()}-"))
    if disk_mb:
        (folder / "data").mkdir()
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={disk_mb}m", "none", folder / "data"], check=True)
    host = f"unix://{folder}/docker.sock"
    line = ["dockerd", f"--host={host}", f"--data-root={folder}/data", f"--exec-root={folder}/exec"]
    line += [f"--pidfile={folder}/dockerd.pid", "--bridge=none", "--iptables=false", "--ip6tables=false"]
    line += ["--ip-forward=false", "--ip-masq=false", "--log-level=warn"]
    with open(folder / "log", "wb") as log:
        tied = ["setpriv", "--pdeathsig", "TERM", *line]  # it ends with us, also when we are killed
        daemon = subprocess.Popen(tied, stdout=log, stderr=log, start_new_session=True)
    try:
        _wait(daemon, host, folder / "log")
        yield host
    finally:
        _stop(daemon)
        if disk_mb:
            subprocess.run(["umount", folder / "data"], check=True)
        shutil.rmtree(folder, ignore_errors=True)


def _clear() -> None:
    """Remove the folders of processes that were killed; their daemons ended with them."""
    for folder in sorted(Path(tempfile.gettempdir()).glob(f"{PREFIX}*")):
        if not Path("/proc", folder.name.split("-")[3]).exists():
            subprocess.run(["umount", folder / "data"], capture_output=True)
            shutil.rmtree(folder, ignore_errors=True)


def _wait(daemon: subprocess.Popen, host: str, log: Path) -> None:
    deadline = time.monotonic() + START_S
    while not answers(host):
        if daemon.poll() is not None or time.monotonic() > deadline:
            end = log.read_text(errors="replace")[-800:]
            raise NoEngine(f"dockerd did not come up; the end of its log: {end}")
        time.sleep(0.1)


def _stop(daemon: subprocess.Popen) -> None:
    """End the daemon, which ends its containerd and its containers."""
    if daemon.poll() is None:
        daemon.send_signal(signal.SIGTERM)
        try:
            daemon.wait(STOP_S)
        except subprocess.TimeoutExpired:
            daemon.kill()
            daemon.wait()
