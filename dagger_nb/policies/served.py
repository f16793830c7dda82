"""A student that vLLM serves, asked in token ids, so that what it reads is exactly what it is trained on."""

from __future__ import annotations

import asyncio
import functools
import json
from array import array
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import aiohttp
import tenacity

from dagger_nb.bill import Tokens
from dagger_nb.errors import BudgetError, PolicyError
from dagger_nb.policies.protocol import Answer, Sampling
from dagger_nb.records import Task, Turn
from dagger_nb.rendering import Renderer

_REMEMBERED = 16384  # observations in tokens: each turn of an episode reads all of them again
_WHOLE = ("stop", "length")  # how an answer ends that nobody broke off
_PASSING = (aiohttp.ClientConnectionError, aiohttp.ClientPayloadError, TimeoutError, json.JSONDecodeError)


class Refusal(Exception):
    """The server answered, but not with what was asked for."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(f"status {status}: {text[:500]}")
        self.status = status


class ServedStudent:
    """One version at a vLLM server (`serving.Server.student` makes it); a policy for one event loop.

    Use it in `async with`. Any number of calls may go on at once.
    `url` is the server's root, `model` what it serves the version as, `context` the longest episode in tokens.
    Connection trouble and 5xx are tried `attempts` times, after pauses drawn below a bound that
    doubles from `pause_s` (seconds).
    `check` is called before a PolicyError is raised, and says so by an error of its own when the server is gone.
    """

    def __init__(
        self,
        url: str,
        model: str,
        renderer: Renderer,
        *,
        context: int,
        name: str,
        check: Callable[[], None] = lambda: None,
        timeout_s: float = 900.0,
        attempts: int = 6,
        pause_s: float = 0.5,
    ) -> None:
        self.url, self.model, self.renderer, self.context, self.name = url, model, renderer, context, name
        self._check = check
        self._retrying = tenacity.AsyncRetrying(
            retry=tenacity.retry_if_exception(_may_pass),
            wait=tenacity.wait_random_exponential(multiplier=pause_s, max=30.0),
            stop=tenacity.stop_after_attempt(attempts),
            reraise=True,
        )
        self._prompts: dict[str, tuple[int, ...]] = {}
        self._observed = functools.lru_cache(_REMEMBERED)(lambda text: array("i", renderer.observation_ids(text)))
        self._timeout = aiohttp.ClientTimeout(timeout_s, sock_connect=30.0)

    async def __aenter__(self) -> ServedStudent:
        # aiohttp, because what a call costs httpx grows with the number of connections; no limit: the caller has one
        self._session = aiohttp.ClientSession(timeout=self._timeout, connector=aiohttp.TCPConnector(limit=0))
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._session.close()

    async def answer(self, task: Task, turns: Sequence[Turn], sampling: Sampling, seed: int) -> Answer:
        """The student's next action, with the ids that it sampled and their log-probabilities before temperature.

        Raises:
            PolicyError: no usable answer in spite of retries.
            BudgetError: the episode leaves no room for a token in the context.
        """
        read = self.ids_of(task, turns)
        room = min(sampling.max_new_tokens, self.context - len(read))
        if room <= 0:
            raise BudgetError(f"{task.instance_id}: {len(read)} tokens fill the context of {self.context}")
        reply = await self._complete(read, _sampling(sampling, seed) | {"max_tokens": room, "logprobs": 0})
        with _reading(reply):
            choice = reply["choices"][0]
            if choice["finish_reason"] not in _WHOLE:
                raise ValueError(f"it was broken off: {choice['finish_reason']}")
            ids = tuple(choice["token_ids"])
            numbers = tuple(choice["logprobs"]["token_logprobs"])
        return Answer(self.renderer.parse(ids), ids, numbers, Tokens.counted_in(reply) or Tokens())

    async def score(self, ids: Sequence[int]) -> tuple[float, ...]:
        """The log-probability of each token but the first, given those before it. Raises PolicyError."""
        reply = await self._complete(ids, {"temperature": 0.0, "max_tokens": 1, "prompt_logprobs": 0})
        with _reading(reply):
            given = reply["choices"][0]["prompt_logprobs"][1:]
            return tuple(at[str(token)]["logprob"] for token, at in zip(ids[1:], given, strict=True))

    def ids_of(self, task: Task, turns: Sequence[Turn]) -> list[int]:
        """What the student has read when it acts after `turns`: the segments of `training.session.segments`, joined."""
        if task.problem_statement not in self._prompts:
            self._prompts[task.problem_statement] = self.renderer.prompt_ids(task)
        ids = array("i", self._prompts[task.problem_statement])
        for turn in turns:
            ids.extend(turn.token_ids)
            ids.extend(self._observed(turn.observation))
        return ids.tolist()

    async def _complete(self, prompt: Sequence[int], options: Mapping[str, Any]) -> dict[str, Any]:
        body = {"model": self.model, "prompt": list(prompt), "return_token_ids": True, **options}
        try:
            # a copy: a retrier keeps the state of one call
            return await self._retrying.copy()(self._post, body | {"stop_token_ids": [self.renderer.end_id]})
        except (aiohttp.ClientError, TimeoutError, json.JSONDecodeError, Refusal) as error:
            await asyncio.to_thread(self._check)
            said = f"{type(error).__name__} {error}".strip()
            raise PolicyError(f"{self.model} at {self.url} gave no answer: {said}") from error

    async def _post(self, body: Mapping[str, Any]) -> dict[str, Any]:
        async with self._session.post(f"{self.url}/v1/completions", json=body) as reply:
            text = await reply.text()
        if reply.status != 200:
            raise Refusal(reply.status, text)
        return json.loads(text)


def _sampling(sampling: Sampling, seed: int) -> dict[str, Any]:
    if sampling.temperature == 0:
        return {"temperature": 0.0}
    return {"temperature": sampling.temperature, "top_p": sampling.top_p, "seed": seed}


def _may_pass(error: BaseException) -> bool:
    """Whether asking again may help: trouble on the line, a failing server, an answer that was cut off."""
    return isinstance(error, _PASSING) or (isinstance(error, Refusal) and error.status >= 500)


@contextmanager
def _reading(reply: Mapping[str, Any]) -> Iterator[None]:
    try:
        yield
    except (KeyError, IndexError, TypeError, ValueError) as error:
        raise PolicyError(
            f"the answer cannot be used ({type(error).__name__} {error}): {str(reply)[:300]}; wanted are the token ids "
            "and log-probabilities of a vLLM server"
        ) from error
