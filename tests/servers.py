"""A small OpenAI-compatible server in its own process, which fails on demand and keeps its own count.

What it answers to a chat that ends in `state N` (the last such words in it) is a call of `echo N`, in the tool format
that the request announces; its usage depends on N alone. What goes wrong is chosen by the test: the next faults in
order (`next`), or a share of all requests by the hash of state and try (`mixed`), which no timing can change. It is
written on bare sockets, because most faults are ones that a web framework would not commit.

Told of generated tasks it is their oracle, in native format: the state is then the whole chat. It answers what is not
about them, such as a question whether it can call tools, without a fault.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import re
import socket
import struct
import subprocess
import sys
import time
import urllib.request
from collections import Counter, deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

PARENT = "/cache/models--Org--Snapshot/snapshots/1a2b"
MODEL, KEY = "teacher", "key-8f3a61c2d9e04b75"
PRICES = {"prompt": 3.0, "cached": 0.3, "completion": 15.0}  # for a million tokens


THOUGHT = 300  # tokens


def usage_of(state: int) -> dict[str, int]:
    return {"prompt": 40 + state % 7, "cached": state % 5, "completion": 5 + state % 3}


# --- the test's side --------------------------------------------------------------------------------------


class Server:
    """A running server: its address, and what the test can tell and ask it."""

    def __init__(self, port: int) -> None:
        self.url = f"http://127.0.0.1:{port}/v1"

    def next(self, *faults: str) -> None:
        """The faults of the next requests, in order; "ok" is none."""
        self._post("next", list(faults))

    def mixed(self, per_mille: dict[str, int]) -> None:
        """From now on, each fault in so many of a thousand requests."""
        self._post("mixed", per_mille)

    def limit(self, per_second: float) -> None:
        """From now on, answer so many requests a second and refuse the others with 429; 0 is no limit."""
        self._post("limit", per_second)

    def count(self) -> dict[str, Any]:
        """The server's own count so far."""
        with urllib.request.urlopen(f"{self.url}/count", timeout=60) as reply:
            return json.load(reply)

    def _post(self, path: str, value: Any) -> None:
        request = urllib.request.Request(f"{self.url}/{path}", json.dumps(value).encode())
        urllib.request.urlopen(request, timeout=60).close()


@contextmanager
def running(known: Mapping[str, int] = {}) -> Iterator[Server]:
    """A fresh server, stopped at the end; an oracle of the first so many tasks of the splits that are `known`."""
    process = subprocess.Popen([sys.executable, __file__, json.dumps(known)], stdout=subprocess.PIPE, text=True)
    try:
        yield Server(int(process.stdout.readline()))
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


# --- the server's side ------------------------------------------------------------------------------------


class _Echo:
    """Says back the number of the state."""

    reads = 4096  # tokens, or so it says

    def number(self, chat: list[dict[str, Any]]) -> int:
        shown = " ".join(message["content"] for message in chat if message["role"] != "assistant")
        return int((re.findall(r"state (\d+)", shown) or [0])[-1])

    def knows(self, chat: list[dict[str, Any]]) -> bool:
        """Whether the chat is one that it may stumble in."""
        return True

    def call(self, chat: list[dict[str, Any]]) -> tuple[str, dict[str, Any]]:
        """A thought, and the name and arguments of the call after it."""
        return "Well.", {"name": "execute_bash", "arguments": {"command": f"echo {self.number(chat)}"}}


def whole(chat: list[dict[str, Any]]) -> int:
    """The state that a whole chat is."""
    return int(hashlib.sha256(json.dumps(chat).encode()).hexdigest()[:15], 16)


class _Oracle(_Echo):
    """The teacher of some generated tasks, which it knows by their problem statements; an echo elsewhere."""

    reads = 8192

    def __init__(self, known: Mapping[str, int]) -> None:
        from dagger_nb.tasks import tasks

        found = [task for split, count in known.items() for task in tasks(split, count)]
        self.tasks = {task.problem_statement: task for task in found}
        assert len(self.tasks) == len(found), "two tasks have the same problem statement"

    def number(self, chat: list[dict[str, Any]]) -> int:
        return whole(chat)

    def knows(self, chat: list[dict[str, Any]]) -> bool:
        return chat[1]["content"] in self.tasks

    def call(self, chat: list[dict[str, Any]]) -> tuple[str, dict[str, Any]]:
        from dagger_nb.policies import styles, teacher
        from dagger_nb.records import Turn

        if not self.knows(chat):
            return super().call(chat)
        task, pairs = self.tasks[chat[1]["content"]], zip(chat[2::2], chat[3::2], strict=True)
        turns = [
            Turn(index, "", styles.read(said, styles.NATIVE), seen["content"], (), 0)
            for index, (said, seen) in enumerate(pairs)
        ]
        action = teacher.label(task, turns)
        return action.thought, {"name": action.tool, "arguments": dict(action.arguments)}


