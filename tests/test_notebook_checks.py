"""What a Checks cell asks of labels: all of a script that cannot fail, an honest count of a model that can."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace

import pytest

from dagger_nb import config, notebook
from dagger_nb.evaluation.grades import Grade, Status
from dagger_nb.labelling import tally
from dagger_nb.records import Action, Label, Missing, StopReason, Trajectory, Turn
from dagger_nb.store import CohortRecord

LAPTOP, SERVED = config.load("tiny"), config.load("qwen3-4b")
CALL = Action("", "execute_bash", {"command": "ls"})
BROKEN = Action("", "", error="no call")


def cohort(turns: int = 5, *, broken: int | None = None, name: str = "task") -> CohortRecord:
    """An episode of the teacher alone, each state labelled with what was executed, but for a turn that was broken."""
    actions = [BROKEN if index == broken else CALL for index in range(turns)]
    taken = tuple(Turn(index, "teacher", action, "", (1,), 1) for index, action in enumerate(actions))
    path = Trajectory(name, 0, 1, "none", taken, StopReason.FINISH, "", 5)
    lineage = {"instance_id": name, "attempt": 0, "round": 1, "policy": "none", "actor": "teacher", "teacher": "t"}
    labels = tuple(
        Label(**lineage, turn=turn, beta=1.0, template="", action=CALL, token_ids=(1,), lesson=turn == broken)
        for turn in range(turns)
    )
    return CohortRecord((path,), labels, {})


def without(record: CohortRecord, turn: int, *, told: bool) -> CohortRecord:
    """The record with a label less, which may be recorded as missing."""
    (lost,) = [label for label in record.labels if label.turn == turn]
    lineage = {name: getattr(lost, name) for name in ("instance_id", "attempt", "round", "policy", "actor", "teacher")}
    missing = (Missing(**lineage, turn=turn, reason="malformed", detail="no call"),) if told else ()
    return replace(record, labels=tuple(label for label in record.labels if label is not lost), missing=missing)


@pytest.mark.parametrize("told", [True, False])
def test_a_script_must_label_every_state(told: bool) -> None:
    notebook.check_labels([cohort()], LAPTOP)
    with pytest.raises(AssertionError, match="every visited state has one label"):
        notebook.check_labels([without(cohort(), 2, told=told)], LAPTOP)
    with pytest.raises(AssertionError):
        notebook.check_labels([replace(cohort(), labels=cohort().labels * 2)], LAPTOP)


def test_a_model_may_miss_labels_but_every_state_is_accounted_for(capsys: pytest.CaptureFixture[str]) -> None:
    notebook.check_labels([without(cohort(), 2, told=True)], SERVED)
    assert "4 labels of 5 states; missing: 1 malformed" in capsys.readouterr().out
    notebook.check_labels([cohort()], SERVED)
    assert "missing: none" in capsys.readouterr().out
    with pytest.raises(AssertionError, match="recorded as missing"):
        notebook.check_labels([without(cohort(), 2, told=False)], SERVED)


def test_only_the_states_that_were_asked_for_count() -> None:
    some = config.load("qwen3-4b", {"labels.states": "kth", "labels.k": 2})
    record = cohort()
    even = replace(record, labels=record.labels[::2])
    notebook.check_labels([even], some)
    for wrong in (record, replace(record, labels=record.labels[1::2])):
        with pytest.raises(AssertionError):
            notebook.check_labels([wrong], some)


def test_demonstrations_are_what_was_executed_and_a_turn_that_stayed_malformed_has_no_label() -> None:
    differing = cohort(broken=3)
    for settings in (LAPTOP, SERVED):
        notebook.check_demonstrations([cohort()], settings)
        with pytest.raises(AssertionError, match="agrees with itself"):
            notebook.check_demonstrations([differing], settings)
    found = tally([differing], "every", 1)
    assert (found.asked, found.labels, found.differing) == (5, 5, 1) and found.complete
    notebook.check_demonstrations([without(differing, 3, told=True)], SERVED)


def test_labels_beyond_the_context_are_refused_or_counted(capsys: pytest.CaptureFixture[str]) -> None:
    notebook.check_lengths([0, 0], LAPTOP)
    for dropped in ([0, 1], [float("nan")]):
        with pytest.raises(AssertionError, match="longer than the context"):
            notebook.check_lengths(dropped, LAPTOP)
    notebook.check_lengths([0, 3], SERVED)
    assert "3 labels were longer than the context" in capsys.readouterr().out


def grades(**statuses: Status) -> list[Grade]:
    return [Grade(name, status) for name, status in statuses.items()]


GOOD, BAD, LOST = Status.RESOLVED, Status.UNRESOLVED, Status.INFRASTRUCTURE


def test_every_gold_patch_of_a_generated_task_is_resolved_and_no_note_is() -> None:
    good, bad = grades(a=GOOD, b=GOOD), grades(a=BAD, b=BAD)
    assert notebook.check_controls(good, good, bad, LAPTOP) == ()
    for status in (BAD, LOST, Status.PATCH_FAILED):
        with pytest.raises(AssertionError, match="every gold patch is resolved"):
            notebook.check_controls(grades(a=GOOD, b=status), good, bad, LAPTOP)
    with pytest.raises(AssertionError, match="a note is no repair"):
        notebook.check_controls(good, good, grades(a=BAD, b=GOOD), LAPTOP)


def test_doubtful_real_instances_are_named_and_counted(capsys: pytest.CaptureFixture[str]) -> None:
    assert SERVED.tasks.source == "swe-gym"
    gold, again = grades(a=GOOD, b=BAD, c=LOST, d=GOOD, e=GOOD), grades(a=GOOD, b=BAD, c=GOOD, d=GOOD, e=BAD)
    note = grades(a=BAD, b=BAD, c=LOST, d=GOOD, e=BAD)
    assert notebook.check_controls(gold, again, note, SERVED) == ("b", "c", "d", "e")
    said = capsys.readouterr().out
    assert "resolved: 3 of 5; doubtful instances: b (gold: unresolved), c (gold: infrastructure)" in said
    assert "d (resolved by a note), e (gold, graded again: unresolved)" in said
    good, bad = grades(a=GOOD), grades(a=BAD)
    assert notebook.check_controls(good, good, bad, SERVED) == ()
    with pytest.raises(AssertionError, match="not doubtful"):
        notebook.check_controls(bad, bad, bad, SERVED)


def test_the_servers_of_settings_that_a_reader_has_changed_make_room(monkeypatch):
    class Crew:
        def __init__(self, settings: object) -> None:
            self.up = True

        def rest(self) -> None:
            self.up = False

        def close(self) -> None:
            self.up = False

    monkeypatch.setattr(notebook, "_executors", {})
    monkeypatch.setattr(notebook, "executor", Crew)
    first = notebook.fleet(SERVED)
    assert notebook.fleet(SERVED) is first and first.up
    assert notebook.fleet(config.load("qwen3-4b", {"labels.states": "student"})).up and not first.up


SCRIPT = """
from dagger_nb import config, notebook
if __name__ == "__main__":
    fleet = notebook.fleet(config.load("smoke", {"workers": 1}))
    fleet._pool.submit(abs, -1).result()
"""


@pytest.mark.slow
def test_a_script_that_keeps_the_fleet_to_its_end_ends_without_a_word(tmp_path):
    (tmp_path / "script.py").write_text(SCRIPT)
    done = subprocess.run([sys.executable, tmp_path / "script.py"], capture_output=True, text=True, timeout=300)
    assert (done.returncode, done.stderr) == (0, "")
