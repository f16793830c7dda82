"""The committed verdicts of validation, data/tasks/verdicts.jsonl.

They are found by content hash, so a changed generator cannot lean on old ones.
`python -m dagger_nb.tasks.validate` makes them.
"""

from __future__ import annotations

import argparse
import functools
import json
import random
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from dagger_nb import paths
from dagger_nb.errors import DataError, SandboxError
from dagger_nb.records import Task
from dagger_nb.tasks.assembly import generate
from dagger_nb.tasks.splits import SPLITS
from dagger_nb.tasks.validation import Verdict, content_hash, validate

if TYPE_CHECKING:
    from dagger_nb.sandboxes.protocol import SandboxFactory

VALIDATED = {name: spec.size for name, spec in SPLITS.items() if spec.size} | {"train": 200}
EVERY = 100  # tasks between two lines of progress
ATTEMPTS = 3  # at a task whose sandbox fails


def verdicts_path() -> Path:
    return paths.data() / "tasks" / "verdicts.jsonl"


def read_verdicts(path: Path) -> dict[str, Verdict]:
    """Verdicts of a file by content hash; a last line that was torn off is ignored.

    Raises:
        DataError: a line before the last is not a verdict.
    """
    lines = path.read_text(encoding="utf-8").split("\n") if path.exists() else [""]
    found = (_verdict(path, number, line) for number, line in enumerate(lines[:-1], start=1))
    return {verdict.hash: verdict for verdict in found}


def _verdict(path: Path, number: int, line: str) -> Verdict:
    try:
        return Verdict(**json.loads(line))
    except (TypeError, ValueError) as error:
        raise DataError(f"{path}:{number} is not a verdict ({error}); delete the file and validate again") from error


def _line(verdict: Verdict) -> str:
    return json.dumps(asdict(verdict), sort_keys=True) + "\n"


@functools.cache
def _committed() -> Mapping[str, Verdict]:
    return read_verdicts(verdicts_path())


def verdict_of(task: Task) -> Verdict | None:
    """The committed verdict on exactly this task, or None when it was never validated."""
    return _committed().get(content_hash(task))


def recheck(sample: int, seed: int, sandbox_factory: SandboxFactory) -> list[Verdict]:
    """Validate `sample` of the tasks with a committed verdict again; `seed` chooses them.

    Raises:
        DataError: a task has no committed verdict, or another one than it gets now.
    """
    places = [(split, index) for split in sorted(VALIDATED) for index in range(VALIDATED[split])]
    chosen = random.Random(f"recheck/{seed}").sample(places, min(sample, len(places)))
    return [_recheck(generate(split, index), sandbox_factory) for split, index in sorted(chosen)]


def _recheck(task: Task, sandbox_factory: SandboxFactory) -> Verdict:
    now, committed = validate(task, sandbox_factory), verdict_of(task)
    if now != committed:
        raise DataError(
            f"{task.instance_id}: the committed verdict is {committed}, but running it gives {now};"
            " run `python -m dagger_nb.tasks.validate`"
        )
    return now


def validate_all(tasks: list[Task], path: Path, jobs: int, sandbox_factory: SandboxFactory) -> list[Verdict]:
    """The verdicts on `tasks`, in order; known ones are taken from `path`, new ones appended as they come.

    In the end the file holds exactly these verdicts in this order.

    Raises:
        SandboxError: a sandbox failed three times in a row; what was validated is kept.
    """
    known = read_verdicts(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(map(_line, known.values())), encoding="utf-8")  # without a torn last line
    unknown = [task for task in tasks if content_hash(task) not in known]
    print(f"{len(tasks)} tasks, {len(unknown)} to validate", flush=True)
    with ThreadPoolExecutor(jobs) as pool, open(path, "a", encoding="utf-8") as file:
        for count, verdict in enumerate(pool.map(lambda task: _patiently(task, sandbox_factory), unknown), start=1):
            known[verdict.hash] = verdict
            file.write(_line(verdict))
            file.flush()
            if not verdict.valid or count % EVERY == 0:
                print(f"{count}/{len(unknown)} {verdict.instance_id} {verdict.problem or 'valid'}", flush=True)
    verdicts = [known[content_hash(task)] for task in tasks]
    path.write_text("".join(map(_line, verdicts)), encoding="utf-8")
    return verdicts


def _patiently(task: Task, sandbox_factory: SandboxFactory) -> Verdict:
    """`validate`; a sandbox that fails (on a machine under heavy load, say) is tried again before it counts."""
    for _ in range(ATTEMPTS - 1):
        try:
            return validate(task, sandbox_factory)
        except SandboxError as error:
            print(f"{task.instance_id}: trying again after {error}", flush=True)
    return validate(task, sandbox_factory)


def main(arguments: list[str] | None = None) -> int:
    """Validate every task of VALIDATED; 0 when all are valid, else 1."""
    from dagger_nb.sandboxes import local_factory  # a lower room: only this command may reach for it

    parser = argparse.ArgumentParser(prog="python -m dagger_nb.tasks.validate", description=__doc__)
    parser.add_argument("--jobs", type=int, default=1, help="tasks validated at once")
    options = parser.parse_args(arguments)
    every = [generate(split, index) for split in sorted(VALIDATED) for index in range(VALIDATED[split])]
    verdicts = validate_all(every, verdicts_path(), options.jobs, local_factory())
    bad = [verdict for verdict in verdicts if not verdict.valid]
    print(f"{len(verdicts) - len(bad)} of {len(verdicts)} tasks are valid: {verdicts_path()}")
    return 1 if bad else 0
