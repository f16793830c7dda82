"""`python -m dagger_nb.tasks.validate [--jobs N]`: make data/tasks/verdicts.jsonl, going on where it stopped."""

from __future__ import annotations

import argparse
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from dagger_nb.records import Task
from dagger_nb.tasks.validation import (
    Verdict, content_hash, read_verdicts, validate, validated_tasks, verdict_line, verdicts_path,
)  # fmt: skip

EVERY = 100  # tasks between two lines of progress


def validate_all(tasks: list[Task], path: Path, jobs: int, factory) -> list[Verdict]:
    """The verdicts on `tasks`, in order; new ones are appended to `path` as they come, then it is put in order."""
    known = read_verdicts(path)
    open_tasks = [task for task in tasks if content_hash(task) not in known]
    print(f"{len(tasks)} tasks, {len(open_tasks)} to validate", flush=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    with ThreadPoolExecutor(jobs) as pool, open(path, "a", encoding="utf-8") as file:
        for count, verdict in enumerate(pool.map(lambda task: validate(task, factory), open_tasks), start=1):
            known[verdict.hash] = verdict
            file.write(verdict_line(verdict))
            file.flush()
            if not verdict.valid or count % EVERY == 0:
                print(f"{count}/{len(open_tasks)} {verdict.instance_id} {verdict.problem or 'valid'}", flush=True)
    verdicts = [known[content_hash(task)] for task in tasks]
    path.write_text("".join(map(verdict_line, verdicts)), encoding="utf-8")
    return verdicts


def main(arguments: list[str] | None = None) -> int:
    """0 when every task is valid, else 1."""
    from dagger_nb.sandboxes import local_factory  # a lower room: only this command may reach for it

    parser = argparse.ArgumentParser(prog="python -m dagger_nb.tasks.validate", description=__doc__)
    parser.add_argument("--jobs", type=int, default=1, help="tasks validated at once")
    options = parser.parse_args(arguments)
    verdicts = validate_all(list(validated_tasks()), verdicts_path(), options.jobs, local_factory())
    bad = [verdict for verdict in verdicts if not verdict.valid]
    print(f"{len(verdicts) - len(bad)} of {len(verdicts)} tasks are valid: {verdicts_path()}")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
