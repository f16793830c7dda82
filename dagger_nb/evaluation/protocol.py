"""What episodes cost and which rules they broke: protocol errors, the teacher's real dose, lessons in the labels.

Pure functions of records; one row a round, sorted, ready for figures and JSON.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from itertools import pairwise

import pandas as pd

from dagger_nb.evaluation.readings import is_edit, is_full_test_run, same_reply, shows_failures
from dagger_nb.policies.history import failed_call
from dagger_nb.records import Label, Missing, StopReason, Trajectory, Turn


def protocol_counts(trajectories: Iterable[Trajectory]) -> pd.DataFrame:
    """Errors against the protocol, by round; only the student's own turns count.

    Returns:
        One row a round: round, episodes, turns (the student's), malformed, failed_calls (malformed ones
        included), repeated (the same reply as in the turn before), submissions, wrong_submissions and its
        parts submitted_red (the last full test run showed failures), submitted_untested (an edit came after
        it, or there was none), and stop_<reason> for every StopReason.
    """
    counts: dict[int, Counter[str]] = defaultdict(Counter)
    for path in trajectories:
        counts[path.round] += _episode_counts(path)
    columns = ["episodes", "turns", "malformed", "failed_calls", "repeated", "submissions", "wrong_submissions"]
    columns += ["submitted_red", "submitted_untested", *(f"stop_{reason.value}" for reason in StopReason)]
    rows = [{"round": number} | {name: counts[number][name] for name in columns} for number in sorted(counts)]
    return pd.DataFrame(rows, columns=["round", *columns])


def realised_dose(trajectories: Iterable[Trajectory]) -> pd.DataFrame:
    """How much of the acting the teacher really did, beside the nominal beta (its mean over turns).

    Returns:
        One row a round: round, nominal_beta, episodes, turns, teacher_turns, turn_share, teacher_malformed (of the
        teacher's turns: asked for twice and still no call of a tool), action_tokens, teacher_tokens, token_share.
    """
    rows = [
        (path.round, path.key, turn.beta, turn.actor == "teacher", turn.action.malformed, len(turn.token_ids))
        for path in trajectories
        for turn in path.turns
    ]
    frame = pd.DataFrame(rows, columns=["round", "key", "beta", "teacher", "malformed", "tokens"])
    frame = frame.assign(
        beta=frame.beta.astype(float),
        malformed=(frame.malformed & frame.teacher).astype(int),
        teacher_tokens=frame.tokens * frame.teacher.astype(int),
    )
    table = frame.groupby("round").agg(
        nominal_beta=("beta", "mean"),
        episodes=("key", "nunique"),
        turns=("tokens", "size"),
        teacher_turns=("teacher", "sum"),
        teacher_malformed=("malformed", "sum"),
        action_tokens=("tokens", "sum"),
        teacher_tokens=("teacher_tokens", "sum"),
    )
    table.insert(4, "turn_share", table.teacher_turns / table.turns)
    return table.assign(token_share=table.teacher_tokens / table.action_tokens).reset_index()


def lessons(labels: Iterable[Label], missing: Iterable[Missing] = ()) -> pd.DataFrame:
    """How many labels taught something new.

    Returns:
        One row a round: round, labels, lessons (they differ from what was executed), lesson_share,
        repeats (the same call as the label of the turn before: what a stuck loop buys again and again),
        lesson_repeats, missing (states that were to be labelled and have no label).
    """
    counts: dict[int, Counter[str]] = defaultdict(Counter)
    previous: Label | None = None
    for label in sorted(labels, key=lambda label: (label.round, label.instance_id, label.attempt, label.turn)):
        repeats = previous is not None and _follows(previous, label) and label.action.same_call(previous.action)
        counts[label.round] += Counter(
            labels=1, lessons=label.lesson, repeats=repeats, lesson_repeats=repeats and label.lesson
        )
        previous = label
    for state in missing:
        counts[state.round]["missing"] += 1
    columns = ["labels", "lessons", "repeats", "lesson_repeats", "missing"]
    rows = [{"round": number} | {name: counts[number][name] for name in columns} for number in sorted(counts)]
    frame = pd.DataFrame(rows, columns=["round", *columns])
    frame.insert(3, "lesson_share", frame.lessons / frame.labels)
    return frame


def _episode_counts(path: Trajectory) -> Counter[str]:
    own = [turn for turn in path.turns if turn.actor == "student"]
    repeated = sum(same_reply(a.action, b.action) for a, b in pairwise(path.turns) if b.actor == "student")
    counts = Counter(
        {
            "episodes": 1,
            "turns": len(own),
            "malformed": sum(turn.action.malformed for turn in own),
            "failed_calls": sum(map(failed_call, own)),
            "repeated": repeated,
            f"stop_{path.stop.value}": 1,
        }
    )
    if own and own[-1] is path.turns[-1] and own[-1].action.tool == "finish":
        counts += _submission(path.turns[:-1])
    return counts


def _submission(turns: Sequence[Turn]) -> Counter[str]:
    runs = [place for place, turn in enumerate(turns) if is_full_test_run(turn)]
    untested = not runs or any(map(is_edit, turns[runs[-1] + 1 :]))
    red = bool(runs) and not untested and shows_failures(turns[runs[-1]])
    return Counter(submissions=1, submitted_red=red, submitted_untested=untested, wrong_submissions=red or untested)


def _follows(a: Label, b: Label) -> bool:
    return (a.round, a.instance_id, a.attempt, a.turn + 1) == (b.round, b.instance_id, b.attempt, b.turn)
