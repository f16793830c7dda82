"""A vLLM server for as long as a phase lasts: started, waited for, given adapters, and stopped with its whole tree.

Collecting, training and evaluating share one GPU: a server lives in a `with` block around one phase, which leaves the
GPU empty for the next.
"""

from __future__ import annotations

import socket
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import httpx

from dagger_nb.errors import EnvironmentProblem
from dagger_nb.policies.served import ServedStudent
from dagger_nb.rendering import Renderer
from dagger_nb.serving.adapters import refuse_misfit
from dagger_nb.serving.engine import Engine, ServedModel, command, environment
from dagger_nb.serving.process import GuardedProcess
from dagger_nb.settings import ServingSettings

if TYPE_CHECKING:
    from dagger_nb.students import Version  # brings torch

POLL_S = 0.5
PROGRESS_S = 15.0
_HINTS = {  # what vLLM says -> what to do
    "KV cache memory": "raise serving.memory_share or lower episode.context",
    "available memory for the cache blocks": "raise serving.memory_share or lower episode.context",
    "out of memory": "lower serving.memory_share, stop what else uses the GPU, or choose a smaller model",
    "Free memory on device": "lower serving.memory_share, or stop what else uses the GPU",
    "ddress already in use": "another program took the port; start again",
}


class Server:
    """One vLLM process that serves one base and adapters on it; a context manager, for one use.

    `port` 0 takes a free one. What vLLM says is appended to `log`; what the server does is told to `progress`.
    """

    def __init__(
        self,
        model: ServedModel,
        engine: Engine,
        settings: ServingSettings,
        *,
        log: Path,
        port: int = 0,
        progress: Callable[[str], None] = print,
    ) -> None:
        self.model, self.engine, self.settings = model, engine, settings
        self.log, self.progress = log, progress
        self.port = _free_port(port)
        self.command = command(model, engine, settings, self.port)
        self._process: GuardedProcess | None = None
        self._client = httpx.Client(base_url=self.url, timeout=120.0, trust_env=False)  # never by way of a proxy

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def __enter__(self) -> Server:
        """Start and wait until it answers.

        Raises:
            EnvironmentProblem: it ended, or did not answer within `serving.start_timeout_s`; with the log's end.
        """
        self._process = GuardedProcess(self.command, environment(self.engine), self.log)
        try:
            self._await_health()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Stop it; returns when every process of it is gone."""
        if self._process is not None:
            self._process.close()
        self._client.close()

    @property
    def on_gpu(self) -> bool:
        """Whether it holds memory of a GPU while it runs."""
        return not self.engine.cpu

    @property
    def running(self) -> bool:
        """Whether it was started and has not ended."""
        return self._process is not None and self._process.exit_code is None

    def check(self) -> None:
        """Raises EnvironmentProblem, with the end of the log, when the server has died or does not answer."""
        self.check_alive()
        if not self._healthy():
            raise self._problem("does not answer")

    def check_alive(self) -> None:
        """Raises EnvironmentProblem, with the end of the log, when the server's process is gone."""
        if not self.running:
            raise self._problem("is not running" if self._process is None else "has ended")

    @contextmanager
    def adapter(self, version: Version) -> Iterator[str]:
        """A version, served within the block; gives the name to ask for it by. The base is always served.

        Raises:
            DataError: the adapter is of another base, of another shape, or of a larger rank than the server takes.
            EnvironmentProblem: vLLM refused it.
        """
        if version.adapter is None:
            yield self.model.name
            return
        model = self.model
        refuse_misfit(Path(version.adapter), model.base or str(model.folder), model.folder, model.rank)
        self._lora("load", {"lora_name": version.name, "lora_path": str(Path(version.adapter).absolute())})
        try:
            yield version.name
        finally:
            with suppress(EnvironmentProblem):  # it goes with the server, and what is raised already says more
                self._lora("unload", {"lora_name": version.name})

    @asynccontextmanager
    async def student(self, version: Version, renderer: Renderer) -> AsyncIterator[ServedStudent]:
        """A version as a policy within the block, in its event loop."""
        with self.adapter(version) as model:
            async with ServedStudent(
                self.url, model, renderer, context=self.model.context, name=version.name, check=self.check
            ) as policy:
                yield policy

    def provenance(self) -> dict[str, Any]:
        """What goes into a run's manifest: the engine, and what it served in which precision."""
        return {
            "engine": f"vllm {self.engine.version}" + (" (CPU)" if self.engine.cpu else ""),
            "weights": self.settings.weights,
            "dtype": self.engine.dtype,
            "checkpoint": self.model.folder.name,
            "context": self.model.context,
            "rank": self.model.rank,
        }

    def _lora(self, verb: str, body: dict[str, str]) -> None:
        try:
            reply = self._client.post(f"/v1/{verb}_lora_adapter", json=body)
        except httpx.TransportError as error:
            raise self._problem(f"did not {verb} {body['lora_name']} ({type(error).__name__})") from error
        if reply.is_error:
            raise self._problem(f"did not {verb} {body['lora_name']}: {reply.text[:500]}")

    def _await_health(self) -> None:
        began = told = time.monotonic()
        while self._process.exit_code is not None or not self._healthy():  # another's server may answer at our port
            now = time.monotonic()
            if self._process.exit_code is not None:
                raise self._problem("ended before it answered")
            if now - began > self.settings.start_timeout_s:
                raise self._problem(f"gave no answer in {now - began:.0f} s; raise serving.start_timeout_s")
            if now - told > PROGRESS_S:
                told = now
                self.progress(f"vLLM starts · {now - began:.0f} s · {self._process.tail(1)[-100:].strip()}")
            time.sleep(POLL_S)
        self.progress(f"vLLM answers at {self.url} after {time.monotonic() - began:.0f} s")

    def _healthy(self) -> bool:
        try:
            return self._client.get("/health", timeout=10.0).is_success
        except httpx.TransportError:
            return False

    def _problem(self, what: str) -> EnvironmentProblem:
        said = self._process.tail() if self._process else ""
        hint = next((step for sign, step in _HINTS.items() if sign in said), "the log says why")
        return EnvironmentProblem(f"the vLLM server {what}; {hint}. The end of {self.log}:\n{said}")


def _free_port(wanted: int) -> int:
    """`wanted`, or any free port for 0. Raises EnvironmentProblem when it is taken."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", wanted))
        except OSError as error:
            raise EnvironmentProblem(
                f"port {wanted} is taken ({error.strerror}); choose another, or 0 for any"
            ) from error
        return probe.getsockname()[1]
