"""Who acts at turn t: a Bernoulli mixture whose beta follows a schedule, or a single switch.

Rounds count from 1, as in the paper. The draw of a turn comes from a counter, the hash of (run seed, task,
attempt, turn), before any model is called, so neither concurrency nor a resumed run can change it.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

from dagger_nb.errors import ConfigError


def uniform(*key: str | int) -> float:
    """A number in [0, 1) that depends on `key` alone.

    >>> uniform("run", 1) == uniform("run", 1) != uniform("run", 2)
    True
    """
    text = "\x1f".join(f"{type(part).__name__}:{part}" for part in key)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") / 2**64


def sampling_seed(run_seed: int, instance_id: str, attempt: int, turn: int) -> int:
    """The seed in [0, 2^53) of whatever is sampled in one state: by the student, or by a teacher for its label."""
    return int(uniform("sample", run_seed, instance_id, attempt, turn) * 2**53)


@dataclass(frozen=True, slots=True)
class Schedule:
    """beta by round. `kind` names the curve between `start` and `end` over `decay` rounds after `warmup` rounds.

    The curves are those of the authors' release (with d the rounds since warm-up and p = d / decay):
    linear start + (end - start) p; cosine end + (start - end)(1 + cos pi p) / 2; exponential
    start (end / start)^p with both floored at 1e-8; step `start` while p < 0.5; constant `start`.
    `floor` bounds beta from below. `paper` is max(0.6, 1 - 0.2 (i - 1)) (paper, section on the mixture);
    the release anneals linearly to 0 instead, so the floor is an ablation and not a constant.
    """

    kind: str = "paper"
    start: float = 1.0
    end: float = 0.0
    decay: int = 5
    warmup: int = 0
    floor: float = 0.0

    def __post_init__(self) -> None:
        if self.kind not in _CURVES and self.kind != "paper":
            raise ConfigError(f"unknown beta schedule {self.kind!r}; choose paper, {', '.join(sorted(_CURVES))}")
        for name in ("start", "end", "floor"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise ConfigError(f"beta schedule: {name} must lie in [0, 1], not {getattr(self, name)}")
        if self.decay < 1 or self.warmup < 0:
            raise ConfigError(f"beta schedule: decay must be >= 1 and warmup >= 0, not {self.decay} and {self.warmup}")

    def beta(self, round_: int) -> float:
        """The teacher's probability to act in a round (from 1).

        >>> [Schedule("paper").beta(i) for i in (1, 2, 3, 4, 5)]
        [1.0, 0.8, 0.6, 0.6, 0.6]
        >>> [round(Schedule("linear", decay=4).beta(i), 2) for i in (1, 2, 3, 4, 5, 6)]
        [1.0, 0.75, 0.5, 0.25, 0.0, 0.0]
        """
        if round_ < 1:
            raise ConfigError(f"rounds count from 1, not {round_}")
        if self.kind == "paper":
            return max(0.6, round(1.0 - 0.2 * (round_ - 1), 10))
        since = round_ - 1 - self.warmup
        if since < 0 or self.kind == "constant":
            return max(self.floor, self.start)
        if since >= self.decay:
            return max(self.floor, self.end)
        return max(self.floor, _CURVES[self.kind](self.start, self.end, since / self.decay))


def _exponential(start: float, end: float, p: float) -> float:
    low, high = max(end, 1e-8), max(start, 1e-8)
    return high * (low / high) ** p


_CURVES: Mapping[str, Callable[[float, float, float], float]] = {
    "constant": lambda start, end, p: start,
    "linear": lambda start, end, p: start + (end - start) * p,
    "cosine": lambda start, end, p: end + (start - end) * (1 + math.cos(math.pi * p)) / 2,
    "exponential": _exponential,
    "step": lambda start, end, p: start if p < 0.5 else end,
}


@dataclass(frozen=True, slots=True)
class Choice:
    """Who acts in one turn, with the probability and the draw behind it."""

    teacher_acts: bool
    beta: float
    draw: float


class Mixer(Protocol):
    """Decides who acts. Pure: the same arguments give the same choice."""

    def choose(self, run_seed: int, round_: int, instance_id: str, attempt: int, turn: int) -> Choice: ...


@dataclass(frozen=True, slots=True)
class BernoulliMixer:
    """The DAgger-style mixture: each turn draws b_t ~ Bernoulli(beta_i) on its own; 1 lets the teacher act."""

    schedule: Schedule

    def choose(self, run_seed: int, round_: int, instance_id: str, attempt: int, turn: int) -> Choice:
        beta = self.schedule.beta(round_)
        draw = uniform("mix", run_seed, round_, instance_id, attempt, turn)
        return Choice(draw < beta, beta, draw)


@dataclass(frozen=True, slots=True)
class SwitchMixer:
    """The AggreVaTe-style mixture (Eq. 9): kappa ~ U{0..T_max(i)}; the student has turns 1..kappa, then the teacher.

    T_max(i) = min(per_round i, longest); the release uses min(20 i, 100) of 100 turns. Only the shape of the
    roll-out is AggreVaTe's: there is no cost-to-go. beta is recorded as 0 before the switch and 1 after it.
    """

    per_round: int = 20
    longest: int = 100

    def kappa(self, run_seed: int, round_: int, instance_id: str, attempt: int) -> int:
        """The number of turns the student has before the teacher takes over."""
        top = min(self.per_round * round_, self.longest)
        return int(uniform("switch", run_seed, round_, instance_id, attempt) * (top + 1))

    def choose(self, run_seed: int, round_: int, instance_id: str, attempt: int, turn: int) -> Choice:
        draw = uniform("switch", run_seed, round_, instance_id, attempt)
        teacher = turn >= self.kappa(run_seed, round_, instance_id, attempt)
        return Choice(teacher, float(teacher), draw)


TEACHER_ALONE = BernoulliMixer(Schedule("constant", start=1.0))
STUDENT_ALONE = BernoulliMixer(Schedule("constant", start=0.0))
