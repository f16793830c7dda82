"""Where a profile leaves the paper, numbered, each with its reason: what notebooks and the doctor print.

`PAPER` holds what the paper says, by setting; a test compares it with every served profile, so that no difference
goes without a number. Where the paper is silent or contradicts itself (PAPER is what two readings agree on), the
choice made is listed too.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import pandas as pd

from dagger_nb import config
from dagger_nb.settings import GENERATED, HUB, Settings
from dagger_nb.sizing import memory

PAPER: Mapping[str, object] = {
    "tasks.source": "swe-gym",
    "tasks.tasks_per_round": 512,
    "tasks.test": 100,
    "tasks.unseen": 466,
    "dagger.rounds": 5,
    "dagger.schedule": "paper",
    "dagger.filter": "finish",  # the release; failed tests are kept
    "dagger.switch_turns_per_round": 20,  # the release
    "training.passes": 3,
    "training.learning_rate": 3e-6,
    "training.schedule": "constant",
    "training.aggregation": "current",
    "training.lesson_weight": 1.0,
    "training.normalisation": "action",  # equations 12 and 13: a sum over an action's tokens, a mean over states
    "labels.states": "every",
    "episode.max_turns": 100,
    "episode.context": 65_536,
    "episode.command_timeout_s": 120.0,
    "episode.temperature": 0.7,
    "episode.top_p": 0.9,
    "sandbox.cpus": 4.0,
    "sandbox.memory_gb": 16.0,
    "student.quantise": False,  # full fine-tuning, which the paper implies
    "student.path": "Qwen/Qwen3-4B-Instruct-2507",  # and Qwen/Qwen3-8B
    "teacher.path": "Qwen/Qwen3-Coder-30B-A3B-Instruct",
}


@dataclass(frozen=True, slots=True)
class Deviation:
    """One difference. `ours` is formatted with the settings (`s`); `of` names the settings that it explains."""

    paper: str
    ours: str
    why: str
    of: tuple[str, ...] = ()
    profiles: tuple[str, ...] = ("qwen3-0.6b", "qwen3-4b", "qwen3-8b")
    only: Callable[[Settings], bool] = lambda settings: True  # of those, where an override makes the difference

    def holds(self, settings: Settings) -> bool:
        return settings.profile in self.profiles and self.only(settings)


def _of_hub(settings: Settings) -> bool:
    return settings.tasks.source in HUB


_SMALL, _PAPERS, _EIGHT = ("qwen3-0.6b",), ("qwen3-4b", "qwen3-8b"), ("qwen3-8b",)
DEVIATIONS: tuple[Deviation, ...] = (
    Deviation(
        "full fine-tuning (inferred), learning rate 3e-6",
        "a LoRA adapter of rank {s.lora.rank} on a 4-bit base, learning rate {s.training.learning_rate:g}",
        "one GPU holds no optimiser states of all weights; LoRA's best rate is about ten times that of full "
        "fine-tuning (Schulman et al., LoRA Without Regret, 2025), which was not tested here",
        ("student.quantise", "training.learning_rate"),
    ),
    Deviation(
        "8 GPUs, 4 for the teacher and 4 for the student (release)",
        "one GPU, where serving and training take turns",
        "that is what most readers have; it changes the hours, not the algorithm",
    ),
    Deviation(
        "batches of 16",
        "{s.training.batch_tokens:,} tokens of labelled trees a step",
        "episodes differ in length, so tokens make equal steps; what one of the 16 is, the paper does not say",
    ),
    Deviation(
        "one sample a label, each with its whole prefix (release)",
        "one packed tree an episode, with every label on it",
        "the loss and its gradient are equal to float error (tests/test_training.py), at a fraction of the tokens",
    ),
    Deviation(
        "the release trains student turns with a reverse-KL estimate",
        "cross-entropy on the teacher's action at every state, the paper's equations 12 and 13",
        "the paper's text, and a teacher that is a black box",
    ),
    Deviation(
        "union of all rounds (background) or each online batch (recipe)",
        "aggregation = {s.training.aggregation!r}",
        "the paper says both; the recipe and the release train on the current round",
    ),
    Deviation(
        "starts from an SFT student (release)",
        "starts from the model itself; round 1 is the teacher alone",
        "a first round with beta = 1 is that SFT, on its 512 tasks",
    ),
    Deviation(
        "512 tasks in each of 5 rounds out of 2,338",
        "all 2,338 in a drawn order, then again in another, so 222 of 2,560 come twice",
        "how the authors drew them is not known",
        profiles=_PAPERS,
    ),
    Deviation(
        "SFT on the 2,338 tasks, up to 4 passes",
        "SFT on as many trajectories and passes as DAgger: {s.dagger.rounds} x {s.tasks.tasks_per_round} x "
        "{s.training.passes}",
        "methods are compared at equal trajectory-passes, the paper's own axis",
    ),
    Deviation(
        "100 held-out tasks of SWE-Gym, ids not published",
        "{s.tasks.test} of 100 drawn by a written-down seed (dagger_nb.tasks.hub.HOLDOUT_SEED)",
        "nobody else can know the authors' ids; numbers on the two holdouts are not comparable task by task",
        only=_of_hub,
    ),
    Deviation(
        "466 of SWE-bench Verified's 500 tasks, which ones is not said",
        "{s.tasks.unseen} of 500",
        "the missing 34 are not known",
        ("tasks.unseen",),
        only=_of_hub,
    ),
    Deviation(
        "prompts, longest answer, longest observation and loop rule are not published",
        "our prompts; {s.episode.max_new_tokens:,} tokens an answer; {s.episode.observation_chars:,} characters an "
        "observation, whose middle is cut; {s.episode.loop_repeats} equal turns end it",
        "something had to be chosen; all of it is in the run's configuration",
    ),
    Deviation(
        "SWE-Gym's own harness, which installs the package again before the tests",
        "swebench 5 with the fork's test commands, without that installation but where a patch touches compiled code "
        "of pandas",
        "grading has no network; the images hold the package already, in editable mode",
        only=_of_hub,
    ),
    Deviation(
        "SWE-bench's harness grades",
        "tests under pytest: the same eval_script and log parser in our containers, without a network, with tests put "
        "back and canaries; others: swebench's command line, which judges all of Verified again in notebook 06",
        "a patch can lie to the harness; both verdicts are shown",
    ),
    Deviation(
        "64K context",
        "{s.episode.context:,} tokens",
        "Qwen3-8B was trained to read 40,960; more needs YaRN, of which the paper says nothing. For 65,536, put "
        "YaRN's rope_scaling into a local copy's config.json, and name it as student.path",
        ("episode.context", "student.path"),
        _EIGHT,
    ),
    Deviation(
        "thinking mode of Qwen3-8B is not said",
        "no thinking is kept in the history",
        "the stock template drops earlier thinking, and a history that is rewritten cannot be trained as it was seen",
        profiles=_EIGHT,
    ),
    Deviation(
        "the paper's models and budgets",
        "student {s.student.path}, teacher {s.teacher.path}, {s.dagger.rounds} x {s.tasks.tasks_per_round} tasks, "
        "{s.training.passes} pass, {s.episode.max_turns} turns, {s.episode.context:,} tokens",
        "a rehearsal of every step for the price of hours; its scores say nothing about the paper's",
        ("student.path", "teacher.path", "tasks.tasks_per_round", "tasks.test", "tasks.unseen", "dagger.rounds",
         "training.passes", "episode.max_turns", "episode.context"),
        _SMALL,
    ),
    Deviation(
        "the teacher's weights in 16 bits",
        "{s.teacher.path}: its linear layers in 8 bits",
        "one GPU of 80 GB holds it beside the student; its authors publish it, and it was not compared here",
        ("teacher.path",),
        only=lambda settings: settings.teacher.path in memory.SMALLER.values(),
    ),
    Deviation(
        "beta falls to 0 (background), or is max(0.6, 1 - 0.2 (i - 1)) (recipe); the release's is linear",
        "schedule = {s.dagger.schedule!r}",
        "the paper says all three; the recipe's is the one with numbers, and the others are one setting away",
    ),
    Deviation(
        "evaluation asks the student alone",
        "it does; beside it the teacher labels the states that the student visits in `test`, and repairs "
        "{s.tasks.diagnostic} of these tasks itself while the student is asked",
        "disagreement by turn is the measure of covariate shift; nothing is trained on it, and no student sees it",
    ),
    Deviation(
        "warm-up and gradient clipping are not published",
        "{s.training.warmup_steps} steps of warm-up in every fit, gradients clipped at a norm of {s.training.clip:g}",
        "every fit begins with fresh optimiser moments; DAgger has one a round and SFT a single one, and so more short "
        "steps",
    ),
    Deviation(
        "the thinking template of Qwen3 (hybrid models)",
        "{s.student.template}: no thinking",
        "the stock template rewrites earlier turns, and a history that is rewritten cannot be trained as it was seen",
        profiles=_SMALL,
        only=lambda settings: bool(settings.student.template),
    ),
    Deviation(
        "the loss is a sum over an action's tokens and a mean over states (equations 12 and 13)",
        "a mean over the label tokens of a step",
        "what trainers do by default; within a step the two differ by a factor, between steps by how long actions are",
        ("training.normalisation",),
        only=lambda settings: settings.training.normalisation == "token",
    ),
)  # fmt: skip


def deviations(settings: Settings) -> pd.DataFrame:
    """The table for a profile (number, paper, here, why); the numbers are the same in every profile.

    A profile of generated tasks is another experiment on the same code, which one row says.
    """
    if settings.tasks.source == GENERATED:
        rows = [
            (0, "SWE-Gym, Qwen3-4B and 8B", "generated repositories, a student of a few million parameters", _LAPTOP)
        ]
    else:
        rows = [
            (number, each.paper, each.ours.format(s=settings), each.why)
            for number, each in enumerate(DEVIATIONS, start=1)
            if each.holds(settings)
        ]
        rows += [(number, *row) for number, row in enumerate(_overridden(settings), start=len(DEVIATIONS) + 1)]
    return pd.DataFrame(rows, columns=["number", "paper", "here", "why"]).set_index("number")


def _overridden(settings: Settings) -> list[tuple[str, str, str]]:
    """Of settings that differ from the paper and from the profile too, those that no deviation explains."""
    explained = {name for each in DEVIATIONS if each.holds(settings) for name in each.of}
    ours, profiles = _of_paper(settings), _of_paper(config.load(settings.profile))
    names = [name for name in PAPER if ours[name] not in (PAPER[name], profiles[name]) and name not in explained]
    return [(f"{name} = {PAPER[name]}", f"{name} = {ours[name]}", "an override of this run") for name in names]


def _of_paper(settings: Settings) -> dict[str, object]:
    """The values of the settings of which the paper speaks, by name."""
    groups = settings.to_dict()
    return {name: groups[name.partition(".")[0]][name.partition(".")[2]] for name in PAPER}


_LAPTOP = "the whole loop in minutes on a laptop; the paper's settings are those of profile qwen3-4b"


def text(settings: Settings) -> str:
    """The table as lines of text."""
    rows = deviations(settings).itertuples()
    return "\n".join(f"{row.Index:>3}. paper: {row.paper}\n     here: {row.here}\n     why: {row.why}" for row in rows)
