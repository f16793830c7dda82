"""DAgger in Docker: what is played there is what is played in the local sandbox, by either way of running episodes.

The collector plays 64 episodes at once, in fewer sandboxes, in two rounds with a training between them; a lockstep
cohort plays fewer.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import cache

import pytest
from common import SETTINGS
from players import Crew, Local, collected, loading, silent

from dagger_nb import config, paths
from dagger_nb.collector import Capacity, Collector
from dagger_nb.episode import Conditions, Limits, Plan, Rollout
from dagger_nb.errors import SandboxError
from dagger_nb.experiment import Experiment, all_labels, all_trajectories
from dagger_nb.labelling import label_trajectory, tally
from dagger_nb.mixing import BernoulliMixer, Schedule
from dagger_nb.policies import teacher
from dagger_nb.policies.protocol import Answer, Sampling
from dagger_nb.records import StopReason, Task, Turn
from dagger_nb.rollout import run_cohort
from dagger_nb.sandboxes import Sandbox, SandboxFactory
from dagger_nb.settings import Settings
from dagger_nb.store import CohortRecord
from dagger_nb.students import LocalStudent, Version, load_for_acting, quiet, renderer_of
from dagger_nb.tasks import tasks

pytestmark = pytest.mark.usefixtures("one_thread")

# --- the collector -------------------------------------------------------------------------------------------

EPISODES, SANDBOXES, COMMANDS = 64, 16, 4
COMPARED = 4  # every so many episodes are played again in the local sandbox; no episode depends on another
OVERRIDES = {
    "tasks.tasks_per_round": EPISODES,
    "dagger.rounds": 2,
    "dagger.schedule": "linear",  # the teacher alone, then the mixture of the floor
    "dagger.floor": 0.7,
    "lora.rank": 8,
    "training.passes": 1,
    "episode.command_timeout_s": 120.0,
    "episode.cohort": 1,
}


class Counted:
    """A factory of the daemon's that notes how many containers there are whenever it has opened a sandbox."""

    name = "counted"

    def __init__(self, factory: SandboxFactory, containers: Callable[[], int]) -> None:
        self.factory, self.containers, self.found = factory, containers, []

    def prefetch(self, tasks: Iterable[Task], log: Callable[[str], None] = print) -> dict[str, SandboxError]:
        return self.factory.prefetch(tasks, log)

    def open(self, task: Task) -> Sandbox:
        opened = self.factory.open(task)
        self.found.append(self.containers())
        return opened


class Remembers:
    """A student that does not think again where it was before; another observation is another state."""

    def __init__(self, student: Local) -> None:
        self.name, self.student, self.said = student.name, student, {}

    async def answer(self, task: Task, turns: Sequence[Turn], sampling: Sampling, seed: int) -> Answer:
        state = (task.instance_id, *((turn.token_ids, turn.observation) for turn in turns), sampling, seed)
        if state not in self.said:
            self.said[state] = await self.student.answer(task, turns, sampling, seed)
        return self.said[state]


@pytest.fixture
def settings(own_home) -> Settings:
    return replace(config.load("tiny", OVERRIDES), sandbox=SETTINGS)


def test_a_round_of_the_collector_in_docker_is_that_of_the_local_sandbox(client, factory, local, settings):
    """Collected with an adapter, labelled and trained on: the same trajectories, and a label at every state."""

    @cache
    def load(version: Version) -> Remembers:
        return Remembers(Local(load_for_acting(version), settings.episode.context))

    counted = Counted(factory, lambda: len(containers(client)))
    renderer = renderer_of(str(paths.data() / "base"))
    crew = Crew(Collector(loading(load, renderer), local, renderer, Capacity(EPISODES, SANDBOXES, COMMANDS)))
    experiment = Experiment("dagger", settings, crew, silent)
    experiment.collect(1)  # the teacher alone, for the adapter
    experiment.train(1)
    crew.collector = replace(crew.collector, factory=counted)
    second = collected_in_both(experiment, crew, local, 2)
    assert experiment.train(2).is_dir()
    trajectories = list(all_trajectories(second))
    assert {path.policy for path in trajectories} == {experiment.student_after(1).name} != {"base"}
    assert {turn.actor for path in trajectories for turn in path.turns} == {"student", "teacher"}
    assert any(label.lesson for label in all_labels(second))
    assert COMMANDS < max(counted.found) <= SANDBOXES
    assert not containers(client)


def collected_in_both(experiment: Experiment, crew: Crew, local: SandboxFactory, round_: int) -> list[CohortRecord]:
    """A round of the experiment, after its comparison with some of its jobs in local sandboxes."""
    began = time.monotonic()
    there = experiment.collect(round_)
    between = time.monotonic()
    here = collected(replace(crew.collector, factory=local), crew.given[-EPISODES::COMPARED])
    print(f"round {round_}: Docker {between - began:.0f} s, local {time.monotonic() - between:.0f} s")
    assert there[::COMPARED] == [here[number] for number in sorted(here)] and len(there) == EPISODES
    found, stops = tally(there, "every", 1), {path.stop for path in all_trajectories(there)}
    assert found.complete and not found.missing
    assert StopReason.INFRASTRUCTURE not in stops and StopReason.FINISH in stops
    return there


def containers(client) -> list:
    return client.api.containers(all=True, filters={"label": "dagger-nb.factory"})


# --- a lockstep cohort ---------------------------------------------------------------------------------------

COHORT = 8
ROUND = 3  # beta is 0.6 in the paper's third round
CONDITIONS = Conditions(
    BernoulliMixer(Schedule("paper")),
    Sampling(0.7, 0.9, 96),
    run_seed=0,
    policy="base",
    limits=Limits(command_timeout_s=120.0),
)


@pytest.fixture(scope="module")
def student() -> LocalStudent:
    quiet()
    return load_for_acting(Version(str(paths.data() / "base")))


def collect(student: LocalStudent, factory: SandboxFactory) -> tuple[list[Rollout], float]:
    """A cohort of episodes, and the seconds that it took."""
    began = time.monotonic()
    rollouts = run_cohort(
        [Plan(task, round=ROUND) for task in tasks("train", COHORT)],
        CONDITIONS,
        session=student.session(COHORT, CONDITIONS.limits.context),
        teacher=teacher.label,
        renderer=student.renderer,
        factory=factory,
        threads=4 * (os.cpu_count() or 1),
    )
    return rollouts, time.monotonic() - began


def test_a_cohort_in_docker_is_the_cohort_of_the_local_sandbox(client, factory, local, student):
    there, docker_s = collect(student, factory)
    here, local_s = collect(student, local)
    turns = sum(len(rollout.trajectory.turns) for rollout in there)
    print(f"\n{COHORT} episodes, {turns} turns: Docker {docker_s:.0f} s, local {local_s:.0f} s")
    assert [rollout.trajectory for rollout in there] == [rollout.trajectory for rollout in here]
    stops = {rollout.trajectory.stop for rollout in there}
    assert StopReason.INFRASTRUCTURE not in stops and StopReason.FINISH in stops
    assert {turn.actor for rollout in there for turn in rollout.trajectory.turns} == {"student", "teacher"}
    labels = [
        label
        for task, rollout in zip(tasks("train", COHORT), there, strict=True)
        for label in label_trajectory(
            task, rollout.trajectory, teacher=teacher.label, name=teacher.NAME, renderer=student.renderer
        )
    ]
    assert len(labels) == turns
    assert not containers(client)
