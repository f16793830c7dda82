"""The rounds: the same seed gives the same bytes, twice, and also when it is killed and resumed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
import torch

from dagger_nb import config, results, store
from dagger_nb.errors import ConfigError, DataError, EnvironmentProblem
from dagger_nb.evaluation.grades import LOST, Grade, Status
from dagger_nb.evaluation.harness import HarnessRun
from dagger_nb.experiment import EXAMS, Experiment
from dagger_nb.fleet import CohortJob, Executor, Fleet, run_job
from dagger_nb.mixing import BernoulliMixer, SwitchMixer
from dagger_nb.recipes import RECIPES, recipe
from dagger_nb.records import Action, Label, StopReason, Trajectory, Turn
from dagger_nb.sandboxes import local_factory
from dagger_nb.settings import SandboxSettings, Settings
from dagger_nb.store import CohortRecord
from dagger_nb.tasks import generate, tasks

pytestmark = pytest.mark.usefixtures("one_thread")

HERE = Path(__file__).parent

# Four tasks in two rounds; short episodes, most of which end by the turn limit.
SMALL = {
    "tasks.tasks_per_round": 2,
    "tasks.test": 3,
    "dagger.rounds": 2,
    "dagger.schedule": "linear",
    "dagger.filter": "none",
    "dagger.switch_turns_per_round": 2,
    "episode.cohort": 1,
    "episode.max_turns": 4,
    "episode.max_new_tokens": 6,
    "episode.command_timeout_s": 120.0,
    "lora.rank": 2,
    "training.batch_tokens": 2048,
    "threads": 1,
    "workers": 1,
}


class Here(Executor):
    """One worker: this process."""

    def run(self, jobs: Sequence[CohortJob]) -> Iterator[tuple[CohortJob, CohortRecord, float]]:
        for job in jobs:
            yield job, *run_job(job)


def small(base: Path, **overrides: object) -> Settings:
    more = {name.replace("__", "."): value for name, value in overrides.items()}
    return config.load("smoke", {"student.path": str(base), **SMALL, **more})


def silent(line: str) -> None:
    pass


def experiment(base: Path, name: str = "dagger", **overrides: object) -> Experiment:
    return Experiment(name, small(base, **overrides), Here(), silent)


def content(folder: Path) -> dict[str, bytes]:
    """Every file of a run that must be equal from run to run (reports tell seconds, the manifest hashes reports)."""
    told = ("manifest.json", "DONE", "fit.json")
    return {
        str(p.relative_to(folder)): p.read_bytes()
        for p in sorted(folder.rglob("*"))
        if p.is_file() and p.name not in told
    }


# --- twice, and killed ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def reference(tiny_base, tmp_path_factory) -> tuple[Path, dict[str, bytes], dict]:
    """An uninterrupted run: its home, its files, its tables."""
    home = tmp_path_factory.mktemp("reference")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DAGGER_NB_HOME", str(home))
        torch.set_num_threads(1)
        found = experiment(tiny_base)
        found.run()
        tables = results.exam_tables(found, "test") | results.training_tables(found)
    return home, content(found.store.root), {name: table.to_csv() for name, table in tables.items() if name != "fits"}


def test_the_same_seed_gives_the_same_files_adapters_and_tables(reference, tiny_base, own_home):
    _, files, tables = reference
    again = experiment(tiny_base)
    again.run()
    found = results.exam_tables(again, "test") | results.training_tables(again)
    assert {name: table.to_csv() for name, table in found.items() if name != "fits"} == tables
    assert content(again.store.root) == files
    assert any("adapter_model.safetensors" in name for name in files) and again.store.done


RUN = """
import os, signal, sys
sys.path[:0] = [sys.argv[1], sys.argv[2]]
from pathlib import Path
import torch
torch.set_num_threads(1)
import test_experiment as T
kind, count = sys.argv[4], int(sys.argv[5])
module = {"replace": os, "step": torch.optim.AdamW}[kind]
keep, seen = getattr(module, kind), []
def stop(*arguments, **more):
    seen.append(1)
    if len(seen) == count:
        os.kill(os.getpid(), signal.SIGKILL)
    return keep(*arguments, **more)
