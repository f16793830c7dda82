"""Methods as data: who acts while data is collected, and in how many rounds.

In the common view of the methods (states p_s, labels p_a, weight w) every recipe here takes the teacher's label
with weight 1 at every visited state; they differ in who visits the states.
"""

from __future__ import annotations

from dataclasses import dataclass

from dagger_nb.config import nearest
from dagger_nb.errors import ConfigError
from dagger_nb.mixing import TEACHER_ALONE, BernoulliMixer, Mixer, Schedule, SwitchMixer
from dagger_nb.settings import Settings


@dataclass(frozen=True, slots=True)
class Recipe:
    """One method. `rounds` times `tasks_per_round` episodes are collected; a recipe of no round is the untrained base.

    All recipes of the same settings have equal trajectory-passes: the same number of training trajectories
    (tasks), each passed over equally often. SFT collects them all in one round, before any training.
    """

    name: str
    title: str
    mixer: Mixer
    rounds: int
    tasks_per_round: int


def recipe(name: str, settings: Settings) -> Recipe:
    """The recipe of a name under some settings. Raises ConfigError for an unknown name."""
    rounds, tasks = settings.dagger.rounds, settings.tasks.tasks_per_round
    schedule = Schedule(settings.dagger.schedule, decay=max(1, rounds - 1), floor=settings.dagger.floor)
    switch = SwitchMixer(settings.dagger.switch_turns_per_round, settings.episode.max_turns)
    known = {
        "base": Recipe("base", "untrained base", TEACHER_ALONE, 0, 0),
        "sft": Recipe("sft", "SFT on teacher trajectories", TEACHER_ALONE, 1, rounds * tasks),
        "dagger": Recipe("dagger", "DAgger, turn mixture", BernoulliMixer(schedule), rounds, tasks),
        "switch": Recipe("switch", "single switch (AggreVaTe-style roll-out)", switch, rounds, tasks),
    }
    if name not in known:
        raise ConfigError(f"unknown recipe {name!r}{nearest(name, known)}; recipes: {', '.join(known)}")
    return known[name]


RECIPES = ("base", "sft", "dagger", "switch")
