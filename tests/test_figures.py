"""Every picture from small data: what is drawn is what was given, blanks stay blank, and bytes do not change."""

from __future__ import annotations

import doctest
import inspect
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import matplotlib
import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure

from dagger_nb import figures, paths, theory
from dagger_nb.errors import ConfigError, DataError, EnvironmentProblem
from dagger_nb.figures import STYLES, caption_of, save, saving, style
from dagger_nb.recipes import RECIPES
from dagger_nb.records import StopReason
from dagger_nb.statistics import wilson

PAPER = paths.data() / "paper"
RATE = {"share": 0.5, "low": 0.4, "high": 0.6}


def _rates() -> pd.DataFrame:
    known = {"base": 0.2, "sft": 0.5, "dagger": 0.6, "teacher": 1.0}
    rows = [
        (split, recipe, rate, *wilson(rate * 50, 50), 50, 3)
        for split in ("test", "longer")
        for recipe, rate in known.items()
    ]
    return pd.DataFrame(rows, columns=["split", "recipe", "rate", "low", "high", "tasks", "seeds"])


def _differences() -> pd.DataFrame:
    row = {"split": "test", "recipe": "dagger", "baseline": "sft", "difference": 0.04, "low": -0.02, "high": 0.1}
    counts = {"tasks": 300, "seeds": 5, "p_pooled": 0.21}
    return pd.DataFrame([row | counts, row | counts | {"split": "longer", "low": np.nan, "high": np.nan}])


def _disagreement() -> pd.DataFrame:
    turns = [{"first_turn": 4 * i, "last_turn": 4 * i + 3, "tasks": 9, "turns": 90 - i} for i in range(3)]
    names = [(recipe, states) for recipe in ("sft", "dagger") for states in ("teacher-visited", "student-visited")]
    return pd.DataFrame([{"recipe": r, "states": s} | t | RATE for r, s in names for t in turns])


def _dose() -> pd.DataFrame:
    rows = [("dagger", i, beta, beta - 0.1, beta - 0.2, 64) for i, beta in enumerate((1.0, 0.8, 0.6), 1)]
    return pd.DataFrame(rows, columns=["recipe", "round", "nominal_beta", "turn_share", "token_share", "episodes"])


def _stops() -> pd.DataFrame:
    counts = {f"stop_{reason.value}": 2 for reason in StopReason} | {"stop_finish": 10}
    return pd.DataFrame([{"recipe": recipe, "round": 1, "episodes": 20} | counts for recipe in ("sft", "dagger")])


def _history() -> pd.DataFrame:
    rows = [("sft", seed, step, 2 - 0.1 * step + seed) for seed in (0, 1) for step in range(5)]
    return pd.DataFrame(rows, columns=["recipe", "seed", "step", "loss"])


def _recovery() -> pd.DataFrame:
    kinds = ("none", "edit", "failed_call")
    return pd.DataFrame([{"recipe": r, "kind": k, "episodes": 30} | RATE for r in ("sft", "dagger") for k in kinds])


def _slips() -> pd.DataFrame:
    groups = ("hit", "not hit")
    return pd.DataFrame(
        [{"recipe": r, "group": g, "clean_resolved": 40} | RATE for r in ("sft", "dagger") for g in groups]
    )


TABLES: dict[str, tuple[Callable[[pd.DataFrame], Figure], Callable[[], pd.DataFrame]]] = {
    "resolve_rates": (figures.resolve_rates, _rates),
    "paired_differences": (figures.paired_differences, _differences),
    "disagreement_by_turn": (figures.disagreement_by_turn, _disagreement),
    "dose": (figures.dose, _dose),
    "stop_reasons": (figures.stop_reasons, _stops),
    "learning_curve": (figures.learning_curve, _history),
    "recovery": (figures.recovery, _recovery),
    "slip": (figures.slip, _slips),
    "paper_results": (figures.paper_results, lambda: pd.read_csv(PAPER / "results.csv")),
    "paper_scaling": (figures.paper_scaling, lambda: pd.read_csv(PAPER / "scaling.csv")),
}


