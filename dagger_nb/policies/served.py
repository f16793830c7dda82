"""A student that vLLM serves, asked in token ids, so that what it reads is exactly what it is trained on."""

from __future__ import annotations

import asyncio
import functools
import json
from array import array
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import httpx
import tenacity

from dagger_nb.errors import BudgetError, PolicyError
from dagger_nb.policies.protocol import Answer, Sampling, Usage
from dagger_nb.records import Task, Turn
from dagger_nb.rendering import Renderer

_REMEMBERED = 16384  # observations in tokens: each turn of an episode reads all of them again
_WHOLE = ("stop", "length")  # how an answer ends that nobody broke off


class ServedStudent:
    """One version at a vLLM server (`serving.Server.student` makes it); a policy for one event loop.

    Close it with `async with`. Any number of calls may go on at once.
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
        self._client = httpx.AsyncClient(
            base_url=url,
            timeout=httpx.Timeout(timeout_s, connect=30.0),
            limits=httpx.Limits(max_connections=None),
            trust_env=False,  # never by way of a proxy
        )

    async def __aenter__(self) -> ServedStudent:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._client.aclose()

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
        return Answer(self.renderer.parse(ids), ids, numbers, _usage(reply))

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
        except (httpx.HTTPError, json.JSONDecodeError) as error:
            await asyncio.to_thread(self._check)
            raise PolicyError(f"{self.model} at {self.url} gave no answer: {_described(error)}") from error

    async def _post(self, body: Mapping[str, Any]) -> dict[str, Any]:
        reply = await self._client.post("/v1/completions", json=body)
        reply.raise_for_status()
        return reply.json()


def _sampling(sampling: Sampling, seed: int) -> dict[str, Any]:
    if sampling.temperature == 0:
        return {"temperature": 0.0}
    return {"temperature": sampling.temperature, "top_p": sampling.top_p, "seed": seed}


def _usage(reply: Mapping[str, Any]) -> Usage:
    usage = reply.get("usage") or {}
    cached = (usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0
    return Usage(usage.get("prompt_tokens", 0), usage.get("completion_tokens", 0), cached)


def _may_pass(error: BaseException) -> bool:
    """Whether asking again may help: trouble on the line, a failing server, an answer that was cut off."""
    if isinstance(error, httpx.HTTPStatusError):
        return error.response.is_server_error
    return isinstance(error, httpx.TransportError | json.JSONDecodeError)


def _described(error: Exception) -> str:
    if isinstance(error, httpx.HTTPStatusError):
        return f"status {error.response.status_code}: {error.response.text[:500]}"
    return f"{type(error).__name__} {error}".strip()


@contextmanager
def _reading(reply: Mapping[str, Any]) -> Iterator[None]:
    try:
        yield
    except (KeyError, IndexError, TypeError, ValueError) as error:
        raise PolicyError(
            f"the answer cannot be used ({type(error).__name__} {error}): {str(reply)[:300]}; wanted are the token ids "
            "and log-probabilities of a vLLM server"
        ) from error
