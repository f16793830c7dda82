"""The same predictions judged by swebench's command line in Docker and by the project's own grading: equal verdicts."""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
from docker_images import load, of_task

from dagger_nb.errors import EnvironmentProblem
from dagger_nb.evaluation.grades import Grade, Status
from dagger_nb.evaluation.grading import grade_all, without_pytest
from dagger_nb.evaluation.harness import write_inputs
from dagger_nb.evaluation.official import Official, evaluate, harness_for
from dagger_nb.evaluation.predictions import Prediction
from dagger_nb.records import Task
from dagger_nb.sandboxes.protocol import SandboxFactory
from dagger_nb.tasks import tasks
from dagger_nb.tasks.git import diff

INSTANCES = 104
WORKERS = 6
PATIENT_S = 300


def gold(task: Task) -> str:
    return task.patch


def nothing(task: Task) -> str:
    return ""


def partly(task: Task) -> str:
    """The gold patch of the first file alone; the whole of it where there is one file only."""
    parts = task.patch.split("diff --git ")[1:]
    return "diff --git " + parts[0]


def wrong(task: Task) -> str:
    """A change to a source file that applies and repairs nothing."""
    path = min(path for path in task.files if path.endswith(".py") and not path.startswith("tests/"))
    return diff(task.files, {path: task.files[path] + "\n# nothing is repaired\n"})


def breaks(task: Task) -> str:
    """The gold patch, and a syntax error beside it."""
    path = min(path for path in task.files if path.endswith("__init__.py"))
    return task.patch + diff(task.files, {path: task.files[path] + "def broken(:\n"})


def does_not_apply(task: Task) -> str:
    return task.patch.replace("\n-", "\n-never there ")


def edits_tests(task: Task) -> str:
    """The gold patch, and every visible test emptied."""
    tests = {path: "def test_nothing():\n    pass\n" for path in task.files if path.startswith("tests/test_")}
    return task.patch + diff(task.files, tests)


def garbage(task: Task) -> str:
    return "I would change the minus sign.\n"


KINDS = (gold, wrong, partly, nothing, does_not_apply, gold, breaks, edits_tests, garbage)


@pytest.fixture(scope="module")
def instances(client, base) -> list[Task]:
    found = tasks("test", INSTANCES)
    load(client, {task.image: of_task(base, task) for task in found})
    return found


@pytest.fixture(scope="module")
def predictions(instances) -> list[Prediction]:
    rows = enumerate(instances)
    return [Prediction(task.instance_id, "mixed", KINDS[number % len(KINDS)](task)) for number, task in rows]


def judged(folder: Path, instances: list[Task], predictions: list[Prediction], factory: SandboxFactory) -> Official:
    how = {"workers": WORKERS, "timeout_s": PATIENT_S, "gold_runs": 0}
    return evaluate(folder, instances, {"mixed": predictions}, factory, **how)["mixed"]


def test_both_ways_of_grading_give_the_same_verdicts(factory, instances, predictions, tmp_path):
    began = time.monotonic()
    found = judged(tmp_path, instances, predictions, factory)
    official_s = time.monotonic() - began
    pairs = [(task, row.model_patch) for task, row in zip(instances, predictions, strict=True)]
    began = time.monotonic()
    from_files = grade_all(pairs, factory, jobs=4, timeout_s=PATIENT_S)
    own_s = time.monotonic() - began
    assert len(found.grades) == INSTANCES
    theirs = {row.instance_id: row for row in found.grades}
    ours = {row.instance_id: row for row in from_files}
    assert {name: row.status for name, row in ours.items()} == {name: row.status for name, row in theirs.items()}
    assert {name: sorted_report(row) for name, row in ours.items()} == {
        name: sorted_report(row) for name, row in theirs.items()
    }
    counts = Counter(row.status.value for row in found.grades)
    assert {status.value for status in Status} - counts.keys() == {"tampered", "infrastructure"}
    print(f"{INSTANCES} instances, {dict(counts)}: swebench {official_s:.0f} s, ours {own_s:.0f} s")
    began = time.monotonic()
    assert judged(tmp_path, instances, predictions, factory) == found  # finds every report
    assert time.monotonic() - began < official_s / 10


