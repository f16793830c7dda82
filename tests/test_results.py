"""The views that notebooks and figures take of result tables."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from dagger_nb import results
from dagger_nb.errors import DataError
from dagger_nb.evaluation.comparison import comparison


def outcomes(solved: dict[str, list[int]], seed: int = 0) -> pd.DataFrame:
    rows = [
        (recipe, seed, f"t{task}", "test", f"r{task}", bool(value))
        for recipe, values in solved.items()
        for task, value in enumerate(values)
    ]
    return pd.DataFrame(rows, columns=["recipe", "seed", "instance_id", "split", "repo", "resolved"])


@pytest.fixture
def differences() -> pd.DataFrame:
    solved = {"base": [0] * 20, "dagger": [1] * 15 + [0] * 5, "sft": [1] * 7 + [0] * 13}
    return comparison(outcomes(solved), samples=500)


def test_against_turns_every_row_to_the_baseline(differences):
    found = results.against(differences, "sft").set_index("recipe")
    assert list(found.index) == ["base", "dagger"] and (found.baseline == "sft").all()
    assert found.difference.to_dict() == pytest.approx({"base": -0.35, "dagger": 0.4})
    assert (found.low <= found.difference).all() and (found.difference <= found.high).all()
    assert found.rate["dagger"] == 0.75 and (found.baseline_rate == 0.35).all()


def test_a_verdict_claims_no_more_than_its_interval(differences):
    rows = {row["recipe"]: row for row in results.against(differences, "sft").to_dict("records")}
    assert "dagger beats sft: +40.0 points" in results.verdict(rows["dagger"])
    assert "base loses to sft" in results.verdict(rows["base"])
    open_ = rows["dagger"] | {"difference": -1e-9, "low": -0.1, "high": 0.1, "detectable": float("nan")}
    assert "is not told apart from sft: +0.0 points" in results.verdict(open_)
    assert "one seed would miss even a one-sided split" in results.verdict(open_)
    assert "no evidence that the recipes are equal" in results.verdict(open_ | {"low": 0.0, "high": 0.0})


def test_one_row_is_primary_and_the_others_are_corrected_for_their_number(differences):
    exams = pd.concat([differences, differences.assign(split="longer")])
    found = results.against(exams, "sft").set_index(["split", "recipe"])
    assert found.index[found.primary].tolist() == [("test", "dagger")]
    assert found.p_adjusted["test", "dagger"] == found.p_pooled["test", "dagger"] == pytest.approx(2 * 0.5**8)
    others = found[~found.primary]
    assert others.p_adjusted.tolist() == pytest.approx([2 * 2 * 0.5**7, 3 * 2 * 0.5**8, 2 * 2 * 0.5**7])
    weak = found.loc["longer", "dagger"].to_dict() | {"split": "longer", "recipe": "dagger", "p_adjusted": 0.06}
    assert weak["low"] > 0 and "is not told apart from sft" in results.verdict(weak)
    assert "(adjusted 0.06; 20 tasks, 1 seed; " in results.verdict(weak)


def test_what_cannot_be_detected_can_be_written_as_json():
    few = comparison(outcomes({"dagger": [1, 0], "sft": [0, 0]}), samples=50)
    assert np.isinf(few.detectable).all() and results.against(few, "sft").detectable.isna().all()


def shares(seeds: int) -> pd.DataFrame:
    rows = [(s, "sft", first, 10, 40, hits, 0.1, 0.2) for s in range(seeds) for first, hits in ((0, 4), (3, 8 + s))]
    return pd.DataFrame(rows, columns=["seed", "recipe", "first_turn", "tasks", "turns", "differing", "low", "high"])


def test_over_seeds_adds_counts_and_takes_the_units_of_one_seed():
    by = ["recipe", "first_turn"]
    pooled = results.over_seeds(shares(2), by, hits="differing", count="turns", units="tasks").set_index("first_turn")
    assert (pooled.effective_n == 10).all()
    assert pooled.differing.to_dict() == {0: 8, 3: 17} and (pooled.turns == 80).all() and (pooled.tasks == 10).all()
    assert pooled.share[0] == 0.1
    low, high = results.wilson(0.1 * 10, 10)
    assert (pooled.low[0], pooled.high[0]) == (low, high)


def test_over_seeds_keeps_the_total_where_what_is_counted_is_the_unit():
    pooled = results.over_seeds(shares(2), ["recipe"], hits="differing", count="turns", units="turns")
    assert (pooled.turns[0], pooled.effective_n[0], pooled.share[0]) == (160, 40, 25 / 160)


def test_the_last_common_bin_is_reached_by_enough_tasks_of_every_curve():
    rows = [("sft", 0, 60), ("sft", 3, 30), ("sft", 6, 25), ("dagger", 0, 60), ("dagger", 3, 20), ("dagger", 6, 19)]
    curves = pd.DataFrame(rows, columns=["recipe", "first_turn", "tasks"]).assign(states="student-visited")
    assert results.last_common_bin(curves) == 3
    assert results.last_common_bin(curves, tasks=10) == 6
    assert results.last_common_bin(curves[curves.index != 5], tasks=10) == 3  # one curve ends earlier
    assert results.last_common_bin(curves.assign(tasks=[6, 4, 3, 6, 3, 2])) == 3  # few tasks: half of the first bin's


def test_over_seeds_leaves_one_seed_as_it_is_and_an_empty_group_without_a_share():
    one = shares(1)
    arguments = {"hits": "differing", "count": "turns", "units": "tasks"}
    pd.testing.assert_frame_equal(results.over_seeds(one, ["recipe"], **arguments), one)
    nothing = shares(2).assign(turns=0, differing=0, tasks=0)
    assert results.over_seeds(nothing, ["recipe", "first_turn"], **arguments).share.isna().all()


def test_the_bins_of_turns_hold_every_turn_and_those_of_short_episodes_never_change():
    short = (0, 3, 6, 9, 12, 16, 20, 25, 30, 40)  # what the published tables were made with
    for turns in (1, 4, 30, 40):
        assert results.turn_edges(turns) == short
    assert results.turn_edges(41) == (*short, 60)
    for turns in (41, 60, 61, 99, 100, 500):
        edges = results.turn_edges(turns)
        assert edges[: len(short)] == short and edges[-2] < turns <= edges[-1]


def test_a_folder_that_lacks_a_recipe_says_what_to_run(tmp_path):
    results.save(tmp_path, {"outcomes": pd.DataFrame({"recipe": ["sft"], "seed": [0], "exam": ["test"]})})
    assert set(results.load(tmp_path, recipes=("sft",))) == {"outcomes"}
    with pytest.raises(DataError, match="no results of dagger.*notebooks 03 and 04"):
        results.load(tmp_path, recipes=("sft", "dagger"))


def test_a_folder_without_results_says_what_to_run(tmp_path):
    with pytest.raises(DataError, match="run notebooks 03 and 04"):
        results.load(tmp_path)
