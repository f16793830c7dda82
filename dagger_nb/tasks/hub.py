"""Real tasks: SWE-Gym to learn from, its holdout and SWE-bench Verified to be judged on, or a local file.

| source             | train                   | test                | unseen                         |
|--------------------|-------------------------|---------------------|--------------------------------|
| swe-gym            | 2,338 of SWE-Gym, again | the holdout of 100  | SWE-bench Verified (500 tasks) |
| swe-bench-verified | none: it is for judging | SWE-bench Verified  |                                |
| a local file       | the rows whose field `split` says so                                           |

Every order is drawn by SHA-256 of a written-down seed and the instance's id, so it is the same on every machine and
under every version of Python. Training tasks come again, in another order, when all of them have been used: 5 rounds
of 512 are more than 2,338. The authors' holdout is not known; `HOLDOUT_SEED` draws this one. Others report that 36 of
SWE-Gym's images are not on Docker Hub: such a task ends as a failure of infrastructure, here as everywhere.

Rows are streamed from the hub through `datasets` once and kept in data/cache/tasks as JSON lines, with the commit
that they are from. A file that lies there already (<source>.parquet, .json or .jsonl) is taken as it is: the way
without a network.
"""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dagger_nb import paths
from dagger_nb.errors import ConfigError, DataError, EnvironmentProblem
from dagger_nb.records import Task, from_json
from dagger_nb.settings import HUB, TASK_FILES
from dagger_nb.store import file_sha256, write_text
from dagger_nb.tasks.older import to_task

HOLDOUT = 100
HOLDOUT_SEED = "dagger-nb/swe-gym/holdout/1"
ORDER_SEED = "dagger-nb/hub/order/1"

Row = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Dataset:
    """A data set of the hub: its id and split, and how many rows it has (None: whatever it has today)."""

    name: str
    hub_id: str
    split: str
    rows: int | None = None  # a holdout drawn from another number of rows would be another holdout


SWE_GYM = Dataset("swe-gym", "SWE-Gym/SWE-Gym", "train", rows=2438)
VERIFIED = Dataset("swe-bench-verified", "SWE-bench/SWE-bench_Verified", "test")
DATASETS = {dataset.name: dataset for dataset in (SWE_GYM, VERIFIED)}


def tasks(source: str, split: str, count: int, *, start: int = 0) -> list[Task]:
    """Tasks `start` to `start + count - 1` of a split of a source; training tasks never end.

    Raises:
        ConfigError: the source has no such split, or not so many tasks in it.
        DataError: a row or the file is not what it should be.
        EnvironmentProblem: the rows are not on this machine and the hub cannot be reached.
    """
    if not count:
        return []
    found = _splits(source).get(split, {})
    if not found:
        raise ConfigError(
            f"{source!r} has no tasks for {split!r}; set tasks.{split} = 0, or choose another tasks.source"
        )
    if split != "train" and start + count > len(found):
        raise ConfigError(f"{source!r} has {len(found)} tasks for {split!r}; set tasks.{split} to at most that")
    ids = _training_order(found, start, count) if split == "train" else order(found, ORDER_SEED)[start : start + count]
    return [_task(found[name], split) for name in ids]


def order(ids: Iterable[str], seed: str) -> list[str]:
    """The ids in an order that looks random and is the same everywhere.

    >>> order(["b", "a", "c"], "x") == order(["c", "b", "a"], "x")
    True
    """
    return sorted(ids, key=lambda name: hashlib.sha256(f"{seed}/{name}".encode()).digest())


