"""Small tables of what was found: written by the notebooks that compute, read by those that compare and draw.

A folder of results is `paths.result_folder`: one CSV a table, each row with its recipe and seed. Tables in
data/results/published are committed, so that notebooks 05 to 07 also run without training anything.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import inf, isfinite, nan
from pathlib import Path

import pandas as pd

from dagger_nb import paths
from dagger_nb.errors import DataError
from dagger_nb.evaluation import diagnostics, digging, protocol, tables
from dagger_nb.evaluation.grades import Grade, Status
from dagger_nb.evaluation.predictions import Prediction, read_predictions
from dagger_nb.experiment import EXAMS, Experiment, all_labels, all_missing, all_trajectories, diagnosed
from dagger_nb.fleet import Executor
from dagger_nb.provenance import run_folder
from dagger_nb.recipes import RECIPES
from dagger_nb.records import Task
from dagger_nb.settings import GENERATED, Settings
from dagger_nb.statistics import holm, wilson
from dagger_nb.store import CohortRecord, write_text

PRIMARY = {"split": "test", "recipe": "dagger", "baseline": "sft"}  # the one difference asked for before any is seen
ALPHA = 0.05  # chance of a false claim
TURN_BINS = (0, 3, 6, 9, 12, 16, 20, 25, 30, 40)  # edges of turn indices; longer episodes: `turn_edges`

NAMES = (
    "outcomes", "disagreement", "protocol", "dose", "lessons", "recovery", "slips", "fits", "losses", "bill", "calls",
    "digging", "scores",
)  # fmt: skip

# Which exams each recipe sits; notebooks 03 and 04 hold them and `plan` predicts them.
_ALL = ("test", "test-teacher-states", "test-sampled", "test-slips", "longer", "unseen")
PROGRAMME: Mapping[str, tuple[str, ...]] = {
    "base": ("test", "test-teacher-states", "longer", "unseen"),
    "sft": _ALL,
    "dagger": _ALL,
    "switch": _ALL,
}


def examine(experiment: Experiment) -> dict[str, pd.DataFrame]:
    """Every table of a finished recipe: its rounds, and its exams of `PROGRAMME`; an exam without tasks is skipped."""
    found = [training_tables(experiment)]
    for name in PROGRAMME[experiment.recipe.name]:
        if experiment.exam_tasks(name):
            found.append(exam_tables(experiment, name))
        else:
            experiment.log(f"{experiment.recipe.name} {name}: skipped, this profile gives it no tasks")
    found.append({name: _marked(table, experiment) for name, table in experiment.bill().items()})
    found.append(digging_tables(experiment))
    return {name: pd.concat([tables[name] for tables in found if name in tables]) for name in _names_in(found)}


def _names_in(found: Sequence[Mapping[str, pd.DataFrame]]) -> list[str]:
    return [name for name in NAMES if any(name in tables for tables in found)]


def training_tables(experiment: Experiment) -> dict[str, pd.DataFrame]:
    """What a recipe's rounds were: dose, lessons, fits, and losses by step (tables of these names)."""
    rounds = range(1, experiment.recipe.rounds + 1)
    records = [record for r in rounds for record in experiment.collect(r)]
    passes = experiment.settings.training.passes
    fits = [_fit_row(experiment.fit_report(r), r) | {"passes": passes} for r in rounds]
    found = {
        "dose": protocol.realised_dose(all_trajectories(records)) if records else pd.DataFrame(),
        "lessons": protocol.lessons(all_labels(records), all_missing(records)) if records else pd.DataFrame(),
        "fits": pd.DataFrame(fits),
        "losses": losses(experiment),
    }
    return {name: _marked(table, experiment) for name, table in found.items() if len(table)}


def digging_tables(experiment: Experiment) -> dict[str, pd.DataFrame]:
    """Who looked the fix up, in an exam or (`exam` is then "rounds") in training: the table "digging".

    There is none for generated tasks: their repositories have neither a history nor a copy elsewhere.
    """
    if experiment.settings.tasks.source == GENERATED:
        return {}
    rounds = range(1, experiment.recipe.rounds + 1)
    found = []
    if rounds:
        tasks = [task for round_ in rounds for task in experiment.training_tasks(round_)]
        found.append(_dug(experiment, "rounds", tasks, [r for round_ in rounds for r in experiment.collect(round_)]))
    for name in PROGRAMME[experiment.recipe.name]:
        if tasks := experiment.exam_tasks(name):
            found.append(_dug(experiment, name, tasks, experiment.examine(name)))
    return {"digging": pd.concat(found)}


