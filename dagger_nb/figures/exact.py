"""Pictures of the exact theory: costs, states and disagreement of the cliff walk. No chance, no intervals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import matplotlib
import numpy as np
from matplotlib import rc_context
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import FixedLocator, NullLocator
from numpy.typing import ArrayLike

from dagger_nb.errors import DataError
from dagger_nb.figures.style import GREY, RC, canvas, caption, in_order, legend, style
from dagger_nb.theory import CostCurves, growth_exponent


@rc_context(RC)
def theory_costs(curves: CostCurves) -> Figure:
    """Expected cost against the horizon on log-log axes, cloning against DAgger, with the two bounds."""
    figure, (axes,) = canvas(4.2)
    handles = []
    pairs = {"sft": (curves.cloning, curves.cloning_bound), "dagger": (curves.dagger, curves.dagger_bound)}
    for recipe, (cost, bound) in pairs.items():
        look, slope = style(recipe), growth_exponent(curves.horizons, cost)
        name = f"{look.label}: grows as $T^{{{slope:.2f}}}$"
        axes.plot(curves.horizons, bound, color=look.colour, linewidth=1, linestyle=":")
        handles += axes.plot(
            curves.horizons, cost, color=look.colour, marker=look.marker, linestyle=look.line, label=name
        )
    handles.append(Line2D([], [], color=GREY, linewidth=1, linestyle=":", label="bound"))
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.xaxis.set_major_locator(FixedLocator(curves.horizons))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xticklabels([str(horizon) for horizon in curves.horizons])
    axes.set_xlabel("horizon T (turns)")
    axes.set_ylabel("expected cost above the teacher's")
    legend(figure, handles)
    caption(
        figure,
        f"Exact expected cost on the cliff walk with an error of {curves.eps:g} in every state that was trained; "
        f"slopes by least squares on log-log axes. Dotted: T^2 eps for cloning, u T eps for DAgger (Theorems 2.1 and "
        f"2.2 of arXiv 1011.0686). Computed, not sampled: no intervals.",
    )
    return figure


@rc_context(RC)
def occupancy(visits: Mapping[str, ArrayLike]) -> Figure:
    """Where a policy is, turn by turn: one panel a recipe, shares of the states stacked.

    Args:
        visits: recipe -> [turns, states] as `theory.occupancy` gives it; state 0 is the path.

    Raises:
        DataError: no recipe, or arrays of different numbers of states.
    """
    tables = {recipe: np.asarray(visits[recipe], float) for recipe in in_order(visits)}
    if len({table.shape[1:] for table in tables.values()}) != 1:
        raise DataError(f"occupancies need one number of states, not {[t.shape for t in tables.values()]}")
    states = next(iter(tables.values())).shape[1]
    colours = matplotlib.colormaps["cividis"](np.linspace(0.95, 0.1, states))
    figure, panels = canvas(3.9, len(tables), share_y=True)
    for axes, (recipe, table) in zip(panels, tables.items(), strict=True):
        axes.stackplot(np.arange(len(table)), table.T, colors=colours)
        axes.set_title(style(recipe).label)
        axes.set_xlabel("turn")
        axes.set_xlim(0, len(table) - 1)
        axes.set_ylim(0, 1)
        axes.grid(visible=False)
    panels[0].set_ylabel("probability")
    names = ["on the path", *(f"{state} beside" for state in range(1, states))]
    legend(figure, [Patch(color=colour, label=name) for colour, name in zip(colours, names, strict=True)], columns=6)
    caption(figure, "Distribution over the states of the cliff walk by turn. Computed, not sampled: no intervals.")
    return figure


@rc_context(RC)
def theory_disagreement(own: Mapping[str, Sequence[float]], teachers: Mapping[str, Sequence[float]]) -> Figure:
    """Exact probability to act differently from the teacher by turn, on the teacher's and on own states.

    Args:
        own, teachers: recipe -> [turns] as `theory.disagreement` gives it.
    """
    figure, panels = canvas(3.9, 2, share_y=True)
    handles = {}
    for axes, title, curves in zip(panels, ("teacher-visited", "student-visited"), (teachers, own), strict=True):
        for recipe in in_order(curves):
            look = style(recipe)
            (handles[recipe],) = axes.plot(
                curves[recipe], color=look.colour, linestyle=look.line, label=look.label, zorder=look.zorder
            )
        axes.set_title(f"{title} states")
        axes.set_xlabel("turn")
    panels[0].set_ylim(bottom=0)
    panels[0].set_ylabel("probability to differ")
    legend(figure, [handles[recipe] for recipe in in_order(handles)])
    caption(
        figure,
        "Disagreement with the teacher on the cliff walk, by turn, on the states that the teacher visits and on those "
        "that the learner itself visits. Computed, not sampled: no intervals.",
    )
    return figure
