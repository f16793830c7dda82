"""Where a run lives on disk: the one place that knows file names.

    data/runs/<recipe>-s<seed>-<8 hex of the configuration's digest>/
        config.json                   what decides the results, written first
        rounds/<round>/<cohort>.jsonl trajectories, labels and shadows of one cohort, written whole
        rounds/<round>/adapter/       the student after the round, with fit.json
        evaluation/<name>/<cohort>.jsonl, grades.jsonl
        manifest.json                 provenance and the SHA-256 of every file
        DONE                          written last; a folder without it is incomplete

Files are never changed once written. A file appears under its name only when it is complete and on disk, so a
killed run leaves whole files or none: resuming means computing the files that are missing.
"""

from __future__ import annotations

import dataclasses
import errno
import fcntl
import hashlib
import json
import os
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dagger_nb.errors import DataError, EnvironmentProblem
from dagger_nb.records import FORMAT, Action, Label, Missing, Trajectory, from_json, to_json

CHECKSUM = "sha256:"


@dataclass(frozen=True, slots=True)
class CohortRecord:
    """What one cohort left: trajectories in plan order, their labels, and shadows by (instance, attempt, turn).

    `missing` are the states that were to be labelled and could not be.
    """

    trajectories: tuple[Trajectory, ...]
    labels: tuple[Label, ...]
    shadows: Mapping[tuple[str, int, int], Action]
    missing: tuple[Missing, ...] = ()

    def mended(self, again: CohortRecord) -> CohortRecord:
        """This record with episodes that were run again, and all that belongs to them, in their places."""
        fresh = {trajectory.key: trajectory for trajectory in again.trajectories}
        place = {trajectory.key: number for number, trajectory in enumerate(self.trajectories)}

        def merged(old: Sequence[Any], new: Sequence[Any]) -> tuple[Any, ...]:
            kept = [row for row in old if (row.instance_id, row.attempt) not in fresh]
            return tuple(sorted([*kept, *new], key=lambda row: place[row.instance_id, row.attempt]))

        return CohortRecord(
            tuple(fresh.get(trajectory.key, trajectory) for trajectory in self.trajectories),
            merged(self.labels, again.labels),
            {key: action for key, action in self.shadows.items() if key[:2] not in fresh} | dict(again.shadows),
            merged(self.missing, again.missing),
        )


@dataclass(frozen=True, slots=True)
class Entry:
    """One file of an aggregated data set: where it is, what it must contain, and its round."""

    file: str
    sha256: str
    round: int


