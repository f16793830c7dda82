"""The episode loop, a cohort of episodes at once.

All episodes of a cohort take their turns together: the mixer says who acts, the student speaks in one batch,
the actions run in parallel sandboxes, and the observations go into the KV cache. What a cohort computes
depends on its plans alone, never on timing; a cohort that was killed is therefore simply run again.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Protocol

import numpy as np

from dagger_nb import episode as core
from dagger_nb.episode import Conditions, Episode, Move, Plan, Rollout
from dagger_nb.errors import SandboxError
from dagger_nb.policies.protocol import Answer, Sampling, Teacher
from dagger_nb.rendering import Renderer
from dagger_nb.sandboxes.protocol import SandboxFactory

Active = Mapping[int, Episode]  # slot -> the episode that goes on there


class Session(Protocol):
    """Where a student speaks: one slot an episode (see `policies.local.Cohort`)."""

    tokens: Sequence[Sequence[int]]

    def extend(self, slot: int, ids: Sequence[int]) -> None: ...

    def rewind(self, slot: int, length: int) -> None: ...

    def generate(
        self, slots: Sequence[int], sampling: Sampling, draws: Mapping[int, np.random.Generator]
    ) -> dict[int, tuple[int, ...]]: ...


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

    Infrastructure failures end the episode they strike (StopReason.INFRASTRUCTURE) and no other; so does a
    prompt that leaves no room for a turn (StopReason.CONTEXT).
    """
    began = time.monotonic()
    with ThreadPoolExecutor(max_workers=threads) as pool:
        episodes = [_begin(slot, plan, conditions, session, renderer) for slot, plan in enumerate(plans)]
        try:
            list(pool.map(partial(core.open_sandbox, factory=factory), [e for e in episodes if e.stop is None]))
            while active := {slot: episode for slot, episode in enumerate(episodes) if episode.stop is None}:
                moves = _decide(active, conditions, session, teacher, renderer)
                _execute(active, moves, session, renderer, pool)
                for episode in active.values():
                    core.stop_late(episode, began)
            return list(pool.map(core.finish, episodes))
        except BaseException:
            list(pool.map(core.close_sandbox, [e for e in episodes if e.sandbox is not None]))
            raise


def _begin(slot: int, plan: Plan, conditions: Conditions, session: Session, renderer: Renderer) -> Episode:
    prompt = renderer.prompt_ids(plan.task)
    episode = core.begin(plan, conditions, len(prompt))
    if episode.stop is None:
        session.extend(slot, prompt)
    return episode


def _decide(
    active: Active, conditions: Conditions, session: Session, teacher: Teacher, renderer: Renderer
) -> dict[int, Move]:
    choices = {slot: core.choose(episode) for slot, episode in active.items()}
    slips = {slot: core.slip(episode, choices[slot]) for slot, episode in active.items()}
    asked = [slot for slot in active if not slips[slot] and (conditions.shadow or not choices[slot].teacher_acts)]
    said = _speak({slot: active[slot] for slot in asked}, conditions.sampling, session, renderer)
    moves = {}
    for slot, episode in active.items():
        if choices[slot].teacher_acts:
            action = teacher(episode.plan.task, episode.turns)
            moves[slot] = core.rendered_move("teacher", action, choices[slot], renderer)
            if slot in said:
                episode.shadows[len(episode.turns)] = said[slot].action
        elif slips[slot]:
            moves[slot] = core.rendered_move("slip", slips[slot], choices[slot], renderer)
        else:
            moves[slot] = core.student_move(said[slot], choices[slot], renderer)
    return moves


def _speak(asked: Active, sampling: Sampling, session: Session, renderer: Renderer) -> dict[int, Answer]:
    """The student's answer in each episode; the session is left as it was before they were given."""
    before = {slot: len(session.tokens[slot]) for slot in asked}
    draws = {slot: np.random.default_rng(core.answer_seed(episode)) for slot, episode in asked.items()}
    said = session.generate(list(before), sampling, draws) if before else {}
    for slot, length in before.items():
        session.rewind(slot, length)
    return {slot: Answer(renderer.parse(ids), ids) for slot, ids in said.items()}


def _execute(
    active: Active, moves: Mapping[int, Move], session: Session, renderer: Renderer, pool: ThreadPoolExecutor
) -> None:
    def observe(slot: int) -> str | SandboxError:
        try:
            return core.observe(active[slot], moves[slot])
        except SandboxError as error:
            return error

    for (slot, episode), observation in zip(active.items(), pool.map(observe, active), strict=True):
        if isinstance(observation, SandboxError):
            core.fail(episode, observation)
            continue
        ids = core.record(episode, moves[slot], observation, renderer)
        if episode.stop is None:
            session.extend(slot, ids)