setattr(module, kind, stop)
found = T.experiment(Path(sys.argv[3]))
found.run()
found.examine("test")
"""


def test_a_run_killed_at_several_points_and_resumed_has_the_same_bytes(reference, tiny_base, own_home):
    """Killed in the first round's second cohort, in the second round's training, and in the exam; then resumed."""
    _, files, _ = reference
    for kind, count in (("replace", 3), ("step", 2), ("replace", 6)):
        arguments = [sys.executable, "-c", RUN, str(HERE), str(HERE.parent), str(tiny_base), kind, str(count)]
        done = subprocess.run(arguments, check=False, capture_output=True, text=True)
        assert done.returncode == -signal.SIGKILL, done.stderr[-2000:]
    resumed = experiment(tiny_base)
    resumed.run()
    resumed.grade("test")
    found = {name: data for name, data in content(resumed.store.root).items() if not Path(name).name.startswith(".")}
    assert found == files


def test_what_is_done_is_not_done_again(reference, tiny_base, monkeypatch):
    home, files, _ = reference
    monkeypatch.setenv("DAGGER_NB_HOME", str(home))

    class Nobody:
        def run(self, jobs: Sequence[CohortJob]) -> Iterator[None]:
            assert not jobs
            yield from ()

    again = Experiment("dagger", small(tiny_base), Nobody(), silent)
    again.run()
    assert len(again.examine("test")) == 3
    assert content(again.store.root) == files


def test_workers_and_budgets_of_exams_are_no_part_of_the_run(reference, tiny_base, monkeypatch):
    home, _, _ = reference
    monkeypatch.setenv("DAGGER_NB_HOME", str(home))
    root = experiment(tiny_base).store.root
    assert experiment(tiny_base, workers=2, tasks__test=2, evaluation__slip_rate=0.5).store.root == root
    limits = {"labels__queries": 5, "labels__money": 2.0, "teacher__timeout_s": 9.0}
    prices = {"labels__price_prompt": 1.0, "labels__price_completion": 1.0}
    operation = {"serving__start_timeout_s": 9.0, "sandbox__images_gb": 9.0}
    assert experiment(tiny_base, **limits, **prices, **operation).store.root == root
    assert experiment(tiny_base, labels__states="student").store.root != root
    assert experiment(tiny_base, training__passes=2).store.root != root
    assert experiment(tiny_base, seed=1).store.root != root


def test_an_exam_of_another_size_is_another_exam(reference, tiny_base, monkeypatch):
    """A budget that ends within a cohort must not find the shorter cohort of a smaller budget, or the reverse."""
    home, _, _ = reference
    monkeypatch.setenv("DAGGER_NB_HOME", str(home))
    for count in (3, 2):
        found = experiment(tiny_base, "base", tasks__test=count, episode__cohort=4)
        ids = [t.instance_id for record in found.examine("test") for t in record.trajectories]
        assert ids == [task.instance_id for task in found.exam_tasks("test")] and len(ids) == count


def test_an_edited_cohort_stops_the_run_with_its_name(tiny_base, own_home):
    first = experiment(tiny_base, tasks__tasks_per_round=1, dagger__rounds=1)
    first.collect(1)
    path = first.store.cohort_path("rounds/01", 0)
    path.write_bytes(path.read_bytes().replace(b'"actor":"teacher"', b'"actor":"student"', 1))
    with pytest.raises(DataError, match="0000.jsonl is torn or was edited"):
        first.collect(1)


def test_a_full_disk_loses_no_finished_cohort(tiny_base, own_home, monkeypatch):
    found = experiment(tiny_base)
    keep, calls = os.replace, []

    def full(*arguments: object) -> None:
        calls.append(1)
        if len(calls) > 1:
            raise OSError(28, "No space left on device")
        keep(*arguments)

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(EnvironmentProblem, match="disk is full"):
        found.collect(1)
    monkeypatch.undo()
    monkeypatch.setenv("DAGGER_NB_HOME", str(own_home))
    assert [path.name for path in sorted((found.store.root / "rounds/01").iterdir())] == ["0000.jsonl"]
    assert len(found.collect(1)) == 2


# --- methods and exams as data -------------------------------------------------------------------------------


def test_every_recipe_trains_on_the_same_tasks(tiny_base, own_home):
    seen = {}
    for name in ("sft", "dagger", "switch"):
        one = experiment(tiny_base, name)
        seen[name] = [task.instance_id for r in range(1, one.recipe.rounds + 1) for task in one.training_tasks(r)]
    assert seen["sft"] == seen["dagger"] == seen["switch"] and len(set(seen["sft"])) == 4
    other = experiment(tiny_base, seed=1)
    assert not set(seen["sft"]) & {task.instance_id for task in other.training_tasks(1)}


def test_recipes_are_data(tiny_base):
    settings = small(tiny_base)
    assert [recipe(name, settings).name for name in RECIPES] == list(RECIPES)
    assert recipe("base", settings).rounds == 0
    sft, dagger, switch = (recipe(name, settings) for name in ("sft", "dagger", "switch"))
    assert (sft.rounds, sft.tasks_per_round) == (1, 4) and (dagger.rounds, dagger.tasks_per_round) == (2, 2)
    assert isinstance(dagger.mixer, BernoulliMixer) and [dagger.mixer.schedule.beta(i) for i in (1, 2)] == [1.0, 0.0]
    assert isinstance(switch.mixer, SwitchMixer) and switch.mixer.longest == settings.episode.max_turns
    with pytest.raises(ConfigError, match="did you mean 'dagger'"):
        recipe("daggr", settings)


def test_another_schedule_is_another_run_of_dagger_alone(tiny_base, own_home):
    for name in RECIPES:
        plain, other = experiment(tiny_base, name), experiment(tiny_base, name, dagger__schedule="constant")
        assert (plain.store.root == other.store.root) == (name != "dagger")
    shorter = [experiment(tiny_base, name, dagger__rounds=1).store.root for name in RECIPES]
    assert [experiment(tiny_base, name).store.root == root for name, root in zip(RECIPES, shorter, strict=True)] == [
        True, False, False, False
    ]  # fmt: skip


def test_an_unknown_exam_is_refused(tiny_base, own_home):
    with pytest.raises(ConfigError, match="unknown exam 'final'"):
        experiment(tiny_base, "base").examine("final")


def test_exams_differ_in_who_acts_and_how(tiny_base, own_home):
    found = experiment(tiny_base, "base", tasks__test=1)
    shadow = found.examine("test-teacher-states")[0]
    assert {turn.actor for turn in shadow.trajectories[0].turns} == {"teacher"}
    assert len(shadow.shadows) == len(shadow.trajectories[0].turns)
    alone, hot = found.examine("test")[0].trajectories[0], found.examine("test-sampled")[0].trajectories[0]
    assert {turn.actor for turn in (*alone.turns, *hot.turns)} == {"student"}
    assert alone.turns[0].token_ids != hot.turns[0].token_ids
    groups = {found.exam_group(exam, found.student_after(0)) for exam in EXAMS.values()}
    assert len(groups) == len(EXAMS)


def test_a_teacher_that_is_paid_labels_only_the_exams_that_are_diagnosed(tiny_base, own_home):
    found = experiment(tiny_base, "base", tasks__test=1, tasks__unseen=1)
    found.settings = replace(found.settings, teacher=replace(found.settings.teacher, path="a/model"))
    assert found.examine("test")[0].labels and not found.examine("unseen")[0].labels
    assert {"disagreement", "recovery"} < set(results.exam_tables(found, "test"))
    assert set(results.exam_tables(found, "unseen")) == {"outcomes", "protocol"}


def test_an_instance_whose_gold_patch_fails_is_doubtful(tiny_base, own_home, monkeypatch):
    found = experiment(tiny_base, "base", tasks__test=2)
    assert found.doubtful("test") == {}
    good, bad = found.exam_tasks("test")
    monkeypatch.setattr(found, "exam_tasks", lambda _: [good, replace(bad, patch="")])
    assert found.doubtful("test") == {bad.instance_id: "empty_patch"}
    said: list[str] = []
    lost = Grade(bad.instance_id, Status.INFRASTRUCTURE, detail="no such image")
    monkeypatch.setattr(found, "log", said.append)
    monkeypatch.setattr(found, "_graded", lambda pairs, folder: [lost])
    assert found.doubtful("test") == {}  # nothing is known of it, and it is tried again
    assert said == [
        f"gold patches of test: 1 of 1 tasks have no verdict, {LOST}; the first is {bad.instance_id}: no such image"
    ]


def test_an_infrastructure_failure_is_no_failed_task(tiny_base, own_home, monkeypatch):
    found = experiment(tiny_base, "base", tasks__test=1)
    record = found.examine("test")[0]
    broken = [replace(t, stop=StopReason.INFRASTRUCTURE, detail="d") for t in record.trajectories]
    monkeypatch.setattr(found, "examine", lambda *_, **__: [CohortRecord(tuple(broken), record.labels, {})])
    (grade,) = found.grade("test")
    assert grade.status.value == "infrastructure" and grade.detail == "d"
    assert not list(found.store.root.rglob("predictions.jsonl"))[0].read_text()  # nobody may count it as an empty patch
    tables = results.exam_tables(found, "test")
    assert tables["outcomes"].empty and tables["recovery"].episodes.sum() == 0 and "scores" not in tables
    real = replace(found.settings, tasks=replace(found.settings.tasks, source="own.jsonl"))
    own = found.exam_tasks("test")
    monkeypatch.setattr(found, "exam_tasks", lambda _: own)
    monkeypatch.setattr(found, "settings", real)
    (row,) = results.exam_tables(found, "test")["scores"].to_dict("records")
    assert (row["exam"], row["attempted"], row["graded"], row["infrastructure"]) == ("test", 1, 0, 1)


def spoken(found: Experiment, commands: dict[int, str]) -> CohortRecord:
    """One episode of the test's first task in which the student gives these commands at these turns, all labelled."""
    task = found.exam_tasks("test")[0].instance_id
    turns = tuple(
        Turn(at, "student", Action("", "execute_bash", {"command": command}), "", (1,), 1)
        for at, command in commands.items()
    )
    labels = tuple(Label(task, 0, 0, "base", t.index, t.actor, None, "t", "", t.action, (1,), False) for t in turns)
    return CohortRecord((Trajectory(task, 0, 0, "base", turns, StopReason.TURNS, "", 10),), labels, {})


