"""Publish results: copy tables of finished reproductions to data/results/published, and fill the README's numbers.

    python -m dagger_nb.publish --profile study --seeds 0 1 2 3 4

The published tables are what notebooks 05 to 07 read where this machine has no results of its own. `source.json`
beside them says which profile, seeds, settings, base model and commit they come from.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from dagger_nb import config, paths, results
from dagger_nb.errors import DaggerError, DataError
from dagger_nb.evaluation import tables
from dagger_nb.evaluation.comparison import comparison
from dagger_nb.experiment import identity, provenance
from dagger_nb.store import write_json, write_text

BLOCK = re.compile(r"(<!-- results -->\n).*?(<!-- /results -->)", re.DOTALL)
EXAMS = ("test", "longer", "unseen", "test-slips")


def publish(profile: str, seeds: Sequence[int]) -> Path:
    """Merge the tables of some seeds of a profile into the published folder; returns it.

    Raises:
        DataError: a seed has no results on this machine.
    """
    folder, settings = results.published(), config.load(profile)
    source = {"profile": profile, "seeds": list(seeds), "base": identity("base", settings)["base"]}
    source["provenance"] = provenance(settings)  # before the tables themselves make the checkout dirty
    found = [_found(profile, seed) for seed in seeds]
    for name in results.NAMES:
        parts = [tables[name] for tables in found if name in tables]
        if parts:
            write_text(folder / f"{name}.csv", pd.concat(parts).to_csv(index=False, lineterminator="\n"))
        else:  # no seed has it, as labels that are free leave no bill
            (folder / f"{name}.csv").unlink(missing_ok=True)
    write_json(folder / "source.json", source)
    return folder


def _found(profile: str, seed: int) -> dict[str, pd.DataFrame]:
    folder = paths.result_folder(profile, seed)
    if not (folder / "outcomes.csv").exists():
        raise DataError(f"{folder} has no results; run `dagger-nb reproduce --profile {profile} --seed {seed}` first")
    return results.load(folder)


def readme_block(found: dict[str, pd.DataFrame], source: dict) -> str:
    """The README's results: rates with intervals by recipe and exam, and the paired differences from SFT."""
    outcomes = found["outcomes"].assign(split=found["outcomes"].exam)
    outcomes = outcomes[outcomes.exam.isin(EXAMS)]
    rates = tables.rates(outcomes)
    rows = [
        f"| {name} | " + " | ".join(_cell(rates, name, exam) for exam in EXAMS) + " |"
        for name in results.RECIPES
        if (rates.recipe == name).any()
    ]
    differences = results.against(comparison(outcomes, rng=np.random.default_rng(0)), "sft")
    sentences = [f"- {results.verdict(row)}" for row in differences.to_dict("records") if row["recipe"] != "base"]
    return "\n".join(
        [
            f"## Results of profile `{source['profile']}`, seeds {', '.join(map(str, source['seeds']))}",
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
    options = parser.parse_args(arguments)
    try:
        folder = publish(options.profile, options.seeds)
        source = {"profile": options.profile, "seeds": options.seeds}
        fill_readme(paths.project() / "README.md", readme_block(results.load(folder), source))
    except DaggerError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"published in {folder}; README filled")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
