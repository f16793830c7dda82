"""The store: whole files or none, nothing edited goes unnoticed, and another configuration stays out."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from dagger_nb import store
from dagger_nb.errors import DataError, EnvironmentProblem
from dagger_nb.records import Action, Label, Missing, StopReason, Trajectory, Turn
from dagger_nb.store import CohortRecord, RunStore, read_cohort, rounds_to_train_on, write_json, write_text

ACTION = Action("Look.", "execute_bash", {"command": "ls"})
ODD = "next\x85line\u2028separator\u2029\r\n\x1c\x00 sha256: \U0001f600"  # whatever a student may print


def record(name: str = "a") -> CohortRecord:
    turn = Turn(0, "student", ACTION, ODD, (1, 2), 3, 0.6, 0.1)
    trajectory = Trajectory(name, 0, 1, "base", (turn,), StopReason.TURNS, ODD, 9)
    label = Label(name, 0, 1, "base", 0, "student", 0.6, "oracle-1", "t", ACTION, (4,), True)
    return CohortRecord((trajectory,), (label,), {(name, 0, 0): Action("", "", raw=ODD, error="e")})


@pytest.fixture
def run(tmp_path) -> RunStore:
    return RunStore(tmp_path / "run", {"seed": 0, "lists": (1, 2)})


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


# --- what is written is what is read --------------------------------------------------------------------------


def test_a_cohort_survives_the_disk_and_equal_cohorts_are_equal_bytes(run, tmp_path):
    path = run.write_cohort("rounds/01", 0, record())
    assert run.read_cohort("rounds/01", 0) == record()
    assert run.read_cohort("rounds/01", 1) is None
    other = RunStore(tmp_path / "other", {}).write_cohort("rounds/01", 0, record())
    assert path.read_bytes() == other.read_bytes()


def test_an_empty_cohort_survives_too(run):
    run.write_cohort("rounds/01", 0, CohortRecord((), (), {}))
    assert run.read_cohort("rounds/01", 0) == CohortRecord((), (), {})


def test_a_label_that_could_not_be_had_is_kept_as_missing(run):
    missing = Missing("a", 0, 1, "base", 0, "student", "oracle-1", "budget", ODD)
    found = replace(record(), missing=(missing,))
    run.write_cohort("rounds/01", 0, found)
    assert run.read_cohort("rounds/01", 0) == found != record()


def test_an_episode_that_is_run_again_takes_its_place_with_all_that_belongs_to_it():
    def joined(*parts: CohortRecord) -> CohortRecord:
        rows = [tuple(row for part in parts for row in getattr(part, name)) for name in ("trajectories", "labels")]
        shadows = {key: action for part in parts for key, action in part.shadows.items()}
        return CohortRecord(*rows, shadows, tuple(row for part in parts for row in part.missing))

    spoilt = record("b")
    spoilt = replace(
        spoilt,
        trajectories=(replace(spoilt.trajectories[0], stop=StopReason.INFRASTRUCTURE),),
        missing=(Missing("b", 0, 1, "base", 1, "student", "oracle-1", "no answer", ""),),
    )
    good = replace(record("b"), shadows={("b", 0, 1): ACTION})
    assert joined(record("a"), spoilt, record("c")).mended(good) == joined(record("a"), good, record("c"))


def test_one_process_at_a_time_works_in_a_run_and_a_killed_one_lets_go(run):
    script = "import sys, time; from dagger_nb.store import RunStore; from pathlib import Path\n"
    script += "run = RunStore(Path(sys.argv[1]), {'seed': 0, 'lists': (1, 2)})\n"
    script += "with run.alone(): print('in', flush=True); time.sleep(60)"
    before = files(run.root)
    with subprocess.Popen([sys.executable, "-c", script, str(run.root)], stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout.readline() == "in\n"
        with pytest.raises(EnvironmentProblem, match="another process works in .*run; wait until"), run.alone():
            raise AssertionError
        other.kill()
    with run.alone():
        pass
    with run.alone():  # and again
        assert files(run.root) == before


def test_cohorts_come_in_order_whenever_they_were_written(run):
    for number in (11, 2, 0):
        run.write_cohort("rounds/01", number, record(str(number)))
    (run.root / "rounds/01/index.json").write_text("{}")
    assert [found.trajectories[0].instance_id for found in run.cohorts("rounds/01")] == ["0", "2", "11"]


@pytest.mark.parametrize("share", [0.0, 0.3, 0.7, 0.999])
def test_a_torn_file_is_named_and_refused(run, share):
    path = run.write_cohort("rounds/01", 0, record())
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * share)])
    with pytest.raises(DataError, match="0000.jsonl is torn or was edited"):
        run.read_cohort("rounds/01", 0)


def test_an_edited_file_is_named_and_refused(run):
    path = run.write_cohort("rounds/01", 0, record())
    for old, new in ((b'"draw":0.1', b'"draw":0.9'), (b"ls", b"l\xff"), (b"\n", b"\n\n"), (b"sha256:", b"")):
        whole = path.read_bytes()
        path.write_bytes(whole.replace(old, new, 1))
        with pytest.raises(DataError, match="0000.jsonl"):
            run.read_cohort("rounds/01", 0)
        path.write_bytes(whole)


@pytest.mark.parametrize(
    "body",
    [b"", b"\n", b"{}\n", b"hello\n", b"\xff\n", b'{"type":"Trajectory"}\n{"type":"Shadows","rows":[]}\n', b"[]\n"],
)
def test_a_foreign_file_with_a_right_checksum_is_refused(tmp_path, body):
    path = tmp_path / "0000.jsonl"
    path.write_bytes(body + b"sha256:" + hashlib.sha256(body).hexdigest().encode() + b"\n")
    with pytest.raises(DataError, match="0000.jsonl"):
        read_cohort(path)


# --- configurations ------------------------------------------------------------------------------------------


def test_the_same_configuration_finds_its_folder_and_another_is_refused(run):
    RunStore(run.root, {"lists": [1, 2], "seed": 0})
    before = files(run.root)
    with pytest.raises(DataError, match=r"another configuration \(differs in extra, seed\)"):
        RunStore(run.root, {"seed": 1, "lists": [1, 2], "extra": 3})
    assert files(run.root) == before


def test_a_torn_configuration_is_named(run):
    path = run.root / "config.json"
    path.write_text(path.read_text()[:-5])
    with pytest.raises(DataError, match=r"config\.json is not valid JSON"):
        RunStore(run.root, {"seed": 0, "lists": [1, 2]})


# --- aggregation ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("mode", "window", "rounds"),
    [
        ("union", 2, [1, 2, 3, 4]),
        ("current", 2, [4]),
        ("window", 1, [4]),
        ("window", 3, [2, 3, 4]),
        ("window", 9, [1, 2, 3, 4]),
    ],
)
def test_aggregation_is_one_setting(mode, window, rounds):
    assert rounds_to_train_on(4, mode, window) == rounds


def test_the_index_is_ordered_and_guards_what_it_names(run):
    for round_ in (2, 1):
        for cohort in (1, 0):
            run.write_cohort(f"rounds/{round_:02d}", cohort, record(f"{round_}{cohort}"))
    entries = run.entries([1, 2])
    assert [entry.file for entry in entries] == [f"rounds/0{r}/000{c}.jsonl" for r in (1, 2) for c in (0, 1)]
    assert [found.trajectories[0].instance_id for found in run.load(entries)] == ["10", "11", "20", "21"]
    assert run.entries([2]) == entries[2:]
    run.write_cohort("rounds/01", 1, record("changed"))
    with pytest.raises(DataError, match="changed since it was indexed"):
        list(run.load(entries))
    run.cohort_path("rounds/01", 1).unlink()
    with pytest.raises(DataError, match="0001.jsonl is missing"):
        list(run.load(entries))


def test_done_comes_last_and_the_manifest_names_every_file(run, monkeypatch):
    run.write_cohort("rounds/01", 0, record())
    written = []
    keep = store.write_text
    monkeypatch.setattr(store, "write_text", lambda path, text: written.append(path.name) or keep(path, text))
    assert not run.done
    run.finish({"git": "x"})
    assert run.done and written == ["manifest.json", "DONE"]
    named = json.loads((run.root / "manifest.json").read_text())["files"]
    assert named == {
        name: hashlib.sha256(data).hexdigest()
        for name, data in files(run.root).items()
        if name not in ("DONE", "manifest.json")
    }


# --- a disk that says no -------------------------------------------------------------------------------------


@pytest.mark.parametrize("where", ["replace", "fsync"])
@pytest.mark.parametrize(
    ("code", "advice"), [(errno.ENOSPC, "disk is full"), (errno.EACCES, "no permission"), (errno.EIO, "error")]
)
def test_a_failing_write_leaves_what_was_there_and_nothing_half_written(run, monkeypatch, where, code, advice):
    run.write_cohort("rounds/01", 0, record())
    before = files(run.root)

    def refuse(*_: object) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, where, refuse)
    for number in (0, 1):
        with pytest.raises(EnvironmentProblem, match=advice) as problem:
            run.write_cohort("rounds/01", number, record("new"))
        assert f"000{number}.jsonl" in str(problem.value)
    monkeypatch.undo()
    assert files(run.root) == before


def test_a_file_in_the_way_of_a_folder_is_told(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(EnvironmentProblem, match="cannot write .*x.json"):
        write_json(tmp_path / "file" / "x.json", {})


def test_a_text_that_cannot_be_encoded_leaves_nothing_behind(tmp_path):
    with pytest.raises(UnicodeEncodeError):
        write_text(tmp_path / "x", "\ud800")
    assert list(tmp_path.iterdir()) == []


KILLED = """
import os, signal, sys
from pathlib import Path
from dagger_nb import store
keep = getattr(os, sys.argv[2])
def kill(*arguments):
    os.kill(os.getpid(), signal.SIGKILL)
setattr(os, sys.argv[2], kill)
store.write_text(Path(sys.argv[1]), "new" * 100_000)
"""


@pytest.mark.parametrize("where", ["fsync", "replace"])
def test_a_killed_write_leaves_the_old_file_whole(tmp_path, where):
    target = write_text(tmp_path / "0000.jsonl", "old")
    done = subprocess.run(
        [sys.executable, "-c", KILLED, str(target), where], cwd=Path(__file__).parents[1], check=False
    )
    assert done.returncode == -9
    assert target.read_text() == "old"
    assert sorted(path.name for path in tmp_path.glob("[0-9]*.jsonl")) == ["0000.jsonl"]


def test_what_a_killed_write_left_is_not_in_the_manifest(run):
    (run.root / ".tmp_x").write_text("half")
    run.finish({})
    assert list(json.loads((run.root / "manifest.json").read_text())["files"]) == ["config.json"]
