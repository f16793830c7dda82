"""The collector: the same episodes as lockstep cohorts, at once, within bounds, and nothing left whatever happens."""

from __future__ import annotations

import asyncio
import importlib
import json
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from players import GREEDY, NO_LABELS, Crew, Local, casting, collected, jobs, loading, silent

from dagger_nb import config
from dagger_nb.bill import Tokens
from dagger_nb.collector import Capacity, Cast, Collector, Labeller
from dagger_nb.episode import Conditions, Limits, Plan
from dagger_nb.errors import (
    BudgetError,
    ConfigError,
    ContextError,
    EnvironmentProblem,
    ImageMissing,
    PolicyError,
    PullLimit,
    SandboxError,
)
from dagger_nb.experiment import Experiment, observation_cache
from dagger_nb.fleet import CohortJob, Executor, run_job
from dagger_nb.labelling import SECOND_TEMPERATURE, Labelled, ask_teacher, label_episode
from dagger_nb.mixing import STUDENT_ALONE, TEACHER_ALONE, BernoulliMixer, Schedule, sampling_seed
from dagger_nb.policies import teacher
from dagger_nb.policies.oracle import OraclePolicy
from dagger_nb.policies.protocol import Answer, Sampling
from dagger_nb.progress import LONGEST_S, Progress
from dagger_nb.records import Action, StopReason, Task, Trajectory, Turn
from dagger_nb.rollout import run_cohort
from dagger_nb.sandboxes import CommandResult, local_factory
from dagger_nb.settings import LabelSettings
from dagger_nb.store import CohortRecord
from dagger_nb.students import LocalStudent, Version, load_for_acting

HERE = Path(__file__).parent
HOT = Sampling(0.7, 0.9, 8)
MIXED = BernoulliMixer(Schedule("constant", start=0.5))


# --- who plays -----------------------------------------------------------------------------------------------


Hook = Callable[[Task, Sequence[Turn]], Awaitable[None]]


class Busy:
    """A student that numbers its turns aloud and submits after `turns` of them; `hook` is awaited before each."""

    name = "busy"

    def __init__(self, turns: int = 3, hook: Hook | None = None) -> None:
        self.turns, self.hook, self.asked = turns, hook, []

    async def answer(self, task: Task, turns: Sequence[Turn], sampling: Sampling, seed: int) -> Answer:
        self.asked.append((task.instance_id, len(turns), sampling, seed))
        if self.hook:
            await self.hook(task, turns)
        if len(turns) == self.turns:
            return Answer(Action("", "finish"))
        return Answer(Action("Go.", "execute_bash", {"command": f"echo {len(turns)}"}))


class Desks:
    """A factory of sandboxes without processes, which counts; `hook(task, command)` is called where work would be."""

    name = "desks"

    def __init__(self, hook: Callable[[Task, str], None] | None = None) -> None:
        self.hook, self.lock = hook or (lambda task, command: None), threading.Lock()
        self.opened: Counter[str] = Counter()
        self.closed: Counter[str] = Counter()
        self.now, self.most = Counter(), Counter()
        self.fetched: list[list[str]] = []

    def open(self, task: Task) -> Desk:
        with self.lock:
            self.opened[task.instance_id] += 1
        self.count("open", 1)
        self.hook(task, "open")
        return Desk(task, self)

    def prefetch(self, tasks: Sequence[Task], log: Callable[[str], None] = print) -> dict[str, SandboxError]:
        self.fetched.append([task.instance_id for task in tasks])
        return {}

    def guarantees(self) -> dict[str, str]:
        return {}

    def count(self, what: str, change: int) -> None:
        with self.lock:
            self.now[what] += change
            self.most[what] = max(self.most[what], self.now[what])


class Desk:
    def __init__(self, task: Task, desks: Desks) -> None:
        self.task, self.desks, self.is_open = task, desks, True

    def run(self, command: str, timeout_s: float | None = None) -> CommandResult:
        assert self.is_open, "used after it was closed"
        self.desks.count("command", 1)
        try:
            self.desks.hook(self.task, command)
        finally:
            self.desks.count("command", -1)
        return CommandResult(command[5:], 0)

    def diff(self) -> str:
        self.desks.hook(self.task, "diff")
        return f"patch of {self.task.instance_id}"

    def close(self) -> None:
        if self.is_open:
            self.is_open = False
            self.desks.closed[self.task.instance_id] += 1
            self.desks.count("open", -1)
            self.desks.hook(self.task, "close")


def alone(**more) -> Conditions:
    return Conditions(**{"mixer": STUDENT_ALONE, "sampling": GREEDY, "run_seed": 0, "policy": "base"} | more)


@pytest.fixture
def collector(renderer):
    def make(student, factory, capacity=Capacity(8, 8, 4), log=silent, **more) -> Collector:  # noqa: B008
        return Collector(casting(student, **more), factory, renderer, capacity, log, every_s=0.05)

    return make


