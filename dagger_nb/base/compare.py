"""Is a rebuilt base model the committed one? `python -m dagger_nb.base.compare FOLDER`.

On the same type of processor, with the same number of threads, every file has the SHA-256 that the committed manifest
names. Another processor adds floating-point numbers in another order, and the weights differ from the first step on.
Both models are then examined on the `dev` tasks, alone and greedy, and the rebuilt one's rate has to lie in the 95 %
interval of the committed one's; tokenizer and configuration have to be equal on any machine.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from dagger_nb import config, notebook, paths, results
from dagger_nb.errors import DaggerError, DataError
from dagger_nb.evaluation import tables
from dagger_nb.evaluation.comparison import comparison
from dagger_nb.experiment import Experiment
from dagger_nb.store import changed_files, read_json

WEIGHTS = "model.safetensors"


def on_dev(name: str, folder: Path, profile: str) -> pd.DataFrame:
    """Outcomes of the untrained model in `folder` on the profile's dev tasks, under the recipe name `name`."""
    settings = config.load(profile, {"student.path": str(folder)})
    run = Experiment("base", settings, notebook.fleet(settings))
    return tables.outcomes(name, settings.seed, run.exam_tasks("dev"), run.grade("dev"))


def agree(outcomes: pd.DataFrame) -> bool:
    """Print both rates and their paired difference; whether the rebuilt rate lies in the committed one's interval."""
    rates = tables.rates(outcomes).set_index("recipe")
    for row in rates.itertuples():
        print(f"{row.Index}: {tables.fraction(row)} of the dev tasks")
    (row,) = results.against(comparison(outcomes), "committed").to_dict("records")
    print(results.verdict(row))
    return bool(rates.low["committed"] <= rates.rate["rebuilt"] <= rates.high["committed"])


def compare(folder: Path, committed: Path, profile: str) -> bool:
    """Whether `folder` holds the committed model: the same bytes, or, with other weights, a rate within its interval.

    Raises:
        DataError: `folder` holds no model.
    """
    if not (folder / WEIGHTS).exists():
        raise DataError(f"{folder} holds no {WEIGHTS}; build one: python -m dagger_nb.base.pretrain --out {folder}")
    others = changed_files(folder, read_json(committed / "manifest.json")["files"])
    if not others:
        print(f"every file of {folder} has the committed SHA-256")
        return True
    print(f"other bytes than the committed ones: {', '.join(others)}")
    for name, place in (("committed", committed), ("rebuilt", folder)):
        print(f"{name}: built with torch {_built(place)}")
    if others != [WEIGHTS]:
        return False  # a processor decides no more than the weights
    return agree(pd.concat([on_dev("committed", committed, profile), on_dev("rebuilt", folder, profile)]))


def _built(folder: Path) -> str:
    manifest = read_json(folder / "manifest.json")
    return f"{manifest['torch']} on {manifest['processor']}, {manifest['recipe']['threads']} threads"


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="where the rebuilt model is (--out of dagger_nb.base.pretrain)")
    parser.add_argument("--profile", default="study", help="whose dev tasks are solved")
    options = parser.parse_args(arguments)
    try:
        return 0 if compare(options.folder.resolve(), paths.data() / "base", options.profile) else 1
    except DaggerError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    raise SystemExit(main())
