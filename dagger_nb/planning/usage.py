"""What runs used: episodes, turns, tokens and test runs, counted phase by phase from their own records.

A phase is one collection, one training, one exam, or the grading of a recipe's exams. Nothing is run and nothing
random; the same functions count for a prediction's rates and for the check of a prediction.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from dagger_nb.evaluation.readings import is_edit
from dagger_nb.experiment import EXAMS, Exam, Experiment, all_trajectories
from dagger_nb.mixing import BernoulliMixer
from dagger_nb.policies.history import command
from dagger_nb.recipes import Recipe
from dagger_nb.records import Trajectory, digest
from dagger_nb.results import PROGRAMME, exam_group
from dagger_nb.store import CohortRecord, round_group

TRAIN, GRADE = "training", "grading"  # kinds of phases that are no episodes


@dataclass(frozen=True, slots=True)
class Usage:
    """What one phase used, or is predicted to use.

    `kind` says what decides its rates: who acts and on which split ("mixed train", "student test", ...),
    "training <who>" or "grading". `test_runs` counts every pytest run asked for, `fresh_runs` those that no
    earlier phase had asked for in the same state (the observation cache and the gradebook answer the others).
    """

    phase: str
    kind: str
    episodes: float = 0  # trained examples in a training, patches in a grading
    turns: float = 0
    prompt_tokens: float = 0
    action_tokens: float = 0
    observation_tokens: float = 0
    trained_tokens: float = 0  # tokens of trees times passes
    test_runs: float = 0
    fresh_runs: float = 0
    seconds: float = 0.0  # wall clock; counted for trainings only, as no record of an episode holds the time

    @property
    def tokens(self) -> float:
        return self.prompt_tokens + self.action_tokens + self.observation_tokens + self.trained_tokens


@dataclass(slots=True)
class Seen:
    """Test runs and patches that were met before, in the order of the phases."""

    runs: set[tuple[str, str]] = field(default_factory=set)
    patches: set[tuple[str, str]] = field(default_factory=set)


def who_acts(chosen: Recipe, round_: int) -> str:
    """Who acts while a round is collected: "teacher", "mixed", or "switch"."""
    if not isinstance(chosen.mixer, BernoulliMixer):
        return "switch"
    return "teacher" if chosen.mixer.schedule.beta(round_) >= 1 else "mixed"


def who_sits(recipe_name: str, exam: Exam) -> str:
    """Whose actions are executed in an exam: "teacher" (the student is only asked), "base", "slips" or "student"."""
    if exam.shadow:
        return "teacher"
    if recipe_name == "base":
        return "base"
    return "slips" if exam.slips else "student"


def account(phase: Usage) -> tuple[str, int]:
    """Whose budget a phase of a plan draws on: a recipe's run, and its round (0: exams).

    >>> account(Usage("dagger collect 3", "mixed train")), account(Usage("sft test-slips", "slips test"))
    (('dagger', 3), ('sft', 0))
    """
    name, what, *number = phase.phase.split()
    return name, int(number[0]) if what == "collect" else 0


def count(runs: Iterable[Experiment]) -> list[Usage]:
    """What some runs used, phase by phase in the order given; what has not run is left out.

    Raises:
        DataError: a record is torn or edited.
    """
    seen = Seen()
    return [usage for run in runs for usage in _of_run(run, seen)]


def _of_run(run: Experiment, seen: Seen) -> Iterator[Usage]:
    name, rounds = run.recipe.name, range(1, run.recipe.rounds + 1)
    for round_ in rounds:
        kind = f"{who_acts(run.recipe, round_)} train"
        yield _episodes(f"{name} collect {round_}", kind, run.store.cohorts(round_group(round_)), seen)
        if not (run.adapter_folder(round_) / "fit.json").exists():
            return
        yield _training(run, round_)
    patches = []
    for exam in map(EXAMS.__getitem__, PROGRAMME[name]):
        records = list(run.store.cohorts(exam_group(run, exam.name)))
        if records:
            yield _episodes(f"{name} {exam.name}", f"{who_sits(name, exam)} {exam.split}", records, seen)
            patches += [] if exam.shadow else [(t.instance_id, t.patch) for t in all_trajectories(records)]
    if patches:
        yield _grading(name, patches, seen)


def _episodes(phase: str, kind: str, records: Iterable[CohortRecord], seen: Seen) -> Usage:
    trajectories = list(all_trajectories(list(records)))
    runs = [run for trajectory in trajectories for run in pytest_runs(trajectory)]
    turns = [turn for trajectory in trajectories for turn in trajectory.turns]
    fresh = set(runs) - seen.runs
    seen.runs |= fresh
    return Usage(
        phase,
        kind,
        episodes=len(trajectories),
        turns=len(turns),
        prompt_tokens=sum(trajectory.prompt_tokens for trajectory in trajectories),
        action_tokens=sum(len(turn.token_ids) for turn in turns),
        observation_tokens=sum(turn.observation_tokens for turn in turns),
        test_runs=len(runs),
        fresh_runs=len(fresh),
    )


def pytest_runs(trajectory: Trajectory) -> Iterator[tuple[str, str]]:
    """Each pytest run of an episode as (task, digest of the edits so far and the command).

    Equal pairs are equal states, which the observation cache runs once. Different edits can lead to the same
    tree (an edit that is undone), so counting distinct pairs is an upper limit of what is really run.
    """
    edits: list[object] = []
    for turn in trajectory.turns:
        if "pytest" in command(turn):
            yield trajectory.instance_id, digest([edits, command(turn)])
        if is_edit(turn):
            edits.append([turn.action.tool, dict(turn.action.arguments)])


def _training(run: Experiment, round_: int) -> Usage:
    fit, training = run.fit_report(round_), run.settings.training
    return Usage(
        f"{run.recipe.name} train {round_}",
        f"{TRAIN} {who_acts(run.recipe, round_)}",
        episodes=fit["examples"],
        trained_tokens=fit["tokens"] * training.passes,
        seconds=fit["seconds"],
    )


def _grading(name: str, patches: Iterable[tuple[str, str]], seen: Seen) -> Usage:
    """One test run a patch; an empty patch is not run, an equal one is found in the gradebook."""
    patches = list(patches)
    fresh = {pair for pair in patches if pair[1].strip()} - seen.patches
    seen.patches |= fresh
    runs = sum(bool(patch.strip()) for _, patch in patches)
    return Usage(f"{name} grading", GRADE, episodes=len(patches), test_runs=runs, fresh_runs=len(fresh))
