"""Tokens, test runs and minutes of a reproduction before they are spent.

Formulas, with E episodes known from the settings and the rates below (a row for each kind of phase):

    episodes   turns = E x turns; prompt = E x prompt; action, observation, test runs = turns x (their rate);
               fresh test runs = test runs x fresh; seconds = turns x seconds / workers
    training   examples = E of its rounds x kept; tokens = examples x tree x passes; seconds = tokens x seconds
    grading    test runs = patches x test_runs; fresh = test runs x fresh; seconds = fresh x seconds / workers

Not covered: the start of notebooks and workers, and notebooks that neither collect nor train.

Rates are measured (data/plan/rates.json) but for a served profile (student.back_end = "vllm"), which is too large to be
measured before it runs: its rates follow from assumptions that are named as such (`scale`), and GPU memory, disk and
the teacher's bill are added (`footprint`).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass

import pandas as pd

from dagger_nb.experiment import EXAMS, exam_size
from dagger_nb.planning import footprint, scale, usage
from dagger_nb.planning.rates import Rates, rate_of, rates_file
from dagger_nb.planning.usage import GRADE, TRAIN, Usage
from dagger_nb.recipes import RECIPES, Recipe, recipe
from dagger_nb.results import PROGRAMME
from dagger_nb.settings import Settings
from dagger_nb.sizing.gpus import local_gpus
from dagger_nb.store import read_json, rounds_to_train_on


@dataclass(frozen=True, slots=True)
class Plan:
    """A prediction, phase by phase, with the settings and the measured rates behind it."""

    settings: Settings
    phases: tuple[Usage, ...]
    rates: Rates
    source: str

    def table(self) -> pd.DataFrame:
        """One row a phase and a last one for all: counts, tokens, test runs (asked for and fresh), minutes."""
        rows = pd.DataFrame([asdict(phase) for phase in self.phases]).drop(columns="kind").set_index("phase")
        rows.loc["all"] = rows.sum()
        return rows.assign(minutes=rows.seconds / 60).drop(columns="seconds")

    def __str__(self) -> str:
        table = self.table()
        counts = table.drop(columns="minutes").map("{:,.0f}".format).assign(minutes=table.minutes.map("{:.1f}".format))
        used = {phase.kind: self.rates[phase.kind] for phase in self.phases}
        rates = pd.DataFrame(used).T.sort_index().map(lambda rate: "" if pd.isna(rate) else f"{rate:.4g}")
        formulas = __doc__.partition("Formulas,")[2].partition("Not covered")[0].rstrip()
        return (
            f"profile {self.settings.profile}, seed {self.settings.seed}, {self.settings.workers} workers\n\n"
            f"{counts.to_string()}\n\nFormulas,{formulas}\n\nRates: {self.source}\n{rates.to_string()}{self._served()}"
        )

    def _served(self) -> str:
        if not self.settings.served:
            return ""
        rates = scale.__doc__.partition("\n")[2].rstrip()
        return f"\n{rates}\n\n{footprint.report(self.settings, self.phases)}"


def plan(settings: Settings) -> Plan:
    """The prediction for notebooks 03 and 04 under some settings.

    Raises:
        DataError: rates.json is missing or torn, or lacks a kind of phase.
    """
    rates, source = _rates(settings)
    phases = [phase for name in RECIPES for phase in _of_recipe(recipe(name, settings), settings, rates)]
    return Plan(settings, tuple(phases), rates, source)


def _rates(settings: Settings) -> tuple[Rates, str]:
    """The rates that a plan multiplies with, and where they come from."""
    if not settings.served:
        measured = read_json(rates_file())
        return measured["rates"], measured["source"]
    name = next((gpu.name for gpu in local_gpus()), scale.DEFAULT_GPU)
    known = scale.known_gpu(name)
    gpu = known or scale.gpus()[scale.DEFAULT_GPU]
    missing = "" if known else f", which has no row for this machine's {name}"
    source = f"ASSUMED for profile {settings.profile} on one {gpu.name} (data/plan/scale.json{missing})"
    return scale.rates(settings, gpu), source


def _of_recipe(chosen: Recipe, settings: Settings, rates: Rates) -> Iterator[Usage]:
    for round_ in range(1, chosen.rounds + 1):
        kind = f"{usage.who_acts(chosen, round_)} train"
        yield _episodes(f"{chosen.name} collect {round_}", kind, chosen.tasks_per_round, settings, rates)
        yield _training(chosen, round_, settings, rates)
    exams = [EXAMS[name] for name in PROGRAMME[chosen.name]]
    sizes = {exam.name: exam_size(exam, settings) for exam in exams}
    for exam in exams:
        if sizes[exam.name]:
            kind = f"{usage.who_sits(chosen.name, exam)} {exam.split}"
            yield _episodes(f"{chosen.name} {exam.name}", kind, sizes[exam.name], settings, rates)
    patches = sum(sizes[exam.name] for exam in exams if not exam.shadow)
    yield grading(chosen.name, patches, settings, rates)


def _episodes(phase: str, kind: str, episodes: int, settings: Settings, rates: Rates) -> Usage:
    rate = rate_of(kind, rates)
    turns = episodes * rate["turns"]
    runs = turns * rate["test_runs"]
    return Usage(
        phase,
        kind,
        episodes=episodes,
        turns=turns,
        prompt_tokens=episodes * rate["prompt"],
        action_tokens=turns * rate["action"],
        observation_tokens=turns * rate["observation"],
        test_runs=runs,
        fresh_runs=runs * rate["fresh"],
        seconds=turns * rate["seconds"] / settings.workers,
    )


def _training(chosen: Recipe, round_: int, settings: Settings, rates: Rates) -> Usage:
    training = settings.training
    rounds = rounds_to_train_on(round_, training.aggregation, training.window)
    kinds = [f"{TRAIN} {usage.who_acts(chosen, r)}" for r in rounds]
    examples = [chosen.tasks_per_round * rate_of(kind, rates)["kept"] for kind in kinds]
    tokens = [n * rate_of(kind, rates)["tree"] * training.passes for n, kind in zip(examples, kinds, strict=True)]
    seconds = [n * rate_of(kind, rates)["seconds"] for n, kind in zip(tokens, kinds, strict=True)]
    phase = f"{chosen.name} train {round_}"
    return Usage(phase, kinds[-1], episodes=sum(examples), trained_tokens=sum(tokens), seconds=sum(seconds))


def grading(name: str, patches: int, settings: Settings, rates: Rates) -> Usage:
    """The grading of so many patches, each once."""
    rate = rate_of(GRADE, rates)
    runs = patches * rate["test_runs"]
    fresh = runs * rate["fresh"]
    seconds = fresh * rate["seconds"] / settings.workers
    return Usage(f"{name} grading", GRADE, episodes=patches, test_runs=runs, fresh_runs=fresh, seconds=seconds)