def test_an_exam_of_long_episodes_leaves_out_no_turn(tiny_base, own_home, monkeypatch):
    found = experiment(tiny_base, "base", tasks__test=1, episode__max_turns=100)
    record = spoken(found, dict.fromkeys((0, 39, 40, 99), "ls"))
    monkeypatch.setattr(found, "examine", lambda *_, **__: [record])
    table = results.exam_tables(found, "test")["disagreement"]
    assert table.turns.sum() == 4 and table.last_turn.tolist() == [2, 39, 59, 99]


def test_episodes_of_real_repositories_are_scanned_for_digging_and_those_of_generated_ones_are_not(
    tiny_base, own_home, monkeypatch
):
    """Where a repository has a history, each exam has its rows, also where nobody dug."""
    made = experiment(tiny_base, "base", tasks__test=1)
    record = spoken(made, {0: "ls", 1: "git log --all"})
    settings = replace(made.settings, tasks=replace(made.settings.tasks, source="swe-gym"))
    real, taught = (Experiment(name, settings, Here(), silent) for name in ("base", "sft"))
    monkeypatch.setattr("dagger_nb.experiment.tasks_of", lambda source, split, count, **_: tasks("test", 1)[:count])
    monkeypatch.setattr(results, "exam_tables", lambda *_: {})
    monkeypatch.setattr(taught, "collect", lambda _: [record, record])
    for found in (made, real, taught):
        monkeypatch.setattr(found, "examine", lambda *_, **__: [record])
    assert "digging" not in results.examine(made)
    table = results.examine(real)["digging"]
    assert set(table.exam) == {name for name in results.PROGRAMME["base"] if real.exam_tasks(name)}
    (row,) = table.query("exam == 'test' and kind == 'all refs'").to_dict("records")
    assert (row["recipe"], row["seed"], row["digging"], row["example"]) == ("base", 0, 1, "git log --all")
    (row,) = results.digging_tables(taught)["digging"].query("exam == 'rounds' and kind == 'any'").to_dict("records")
    assert (row["recipe"], row["actor"], row["episodes"], row["turns"]) == ("sft", "student", 2, 1)
    for _ in range(2):
        results.save(own_home, {"digging": table})
    assert len(pd.read_csv(own_home / "digging.csv")) == len(table)


