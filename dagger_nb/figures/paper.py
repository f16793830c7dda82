"""The paper's own numbers, redrawn from data/paper/*.csv; what is not known stays blank and is said."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib import rc_context
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MultipleLocator

from dagger_nb.figures.style import GREY, RC, canvas, caption, counts, in_order, legend, need, style
from dagger_nb.statistics import wilson

SCALING_TASKS = 100  # of either set in the scaling chart: the SWE-Gym holdout and "Verified-100"
_APART = 110  # trajectories between the methods' points in the scaling picture
_SOURCE = "Numbers: arXiv 2605.12913v1, CC BY 4.0."


@rc_context(RC)
def paper_results(df: pd.DataFrame) -> Figure:
    """The paper's table of resolve rates: a panel for each set, a row for each model and method.

    Args:
        df: data/paper/results.csv: model, method, set, n, resolve_rate (%; empty where not known), mark.
    """
    need(df, ["model", "method", "set", "n", "resolve_rate", "mark"], "the paper's results")
    sets = list(dict.fromkeys(df.set))
    rows = [(m, r) for m in dict.fromkeys(df.model) for r in in_order(df[df.model == m].method)]
    figure, panels = canvas(1.7 + 0.3 * len(rows), len(sets), share_y=True)
    for axes, name in zip(panels, sets, strict=True):
        part = df[df.set == name].set_index(["model", "method"])
        for place, key in enumerate(rows):
            _result(axes, place, key[1], part.loc[key].resolve_rate, part.loc[key].n)
        axes.set_title(f"{name} (n = {part.n.max()})")
        axes.set_xlabel("resolved (%)")
        axes.set_xlim(-1, 1.25 * df.resolve_rate.max() + 8)
    panels[0].set_yticks(range(len(rows)), [f"{model}  {style(method).label}" for model, method in rows])
    panels[0].set_ylim(len(rows) - 0.5, -0.5)
    blank = [f"{model} {style(method).label}" for model, method in rows if _blank(df, model, method)]
    said = f"Not known, left blank: {', '.join(blank)}. " if blank else ""
    caption(
        figure,
        f"Resolve rates as the paper prints them, one greedy run a model; bars: 95 % Wilson intervals computed here "
        f"from the rate and n = {counts(df.n)} tasks a set. {said}{_SOURCE}",
    )
    return figure


@rc_context(RC)
def paper_scaling(df: pd.DataFrame) -> Figure:
    """The paper's scaling of the 4B student: a panel for each set, a line for each method.

    Args:
        df: data/paper/scaling.csv: set, method, x (trajectories times passes), y (%; empty where not known),
            mark.
    """
    need(df, ["set", "method", "x", "y", "mark"], "the paper's scaling")
    sets = list(dict.fromkeys(df.set))
    figure, panels = canvas(4.2, len(sets), share_y=True)
    handles = {}
    for axes, name in zip(panels, sets, strict=True):
        part = df[(df.set == name) & df.y.notna()]
        for place, recipe in enumerate(in_order(part.method)):
            rows = part[part.method == recipe].sort_values("x")
            handles[recipe] = _scaling_line(axes, rows.x + _APART * place, rows.y, recipe)
        axes.set_title(name)
        axes.set_xlabel("trajectories times passes")
        axes.xaxis.set_major_locator(MultipleLocator(3000))
    panels[0].set_ylim(bottom=0)
    panels[0].set_ylabel("resolved (%)")
    legend(figure, [handles[recipe] for recipe in in_order(handles)])
    blanks = int(df.y.isna().sum())
    said = f"Points not known, left blank: {blanks}. " if blanks else ""
    caption(
        figure,
        f"Scaling of the 4B student, read off the authors' chart: x to +-5 trajectories (less than a marker), y exact "
        f"to the percent; methods are set apart by {_APART} so that no bar covers another. Bars: 95 % Wilson "
        f"intervals computed here, n = {SCALING_TASKS} tasks; one greedy run a point. {said}{_SOURCE}",
    )
    return figure


# --- parts --------------------------------------------------------------------------------------------------


def _result(axes: Axes, place: int, recipe: str, rate: float, n: int) -> None:
    if np.isnan(rate):
        axes.text(0, place, "not known", color=GREY, va="center", style="italic", fontsize=9)
        return
    look = style(recipe)
    low, high = (100 * bound for bound in wilson(round(rate * n / 100), n))
    axes.plot([low, high], [place, place], color=look.colour, linewidth=2)
    axes.plot(rate, place, marker=look.marker, color=look.colour)
    axes.text(high + 1, place, f"{rate:.1f}", va="center", fontsize=9)


def _scaling_line(axes: Axes, x: pd.Series, y: pd.Series, recipe: str) -> Artist:
    look = style(recipe)
    ends = 100 * np.array([wilson(round(rate * SCALING_TASKS / 100), SCALING_TASKS) for rate in y])
    axes.errorbar(x, y, yerr=np.abs(ends.T - y.to_numpy()), fmt="none", ecolor=look.colour, alpha=0.5, capsize=2)
    (line,) = axes.plot(x, y, color=look.colour, marker=look.marker, linestyle=look.line, label=look.label)
    return line


def _blank(df: pd.DataFrame, model: str, method: str) -> bool:
    return bool(df[(df.model == model) & (df.method == method)].resolve_rate.isna().any())
