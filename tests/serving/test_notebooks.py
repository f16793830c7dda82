"""Notebooks 00 to 07, unchanged, as `dagger-nb reproduce --profile qwen3-0.6b` runs them, killed once: real tasks in
containers, a student that vLLM serves, a teacher at an endpoint that often fails, and swebench's command line.

The rows of tasks are of both schemas. Their images are pulled from a registry, or lie here under the names that
SWE-Gym's have; one cannot be had. In the images are generated repositories, whose oracle the teacher is, so that each
label can be compared with what it should be; but it stumbles and refuses so often that labels go missing and episodes
are lost.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import docker
import nbformat
import pytest
from docker_engine import connected
from docker_images import Image, load, of_task, saved
from docker_registry import Registry, registry_of
from servers import KEY, MODEL, PRICES, running, usage_of, whole
from test_hub import write_jsonl

from dagger_nb import cli, config, paths, report, reproduction, results, runner
from dagger_nb.crew import executor
from dagger_nb.experiment import EXAMS, Experiment
from dagger_nb.labelling import tally
from dagger_nb.policies import admission, styles, teacher
from dagger_nb.recipes import RECIPES, recipe
from dagger_nb.records import StopReason, Task
from dagger_nb.sandboxes.containers import host_image
from dagger_nb.sandboxes.containers.archives import tar
from dagger_nb.sandboxes.containers.lease import LABEL
from dagger_nb.settings import Settings
from dagger_nb.store import CohortRecord, read_cohort, read_json
from dagger_nb.tasks import older, tasks

ROOT = Path(__file__).resolve().parents[2]
PROFILE = "qwen3-0.6b"
KNOWN = {"train": 4, "test": 2, "unseen": 2}  # generated tasks: two rounds of two, and the exams
OVERRIDES = {
    "student.path": "data/base",
    "student.template": "",
    "teacher.path": MODEL,
    "teacher.style": "native",
    "tasks.tasks_per_round": 2,
    "tasks.test": 2,
    "tasks.unseen": 2,
    "tasks.diagnostic": 1,
    "lora.rank": 8,
    "training.row_tokens": 8192,
    "episode.context": 8192,
    "episode.max_new_tokens": 160,
    "episode.observation_chars": 2000,
    "episode.loop_repeats": 2,  # a student that is stuck costs a second a turn
    "labels.price_prompt": PRICES["prompt"],
    "labels.price_cached": PRICES["cached"],
    "labels.price_completion": PRICES["completion"],
    "workers": 2,
    "sandbox.cpus": 1.0,
    "sandbox.memory_gb": 0.5,
    "sandbox.images_gb": 2.0,
    "serving.start_timeout_s": 1800.0,
}
FAULTS = {"silent": 150, "two": 30, "500": 20, "400": 10}  # of a thousand requests
DOCTORS = 2  # questions on no run's bill: the command's examination and notebook 00's ask one each
# What the scripts of SWE-Gym ask of its images: an environment of conda to activate, with pytest in it.
CONDA = tar(
    [
        (b"opt/miniconda3/bin/activate", b"f", 0, b'conda() { export PATH="/opt/testbed/bin:$PATH"; }\n'),
        (b"opt/testbed/bin/pytest", b"x", 0, b'#!/bin/bash\nexec python -m pytest "$@"\n'),
    ]
)
OTHER_RUNNER = 'python -c "import pytest,sys;sys.exit(pytest.main(sys.argv[1:]))"'  # for swebench's command line alone


@dataclass(frozen=True)
class Story:
    """A reproduction that was killed and gone on with: its settings, what was done when it was killed, and its end."""

    overrides: Mapping[str, Any]
    settings: Settings
    done: Mapping[Path, tuple[int, bytes]]  # file -> inode and content
    left: Sequence[str]  # containers that the kill left
    notebooks: list[runner.NotebookResult]
    counted: Mapping[str, Any]  # by the teacher's server
    client: docker.DockerClient

    @property
    def runs(self) -> dict[str, Experiment]:
        return results.runs(self.settings, executor(self.settings))

    @property
    def tables(self) -> Path:
        return paths.result_folder(PROFILE, 0, self.overrides)


# --- tasks --------------------------------------------------------------------------------------------------------


def known() -> list[Task]:
    return [task for split, count in KNOWN.items() for task in tasks(split, count)]


def is_older(task: Task) -> bool:
    """Which become rows of the first schema: every second one, but those that stand for SWE-bench Verified."""
    return task.split != "unseen" and int(task.instance_id[-5:]) % 2 == 1


def row_of(task: Task, registry: Registry) -> dict[str, Any]:
    row = older_row(task) if is_older(task) else newer_row(task, registry)
    return row | {"split": task.split}


def older_row(task: Task) -> dict[str, Any]:
    """The task as SWE-Gym would have it: no image and no script, and of its tests only those that its patch adds."""
    row = {name: value for name, value in task.to_instance().items() if name in older.NEEDED}
    for kind in ("FAIL_TO_PASS", "PASS_TO_PASS"):
        row[kind] = [test for test in row[kind] if "_hidden.py" in test]
    return row | {"instance_id": older_name(task), "repo": "iterative/dvc"}


def older_name(task: Task) -> str:
    return f"iterative__dvc-{task.split}-{int(task.instance_id[-5:])}"


def newer_row(task: Task, registry: Registry) -> dict[str, Any]:
    """As SWE-bench Verified would have it; of `unseen`, all are of another runner, and the second's image is lost."""
    row = task.to_instance() | {"image": next(name for name in registry.names if task.instance_id in name)}
    if task.split == "unseen":
        row["eval_script"] = row["eval_script"].replace("python -m pytest", OTHER_RUNNER)
        row["image"] = row["image"].replace("unseen-00001", "nowhere")
    return row


