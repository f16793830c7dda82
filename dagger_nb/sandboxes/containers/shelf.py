"""Images on this machine: present, pulled in bounded parallel, the least recently used removed.

An image is pulled when it is needed. What a round or an evaluation will need is pulled ahead (`prefetch`), in the order
of use and only as far as the budget goes: beyond it, an image would take the place of one that is still to be used.
Only what this project pulled is ever removed (`book`); images that were here before, or were built, stay.
"""

from __future__ import annotations

import logging
import re
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import docker
from docker.errors import APIError, ImageNotFound

from dagger_nb.errors import ImageMissing, PullLimit, SandboxError
from dagger_nb.sandboxes.containers.book import Book
from dagger_nb.sandboxes.containers.errors import FAILURES, advice, explained, reason

LOG = logging.getLogger(__name__)
PARALLEL = 4  # pulls at once in one process; more mostly wait for the same registry and disk
TRIES = 3
WAIT_S = 2.0  # before the second try, then four times as long
MEASURE_S = 300.0  # to wait while the daemon measures for another process
EVERY_S = 10.0  # between two lines of progress
HOPELESS = 2 * PARALLEL  # images that cannot be had, in a row: no more are asked for ahead
GB = 1_000_000_000
FATES = {
    "here": "here already",
    "pulled": "pulled",
    "lost": "cannot be had",
    "left": "left until they are needed",
}
_LIMITED = re.compile("toomanyrequests|too many requests|pull rate limit", re.IGNORECASE)  # as engines have said it
_MISSING = re.compile("manifest unknown|manifest for .* not found|repository does not exist|pull access denied")
_BUSY = "disk usage operation is already running"
_FINAL = ("not found", "manifest unknown", "denied", "no space left", "invalid reference")

Log = Callable[[str], None]
Fate = tuple[str, SandboxError | None]


class Shelf:
    """The images of one daemon. Thread-safe. `budget_gb` is the disk that pulled images may take."""

    def __init__(self, client: docker.DockerClient, budget_gb: float, book: Book) -> None:
        self._client, self._budget, self._book = client, budget_gb * GB, book
        self._slots = threading.BoundedSemaphore(PARALLEL)
        self._pruning = threading.Lock()
        self._locks: defaultdict[str, threading.Lock] = defaultdict(threading.Lock)
        self._layers: dict[str, tuple[str, ...]] = {}  # of images by id

    def need(self, image: str) -> None:
        """Make sure that the image is here, pulling it when it is not, and note that it is used now.

        Raises:
            SandboxError: it is neither here nor to be pulled; the message says why and what to do. PullLimit: not yet.
        """
        if self._fetched(image):
            self._tidied({image})

    def prefetch(self, images: Iterable[str], log: Log) -> dict[str, SandboxError]:
        """Pull what is missing, in this order and PARALLEL at once; image -> why, for those that could not be had.

        It ends early when the budget is full (none of `images` goes for another, so the last ones may overrun it), and
        when so many in a row are lost that it is the registry's doing. `log` is told a line at most every EVERY_S
        seconds, and one at the end where anything was pulled or lost.
        """
        names, stop = list(dict.fromkeys(images)), threading.Event()
        tally = _Tally(len(names), log)
        if names and not self._tidied(names):
            stop.set()
        with ThreadPoolExecutor(PARALLEL) as pool:
            found = pool.map(lambda name: self._ahead(name, names, stop), names)
            for name, (fate, why) in zip(names, found, strict=True):
                tally.count(name, fate, why)
                if tally.lost_in_a_row == HOPELESS:
                    stop.set()
        tally.end()
        return tally.lost

    def prune(self, keep: Collection[str] = ()) -> bool:
        """Remove the least recently used of the pulled images until they fit the budget; whether they do now.

        Those of `keep` stay, and so does an image that a container uses. What images share is counted once.
        """
        with self._pruning:
            sizes = self._sizes()
            for image in list(sizes):
                if _disk(sizes.values()) <= self._budget:
                    break
                if image not in keep and self._remove(image):
                    del sizes[image]
            return _disk(sizes.values()) <= self._budget

    def held_gb(self) -> float:
        """GB that pulled images take now. Raises SandboxError: the daemon fails."""
        return _disk(self._sizes().values()) / GB

    def identity(self, image: str) -> str:
        """The id of an image that is here; empty where it is not. Raises SandboxError: the daemon fails."""
        with explained(f"looking for image {image}"):
            try:
                return self._client.api.inspect_image(image)["Id"]
            except ImageNotFound:
                return ""

    def _ahead(self, image: str, all_of_them: Collection[str], stop: threading.Event) -> Fate:
        """What became of an image that will be needed, one of FATES, and why it is lost; sets `stop` at the budget."""
        try:
            if stop.is_set():
                return ("here" if self.identity(image) else "left"), None
            if not self._fetched(image):
                return "here", None
            if not self._tidied(all_of_them):
                stop.set()
            return "pulled", None
        except SandboxError as error:
            return "lost", error

    def _tidied(self, keep: Collection[str]) -> bool:
        """`prune`, which no episode fails for; False, too, where the daemon could not measure or remove."""
        try:
            return self.prune(keep)
        except SandboxError as error:
            LOG.warning("no image is removed now: %s", error)
            return False

    def _fetched(self, image: str) -> bool:
        """See to it that the image is here and its use noted; whether it had to be pulled. Raises SandboxError."""
        with self._locks[image]:  # nobody pulls what another thread is pulling
            if self.identity(image):
                self._book.used(image)
                return False
            with self._slots:
                self._pull(image)
            self._book.pulled(image)
            return True

    def _pull(self, image: str) -> None:
        for attempt in range(1, TRIES + 1):
            why = self._pulled(image)
            if not why:
                return
            if _LIMITED.search(why):
                raise PullLimit(f"image {image} is not here and may not be pulled yet ({why}); {advice(why)}")
            if attempt == TRIES or any(sign in why.lower() for sign in _FINAL):
                step = advice(why) or f"try `docker pull {image}` by hand"
                kind = ImageMissing if _MISSING.search(why.lower()) else SandboxError
                raise kind(f"image {image} is not on this machine and cannot be pulled ({why}); {step}")
            time.sleep(WAIT_S * 4 ** (attempt - 1))

    def _pulled(self, image: str) -> str:
        """Pull once; empty, or the reason why not (the daemon reports most failures inside its answer)."""
        try:
            for line in self._client.api.pull(image, stream=True, decode=True):
                if failed := line.get("errorDetail", {}).get("message") or line.get("error"):
                    return failed
        except FAILURES as error:
            return reason(error)
        return "" if self.identity(image) else "the pull ended without the image"

    def _sizes(self) -> dict[str, _Size]:
        """Pulled image -> its size, the least recently used first."""
        images = {image: self.identity(image) for image in self._book.oldest_first()}
        for image in [image for image, found in images.items() if not found]:  # removed by hand
            self._book.forget(image)
            del images[image]
        with explained("measuring the disk that images take"):
            rows = {row["Id"]: row for row in self._measured()} if images else {}
            stems = _stems({found: self._chain(found) for found in rows})
        return {image: _size(rows[found], stems[found]) for image, found in images.items() if found in rows}

    def _chain(self, found: str) -> tuple[str, ...]:
        """The layers of an image by its id, the lowest first; none of one that is gone by now."""
        if found not in self._layers:
            try:
                self._layers[found] = tuple(self._client.api.inspect_image(found)["RootFS"].get("Layers") or ())
            except ImageNotFound:
                return ()
        return self._layers[found]

    def _measured(self) -> list[dict[str, Any]]:
        """The daemon's images with their sizes. It measures for one at a time, and older ones refuse all others.

        The SDK's own call has volumes and containers measured too, which may take minutes; an engine before API 1.42
        does so in any case. From 1.53 on the rows may lie elsewhere.
        """
        api, deadline = self._client.api, time.monotonic() + MEASURE_S
        while True:
            try:
                found = api._result(api._get(api._url("/system/df"), params={"type": "image", "verbose": 1}), json=True)
                return found.get("Images") or (found.get("ImageUsage") or {}).get("Items") or []
            except APIError as error:
                if _BUSY not in reason(error) or time.monotonic() > deadline:
                    raise
            time.sleep(0.2)

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


