"""Pictures of how episodes ended: rates with intervals, paired differences, reasons to stop."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib import rc_context
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from dagger_nb.figures.style import (
    BLACK,
    BLUE,
    GREY,
    ORANGE,
    PURPLE,
    RC,
    VERMILION,
    YELLOW,
    canvas,
    caption,
    counts,
    in_order,
    legend,
    need,
    points,
    style,
)  # fmt: skip
from dagger_nb.records import StopReason
from dagger_nb.statistics import wilson

REFERENCES = ("teacher", "base")  # drawn as lines, not as points

# Colours and hatches: bars of neighbouring reasons must differ without colour as well.
_STOPS = {
    StopReason.FINISH: ("submitted", BLUE, ""),
    StopReason.LOOP: ("loop", VERMILION, "//"),
    StopReason.CONTEXT: ("context full", ORANGE, ".."),
    StopReason.TURNS: ("turns spent", YELLOW, "xx"),
    StopReason.TIME: ("time spent", PURPLE, "\\\\"),
    StopReason.INFRASTRUCTURE: ("infrastructure", GREY, ""),
}


@rc_context(RC)
def resolve_rates(table: pd.DataFrame) -> Figure:
    """Resolve rates by split, a point with its interval for each recipe; teacher and base as reference lines.

    Args:
        table: rows of `evaluation.tables.rates`: split, recipe, rate, low, high (shares), tasks, seeds.

    Raises:
        DataError, ConfigError: see the package.
    """
    need(table, ["split", "recipe", "rate", "low", "high", "tasks", "seeds"], "resolve rates")
    trained = table[~table.recipe.isin(REFERENCES)]
    figure, (axes,) = canvas(4.2)
    splits = list(dict.fromkeys(table.split))
    handles = _grouped(axes, trained, splits, "split", "rate") if len(trained) else []
    for recipe in in_order(set(table.recipe) & set(REFERENCES)):
        handles.append(_reference(axes, table[table.recipe == recipe], splits, recipe))
    _share_axis(axes, "resolved")
    legend(figure, handles, columns=6)
    caption(
        figure,
        f"Share of tasks resolved, by split. Bars and shaded bands: 95 % Wilson intervals (on the effective number of "
        f"outcomes where several seeds share a task); n = {counts(table.tasks)} tasks a split x "
        f"{counts(table.seeds)} training seeds. Dotted lines: references. Intervals of two points say little about "
        f"their difference, which is paired.",
    )
    return figure


@rc_context(RC)
def paired_differences(table: pd.DataFrame) -> Figure:
    """A forest plot: the difference of two recipes on the same tasks, one row a pair and split.

    Args:
        table: rows of `evaluation.comparison.comparison`: split, recipe, baseline, difference, low, high
            (shares), tasks, seeds, p_pooled.
    """
    columns = ["split", "recipe", "baseline", "difference", "low", "high", "tasks", "seeds", "p_pooled"]
    rows = need(table, columns, "paired differences").reset_index(drop=True)
    figure, (axes,) = canvas(1.9 + 0.36 * len(rows))
    axes.axvline(0, color=GREY, linewidth=1)
    for place, row in rows.iterrows():
        look = style(row.recipe)
        ends = [row.low, row.high] if np.isfinite([row.low, row.high]).all() else [row.difference] * 2
        axes.plot(100 * np.array(ends), [place, place], color=look.colour, linewidth=2)
        axes.plot(100 * row.difference, place, marker=look.marker, color=look.colour, linestyle="none")
        axes.annotate(
            f"p = {row.p_pooled:.2g}", (1.01, place), xycoords=("axes fraction", "data"), va="center", fontsize=9
        )
    names = [f"{row.split}: {style(row.recipe).label} - {style(row.baseline).label}" for row in rows.itertuples()]
    axes.set_yticks(range(len(rows)), names)
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.set_xlabel("difference in resolve rate (percentage points)")
    caption(
        figure,
        f"Paired difference with its 95 % interval (percentile bootstrap over tasks, clustered by repository, and "
        f"seeds); n = {counts(rows.tasks)} tasks x {counts(rows.seeds)} training seeds. p: exact sign test on each "
        f"task's majority over the seeds (McNemar's with one seed), not corrected for the {len(rows)} comparisons. "
        f"An interval that covers 0 leaves the sign open.",
    )
    return figure


@rc_context(RC)
def recovery(table: pd.DataFrame) -> Figure:
    """Share of episodes still resolved, by the kind of their first own mistake.

    Args:
        table: rows of `evaluation.diagnostics.recovery` with a column recipe: recipe, kind, episodes, share,
            low, high.
    """
    need(table, ["recipe", "kind", "episodes", "share", "low", "high"], "recoveries")
    words = {"none": "no mistake", "edit": "wrong edit", "failed_call": "failed call"}
    return _rates_figure(
        table.assign(kind=table.kind.map(lambda kind: words.get(kind, kind))),
        "kind",
        "resolved",
        f"Share of episodes resolved, by the first own mistake (a turn that differs from the teacher's and changed "
        f"files or failed). 95 % Wilson intervals (with several seeds on the mean n of one); "
        f"n = {counts(table.episodes)} episodes a point. The groups are not comparable at random: other tasks lead to "
        f"other mistakes.",
    )


@rc_context(RC)
def slip(table: pd.DataFrame) -> Figure:
    """Share of tasks still resolved when wrong edits are put in the student's place, and where none came up.

    Args:
        table: rows of `evaluation.diagnostics.slips` with a column recipe: recipe, group ("hit" or "not
            hit"), clean_resolved, share, low, high.
    """
    need(table, ["recipe", "group", "clean_resolved", "share", "low", "high"], "slips")
    words = {"hit": "a slip came up", "not hit": "none came up"}
    return _rates_figure(
        table.assign(group=table.group.map(lambda group: words.get(group, group))),
        "group",
        "still resolved",
        f"Of the tasks resolved without slips, the share resolved again when plausible wrong edits replace the "
        f"student's action at a fixed rate; an episode in which none came up is the one without slips again. "
        f"95 % Wilson intervals (with several seeds on the mean n of one); n = {counts(table.clean_resolved)} episodes "
        f"a point.",
    )


@rc_context(RC)
def stop_reasons(table: pd.DataFrame) -> Figure:
    """Why episodes ended: one stacked bar a recipe.

    Args:
        table: one row a recipe (rows of `evaluation.protocol.protocol_counts` with a column recipe; several
            rounds are added up): recipe, episodes, and stop_<reason> for every StopReason (counts).
    """
    need(table, ["recipe", "episodes", *(f"stop_{reason.value}" for reason in _STOPS)], "stop reasons")
    totals = table.groupby("recipe").sum(numeric_only=True)
    recipes = in_order(totals.index)
    totals = totals.loc[recipes]
    figure, (axes,) = canvas(1.9 + 0.45 * len(recipes))
    handles = _stacked(axes, totals)
    ends = np.array([wilson(k, n) for k, n in zip(totals.stop_finish, totals.episodes, strict=True)])
    submitted = (totals.stop_finish / totals.episodes).to_numpy()
    reach = np.abs(ends.T - submitted)
    axes.errorbar(submitted, range(len(recipes)), xerr=reach, fmt="none", ecolor=BLACK, capsize=3)
    axes.set_yticks(range(len(recipes)), [style(recipe).label for recipe in recipes])
    axes.invert_yaxis()
    axes.grid(visible=False, axis="y")
    _share_axis(axes, "episodes", along="x")
    legend(figure, handles, columns=3)
    caption(
        figure,
        f"Why episodes ended. Whisker: 95 % Wilson interval of the share that submitted; "
        f"n = {counts(totals.episodes)} episodes a recipe. Infrastructure failures are not the agent's doing.",
    )
    return figure


# --- parts --------------------------------------------------------------------------------------------------


def _rates_figure(table: pd.DataFrame, group: str, ylabel: str, text: str) -> Figure:
    figure, (axes,) = canvas(3.9)
    handles = _grouped(axes, table, list(dict.fromkeys(table[group])), group, "share")
    _share_axis(axes, ylabel)
    legend(figure, handles, columns=6)
    caption(figure, text)
    return figure


def _stacked(axes: Axes, totals: pd.DataFrame) -> list[Artist]:
    """One bar a row, filled by the shares of the stop reasons; the legend handles of those that occur."""
    left, handles = np.zeros(len(totals)), []
    for reason, (label, colour, hatch) in _STOPS.items():
        share = (totals[f"stop_{reason.value}"] / totals.episodes).to_numpy()
        if share.any():
            rows = range(len(totals))
            axes.barh(rows, share, left=left, color=colour, hatch=hatch, edgecolor="white", linewidth=0.5)
            handles.append(Patch(facecolor=colour, hatch=hatch, edgecolor="white", label=label))
        left = left + share
    return handles


def _grouped(axes: Axes, table: pd.DataFrame, groups: Sequence[str], group: str, value: str) -> list[Artist]:
    """Points side by side within each group on the x axis, one a recipe; their legend handles."""
    recipes = in_order(table.recipe)
    step = 0.6 / max(1, len(recipes))
    handles = []
    for place, recipe in enumerate(recipes):
        rows = table[table.recipe == recipe]
        x = [groups.index(name) + (place - (len(recipes) - 1) / 2) * step for name in rows[group]]
        handles.append(points(axes, x, rows[value], rows.low, rows.high, recipe))
    axes.set_xticks(range(len(groups)), groups)
    axes.set_xlim(-0.5, len(groups) - 0.5)
    axes.grid(visible=False, axis="x")
    return handles


def _reference(axes: Axes, rows: pd.DataFrame, splits: Sequence[str], recipe: str) -> Artist:
    """A line with a band across each split's group."""
    look = style(recipe)
    for row in rows.itertuples():
        ends = np.array([-0.45, 0.45]) + splits.index(row.split)
        axes.plot(ends, [row.rate] * 2, color=look.colour, linestyle=look.line)
        axes.fill_between(ends, row.low, row.high, color=look.colour, alpha=0.18, linewidth=0)
    return Line2D([], [], color=look.colour, linestyle=look.line, label=look.label)


def _share_axis(axes: Axes, label: str, along: str = "y") -> None:
    """An axis of shares from 0 to 1, written in percent, with room for markers at both ends."""
    axis = axes.yaxis if along == "y" else axes.xaxis
    (axes.set_ylim if along == "y" else axes.set_xlim)(-0.03, 1.03)
    axis.set_ticks(np.linspace(0, 1, 6), [f"{tick:.0f} %" for tick in np.linspace(0, 100, 6)])
    axis.set_label_text(label)