@pytest.fixture(autouse=True)
def nothing_left() -> Iterator[None]:
    """Every test leaves as many threads as it found."""
    before = set(threading.enumerate())
    yield
    assert {thread.name for thread in set(threading.enumerate()) - before} == set()


@pytest.fixture(scope="module")
def student(tiny_base, one_thread) -> LocalStudent:
    found = load_for_acting(Version(str(tiny_base), quantise=False))
    for parameter in found.model.parameters():  # away from ties: a random model's logits are nearly equal
        parameter.data *= 3.0 if parameter.ndim == 2 else 1.0
    return found


# --- the same episodes ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 4])
@pytest.mark.parametrize(
    "conditions",
    [
        Conditions(MIXED, GREEDY, 1, "base", Limits(6, 3000, 9), shadow=True),
        Conditions(MIXED, HOT, 2, "base", Limits(6, 3000, 9), slip_rate=0.5),
        Conditions(STUDENT_ALONE, HOT, 3, "base", Limits(9, 700, 9)),  # some end within an action, out of context
        Conditions(TEACHER_ALONE, GREEDY, 3, "base", Limits(30, 3000, 9)),
    ],
    ids=["greedy and shadow", "sampled and slips", "a short context", "the teacher alone"],
)
def test_episodes_are_those_of_a_lockstep_cohort(student, train_tasks, sandboxes, conditions, size):
    """In real sandboxes, with a real model, whoever acts: trajectories, shadows and labels are equal."""
    renderer, context = student.renderer, conditions.limits.context
    expected = run_cohort(
        [Plan(task) for task in train_tasks],
        conditions,
        session=student.session(len(train_tasks), context),
        teacher=teacher.label,
        renderer=renderer,
        factory=sandboxes,
    )
    collector = Collector(casting(Local(student, context), renderer=renderer), sandboxes, renderer, log=silent)
    records = collected(collector, jobs(train_tasks, conditions, size))
    found = [trajectory for n in sorted(records) for trajectory in records[n].trajectories]
    assert found == [rollout.trajectory for rollout in expected]
    shadows = {(*r.trajectory.key, turn): action for r in expected for turn, action in r.shadows.items()}
    assert {key: action for n in records for key, action in records[n].shadows.items()} == shadows
    assert bool(shadows) == conditions.shadow
    for n, record in records.items():
        assert [label.turn for label in record.labels] == [t.index for one in record.trajectories for t in one.turns]
        assert [t.instance_id for t in record.trajectories] == [
            task.instance_id for task in train_tasks[n * size : (n + 1) * size]
        ]


def test_timing_changes_nothing(collector, train_tasks):
    async def anyhow(task: Task, turns: Sequence[Turn]) -> None:
        await asyncio.sleep(rng.random() / 50)

    conditions, rng = alone(mixer=MIXED, slip_rate=0.3), np.random.default_rng()
    plain = collected(collector(Busy(5), Desks()), jobs(train_tasks, conditions))
    assert collected(collector(Busy(5, anyhow), Desks()), jobs(train_tasks, conditions)) == plain
    assert collected(collector(Busy(5, anyhow), Desks(), Capacity(1, 1, 1)), jobs(train_tasks, conditions)) == plain


def test_a_student_is_asked_for_no_more_than_the_context_holds_and_with_a_seed_of_its_own(
    collector, renderer, train_tasks
):
    prompt = len(renderer.prompt_ids(train_tasks[0]))
    student = Busy(50)
    conditions = alone(sampling=Sampling(max_new_tokens=40), limits=Limits(context=prompt + 230))
    (record,) = collected(collector(student, Desks()), jobs(train_tasks[:1], conditions)).values()
    tokens = prompt
    for turn, (*_, sampling, _) in zip(record.trajectories[0].turns, student.asked, strict=True):
        assert sampling.max_new_tokens == min(40, prompt + 230 - tokens)
        assert turn.token_ids == renderer.action_ids(turn.action)  # this student does not tell its ids
        tokens += len(turn.token_ids) + turn.observation_tokens
    assert record.trajectories[0].stop is StopReason.CONTEXT and tokens >= prompt + 230
    seeds = [seed for *_, seed in student.asked]
    assert len(set(seeds)) == len(seeds) and all(0 <= seed < 2**53 for seed in seeds)
    (found,) = record.trajectories
    assert seeds == [
        sampling_seed(0, *found.key, n) for n in range(len(found.turns))
    ]  # a label there is a turn's answer again
    other = Busy(50)
    collected(collector(other, Desks()), jobs(train_tasks[:1], replace(conditions, run_seed=1)))
    assert not {seed for *_, seed in other.asked} & set(seeds)


def test_no_state_is_labelled_where_no_label_is_wanted(collector, renderer, train_tasks):
    for wanted in (True, False):
        made = collector(Busy(3), Desks(), renderer=renderer)
        (record,) = collected(made, jobs(train_tasks[:1], alone(labelled=wanted))).values()
        assert bool(record.labels) == wanted and record.trajectories[0].turns and not record.missing


