"""A trajectory that one can read turn by turn: who acted, what came back, and what the teacher would have done.

Two pure functions of the records, `html` for notebooks and reports and `text` for terminals. What an agent or a
command wrote is shown as it is and never interpreted: markup is escaped, and control characters, terminal
sequences and marks that turn the writing direction are spelt out.
"""

from __future__ import annotations

import html as markup
import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Mapping

from dagger_nb.errors import DataError
from dagger_nb.records import Action, Label, Trajectory, Turn

FOLD = 12  # lines of an observation that are shown before the rest must be opened

# Inline styles, because notebooks drop style sheets; half-transparent greys read on light and dark pages alike.
_COLOURS = {"teacher": "#0072B2", "student": "#D55E00", "slip": "#CC79A7"}
_BOX = "border-left:4px solid {};padding:2px 0 2px 10px;margin:6px 0"
_PRE = "white-space:pre-wrap;overflow-wrap:anywhere;margin:3px 0;padding:4px 6px;background:rgba(128,128,128,.12)"
_LESSON = "border-left:2px dashed #009E73;padding-left:8px;margin:3px 0 3px 12px"
_CATEGORIES = {"Cc", "Cf", "Cs", "Zl", "Zp"}  # control, format, surrogate, line and paragraph separators


def text(trajectory: Trajectory, labels: Iterable[Label] = ()) -> str:
    """The episode as plain lines, every observation in full.

    Args:
        labels: of this or of several episodes; those of other episodes are left aside.

    Raises:
        DataError: a label of this episode belongs to a turn that it does not have.
    """
    by_turn = _labels_of(trajectory, labels)
    lines = [" · ".join(headline(trajectory))]
    for turn in trajectory.turns:
        lines += ["", " · ".join(_title(turn)), *_indent(_said(turn.action))]
        for label in by_turn[turn.index]:
            lines += _indent(_advice(label), "  > ")
        lines += _indent(turn.observation, "  | ")
    if trajectory.patch:
        lines += ["", "patch", *_indent(trajectory.patch.rstrip("\n"))]
    return "\n".join(map(spelt_out, lines)) + "\n"


def html(trajectory: Trajectory, labels: Iterable[Label] = (), *, fold: int = FOLD) -> str:
    """The episode as one self-contained piece of HTML without scripts, styles or links.

    Args:
        labels: of this or of several episodes; those of other episodes are left aside.
        fold: an observation of more lines is closed; a click opens it.

    Raises:
        DataError: a label of this episode belongs to a turn that it does not have.
    """
    by_turn = _labels_of(trajectory, labels)
    parts = [f"<p><b>{_safe(' · '.join(headline(trajectory)))}</b></p>"]
    parts += [_turn_html(turn, by_turn[turn.index], fold) for turn in trajectory.turns]
    if trajectory.patch:
        parts.append(_folded("patch", trajectory.patch))
    return f"<div>{''.join(parts)}</div>"


def headline(trajectory: Trajectory) -> list[str]:
    """What a reader wants to know first: which episode, whose, how long, and how it ended."""
    teachers = sum(turn.actor == "teacher" for turn in trajectory.turns)
    parts = [
        trajectory.instance_id,
        f"attempt {trajectory.attempt}, round {trajectory.round}",
        f"student {trajectory.policy}",
        f"{len(trajectory.turns)} turns, {teachers} by the teacher",
        f"ended by {trajectory.stop.value}",
    ]
    return parts + ([trajectory.detail] if trajectory.detail else [])


def spelt_out(text: str) -> str:
    r"""The text with everything but tabs and newlines that a screen would obey written as an escape.

    >>> spelt_out("red \x1b[31m, turned \u202e, half \ud800")
    'red \\x1b[31m, turned \\u202e, half \\ud800'
    """
    return "".join(
        ascii(letter)[1:-1] if letter not in "\t\n" and unicodedata.category(letter) in _CATEGORIES else letter
        for letter in text
    )


