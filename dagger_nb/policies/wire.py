"""What goes over the wire to a chat endpoint and comes back: bounds, replies, and what a failure means.

Everything here is a function of what was sent or received; `endpoint` does the sending.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

import openai

from dagger_nb.bill import Tokens


class Failure(Exception):
    """One try that brought no answer.

    Args:
        again: whether another try may bring one, after `after_s` seconds.
        full: whether the request was too long for the model.
        billed: whether there was a reply, only of no use.
        limited: whether the server refused because it is asked too often.
        account: whether it refused the key or its account, and so would refuse every request.
    """

    def __init__(
        self,
        message: str,
        *,
        again: bool,
        after_s: float = 0.0,
        full: bool = False,
        billed: bool = False,
        limited: bool = False,
        account: bool = False,
    ) -> None:
        super().__init__(message)
        self.again, self.after_s, self.full, self.billed = again, after_s, full, billed
        self.limited, self.account = limited, account
        self.replies = 0  # that others had had when the call began to fail


def bound(body: Mapping[str, Any], length_name: str) -> Tokens:
    """The most that a request can be billed for, as no token is shorter than a byte; a prompt's true size is about a
    quarter of it, and what a template adds to tools and messages has its place in that slack."""
    size = len(json.dumps([body["messages"], body.get("tools", ())], ensure_ascii=False).encode())
    return Tokens(prompt=size + 16 * len(body["messages"]) + 512, completion=body[length_name])


def read_reply(text: str) -> dict[str, Any]:
    """The part of a reply that is kept, as the server sent it. Raises Failure where it is torn or no reply at all."""
    try:
        reply = json.loads(text)
        choice = (reply.get("choices") or [{"message": None}])[0]
        if not isinstance(choice["message"], dict | None):
            raise TypeError("the message is no object")
        kept = {
            "message": choice["message"],
            "finish_reason": "error" if choice.get("error") else choice.get("finish_reason"),
        }
        return kept | {"model": str(reply.get("model") or ""), "usage": reply.get("usage")}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise Failure(f"the reply is cut off or no chat completion ({error})", again=True) from None


def fault_of(reply: Mapping[str, Any], model: str) -> str:
    """What forbids to use a complete reply, in words, or an empty text."""
    if reply["model"] and not same_model(model, reply["model"]):
        return f"another model answered: {reply['model']!r}"
    if reply["finish_reason"] in _BROKEN_OFF:
        return f"the answer was broken off ({reply['finish_reason']})"
    return "" if reply["message"] is not None else "the reply holds no choice"


# Words of OpenRouter, vLLM and SGLang, DeepSeek, and Z.AI for an answer that their own side ended.
_BROKEN_OFF = ("error", "abort", "insufficient_system_resource", "network_error")


def same_model(asked: str, said: str) -> bool:
    """Whether a server's name of its model means the one asked for: equal, without its owner, or with a date added.

    >>> same_model("some/model-7b", "model-7b-2025-01-31"), same_model("model", "model-mini")
    (True, False)
    """
    asked, said = (name.rstrip("/").rpartition("/")[2].lower() for name in (asked, said))
    return re.fullmatch(re.escape(asked.removesuffix("-latest")) + r"(-[\d.-]+|-latest)?", said) is not None


def unbilled(error: BaseException) -> bool:
    """Whether nothing can have been charged: the server refused, or was never reached.

    A gateway that gave up waiting (408, 502, 504 and the like) may stand before a server that went on.
    """
    if isinstance(error, openai.APIStatusError):
        return error.status_code in (500, 503) or error.status_code < 500 and error.status_code != 408
    return any(type(cause).__name__ in _NEVER_CONNECTED for cause in _causes(error))


# By name, because the HTTP package beneath the client library is its own affair.
_NEVER_CONNECTED = ("ConnectError", "ClientConnectorError", "ClientConnectorDNSError")


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__


def retry_after(error: openai.APIStatusError) -> float:
    """Seconds that the server wants to be left alone (a date, the header's other form, counts as none)."""
    try:
        return max(0.0, float(error.response.headers.get("retry-after", 0)))
    except ValueError:
        return 0.0


def failure_of(error: BaseException, *, tools: bool = False) -> BaseException:
    """The failure that an error of the client library or the network is; other errors stay what they are.

    `tools`: whether the request announced tools, which may be what the server refuses.
    """
    if isinstance(error, openai.APIStatusError):
        return _refusal(error, tools)
    if isinstance(error, TimeoutError):
        return Failure("no answer in time (teacher.timeout_s)", again=True)
    if isinstance(error, openai.APIConnectionError):
        *_, cause = _causes(error)
        words = f"the connection failed ({type(cause).__name__}); is the server up and teacher.endpoint right?"
        return Failure(words, again=True)
    return error


def _refusal(error: openai.APIStatusError, tools: bool) -> Failure:
    status = error.status_code
    if status in (401, 403):
        advice = "the key is refused: set the environment variable that teacher.key_variable names"
        return Failure(f"{advice} ({error.message})", again=False, account=status == 401)  # 403 may be one request's
    if status == 404:
        advice = "no such model or path: see teacher.path and teacher.endpoint, which often ends in /v1"
        return Failure(f"{advice} ({error.message})", again=False)
    spent = status == 402 or error.code == "insufficient_quota"
    final = spent or _TOO_LARGE.search(error.message) is not None
    again = (status in (408, 409, 429) or status >= 500) and not final
    refused = status in (400, 413, 422)
    full = refused and _TOO_LONG.search(f"{error.code} {error.message}") is not None
    words = error.message
    if tools and refused and not full and _OF_TOOLS.search(words):
        words += "; does it refuse tools? set teacher.style = 'text', which sends none"
    limited = again and status == 429
    return Failure(words, again=again, after_s=retry_after(error), full=full, limited=limited, account=spent)


# OpenAI's code, and how vLLM and others say that prompt and answer exceed what the model reads.
_TOO_LONG = re.compile(
    "context[ _](length|window|size|limit)|maximum model length|max_model_len|prompt is too long"
    "|max_new_tokens. must be|input token count",
    re.IGNORECASE,
)
_TOO_LARGE = re.compile("request too large", re.IGNORECASE)  # for a limit of tokens a minute: no wait helps
# Of tools, and of what some models want to find beside the calls of a history that they themselves wrote.
_OF_TOOLS = re.compile("tool|function|reasoning_content|thought_signature", re.IGNORECASE)