@dataclass(slots=True)
class _Tally:
    """What became of the first images out of `total`, told to `log`; `lost` says why."""

    total: int
    log: Log
    told: float = field(default_factory=time.monotonic)
    fates: Counter[str] = field(default_factory=Counter)
    lost: dict[str, SandboxError] = field(default_factory=dict)
    lost_in_a_row: int = 0

    def count(self, image: str, fate: str, why: SandboxError | None) -> None:
        self.fates[fate] += 1
        self.lost |= {image: why} if why else {}
        self.lost_in_a_row = self.lost_in_a_row + 1 if why else 0
        if time.monotonic() - self.told >= EVERY_S:
            self.told = time.monotonic()
            self.log(self.line())

    def end(self) -> None:
        """The last line, with the first reason of a loss; none where every image was here."""
        if self.fates["pulled"] or self.lost:
            why = next(iter(self.lost.values()), None)
            self.log(self.line() + (f"; the first that is lost: {str(why)[:300]}" if why else ""))

    def line(self) -> str:
        """
        >>> _Tally(20, print, fates=Counter(here=3, pulled=5)).line()
        'images: 8 of 20: 3 here already, 5 pulled'
        """
        told = ", ".join(f"{self.fates[fate]:,} {words}" for fate, words in FATES.items() if self.fates[fate])
        return f"images: {self.fates.total():,} of {self.total:,}: {told}"


@dataclass(frozen=True, slots=True)
class _Size:
    """Bytes of one image: its own, and those of the layers that other images have too, which `stem` names."""

    own: int
    shared: int
    stem: tuple[str, ...]


def _size(row: Mapping[str, int], stem: tuple[str, ...]) -> _Size:
    shared = max(row["SharedSize"], 0)  # -1: not computed
    return _Size(row["Size"] - shared, shared, stem)


def _stems(chains: Mapping[str, tuple[str, ...]]) -> dict[str, tuple[str, ...]]:
    """Of each image the longest run of its lowest layers that another image begins with too.

    >>> _stems({"a": ("base", "env", "a"), "b": ("base", "env", "b"), "c": ("base", "c")})
    {'a': ('base', 'env'), 'b': ('base', 'env'), 'c': ('base',)}
    """
    runs = {name: [chain[:length] for length in range(len(chain) + 1)] for name, chain in chains.items()}
    begun = Counter(run for each in runs.values() for run in each)
    return {name: max((run for run in each if begun[run] > 1), default=(), key=len) for name, each in runs.items()}


def _disk(sizes: Iterable[_Size]) -> int:
    """Bytes of images: what each has alone, and what some share, once for each stem.

    Layers below several stems at which no image of these branches off count for each of them: it is a little too much.
    """
    found = list(sizes)
    stems = {size.stem: size.shared for size in found}
    return sum(size.own for size in found) + sum(shared - _below(stem, stems) for stem, shared in stems.items())


def _below(stem: tuple[str, ...], stems: Mapping[tuple[str, ...], int]) -> int:
    """Bytes of a stem that are counted with another, shorter one."""
    return max((stems.get(stem[:length], 0) for length in range(len(stem))), default=0)
