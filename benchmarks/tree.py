"""What a labelled trajectory costs as a tree, beside the plain trajectory and one sequence a label.

    python benchmarks/tree.py [--lengths 1000 2000 4000] [--turns 25 32 40] [--lessons 0.3] [--repeats 5]
                              [--threads 1] [--json PATH]

One forward and backward pass of the tiny student's shape (random weights, LoRA) over a random trajectory of about
the given length and number of turns: actions of 15 tokens on average, observations fill the rest, and a fraction of
the labels are lessons. The forms take turns, so that other work on the machine hits them alike; ratios are medians
over the turns. Times are CPU seconds, which at one thread are what the clock would show on an idle core.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from meter import save
from peft import PeftModel
from transformers import Qwen3Config, Qwen3ForCausalLM

from dagger_nb.settings import LoraSettings
from dagger_nb.training.batches import fill
from dagger_nb.training.loss import summed_loss
from dagger_nb.training.mask import TREE, Row, pack
from dagger_nb.training.model import add_adapter, load_student
from dagger_nb.training.tree import Example, Segments, Target, as_executed, build_tree, one_by_one

PROMPT, ACTION, VOCABULARY, ROW_TOKENS = 200, 15, 1536, 8192
BASELINE = "plain trajectory"


def trajectory(length: int, turns: int, lessons: float, rng: np.random.Generator) -> Example:
    """A random labelled trajectory; a lesson shares its first four tokens with the executed action."""

    def ids(count: int) -> tuple[int, ...]:
        return tuple(rng.integers(0, VOCABULARY, count).tolist())

    seen = (length - PROMPT) // turns - ACTION
    pairs = tuple((ids(ACTION + rng.integers(-4, 5)), ids(seen)) for _ in range(turns))
    differs = (rng.permutation(turns) < round(lessons * turns)).tolist()
    targets = (
        Target(turn, action[:4] + ids(ACTION - 4) if differs[turn] else action, lesson=differs[turn])
        for turn, (action, _) in enumerate(pairs)
    )
    return Example(Segments(ids(PROMPT), pairs), tuple(targets))


def rows(examples: Sequence[Example]) -> list[Row]:
    trees = [build_tree(example) for example in examples]
    groups = fill(range(len(trees)), [tree.tokens for tree in trees], ROW_TOKENS)
    return [pack([trees[index] for index in group]) for group in groups]


def student(folder: str, quantise: bool) -> PeftModel:
    """The tiny student's shape, about 1.9M parameters."""
    return add_adapter(load_student(folder, quantise=quantise), LoraSettings(), seed=0).train()


def save_base(folder: str) -> None:
    config = Qwen3Config(
        vocab_size=VOCABULARY,
        hidden_size=192,
        num_hidden_layers=5,
        num_attention_heads=6,
        num_key_value_heads=2,
        head_dim=32,
        intermediate_size=512,
        max_position_embeddings=8192,
        tie_word_embeddings=True,
    )
    Qwen3ForCausalLM(config).save_pretrained(folder)


def train(model: PeftModel, batch: Sequence[Row], attention: str) -> float:
    """CPU seconds of one forward and backward pass over all rows."""
    base = model.get_base_model()
    base.set_attn_implementation(attention)
    model.zero_grad()
    start = time.process_time()
    for row in batch:
        summed_loss(base, row, head_rows=4096).backward()
    return time.process_time() - start


def measure(forms: dict[str, Callable[[], float]], repeats: int, once: str) -> dict[str, dict[str, float]]:
    """Seconds of each form and its ratio to the baseline of the same turn; the form `once` runs one time."""
    times: dict[str, list[float]] = {name: [] for name in forms}
    forms[BASELINE]()  # the first pass pays for warming up
    for repeat in range(repeats):
        for name, form in forms.items():
            if name != once or repeat == 0:
                times[name].append(form())
    base = times[BASELINE]
    return {
        name: {
            "seconds": statistics.median(seen),
            "ratio": statistics.median(a / b for a, b in zip(seen, base[: len(seen)], strict=True)),
        }
        for name, seen in times.items()
    }


def compare(example: Example, models: dict[str, PeftModel], repeats: int) -> list[dict[str, Any]]:
    """One table row for each form of one trajectory; all are measured in the same turns."""
    plain, tree, single = rows([as_executed(example)]), rows([example]), rows(list(one_by_one(example)))
    nf4 = models["nf4"]
    forms = {
        BASELINE: (plain, lambda: train(nf4, plain, TREE)),
        "tree": (tree, lambda: train(nf4, tree, TREE)),
        "tree, dense mask": (tree, lambda: train(nf4, tree, "sdpa")),
        "tree, plain base": (tree, lambda: train(models["plain"], tree, TREE)),
        "one sequence a label": (single, lambda: train(nf4, single, TREE)),
    }
    found = measure({name: run for name, (_, run) in forms.items()}, repeats, once="one sequence a label")
    return [
        {
            "form": name,
            "tokens": sum(row.tokens for row in batch),
            "predictions": sum(len(row.target_P) for row in batch),
            "turns": len(example.segments.turns),
            "lessons": example.lessons,
            **found[name],
        }
        for name, (batch, _) in forms.items()
    ]


def show(table: Sequence[dict[str, Any]]) -> None:
    first, tree, *_, single = table
    print(f"\n{first['turns']} turns, {tree['lessons']} lessons, NF4 base unless it says plain")
    for row in table:
        ratio = row["tokens"] / first["tokens"]
        print(
            f"  {row['form']:<22}{row['tokens']:>8} tokens ({ratio:5.2f} x)"
            f"{row['seconds']:>9.3f} s ({row['ratio']:5.2f} x)"
        )
    print(f"  the tree takes {single['tokens'] / tree['tokens']:.1f} x fewer tokens than one sequence a label")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--lengths", type=int, nargs="+", default=[1000, 2000, 4000])
    parser.add_argument("--turns", type=int, nargs="+", default=[25, 32, 40], help="one for each length")
    parser.add_argument("--lessons", type=float, default=0.3, help="fraction of the labels")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        save_base(folder)
        models = {"nf4": student(folder, True), "plain": student(folder, False)}
        tables = {}
        for length, turns in zip(options.lengths, options.turns, strict=True):
            example = trajectory(length, turns, options.lessons, np.random.default_rng(length))
            tables[length] = compare(example, models, options.repeats)
            show(tables[length])
    save(options, tables=tables)


if __name__ == "__main__":
    main()