def test_a_prompt_that_fills_the_context_ends_its_own_episode(collector, renderer, student, train_tasks):
    sizes = [len(renderer.prompt_ids(task)) for task in train_tasks]
    conditions = alone(limits=Limits(context=max(sizes)))
    longest = sizes.index(max(sizes))
    desks, busy = Desks(), Busy(1)
    records = collected(collector(busy, desks), jobs(train_tasks, conditions))
    together = run_cohort(
        [Plan(task) for task in train_tasks],
        conditions,
        session=student.session(len(train_tasks), max(sizes)),
        teacher=teacher.label,
        renderer=renderer,
        factory=desks,
    )
    for found in (records[longest].trajectories[0], together[longest].trajectory):
        assert (found.stop, found.turns, found.patch) == (StopReason.CONTEXT, (), "")
        assert f"{max(sizes)} tokens" in found.detail
    name = train_tasks[longest].instance_id
    assert desks.opened[name] == 0 and name not in {asked for asked, *_ in busy.asked}
    assert all(records[n].trajectories[0].turns for n in range(4) if sizes[n] < max(sizes) - 20)
    assert sum(bool(rollout.trajectory.turns) for rollout in together) == sum(size < max(sizes) for size in sizes)


# --- failures ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("who", ["student", "teacher", "shadow", "open", "echo 1", "diff"])
def test_a_failure_ends_its_own_episode_and_no_other(collector, train_tasks, who):
    struck = train_tasks[1].instance_id

    async def refuse(task: Task, turns: Sequence[Turn]) -> None:
        if task.instance_id == struck and len(turns) == 1:
            raise PolicyError("the endpoint gave no answer")

    def break_down(task: Task, command: str) -> None:
        if (task.instance_id, command) == (struck, who):
            raise SandboxError("the sandbox broke")

    policies = {"student": (Busy(3, refuse), Busy(3)), "teacher": (Busy(3), Busy(3, refuse))}
    mixer = TEACHER_ALONE if who in ("teacher", "shadow") else STUDENT_ALONE
    acts, by = policies.get(who, policies["student"] if who == "shadow" else (Busy(3), Busy(3)))
    desks, work = Desks(break_down), jobs(train_tasks, alone(mixer=mixer, shadow=who == "shadow"))
    healthy = collected(collector(Busy(3), Desks(), by=Busy(3)), work)
    found = collected(collector(acts, desks, by=by), work)
    broken = found[1].trajectories[0]
    assert broken.stop is StopReason.INFRASTRUCTURE and broken.patch == ""
    assert broken.detail in ("the endpoint gave no answer", "the sandbox broke")
    assert len(broken.turns) == {"open": 0, "diff": 4}.get(who, 1)
    assert [found[n] for n in (0, 2, 3)] == [healthy[n] for n in (0, 2, 3)]
    assert sum(desks.closed.values()) == 4 - (who == "open")


class Stammering:
    """A teacher whose answers of some turns are malformed so many times in a row; it asks itself by seed."""

    name = "stammering"

    def __init__(self, times: dict[int, int], turns: int = 3) -> None:
        self.times, self.well, self.asked = times, Busy(turns), []

    async def answer(self, task: Task, turns: Sequence[Turn], sampling: Sampling, seed: int) -> Answer:
        self.asked.append((len(turns), sampling.temperature, seed))
        tried = seed - sampling_seed(0, task.instance_id, 0, len(turns))
        if tried < self.times.get(len(turns), 0):
            return Answer(Action("", "", raw=f"ls {tried}", error="no call"), usage=Tokens(100, 1))
        return replace(await self.well.answer(task, turns, sampling, seed), usage=Tokens(100, 2))


def test_a_malformed_turn_of_the_teacher_is_asked_for_once_more_and_then_executed_without_a_label(
    collector, renderer, train_tasks
):
    by = Stammering({0: 1, 2: 2})

    async def label(task: Task, trajectory: Trajectory) -> Labelled:
        every, greedy = LabelSettings(), Sampling(max_new_tokens=160)
        more = {"policy": by, "renderer": renderer, "sampling": greedy, "settings": every, "run_seed": 0}
        return await label_episode(task, trajectory, **more)

    work = jobs(train_tasks[:1], alone(mixer=TEACHER_ALONE, limits=Limits(loop_repeats=9)))
    record = collected(collector(Busy(9), Desks(), by=by, label=label), work)[0]
    (found,) = record.trajectories
    assert [turn.action.malformed for turn in found.turns] == [False, False, True, False]
    assert found.turns[2].action.raw == "ls 1" and found.turns[2].observation and found.stop is StopReason.FINISH
    assert [(each.turn, each.lesson) for each in record.labels] == [(0, False), (1, False), (3, False)]
    assert [(each.turn, each.reason) for each in record.missing] == [(2, "malformed")]
    seeds = [(turn, sampling_seed(0, *found.key, turn)) for turn in range(4)]
    asked = [(0, seeds[0][1]), (0, seeds[0][1] + 1), seeds[1], seeds[2], (2, seeds[2][1] + 1), seeds[3]]
    assert [(turn, seed) for turn, _, seed in by.asked[:6]] == asked
    assert sorted((turn, seed) for turn, _, seed in by.asked[6:]) == sorted(asked)  # which a file of answers knows
    assert {heat for turn, heat, seed in by.asked if (turn, seed) in (asked[1], asked[4])} == {SECOND_TEMPERATURE}


