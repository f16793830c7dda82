"""Pictures of what happens on the way: disagreement, the teacher's dose, losses, schedules."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib import rc_context
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from dagger_nb.errors import DataError
from dagger_nb.figures.style import (
    BLACK,
    BLUE,
    GREEN,
    GREY,
    ORANGE,
    PURPLE,
    RC,
    SKY,
    VERMILION,
    band,
    canvas,
    caption,
    counts,
    in_order,
    legend,
    need,
    style,
)  # fmt: skip

STATES = ("teacher-visited", "student-visited")

# Schedules are no recipes: they have looks of their own, in the order in which they are given.
_CURVES = (
    (BLUE, "o", "-"), (VERMILION, "s", "--"), (GREEN, "^", "-."), (PURPLE, "v", ":"),
    (ORANGE, "D", "--"), (BLACK, "P", "-"),
)  # fmt: skip
_DOSES = (
    ("nominal_beta", "nominal beta", GREY, ""),
    ("turn_share", "share of turns", SKY, "//"),
    ("token_share", "share of tokens", BLUE, ""),
)


@rc_context(RC)
def disagreement_by_turn(curves: pd.DataFrame) -> Figure:
    """Student against teacher by turn: a panel for each kind of states, a line for each recipe.

    Args:
        curves: rows of `evaluation.diagnostics.disagreement_by_turn` and `shadow_disagreement_by_turn` with
            columns recipe and states ("teacher-visited" or "student-visited"): recipe, states, first_turn,
            last_turn, tasks, turns, share, low, high.

    Raises:
        DataError, ConfigError: see the package; states of another name.
    """
    columns = ["recipe", "states", "first_turn", "last_turn", "tasks", "turns", "share", "low", "high"]
    need(curves, columns, "disagreement by turn")
    if strange := sorted(set(curves.states) - set(STATES)):
        raise DataError(f"unknown states {strange[0]!r} in the table of disagreement; they are {' or '.join(STATES)}")
    figure, panels = canvas(4.2, 2, share_y=True)
    handles = {}
    for axes, states in zip(panels, STATES, strict=True):
        part = curves[curves.states == states]
        for recipe in in_order(part.recipe):
            rows = part[part.recipe == recipe].sort_values("first_turn")
            middle = (rows.first_turn + rows.last_turn) / 2
            handles[recipe] = band(axes, middle, rows.share, rows.low, rows.high, recipe)
        axes.set_title(f"{states} states")
        axes.set_xlabel("turn (middle of bin)")
    panels[0].set_ylim(bottom=0)
    panels[0].set_ylabel("share of turns that differ")
    legend(figure, [handles[recipe] for recipe in in_order(handles)])
    caption(
        figure,
        f"How often the student's call differs from the teacher's in the same state, on states that the teacher's "
        f"or the student's own actions led to. Bands: 95 % Wilson intervals on the effective number of turns (turns "
        f"hang together within a task); n = {counts(curves.turns)} turns of {counts(curves.tasks)} tasks a bin. "
        f"Late bins hold only the episodes that last so long.",
    )
    return figure


@rc_context(RC)
def dose(table: pd.DataFrame) -> Figure:
    """Nominal beta beside the share of turns and of tokens that the teacher really acted, by round.

    Args:
        table: rows of `evaluation.protocol.realised_dose` with a column recipe: recipe, round, nominal_beta,
            turn_share, token_share (shares), episodes.
    """
    need(table, ["recipe", "round", "nominal_beta", "turn_share", "token_share", "episodes"], "doses")
    recipes = in_order(table.recipe)
    figure, panels = canvas(3.7, len(recipes), share_y=True)
    for axes, recipe in zip(panels, recipes, strict=True):
        rows = table[table.recipe == recipe].sort_values("round")
        for place, (column, _, colour, hatch) in enumerate(_DOSES):
            x = np.arange(len(rows)) + 0.27 * (place - 1)
            axes.bar(x, rows[column], width=0.25, color=colour, hatch=hatch, edgecolor="white", linewidth=0.5)
        axes.set_xticks(range(len(rows)), rows["round"])
        axes.set_title(style(recipe).label)
        axes.set_xlabel("round")
        axes.set_ylim(0, 1.03)
        axes.grid(visible=False, axis="x")
    panels[0].set_ylabel("the teacher's share")
    legend(figure, [Patch(facecolor=c, hatch=h, edgecolor="white", label=label) for _, label, c, h in _DOSES])
    caption(
        figure,
        f"How much of the acting the teacher did: the probability asked for, and what the draws and the lengths of "
        f"actions made of it. A full count of the episodes collected (n = {counts(table.episodes)} a round), so "
        f"without intervals.",
    )
    return figure


@rc_context(RC)
def learning_curve(history: pd.DataFrame) -> Figure:
    """Training loss by optimiser step, a line for each recipe, its range over seeds as a band.

    Args:
        history: one row a logged step: recipe, seed, step (counted through all rounds), loss (nats a token).
    """
    need(history, ["recipe", "seed", "step", "loss"], "losses")
    figure, (axes,) = canvas(3.7)
    handles = []
    for recipe in in_order(history.recipe):
        look = style(recipe)
        rows = history[history.recipe == recipe].groupby("step").loss.agg(["mean", "min", "max"])
        axes.fill_between(rows.index, rows["min"], rows["max"], color=look.colour, alpha=0.18, linewidth=0)
        handles += axes.plot(rows.index, rows["mean"], color=look.colour, linestyle=look.line, label=look.label)
    axes.set_xlabel("optimiser step")
    axes.set_ylabel("loss (nats a token)")
    axes.set_ylim(bottom=0)
    legend(figure, handles)
    caption(
        figure,
        f"Cross-entropy on the teacher's actions while training. Line: mean over the seeds; band: their smallest and "
        f"largest value (no interval); n = {counts(history.groupby('recipe').seed.nunique())} training seeds. The "
        f"data differ between recipes and rounds, so a lower loss is not a better policy.",
    )
    return figure


@rc_context(RC)
def schedules(curves: Mapping[str, Sequence[float]]) -> Figure:
    """The teacher's probability to act, by round (from 1), a line for each schedule.

    Args:
        curves: name -> beta of rounds 1, 2, ...; at most six.

    Raises:
        DataError: no schedule, or more than there are looks.
    """
    if not 0 < len(curves) <= len(_CURVES):
        raise DataError(f"{len(curves)} schedules; one picture shows 1 to {len(_CURVES)}")
    figure, (axes,) = canvas(3.6)
    handles = []
    for (name, betas), (colour, marker, line) in zip(curves.items(), _CURVES, strict=False):
        rounds = np.arange(1, len(betas) + 1)
        handles += axes.plot(rounds, betas, color=colour, marker=marker, linestyle=line, label=name)
    axes.set_ylim(-0.03, 1.03)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlabel("round")
    axes.set_ylabel("beta: the teacher acts")
    legend(figure, handles, columns=3)
    caption(figure, "Probability that the teacher acts in a turn, by round. Set, not measured: no intervals.")
    return figure