# --- parts --------------------------------------------------------------------------------------------------


def _labels_of(trajectory: Trajectory, labels: Iterable[Label]) -> Mapping[int, list[Label]]:
    by_turn: dict[int, list[Label]] = defaultdict(list)
    episode = (*trajectory.key, trajectory.round, trajectory.policy)
    for label in labels:
        if (label.instance_id, label.attempt, label.round, label.policy) == episode:
            by_turn[label.turn].append(label)
    if strange := sorted(set(by_turn) - {turn.index for turn in trajectory.turns}):
        raise DataError(
            f"a label of {trajectory.instance_id} belongs to turn {strange[0]}, but the episode has "
            f"{len(trajectory.turns)} turns; give the labels that were stored with it"
        )
    return by_turn


def _title(turn: Turn) -> list[str]:
    parts = [f"turn {turn.index}", turn.actor]
    if turn.beta is not None and turn.draw is not None:
        parts.append(f"beta {turn.beta:g}, draw {turn.draw:.2f}")
    return [*parts, f"{len(turn.token_ids)} tokens said, {turn.observation_tokens} seen"]


def _said(action: Action) -> str:
    return "\n".join(filter(None, [action.thought, _call(action)]))


def _call(action: Action) -> str:
    """A tool call as an engineer would write it: `$ command`, or the editor's command with -old and +new lines."""
    if action.malformed:
        return f"malformed ({action.error})\n{action.raw}"
    if action.tool == "execute_bash":
        return f"$ {action.arguments['command']}"
    rest = dict(action.arguments)
    lines = [" ".join(str(rest.pop(name)) for name in ("command", "path") if name in rest) or action.tool]
    for name, mark in (("old_str", "- "), ("new_str", "+ "), ("file_text", "+ ")):
        if name in rest:
            lines += _indent(str(rest.pop(name)), mark)
    lines[0] += "".join(f" {name}={value}" for name, value in sorted(rest.items()))
    return "\n".join(lines)


def _advice(label: Label) -> str:
    """What the teacher answered in this state, or that it would have done just the same."""
    if not label.lesson:
        return f"{label.teacher}: the same"
    return f"{label.teacher} instead: {_said(label.action)}"


def _indent(body: str, mark: str = "  ") -> list[str]:
    return [mark + line for line in body.split("\n")] if body else []


# --- HTML ---------------------------------------------------------------------------------------------------


def _turn_html(turn: Turn, labels: Iterable[Label], fold: int) -> str:
    colour = _COLOURS.get(turn.actor, "#808080")
    number, actor, *rest = _title(turn)
    parts = [
        f'{_safe(number)} · <b style="color:{colour}">{_safe(actor)}</b> · <small>{_safe(" · ".join(rest))}</small>'
    ]
    if turn.action.thought:
        parts.append(f'<div style="white-space:pre-line"><i>{_safe(turn.action.thought)}</i></div>')
    parts.append(_pre(_call(turn.action)))
    parts += [_advice_html(label) for label in labels]
    if turn.observation:
        lines = turn.observation.count("\n") + 1
        parts.append(_folded(f"{lines} lines", turn.observation) if lines > fold else _pre(turn.observation))
    return f'<div style="{_BOX.format(colour)}">{"".join(parts)}</div>'


def _advice_html(label: Label) -> str:
    if not label.lesson:
        return f"<div><small>{_safe(_advice(label))}</small></div>"
    return f'<div style="{_LESSON}"><small>a lesson</small>{_pre(_advice(label))}</div>'


def _folded(title: str, body: str) -> str:
    return f"<details><summary>{_safe(title)}</summary>{_pre(body)}</details>"


def _pre(body: str) -> str:
    return f'<pre style="{_PRE}">{_safe(body)}</pre>'


def _safe(body: str) -> str:
    return markup.escape(spelt_out(body))