def test_an_answer_that_was_asked_for_twice_counts_both(train_tasks):
    seed = sampling_seed(0, train_tasks[0].instance_id, 0, 0)
    for times, completion in ((0, 2), (1, 3), (2, 2)):
        answer = ask_teacher(Stammering({0: times}), train_tasks[0], (), GREEDY, seed)
        assert asyncio.run(answer).usage == Tokens(100 * min(2, times + 1), completion)


def test_an_episode_too_long_for_the_teacher_ends_by_its_context_and_keeps_its_patch(collector, train_tasks):
    async def refuse(task: Task, turns: Sequence[Turn]) -> None:
        if len(turns) == 2:
            raise ContextError("6200 tokens are more than the teacher reads")

    work = jobs(train_tasks[:1], alone(mixer=TEACHER_ALONE))
    found = collected(collector(Busy(3), Desks(), by=Busy(3, refuse)), work)[0]
    (trajectory,) = found.trajectories
    assert (trajectory.stop, len(trajectory.turns)) == (StopReason.CONTEXT, 2)
    assert "teacher reads" in trajectory.detail and trajectory.patch


@pytest.mark.parametrize("error", [BudgetError("2 queries"), EnvironmentProblem("it is gone"), TypeError("?")])
@pytest.mark.parametrize("where", ["student", "label"])
def test_what_concerns_the_run_stops_it_after_the_finished_episodes(collector, train_tasks, error, where):
    """Tasks 0 and 1 finish; then task 2 meets the error while task 3 is being asked."""
    done: list[int] = []
    waits = asyncio.Event()

    async def hook(task: Task, turns: Sequence[Turn]) -> None:
        place = train_tasks.index(task)
        while place >= 2 and (len(done) < 2 or len(desks.opened) < 4):  # a busy machine opens the last one late
            await asyncio.sleep(0.01)
        if place == 2 and where == "student":
            raise error
        if place == 3:
            await waits.wait()

    async def label(task: Task, trajectory: Trajectory) -> Labelled:
        done.append(1)
        if task == train_tasks[2]:
            raise error
        return NO_LABELS

    desks, found = Desks(), []
    with pytest.raises(type(error)) as raised:
        for job, *_ in collector(Busy(2, hook), desks, label=label).run(jobs(train_tasks, alone())):
            found.append(job.number)
    assert raised.value is error
    assert sorted(found) == [0, 1]
    assert desks.opened == desks.closed and len(desks.opened) == 4


def test_a_cast_is_opened_once_a_student_and_closed_in_any_case(renderer, train_tasks):
    said: list[str] = []

    async def refuse(task: Task, turns: Sequence[Turn]) -> None:
        raise BudgetError("0 queries")

    work = jobs(train_tasks, alone())
    work[2:] = [replace(job, student=Version("a base", "an adapter", name="abc")) for job in work[2:]]
    assert len(collected(Collector(casting(Busy(), heard=said), Desks(), renderer, log=silent), work)) == 4
    assert said == ["open base", "open abc", "close abc", "close base"]

    opened: list[str] = []

    @asynccontextmanager
    async def cast(version: Version) -> AsyncIterator[Cast]:
        opened.append("open")
        try:
            yield Cast(Busy(3, refuse), OraclePolicy(), None, GREEDY)
        finally:
            opened.append("close")

    with pytest.raises(BudgetError):
        collected(Collector(cast, Desks(), renderer, log=silent), work[:2])
    assert opened == ["open", "close"]


def test_a_cast_that_cannot_be_opened_stops_the_run(renderer, train_tasks):
    @asynccontextmanager
    async def nobody(version: Version) -> AsyncIterator[Cast]:
        raise EnvironmentProblem("no server at that address")
        yield

    desks = Desks()
    with pytest.raises(EnvironmentProblem, match="no server"):
        collected(Collector(nobody, desks, renderer, log=silent), jobs(train_tasks, alone()))
    assert not desks.opened


def test_a_run_without_any_sandbox_ends_before_every_episode_is_spoilt(collector, train_tasks):
    def shut(task: Task, command: str) -> None:
        if command == "open" and task.instance_id not in lucky:
            raise SandboxError("the daemon does not answer")

    work = jobs([replace(train_tasks[0], instance_id=f"task-{n:02d}") for n in range(20)], alone())
    lucky = {f"task-{n:02d}" for n in range(0, 20, 4)}  # never four failures in a row: images that are missing
    found = collected(collector(Busy(1), Desks(shut), Capacity(1, 2, 1)), work)
    assert sum(record.trajectories[0].stop is StopReason.INFRASTRUCTURE for record in found.values()) == 15
    lucky, numbers = {"task-00"}, []
    with pytest.raises(EnvironmentProblem, match="4 sandboxes in a row .* daemon does not answer"):
        for job, *_ in collector(Busy(1), Desks(shut), Capacity(1, 2, 1)).run(work):
            numbers.append(job.number)
    assert numbers == [0, 1, 2, 3]


