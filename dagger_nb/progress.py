"""How far a collection is, in one line, told every few seconds and less often the longer it lasts.

No clock is read here: whoever counts or asks passes the time (seconds, of any clock that only runs forward).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from dagger_nb.records import StopReason, Trajectory

LONGEST_S = 300.0  # between two lines


@dataclass(slots=True)
class Progress:
    """What a collection of `total` episodes, begun at `began`, has done so far.

    `spent` says what its answers have cost, in the currency of the prices. One thread counts, any may read.
    """

    total: int
    began: float
    every_s: float = 10.0
    spent: Callable[[], float] | None = None
    episodes: int = 0  # finished and labelled
    failed: int = 0  # of these, ended by the infrastructure
    turns: int = 0  # of every episode, also of those that still run
    finished_turns: int = 0  # of finished episodes
    teacher_turns: int = 0
    tokens: int = 0  # of executed actions, as the student writes them
    labels: int = 0
    missing: int = 0  # labels that were wanted and could not be had
    waiting: int = 0  # episodes whose image the registry does not hand out yet
    told: float | None = None  # when the last line was due

    def turn(self, actor: str, tokens: int) -> None:
        """Count an executed turn."""
        self.turns += 1
        self.teacher_turns += actor == "teacher"
        self.tokens += tokens

    def episode(self, trajectory: Trajectory, labels: int, missing: int) -> None:
        """Count a finished episode and its labels; its turns were counted as they happened."""
        self.episodes += 1
        self.failed += trajectory.stop is StopReason.INFRASTRUCTURE
        self.finished_turns += len(trajectory.turns)
        self.labels += labels
        self.missing += missing

    def settle(self) -> None:
        """Ask for the cost for the last time: who knows it is about to close."""
        if self.spent:
            cost = self.spent()
            self.spent = lambda: cost

    def due(self, now: float) -> bool:
        """Whether it is time for a line: every `every_s` seconds, and after hours each time a hundredth of them more.

        A saved notebook holds every line, and a collection may last for days.
        """
        pause = max(self.every_s, min(LONGEST_S, (now - self.began) / 100))
        if now - (self.began if self.told is None else self.told) < pause:
            return False
        self.told = now
        return True

    def seconds_left(self, now: float) -> float | None:
        """At the rate of turns so far, if the other episodes are as long as the finished ones; None: no telling yet."""
        if not self.finished_turns or now <= self.began:
            return None
        still = self.total * self.finished_turns / self.episodes - self.turns
        return max(0.0, still) * (now - self.began) / self.turns

    def line(self, now: float) -> str:
        """All of it in one line.

        >>> progress = Progress(total=4, began=0.0, spent=lambda: 0.25, episodes=1, finished_turns=30, labels=30)
        >>> progress.turns, progress.teacher_turns, progress.tokens = 60, 45, 900
        >>> progress.line(now=120.0)
        '1/4 episodes · 60 turns, 0.5/s · 900 tokens, 8/s · 75% by the teacher · 30 labels · cost 0.25 · 2 min left'
        """
        seconds = max(now - self.began, 1e-9)
        left = self.seconds_left(now)
        parts = [
            f"{self.episodes}/{self.total} episodes" + (f", {self.failed} failed" if self.failed else ""),
            f"{self.turns:,} turns, {self.turns / seconds:.1f}/s",
            f"{self.tokens:,} tokens, {self.tokens / seconds:,.0f}/s",
            f"{self.teacher_turns / max(1, self.turns):.0%} by the teacher",
            f"{self.labels:,} labels" + (f", {self.missing:,} missing" if self.missing else ""),
            f"cost {self.spent():,.2f}" if self.spent else "",
            f"{self.waiting} wait: the registry limits pulls (docker login raises that)" if self.waiting else "",
            "" if left is None or self.episodes == self.total else f"{span(left)} left",
        ]
        return " · ".join(filter(None, parts))


def span(seconds: float) -> str:
    """A span of time as one reads it.

    >>> span(42), span(180), span(9000)
    ('42 s', '3 min', '2.5 h')
    """
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
