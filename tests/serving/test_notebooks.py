"""Notebooks 00 to 07, unchanged, with a student that vLLM serves and a teacher at an endpoint that often fails.

The teacher is the oracle of the generated tasks, so that each label can be compared with what it should be; but it
stumbles and refuses so often that labels go missing and episodes are lost. The reproduction is killed once.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nbformat
import pytest
from servers import KEY, MODEL, PRICES, running, usage_of, whole

from dagger_nb import cli, config, paths, report, reproduction, results, runner
from dagger_nb.crew import executor
from dagger_nb.experiment import EXAMS, Experiment
from dagger_nb.labelling import tally
from dagger_nb.policies import admission, styles, teacher
from dagger_nb.recipes import RECIPES, recipe
from dagger_nb.records import StopReason
from dagger_nb.settings import Settings
from dagger_nb.store import CohortRecord, read_cohort, read_json
from dagger_nb.tasks import tasks

ROOT = Path(__file__).resolve().parents[2]
KNOWN = {"train": 4, "test": 2, "unseen": 1}  # the tasks of these settings, which the teacher knows
OVERRIDES = {
    "student.back_end": "vllm",
    "teacher.path": MODEL,
    "tasks.tasks_per_round": 2,
    "tasks.test": 2,
    "tasks.longer": 0,  # as in the profiles of real tasks: that exam is skipped
    "tasks.unseen": 1,
    "tasks.diagnostic": 1,
    "dagger.rounds": 2,
    "lora.rank": 8,
    "training.passes": 1,
    "training.overlong": "drop",
    "episode.cohort": 1,
    "episode.loop_repeats": 2,  # a student that is stuck costs a second a turn
    "episode.command_timeout_s": 120.0,
    "labels.price_prompt": PRICES["prompt"],
    "labels.price_cached": PRICES["cached"],
    "labels.price_completion": PRICES["completion"],
    "serving.concurrency": 16,
    "serving.start_timeout_s": 1800.0,
}
FAULTS = {"silent": 150, "two": 30, "500": 20, "400": 10}  # of a thousand requests
DOCTORS = 2  # questions on no run's bill: the command's examination and notebook 00's ask one each


@dataclass(frozen=True)
class Story:
    """A reproduction that was killed and gone on with: its settings, what was done when it was killed, and its end."""

    overrides: Mapping[str, Any]
    settings: Settings
    done: Mapping[Path, tuple[int, bytes]]  # file -> inode and content
    notebooks: list[runner.NotebookResult]
    counted: Mapping[str, Any]  # by the teacher's server

    @property
    def runs(self) -> dict[str, Experiment]:
        return results.runs(self.settings, executor(self.settings))

    @property
    def tables(self) -> Path:
        return paths.result_folder("smoke", 0, self.overrides)


@pytest.fixture(scope="module")
def story(engine, home) -> Iterator[Story]:
    with pytest.MonkeyPatch.context() as patch, running(KNOWN) as server:
        patch.setenv("TEACHER_API_KEY", KEY)
        server.mixed(FAULTS)
        overrides = OVERRIDES | {"serving.python": engine.python, "teacher.endpoint": server.url}
        settings = config.load("smoke", overrides)
        done = killed(overrides, settings)
        notebooks = reproduction.reproduce("smoke", 0, {"overrides": overrides})
        yield Story(overrides, settings, done, notebooks, server.count())


def killed(overrides: Mapping[str, Any], settings: Settings) -> dict[Path, tuple[int, bytes]]:
    """Reproduce, and end it without a word in the round of DAgger that its first adapter acts in."""
    line = [sys.executable, "-m", "dagger_nb", "reproduce", "--profile", "smoke"]
    line += [part for name, value in overrides.items() for part in ("-p", f"{name}={value}")]
    process = subprocess.Popen(line, env=os.environ | {"PYTHONPATH": str(ROOT)})
    while not any(paths.runs().glob("dagger-s0-*/rounds/02/0*.jsonl")):
        assert process.poll() is None
        time.sleep(0.1)
    process.kill()
    process.wait()
    runs = results.runs(settings, executor(settings)).values()
    kinds = ("[0-9]*.jsonl", "fit.json", "*.safetensors", "manifest.json")
    files = [file for run in runs for kind in kinds for file in run.store.root.rglob(kind)]
    return {file: (file.stat().st_ino, file.read_bytes()) for file in files if not lost(file)}


def lost(file: Path) -> bool:
    """Whether it holds an episode that the infrastructure failed, which another process runs again."""
    return file.suffix == ".jsonl" and any(
        path.stop is StopReason.INFRASTRUCTURE for path in read_cohort(file).trajectories
    )


def records(run: Experiment) -> list[CohortRecord]:
    """Every cohort of a run in which states were to be labelled: rounds, and the exams that are diagnosed."""
    unasked = {exam.name for exam in EXAMS.values() if not exam.diagnosed}
    files = sorted(run.store.root.rglob("[0-9]*.jsonl"))
    return [read_cohort(file) for file in files if not file.parent.name.startswith(tuple(unasked))]


def printed(path: Path) -> str:
    cells = nbformat.read(path, as_version=4).cells
    return "".join(out.get("text", "") for cell in cells if cell.cell_type == "code" for out in cell.outputs)


def test_a_killed_reproduction_goes_on_at_the_episode_and_reaches_its_end(story):
    assert [(one.path.name[:2], one.skipped) for one in story.notebooks] == [
        (f"{number:02d}", number < 4) for number in range(8)
    ]
    print({one.path.name[:2]: round(one.seconds) for one in story.notebooks})
    assert len(story.done) > 20
    for file, (inode, content) in story.done.items():
        assert (file.stat().st_ino, file.read_bytes()) == (inode, content), file


def test_every_label_is_the_oracles_and_the_other_states_are_accounted_for(story):
    known = {task.instance_id: task for split, count in KNOWN.items() for task in tasks(split, count)}
    missing: Counter[str] = Counter()
    for name, run in story.runs.items():
        found = tally(records(run), "every", 1)
        assert found.complete and found.labels > 10
        missing.update(found.missing)
        print(f"{name}: {found.labels} labels of {found.asked} states, {dict(found.missing)}")
        for record in records(run):
            paths_by_key = {path.key: path for path in record.trajectories}
            for label in record.labels:
                path = paths_by_key[label.instance_id, label.attempt]
                assert label.action == teacher.label(known[path.instance_id], path.turns[: label.turn])
                assert not (label.actor == "teacher" and label.lesson)
    assert missing["malformed"] and missing.keys() <= {"malformed", "no answer"}  # which states refuse is chance
    assert "missing: " in printed(story.notebooks[4].output)


def test_the_bill_is_what_the_server_charged_and_no_state_is_paid_for_twice(story):
    """Calls that the kill interrupted are uncertain: the truth lies between what is settled and their bounds.

    A round without a row was answered from what earlier recipes had asked in the same states. The doctor's calls are on
    no run's bill; it asks whatever was answered before.
    """
    bill = results.load(story.tables)["bill"]
    for name, rows in bill.groupby("recipe"):
        rounds = set(rows["round"].astype(str))
        assert {"run"} <= rounds <= {"run", *map(str, range(recipe(name, story.settings).rounds + 1))}, name
    total = bill[bill["round"].astype(str) == "run"].sum(numeric_only=True)
    probe = usage_of(whole(styles.render(admission.PROBE, styles.NATIVE))) | {"queries": 1}
    charged = Counter(story.counted["billed"]) - Counter({name: DOCTORS * count for name, count in probe.items()})
    print(total.to_dict(), charged)
    fresh = charged["prompt"] - charged["cached"]
    parts = (fresh, "prompt"), (charged["cached"], "cached"), (charged["completion"], "completion")
    money = sum(tokens * PRICES[kind] for tokens, kind in parts) / 1e6
    assert total.queries <= charged["queries"] <= total.queries + total.uncertain_queries
    assert total.money - 1e-9 <= money <= total.money + total.uncertain_money + 1e-9
    again = Counter(story.counted["delivered"]) - Counter(set(story.counted["delivered"]))
    probed = DOCTORS + 1  # the first run asks the same, as the doctor keeps nothing
    assert again.total() - (probed - 1) <= total.uncertain_queries


def test_runs_and_tables_are_whole_and_tell_how_they_came_about(story):
    runs = story.runs
    assert list(runs) == list(RECIPES)
    for run in runs.values():
        manifest = read_json(run.store.root / "manifest.json")
        assert run.store.done and cli.main(["show", str(run.store.root)]) == 0
        assert manifest["serving"]["engine"].startswith("vllm") and manifest["serving"]["weights"] == "dequantised"
        assert manifest["settings"] == story.settings.to_dict()
    found = results.load(story.tables)
    assert set(found) == set(results.NAMES) - {"digging"}
    graded = found["outcomes"].groupby("recipe").exam.agg(set)
    assert {name: graded[name] for name in RECIPES} == {
        name: set(results.PROGRAMME[name]) - {"test-teacher-states", "longer"} for name in RECIPES
    }
    executed = [one.output for one in story.notebooks]
    index = report.build(executed, paths.home() / "html", title="", results=story.tables, figures=paths.figures())
    assert "Tasks resolved" in index.read_text() and all(name in index.read_text() for name in RECIPES)


def test_the_key_is_written_nowhere(story, home):
    assert not [file for file in home.rglob("*") if file.is_file() and KEY.encode() in file.read_bytes()]
