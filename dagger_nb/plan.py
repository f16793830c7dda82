"""Tokens, test runs and minutes of a reproduction before they are spent, and a check of the prediction afterwards.

    python -m dagger_nb.plan --profile tiny             the prediction
    python -m dagger_nb.plan --profile tiny --check     against this machine's runs; exit code 1 where it misses
    python -m dagger_nb.plan --profile tiny --measure   write data/plan/rates.json from this machine's runs

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

import argparse
import os
import platform
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import pandas as pd

from dagger_nb import config, footprint, results, scale, usage
from dagger_nb.errors import DaggerError, DataError
from dagger_nb.experiment import EXAMS, Experiment, exam_size
from dagger_nb.fleet import Fleet
from dagger_nb.gpus import local_gpus
from dagger_nb.rates import Rates, measure, rate_of, rates_file, seconds_per_turn, time_grading
from dagger_nb.recipes import RECIPES, Recipe, recipe
from dagger_nb.results import PROGRAMME
from dagger_nb.settings import Settings
from dagger_nb.store import read_json, rounds_to_train_on, write_json
from dagger_nb.usage import GRADE, TRAIN, Usage

TOLERANCE = 2.0  # a prediction of tokens or test runs may be off by this factor
_TOTALS = ("tokens", "test_runs", "fresh_runs")


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


# --- against what was used ------------------------------------------------------------------------------------


def compare(predicted: Plan, runs: Iterable[Experiment]) -> pd.DataFrame:
    """Predicted over actual, a row for each phase that both have and a last one for all of these.

    Columns: for tokens, test_runs and fresh_runs the prediction, the count, and <name>_ratio (NaN for 0 / 0).

    Raises:
        DataError: there is no run of these settings, or a phase that was predicted is missing.
    """
    actual = {phase.phase: phase for phase in usage.count(runs)}
    if missing := [phase.phase for phase in predicted.phases if phase.phase not in actual]:
        raise DataError(
            f"nothing to compare with: {len(missing)} phases have not run, e.g. {missing[0]!r}; "
            f"run notebooks 03 and 04 with profile {predicted.settings.profile!r} first"
        )
    rows = {phase.phase: _beside(phase, actual[phase.phase]) for phase in predicted.phases}
    table = pd.DataFrame(rows).T
    table.loc["all"] = table.sum()
    for name in _TOTALS:
        table[f"{name}_ratio"] = table[f"{name}_predicted"] / table[f"{name}_used"]
    return table


def _beside(predicted: Usage, used: Usage) -> dict[str, float]:
    pairs = (("predicted", predicted), ("used", used))
    return {f"{name}_{word}": float(getattr(phase, name)) for name in _TOTALS for word, phase in pairs}


def misses(table: pd.DataFrame) -> list[str]:
    """Which totals of `compare` are off by more than `TOLERANCE`, in words; empty where the prediction held."""
    ratios = {name: table.loc["all", f"{name}_ratio"] for name in _TOTALS}
    return [
        f"{name}: predicted {ratio:.2f} times what was used"
        for name, ratio in ratios.items()
        if not 1 / TOLERANCE <= ratio <= TOLERANCE
    ]


# --- the command ----------------------------------------------------------------------------------------------


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the prediction, check it, or measure rates. Exit code: 0, 1 where a check fails, 2 for bad input."""
    options = _parser().parse_args(arguments)
    try:
        settings = config.load(options.profile, {"seed": options.seed})
        if options.measure:
            return _measure(settings, options.log)
        return _check(settings) if options.check else _print(settings)
    except DaggerError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def _print(settings: Settings) -> int:
    print(plan(settings))
    return 0


def _check(settings: Settings) -> int:
    table = compare(plan(settings), results.runs(settings, Fleet(1)).values())
    print(table.round(2).to_string())
    missed = misses(table)
    print("\n".join(missed) or f"the prediction of {settings.profile!r} holds within a factor of {TOLERANCE:g}")
    return 1 if missed else 0


def _measure(settings: Settings, logs: Sequence[Path]) -> int:
    runs = results.runs(settings, Fleet(1))
    used = usage.count(runs.values())
    texts = [path.read_text(encoding="utf-8") for path in logs]
    rates = measure(used, seconds_per_turn(texts, used), time_grading(), settings.training.passes)
    source = (
        f"profile {settings.profile}, seed {settings.seed}: {', '.join(run.store.root.name for run in runs.values())}; "
        f"{platform.machine()}, {os.cpu_count()} CPUs"
    )
    print(f"wrote {write_json(rates_file(), {'source': source, 'rates': rates})}")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m dagger_nb.plan", description=__doc__.partition("\n")[0])
    parser.add_argument("--profile", default="tiny")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--check", action="store_true", help="compare with this machine's runs")
    parser.add_argument("--measure", action="store_true", help="write the rates from this machine's runs")
    parser.add_argument("--log", type=Path, nargs="*", default=[], help="with --measure: logs, executed notebooks")
    return parser


if __name__ == "__main__":
    sys.exit(main())
