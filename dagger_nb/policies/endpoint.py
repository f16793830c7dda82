"""A policy behind any OpenAI-compatible server, asked once for each answer and within a budget.

An answer that was kept is found again; only else is the server asked. There is one retry policy, ours (the client
library's own is off): timeouts, torn connections, 429 and 5xx are tried again after an exponentially growing time with
jitter, and never before a `Retry-After` has passed. A 429 costs no try while others are answered: a limit on calls
makes a run slow and loses nothing. A refusal of the key, the model or the request is final. What fails in the end is a
PolicyError. An endpoint that answered before and now answers nobody is waited for, half an hour if need be, and asked
a small question in the meantime. When it stays silent, or `OUTAGE` calls in a row failed and the question does too, an
EnvironmentProblem stops the run: an endpoint that is gone, refuses everything, or gives only replies of no use, makes
no day of missing labels.

The key is read from the environment, handed to the client library, and taken out of every text that leaves here.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Any
from urllib.parse import urlsplit

from dagger_nb import scaffold
from dagger_nb.bill import Bill, Tokens
from dagger_nb.errors import CallLimit, ConfigError, ContextError, EnvironmentProblem, PolicyError
from dagger_nb.policies import styles
from dagger_nb.policies.protocol import Answer, Sampling
from dagger_nb.records import Task, Turn, digest
from dagger_nb.settings import TeacherSettings

try:
    import openai
    from tenacity import AsyncRetrying, RetryCallState, retry_if_exception

    from dagger_nb.policies.wire import Failure, bound, failure_of, fault_of, read_reply, unbilled
except ImportError as error:
    raise EnvironmentProblem(f"{error}; an endpoint needs `pip install 'dagger-nb[serving]'`") from error

OUTAGE = 20
NO_KEY = "unset"  # sent to a server that wants no key
LISTING_S = 30.0  # for the list of a server's models
PING = ({"role": "user", "content": "Are you there?"},)
Chat = Sequence[Mapping[str, Any]]
Reply = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Retries:
    """How often one call is tried, and how long is waited before the next try (seconds).

    The n-th wait is drawn between half and the whole of `first_s * 2**(n-1)`, at most `longest_s`, on top of what
    the server asks for. One that asks for more than `patience_s` is given up at once. An endpoint that has fallen
    silent is waited for, `outage_s` at the most.
    """

    tries: int = 6
    first_s: float = 1.0
    longest_s: float = 60.0
    patience_s: float = 300.0
    outage_s: float = 1800.0


class EndpointPolicy:
    """The model `settings.path` at `settings.endpoint`, for one event loop and one round (`bill.account`).

    Args:
        jitter: the source of chance of the waits between tries; it decides when is asked, never what.
        concurrency: calls at once.
        check: raises EnvironmentProblem where the server is known to have ended; asked before it is waited for.
        answered: whether it has answered before (`admission`), so that it is waited for where it is silent now.

    Raises:
        ConfigError: the environment's key cannot be one.
    """

    def __init__(
        self,
        settings: TeacherSettings,
        bill: Bill,
        *,
        jitter: random.Random,
        retries: Retries = Retries(),
        concurrency: int = 128,
        check: Callable[[], None] = lambda: None,
        answered: bool = False,
    ) -> None:
        self.name = f"{settings.path}@{settings.revision}" if settings.revision else settings.path
        self.settings, self.bill, self.retries = settings, bill, retries
        self._jitter, self._check = jitter, check
        self._slots = asyncio.Semaphore(concurrency)
        self._asking: dict[str, asyncio.Task[Reply]] = {}
        self._failures = 0  # in a row
        self._replies = int(answered)  # those of no use too
        self._asks_for_all = asyncio.Lock()
        key = _key(settings.key_variable)
        self._client = openai.AsyncOpenAI(
            base_url=settings.endpoint,
            api_key=key,
            max_retries=0,
            timeout=None,
            # aiohttp, as the other one's cost grows with its connections; a proxy does not know this machine's servers
            http_client=openai.DefaultAioHttpClient(timeout=None, trust_env=not _of_this_machine(settings.endpoint)),
        )

    async def __aenter__(self) -> EndpointPolicy:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Give up what is being asked and close the connections."""
        asking = list(self._asking.values())
        for task in asking:
            task.cancel()
        await asyncio.gather(*asking, return_exceptions=True)
        await self._client.close()

    async def answer(self, task: Task, turns: Sequence[Turn], sampling: Sampling, seed: int) -> Answer:
        """The model's action after `turns`; see `Policy`. An answer found again is billed as nothing.

        `seed` is sent, and part of what the answer is kept under, only where temperature lets chance decide.

        Raises:
            PolicyError, BudgetError: as in `Policy`. EnvironmentProblem: the endpoint is gone.
        """
        reply, usage = await self.reply(scaffold.messages_before(task, turns), sampling, seed)
        return Answer(styles.read(reply["message"], self.settings.style), usage=usage)

    async def reply(self, chat: Chat, sampling: Sampling, seed: int, *, anew: bool = False) -> tuple[Reply, Tokens]:
        """The reply to a canonical chat as it was kept, and what it was billed for now; `anew` asks in any case.

        Raises as `answer` does.
        """
        body = self._body(chat, sampling, seed)
        key = digest({"revision": self.settings.revision, **body})
        found = None if anew else self.bill.file.find(key)
        if found is not None:
            return found, Tokens()
        reply = await self._asked_once(key, body)
        return reply, Tokens.counted_in(reply) or Tokens()

    async def listed(self) -> dict[str, Mapping[str, Any]]:
        """The models that the server says it has, by name; none where it does not say.

        Raises:
            PolicyError: it cannot be reached, or refuses the key.
        """
        try:
            async with asyncio.timeout(LISTING_S):
                text = await self._client.get("/models", cast_to=str)
            return {row["id"]: row for row in json.loads(text)["data"]}
        except (openai.APIError, TimeoutError) as error:
            if getattr(error, "status_code", 401) in (401, 403):  # a connection that fails has none
                raise PolicyError(self._words(self._failure_of(error))) from None
            return {}
        except (ValueError, KeyError, TypeError):
            return {}

    def clean(self, text: str) -> str:
        """A server's words without the key, which some repeat, and at most 300 characters of them."""
        key = self._client.api_key
        return (text if key == NO_KEY else text.replace(key, "***"))[:300]

    # -- asking

    def _body(self, chat: Chat, sampling: Sampling, seed: int) -> dict[str, Any]:
        """What is sent. Parameters that change nothing are left out, as some server refuses each of them."""
        body: dict[str, Any] = {
            "model": self.settings.path,
            "messages": styles.render(chat, self.settings.style),
            "temperature": sampling.temperature,
            self.settings.length_name: sampling.max_new_tokens,
        }
        if sampling.temperature:
            body["seed"] = seed % 2**31  # which every server takes
        if sampling.top_p < 1:
            body["top_p"] = sampling.top_p
        if tools := styles.tools(self.settings.style):
            body |= {"tools": tools, "tool_choice": "auto", "parallel_tool_calls": False}
        return body

    async def _asked_once(self, key: str, body: Mapping[str, Any]) -> Reply:
        """The reply to a request; equal requests at the same time are one call, which nobody's leaving ends."""
        if key not in self._asking:
            self._asking[key] = task = asyncio.create_task(self._ask(key, body))
            task.add_done_callback(lambda done: self._asked(key, done))
        return await asyncio.shield(self._asking[key])

    def _asked(self, key: str, task: asyncio.Task[Reply]) -> None:
        del self._asking[key]
        if not task.cancelled():
            task.exception()  # looked at, also where nobody waits any more

    async def _ask(self, key: str, body: Mapping[str, Any]) -> Reply:
        """The reply to a request, after an outage asked for once more; a request that fails alone is given up."""
        try:
            try:
                reply = await self._tried(key, body)
            except Failure as failure:
                if failure.limited or not self._down(failure):
                    raise
                await self._back(body)
                reply = await self._tried(key, body)
        except Failure as failure:
            raise await self._final(failure, body) from None
        self._failures = 0
        return reply

    async def _tried(self, key: str, body: Mapping[str, Any]) -> Reply:
        """The reply after at most `retries.tries` tries; the failure says how many replies there were at its first.

        A refusal of too many calls is no try where others were answered: it is waited out, `retries.outage_s` at the
        most. Who waits keeps its place: others in it would only be refused as well.
        """
        first, tries = None, 0

        def enough(state: RetryCallState) -> bool:
            nonlocal first, tries
            failure = state.outcome.exception()
            first = self._replies if first is None else first
            failure.replies = first
            tries += not (failure.limited and self._replies and state.seconds_since_start < self.retries.outage_s)
            return tries >= self.retries.tries

        retrying = AsyncRetrying(stop=enough, wait=self._wait, retry=retry_if_exception(self._again), reraise=True)
        async with self._slots:
            return await retrying(self._try, key, body)

    def _down(self, failure: Failure) -> bool:
        """Whether an endpoint that did answer has answered nobody since a call began to fail."""
        return failure.again and not failure.billed and 0 < self._replies == failure.replies

    async def _back(self, body: Mapping[str, Any]) -> None:
        """Wait until the endpoint answers; one asks for all, as each try may cost its bound.

        Raises:
            EnvironmentProblem: it was silent for `retries.outage_s`, refuses, or has ended.
        """
        replies = self._replies
        async with self._asks_for_all:
            until, pause = time.monotonic() + self.retries.outage_s, self.retries.first_s
            while self._replies == replies:
                self._check()
                failure = await self._ping(body)
                if failure is None or failure.billed:
                    return
                if not failure.again or time.monotonic() > until:
                    raise self._gone(failure)
                pause = min(self.retries.longest_s, 2 * pause)
                await asyncio.sleep(min(failure.after_s, self.retries.patience_s) + pause)

    async def _ping(self, body: Mapping[str, Any]) -> Failure | None:
        """Ask a small question in the same way; why it was not answered, or None."""
        asked = {**body, "messages": styles.render(PING, self.settings.style)}
        try:
            await self._try(digest({"revision": self.settings.revision, **asked}), asked)
        except Failure as failure:
            return failure
        return None

    async def _final(self, failure: Failure, body: Mapping[str, Any]) -> PolicyError | EnvironmentProblem:
        """What a call that is given up raises: of this request alone, or of an endpoint that serves nobody."""
        if failure.full:
            return ContextError(self._words(failure))
        if failure.account or failure.limited and not self._again(failure):  # as where a day's quota is used up
            return self._gone(failure, "")
        if failure.limited and self._down(failure):
            return self._gone(failure)
        self._failures += 1
        if self._failures >= OUTAGE:
            found = await self._ping(body)
            if found and not (found.limited and self._replies):  # a reply of no use is no better than none
                return self._gone(failure)
            self._failures = 0  # these requests were refused, and another is answered
        return (CallLimit if failure.limited else PolicyError)(self._words(failure))

    def _gone(self, failure: Failure, others: str = "; nothing else is answered either") -> EnvironmentProblem:
        when = f", and not before {failure.after_s:,.0f} s have passed" if failure.after_s else ""
        advice = f"Run the same command again when it answers{when}"
        return EnvironmentProblem(f"{self._words(failure)}{others}. {advice}")

    def _again(self, error: BaseException) -> bool:
        return isinstance(error, Failure) and error.again and error.after_s <= self.retries.patience_s

    def _wait(self, state: RetryCallState) -> float:
        grown = min(self.retries.longest_s, self.retries.first_s * 2 ** (state.attempt_number - 1))
        return state.outcome.exception().after_s + grown * self._jitter.uniform(0.5, 1.0)

    async def _try(self, key: str, body: Mapping[str, Any]) -> Reply:
        """One call, accounted for whatever becomes of it."""
        limit_s = self.settings.timeout_s
        call = await self.bill.reserve(key, self.name, bound(body, self.settings.length_name), within_s=limit_s)
        try:
            async with asyncio.timeout(limit_s):
                text = await self._client.post("/chat/completions", body=body, cast_to=str)
            reply = read_reply(text)
        except BaseException as error:
            (self.bill.release if unbilled(error) else self.bill.doubt)(call)
            raise self._failure_of(error) from None
        fault = fault_of(reply, self.settings.path)
        self.bill.settle(call, Tokens.counted_in(reply), None if fault else reply)
        self._replies += 1
        if fault:
            raise Failure(fault, again=True, billed=True)
        return reply

    def _failure_of(self, error: BaseException) -> BaseException:
        return failure_of(error, tools=bool(styles.tools(self.settings.style)))

    def _words(self, failure: BaseException) -> str:
        return f"{self.settings.path} at {self.settings.endpoint}: {self.clean(str(failure))}"


def _of_this_machine(url: str) -> bool:
    host = urlsplit(url).hostname or ""
    try:
        return host == "localhost" or ip_address(host).is_loopback
    except ValueError:  # a name
        return False


def _key(variable: str) -> str:
    key = os.environ.get(variable, "").strip() or NO_KEY
    if not key.isascii() or not key.isprintable() or " " in key:
        raise ConfigError(f"the environment variable {variable} holds no key: no key has spaces or such letters in it")
    return key