def test_an_exam_of_another_test_runner_is_graded_by_the_official_command_line(tiny_base, own_home, monkeypatch):
    """Its report is read back into the same grades and tables, and is not asked for again."""
    task = generate("test", 0)
    odd = replace(task, eval_script=task.eval_script.replace("python -m pytest -rA --noconftest", "./runtests"))
    docker = replace(small(tiny_base, tasks__test=1), sandbox=SandboxSettings(back_end="docker"))
    found, started = Experiment("base", docker, Here(), silent), []
    trajectory = replace(experiment(tiny_base, "base", tasks__test=1).examine("test")[0].trajectories[0], patch="x\n")
    monkeypatch.setattr("dagger_nb.experiment.tasks_of", lambda *_, **__: [odd])
    factory = local_factory()
    factory.name, factory.holds = "docker", lambda task: True
    monkeypatch.setattr("dagger_nb.experiment.factory_for", lambda *_, **__: factory)
    monkeypatch.setattr(found, "examine", lambda *_, **__: [CohortRecord((trajectory,), (), {})])

    def swebench(run: HarnessRun, instances: Sequence[str], workers: int, timeout_s: int) -> None:
        started.append(run)
        rows = json.loads((run.folder / "instances.json").read_text())
        assert [row["eval_script"] for row in rows] == [odd.eval_script]
        assert list(instances) == [task.instance_id]
        store.write_json(run.log_folder(task.instance_id) / "report.json", {task.instance_id: {"resolved": True}})

    monkeypatch.setattr("dagger_nb.evaluation.official._start", swebench)
    for _ in range(2):
        outcomes = results.exam_tables(found, "test")["outcomes"]
        assert list(zip(outcomes.instance_id, outcomes.resolved, strict=True)) == [(task.instance_id, True)]
    assert len(started) == 1 and started[0].folder.is_relative_to(found.store.root)


