"""One episode: who acts in a turn, what is recorded of it, and why the episode ends.

Lockstep cohorts (`rollout`) and the asynchronous collector (`collector`) differ in who waits for whom and in
nothing else: every decision about an episode and every record of it is made here, by functions of its state.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass, field

from dagger_nb import scaffold
from dagger_nb.errors import ContextError, EnvironmentProblem, PullLimit, SandboxError
from dagger_nb.mixing import Choice, Mixer, sampling_seed, uniform
from dagger_nb.policies.protocol import Answer, Sampling
from dagger_nb.records import Action, StopReason, Task, Trajectory, Turn
from dagger_nb.rendering import Renderer
from dagger_nb.sandboxes.protocol import Sandbox, SandboxFactory
from dagger_nb.settings import EpisodeSettings
from dagger_nb.slips import plausible_wrong_edit

LOG = logging.getLogger(__name__)
_USUAL = EpisodeSettings()


@dataclass(frozen=True, slots=True)
class Limits:
    """What ends an episode. `context` in tokens, `seconds` of wall clock (None: no such limit)."""

    max_turns: int = _USUAL.max_turns
    context: int = _USUAL.context
    loop_repeats: int = _USUAL.loop_repeats
    command_timeout_s: float = _USUAL.command_timeout_s
    observation_chars: int = _USUAL.observation_chars
    seconds: float | None = None


@dataclass(frozen=True, slots=True)
class Plan:
    """One episode to run: the task, the attempt (a number that seeds chance), and the round it belongs to."""

    task: Task
    attempt: int = 0
    round: int = 1


@dataclass(frozen=True, slots=True)
class Conditions:
    """How episodes are run. `policy` is the student's version; `slip_rate` is per student turn.

    `shadow` also asks the student in turns where the teacher acts, without executing the answer. `labelled` has the
    teacher answer in the states that were visited.
    """

    mixer: Mixer
    sampling: Sampling
    run_seed: int
    policy: str
    limits: Limits = Limits()
    slip_rate: float = 0.0
    shadow: bool = False
    labelled: bool = True


@dataclass(slots=True, eq=False)
class Episode:
    """The state of one episode while it runs; `tokens` counts what the student has read, the prompt included."""

    plan: Plan
    conditions: Conditions
    prompt_tokens: int
    tokens: int
    sandbox: Sandbox | None = None  # None: not opened yet, or it could not be
    turns: list[Turn] = field(default_factory=list)
    shadows: dict[int, Action] = field(default_factory=dict)
    stop: StopReason | None = None
    detail: str = ""

    @property
    def room(self) -> int:
        """Tokens that still fit the context."""
        return self.conditions.limits.context - self.tokens


@dataclass(frozen=True, slots=True)
class Rollout:
    """A finished episode, and what the student would have done where the teacher acted (turn -> action)."""

    trajectory: Trajectory
    shadows: Mapping[int, Action]


@dataclass(frozen=True, slots=True)
class Move:
    """What is about to be executed in one episode; `token_ids` are its ids for the student, end of turn included."""

    actor: str
    action: Action
    token_ids: tuple[int, ...]
    choice: Choice


# --- the beginning -----------------------------------------------------------------------------------------


def begin(plan: Plan, conditions: Conditions, prompt_tokens: int) -> Episode:
    """An episode before its first turn; where the prompt alone fills the context it has ended already."""
    episode = Episode(plan, conditions, prompt_tokens, prompt_tokens)
    if episode.room <= 0:
        episode.stop = StopReason.CONTEXT
        episode.detail = f"the prompt alone has {prompt_tokens} tokens; raise episode.context"
    return episode


def open_sandbox(episode: Episode, factory: SandboxFactory) -> SandboxError | None:
    """Give the episode its sandbox, or end it where none can be had; returns why not.

    Raises:
        PullLimit: its image can be had later.
    """
    try:
        episode.sandbox = factory.open(episode.plan.task)
    except PullLimit:
        raise
    except SandboxError as error:
        fail(episode, error)
        return error
    return None


# --- who acts, and what ------------------------------------------------------------------------------------


def choose(episode: Episode) -> Choice:
    """Who acts in the next turn."""
    plan = episode.plan
    return episode.conditions.mixer.choose(
        episode.conditions.run_seed, plan.round, plan.task.instance_id, plan.attempt, len(episode.turns)
    )


def slip(episode: Episode, choice: Choice) -> Action | None:
    """The wrong edit that replaces the student's next turn, where chance wants one and a view offers one."""
    key = ("slip", *_state(episode))
    if choice.teacher_acts or uniform(*key) >= episode.conditions.slip_rate:
        return None
    return plausible_wrong_edit(episode.plan.task, episode.turns, uniform(*key, "which"))