def test_images_that_their_registry_lacks_fail_their_own_tasks_however_many_in_a_row(collector, train_tasks):
    def gone(task: Task, command: str) -> None:
        if command == "open" and task.instance_id != "task-00":
            raise ImageMissing("manifest unknown")

    work = jobs([replace(train_tasks[0], instance_id=f"task-{n:02d}") for n in range(20)], alone())
    found = collected(collector(Busy(1), Desks(gone), Capacity(1, 2, 1)), work)
    assert sum(record.trajectories[0].stop is StopReason.INFRASTRUCTURE for record in found.values()) == 19


def test_a_slip_needs_no_files_of_the_task(collector, train_tasks):
    """Real tasks bring none, only a gold patch."""
    bare = [replace(task, files={}) for task in train_tasks]
    found = collected(collector(Busy(4), Desks()), jobs(bare, alone(slip_rate=1.0)))
    assert all(record.trajectories[0].stop is StopReason.FINISH for record in found.values())


@pytest.mark.parametrize("turn", [0, 1])  # some servers refuse every chat that holds a call of a tool
def test_models_that_answer_nobody_end_the_run_before_every_episode_is_spoilt(collector, train_tasks, turn):
    async def refuse(task: Task, turns: Sequence[Turn]) -> None:
        if task.instance_id not in lucky and len(turns) == turn:
            raise PolicyError("status 401: Unauthorized")

    work = jobs([replace(train_tasks[0], instance_id=f"task-{n:02d}") for n in range(20)], alone())
    lucky = {f"task-{n:02d}" for n in range(0, 20, 4)}
    found = collected(collector(Busy(1, refuse), Desks(), Capacity(1, 2, 1)), work)
    assert sum(record.trajectories[0].stop is StopReason.INFRASTRUCTURE for record in found.values()) == 15
    lucky, numbers = {"task-00"}, []
    with pytest.raises(EnvironmentProblem, match="4 episodes in a row .* 401"):
        for job, *_ in collector(Busy(1, refuse), Desks(), Capacity(1, 2, 1)).run(work):
            numbers.append(job.number)
    assert numbers == [0, 1, 2, 3]


def test_a_registry_that_limits_pulls_is_waited_for_and_delays_nobody_else(collector, train_tasks, monkeypatch):
    monkeypatch.setattr("dagger_nb.collector.PAUSE_S", 0.05)
    refused, heard, began = Counter(), [], time.monotonic()

    class Limited(Desks):
        def open(self, task: Task) -> Desk:
            refused[task.instance_id] += task != train_tasks[0]
            if task == train_tasks[3] or 1 <= refused[task.instance_id] <= 4:
                raise PullLimit("toomanyrequests; docker login, or wait")
            return super().open(task)

    monkeypatch.setattr("dagger_nb.collector.PAUSES", 40)
    one = Capacity(1, 1, 1)  # an episode whose image is here has the place of one that waits
    found = collected(collector(Busy(3), Limited(), one, log=heard.append), jobs(train_tasks[::-1], alone()))
    found = {3 - number: record for number, record in found.items()}
    ends = [record.trajectories[0].stop for _, record in sorted(found.items())]
    assert ends == [StopReason.FINISH] * 3 + [StopReason.INFRASTRUCTURE]
    assert "docker login" in found[3].trajectories[0].detail
    assert time.monotonic() - began > 40 * 0.05
    assert any("1/4 episodes" in line and "3 wait: the registry limits pulls" in line for line in heard)
    assert "wait" not in heard[-1]


def test_a_registry_whose_limit_is_shared_by_many_is_waited_for_while_it_hands_out_any(
    collector, train_tasks, monkeypatch
):
    """Docker Hub's hours for a round are many times the patience with a registry that hands out nothing."""
    monkeypatch.setattr("dagger_nb.collector.PAUSE_S", 0.02)
    monkeypatch.setattr("dagger_nb.collector.PAUSES", 20)
    asked, windows = Counter(), Counter()

    class Metered(Desks):
        def open(self, task: Task) -> Desk:
            asked[task.instance_id] += 1
            window = int((time.monotonic() - began) / 0.1)
            windows[window] += 1
            if windows[window] > 2:
                raise PullLimit("toomanyrequests; docker login, or wait")
            return super().open(task)

    work = jobs([replace(train_tasks[0], instance_id=f"task-{n:02d}") for n in range(30)], alone())
    began = time.monotonic()
    found = collected(collector(Busy(1), Metered(), Capacity(2, 2, 2)), work)
    assert time.monotonic() - began > 2 * 0.4  # twice the patience
    assert all(record.trajectories[0].stop is StopReason.FINISH for record in found.values())
    assert asked.total() < 30 + 30 * 12  # and not each of them in each pause


