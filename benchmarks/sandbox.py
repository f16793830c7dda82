"""What isolation costs: each command plain and sandboxed, in turn, and again from the observation cache.

    python benchmarks/sandbox.py [--repeats N] [--backend NAME]

Prints, for each command, the median milliseconds of wall-clock and of processor time (this process and
its children) of each way, and the ratio of the wall-clock medians. The ways take turns, so that other load
on the machine falls on all of them alike; on a busy machine look at the processor time. `plain` is bash in
a temporary folder with the same interpreter (without its site-packages), pytest and environment.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from dagger_nb.records import Task
from dagger_nb.sandboxes import LocalFactory, local_factory
from dagger_nb.sandboxes.view import environment, interpreter, packages

TESTS = "from sums import add\n\n" + "".join(
    f"def test_{n}():\n    assert add({n}, 1) == {n + 1}\n\n" for n in range(10)
)
FILES = {"sums.py": "def add(a, b):\n    return a + b\n", "test_sums.py": TESTS, "README.md": "# Sums\n"}
COMMANDS = ("true", "cat sums.py", "grep -rn add .", "sed -i s/a/b/ README.md", "python -c pass", "python -m pytest -q")
Times = list[tuple[float, float]]  # milliseconds of wall-clock and of processor time, a pair a repeat


def milliseconds(action: Callable[[], object]) -> tuple[float, float]:
    """Wall-clock and processor time of one call."""
    started, before = time.perf_counter(), os.times()
    action()
    wall, after = time.perf_counter() - started, os.times()
    return 1e3 * wall, 1e3 * (sum(after[:4]) - sum(before[:4]))


def prepare(folder: Path) -> None:
    """A `python` that sees nothing but the standard library and what PYTHONPATH adds, as inside a sandbox."""
    (folder / "bin").mkdir()
    (folder / "bin" / "python").symlink_to(interpreter())
    (folder / "pyvenv.cfg").write_text(f"home = {Path(interpreter()).parent}\n")


def plain(command: str, folder: Path) -> None:
    """The command without isolation, on fresh files."""
    for name, text in FILES.items():
        (folder / name).write_text(text)
    site = str(Path(packages()["pytest"]).parent)
    variables = dict(row.split(b"=", 1) for row in environment(str(folder), str(folder), site).split(b"\0"))
    subprocess.run(["bash", "-c", command], cwd=folder, env=variables, capture_output=True, check=False)


def sandboxed(command: str, factory: LocalFactory, fresh: bool) -> None:
    """The command in a fresh sandbox; a comment of its own keeps a fresh one out of the cache."""
    fields = dict.fromkeys((field.name for field in dataclasses.fields(Task)[:13]), "")
    task = Task(**fields | {"instance_id": "bench-1", "files": FILES})
    with factory.open(task) as sandbox:
        sandbox.run(f"{command} # {time.perf_counter_ns()}" if fresh else command)


def measure(command: str, repeats: int, factory: LocalFactory) -> dict[str, Times]:
    """Way -> its times."""
    times: dict[str, Times] = {"plain": [], "sandbox": [], "cache": []}
    with tempfile.TemporaryDirectory() as name:
        prepare(Path(name))
        sandboxed(command, factory, fresh=False)
        for _ in range(repeats):
            times["plain"].append(milliseconds(lambda: plain(command, Path(name))))
            times["sandbox"].append(milliseconds(lambda: sandboxed(command, factory, fresh=True)))
            times["cache"].append(milliseconds(lambda: sandboxed(command, factory, fresh=False)))
    return times


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--backend", default=None)
    options = parser.parse_args()
    with local_factory(backend=options.backend) as factory:
        print(f"{factory.name}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}, {options.repeats} repeats")
        print(f"{'median ms, wall (cpu)':26}{'plain':>16}{'sandbox':>16}{'ratio':>7}{'cache hit':>11}")
        for command in COMMANDS:
            times = measure(command, options.repeats, factory)
            wall, cpu = (
                {way: statistics.median(pair[at] for pair in rows) for way, rows in times.items()} for at in (0, 1)
            )
            cells = [f"{wall[way]:.1f} ({cpu[way]:.0f})" for way in ("plain", "sandbox")]
            ratio = wall["sandbox"] / wall["plain"]
            print(f"{command:26}{cells[0]:>16}{cells[1]:>16}{ratio:>7.2f}{wall['cache']:>11.2f}")


if __name__ == "__main__":
    main()
