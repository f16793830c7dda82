"""DAgger through a real vLLM, by the executor of a profile: collect, train, collect with the adapter, examine."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator

import pytest
from agreement import TIE, difference, same_words

from dagger_nb import config
from dagger_nb.crew import executor
from dagger_nb.episode import Plan
from dagger_nb.experiment import Experiment
from dagger_nb.fleet import CohortJob, run_job
from dagger_nb.mixing import STUDENT_ALONE
from dagger_nb.records import Trajectory
from dagger_nb.store import CohortRecord
from dagger_nb.students import Version, load_for_acting

EPISODES = 64
OVERRIDES = {
    "student.back_end": "vllm",
    "tasks.tasks_per_round": EPISODES,
    "tasks.test": 16,
    "dagger.rounds": 2,
    "dagger.schedule": "linear",  # the teacher alone, then the mixture of the floor
    "dagger.floor": 0.3,
    "lora.rank": 8,
    "training.passes": 1,
    "episode.command_timeout_s": 120.0,
    "episode.cohort": 1,
    "serving.concurrency": EPISODES,
    "serving.start_timeout_s": 1800.0,
}


@pytest.fixture(scope="module")
def experiment(engine, home) -> Iterator[Experiment]:
    settings = config.load("tiny", OVERRIDES | {"serving.python": engine.python})
    with executor(settings) as crew:
        yield Experiment("dagger", settings, crew, print)


def paths_of(records: list[CohortRecord]) -> list[Trajectory]:
    return [trajectory for record in records for trajectory in record.trajectories]


def test_rounds_with_a_hot_swapped_adapter(experiment):
    began = time.monotonic()
    rounds = []
    for round_ in (1, 2):
        rounds.append(experiment.collect(round_))
        print(f"round {round_}: {EPISODES} episodes collected {time.monotonic() - began:.0f} s after the start")
        experiment.train(round_)
    names = [experiment.student_after(round_).name for round_ in (0, 1, 2)]
    assert len(set(names)) == 3
    for records, name in zip(rounds, names[:2], strict=True):
        found = paths_of(records)
        assert len(found) == EPISODES and {path.policy for path in found} == {name}
        assert "infrastructure" not in {path.stop.value for path in found}
        assert sum(len(record.labels) for record in records) == sum(len(path.turns) for path in found)
    actors = Counter(turn.actor for path in paths_of(rounds[1]) for turn in path.turns)
    print(f"round 2: {actors.total()} turns, {dict(actors)}")
    assert actors["student"] > 200 and 0.2 < actors["teacher"] / actors.total() < 0.4
    assert experiment.fleet.facts()["serving"]["weights"] == "dequantised"


@pytest.mark.parametrize("round_", [1, 2])
def test_an_exam_of_the_served_student_is_that_of_the_local_one(experiment, round_):
    """One server, an adapter after the other. Where two trajectories part, the two best tokens are almost equal."""
    served, version = paths_of(experiment.examine("test", round_=round_)), experiment.student_after(round_)
    tasks, renderer, local = experiment.exam_tasks("test"), experiment.renderer, load_for_acting(version)
    apart = []
    for task, there, here in zip(tasks, served, locally(experiment, version), strict=True):
        assert (there.instance_id, there.policy) == (here.instance_id, here.policy) == (task.instance_id, version.name)
        pairs = zip(here.turns, there.turns, strict=False)
        parting = next(((a, b) for a, b in pairs if not same_words(a.token_ids, b.token_ids)), None)
        if parting:
            apart.append(difference(local, renderer, task, here.turns, parting[0].index, parting[1].token_ids))
        else:
            assert (here.stop, here.patch, len(here.turns)) == (there.stop, there.patch, len(there.turns))
    print(
        f"{version.name}: {sum(len(path.turns) for path in served)} turns of {len(served)} trajectories; apart: {apart}"
    )
    assert all(found.gap < TIE for found in apart)
    assert sum(path.stop.value == "finish" for path in served) > 0


def locally(experiment: Experiment, version: Version) -> tuple[Trajectory, ...]:
    """The same exam by the model of this process, in one cohort."""
    plans = tuple(Plan(task) for task in experiment.exam_tasks("test"))
    conditions = experiment._conditions(STUDENT_ALONE, version, 0.0)
    return run_job(CohortJob(0, plans, conditions, version, None))[0].trajectories
