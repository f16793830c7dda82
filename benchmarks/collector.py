"""What the collector costs: its throughput against a model that always takes the same time, and memory an episode.

    python benchmarks/collector.py [--episodes 512] [--at-once 256] [--turns 12] [--seconds 5 1]
                                   [--words 0 5000] [--idle 544] [--base data/base] [--json PATH]

The model is a process of its own that answers over HTTP on localhost as vLLM does, each call after `seconds`; the
policy that asks it is the one that asks vLLM; the sandbox is a stub. Every episode takes `turns` turns, so that
`at-once` of them at a time should take `episodes / at-once * turns * seconds`: the ideal, of which the share that
was reached is told, start and end included. `words` are tokens by which each prompt is longer; the whole episode is
sent at each turn. The memory of an idle episode, one that waits for an answer, is how much more this process
holds with `idle` of them than with 32, divided by the difference.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import asdict, dataclass, replace
from itertools import count, product
from pathlib import Path
from typing import Any

import httpx
from meter import save

from dagger_nb import paths
from dagger_nb.collector import Capacity, Cast, Collector
from dagger_nb.episode import Conditions, Limits, Plan
from dagger_nb.fleet import CohortJob
from dagger_nb.labelling import Labelled
from dagger_nb.mixing import STUDENT_ALONE
from dagger_nb.policies.oracle import OraclePolicy
from dagger_nb.policies.protocol import Sampling
from dagger_nb.policies.served import ServedStudent
from dagger_nb.records import Action, Task, Trajectory
from dagger_nb.rendering import Renderer
from dagger_nb.sandboxes.protocol import CommandResult
from dagger_nb.students import Version, quiet, renderer_of
from dagger_nb.tasks import tasks

FEW = 32  # idle episodes whose memory the other ones' is compared with
NEVER = 3600.0  # seconds a call, where nothing is to be answered


# --- the model -----------------------------------------------------------------------------------------------


@contextmanager
def endpoint(seconds: float, renderer: Renderer) -> Iterator[str]:
    """The address of such a model, in a process of its own."""
    ids = renderer.action_ids(Action("Look.", "execute_bash", {"command": "cat notes.txt"}))
    choice = {"finish_reason": "stop", "token_ids": ids, "logprobs": {"token_logprobs": [-0.5] * len(ids)}}
    usage = {"prompt_tokens": 1000, "completion_tokens": len(ids)}
    command = [sys.executable, Path(__file__).with_name("mock_model.py"), str(seconds)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            process.stdin.write(json.dumps({"choices": [choice], "usage": usage}) + "\n")
            process.stdin.flush()
            yield f"http://127.0.0.1:{int(process.stdout.readline())}"
        finally:
            process.stdin.close()


# --- episodes ------------------------------------------------------------------------------------------------


class Stub:
    """A factory of sandboxes, and each of these: a command takes no time, and never prints the same."""

    name = "stub"

    def __init__(self) -> None:
        self.number = count()

    def prefetch(self, tasks: Iterable[Task], log: Callable[[str], None] = print) -> dict[str, str]:
        return {}

    def open(self, task: Task) -> Stub:
        return self

    def run(self, command: str, timeout_s: float | None = None) -> CommandResult:
        return CommandResult(f"note {next(self.number)}: " + "nothing new " * 20, 0)

    def diff(self) -> str:
        return ""

    def close(self) -> None:
        pass


@dataclass(frozen=True, slots=True)
class Load:
    """What is run: how many episodes, how many at once, of how many turns, with how many words more to read."""

    episodes: int
    at_once: int
    turns: int
    words: int = 0


def run(load: Load, url: str, renderer: Renderer, log: Any = lambda line: None) -> int:
    """Collect the load; returns the number of turns."""

    @asynccontextmanager
    async def cast(_: Version) -> AsyncIterator[Cast]:
        async with ServedStudent(url, "mock", renderer, context=1 << 20, name="mock") as student:
            yield Cast(student, OraclePolicy(), unlabelled, Sampling())

    task = tasks("train", 1)[0]
    task = replace(task, problem_statement=task.problem_statement + " nothing" * load.words)
    limits = Limits(max_turns=load.turns, context=1 << 20)
    conditions = Conditions(STUDENT_ALONE, Sampling(0.7, 0.9, 96), 0, "mock", limits)
    plans = [Plan(replace(task, instance_id=f"task-{n}")) for n in range(load.episodes)]
    jobs = [CohortJob(n, (plan,), conditions, Version("mock"), None) for n, plan in enumerate(plans)]
    collector = Collector(cast, Stub(), renderer, Capacity(load.at_once, load.at_once, 4), log, every_s=1.0)
    return sum(len(record.trajectories[0].turns) for _, record, _ in collector.run(jobs))


async def unlabelled(task: Task, trajectory: Trajectory) -> Labelled:
    return Labelled((), ())


# --- what is measured ----------------------------------------------------------------------------------------


def throughput(load: Load, seconds: float, renderer: Renderer) -> dict[str, Any]:
    """One row of the table."""
    with endpoint(seconds, renderer) as url:
        run(replace(load, episodes=1, turns=1), url, renderer)  # modules are loaded, caches filled
        before, began = time.process_time(), time.monotonic()
        turns = run(load, url, renderer)
        wall, used = time.monotonic() - began, time.process_time() - before
    assert turns == load.episodes * load.turns, "an episode ended early"
    ideal = load.episodes / load.at_once * load.turns * seconds
    return {
        **asdict(load),
        "seconds_a_call": seconds,
        "wall_s": round(wall, 2),
        "ideal_s": ideal,
        "share": round(ideal / wall, 4),
        "cpu_ms_a_turn": round(1e3 * used / turns, 2),
        "load_average": round(os.getloadavg()[0], 1),
    }


class AllIdle(Exception):
    """Every episode waits for its answer."""


def resident_with(idle: int, renderer: Renderer) -> int:
    """Bytes that this process holds while so many episodes wait for their first answer."""
    held = []
    with endpoint(NEVER, renderer) as url, httpx.Client(trust_env=False) as client:

        def look(_: str) -> None:
            if int(client.get(f"{url}/waiting").text) == idle:
                held.append(int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE"))
                raise AllIdle

        try:
            run(Load(idle, idle, 1), url, renderer, look)
        except AllIdle:
            pass
    return held[0]


def show(row: dict[str, Any]) -> None:
    cells = row["episodes"] * row["turns"], row["wall_s"], row["ideal_s"], row["share"], row["cpu_ms_a_turn"]
    start = f"{row['seconds_a_call']:>14g}{row['words']:>11,}"
    print(start + "{:>8,}{:>9.1f}{:>9.1f}{:>8.1%}{:>15.1f}".format(*cells), flush=True)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--episodes", type=int, default=512)
    parser.add_argument("--at-once", type=int, default=256)
    parser.add_argument("--turns", type=int, default=12)
    parser.add_argument("--seconds", type=float, nargs="+", default=[5.0, 1.0])
    parser.add_argument("--words", type=int, nargs="+", default=[0], help="tokens by which each prompt is longer")
    parser.add_argument("--idle", type=int, default=544)
    parser.add_argument("--base", default=str(paths.project() / "data/base"))
    parser.add_argument("--json", type=Path)
    options = parser.parse_args(arguments)
    quiet()
    renderer = renderer_of(options.base)
    few, many = resident_with(FEW, renderer), resident_with(options.idle, renderer)
    kilobytes = (many - few) / (options.idle - FEW) / 1e3
    print(f"an idle episode takes {kilobytes:.0f} KB")
    names = ("seconds a call", "longer by", "turns", "wall s", "ideal s", "share", "CPU ms a turn")
    print("{:>14}{:>11}{:>8}{:>9}{:>9}{:>8}{:>15}".format(*names))
    rows = []
    for words, seconds in product(options.words, options.seconds):
        rows.append(throughput(Load(options.episodes, options.at_once, options.turns, words), seconds, renderer))
        show(rows[-1])
    save(options, ("httpx", "aiohttp", "transformers"), idle_kb=round(kilobytes, 1), rows=rows)


if __name__ == "__main__":
    main()