def drawn_points(figure: Figure) -> np.ndarray:
    """All finite points of all lines of all panels, [points, 2]."""
    lines = [np.column_stack(line.get_data()) for axes in figure.axes for line in axes.get_lines()]
    together = np.concatenate([np.asarray(line, float) for line in lines])
    return together[np.isfinite(together).all(axis=1)]


def legend_labels(figure: Figure) -> list[str]:
    return [text.get_text() for legend in figure.legends for text in legend.get_texts()]


# --- every figure -------------------------------------------------------------------------------------------------


def test_every_public_figure_is_tested_here() -> None:
    exact = {"theory_costs", "theory_disagreement", "occupancy", "schedules"}
    functions = {name for name in figures.__all__ if inspect.isfunction(getattr(figures, name))}
    assert functions == set(TABLES) | exact | {"save", "caption_of"}


@pytest.mark.parametrize("name", TABLES)
def test_a_figure_says_n_and_method_below_its_axes(name: str) -> None:
    draw, table = TABLES[name]
    figure = draw(table())
    text = caption_of(figure)
    assert "n = " in text
    assert any(word in text for word in ("Wilson", "bootstrap", "without intervals", "no interval"))


@pytest.mark.parametrize("name", TABLES)
def test_a_missing_column_is_named(name: str) -> None:
    draw, table = TABLES[name]
    whole = table()
    needed = set(whole.columns) - {"round"} if name == "stop_reasons" else set(whole.columns)
    for column in sorted(needed):
        with pytest.raises(DataError, match=rf"lacks the column {column}\b"):
            draw(whole.drop(columns=column))


@pytest.mark.parametrize("name", TABLES)
def test_an_empty_table_is_refused_and_the_table_is_left_as_it_was(name: str) -> None:
    draw, table = TABLES[name]
    given = table()
    draw(given)
    pd.testing.assert_frame_equal(given, table())
    with pytest.raises(DataError, match="no rows"):
        draw(given.iloc[:0])


@pytest.mark.parametrize("name", sorted(set(TABLES) - {"paper_results", "paper_scaling"}))
def test_an_unknown_recipe_is_refused(name: str) -> None:
    draw, table = TABLES[name]
    with pytest.raises(ConfigError, match="'mystery' has no style"):
        draw(table().assign(recipe="mystery"))


def test_no_setting_of_matplotlib_is_touched() -> None:
    before = dict(matplotlib.rcParams)
    figures.resolve_rates(_rates())
    assert dict(matplotlib.rcParams) == before


# --- one look a recipe ----------------------------------------------------------------------------------------------


def test_every_recipe_has_a_look_of_its_own() -> None:
    assert set(RECIPES) <= set(STYLES)
    for part in ("label", "colour", "marker", "line"):
        assert len({getattr(look, part) for look in STYLES.values()}) == len(STYLES), part


def test_colours_markers_and_order_do_not_depend_on_the_rows() -> None:
    one, other = figures.resolve_rates(_rates()), figures.resolve_rates(_rates().iloc[::-1])
    assert legend_labels(one) == legend_labels(other) == ["SFT", "DAgger", "base", "teacher"]
    (line,) = figures.learning_curve(_history()).axes[0].get_lines()
    assert line.get_color() == STYLES["sft"].colour


# --- what is drawn --------------------------------------------------------------------------------------------------


def test_points_lie_where_the_table_says() -> None:
    axes = figures.resolve_rates(_rates()).axes[0]
    heights = {round(float(y), 6) for line in axes.get_lines() for y in line.get_ydata()}
    assert {0.2, 0.5, 0.6, 1.0} <= heights


def test_a_missing_rate_does_not_become_zero() -> None:
    table = _rates()
    table.loc[table.recipe == "sft", ["rate", "low", "high"]] = np.nan
    assert not (drawn_points(figures.resolve_rates(table))[:, 1] == 0).any()