class RunStore:
    """One run folder. `root` is the folder, `config` everything that decides the results."""

    def __init__(self, root: Path, config: Mapping[str, Any]) -> None:
        self.root = root
        self.config = json.loads(json.dumps(config))
        self._claim()

    def _claim(self) -> None:
        path = self.root / "config.json"
        if not path.exists():
            write_json(path, self.config)
        found = read_json(path)
        if found != self.config:
            keys = sorted(k for k in found.keys() | self.config.keys() if found.get(k) != self.config.get(k))
            raise DataError(
                f"{self.root} belongs to another configuration (differs in {', '.join(keys)}); "
                "choose another folder or remove that one"
            )

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Work in this run that no other process may do at the same time. Raises EnvironmentProblem where one does."""
        with alone(self.root):
            yield

    # -- cohorts

    def cohort_path(self, group: str, cohort: int) -> Path:
        """`group` is 'rounds/01' or 'evaluation/test-greedy'."""
        return self.root / group / f"{cohort:04d}.jsonl"

    def write_cohort(self, group: str, cohort: int, record: CohortRecord) -> Path:
        lines = [to_json(row) for row in (*record.trajectories, *record.labels, *record.missing)]
        shadows = [[*key, dataclasses.asdict(action)] for key, action in sorted(record.shadows.items())]
        lines.append(json.dumps({"format": FORMAT, "type": "Shadows", "rows": shadows}, sort_keys=True))
        body = "".join(line + "\n" for line in lines)
        footer = CHECKSUM + hashlib.sha256(body.encode()).hexdigest() + "\n"
        return write_text(self.cohort_path(group, cohort), body + footer)

    def read_cohort(self, group: str, cohort: int) -> CohortRecord | None:
        """The cohort's record, or None when it was never finished. Raises DataError when it was edited or torn."""
        path = self.cohort_path(group, cohort)
        return read_cohort(path) if path.exists() else None

    def cohorts(self, group: str) -> Iterator[CohortRecord]:
        """Every finished cohort of a group, in order."""
        for path in sorted((self.root / group).glob("[0-9]*.jsonl")):
            yield read_cohort(path)

    # -- aggregation

    def entries(self, rounds: Sequence[int]) -> list[Entry]:
        """The ordered index of the cohorts of some rounds."""
        files = [(r, path) for r in rounds for path in sorted((self.root / round_group(r)).glob("[0-9]*.jsonl"))]
        return [Entry(str(path.relative_to(self.root)), file_sha256(path), r) for r, path in files]

    def load(self, entries: Iterable[Entry]) -> Iterator[CohortRecord]:
        """The cohorts of an index. Raises DataError when a file is not the one that was indexed."""
        for entry in entries:
            path = self.root / entry.file
            if not path.exists() or file_sha256(path) != entry.sha256:
                raise DataError(f"{path} is missing or was changed since it was indexed; remove the run and repeat it")
            yield read_cohort(path)

    # -- the end

    def finish(self, manifest: Mapping[str, Any]) -> None:
        """Write the manifest with the SHA-256 of every file, then DONE."""
        files = {
            str(path.relative_to(self.root)): file_sha256(path)
            for path in sorted(self.root.rglob("*"))
            if path.is_file() and path.name not in ("manifest.json", "DONE") and path.name[0] != "."  # a killed write's
        }
        write_json(self.root / "manifest.json", {**manifest, "files": files})
        write_text(self.root / "DONE", file_sha256(self.root / "manifest.json") + "\n")

    @property
    def done(self) -> bool:
        return (self.root / "DONE").exists()


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Work in a folder that no other process may do at the same time. Raises EnvironmentProblem where one does."""
    opened = os.open(folder, os.O_RDONLY)
    try:
        _lock(opened, folder)  # let go when this process ends, however it ends
        yield
    finally:
        os.close(opened)


def _lock(opened: int, folder: Path) -> None:
    try:
        fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise EnvironmentProblem(
            f"another process works in {folder}; wait until it has finished, or end it, and run this again"
        ) from error


def round_group(round_: int) -> str:
    return f"rounds/{round_:02d}"


def rounds_to_train_on(round_: int, aggregation: str, window: int) -> list[int]:
    """Which rounds a student is trained on after `round_`: all (union), the last `window`, or the current one.

    >>> rounds_to_train_on(4, "union", 2), rounds_to_train_on(4, "window", 2), rounds_to_train_on(4, "current", 2)
    ([1, 2, 3, 4], [3, 4], [4])
    """
    first = {"union": 1, "window": max(1, round_ - window + 1), "current": round_}[aggregation]
    return list(range(first, round_ + 1))


# --- files ------------------------------------------------------------------------------------------------


def read_cohort(path: Path) -> CohortRecord:
    """Read and verify one cohort file. Raises DataError, naming the file, when it was torn or edited, or is foreign."""
    body, mark, checksum = path.read_bytes().rpartition(CHECKSUM.encode())
    if not mark or hashlib.sha256(body).hexdigest().encode() != checksum.strip():
        raise DataError(f"{path} is torn or was edited (its checksum does not fit); remove it to compute it again")
    try:
        return _cohort(body.decode())
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path} is no cohort of this version ({error}); remove the run and repeat it") from error


def _cohort(body: str) -> CohortRecord:
    *lines, last = body.removesuffix("\n").split("\n")  # not splitlines: a text may hold other line separators
    rows: dict[type, list[Any]] = {Trajectory: [], Label: [], Missing: []}
    kinds = {kind.__name__: kind for kind in rows}
    for line in lines:
        kind = kinds[json.loads(line)["type"]]
        rows[kind].append(from_json(line, kind))
    shadows = {(i, a, t): Action(**action) for i, a, t, action in json.loads(last)["rows"]}
    return CohortRecord(tuple(rows[Trajectory]), tuple(rows[Label]), shadows, tuple(rows[Missing]))


def write_text(path: Path, text: str) -> Path:
    """Write a file whole or not at all: to a temporary name, to disk, then renamed.

    Raises:
        EnvironmentProblem: the disk is full or the folder may not be written; nothing was changed.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", dir=path.parent, prefix=".", delete=False, encoding="utf-8") as file:
            try:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
                os.chmod(file.name, 0o666 & ~_umask())
                os.replace(file.name, path)
            except BaseException:
                os.unlink(file.name)
                raise
    except OSError as error:
        raise EnvironmentProblem(f"cannot write {path}: {_advice(error)}") from error
    return path


def _umask() -> int:
    """The process's umask, which can only be read by setting it."""
    mask = os.umask(0o022)
    os.umask(mask)
    return mask


def _advice(error: OSError) -> str:
    if error.errno == errno.ENOSPC:
        return "the disk is full; free some space (`dagger-nb clean` lists what can go) and run the same command again"
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return "no permission to write there; change the folder's owner or set DAGGER_NB_HOME to a writable folder"
    return str(error)


def write_json(path: Path, value: Any) -> Path:
    return write_text(path, json.dumps(value, indent=1, sort_keys=True, ensure_ascii=False) + "\n")


def read_json(path: Path) -> Any:
    """Raises DataError, naming the file, when it is missing or not JSON."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise DataError(f"{path} is missing; run the step that makes it first") from error
    except ValueError as error:
        raise DataError(f"{path} is not valid JSON ({error}); remove it and run again") from error


def file_sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def changed_files(folder: Path, files: Mapping[str, str]) -> list[str]:
    """Of `files` (name -> SHA-256, as a manifest has them) those that `folder` lacks or holds with other bytes, sorted.

    Raises:
        OSError: a file cannot be read.
    """
    held = {name: file_sha256(folder / name) for name in files if (folder / name).exists()}
    return sorted(name for name, wanted in files.items() if held.get(name) != wanted)