def _dug(experiment: Experiment, part: str, tasks: Sequence[Task], records: Sequence[CohortRecord]) -> pd.DataFrame:
    table = digging.summary(all_trajectories(records), {task.instance_id: task for task in tasks})
    return _marked(table, experiment, part)


def _fit_row(report: Mapping[str, object], round_: int) -> dict[str, object]:
    wanted = ("examples", "labels", "lessons", "dropped", "tokens", "predictions", "seconds", "episodes_dropped")
    log = report["log"]
    tenth = max(1, len(log) // 10)
    first, last = (sum(row["loss"] for row in part) / tenth for part in (log[:tenth], log[-tenth:]))
    return {"round": round_, "steps": len(log), "first_loss": first, "last_loss": last} | {w: report[w] for w in wanted}


def losses(experiment: Experiment) -> pd.DataFrame:
    """The loss of every optimiser step (nats a token or an action), steps counted through all rounds."""
    rows = [
        {"round": round_, "loss": row["loss"]}
        for round_ in range(1, experiment.recipe.rounds + 1)
        for row in experiment.fit_report(round_)["log"]
    ]
    return pd.DataFrame([{"step": step} | row for step, row in enumerate(rows, start=1)])


def turn_edges(turns: int) -> tuple[int, ...]:
    """Edges of bins that leave out no turn of an episode of at most `turns`: TURN_BINS, and bins of 20 after them.

    >>> turn_edges(40) == TURN_BINS, turn_edges(100)[-4:]
    (True, (40, 60, 80, 100))
    """
    return (*TURN_BINS, *range(TURN_BINS[-1] + 20, turns + 20, 20))


def exam_tables(experiment: Experiment, exam_name: str) -> dict[str, pd.DataFrame]:
    """What an exam found: outcomes and protocol errors; of real tasks scores with both denominators; slips where there
    were any; and where it was diagnosed, disagreement by turn and recovery."""
    exam, records = EXAMS[exam_name], experiment.examine(exam_name)
    if exam.shadow:
        bins = turn_edges(experiment.settings.episode.max_turns)
        shadows = {key: action for record in records for key, action in record.shadows.items()}
        by_turn = diagnostics.shadow_disagreement_by_turn(all_trajectories(records), shadows, bins=bins)
        return {"disagreement": _marked(by_turn, experiment, exam_name, states="teacher-visited")}
    grades = experiment.grade(exam_name)
    found = _judged(experiment, exam_name, records, grades)
    if exam.slips:
        clean = _verdicts(experiment.examine("test"), experiment.grade("test"))
        resolved = _verdicts(records, grades)
        slipped = [trajectory for trajectory in all_trajectories(records) if trajectory.key in resolved]
        found["slips"] = diagnostics.slips(clean, slipped, resolved)
    return {name: _marked(table, experiment, exam_name) for name, table in found.items()}


def _judged(
    experiment: Experiment, exam_name: str, records: Sequence[CohortRecord], grades: Sequence[Grade]
) -> dict[str, pd.DataFrame]:
    settings, trajectories = experiment.settings, list(all_trajectories(records))
    found = {
        "outcomes": tables.outcomes(experiment.recipe.name, settings.seed, experiment.exam_tasks(exam_name), grades),
        "protocol": protocol.protocol_counts(trajectories),
    }
    if settings.tasks.source != GENERATED:  # of which some may have no verdict, as where an image is missing
        found["scores"] = tables.score_table({exam_name: grades}).drop(columns="name")
    if not diagnosed(EXAMS[exam_name], settings):
        return found
    labels, resolved = list(all_labels(records)), _verdicts(records, grades)
    by_turn = diagnostics.disagreement_by_turn(trajectories, labels, bins=turn_edges(settings.episode.max_turns))
    judged = [trajectory for trajectory in trajectories if trajectory.key in resolved]
    return found | {
        "disagreement": by_turn.assign(states="student-visited"),
        "recovery": diagnostics.recovery(judged, labels, resolved, k=5),
    }


def _verdicts(records: Sequence[CohortRecord], grades: Sequence[Grade]) -> dict[tuple[str, int], bool]:
    """Whether each episode is resolved; what the infrastructure failed has no verdict."""
    keys = [trajectory.key for trajectory in all_trajectories(records)]
    pairs = zip(keys, grades, strict=True)
    return {key: grade.resolved for key, grade in pairs if grade.status is not Status.INFRASTRUCTURE}


def _marked(table: pd.DataFrame, experiment: Experiment, exam: str | None = None, **more: str) -> pd.DataFrame:
    marks = {"recipe": experiment.recipe.name, "seed": experiment.settings.seed} | ({"exam": exam} if exam else {})
    return table.assign(**{**marks, **more})


# --- folders ----------------------------------------------------------------------------------------------


def save(folder: Path, found: Mapping[str, pd.DataFrame]) -> None:
    """Put tables into a results folder; rows of the same recipe, seed and exam are replaced, others kept."""
    for name, table in sorted(found.items()):
        path = folder / f"{name}.csv"
        if path.exists():
            table = pd.concat([_others(pd.read_csv(path), table), table])
        keys = [key for key in ("recipe", "seed", "exam") if key in table]
        write_text(path, table.sort_values(keys, kind="stable").to_csv(index=False, lineterminator="\n"))


def _others(old: pd.DataFrame, new: pd.DataFrame) -> pd.DataFrame:
    keys = [key for key in ("recipe", "seed", "exam") if key in new]
    known = set(new[keys].itertuples(index=False, name=None))
    return old[[row not in known for row in old[keys].itertuples(index=False, name=None)]]


def load(folder: Path, recipes: Sequence[str] = ()) -> dict[str, pd.DataFrame]:
    """Every table of a results folder. Raises DataError when there is none, or none of one of `recipes`."""
    found = {name: pd.read_csv(folder / f"{name}.csv") for name in NAMES if (folder / f"{name}.csv").exists()}
    if "outcomes" not in found:
        raise DataError(f"no results in {folder}; run notebooks 03 and 04 of this profile and seed first")
    if missing := [name for name in recipes if name not in set(found["outcomes"].recipe)]:
        raise DataError(
            f"no results of {', '.join(missing)} in {folder}; run notebooks 03 and 04 first, both to the end"
        )
    return found


def find(profile: str, seed: int, overrides: Mapping[str, object] | None = None) -> Path:
    """The results folder of a profile, seed and overrides: this machine's own, or else the published one."""
    own = paths.result_folder(profile, seed, overrides)
    return own if (own / "outcomes.csv").exists() else published()


def published() -> Path:
    """The committed results, which `python -m dagger_nb.publish` writes."""
    return paths.data() / "results" / "published"


def runs(settings: Settings, fleet: Executor) -> dict[str, Experiment]:
    """The runs of these settings that this machine has, by recipe in the order of the notebooks; starts nothing."""
    return {name: Experiment(name, settings, fleet) for name in RECIPES if run_folder(name, settings).is_dir()}


def exam_group(run: Experiment, exam_name: str) -> str:
    """Where in its run folder the final student of a finished run left an exam (cohorts, predictions.jsonl)."""
    return run.exam_group(EXAMS[exam_name], run.student_after(run.recipe.rounds))


def predictions(run: Experiment, exam_name: str = "test") -> tuple[Prediction, ...]:
    """The final student's patches in an exam; empty where the run or the exam is not finished."""
    if not run.store.done:
        return ()
    path = run.store.root / exam_group(run, exam_name) / "predictions.jsonl"
    return read_predictions(path) if path.exists() else ()


# --- views for notebooks and figures ------------------------------------------------------------------------


def against(differences: pd.DataFrame, baseline: str) -> pd.DataFrame:
    """The rows of `evaluation.comparison.comparison` that involve a recipe, turned so that it is the baseline.

    `detectable` becomes NaN where it was infinite (even a one-sided split would be missed), which JSON can say. Two
    columns are added: whether a row is `primary` (PRIMARY), and `p_adjusted`, which corrects the p-values of all other
    rows for their number (Holm).
    """
    swap = {"rate": "baseline_rate", "baseline_rate": "rate", "recipe": "baseline", "baseline": "recipe"}
    turned = differences.rename(columns=swap)
    turned = turned.assign(difference=-turned.difference, low=-turned.high, high=-turned.low)
    both = pd.concat([differences, turned[differences.columns]]).replace({"detectable": {inf: nan}})
    rows = both[both.baseline == baseline].sort_values(["split", "recipe"], kind="stable").reset_index(drop=True)
    rows["primary"] = (rows[list(PRIMARY)] == pd.Series(PRIMARY)).all(axis=1)
    rows["p_adjusted"] = rows.p_pooled
    rows.loc[~rows.primary, "p_adjusted"] = holm(rows.p_pooled[~rows.primary])
    return rows


def verdict(row: Mapping[str, object]) -> str:
    """One row of `against` in a sentence that claims no more than its interval and its adjusted p-value allow."""
    sure = row["p_adjusted"] < ALPHA
    sign = "beats" if sure and row["low"] > 0 else "loses to" if sure and row["high"] < 0 else "is not told apart from"
    difference, low, high, seen = (100 * row[name] for name in ("difference", "low", "high", "detectable"))
    power = f"finds {seen:.1f} points with 80 % power" if isfinite(seen) else "would miss even a one-sided split"
    power = "no pair differs, which is no evidence that the recipes are equal" if low == high else f"one seed {power}"
    test = "McNemar" if row["seeds"] == 1 else "sign test"
    adjusted = "the primary row" if row["primary"] else f"adjusted {row['p_adjusted']:.2g}"
    return (
        f"{row['split']}: {row['recipe']} {sign} {row['baseline']}: {difference:+z.1f} points "
        f"[{low:+z.1f}, {high:+z.1f}], {test} p = {row['p_pooled']:.2g} ({adjusted}; "
        f"{row['tasks']} tasks, {row['seeds']} {'seed' if row['seeds'] == 1 else 'seeds'}; {power})"
    )


def last_common_bin(curves: pd.DataFrame, tasks: int = 20) -> int:
    """The last turn bin (its first turn) that every curve reaches with so many tasks, or half of the first bin's.

    Later bins hold the few episodes that got stuck, and other ones for each recipe.

    Args:
        curves: recipe, states, first_turn, tasks.
    """
    by_curve = curves.pivot_table(index="first_turn", columns=["recipe", "states"], values="tasks")
    reached = by_curve.min(axis=1, skipna=False)
    enough = min(tasks, reached.iloc[0] / 2)
    return int(reached.index[reached >= enough].max())


def over_seeds(table: pd.DataFrame, by: Sequence[str], *, hits: str, count: str, units: str) -> pd.DataFrame:
    """Shares pooled over training seeds: sums of `hits` and `count`, and `share` with low and high (95 %).

    The seeds of a task hang together. Several seeds therefore get Wilson's interval on the `units` of one seed (their
    mean, the column `effective_n`), as if further seeds and turns told nothing new: too wide rather than too narrow.
    A single seed keeps the interval that the table has.
    """
    if table.seed.nunique() == 1:
        return table
    rows = []
    for key, part in table.groupby(list(by), sort=False):
        total, seen = int(part[hits].sum()), int(part[count].sum())
        effective = part[units].mean()
        sums = {hits: total, count: seen}  # the total stays where `count` is the unit itself
        found = {units: int(effective)} | sums | {"effective_n": effective, "seeds": part.seed.nunique()}
        rows.append(dict(zip(by, key, strict=True)) | found | _pooled(total, seen, effective))
    return pd.DataFrame(rows)


def _pooled(hits: int, count: int, units: float) -> dict[str, float]:
    if not count:
        return {"share": float("nan"), "low": float("nan"), "high": float("nan")}
    low, high = wilson(hits / count * units, units)
    return {"share": hits / count, "low": low, "high": high}
