"""An asyncio program in a loop and a thread of its own, for callers whose own loop may be taken, as a notebook's is."""

from __future__ import annotations

import asyncio
import contextlib
import queue
import threading
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar

T = TypeVar("T")


def result_of(program: Coroutine[Any, Any, T]) -> T:
    """What a coroutine returns, or raises, at its end."""
    with ThreadPoolExecutor(1, "background") as thread:
        return thread.submit(asyncio.run, program).result()


def reports_of(
    program: Callable[[Callable[[T], None]], Awaitable[None]], *, meanwhile: Callable[[], None], every_s: float
) -> Iterator[T]:
    """Yield what `program(report)` reports while it runs.

    `meanwhile` is called in the caller's thread before each report is waited for and at least every `every_s` seconds.
    Leaving the iterator, by whatever way, cancels the program and waits for its end. What the program raises is
    raised here, after everything that it reported before; of a group of errors the first.
    """
    told: queue.SimpleQueue[T | _End] = queue.SimpleQueue()

    async def main() -> None:
        try:
            await program(told.put)
            told.put(_End())
        except BaseException as error:  # whoever waits must hear of it, whatever it is
            told.put(_End(_first(error)))

    with _in_background(main()):
        while True:
            meanwhile()
            try:
                report = told.get(timeout=every_s)
            except queue.Empty:
                continue
            if not isinstance(report, _End):
                yield report
            elif report.error is None:
                return
            else:
                raise report.error


@dataclass(frozen=True, slots=True)
class _End:
    """The last report: the program has ended, by itself or by an error."""

    error: BaseException | None = None


def _first(error: BaseException) -> BaseException:
    return _first(error.exceptions[0]) if isinstance(error, BaseExceptionGroup) else error


@contextlib.contextmanager
def _in_background(program: Coroutine[Any, Any, None]) -> Iterator[None]:
    """Run a program while the block lasts; leaving it cancels the program and waits for it and its thread."""
    started: Future[tuple[asyncio.AbstractEventLoop, asyncio.Task]] = Future()

    async def main() -> None:
        started.set_result((asyncio.get_running_loop(), asyncio.current_task()))
        await program

    thread = threading.Thread(target=lambda: asyncio.run(main()), name="background")
    thread.start()
    try:
        yield
    finally:
        loop, task = started.result()
        with contextlib.suppress(RuntimeError):  # it has ended by itself, and its loop is closed
            loop.call_soon_threadsafe(task.cancel)
        thread.join()