def _training_order(ids: Iterable[str], start: int, count: int) -> list[str]:
    """Ids `start` to `start + count - 1` of an endless series: all in one order, then all in another, and so on."""
    ids = sorted(ids)
    passes = range(start // len(ids), (start + count - 1) // len(ids) + 1)
    series = [name for number in passes for name in order(ids, f"{ORDER_SEED}/{number}")]
    first = start - passes[0] * len(ids)
    return series[first : first + count]


def holdout(ids: Iterable[str]) -> frozenset[str]:
    """The ids of SWE-Gym that are never trained on."""
    return frozenset(order(ids, HOLDOUT_SEED)[:HOLDOUT])


def _splits(source: str) -> dict[str, dict[str, Row]]:
    """Split -> id -> row."""
    if source not in HUB:
        return _own_splits(Path(source))
    if source == VERIFIED.name:
        return {"test": _dataset(VERIFIED)}
    rows = _dataset(SWE_GYM)
    held = holdout(rows)
    return {
        "train": {name: row for name, row in rows.items() if name not in held},
        "test": {name: rows[name] for name in held},
        "unseen": _dataset(VERIFIED),
    }


def _own_splits(path: Path) -> dict[str, dict[str, Row]]:
    found: dict[str, dict[str, Row]] = {}
    for name, row in _read(str(path), _stamp(path)).items():
        if not row.get("split"):
            raise DataError(
                f"{path}: task {name} has no field `split`; give each row train, dev, test, longer or unseen"
            )
        found.setdefault(row["split"], {})[name] = row
    return found


def _task(row: Row, split: str) -> Task:
    if row.get("type") == Task.__name__:  # a line that `records.to_json` wrote
        return from_json(json.dumps(row), Task)
    return to_task(row, split)


# --- rows -----------------------------------------------------------------------------------------------------


def local_file(name: str) -> Path | None:
    """Where the rows of a data set lie on this machine; None where they have not been fetched."""
    found = (paths.cache() / "tasks" / f"{name}{suffix}" for suffix in TASK_FILES)
    return next((path for path in found if path.is_file()), None)


def origin(name: str) -> dict[str, Any]:
    """Where the rows of a source come from, for a manifest: file, SHA-256, and of fetched ones the hub's commit."""
    path = local_file(name) if name in HUB else Path(name)
    if path is None or not path.is_file():  # nothing fetched yet, or generated tasks
        return {}
    noted = path.with_name(f"{path.stem}.origin.json")
    known = json.loads(noted.read_text(encoding="utf-8")) if noted.exists() else {}
    found = {"file": path.name, "sha256": file_sha256(path)}
    return known if known.items() >= found.items() else found


def _dataset(dataset: Dataset) -> dict[str, Row]:
    path = local_file(dataset.name) or fetch(dataset)
    rows = _read(str(path), _stamp(path))
    if dataset.rows is not None and len(rows) != dataset.rows:
        raise DataError(
            f"{path}: {len(rows)} tasks, {dataset.name} has {dataset.rows}, and its holdout is drawn from all of them; "
            "remove the file to fetch it again, or name it as tasks.source with a field `split` in each row"
        )
    return rows


def _stamp(path: Path) -> int:
    if not path.is_file():
        raise EnvironmentProblem(f"there is no file {path}; correct tasks.source")
    return path.stat().st_mtime_ns


@functools.lru_cache(maxsize=4)
def _read(path: str, stamp: int) -> dict[str, Row]:
    """Id -> row of a file, read again when its time stamp changes. A file of JSON holds a list, .jsonl a row a line."""
    try:
        rows = list(_READERS[Path(path).suffix](path))
        found = {row["instance_id"]: row for row in rows}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{path}: not a table of tasks ({type(error).__name__}: {error})") from error
    if len(found) != len(rows):
        raise DataError(f"{path}: {len(rows) - len(found)} tasks are there twice")
    return found


def _parquet(path: str) -> Iterator[Row]:
    from datasets import load_dataset

    return iter(load_dataset("parquet", data_files=path, split="train", streaming=True))


def _json(path: str) -> Sequence[Row]:
    return json.loads(Path(path).read_text(encoding="utf-8"))


def _jsonl(path: str) -> Iterator[Row]:
    with open(path, encoding="utf-8") as file:
        yield from (json.loads(line) for line in file if line.strip())


_READERS = {".parquet": _parquet, ".json": _json, ".jsonl": _jsonl}  # one for each of TASK_FILES

# --- the hub --------------------------------------------------------------------------------------------------


def fetch(dataset: Dataset) -> Path:
    """Stream a data set from the hub into the cache, whole or not at all; returns the file.

    Raises:
        EnvironmentProblem: the hub cannot be reached, or refuses; says how to go on without it.
    """
    folder = paths.writable(paths.cache() / "tasks")
    try:
        commit, rows = _stream(dataset)
    except Exception as error:  # datasets, huggingface_hub and their transport have no common base of errors
        raise EnvironmentProblem(
            f"cannot fetch {dataset.hub_id} from the Hugging Face hub ({type(error).__name__}: {error}); check the "
            f"network, or copy its {dataset.split} split to {folder / dataset.name}.parquet (or .json, .jsonl)"
        ) from error
    path = _write(folder / f"{dataset.name}.jsonl", rows)
    known = {"dataset": dataset.hub_id, "split": dataset.split, "commit": commit, "rows": len(rows)}
    _write(folder / f"{dataset.name}.origin.json", [known | {"file": path.name, "sha256": file_sha256(path)}])
    return path


def _stream(dataset: Dataset) -> tuple[str, list[Row]]:
    """The commit that the hub has now, and its rows."""
    from huggingface_hub import HfApi

    commit = HfApi().dataset_info(dataset.hub_id).sha  # answers quickly where there is no network
    from datasets import load_dataset

    return commit, list(load_dataset(dataset.hub_id, split=dataset.split, revision=commit, streaming=True))


def _write(path: Path, rows: Sequence[Row]) -> Path:
    """One row a line, whole or not at all."""
    return write_text(path, "".join(json.dumps(row, sort_keys=True, default=str) + "\n" for row in rows))
