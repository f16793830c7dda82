"""Scores as tables. Every rate has an interval, and both denominators are shown.

The table of outcomes that these functions share has one row a graded episode: recipe, seed (of the
training run), instance_id, split, repo, resolved (bool). Infrastructure failures are no outcomes; `score`
counts them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from dagger_nb.errors import DataError
from dagger_nb.evaluation.grades import Grade, Status
from dagger_nb.evaluation.shares import clustered_share, share
from dagger_nb.records import Task

OUTCOME_COLUMNS = ("recipe", "seed", "instance_id", "split", "repo", "resolved")


@dataclass(frozen=True, slots=True)
class Score:
    """Counts of one evaluation. `attempted` is every prediction, `graded` leaves out infrastructure failures."""

    resolved: int
    attempted: int
    graded: int
    infrastructure: int

    @property
    def rate_of_attempted(self) -> float:
        """resolved / attempted, the conservative rate: a failure of the infrastructure counts against the agent."""
        return share(self.resolved, self.attempted).value

    @property
    def rate_of_graded(self) -> float:
        """resolved / graded."""
        return share(self.resolved, self.graded).value


def score(grades: Iterable[Grade]) -> Score:
    """The counts behind a resolve rate.

    >>> score([Grade("a", Status.RESOLVED), Grade("b", Status.INFRASTRUCTURE)])
    Score(resolved=1, attempted=2, graded=1, infrastructure=1)
    """
    counts = Counter(grade.status for grade in grades)
    lost = counts[Status.INFRASTRUCTURE]
    return Score(counts[Status.RESOLVED], counts.total(), counts.total() - lost, lost)


def score_table(grades: Mapping[str, Sequence[Grade]]) -> pd.DataFrame:
    """One row a name (a recipe, a seed, a split), in the mapping's order.

    Columns: name, attempted, graded, resolved, rate (of attempted), low, high, rate_graded, low_graded,
    high_graded (Wilson, 95 %), and the count of every other status.
    """
    return pd.DataFrame([_score_row(name, rows) for name, rows in grades.items()])


def outcomes(recipe: str, seed: int, tasks: Sequence[Task], grades: Sequence[Grade]) -> pd.DataFrame:
    """The outcome rows of one evaluation, sorted by instance; infrastructure failures are left out.

    Raises:
        DataError: a grade of an instance that is not among `tasks`, or two of one instance.
    """
    known = {task.instance_id: task for task in tasks}
    rows = {grade.instance_id: grade for grade in grades}
    if len(rows) != len(grades) or not rows.keys() <= known.keys():
        raise DataError(f"{recipe}, seed {seed}: every grade must be of one given task, each task graded once")
    table = [
        (recipe, seed, name, known[name].split, known[name].repo, grade.resolved)
        for name, grade in sorted(rows.items())
        if grade.status is not Status.INFRASTRUCTURE
    ]
    return pd.DataFrame(table, columns=list(OUTCOME_COLUMNS))


def rates(outcomes: pd.DataFrame) -> pd.DataFrame:
    """Resolve rates by recipe and split over all seeds.

    Columns: split, recipe, seeds, tasks, outcomes, resolved, rate, low, high. The seeds of one task hang
    together, so the interval is Wilson's on the effective number of outcomes (tasks are the clusters).
    """
    rows = []
    for (split, recipe), part in checked(outcomes).groupby(["split", "recipe"], sort=True):
        found = clustered_share([list(task.resolved) for _, task in part.groupby("instance_id")])
        counts = {"seeds": part.seed.nunique(), "tasks": part.instance_id.nunique(), "outcomes": found.count}
        rows.append({"split": split, "recipe": recipe} | counts | {"resolved": found.hits} | found.interval("rate"))
    return pd.DataFrame(rows)


def fraction(row: Any) -> str:
    """How a row of `rates` is written: resolved/outcomes [low, high]."""
    return f"{row.resolved}/{row.outcomes} [{row.low:.0%}, {row.high:.0%}]"


def checked(outcomes: pd.DataFrame) -> pd.DataFrame:
    """The same table. Raises DataError when it lacks a column or holds an episode twice."""
    if missing := set(OUTCOME_COLUMNS) - set(outcomes.columns):
        raise DataError(f"the table of outcomes lacks {sorted(missing)}; make it with evaluation.tables.outcomes")
    if outcomes.duplicated(["recipe", "seed", "instance_id", "split"]).any():
        raise DataError("the table of outcomes holds an episode twice (recipe, seed, instance_id, split)")
    return outcomes


def _score_row(name: str, grades: Sequence[Grade]) -> dict[str, object]:
    total = score(grades)
    counts = Counter(grade.status for grade in grades)
    attempted, graded = share(total.resolved, total.attempted), share(total.resolved, total.graded)
    row = {"name": name, "attempted": total.attempted, "graded": total.graded, "resolved": total.resolved}
    others = {status.value: counts[status] for status in Status if status is not Status.RESOLVED}
    return row | attempted.interval("rate") | graded.interval("rate_graded", "_graded") | others