def images(base: Image) -> dict[str, Image]:
    """Of the rows of the newer schema, as the registry has them."""
    return {f"team/{task.instance_id}": of_task(base, task) for task in known() if not is_older(task)}


def older_images(base: Image) -> dict[str, Image]:
    return {older.image(older_name(task)): of_task(base, task).on_top(CONDA) for task in known() if is_older(task)}


# --- the reproduction ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def story(engine, home) -> Iterator[Story]:
    with connected() as client, running(KNOWN) as server, pytest.MonkeyPatch.context() as patch:
        patch.setenv("TEACHER_API_KEY", KEY)
        server.mixed(FAULTS)
        base = saved(client, host_image.build(client))
        load(client, older_images(base))
        with registry_of(client, images(base)) as registry:
            source = write_jsonl(home / "own.jsonl", [row_of(task, registry) for task in known()])
            given = {"tasks.source": str(source), "serving.python": engine.python, "teacher.endpoint": server.url}
            overrides = OVERRIDES | given
            settings = config.load(PROFILE, overrides)
            done, left = killed(overrides, settings, client)
            notebooks = reproduction.reproduce(PROFILE, 0, {"overrides": overrides})
            yield Story(overrides, settings, done, left, notebooks, server.count(), client)


def killed(
    overrides: Mapping[str, Any], settings: Settings, client: docker.DockerClient
) -> tuple[dict[Path, tuple[int, bytes]], list[str]]:
    """Reproduce, and end it without a word in the round of DAgger that its first adapter acts in."""
    line = [sys.executable, "-m", "dagger_nb", "reproduce", "--profile", PROFILE]
    line += [part for name, value in overrides.items() for part in ("-p", f"{name}={value}")]
    process = subprocess.Popen(line, env=os.environ | {"PYTHONPATH": str(ROOT)})
    while not (any(paths.runs().glob("dagger-s0-*/rounds/02")) and containers(client)):
        assert process.poll() is None
        time.sleep(0.1)
    process.kill()
    process.wait()
    runs = results.runs(settings, executor(settings)).values()
    kinds = ("[0-9]*.jsonl", "fit.json", "*.safetensors")
    files = [file for run in runs for kind in kinds for file in run.store.root.rglob(kind)]
    return {file: (file.stat().st_ino, file.read_bytes()) for file in files if not lost(file)}, containers(client)


def containers(client: docker.DockerClient) -> list[str]:
    return [row["Id"] for row in client.api.containers(all=True, filters={"label": LABEL})]


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


