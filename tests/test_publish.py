"""Publishing: what is committed is what was found, with its source, and the README says the same numbers."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from dagger_nb import paths, publish, results
from dagger_nb.errors import DataError
from dagger_nb.store import read_json


@pytest.fixture
def found(tmp_path, monkeypatch):
    """Results of two seeds of `smoke` in a home of their own, published into a folder of their own."""
    monkeypatch.setenv(paths.HOME_VARIABLE, str(tmp_path))
    monkeypatch.setattr(results, "published", lambda: tmp_path / "published")
    rng = np.random.default_rng(1)
    for seed in (0, 1):
        rows = [
            (recipe, seed, f"t{i:02d}", "test", f"repo{i % 4}", bool(rng.random() < rate), exam)
            for recipe, rate in (("sft", 0.4), ("dagger", 0.7))
            for exam in ("test", "longer")
            for i in range(20)
        ]
        outcomes = pd.DataFrame(rows, columns=["recipe", "seed", "instance_id", "split", "repo", "resolved", "exam"])
        others = {name: pd.DataFrame({"recipe": ["sft"], "seed": [seed]}) for name in results.NAMES}
        results.save(paths.result_folder("smoke", seed), others | {"outcomes": outcomes})
    return tmp_path


def test_published_tables_hold_every_seed_and_say_where_they_are_from(found):
    folder = publish.publish("smoke", [0, 1])
    tables = results.load(folder)
    assert set(tables) == set(results.NAMES)
    assert sorted(tables["outcomes"].seed.unique()) == [0, 1] and len(tables["outcomes"]) == 160
    source = read_json(folder / "source.json")
    assert (source["profile"], source["seeds"]) == ("smoke", [0, 1])
    assert source["provenance"]["versions"]["torch"]


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
    publish.fill_readme(readme, publish.readme_block(tables, {"profile": "smoke", "seeds": [0, 1]}))
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