def test_what_sandboxes_need_is_fetched_once_for_all_episodes_in_their_order(collector, train_tasks):
    desks = Desks()
    collected(collector(Busy(1), desks), jobs(train_tasks, alone(), size=3))
    assert desks.fetched == [[task.instance_id for task in train_tasks]]


def test_no_jobs_need_nobody(collector):
    assert collected(collector(None, None), []) == {}
    with pytest.raises(ConfigError, match="at least one"):
        Capacity(sandboxes=0)


# --- at once -------------------------------------------------------------------------------------------------

Waiting = Callable[[Task], Awaitable[None]]


def waits_in(where: str, wait: Waiting) -> tuple[Callable[[Task, Sequence[Turn]], Awaitable[None]], Labeller]:
    """A student and a labeller that `wait` where they are meant: at the second "answer", or at a "label"."""

    async def hook(task: Task, turns: Sequence[Turn]) -> None:
        if where == "answer" and len(turns) == 1:
            await wait(task)

    async def label(task: Task, trajectory: Trajectory) -> Labelled:
        if where == "label":
            await wait(task)
        return NO_LABELS

    return hook, label


def is_meant(command: str, where: str) -> bool:
    """Whether what a sandbox does is the "command", or the step of another name, that is meant."""
    return command == {"command": "echo 1"}.get(where, where)


@pytest.mark.parametrize("where", ["answer", "command", "open", "diff", "label"])
def test_a_slow_episode_delays_nobody(collector, train_tasks, where):
    """The first episode goes on only when the others have been yielded."""
    released, slow = threading.Event(), train_tasks[0].instance_id

    async def wait(task: Task) -> None:
        while task.instance_id == slow and not released.is_set():
            await asyncio.sleep(0.005)

    def block(task: Task, command: str) -> None:
        if task.instance_id == slow and is_meant(command, where):
            assert released.wait(60)

    hook, label = waits_in(where, wait)
    order = []
    for job, *_ in collector(Busy(3, hook), Desks(block), Capacity(4, 4, 2), label=label).run(
        jobs(train_tasks, alone())
    ):
        order.append(job.number)
        if len(order) == 3:
            released.set()
    assert sorted(order[:3]) == [1, 2, 3] and order[3] == 0


def test_the_bounds_hold_and_are_used(collector, train_tasks):
    """Twelve episodes; at most five at once, three with a sandbox, two with a command."""
    tasks = [replace(train_tasks[0], instance_id=f"task-{n:02d}") for n in range(12)]
    playing, most = set(), Counter()

    async def hook(task: Task, turns: Sequence[Turn]) -> None:
        playing.add(task.instance_id)
        most["episodes"] = max(most["episodes"], len(playing))
        await asyncio.sleep(0.002)

    async def label(task: Task, trajectory: Trajectory) -> Labelled:
        await asyncio.sleep(0.1)  # labels take longer than episodes: those wait for a place
        playing.remove(task.instance_id)
        return NO_LABELS

    desks = Desks(lambda task, command: time.sleep(0.004))
    work = jobs(tasks, alone())
    assert len(collected(collector(Busy(3, hook), desks, Capacity(5, 3, 2), label=label), work)) == 12
    assert (most["episodes"], desks.most["open"], desks.most["command"]) == (5, 3, 2)
    assert desks.opened == desks.closed == Counter(task.instance_id for task in tasks)


def test_a_notebook_whose_loop_runs_already_can_collect(collector, train_tasks):
    async def cell() -> dict[int, CohortRecord]:
        return collected(collector(Busy(), Desks()), jobs(train_tasks, alone()))

    assert len(asyncio.run(cell())) == 4


def test_a_sandbox_that_cannot_be_removed_spoils_no_episode(collector, train_tasks, caplog):
    def stuck(task: Task, command: str) -> None:
        if command == "close" and task is train_tasks[0]:
            raise SandboxError("the daemon does not answer")

    found = collected(collector(Busy(), Desks(stuck)), jobs(train_tasks, alone()))
    assert all(record.trajectories[0].patch and not record.trajectories[0].detail for record in found.values())
    assert f"{train_tasks[0].instance_id}: its sandbox is left behind: the daemon does not answer" in caplog.text


def test_sandboxes_that_cannot_be_removed_hide_no_error(collector, train_tasks, caplog):
    """What ended the run is raised, and not what happened while the others were cancelled."""

    async def refuse(task: Task, turns: Sequence[Turn]) -> None:
        if len(turns) == 1:
            raise BudgetError("2 queries")

    def stuck(task: Task, command: str) -> None:
        if command == "close":
            raise SandboxError("the daemon does not answer")

    desks = Desks(stuck)
    with pytest.raises(BudgetError, match="2 queries"):
        collected(collector(Busy(3, refuse), desks), jobs(train_tasks, alone()))
    assert desks.opened == desks.closed and "is left behind: the daemon does not answer" in caplog.text