def test_tests_that_nobody_here_can_judge_are_refused_before_anything_runs(tiny_base, own_home, monkeypatch):
    odd = [replace(task, eval_script="./runtests") for task in tasks("test", 1)]
    found = experiment(tiny_base, tasks__test=1)
    monkeypatch.setattr("dagger_nb.experiment.tasks_of", lambda *_, **__: odd)
    for step in (found.run, lambda: found.examine("test")):
        with pytest.raises(ConfigError, match="set sandbox.back_end = 'docker'"):
            step()
    assert [path.name for path in found.store.root.iterdir()] == ["config.json"]


class Unlucky(Here):
    """A fleet whose sandboxes fail while `down`; it counts the cohorts that it ran."""

    down, ran = True, 0

    def run(self, jobs: Sequence[CohortJob]) -> Iterator[tuple[CohortJob, CohortRecord, float]]:
        for job, record, seconds in super().run(jobs):
            self.ran += 1
            failed = [replace(t, stop=StopReason.INFRASTRUCTURE, detail="no disk") for t in record.trajectories]
            yield job, replace(record, trajectories=tuple(failed)) if self.down else record, seconds


def test_a_cohort_that_infrastructure_spoilt_is_run_again_by_the_next_process_only(reference, tiny_base, own_home):
    _, files, _ = reference
    fleet = Unlucky()
    first = Experiment("dagger", small(tiny_base), fleet, silent)
    for _ in range(2):
        assert {t.stop for record in first.collect(1) for t in record.trajectories} == {StopReason.INFRASTRUCTURE}
    assert fleet.ran == 2  # two cohorts, once each
    fleet.down = False
    second = Experiment("dagger", small(tiny_base), fleet, silent)
    second.collect(1)
    assert second.store.cohort_path("rounds/01", 0).read_bytes() == files["rounds/01/0000.jsonl"]
    second.collect(1)
    assert fleet.ran == 4


class Apart(Here):
    """A fleet whose episodes do not depend on each other; the episodes named in `bad` fail. It notes what it ran."""

    lockstep = False

    def __init__(self, *bad: str) -> None:
        self.bad, self.ran = bad, []

    def run(self, jobs: Sequence[CohortJob]) -> Iterator[tuple[CohortJob, CohortRecord, float]]:
        for job, record, seconds in super().run(jobs):
            self.ran += [plan.task.instance_id for plan in job.plans]
            spoilt = {"stop": StopReason.INFRASTRUCTURE, "detail": "no disk"}
            rows = [replace(t, **spoilt) if t.instance_id in self.bad else t for t in record.trajectories]
            yield job, replace(record, trajectories=tuple(rows)), seconds


