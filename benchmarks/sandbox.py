"""What isolation costs: each command plain and sandboxed, in turn, and again from the observation cache.

    python benchmarks/sandbox.py [--repeats N] [--backend NAME]

Prints a table: median and best milliseconds of each way, and the ratio of the medians. The ways take
turns, so that other load on the machine falls on all of them alike. `plain` is bash in a temporary
folder with the same interpreter, pytest and environment.
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


def milliseconds(action: Callable[[], object]) -> float:
    started = time.perf_counter()
    action()
    return 1e3 * (time.perf_counter() - started)


def plain(command: str, folder: Path) -> None:
    """The command without isolation, on fresh files."""
    (folder / "bin").mkdir(exist_ok=True)
    if not (folder / "bin" / "python").exists():
        (folder / "bin" / "python").symlink_to(interpreter())
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


def measure(command: str, repeats: int, factory: LocalFactory) -> dict[str, list[float]]:
    """Milliseconds of each repeat, way by way."""
    times: dict[str, list[float]] = {"plain": [], "sandbox": [], "cache": []}
    with tempfile.TemporaryDirectory() as name:
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
        print(f"{'median (best) ms':26}{'plain':>16}{'sandbox':>16}{'ratio':>7}{'cache hit':>11}")
        for command in COMMANDS:
            times = measure(command, options.repeats, factory)
            middle = {way: statistics.median(values) for way, values in times.items()}
            cells = [f"{middle[way]:.1f} ({min(times[way]):.1f})" for way in ("plain", "sandbox")]
            ratio = middle["sandbox"] / middle["plain"]
            print(f"{command:26}{cells[0]:>16}{cells[1]:>16}{ratio:>7.2f}{middle['cache']:>11.2f}")


if __name__ == "__main__":
    main()