# --- cancelled and killed ------------------------------------------------------------------------------------


def consume(collector: Collector, work: Sequence[CohortJob], way: str, ready: Callable[[], None]) -> None:
    """Take the first result, then leave; the iterator is nobody's but the loop's."""
    for _ in collector.run(work):
        ready()
        if way == "break":
            break
        if way == "error":
            raise ZeroDivisionError
        signal.setitimer(signal.ITIMER_REAL, 0.1)  # goes off while the next result is waited for


def interrupt(number: int, frame: object) -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize("way", ["break", "error", "interrupt"])
@pytest.mark.parametrize("where", ["answer", "command", "open", "label"])
def test_whoever_leaves_leaves_no_sandbox_no_thread_and_no_task(collector, train_tasks, way, where):
    """One episode finishes; the other three are in the middle of something when the consumer goes away."""
    slow, inside, cancelled = {task.instance_id for task in train_tasks[1:]}, set(), set()

    async def wait(task: Task) -> None:
        inside.add(task.instance_id)
        try:
            await asyncio.sleep(3600 if task.instance_id in slow else 0)
        except asyncio.CancelledError:
            cancelled.add(task.instance_id)
            raise

    def block(task: Task, command: str) -> None:
        if task.instance_id in slow and is_meant(command, where):
            inside.add(task.instance_id)
            assert end.wait(60)

    def ready() -> None:
        while not slow <= inside:
            time.sleep(0.01)
        ending.start()  # commands end in their own time: the collector waits for them

    hook, label = waits_in(where, wait)
    end = threading.Event()
    ending = threading.Timer(0.4, end.set)
    desks = Desks(block)
    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        consume(collector(Busy(3, hook), desks, Capacity(4, 4, 4), label=label), jobs(train_tasks, alone()), way, ready)
    except (ZeroDivisionError, KeyboardInterrupt) as error:
        assert type(error).__name__ == {"error": "ZeroDivisionError", "interrupt": "KeyboardInterrupt"}[way]
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
        ending.join()
    assert desks.opened == desks.closed and desks.now["open"] == desks.now["command"] == 0
    assert cancelled == (slow if where in ("answer", "label") else set())


def test_a_cancelled_run_leaves_no_real_sandbox(collector, train_tasks):
    opened = []

    class Watched:
        name = "watched"

        def prefetch(self, tasks: Sequence[Task], log: Callable[[str], None] = print) -> dict[str, SandboxError]:
            return factory.prefetch(tasks, log)

        def open(self, task: Task):
            opened.append(factory.open(task))
            return opened[-1]

    async def hook(task: Task, turns: Sequence[Turn]) -> None:
        if task != train_tasks[0]:
            await asyncio.sleep(0 if len(turns) < 2 else 3600)

    with local_factory() as factory:
        running = collector(Busy(3, hook), Watched()).run(jobs(train_tasks, alone()))
        next(running)
        running.close()
    assert len(opened) == 4
    for sandbox in opened:
        with pytest.raises(SandboxError, match="closed"):
            sandbox.run("true")


SMALL = {
    "tasks.tasks_per_round": 2,
    "dagger.switch_turns_per_round": 2,
    "dagger.filter": "none",
    "episode.cohort": 1,
    "episode.max_turns": 3,
    "episode.max_new_tokens": 6,
    "episode.command_timeout_s": 120.0,
    "threads": 1,
}


def served(base: Path) -> Experiment:
    """An experiment whose episodes a collector runs, with the tiny student behind `Policy`."""
    from dagger_nb.students import renderer_of

    torch.set_num_threads(1)
    settings = config.load("smoke", {"student.path": str(base), **SMALL})
    renderer = renderer_of(str(base))

    def load(version: Version) -> Local:
        return Local(load_for_acting(version), settings.episode.context)

    cast = loading(load, renderer)
    factory = local_factory(cache=observation_cache())
    return Experiment("switch", settings, Crew(Collector(cast, factory, renderer, Capacity(1, 1, 1), silent)), silent)


class Here(Executor):
    """A fleet of one worker: this process."""

    def run(self, work: Sequence[CohortJob]) -> Iterator[tuple[CohortJob, CohortRecord, float]]:
        for job in work:
            yield job, *run_job(job)


RUN = """
import os, signal, sys
sys.path[:0] = [sys.argv[1], sys.argv[2]]
from pathlib import Path
import test_collector as T
keep, seen = os.replace, []
def stop(*arguments, **more):
    seen.append(1)
    if len(seen) == int(sys.argv[4]):
        os.kill(os.getpid(), signal.SIGKILL)
    return keep(*arguments, **more)
os.replace = stop
T.served(Path(sys.argv[3])).collect(1)
"""