def sorted_report(row: Grade) -> dict[str, dict[str, list[str]]]:
    return {kind: {word: sorted(names) for word, names in part.items()} for kind, part in row.report.items()}


def test_tasks_from_their_images_are_graded_alike_too(factory, instances, predictions):
    few = list(zip(instances, predictions, strict=True))[:9]
    from_files = grade_all([(task, row.model_patch) for task, row in few], factory, jobs=4, timeout_s=PATIENT_S)
    bare = [(replace(task, files={}), row.model_patch) for task, row in few]
    assert [row.status for row in grade_all(bare, factory, jobs=4, timeout_s=PATIENT_S)] == [
        r.status for r in from_files
    ]


def test_broken_instances_are_marked_and_lost_ones_are_no_failed_tasks(client, factory, instances, tmp_path):
    good, rotten, lost = instances[:3]
    rotten = replace(rotten, FAIL_TO_PASS=("tests/test_gone.py::test_gone",))
    lost = replace(lost, image="127.0.0.1:1/nowhere:latest")
    rows = [Prediction(task.instance_id, "m", task.patch) for task in (good, rotten, lost)]
    said: list[str] = []
    how = {"workers": 3, "timeout_s": PATIENT_S, "gold_runs": 2, "log": said.append}
    killed = write_inputs(tmp_path / "m", [good, rotten, lost], rows).run_id  # an earlier process left a container
    client.api.create_container(good.image, ["true"], name=f"sweb.eval.left.{killed}")
    found = evaluate(tmp_path, [good, rotten, lost], {"m": rows}, factory, **how)["m"]
    assert {row.instance_id: row.status for row in found.grades} == {
        good.instance_id: Status.RESOLVED,
        rotten.instance_id: Status.UNRESOLVED,
        lost.instance_id: Status.INFRASTRUCTURE,
    }
    assert found.broken == (rotten.instance_id,) and [row.instance_id for row in found.undoubted] == [
        good.instance_id,
        lost.instance_id,
    ]
    assert found.flaky == () and "1 lost to the infrastructure" in said[-1]
    assert not [box for box in client.containers.list(all=True) if "sweb.eval" in box.name]


def test_tests_of_another_runner_are_graded_by_the_command_line(client, base, factory, tmp_path):
    """Through the same call as others; one without an image is lost to the infrastructure and is asked for again."""
    found = tasks("test", 4)
    load(client, {task.image: of_task(base, task) for task in found})
    other = 'python -c "import pytest,sys;sys.exit(pytest.main(sys.argv[1:]))"'
    odd = [replace(task, eval_script=task.eval_script.replace("python -m pytest", other)) for task in found]
    assert without_pytest(odd) == odd
    odd[3] = replace(odd[3], image="127.0.0.1:1/nowhere:latest")
    pairs = [(task, kind(task)) for task, kind in zip(odd, (gold, wrong, does_not_apply, gold), strict=True)]
    harness = harness_for(factory, tmp_path / "harness", workers=2)
    book = tmp_path / "grades.jsonl"
    for lost in (Status.INFRASTRUCTURE, Status.RESOLVED):
        grades = grade_all([(found[0], gold(found[0])), *pairs], factory, store_path=book, harness=harness)
        assert [row.status for row in grades] == [
            Status.RESOLVED, Status.RESOLVED, Status.UNRESOLVED, Status.PATCH_FAILED, lost,
        ]  # fmt: skip
        pairs[3] = (replace(odd[3], image=found[3].image), pairs[3][1])


def test_without_a_daemon_nothing_is_started(instances, factory, tmp_path, monkeypatch):
    monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path}/none.sock")
    rows = [Prediction(instances[0].instance_id, "m", instances[0].patch)]
    with pytest.raises(EnvironmentProblem, match="no Docker daemon answers"):
        evaluate(tmp_path, instances, {"m": rows}, factory, workers=1, log=lambda line: None)
