"""The episode loop, a cohort of episodes at once.

All episodes of a cohort take their turns together: the mixer says who acts, the student speaks in one batch,
the actions run in parallel sandboxes, and the observations go into the KV cache. What a cohort computes
depends on its plans alone, never on timing; a cohort that was killed is therefore simply run again.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from dagger_nb import scaffold
from dagger_nb.errors import SandboxError
from dagger_nb.mixing import Choice, Mixer, uniform
from dagger_nb.policies.protocol import Sampling
from dagger_nb.records import Action, StopReason, Task, Trajectory, Turn
from dagger_nb.rendering import Renderer
from dagger_nb.sandboxes.protocol import Sandbox, SandboxFactory
from dagger_nb.slips import plausible_wrong_edit

Teacher = Callable[[Task, Sequence[Turn]], Action]


class Session(Protocol):
    """Where a student speaks: one slot an episode (see `policies.local.Cohort`)."""

    tokens: Sequence[Sequence[int]]

    def extend(self, slot: int, ids: Sequence[int]) -> None: ...

    def rewind(self, slot: int, length: int) -> None: ...

    def generate(
        self, slots: Sequence[int], sampling: Sampling, draws: Mapping[int, np.random.Generator]
    ) -> dict[int, tuple[int, ...]]: ...


@dataclass(frozen=True, slots=True)
class Limits:
    """What ends an episode. `context` in tokens, `seconds` of wall clock (None: no such limit)."""

    max_turns: int = 40
    context: int = 6144
    loop_repeats: int = 3
    command_timeout_s: float = 10.0
    seconds: float | None = None


@dataclass(frozen=True, slots=True)
class Plan:
    """One episode to run: the task, the attempt (a number that seeds chance), and the round it belongs to."""

    task: Task
    attempt: int = 0
    round: int = 1


@dataclass(frozen=True, slots=True)
class Conditions:
    """How a cohort is run. `policy` is the student's version; `slip_rate` is per student turn.

    `shadow` also asks the student in turns where the teacher acts, without executing the answer.
    """

    mixer: Mixer
    sampling: Sampling
    run_seed: int
    policy: str
    limits: Limits = Limits()
    slip_rate: float = 0.0
    shadow: bool = False


@dataclass(slots=True)
class Episode:
    """The state of one episode while it runs."""

    plan: Plan
    slot: int
    sandbox: Sandbox | None  # None: it could not be opened
    prompt_tokens: int
    turns: list[Turn] = field(default_factory=list)
    shadows: dict[int, Action] = field(default_factory=dict)
    stop: StopReason | None = None
    detail: str = ""


@dataclass(frozen=True, slots=True)
class Rollout:
    """A finished episode, and what the student would have done where the teacher acted (turn -> action)."""

    trajectory: Trajectory
    shadows: Mapping[int, Action]


@dataclass(frozen=True, slots=True)
class _Move:
    """What is about to be executed in one episode."""

    actor: str
    action: Action
    token_ids: tuple[int, ...]
    choice: Choice


def run_cohort(
    plans: Sequence[Plan],
    conditions: Conditions,
    *,
    session: Session,
    teacher: Teacher,
    renderer: Renderer,
    factory: SandboxFactory,
    threads: int = 2,
) -> list[Rollout]:
    """Run every plan to its end, in lockstep; results in the order of the plans.

    Infrastructure failures end the episode they strike (StopReason.INFRASTRUCTURE) and no other.
    """
    started = time.monotonic()
    with ThreadPoolExecutor(max_workers=threads) as pool:
        episodes = [_begin(slot, plan, session, renderer, factory) for slot, plan in enumerate(plans)]
        while active := [episode for episode in episodes if episode.stop is None]:
            moves = _decide(active, conditions, session, teacher, renderer)
            _execute(active, moves, conditions, session, renderer, pool)
            _stop_late(active, conditions.limits, started)
        return list(pool.map(lambda episode: _finish(episode, conditions), episodes))


def _begin(slot: int, plan: Plan, session: Session, renderer: Renderer, factory: SandboxFactory) -> Episode:
    prompt = renderer.prompt_ids(plan.task)
    session.extend(slot, prompt)
    episode = Episode(plan, slot, None, len(prompt))
    try:
        episode.sandbox = factory.open(plan.task)
    except SandboxError as error:
        episode.stop, episode.detail = StopReason.INFRASTRUCTURE, str(error)
    return episode


# --- who acts, and what ------------------------------------------------------------------------------------


def _decide(
    active: Sequence[Episode], conditions: Conditions, session: Session, teacher: Teacher, renderer: Renderer
) -> dict[int, _Move]:
    choices = {episode.slot: _choice(episode, conditions) for episode in active}
    slips = {episode.slot: _slip(episode, conditions, choices[episode.slot]) for episode in active}
    speaking = [
        episode
        for episode in active
        if not slips[episode.slot] and (conditions.shadow or not choices[episode.slot].teacher_acts)
    ]
    said = _speak(speaking, conditions, session)
    moves = {}
    for episode in active:
        slot = episode.slot
        if choices[slot].teacher_acts:
            action = teacher(episode.plan.task, episode.turns)
            moves[slot] = _Move("teacher", action, renderer.action_ids(action), choices[slot])
            if slot in said:
                episode.shadows[len(episode.turns)] = renderer.parse(said[slot])
        elif slips[slot]:
            moves[slot] = _Move("slip", slips[slot], renderer.action_ids(slips[slot]), choices[slot])
        else:
            moves[slot] = _Move("student", renderer.parse(said[slot]), _closed(said[slot], renderer), choices[slot])
    return moves


def _choice(episode: Episode, conditions: Conditions) -> Choice:
    plan = episode.plan
    return conditions.mixer.choose(
        conditions.run_seed, plan.round, plan.task.instance_id, plan.attempt, len(episode.turns)
    )


def _slip(episode: Episode, conditions: Conditions, choice: Choice) -> Action | None:
    key = ("slip", conditions.run_seed, episode.plan.task.instance_id, episode.plan.attempt, len(episode.turns))
    if choice.teacher_acts or uniform(*key) >= conditions.slip_rate:
        return None
    return plausible_wrong_edit(episode.plan.task, episode.turns, uniform(*key, "which"))


def _speak(episodes: Sequence[Episode], conditions: Conditions, session: Session) -> dict[int, tuple[int, ...]]:
    """The student's words in each episode; the session is left as it was before they were said."""
    before = {episode.slot: len(session.tokens[episode.slot]) for episode in episodes}
    draws = {episode.slot: _chance(episode, conditions) for episode in episodes}
    said = session.generate(list(before), conditions.sampling, draws) if before else {}
    for slot, length in before.items():
        session.rewind(slot, length)
    return said