@pytest.mark.slow
def test_a_killed_collection_goes_on_at_the_episode_and_gives_the_bytes_of_the_fleet(tiny_base, tmp_path, monkeypatch):
    monkeypatch.setenv("DAGGER_NB_HOME", str(tmp_path / "fleet"))
    fleet = served(tiny_base)
    fleet.fleet = Here()
    fleet.collect(1)
    expected = {path.name: path.read_bytes() for path in (fleet.store.root / "rounds/01").iterdir()}
    assert sorted(expected) == ["0000.jsonl", "0001.jsonl"]

    monkeypatch.setenv("DAGGER_NB_HOME", str(tmp_path / "collector"))
    arguments = [sys.executable, "-c", RUN, str(HERE), str(HERE.parent), str(tiny_base), "3"]
    done = subprocess.run(arguments, check=False, capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL, done.stderr[-2000:]
    found = served(tiny_base)
    folder = found.store.root / "rounds/01"
    first = {path.name: (path.stat().st_ino, path.read_bytes()) for path in folder.glob("[0-9]*")}
    assert sorted(first) == ["0000.jsonl"]  # config.json, one episode, and the kill while the second was written
    assert len(found.collect(1)) == 2
    assert {path.name: path.read_bytes() for path in folder.glob("[0-9]*")} == expected
    assert (folder / "0000.jsonl").stat().st_ino == first["0000.jsonl"][0]


# --- progress ------------------------------------------------------------------------------------------------


def finished(turns: int, stop: StopReason = StopReason.FINISH) -> Trajectory:
    turn = Turn(0, "student", Action("", "finish"), "", (1,), 0)
    return Trajectory("t", 0, 1, "base", (turn,) * turns, stop, "", 10)


def test_progress_is_due_at_most_once_in_a_while():
    progress = Progress(total=1, began=100.0, every_s=10.0)
    assert [now for now in range(100, 150, 3) if progress.due(float(now))] == [112, 124, 136, 148]


def test_days_of_progress_are_some_thousand_lines():
    """A saved notebook holds each of them."""
    progress, day = Progress(1, began=0.0), 24 * 3600
    lines = [now for now in range(10, 5 * day, 10) if progress.due(float(now))]
    assert 1000 < len(lines) < 2500 and lines[:3] == [10, 20, 30]
    assert max(later - now for now, later in pairwise(lines)) == LONGEST_S


def test_progress_tells_rates_dose_cost_and_the_time_left():
    progress = Progress(total=10, began=1000.0, spent=lambda: 1.5)
    assert progress.seconds_left(1001.0) is None and "left" not in progress.line(1001.0)
    for n in range(40):
        progress.turn("teacher" if n % 4 else "student", 25)
    progress.episode(finished(8), labels=8, missing=0)
    progress.episode(finished(12, StopReason.INFRASTRUCTURE), labels=7, missing=5)
    assert progress.seconds_left(1020.0) == pytest.approx(30.0)  # 100 turns in all are expected, 2 a second
    assert progress.line(1020.0) == (
        "2/10 episodes, 1 failed · 40 turns, 2.0/s · 1,000 tokens, 50/s · 75% by the teacher · 15 labels, 5 missing · "
        "cost 1.50 · 30 s left"
    )
    assert progress.line(1000.0)  # no time has passed: no division by it


def test_the_cost_can_be_told_after_the_bill_is_closed():
    amounts = [0.5, 0.75]
    progress = Progress(total=1, began=0.0, spent=lambda: amounts.pop(0))
    assert "cost 0.50" in progress.line(1.0)
    progress.settle()
    assert not amounts and "cost 0.75" in progress.line(2.0) and "cost 0.75" in progress.line(3.0)
    Progress(total=1, began=0.0).settle()


def test_the_collector_tells_its_progress_while_it_runs_and_at_the_end(collector, train_tasks):
    async def hook(task: Task, turns: Sequence[Turn]) -> None:
        await asyncio.sleep(0.05)

    lines: list[str] = []
    students = collector(Busy(3, hook), Desks(), log=lines.append, spent=lambda: 0.5)
    assert len(collected(students, jobs(train_tasks, alone()))) == 4
    assert len(lines) >= 2 and lines[-1].startswith("4/4 episodes · 16 turns") and "cost 0.50" in lines[-1]


def test_the_benchmark_counts_what_it_says(tiny_base, tmp_path, monkeypatch, capsys):
    monkeypatch.syspath_prepend(str(HERE.parent / "benchmarks"))
    benchmark, path = importlib.import_module("collector"), tmp_path / "folder" / "collector.json"
    load = ["--episodes", "4", "--at-once", "2", "--turns", "2", "--seconds", "0.3", "--idle", "34"]
    benchmark.main([*load, "--base", str(tiny_base), "--json", str(path)])
    (row,) = json.loads(path.read_text())["rows"]
    assert row["ideal_s"] == pytest.approx(1.2) and row["wall_s"] >= 1.2 and 0 < row["share"] <= 1
    assert "an idle episode takes" in capsys.readouterr().out
