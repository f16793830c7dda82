"""The daemon's failures in the project's own words, each with its next step."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import docker
import requests
import urllib3
from docker.errors import APIError, DockerException

from dagger_nb.errors import EnvironmentProblem, SandboxError

FAILURES = (DockerException, requests.RequestException, urllib3.exceptions.HTTPError)
LOGIN = "the registry limits anonymous pulls: docker login, or wait"
START = "start it (systemctl start docker), or name another with DOCKER_HOST"

# (what the daemon's words hold, what to do)
_ADVICE = (
    ("no space left", "the disk is full: free some (docker system df), or lower sandbox.images_gb"),
    ("toomanyrequests", LOGIN),
    ("too many requests", LOGIN),
    ("pull rate limit", LOGIN),
    ("pull access denied", "check the image's name; docker login if it is private, or build it"),
    ("manifest unknown", "check the image's name and tag, or build it"),
    ("not found", "check the image's name and tag, or build it"),
    ("permission denied", "add this user to the group docker, or run a rootless daemon"),
    ("connection refused", START),
    ("no such file or directory", START),
    ("connection aborted", START),
    ("timed out", "the daemon or the registry is overloaded or away: look at its log, then try again"),
)


def connect(*, pool: int = 64, timeout_s: float = 300.0) -> docker.DockerClient:
    """A client of the daemon that DOCKER_HOST or the default socket names, safe to share between threads.

    Args:
        pool: connections kept; a running command needs one.
        timeout_s: of one request; the output of a command may take longer.

    Raises:
        EnvironmentProblem: no daemon answers.
    """
    try:
        client = docker.from_env(timeout=timeout_s, max_pool_size=pool)
        client.ping()
    except FAILURES as error:
        words = reason(error)
        raise EnvironmentProblem(f"no Docker daemon answers ({words}); {advice(words) or START}") from error
    return client


@contextmanager
def explained(what: str) -> Iterator[None]:
    """Raise a daemon's failure within as SandboxError: what was tried, the daemon's words, the next step."""
    try:
        yield
    except FAILURES as error:
        words = reason(error)
        raise SandboxError(f"{what}: {words}; {advice(words) or 'look at the log of the Docker daemon'}") from error


def reason(error: Exception) -> str:
    """The daemon's own words where it said any."""
    words = error.explanation if isinstance(error, APIError) and error.explanation else str(error)
    return " ".join(str(words).split()).rstrip(".;")


def advice(words: str) -> str:
    """What to do about a failure in these words; empty where they tell nothing.

    >>> advice("write /x: no space left on device")
    'the disk is full: free some (docker system df), or lower sandbox.images_gb'
    """
    return next((step for sign, step in _ADVICE if sign in words.lower()), "")
