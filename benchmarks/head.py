"""What saves memory in training, and what it costs, on a CPU: the head in pieces, checkpointing, tree attention.

    python benchmarks/head.py [--json data/benchmarks/head.json]  # a few minutes of an idle core

Whole forward and backward passes over one random labelled trajectory through a small random Qwen3 with LoRA, once
each way; the ways take turns in one process, so that other work on the machine hits them alike, and ratios are
medians over the turns. Seconds are CPU seconds, memory is the rise of the process's resident set (Linux only). glibc's
malloc keeps blocks below 32 MiB, as small pieces have, for later use; with MALLOC_MMAP_THRESHOLD_=65536 in the
environment it gives them back, and what is told are the tensors.

1. The head, with the vocabulary of Qwen3 (151,936): all logits at once, and in pieces of so many predictions.
2. Checkpointing of every layer, of eight.
3. `tree` attention and the dense mask, at growing lengths.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from meter import CPU, Meter, save
from peft import PeftModel
from synthetic import TINY, TREE, build, rows_of, trajectory

from dagger_nb.sizing.shapes import Shape
from dagger_nb.training.attention import ATTENTIONS
from dagger_nb.training.loss import summed_loss
from dagger_nb.training.mask import Row

WIDE = replace(TINY, hidden=128, layers=1, heads=4, intermediate=256, vocabulary=151_936)
DEEP = replace(TINY, hidden=256, layers=8, heads=8, intermediate=768)


def example_row(shape: Shape, length: int) -> Row:
    """A trajectory of turns of 160 tokens, of which a quarter are predicted."""
    return rows_of(TREE, trajectory(length, 160, 0.3, shape.vocabulary, seed=length), singles=0)[0][0]


def model_of(shape: Shape, length: int, *, checkpointing: bool = False) -> PeftModel:
    model = build(shape, packed=False, device=CPU, rank=16, longest=length)
    if not checkpointing:
        model.get_base_model().gradient_checkpointing_disable()
    return model


def run(model: PeftModel, row: Row, head_rows: int, attention: str = "tree") -> None:
    base = model.get_base_model()
    base.set_attn_implementation(ATTENTIONS[attention])
    summed_loss(base, row, head_rows=head_rows).backward()
    model.zero_grad(set_to_none=True)


def compare(ways: dict[str, Callable[[], None]], repeats: int, **about: Any) -> Iterator[dict[str, Any]]:
    """One row a way: seconds, rise of memory (MiB), and their ratios to the first way of the same turn."""
    meter = Meter(CPU)
    next(iter(ways.values()))()  # the first pass pays for warming up
    turns = [{name: _once(meter, way) for name, way in ways.items()} for _ in range(repeats)]
    first = next(iter(ways))
    for name in ways:
        ratio = [statistics.median(turn[name][i] / turn[first][i] for turn in turns) for i in (0, 1)]
        seconds, mib = (statistics.median(turn[name][i] for turn in turns) for i in (0, 1))
        yield {**about, "way": name, "seconds": seconds, "mib": mib, "seconds_ratio": ratio[0], "mib_ratio": ratio[1]}


def _once(meter: Meter, way: Callable[[], None]) -> tuple[float, float]:
    meter.reset()
    before = meter.memory()["peak_gib"] or 0.0
    seconds = meter.seconds(way)
    return seconds, max((meter.memory()["peak_gib"] or 0.0) - before, 1e-3) * 1024


def heads(length: int, pieces: Sequence[int], repeats: int) -> Iterator[dict[str, Any]]:
    model, row = model_of(WIDE, length), example_row(WIDE, length)
    count = len(row.target_P)
    ways = {"all logits": lambda: run(model, row, count)}
    ways |= {f"pieces of {size}": lambda size=size: run(model, row, size) for size in pieces}
    yield from compare(ways, repeats, part="head", tokens=row.tokens, predictions=count, vocabulary=WIDE.vocabulary)


def checkpointing(length: int, repeats: int) -> Iterator[dict[str, Any]]:
    row = example_row(DEEP, length)
    kept, again = model_of(DEEP, length), model_of(DEEP, length, checkpointing=True)
    ways = {"kept": lambda: run(kept, row, 4096), "computed again": lambda: run(again, row, 4096)}
    yield from compare(ways, repeats, part="checkpointing", tokens=row.tokens, layers=DEEP.layers)


def attentions(lengths: Sequence[int], repeats: int) -> Iterator[dict[str, Any]]:
    model = model_of(TINY, max(lengths))
    for length in lengths:
        row = example_row(TINY, length)
        ways = {name: lambda name=name, row=row: run(model, row, 4096, name) for name in ("tree", "dense")}
        yield from compare(ways, repeats, part="attention", tokens=row.tokens, layers=TINY.layers)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--head-length", type=int, default=4096, help="tokens; a quarter are predicted")
    parser.add_argument("--pieces", type=int, nargs="+", default=[512, 128, 32])
    parser.add_argument("--length", type=int, default=2048, help="tokens, for checkpointing")
    parser.add_argument("--lengths", type=int, nargs="+", default=[1024, 2048, 4096, 8192], help="for attention")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    rows = []
    for row in (
        *heads(options.head_length, options.pieces, options.repeats),
        *checkpointing(options.length, options.repeats),
        *attentions(options.lengths, options.repeats),
    ):
        rows.append(row)
        print(
            f"{row['part']:<14}{row['tokens']:>6} tokens  {row['way']:<15}{row['seconds']:9.3f} s"
            f" ({row['seconds_ratio']:5.2f} x){row['mib']:9.0f} MiB ({row['mib_ratio']:5.2f} x)"
        )
    save(options, rows=rows)


if __name__ == "__main__":
    main()