def _chance(episode: Episode, conditions: Conditions) -> np.random.Generator:
    plan = episode.plan
    number = uniform("sample", conditions.run_seed, plan.task.instance_id, plan.attempt, len(episode.turns))
    return np.random.default_rng(int(number * 2**53))


def _closed(ids: tuple[int, ...], renderer: Renderer) -> tuple[int, ...]:
    """The sampled ids, ended by the end-of-turn token also where the model ran out of room."""
    return ids if ids[-1] == renderer.end_id else (*ids, renderer.end_id)


# --- what happens ------------------------------------------------------------------------------------------


def _execute(
    active: Sequence[Episode],
    moves: Mapping[int, _Move],
    conditions: Conditions,
    session: Session,
    renderer: Renderer,
    pool: ThreadPoolExecutor,
) -> None:
    def observe(episode: Episode) -> str | SandboxError:
        try:
            action = moves[episode.slot].action
            return scaffold.execute(action, episode.sandbox, timeout_s=conditions.limits.command_timeout_s)
        except SandboxError as error:
            return error

    for episode, observation in zip(active, pool.map(observe, active), strict=True):
        if isinstance(observation, SandboxError):
            episode.stop, episode.detail = StopReason.INFRASTRUCTURE, str(observation)
        else:
            _record(episode, moves[episode.slot], observation, conditions.limits, session, renderer)


def _record(
    episode: Episode, move: _Move, observation: str, limits: Limits, session: Session, renderer: Renderer
) -> None:
    ids = renderer.observation_ids(observation)
    turn = Turn(
        index=len(episode.turns),
        actor=move.actor,
        action=move.action,
        observation=observation,
        token_ids=move.token_ids,
        observation_tokens=len(ids),
        beta=move.choice.beta,
        draw=move.choice.draw,
    )
    episode.turns.append(turn)
    tokens = len(session.tokens[episode.slot]) + len(move.token_ids) + len(ids)
    episode.stop = _why_stop(episode.turns, tokens, limits)
    if episode.stop is None:
        session.extend(episode.slot, (*move.token_ids, *ids))


def _why_stop(turns: Sequence[Turn], tokens: int, limits: Limits) -> StopReason | None:
    """The first reason, in the order of StopReason, to end an episode of so many turns and tokens."""
    if turns[-1].action.tool == "finish":
        return StopReason.FINISH
    if scaffold.is_loop(turns, limits.loop_repeats):
        return StopReason.LOOP
    if tokens >= limits.context:
        return StopReason.CONTEXT
    return StopReason.TURNS if len(turns) >= limits.max_turns else None


def _stop_late(active: Sequence[Episode], limits: Limits, started: float) -> None:
    if limits.seconds is not None and time.monotonic() - started > limits.seconds:
        for episode in active:
            episode.stop = episode.stop or StopReason.TIME


def _finish(episode: Episode, conditions: Conditions) -> Rollout:
    patch = ""
    if episode.stop is not StopReason.INFRASTRUCTURE:
        try:
            patch = episode.sandbox.diff()
        except SandboxError as error:
            episode.stop, episode.detail = StopReason.INFRASTRUCTURE, str(error)
    if episode.sandbox is not None:
        episode.sandbox.close()
    plan = episode.plan
    trajectory = Trajectory(
        instance_id=plan.task.instance_id,
        attempt=plan.attempt,
        round=plan.round,
        policy=conditions.policy,
        turns=tuple(episode.turns),
        stop=episode.stop,
        patch=patch,
        prompt_tokens=episode.prompt_tokens,
        detail=episode.detail,
    )
    return Rollout(trajectory, dict(episode.shadows))