class _State:
    def __init__(self, model: _Echo) -> None:
        self.model = model
        self.queue: deque[str] = deque()
        self.shares: dict[str, int] = {}
        self.tries: Counter[int] = Counter()  # by state
        self.faults: Counter[str] = Counter()
        self.delivered: Counter[int] = Counter()  # by state: whole, well-formed answers
        self.billed = Counter(queries=0, prompt=0, cached=0, completion=0)  # whole replies, usable or not
        self.torn = Counter(queries=0, prompt=0, cached=0, completion=0)  # charged, and never told
        self.requests: deque[dict[str, Any]] = deque(maxlen=20)
        self.per_second, self.admits_at = 0.0, 0.0

    def fault(self, state: int) -> str:
        self.tries[state] += 1
        if self.per_second:
            if time.monotonic() < self.admits_at:
                return "429"
            self.admits_at = time.monotonic() + 1 / self.per_second
        if self.queue:
            return self.queue.popleft()
        drawn = int(hashlib.sha256(f"{state}/{self.tries[state]}".encode()).hexdigest()[:8], 16) % 1000
        for name, share in self.shares.items():
            if drawn < share:
                return name
            drawn -= share
        return "ok"

    def told(self) -> dict[str, Any]:
        return {
            "billed": self.billed,
            "torn": self.torn,
            "delivered": {str(state): times for state, times in self.delivered.items()},
            "tries": sum(self.tries.values()),
            "faults": self.faults,
            "requests": list(self.requests),
        }


