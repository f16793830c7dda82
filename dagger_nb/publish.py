"""Publish results: copy tables of finished reproductions to data/results, and fill the README's numbers.

    python -m dagger_nb.publish --profile study --seeds 0 1 2 3 4
    python -m dagger_nb.publish --profile study --seeds 0 1 2 --recipes switch
    python -m dagger_nb.publish --profile study --seeds 0 1 2 -p dagger.schedule=linear

The published tables are what notebooks 05 to 07 read where this machine has no results of its own; with settings in the
place of the profile's they are those of an ablation, and stand beside the study's. `source.json` beside them says which
profile, seeds, settings, base model and commit they come from.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from dagger_nb import ablations, config, paths, results
from dagger_nb.errors import DaggerError, DataError
from dagger_nb.evaluation import tables
from dagger_nb.evaluation.comparison import comparison
from dagger_nb.provenance import identity, provenance
from dagger_nb.recipes import RECIPES
from dagger_nb.settings import Settings
from dagger_nb.store import read_json, write_json, write_text

BLOCK = re.compile(r"(<!-- results -->\n).*?(<!-- /results -->)", re.DOTALL)
EXAMS = ("test", "longer", "unseen", "test-slips")


def publish(
    profile: str,
    seeds: Sequence[int],
    overrides: Mapping[str, object] | None = None,
    recipes: Sequence[str] = RECIPES,
) -> Path:
    """Merge the tables of some seeds of a profile into the published folder; returns it.

    With `overrides` the folder is the ablation's, and only recipes that they change are published. What is published of
    the recipes that are left out of `recipes` stays.

    Raises:
        DataError: a seed has no results on this machine, or what stays is of another profile or base model.
        ConfigError: the overrides change no run of the profile.
    """
    folder, settings = results.published(), config.load(profile, overrides)
    if overrides:
        folder = ablations.folder() / ablations.name_of(overrides)
        recipes = ablations.changed(profile, overrides, recipes)
    found = [_found(profile, seed, overrides) for seed in seeds]
    source = _source(folder, settings, found, recipes) | {"overrides": dict(overrides or {})}
    for name in results.NAMES:
        rows = _merged(folder / f"{name}.csv", [tables[name] for tables in found if name in tables], recipes)
        if len(rows):
            write_text(folder / f"{name}.csv", rows.to_csv(index=False, lineterminator="\n"))
        else:  # nobody has it, as labels that are free leave no bill
            (folder / f"{name}.csv").unlink(missing_ok=True)
    write_json(folder / "source.json", source)
    return folder


def _source(
    folder: Path, settings: Settings, found: Sequence[Mapping[str, pd.DataFrame]], recipes: Sequence[str]
) -> dict[str, Any]:
    """What `source.json` will say: for each recipe its seeds and the commit, and whence the newest ones are."""
    path, origin = folder / "source.json", provenance(settings)
    base = identity("base", settings)["base"]
    known = read_json(path) if path.exists() else {"recipes": {}}
    kept = {name: entry for name, entry in known["recipes"].items() if name in _left_out(recipes)}
    if kept and (known["profile"], known["base"]) != (settings.profile, base):
        raise DataError(f"{path} is of profile {known['profile']} or of another base model; publish all recipes again")
    outcomes = pd.concat([tables["outcomes"] for tables in found])
    seeds = outcomes[outcomes.recipe.isin(recipes)].groupby("recipe").seed.unique()
    new = {name: {"seeds": sorted(map(int, those)), "commit": origin["git"]} for name, those in seeds.items()}
    return {"profile": settings.profile, "base": base, "recipes": kept | new, "provenance": origin}


def _left_out(recipes: Sequence[str]) -> set[str]:
    return set(RECIPES) - set(recipes)


def _merged(path: Path, parts: Sequence[pd.DataFrame], recipes: Sequence[str]) -> pd.DataFrame:
    """A published table, in which the rows of `recipes` are those of `parts`."""
    old = pd.read_csv(path) if path.exists() else pd.DataFrame({"recipe": []})
    rows = [old[old.recipe.isin(_left_out(recipes))], *(part[part.recipe.isin(recipes)] for part in parts)]
    filled = [part for part in rows if len(part)]
    return pd.concat(filled) if filled else pd.DataFrame()


def _found(profile: str, seed: int, overrides: Mapping[str, object] | None) -> dict[str, pd.DataFrame]:
    folder = paths.result_folder(profile, seed, overrides)
    if not (folder / "outcomes.csv").exists():
        more = "".join(f" -p {name}={value}" for name, value in (overrides or {}).items())
        command = f"dagger-nb reproduce --profile {profile} --seed {seed}{more}"
        raise DataError(f"{folder} has no results; run `{command}` first")
    return results.load(folder)


def readme_block(found: Mapping[str, pd.DataFrame], profile: str) -> str:
    """The README's results: rates with intervals by recipe and exam, and the paired differences from SFT."""
    outcomes = ablations.beside(found["outcomes"], "outcomes")
    outcomes = outcomes[outcomes.exam.isin(EXAMS)].assign(split=lambda table: table.exam)
    rates = tables.rates(outcomes)
    rows = [
        f"| {name} | " + " | ".join(_cell(rates, name, exam) for exam in EXAMS) + " |"
        for name in sorted(rates.recipe.unique(), key=_place)
    ]
    differences = results.against(comparison(outcomes), "sft")
    sentences = [f"- {results.verdict(row)}" for row in differences.to_dict("records") if row["recipe"] != "base"]
    return "\n".join(
        [
            f"## Results of profile `{profile}`, seeds {', '.join(map(str, sorted(outcomes.seed.unique())))}",
            "",
            "Tasks resolved by the student alone, greedy, with 95 % intervals "
            "(notebook [05](notebooks/05_comparison.ipynb)):",
            "",
            "| recipe | " + " | ".join(EXAMS) + " |",
            "|---|" + "---|" * len(EXAMS),
            *rows,
            "",
            "Paired differences from SFT on the same tasks:",
            "",
            *sentences,
            "",
        ]
    )


def _place(recipe: str) -> tuple[int, str]:
    """The order of recipes in tables: an ablation stands behind all recipes of the study."""
    return (RECIPES.index(recipe) if recipe in RECIPES else len(RECIPES), recipe)


def _cell(rates: pd.DataFrame, recipe: str, exam: str) -> str:
    rows = rates[(rates.recipe == recipe) & (rates.split == exam)]
    return "" if rows.empty else tables.fraction(rows.iloc[0])


def fill_readme(path: Path, block: str) -> None:
    """Put a block between the README's result marks. Raises DataError where there are none."""
    text = path.read_text(encoding="utf-8")
    if not BLOCK.search(text):
        raise DataError(f"{path} lacks the marks <!-- results --> and <!-- /results -->; put them back")
    write_text(path, BLOCK.sub(lambda mark: mark[1] + block + mark[2], text))


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--profile", default="study")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--recipes", nargs="+", default=RECIPES, choices=RECIPES, help="publish these, keep the others")
    parser.add_argument("-p", dest="settings", action="append", default=[], metavar="NAME=VALUE", help="of an ablation")
    options = parser.parse_args(arguments)
    try:
        folder = publish(options.profile, options.seeds, config.pairs(options.settings), options.recipes)
        fill_readme(paths.project() / "README.md", readme_block(results.load(results.published()), options.profile))
    except DaggerError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"published in {folder}; README filled")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