# --- what it left -------------------------------------------------------------------------------------------------


def test_a_killed_reproduction_goes_on_at_the_episode_and_reaches_its_end(story):
    """Notebook 03 is run again for the task whose image cannot be had, and finds the rest done."""
    assert [(one.path.name[:2], one.skipped) for one in story.notebooks] == [
        (f"{number:02d}", number < 3) for number in range(8)
    ]
    print({one.path.name[:2]: round(one.seconds) for one in story.notebooks})
    assert len(story.done) > 15
    for file, (inode, content) in story.done.items():
        assert (file.stat().st_ino, file.read_bytes()) == (inode, content), file


def test_no_container_is_left(story):
    assert story.left and not set(story.left) & set(containers(story.client))
    assert not [box for box in story.client.containers.list(all=True) if "sweb.eval" in box.name]


def test_every_label_is_the_oracles_and_the_other_states_are_accounted_for(story):
    by_name = {older_name(task) if is_older(task) else task.instance_id: task for task in known()}
    missing: Counter[str] = Counter()
    learnt: set[str] = set()
    for name, run in story.runs.items():
        found = tally(records(run), "every", 1)
        assert found.complete and found.labels > 10
        missing.update(found.missing)
        print(f"{name}: {found.labels} labels of {found.asked} states, {dict(found.missing)}")
        for record in records(run):
            paths_by_key = {path.key: path for path in record.trajectories}
            for label in record.labels:
                path = paths_by_key[label.instance_id, label.attempt]
                assert label.action == teacher.label(by_name[path.instance_id], path.turns[: label.turn])
                assert not (label.actor == "teacher" and label.lesson)
                learnt.add(path.instance_id)
    assert missing["malformed"] and missing.keys() <= {"malformed", "no answer"}  # which states refuse is chance
    assert "missing: " in printed(story.notebooks[4].output)
    assert {name for name in by_name if "train" in name} <= learnt, "rows of both schemas were learnt from"


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


def test_a_lost_task_is_no_failed_one_and_stays_in_the_denominator(story):
    """The task whose image cannot be had, in every run's exam of SWE-bench Verified's place; the others have verdicts,
    the one of another runner from swebench's command line."""
    scores = results.load(story.tables)["scores"].set_index(["exam", "recipe"])
    for name in RECIPES:
        unseen, test = scores.loc[("unseen", name)], scores.loc[("test", name)]
        assert (unseen.attempted, unseen.graded, unseen.infrastructure) == (2, 1, 1)
        assert (test.attempted, test.graded) == (2, 2)
    said = printed(story.notebooks[6].output)
    assert "gold patches resolved: 2 of 2; doubtful instances: none" in said
    assert "predictions: 1 of 2 resolved, 1 lost to the infrastructure" in said, "gold of unseen"
    assert "gold-2: 1 of 2 resolved, 1 lost to the infrastructure" in said, "the same once more, in a folder"


def test_runs_and_tables_are_whole_and_tell_how_they_came_about(story):
    runs = story.runs
    assert list(runs) == list(RECIPES)
    for run in runs.values():
        manifest = read_json(run.store.root / "manifest.json")
        assert run.store.done and cli.main(["show", str(run.store.root)]) == 0
        assert manifest["serving"]["engine"].startswith("vllm") and manifest["serving"]["weights"] == "dequantised"
        assert manifest["settings"] == story.settings.to_dict()
    found = results.load(story.tables)
    assert set(found) == set(results.NAMES)
    graded = found["outcomes"].groupby("recipe").exam.agg(set)
    assert {name: graded[name] for name in RECIPES} == {
        name: set(results.PROGRAMME[name]) - {"test-teacher-states", "longer"} for name in RECIPES
    }
    executed = [one.output for one in story.notebooks]
    index = report.build(executed, paths.home() / "html", title="", results=story.tables, figures=paths.figures())
    assert "Tasks resolved" in index.read_text() and all(name in index.read_text() for name in RECIPES)


def test_the_key_is_written_nowhere(story, home):
    assert not [file for file in home.rglob("*") if file.is_file() and KEY.encode() in file.read_bytes()]