def test_of_episodes_that_do_not_depend_on_each_other_only_the_spoilt_one_is_run_again(tiny_base, own_home):
    few = {"tasks__tasks_per_round": 3, "episode__cohort": 3, "episode__max_turns": 2}
    names = [task.instance_id for task in experiment(tiny_base, **few).training_tasks(1)]
    (before,) = Experiment("dagger", small(tiny_base, **few), Apart(names[1]), silent).collect(1)
    fleet = Apart()
    (after,) = Experiment("dagger", small(tiny_base, **few), fleet, silent).collect(1)
    assert fleet.ran == [names[1]]
    assert [t.instance_id for t in after.trajectories] == names
    assert [t.stop is StopReason.INFRASTRUCTURE for t in before.trajectories] == [False, True, False]
    assert StopReason.INFRASTRUCTURE not in {t.stop for t in after.trajectories}
    assert [after.trajectories[i] == before.trajectories[i] for i in (0, 2)] == [True, True]


class Passing(Apart):
    """A fleet whose infrastructure is mended after the first time that it failed."""

    def run(self, jobs: Sequence[CohortJob]) -> Iterator[tuple[CohortJob, CohortRecord, float]]:
        yield from super().run(jobs)
        self.bad = ()


def test_episodes_that_infrastructure_failed_run_once_more_when_the_others_are_done(tiny_base, own_home):
    """A round is trained on as it is then, and trouble that has passed should not cost it episodes."""
    few = {"tasks__tasks_per_round": 3, "episode__cohort": 3, "episode__max_turns": 2}
    names = [task.instance_id for task in experiment(tiny_base, **few).training_tasks(1)]
    told: list[str] = []
    fleet = Passing(names[1])
    (record,) = Experiment("dagger", small(tiny_base, **few), fleet, told.append).collect(1)
    assert fleet.ran == [*names, names[1]] and any("run once more: 1" in line for line in told)
    assert StopReason.INFRASTRUCTURE not in {path.stop for path in record.trajectories}
    fleet = Passing()
    Experiment("dagger", small(tiny_base, **few), fleet, silent).collect(1)
    assert fleet.ran == []


def test_what_a_killed_training_was_fitted_to_is_not_collected_again(tiny_base, own_home, monkeypatch):
    fleet = Unlucky()
    first = Experiment("dagger", small(tiny_base), fleet, silent)
    first.collect(1)

    def killed(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("dagger_nb.training.session.train_adapter", killed)
        first.train(1)
    before, fleet.down = fleet.ran, False
    again = Experiment("dagger", small(tiny_base), fleet, silent)
    assert {t.stop for record in again.collect(1) for t in record.trajectories} == {StopReason.INFRASTRUCTURE}
    assert fleet.ran == before


# --- workers -------------------------------------------------------------------------------------------------


def test_workers_give_the_bytes_of_one_process_and_a_dead_one_is_told(reference, tiny_base, own_home):
    _, files, _ = reference
    with Fleet(1) as fleet:
        found = Experiment("dagger", small(tiny_base), fleet, silent)
        found.collect(1)
        assert found.store.cohort_path("rounds/01", 1).read_bytes() == files["rounds/01/0001.jsonl"]
        for process in fleet._pool._processes.values():
            os.kill(process.pid, signal.SIGKILL)
        for _ in range(2):  # also when it is asked again
            with pytest.raises(EnvironmentProblem, match="worker process died"):
                Experiment("switch", small(tiny_base), fleet, silent).collect(1)


ORPHAN = """
import os, signal
from dagger_nb.fleet import Fleet
if __name__ == "__main__":
    print(Fleet(1)._pool.submit(os.getpid).result(), flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_workers_end_with_a_parent_that_was_killed(tmp_path):
    script = tmp_path / "orphan.py"
    script.write_text(ORPHAN)
    environment = os.environ | {"PYTHONPATH": str(HERE.parent)}
    command = [sys.executable, str(script)]
    found = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False, env=environment)
    assert found.returncode == -signal.SIGKILL
    worker, until = Path("/proc") / found.stdout.strip(), time.monotonic() + 60
    while worker.exists() and time.monotonic() < until:
        time.sleep(0.1)
    assert not worker.exists()


def test_the_manifest_says_what_protects_and_where_it_ran(reference):
    home, _, _ = reference
    (manifest,) = home.rglob("manifest.json")
    found = json.loads(manifest.read_text())
    assert found["sandbox"]["network"] and found["versions"]["torch"] and "+" not in found["versions"]["torch"]
    root = manifest.parent
    assert {name: store.file_sha256(root / name) for name in found["files"]} == found["files"]