def test_a_difference_without_an_interval_keeps_its_point() -> None:
    axes = figures.paired_differences(_differences()).axes[0]
    marked = [line.get_xdata()[0] for line in axes.get_lines() if line.get_marker() == STYLES["dagger"].marker]
    assert marked == pytest.approx([4.0, 4.0])


def test_the_papers_blanks_stay_blank_and_are_said() -> None:
    figure = figures.paper_results(pd.read_csv(PAPER / "results.csv"))
    assert "left blank: Qwen3-4B GRPO, Qwen3-8B GRPO" in caption_of(figure)
    assert [text.get_text() for axes in figure.axes for text in axes.texts].count("not known") == 4
    purple = [line for axes in figure.axes for line in axes.get_lines() if line.get_color() == STYLES["grpo"].colour]
    assert not purple


def test_a_blank_in_the_scaling_is_left_out_and_counted() -> None:
    table = pd.read_csv(PAPER / "scaling.csv")
    table.loc[3, "y"] = np.nan
    figure = figures.paper_scaling(table)
    assert "not known, left blank: 1." in caption_of(figure) and "+-5" in caption_of(figure)
    (line,) = [line for line in figure.axes[0].get_lines() if line.get_label() == "SFT"]
    assert list(line.get_ydata()) == [5, 10, 12, 15]


def test_the_limits_of_shared_axes_hold_all_panels() -> None:
    table = _disagreement()
    own = table.states == "student-visited"
    table.loc[own, ["share", "low", "high"]] = [0.8, 0.7, 0.9]
    assert figures.disagreement_by_turn(table).axes[0].get_ylim()[1] > 0.9


def test_states_of_another_name_are_refused() -> None:
    with pytest.raises(DataError, match="unknown states 'own'"):
        figures.disagreement_by_turn(_disagreement().assign(states="own"))


def test_stop_reasons_fill_the_bar_and_add_up_rounds() -> None:
    two = pd.concat([_stops(), _stops().assign(round=2)])
    bars = figures.stop_reasons(two).axes[0].patches
    assert sum(bar.get_width() for bar in bars) == pytest.approx(2.0)  # two recipes, each 1
    assert "n = 40 episodes" in caption_of(figures.stop_reasons(two))


def test_schedules_start_at_round_one() -> None:
    figure = figures.schedules({"paper": [1.0, 0.8, 0.6], "linear": [1.0, 0.5, 0.0]})
    assert list(figure.axes[0].get_lines()[0].get_xdata()) == [1, 2, 3]
    for wrong in ({}, {str(i): [1.0] for i in range(7)}):
        with pytest.raises(DataError, match="schedules"):
            figures.schedules(wrong)


def test_the_theory_draws_its_slopes_and_states() -> None:
    walk = theory.cliff_walk(2)
    curves = theory.cost_curves(walk, [5, 10, 20, 40], betas=(1.0, 0.5), eps=1e-3)
    labels = legend_labels(figures.theory_costs(curves))
    assert labels[0].startswith("SFT: grows as $T^{1.9") and labels[1].startswith("DAgger: grows as $T^{1.0")
    visits = {"teacher": theory.occupancy(walk, theory.teacher_policy(walk), 9), "sft": np.full((9, 3), 1 / 3)}
    assert [axes.get_title() for axes in figures.occupancy(visits).axes] == ["SFT", "teacher"]
    with pytest.raises(DataError, match="one number of states"):
        figures.occupancy({"sft": np.ones((9, 2)), "dagger": np.ones((9, 3))})
    shown = figures.theory_disagreement({"sft": [0.01, 0.4]}, {"sft": [0.01, 0.01]})
    assert shown.axes[0].get_ylim()[1] > 0.4


# --- saving ---------------------------------------------------------------------------------------------------------

