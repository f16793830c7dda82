"""A model that takes its time: answers every completion after so many seconds, in vLLM's format, over HTTP.

    python benchmarks/mock_model.py SECONDS < reply.json

Standard input holds the reply in its first line, and ends when the model is to end. The first line printed is the
port on localhost; /waiting tells how many calls wait for their answer.
"""

from __future__ import annotations

import asyncio
import os
import socket
import sys

from aiohttp import web


class Model:
    """Every call gets the same reply, `seconds` after it was read."""

    def __init__(self, seconds: float, reply: str) -> None:
        self.seconds, self.reply, self.waiting = seconds, reply, 0

    async def complete(self, request: web.Request) -> web.Response:
        self.waiting += 1
        await request.read()
        await asyncio.sleep(self.seconds)
        self.waiting -= 1
        return web.Response(text=self.reply, content_type="application/json")

    async def tell(self, request: web.Request) -> web.Response:
        return web.Response(text=str(self.waiting))


async def main() -> None:
    model = Model(float(sys.argv[1]), sys.stdin.readline())
    app = web.Application(client_max_size=1 << 30)
    app.add_routes([web.post("/v1/completions", model.complete), web.get("/waiting", model.tell)])
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    listening = socket.create_server(("127.0.0.1", 0), backlog=4096)
    await web.SockSite(runner, listening, backlog=4096).start()
    print(listening.getsockname()[1], flush=True)
    await asyncio.to_thread(sys.stdin.read)
    os._exit(0)  # without waiting for calls that nobody waits for any more


if __name__ == "__main__":
    asyncio.run(main())
