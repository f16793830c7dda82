"""Where an agent leaves the teacher's path and whether it finds back: small tables, ready for figures and JSON.

Everything here is a pure function of records; nothing is random. A share comes with its count and,
where it stands for a policy, with a 95 % interval: Wilson's for independent outcomes, and for turns,
which hang together within a task, Wilson's on the effective number of turns (see `shares`).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from typing import NamedTuple

import pandas as pd

from dagger_nb.errors import DataError
from dagger_nb.evaluation.readings import is_edit
from dagger_nb.evaluation.shares import clustered_share, share
from dagger_nb.policies.history import failed_call
from dagger_nb.records import Action, Label, Trajectory

EpisodeKey = tuple[str, int]  # instance_id, attempt
TurnKey = tuple[str, int, int]  # instance_id, attempt, turn


class Comparison(NamedTuple):
    """One state at which two policies answered: whose task, which turn, and whether the calls differ."""

    instance_id: str
    turn: int
    differs: bool


# --- disagreement with the teacher --------------------------------------------------------------------------


def disagreement_by_turn(
    trajectories: Iterable[Trajectory], labels: Iterable[Label], *, bins: Sequence[int]
) -> pd.DataFrame:
    """Student against teacher on the states that the STUDENT visited, by turn.

    A turn counts when the student acted and the state was labelled; it differs when the label is another
    call than the executed one (thoughts do not count; a malformed reply always differs).

    Args:
        bins: rising edges of turn indices; [0, 4, 8] gives turns 0-3 and 4-7. Later turns are left out.

    Returns:
        One row a bin with any turn: first_turn, last_turn, tasks, turns, differing, share, low, high.
    """
    return _by_bin(list(_compared(trajectories, labels)), bins)


def shadow_disagreement_by_turn(
    trajectories: Iterable[Trajectory], shadow: Mapping[TurnKey, Action], *, bins: Sequence[int]
) -> pd.DataFrame:
    """Student against teacher on the states that the TEACHER visited, by turn.

    `shadow` holds what the student would have done, never executed; columns as `disagreement_by_turn`.
    """
    rows = [
        Comparison(path.instance_id, turn.index, not proposal.same_call(turn.action))
        for path in trajectories
        for turn in path.turns
        if turn.actor == "teacher" and (proposal := shadow.get((*path.key, turn.index)))
    ]
    return _by_bin(rows, bins)


# --- mistakes and what follows them -------------------------------------------------------------------------


def first_mistakes(trajectories: Iterable[Trajectory], labels: Iterable[Label]) -> pd.DataFrame:
    """The first own mistake of each episode.

    A mistake is a turn of the student that differs from the teacher's label there AND changed files or was
    a failed call; another way of looking around is none. Unlabelled turns cannot be mistakes.

    Returns:
        One row an episode: instance_id, attempt, turns, turn (NA without a mistake), kind ("edit",
        "failed_call" or "none").
    """
    by_turn = _by_turn(labels)
    rows = [_mistake_row(path, by_turn) for path in sorted(trajectories, key=lambda path: path.key)]
    frame = pd.DataFrame(rows, columns=["instance_id", "attempt", "turns", "turn", "kind"])
    return frame.astype({"turn": "Int64"})


def recovery(
    trajectories: Sequence[Trajectory], labels: Sequence[Label], resolved: Mapping[EpisodeKey, bool], *, k: int
) -> pd.DataFrame:
    """After the first own mistake: was the task still resolved, and did the next turns follow the teacher?

    Args:
        resolved: the verdict of each episode.
        k: how many of the student's labelled turns after the mistake are compared with the teacher.

    Returns:
        One row a kind of first mistake ("none" first): kind, episodes, resolved, share, low, high,
        next_turns, next_agreeing, next_share.

    Raises:
        DataError: an episode has no verdict, or two trajectories are the same episode.
    """
    paths = _by_episode(trajectories, resolved)
    mistakes, by_turn = first_mistakes(trajectories, labels), _by_turn(labels)
    rows = []
    for kind in ("none", "edit", "failed_call"):
        chosen = mistakes[mistakes.kind == kind]
        keys = list(zip(chosen.instance_id, chosen.attempt, strict=True))
        solved = share(sum(resolved[key] for key in keys), len(keys))
        turns = [(paths[key], at) for key, at in zip(keys, chosen.turn, strict=True) if kind != "none"]
        after = [agrees for path, at in turns for agrees in _agreement_after(path, at, by_turn, k)]
        counts = {"kind": kind, "episodes": solved.count, "resolved": solved.hits}
        rows.append(counts | solved.interval() | _next(after))
    return pd.DataFrame(rows)


def slips(
    clean: Mapping[EpisodeKey, bool], slipped: Sequence[Trajectory], resolved: Mapping[EpisodeKey, bool]
) -> pd.DataFrame:
    """The slip test: the same tasks clean and with wrong edits put in the student's place.

    Args:
        clean: verdicts of the episodes without slips.
        slipped: the episodes of the slip run; those in which none came up should be the clean ones again.
        resolved: the slip run's verdicts.

    Returns:
        Rows "hit" and "not hit": pairs, clean_resolved, slipped_resolved, still (resolved in both), share
        (still / clean_resolved) with low and high.
    """
    _by_episode(slipped, resolved)
    groups: dict[bool, list[EpisodeKey]] = {True: [], False: []}
    for path in slipped:
        if path.key in clean:
            groups[any(turn.actor == "slip" for turn in path.turns)].append(path.key)
    rows = []
    for hit, keys in groups.items():
        before = [key for key in keys if clean[key]]
        still = share(sum(resolved[key] for key in before), len(before))
        counts = {
            "pairs": len(keys),
            "clean_resolved": len(before),
            "slipped_resolved": sum(resolved[key] for key in keys),
        }
        rows.append({"group": "hit" if hit else "not hit"} | counts | {"still": still.hits} | still.interval())
    return pd.DataFrame(rows)


# --- parts ----------------------------------------------------------------------------------------------------


def _by_turn(labels: Iterable[Label]) -> dict[tuple[int, str, int, int], Label]:
    return {(label.round, label.instance_id, label.attempt, label.turn): label for label in labels}


def _by_episode(
    trajectories: Sequence[Trajectory], resolved: Mapping[EpisodeKey, bool]
) -> dict[EpisodeKey, Trajectory]:
    paths = {path.key: path for path in trajectories}
    if len(paths) != len(trajectories):
        raise DataError("several trajectories of one episode (instance, attempt); give one round at a time")
    if missing := sorted(set(paths) - set(resolved)):
        raise DataError(f"no verdict for {len(missing)} episodes, e.g. {missing[0]}; grade them first")
    return paths


def _compared(trajectories: Iterable[Trajectory], labels: Iterable[Label]) -> Iterable[Comparison]:
    by_turn = _by_turn(labels)
    for path in trajectories:
        for turn in path.turns:
            label = by_turn.get((path.round, *path.key, turn.index))
            if turn.actor == "student" and label:
                yield Comparison(path.instance_id, turn.index, not label.action.same_call(turn.action))


def _by_bin(rows: Sequence[Comparison], bins: Sequence[int]) -> pd.DataFrame:
    table = []
    for first, end in pairwise(bins):
        tasks: dict[str, list[bool]] = defaultdict(list)
        for row in rows:
            if first <= row.turn < end:
                tasks[row.instance_id].append(row.differs)
        if tasks:
            found = clustered_share(list(tasks.values()))
            counts = {"tasks": len(tasks), "turns": found.count, "differing": found.hits}
            table.append({"first_turn": first, "last_turn": end - 1} | counts | found.interval())
    columns = ["first_turn", "last_turn", "tasks", "turns", "differing", "share", "low", "high"]
    return pd.DataFrame(table, columns=columns)


def _mistake_row(path: Trajectory, by_turn: Mapping[tuple[int, str, int, int], Label]) -> tuple[object, ...]:
    for turn in path.turns:
        label = by_turn.get((path.round, *path.key, turn.index))
        wrong = turn.actor == "student" and label and not label.action.same_call(turn.action)
        if wrong and (failed_call(turn) or is_edit(turn)):
            kind = "failed_call" if failed_call(turn) else "edit"
            return (*path.key, len(path.turns), turn.index, kind)
    return (*path.key, len(path.turns), None, "none")


def _agreement_after(
    path: Trajectory, at: int, by_turn: Mapping[tuple[int, str, int, int], Label], k: int
) -> list[bool]:
    pairs = [
        label.action.same_call(turn.action)
        for turn in path.turns
        if turn.index > at and turn.actor == "student" and (label := by_turn.get((path.round, *path.key, turn.index)))
    ]
    return pairs[:k]


def _next(after: Sequence[bool]) -> dict[str, float]:
    return {"next_turns": len(after), "next_agreeing": sum(after), "next_share": share(sum(after), len(after)).value}
