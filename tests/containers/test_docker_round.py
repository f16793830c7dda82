"""One DAgger round of tiny episodes in Docker: the committed student mixed with the teacher, every state labelled."""

from __future__ import annotations

import os
import time

import pytest

from dagger_nb import paths
from dagger_nb.episode import Conditions, Limits, Plan, Rollout
from dagger_nb.labelling import label_trajectory
from dagger_nb.mixing import BernoulliMixer, Schedule
from dagger_nb.policies import teacher
from dagger_nb.policies.protocol import Sampling
from dagger_nb.records import StopReason
from dagger_nb.rollout import run_cohort
from dagger_nb.students import LocalStudent, Version, load_for_acting, quiet
from dagger_nb.tasks import tasks

EPISODES = 64
COHORT = 32
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
    import torch

    torch.set_num_threads(1)
    quiet()
    return load_for_acting(Version(str(paths.data() / "base")))


def collect(student: LocalStudent, factory) -> tuple[list[Rollout], float]:
    """A round of episodes, and the seconds that it took."""
    plans = [Plan(task, round=ROUND) for task in tasks("train", EPISODES)]
    began = time.monotonic()
    rollouts: list[Rollout] = []
    for start in range(0, EPISODES, COHORT):
        cohort = plans[start : start + COHORT]
        session = student.session(len(cohort), CONDITIONS.limits.context)
        rollouts += run_cohort(
            cohort, CONDITIONS, session=session, teacher=teacher.label, renderer=student.renderer, factory=factory,
            threads=4 * (os.cpu_count() or 1),
        )  # fmt: skip
    return rollouts, time.monotonic() - began


def test_a_round_in_docker_is_the_round_of_the_local_sandbox(client, factory, local, student):
    there, docker_s = collect(student, factory)
    here, local_s = collect(student, local)
    stops = {rollout.trajectory.stop for rollout in there}
    assert StopReason.INFRASTRUCTURE not in stops and StopReason.FINISH in stops
    equal = sum(a.trajectory == b.trajectory for a, b in zip(there, here, strict=True))
    turns = sum(len(rollout.trajectory.turns) for rollout in there)
    actors = {turn.actor for rollout in there for turn in rollout.trajectory.turns}
    print(f"\n{EPISODES} episodes, {turns} turns: Docker {docker_s:.0f} s, local {local_s:.0f} s; {equal} equal")
    assert actors == {"student", "teacher"}
    assert equal >= EPISODES * 0.9
    labels = [
        label
        for task, rollout in zip(tasks("train", EPISODES), there, strict=True)
        for label in label_trajectory(
            task, rollout.trajectory, teacher=teacher.label, name=teacher.NAME, renderer=student.renderer
        )
    ]
    assert len(labels) == turns and any(label.lesson for label in labels)
    assert not client.containers.list(all=True, filters={"label": "dagger-nb.factory"})
