"""Images on this machine: present, pulled in bounded parallel, the least recently used removed.

Only what this project pulled is ever removed (`book`); images that were here before, or were built, stay.
"""

from __future__ import annotations

import threading
import time
from collections import defaultdict
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor

import docker
from docker.errors import APIError, ImageNotFound

from dagger_nb.errors import SandboxError
from dagger_nb.sandboxes.containers.book import Book
from dagger_nb.sandboxes.containers.errors import FAILURES, advice, explained, reason

PARALLEL = 4  # pulls at once in one process; more mostly wait for the same registry and disk
TRIES = 3
WAIT_S = 2.0  # before the second try, then four times as long
GB = 1_000_000_000
_FINAL = ("not found", "manifest unknown", "denied", "no space left", "invalid reference", "toomanyrequests")


class Shelf:
    """The images of one daemon. Thread-safe. `budget_gb` is the disk that pulled images may take."""

    def __init__(self, client: docker.DockerClient, budget_gb: float, book: Book) -> None:
        self._client, self._budget, self._book = client, budget_gb * GB, book
        self._slots = threading.BoundedSemaphore(PARALLEL)
        self._locks: defaultdict[str, threading.Lock] = defaultdict(threading.Lock)

    def need(self, image: str) -> None:
        """Make sure that the image is here, pulling it when it is not, and note that it is used now.

        Raises:
            SandboxError: it is neither here nor to be pulled; the message says why and what to do.
        """
        with self._locks[image]:  # nobody pulls what another thread is pulling
            if self.identity(image):
                self._book.used(image)
                return
            with self._slots:
                self._pull(image)
            self._book.pulled(image)
        self.prune(keep=image)

    def prefetch(self, images: Iterable[str]) -> dict[str, str]:
        """Pull what is missing, PARALLEL at once; image -> why, for those that could not be had."""
        names = sorted(set(images))
        with ThreadPoolExecutor(PARALLEL) as pool:
            return {name: why for name, why in zip(names, pool.map(self._attempt, names), strict=True) if why}

    def prune(self, keep: str = "") -> list[str]:
        """Remove the least recently used of the pulled images until they fit the budget; the removed, oldest first.

        `keep` stays, and so does an image that a container uses. What images share is counted once.
        """
        sizes, removed = self._sizes(), []
        for image in list(sizes):
            if _disk(sizes.values()) <= self._budget:
                break
            if image != keep and self._remove(image):
                del sizes[image]
                removed.append(image)
        return removed

    def identity(self, image: str) -> str:
        """The id of an image that is here; empty where it is not. Raises SandboxError: the daemon fails."""
        with explained(f"looking for image {image}"):
            try:
                return self._client.api.inspect_image(image)["Id"]
            except ImageNotFound:
                return ""

    def _attempt(self, image: str) -> str:
        try:
            self.need(image)
        except SandboxError as error:
            return str(error)
        return ""

    def _pull(self, image: str) -> None:
        for attempt in range(1, TRIES + 1):
            why = self._pulled(image)
            if not why:
                return
            if attempt == TRIES or any(sign in why.lower() for sign in _FINAL):
                step = advice(why) or f"try `docker pull {image}` by hand"
                raise SandboxError(f"image {image} is not on this machine and cannot be pulled ({why}); {step}")
            time.sleep(WAIT_S * 4 ** (attempt - 1))

    def _pulled(self, image: str) -> str:
        """Pull once; empty, or the reason why not (the daemon reports most failures inside its answer)."""
        try:
            for line in self._client.api.pull(image, stream=True, decode=True):
                if "error" in line:
                    return line["error"]
        except FAILURES as error:
            return reason(error)
        return "" if self.identity(image) else "the pull ended without the image"

    def _sizes(self) -> dict[str, tuple[int, int]]:
        """Pulled image -> its own bytes and those that it shares with others, the least recently used first."""
        images = {image: self.identity(image) for image in self._book.oldest_first()}
        for image in [image for image, found in images.items() if not found]:  # removed by hand
            self._book.forget(image)
            del images[image]
        with explained("measuring the disk that images take"):
            rows = {row["Id"]: row for row in self._client.api.df()["Images"] or ()} if images else {}
        return {image: _shares(rows[found]) for image, found in images.items() if found in rows}

    def _remove(self, image: str) -> bool:
        with explained(f"removing image {image}"):
            try:
                self._client.api.remove_image(image)
            except ImageNotFound:
                pass
            except APIError as error:
                if error.status_code != 409:  # 409: a container uses it
                    raise
                return False
        self._book.forget(image)
        return True


def _shares(row: dict[str, int]) -> tuple[int, int]:
    shared = max(row["SharedSize"], 0)  # -1: not computed
    return row["Size"] - shared, shared


def _disk(sizes: Iterable[tuple[int, int]]) -> int:
    """Bytes of images: what each has alone, and the largest common part once."""
    pairs = list(sizes)
    return sum(own for own, _ in pairs) + max((shared for _, shared in pairs), default=0)
