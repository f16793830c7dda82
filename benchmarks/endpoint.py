"""What the endpoint policy and the answer cache cost: calls and cache hits a second of one process.

    python benchmarks/endpoint.py [--calls 3000] [--concurrency 64] [--json PATH]

The server is the tests' own (tests/servers.py), a process of its own on localhost that answers at once, so that what
is measured is this side: rendering, digest, reservation, HTTP, settling. A hit is the same state asked again.
Processor time a call is told beside wall-clock rates, because it does not depend on who else uses the machine.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from contextlib import closing
from pathlib import Path
from typing import Any

from meter import save

from dagger_nb.answers import AnswerFile
from dagger_nb.bill import Account, Bill
from dagger_nb.policies.endpoint import EndpointPolicy
from dagger_nb.policies.protocol import Sampling
from dagger_nb.settings import TeacherSettings

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
import servers  # noqa: E402


async def measure(url: str, file: AnswerFile, calls: int, concurrency: int) -> list[dict[str, Any]]:
    settings = TeacherSettings(path=servers.MODEL, endpoint=url, key_variable="NO_KEY_IS_NEEDED_HERE")

    async def ask(state: int) -> None:
        await policy.reply([{"role": "user", "content": f"state {state}"}], Sampling(), seed=0)

    bill = Bill(file, Account("benchmark", 0))
    async with EndpointPolicy(settings, bill, jitter=random.Random(0), concurrency=concurrency) as policy:
        await asyncio.gather(*map(ask, range(calls, calls + concurrency)))  # connections are made
        return [{"what": what} | await rate(ask, calls) for what in ("calls", "cache hits")]


async def rate(ask: Callable[[int], Awaitable[None]], calls: int) -> dict[str, float]:
    wall, cpu = time.perf_counter(), time.process_time()
    await asyncio.gather(*map(ask, range(calls)))
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    return {"a_second": round(calls / wall, 1), "cpu_ms": round(cpu / calls * 1e3, 4)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--calls", type=int, default=3000)
    parser.add_argument("--concurrency", type=int, default=64)
    parser.add_argument("--json", type=Path)
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, servers.running() as server:
        with closing(AnswerFile(Path(folder) / "answers.sqlite")) as file:
            rows = asyncio.run(measure(server.url, file, chosen.calls, chosen.concurrency))
    for row in rows:
        print(f"{row['a_second']:8,.0f} {row['what']} a second, {row['cpu_ms']:.3f} ms of processor time each")
    save(chosen, ("openai", "tenacity"), rows=rows)


if __name__ == "__main__":
    main()