SAVE = """
import sys
from pathlib import Path
import dagger_nb
assert "matplotlib" not in sys.modules
from dagger_nb import figures
import pandas as pd
table = pd.read_csv(sys.argv[1])
figures.save(figures.paper_scaling(table), "one", table, Path(sys.argv[2]))
assert "matplotlib.pyplot" not in sys.modules
"""


def test_two_processes_write_the_same_bytes_without_pyplot(tmp_path: Path) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    command = [sys.executable, "-c", SAVE, str(PAPER / "scaling.csv"), str(there)]
    later = {"PYTHONHASHSEED": "7", "SOURCE_DATE_EPOCH": "1234567890"}
    subprocess.run(command, check=True, env=dict(os.environ) | later, cwd=paths.project())
    table = pd.read_csv(PAPER / "scaling.csv")
    ours = save(figures.paper_scaling(table), "one", table, here)
    assert [path.name for path in ours] == ["one.pdf", "one.png", "one.json"]
    for path in ours:
        assert path.read_bytes() == (there / path.name).read_bytes(), path.name


def test_the_json_holds_what_is_plotted_and_null_for_a_blank(tmp_path: Path) -> None:
    table = pd.read_csv(PAPER / "results.csv")
    figure = figures.paper_results(table)
    pdf, png, numbers = save(figure, "paper", table, tmp_path / "new")
    assert pdf.read_bytes().startswith(b"%PDF") and png.read_bytes().startswith(b"\x89PNG")
    assert b"CreationDate" not in pdf.read_bytes() and b"Software" not in png.read_bytes()
    stored = json.loads(numbers.read_text())
    assert stored["caption"] == caption_of(figure) and len(stored["data"]) == len(table)
    assert {row["resolve_rate"] for row in stored["data"] if row["method"] == "grpo"} == {None}
    before = png.read_bytes()
    save(figure, "paper", table, tmp_path / "new")  # again, over the old files
    assert png.read_bytes() == before


def test_data_becomes_plain() -> None:
    curves = theory.cost_curves(theory.cliff_walk(), [2, 4], betas=(1.0,), eps=0.1)
    assert saving.plain(curves)["horizons"] == [2, 4]
    assert saving.plain([np.float32(0.5), pd.NA, (True, None)]) == [0.5, None, [True, None]]
    for wrong in (float("inf"), object()):
        with pytest.raises(DataError, match="cannot write"):
            saving.plain({"x": wrong})


def test_a_folder_that_cannot_be_is_one_clear_message(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(EnvironmentProblem, match="cannot write to"):
        save(figures.dose(_dose()), "x", [], tmp_path / "file")


def test_the_examples_in_the_docstrings() -> None:
    for module in (saving, style):
        failed, tried = doctest.testmod(module)
        assert not failed and tried


# --- the paper's numbers --------------------------------------------------------------------------------------------


def test_a_question_mark_is_an_empty_cell_and_nothing_else_is() -> None:
    for name, column in (("results", "resolve_rate"), ("scaling", "y"), ("setup", "value")):
        table = pd.read_csv(PAPER / f"{name}.csv")
        assert set(table.mark) <= {"K", "R", "I", "?"}
        assert (table[column].isna() == (table.mark == "?")).all(), name


def test_the_papers_tables_have_their_rows() -> None:
    results = pd.read_csv(PAPER / "results.csv")
    assert len(results) == 2 * 2 * 6 and not results.duplicated(["model", "method", "set"]).any()
    key = results.set_index(["model", "method", "set"]).resolve_rate
    assert (
        key["Qwen3-4B", "dagger", "SWE-bench Verified"] == 27.3 and key["Qwen3-8B", "dagger", "SWE-Gym holdout"] == 19
    )
    scaling = pd.read_csv(PAPER / "scaling.csv")
    assert scaling.groupby(["set", "method"]).size().to_dict() == {
        (name, method): 5 if method == "sft" else 4
        for name in ("SWE-Gym holdout", "Verified-100")
        for method in ("sft", "opd", "switch", "dagger")
    }
    assert set(results.method) | set(scaling.method) <= set(STYLES)
