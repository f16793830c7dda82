"""Small tables of what was found: written by the notebooks that compute, read by those that compare and draw.

A folder of results is data/results/<profile>-s<seed>/: one CSV a table, each row with its recipe and seed. The
tables of the `study` profile are committed, so that notebooks 05 to 07 also run without training anything.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import pandas as pd

from dagger_nb import paths
from dagger_nb.errors import DataError
from dagger_nb.evaluation import diagnostics, protocol, tables
from dagger_nb.evaluation.grades import Grade
from dagger_nb.experiment import EXAMS, Experiment, all_labels, all_trajectories
from dagger_nb.store import CohortRecord, write_text

TURN_BINS = (0, 3, 6, 9, 12, 16, 20, 25, 30, 40)  # edges of turn indices

NAMES = ("outcomes", "disagreement", "protocol", "dose", "lessons", "recovery", "slips", "fits")


def training_tables(experiment: Experiment) -> dict[str, pd.DataFrame]:
    """What a recipe's rounds were: dose, lessons and losses (tables `dose`, `lessons`, `fits`)."""
    rounds = range(1, experiment.recipe.rounds + 1)
    records = [record for r in rounds for record in experiment.collect(r)]
    fits = [_fit_row(experiment.fit_report(r), r) for r in rounds]
    found = {
        "dose": protocol.realised_dose(all_trajectories(records)) if records else pd.DataFrame(),
        "lessons": protocol.lessons(all_labels(records)) if records else pd.DataFrame(),
        "fits": pd.DataFrame(fits),
    }
    return {name: _marked(table, experiment) for name, table in found.items() if len(table)}


def _fit_row(report: Mapping[str, object], round_: int) -> dict[str, object]:
    wanted = ("examples", "labels", "lessons", "dropped", "tokens", "predictions", "seconds", "episodes_dropped")
    log = report["log"]
    tenth = max(1, len(log) // 10)
    first, last = (sum(row["loss"] for row in part) / tenth for part in (log[:tenth], log[-tenth:]))
    return {"round": round_, "steps": len(log), "first_loss": first, "last_loss": last} | {w: report[w] for w in wanted}


def exam_tables(experiment: Experiment, exam_name: str) -> dict[str, pd.DataFrame]:
    """What an exam found: outcomes, disagreement by turn, protocol errors, recovery, and slips where there were any."""
    exam, records = EXAMS[exam_name], experiment.examine(exam_name)
    if exam.shadow:
        shadows = {key: action for record in records for key, action in record.shadows.items()}
        by_turn = diagnostics.shadow_disagreement_by_turn(all_trajectories(records), shadows, bins=TURN_BINS)
        return {"disagreement": _marked(by_turn, experiment, exam_name, states="teacher")}
    grades = experiment.grade(exam_name)
    found = _judged(experiment, exam_name, records, grades)
    if exam.slips:
        clean = _verdicts(experiment.examine("test"), experiment.grade("test"))
        slipped = list(all_trajectories(records))
        found["slips"] = diagnostics.slips(clean, slipped, _verdicts(records, grades))
    return {name: _marked(table, experiment, exam_name) for name, table in found.items()}


def _judged(
    experiment: Experiment, exam_name: str, records: Sequence[CohortRecord], grades: Sequence[Grade]
) -> dict[str, pd.DataFrame]:
    trajectories, labels = list(all_trajectories(records)), list(all_labels(records))
    by_turn = diagnostics.disagreement_by_turn(trajectories, labels, bins=TURN_BINS)
    return {
        "outcomes": tables.outcomes(
            experiment.recipe.name, experiment.settings.seed, experiment.exam_tasks(exam_name), grades
        ),
        "disagreement": by_turn.assign(states="student"),
        "protocol": protocol.protocol_counts(trajectories),
        "recovery": diagnostics.recovery(trajectories, labels, _verdicts(records, grades), k=5),
    }


def _verdicts(records: Sequence[CohortRecord], grades: Sequence[Grade]) -> dict[tuple[str, int], bool]:
    keys = [trajectory.key for trajectory in all_trajectories(records)]
    return {key: grade.resolved for key, grade in zip(keys, grades, strict=True)}


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


def load(folder: Path) -> dict[str, pd.DataFrame]:
    """Every table of a results folder. Raises DataError when there is none."""
    found = {name: pd.read_csv(folder / f"{name}.csv") for name in NAMES if (folder / f"{name}.csv").exists()}
    if "outcomes" not in found:
        raise DataError(f"no results in {folder}; run notebooks 03 and 04 of this profile and seed first, or profile='study'")
    return found


def find(profile: str, seed: int) -> Path:
    """The results folder of a profile and seed: this machine's own, or the committed one of the study."""
    own, published = paths.result_folder(profile, seed), paths.data() / "results" / "study"
    return own if (own / "outcomes.csv").exists() else published
