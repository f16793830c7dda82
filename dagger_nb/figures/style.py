"""How every picture looks: one recipe, one colour, marker and line, everywhere.

Colours are those of Okabe and Ito (2008), which people with any common colour blindness can tell apart; markers
and lines differ too, so a grey print still reads.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import ArrayLike

from dagger_nb.errors import ConfigError, DataError

BLACK, ORANGE, SKY, GREEN = "#000000", "#E69F00", "#56B4E9", "#009E73"
YELLOW, BLUE, VERMILION, PURPLE = "#F0E442", "#0072B2", "#D55E00", "#CC79A7"
GREY = "#808080"  # grids, reference lines and what is not known

RC = {
    "font.family": "DejaVu Sans",  # shipped with matplotlib, so a figure has the same bytes on every machine
    "font.size": 10.0,
    "axes.titlesize": 10.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#E0E0E0",
    "grid.linewidth": 0.6,
    "legend.frameon": False,
    "lines.linewidth": 1.6,
    "lines.markersize": 6.0,
    "pdf.fonttype": 42,  # text stays text
}
WIDTH = 7.6  # inches: the text column of a notebook
_CAPTION = 8.5  # points
_CAPTION_LETTERS = 112  # that fit a line of the caption


@dataclass(frozen=True, slots=True)
class Style:
    """Name in legends, colour, marker and line (a name, or an offset with lengths on and off) of a recipe."""

    label: str
    colour: str
    marker: str
    line: str | tuple[int, tuple[int, ...]]

    @property
    def zorder(self) -> float:
        """Broken lines lie above the unbroken one, so that curves which coincide are all seen."""
        return 2.0 if self.line == "-" else 2.1


STYLES = {
    "base": Style("base", SKY, "s", ":"),
    "sft": Style("SFT", ORANGE, "o", "--"),
    "dagger": Style("DAgger", BLUE, "D", "-"),
    "switch": Style("single switch", GREEN, "^", "-."),
    "opd": Style("OPD", VERMILION, "v", (0, (5, 1, 1, 1, 1, 1))),
    "grpo": Style("GRPO", PURPLE, "P", (0, (3, 3))),
    "teacher": Style("teacher", BLACK, "*", (0, (1, 1))),
}


def style(recipe: str) -> Style:
    """The look of a recipe. Raises ConfigError for one that has none."""
    if recipe not in STYLES:
        raise ConfigError(f"recipe {recipe!r} has no style; add a line to STYLES in dagger_nb/figures/style.py")
    return STYLES[recipe]


def in_order(recipes: Iterable[str]) -> list[str]:
    """Distinct recipes in the order of STYLES, whatever the order of the rows."""
    found = set(recipes)
    for recipe in sorted(found):
        style(recipe)
    return [recipe for recipe in STYLES if recipe in found]


def need(table: pd.DataFrame, columns: Sequence[str], what: str) -> pd.DataFrame:
    """The table, proven to have rows and columns.

    Raises:
        DataError: a column is missing (it is named), or there is no row.
    """
    if missing := [name for name in columns if name not in table.columns]:
        raise DataError(f"the table of {what} lacks the column {', '.join(missing)}; it has {list(table.columns)}")
    if table.empty:
        raise DataError(f"the table of {what} has no rows; there is nothing to plot")
    return table


def canvas(height: float, panels: int = 1, *, share_y: bool = False) -> tuple[Figure, list[Axes]]:
    """A figure as wide as a notebook's column, with panels side by side."""
    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    axes = figure.subplots(1, panels, sharey=share_y, squeeze=False)
    return figure, list(axes[0])


def caption(figure: Figure, text: str) -> None:
    """Text below the axes, wrapped to the figure's width."""
    lines = textwrap.fill(" ".join(text.split()), _CAPTION_LETTERS)
    figure.supxlabel(lines, x=0.01, ha="left", fontsize=_CAPTION, color="#404040")


def caption_of(figure: Figure) -> str:
    """The caption in one line, as an alternative text for example."""
    return " ".join(figure.get_supxlabel().split())


def legend(figure: Figure, handles: Sequence[Artist], columns: int = 4) -> None:
    """One legend above all panels."""
    figure.legend(handles=handles, loc="outside upper center", ncols=min(columns, len(handles)))


def points(axes: Axes, x: ArrayLike, value: ArrayLike, low: ArrayLike, high: ArrayLike, recipe: str) -> Artist:
    """Markers with vertical intervals; a missing value stays away, a missing interval leaves the marker bare."""
    look, middle = style(recipe), np.asarray(value, float)
    reach = np.nan_to_num(np.abs(np.array([middle - np.asarray(low, float), np.asarray(high, float) - middle])))
    return axes.errorbar(
        x, middle, yerr=reach, fmt=look.marker, color=look.colour, label=look.label, capsize=3, linestyle="none"
    )  # fmt: skip


def band(axes: Axes, x: ArrayLike, value: ArrayLike, low: ArrayLike, high: ArrayLike, recipe: str) -> Artist:
    """A line with markers and its interval as a band."""
    look = style(recipe)
    axes.fill_between(x, np.asarray(low, float), np.asarray(high, float), color=look.colour, alpha=0.18, linewidth=0)
    (line,) = axes.plot(
        x, value, color=look.colour, marker=look.marker, linestyle=look.line, label=look.label, zorder=look.zorder
    )
    return line


def counts(values: Iterable[float]) -> str:
    """How many, over several groups: '300', or '120 to 300'.

    >>> counts([300, 300]), counts([300, 120])
    ('300', '120 to 300')
    """
    found = sorted(int(value) for value in values)
    return str(found[0]) if found[0] == found[-1] else f"{found[0]} to {found[-1]}"