async def _connection(state: _State, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while True:
            head = (await reader.readuntil(b"\r\n\r\n")).decode()
            size = re.search(r"content-length: (\d+)", head, re.IGNORECASE)
            body = await reader.readexactly(int(size[1]) if size else 0)
            await _respond(state, writer, head, body)
    except (asyncio.IncompleteReadError, ConnectionError):
        writer.close()


async def _respond(state: _State, writer: asyncio.StreamWriter, head: str, body: bytes) -> None:
    path = head.split(" ", 2)[1].removeprefix("/v1")
    if path == "/count":
        _send(writer, 200, state.told())
    elif path == "/next":
        state.queue = deque(json.loads(body))
        _send(writer, 200, {})
    elif path == "/mixed":
        state.shares = json.loads(body)
        _send(writer, 200, {})
    elif path == "/limit":
        state.per_second = json.loads(body)
        _send(writer, 200, {})
    elif path == "/models":
        row = {
            "id": MODEL,
            "object": "model",
            "root": "/checkpoints/teacher",
            "parent": PARENT,
            "max_model_len": state.model.reads,
        }
        _send(writer, *_refused(head) or (200, {"object": "list", "data": [row]}))
    else:
        await _chat(state, writer, head, json.loads(body))


def _refused(head: str) -> tuple[int, dict[str, Any]] | None:
    """401 for any key but the right one and none at all; some servers repeat the key, and so does this one."""
    given = re.search(r"authorization: bearer (\S+)", head, re.IGNORECASE)
    if given and given[1] in (KEY, "unset"):
        return None
    return 401, {"error": {"message": f"Incorrect API key provided: {given and given[1]}", "code": "invalid_api_key"}}


async def _chat(state: _State, writer: asyncio.StreamWriter, head: str, request: dict[str, Any]) -> None:
    state.requests.append(request)
    if refused := _refused(head):
        return _send(writer, *refused)
    if request["model"] != MODEL:
        return _send(writer, 404, {"error": {"message": f"The model `{request['model']}` does not exist."}})
    chat = request["messages"]
    number = state.model.number(chat)
    fault = state.fault(number) if state.model.knows(chat) else "ok"
    state.faults[fault] += 1
    await _FATES.get(fault.partition(":")[0], _fate_answer)(state, writer, request, number, fault)


async def _fate_status(state: _State, writer: asyncio.StreamWriter, request: Any, number: int, fault: str) -> None:
    status, _, after = fault.partition(":")
    more = f"Retry-After: {after}\r\n" if after else ""
    code = {"402": "insufficient_quota"}.get(status, status)
    _send(writer, 429 if status == "402" else int(status), {"error": {"message": fault, "code": code}}, more)


async def _fate_past(state: _State, writer: asyncio.StreamWriter, request: Any, number: int, fault: str) -> None:
    """A model that thinks, and wants its thoughts back beside its calls of tools."""
    if any("tool_calls" in message for message in request["messages"]):
        _send(writer, 400, {"error": {"message": "The reasoning_content in the thinking mode must be passed back."}})
    else:
        await _fate_answer(state, writer, request, number, "ok")


async def _fate_break(state: _State, writer: asyncio.StreamWriter, request: Any, number: int, fault: str) -> None:
    """The connection ends: before the reply, inside it, or never, which the client ends."""
    _charge(state.torn, number)
    if fault == "hold":
        await asyncio.sleep(3600)
    elif fault == "short":
        text = json.dumps(_reply(_message(state, request), number))
        writer.write(f"HTTP/1.1 200 OK\r\nContent-Length: {len(text)}\r\n\r\n{text[: len(text) // 2]}".encode())
        await writer.drain()
        writer.close()
    else:
        linger = struct.pack("ii", 1, 0)  # a reset, not an orderly end
        writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        writer.transport.abort()
    raise ConnectionError


async def _fate_cut(state: _State, writer: asyncio.StreamWriter, request: Any, number: int, fault: str) -> None:
    """A whole HTTP reply with half of the JSON in it."""
    _charge(state.torn, number)
    text = json.dumps(_reply(_message(state, request), number))
    writer.write(_packed(200, text[: len(text) // 2], ""))


async def _fate_answer(state: _State, writer: asyncio.StreamWriter, request: Any, number: int, fault: str) -> None:
    message = _message(state, request)
    if fault == "unknown":
        message = json.loads(json.dumps(message).replace("execute_bash", "launch_rocket"))
    elif fault in ("empty", "silent", "long"):
        message = {"role": "assistant", "content": "" if fault == "empty" else "I would list the files."}
    elif fault == "two":
        message["tool_calls"] = message.get("tool_calls", []) * 2
    reply = _reply(message, number)
    if fault == "another":
        reply["model"] = "another-model"
    elif fault == "long":
        reply["choices"][0]["finish_reason"] = "length"
    elif fault == "uncounted":
        del reply["usage"]
    elif fault == "thinks":  # and counts it in the total alone
        counted = reply["usage"]
        counted["total_tokens"] = counted["prompt_tokens"] + counted["completion_tokens"] + THOUGHT
    elif fault == "ended":
        reply["choices"][0] |= {"finish_reason": "error", "message": {"role": "assistant", "content": "Let me"}}
    elif fault == "provider":
        reply["choices"][0]["error"] = {"code": 502, "message": "the provider broke off"}
    elif fault == "ok":
        state.delivered[number] += 1
    _charge(state.billed, number)
    _send(writer, 200, reply)


_FATES = dict.fromkeys(("400", "402", "429", "500", "502", "503"), _fate_status)
_FATES |= {"past": _fate_past, "reset": _fate_break, "short": _fate_break, "hold": _fate_break, "cut": _fate_cut}


def _charge(purse: Counter[str], number: int) -> None:
    purse.update(usage_of(number) | {"queries": 1})


def _reply(message: dict[str, Any], number: int) -> dict[str, Any]:
    usage = usage_of(number)
    counted = {"prompt_tokens": usage["prompt"], "completion_tokens": usage["completion"]}
    counted["prompt_tokens_details"] = {"cached_tokens": usage["cached"]}
    choice = {"index": 0, "finish_reason": "stop", "message": message}
    return {"id": "x", "object": "chat.completion", "created": 0, "model": MODEL, "choices": [choice], "usage": counted}


def _message(state: _State, request: dict[str, Any]) -> dict[str, Any]:
    """The model's call, in the format that the request asks for."""
    thought, call = state.model.call(request["messages"])
    if "tools" in request:
        function = {"name": call["name"], "arguments": json.dumps(call["arguments"])}
        calls = [{"id": "abc", "type": "function", "function": function}]
        return {"role": "assistant", "content": thought, "tool_calls": calls}
    system = request["messages"][0]["content"]
    if "<function=" in system:
        value = f"<parameter=command>\n{call['arguments']['command']}\n</parameter>"
        text = f"<tool_call>\n<function=execute_bash>\n{value}\n</function>\n</tool_call>"
    elif "<tool_call>" in system:
        text = f"<tool_call>\n{json.dumps(call)}\n</tool_call>"
    else:
        text = f"```json\n{json.dumps(call)}\n```"
    return {"role": "assistant", "content": f"{thought}\n{text}"}


def _send(writer: asyncio.StreamWriter, status: int, value: Any, more: str = "") -> None:
    writer.write(_packed(status, json.dumps(value), more))


def _packed(status: int, text: str, more: str) -> bytes:
    body = text.encode()
    head = f"HTTP/1.1 {status} X\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n{more}\r\n"
    return head.encode() + body


async def _serve(known: Mapping[str, int]) -> None:
    state = _State(_Oracle(known) if known else _Echo())
    server = await asyncio.start_server(lambda r, w: _connection(state, r, w), "127.0.0.1", 0, backlog=1024)
    print(server.sockets[0].getsockname()[1], flush=True)
    parent = os.getppid()
    while os.getppid() == parent:  # a test that was killed takes its server with it
        await asyncio.sleep(1)


if __name__ == "__main__":
    asyncio.run(_serve(json.loads(sys.argv[1])))