def answer_seed(episode: Episode) -> int:
    """The seed in [0, 2^53) of whatever is sampled in the next turn."""
    return sampling_seed(*_state(episode))


def _state(episode: Episode) -> tuple[int, str, int, int]:
    plan = episode.plan
    return episode.conditions.run_seed, plan.task.instance_id, plan.attempt, len(episode.turns)


def student_move(answer: Answer, choice: Choice, renderer: Renderer) -> Move:
    """The student's answer as sampled, ended by the end-of-turn token also where it ran out of room.

    Where the policy cannot tell the ids that it sampled, the action is rendered.
    """
    ids = answer.token_ids
    if not ids:
        return rendered_move("student", answer.action, choice, renderer)
    closed = ids if ids[-1] == renderer.end_id else (*ids, renderer.end_id)
    return Move("student", answer.action, closed, choice)


def rendered_move(actor: str, action: Action, choice: Choice, renderer: Renderer) -> Move:
    """An action that the student did not sample, in the student's tokens."""
    return Move(actor, action, renderer.action_ids(action), choice)


# --- what happens ------------------------------------------------------------------------------------------


def observe(episode: Episode, move: Move) -> str:
    """Execute a move and return what came back. Raises SandboxError."""
    limits = episode.conditions.limits
    return scaffold.execute(
        move.action, episode.sandbox, timeout_s=limits.command_timeout_s, chars=limits.observation_chars
    )


def record(episode: Episode, move: Move, observation: str, renderer: Renderer) -> tuple[int, ...]:
    """Append an executed turn, and end the episode where there is a reason to; returns the turn's ids."""
    seen = renderer.observation_ids(observation)
    turn = Turn(
        index=len(episode.turns),
        actor=move.actor,
        action=move.action,
        observation=observation,
        token_ids=move.token_ids,
        observation_tokens=len(seen),
        beta=move.choice.beta,
        draw=move.choice.draw,
    )
    episode.turns.append(turn)
    episode.tokens += len(move.token_ids) + len(seen)
    episode.stop = _why_stop(episode)
    return *move.token_ids, *seen


def _why_stop(episode: Episode) -> StopReason | None:
    """The first reason, in the order of StopReason, to end an episode after its latest turn."""
    limits = episode.conditions.limits
    if episode.turns[-1].action.tool == "finish":
        return StopReason.FINISH
    if scaffold.is_loop(episode.turns, limits.loop_repeats):
        return StopReason.LOOP
    if episode.room <= 0:
        return StopReason.CONTEXT
    return StopReason.TURNS if len(episode.turns) >= limits.max_turns else None


def stop_late(episode: Episode, began: float) -> None:
    """End an episode whose time is up; `began` is a reading of time.monotonic."""
    seconds = episode.conditions.limits.seconds
    if seconds is not None and time.monotonic() - began > seconds:
        episode.stop = episode.stop or StopReason.TIME


def fail(episode: Episode, error: EnvironmentProblem) -> None:
    """End an episode that its sandbox or a policy failed, or that has become too long for a policy to act in."""
    full = isinstance(error, ContextError)
    episode.stop, episode.detail = StopReason.CONTEXT if full else StopReason.INFRASTRUCTURE, str(error)


def finish(episode: Episode) -> Rollout:
    """Take the patch, close the sandbox, and seal what an ended episode has become."""
    patch = ""
    if episode.sandbox is not None:
        patch = _patch(episode)
        close_sandbox(episode)
    plan = episode.plan
    trajectory = Trajectory(
        instance_id=plan.task.instance_id,
        attempt=plan.attempt,
        round=plan.round,
        policy=episode.conditions.policy,
        turns=tuple(episode.turns),
        stop=episode.stop,
        patch=patch,
        prompt_tokens=episode.prompt_tokens,
        detail=episode.detail,
    )
    return Rollout(trajectory, dict(episode.shadows))


def close_sandbox(episode: Episode) -> None:
    """Close its sandbox. One that cannot be removed spoils nothing: its factory, or the next sweep, removes it."""
    try:
        episode.sandbox.close()
    except SandboxError as error:
        LOG.warning("%s: its sandbox is left behind: %s", episode.plan.task.instance_id, error)


def _patch(episode: Episode) -> str:
    if episode.stop is StopReason.INFRASTRUCTURE:
        return ""
    try:
        return episode.sandbox.diff()
    except SandboxError as error:
        fail(episode, error)
        return ""
