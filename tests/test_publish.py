"""Publishing: what is committed is what was found, with its source, and the README says the same numbers."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from dagger_nb import ablations, paths, publish, results
from dagger_nb.errors import ConfigError, DataError
from dagger_nb.store import read_json

LINEAR = {"dagger.schedule": "linear"}
ABLATED = "dagger (dagger.schedule=linear)"


@pytest.fixture
def found(tmp_path, monkeypatch):
    """Results of two seeds of `smoke` in a home of their own, published into a folder of their own."""
    monkeypatch.setenv(paths.HOME_VARIABLE, str(tmp_path))
    monkeypatch.setattr(results, "published", lambda: tmp_path / "published")
    monkeypatch.setattr(ablations, "folder", lambda: tmp_path / "ablations")
    rng = np.random.default_rng(1)
    for seed, overrides in ((0, {}), (1, {}), (0, LINEAR)):
        rows = [
            (recipe, seed, f"t{i:02d}", "test", f"repo{i % 4}", bool(rng.random() < rate), exam)
            for recipe, rate in (("sft", 0.4), ("dagger", 0.7))
            for exam in ("test", "longer")
            for i in range(20)
        ]
        outcomes = pd.DataFrame(rows, columns=["recipe", "seed", "instance_id", "split", "repo", "resolved", "exam"])
        others = {name: pd.DataFrame({"recipe": ["sft"], "seed": [seed]}) for name in results.NAMES}
        results.save(paths.result_folder("smoke", seed, overrides), others | {"outcomes": outcomes})
    return tmp_path


def test_published_tables_hold_every_seed_and_say_where_they_are_from(found):
    folder = publish.publish("smoke", [0, 1])
    tables = results.load(folder)
    assert set(tables) == set(results.NAMES)
    assert sorted(tables["outcomes"].seed.unique()) == [0, 1] and len(tables["outcomes"]) == 160
    source = read_json(folder / "source.json")
    commit = source["provenance"]["git"]
    assert source["profile"] == "smoke"
    assert source["recipes"] == {name: {"seeds": [0, 1], "commit": commit} for name in ("sft", "dagger")}
    assert source["provenance"]["versions"]["torch"]


def test_recipes_that_are_published_later_leave_the_others_as_they_are(found):
    study = results.load(publish.publish("smoke", [0, 1]))["outcomes"]
    again = results.load(publish.publish("smoke", [1], recipes=["dagger"]))["outcomes"]
    assert (
        again[again.recipe == "sft"].reset_index(drop=True).equals(study[study.recipe == "sft"].reset_index(drop=True))
    )
    assert set(again[again.recipe == "dagger"].seed) == {1}
    seeds = {name: entry["seeds"] for name, entry in read_json(results.published() / "source.json")["recipes"].items()}
    assert seeds == {"sft": [0, 1], "dagger": [1]}
    with pytest.raises(DataError, match="of profile smoke or of another base model"):
        results.save(paths.result_folder("tiny", 0), results.load(paths.result_folder("smoke", 0)))
        publish.publish("tiny", [0], recipes=["dagger"])


def test_a_table_that_no_seed_has_is_not_published_and_what_was_published_of_it_goes(found):
    for seed in (0, 1):
        (paths.result_folder("smoke", seed) / "bill.csv").unlink()
    results.published().mkdir()
    (results.published() / "bill.csv").write_text("recipe\nstale\n")
    assert set(results.load(publish.publish("smoke", [0, 1]))) == set(results.NAMES) - {"bill"}


def test_the_readme_says_the_published_numbers(found, tmp_path):
    tables = results.load(publish.publish("smoke", [0, 1]))
    readme = tmp_path / "README.md"
    readme.write_text("before\n<!-- results -->\nstale numbers\n<!-- /results -->\nafter\n")
    publish.fill_readme(readme, publish.readme_block(tables, "smoke"))
    text = readme.read_text()
    solved = tables["outcomes"].query("recipe == 'dagger' and exam == 'test'").resolved.sum()
    assert f"| dagger | {solved}/40 [" in text
    assert "stale" not in text and text.startswith("before\n") and text.endswith("after\n")
    assert "dagger" in text.partition("Paired differences")[2]


def test_a_missing_seed_and_a_readme_without_marks_are_refused(found, tmp_path):
    with pytest.raises(DataError, match="--seed 7"):
        publish.publish("smoke", [0, 7])
    (tmp_path / "README.md").write_text("nothing")
    with pytest.raises(DataError, match="put them back"):
        publish.fill_readme(tmp_path / "README.md", "x")


def test_an_ablation_stands_beside_the_study_with_the_recipes_that_it_changes(found):
    study = results.load(publish.publish("smoke", [0, 1]))
    folder = publish.publish("smoke", [0], LINEAR)
    assert folder.name == "dagger.schedule=linear" and read_json(folder / "source.json")["overrides"] == LINEAR
    assert set(results.load(folder)["outcomes"].recipe) == {"dagger"}
    both = ablations.beside(study["outcomes"], "outcomes")
    assert both.recipe.value_counts().to_dict() == {"sft": 80, "dagger": 80, ABLATED: 40}
    assert results.load(results.published())["outcomes"].equals(study["outcomes"]), "the study is as it was"
    block = publish.readme_block(study, "smoke")
    assert block.index("| sft |") < block.index("| dagger |") < block.index(f"| {ABLATED} |")
    assert f"test: {ABLATED} " in block and "test: dagger " in block


def test_an_ablation_that_changes_no_run_or_was_not_run_is_refused(found):
    with pytest.raises(ConfigError, match=r"evaluation\.slip_rate=0\.5 changes no run"):
        publish.publish("smoke", [0], {"evaluation.slip_rate": 0.5})
    with pytest.raises(ConfigError, match="changes no run of sft in profile smoke"):
        publish.publish("smoke", [0], LINEAR, recipes=["sft"])
    with pytest.raises(DataError, match="--seed 1 -p dagger.schedule=linear"):
        publish.publish("smoke", [0, 1], LINEAR)
    assert not ablations.folder().exists()
