"""Build the tiny base model from nothing: `python -m dagger_nb.base.pretrain`.

Recipe: a Qwen3 of about a million parameters, trained in fp32 on packed blocks of a corpus with Muon (matrices) and
AdamW (the rest) and a trapezoid learning rate, in two stages: episodes, then mostly code reviews. From the last third
of the first stage on its linear weights are rounded to NF4 in the forward pass (straight-through gradients), because
QLoRA will load them in NF4. Resumable: run it again.
"""

from __future__ import annotations

import argparse
import itertools
import json
import multiprocessing
import random
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn.functional import cross_entropy
from torch.nn.utils import parametrize
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

from dagger_nb import paths
from dagger_nb.base import corpus
from dagger_nb.base.reviews import reviews
from dagger_nb.base.tokenizer import train_tokenizer
from dagger_nb.errors import DataError
from dagger_nb.records import Turn
from dagger_nb.rendering import Renderer
from dagger_nb.store import file_sha256, read_json, write_json

CHECKPOINT_EVERY = 200  # steps
CHUNK = 1000  # tasks that a process encodes before it reports
REVIEWED = 50  # repositories that it reviews before it reports

# To act is learnt first, then to say how each line should be, then to see where the shown one differs.
THOUGHTS = {"conclusions": corpus.conclusions, "uncorrected": corpus.uncorrected, "whole": list}

Job = tuple[str, int, int, Callable[[Sequence[Turn]], list[Turn]], "Recipe", Path]


@dataclass(frozen=True)
class Stage:
    """One corpus and the steps on it. No stage sees a task of the stage before again."""

    steps: int
    tasks: int  # tasks whose episode is read in pieces that cover it, with drills
    looks: int = 0  # further tasks, of which only the views and the action after each are read
    reviewed: int = 0  # repositories whose functions are reviewed
    rounded: float = 1.0  # share of the steps, at the end, with NF4 in the forward pass
    block: int = 512  # tokens of a row
    rows: int = 16  # of a step
    thoughts: str = "whole"  # what is kept of them, of `THOUGHTS`


@dataclass(frozen=True)
class Recipe:
    """Everything that decides the base model's bytes (with the CPU type and the thread count)."""

    seed: int = 20260513
    vocabulary: int = 1536
    hidden: int = 128
    layers: int = 4
    heads: int = 4
    groups: int = 1
    intermediate: int = 384
    long_every: int = 8  # one step in so many joins its rows to longer ones, for late positions
    long_row: int = 4096  # tokens of such a row
    muon_rate: float = 0.02
    adam_rate: float = 3e-3
    warmup: int = 50
    cooldown: float = 0.4  # share of the steps over which the rate falls to zero
    threads: int = 2
    stages: tuple[Stage, ...] = (
        Stage(steps=3200, tasks=10_000, looks=32_000, rounded=0.35, thoughts="conclusions"),
        Stage(steps=2400, tasks=3_300, reviewed=2_500, thoughts="uncorrected", block=1024, rows=4),
        Stage(steps=1000, tasks=1_400, reviewed=1_000, block=1024, rows=4),
    )


def build_tokenizer(recipe: Recipe, work: Path) -> PreTrainedTokenizerFast:
    """The tokenizer of the first tasks' text; kept in `work` for a resumed run."""
    folder = work / "tokenizer"
    if not folder.exists():
        tokenizer = train_tokenizer(corpus.texts(list(corpus.documents(0, 600))), vocab_size=recipe.vocabulary)
        tokenizer.save_pretrained(work / "tokenizer.partial")
        (work / "tokenizer.partial").rename(folder)
    return PreTrainedTokenizerFast.from_pretrained(folder)


def build_data(recipe: Recipe, number: int, work: Path) -> tuple[np.ndarray, np.ndarray]:
    """Ids [N] and weights [N] of a stage's shuffled corpus; kept in `work` for a resumed run."""
    path = work / f"corpus-{number}.npz"
    if not path.exists():
        ids, weights = _encode_all(recipe, number, work)
        np.savez(work / "partial.npz", ids=ids, weights=weights)
        (work / "partial.npz").rename(path)
    data = np.load(path)
    return data["ids"], data["weights"]


def _encode_all(recipe: Recipe, number: int, work: Path) -> tuple[np.ndarray, np.ndarray]:
    jobs, began, pieces = list(_jobs(recipe, number, work)), time.monotonic(), []
    with ProcessPoolExecutor(recipe.threads, multiprocessing.get_context("spawn")) as pool:
        for done, chunk in enumerate(pool.map(_encode_chunk, jobs), 1):
            pieces += chunk
            print(f"corpus {number}: part {done}/{len(jobs)}, {time.monotonic() - began:.0f} s", flush=True)
    random.Random(f"order-{recipe.seed + number}").shuffle(pieces)
    return np.concatenate([ids for ids, _ in pieces]), np.concatenate([weights for _, weights in pieces])


def _jobs(recipe: Recipe, number: int, work: Path) -> Iterator[Job]:
    """(kind of document, first, count, what is kept of thoughts, …) of each part of a stage's corpus."""
    before, stage = recipe.stages[:number], recipe.stages[number]
    start = sum(earlier.tasks + earlier.looks for earlier in before)
    kinds = [
        ("episodes", start, stage.tasks, CHUNK),
        ("looks", start + stage.tasks, stage.looks, CHUNK),
        ("reviews", sum(earlier.reviewed for earlier in before), stage.reviewed, REVIEWED),
    ]
    for kind, begin, count, chunk in kinds:
        for first in range(begin, begin + count, chunk):
            yield kind, first, min(chunk, begin + count - first), THOUGHTS[stage.thoughts], recipe, work


def _encode_chunk(job: Job) -> list[tuple[np.ndarray, np.ndarray]]:
    """The documents of one part; the same ones however the corpus is cut in parts."""
    kind, first, count, thought, recipe, work = job
    renderer, pieces = Renderer(build_tokenizer(recipe, work)), []
    if kind == "episodes":
        for index, (task, turns, drills) in enumerate(corpus.documents(first, count), first):
            rng = random.Random(f"cut-{recipe.seed}-{index + 1}")
            pieces += corpus.encode(renderer, task, thought(turns), drills, rng)
    else:
        for turns in (corpus.episodes if kind == "looks" else reviews)(first, count):
            pieces += corpus.encode_looks(renderer, thought(turns))
    return pieces


def batches(
    recipe: Recipe, number: int, ids: np.ndarray, weights: np.ndarray
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Endless (ids [rows, length], weights [rows, length]); the order depends on seed, stage and epoch only."""
    stage = recipe.stages[number]
    blocks = len(ids) // stage.block
    shape = (blocks, stage.block)
    ids, weights = ids[: blocks * stage.block].reshape(shape), weights[: blocks * stage.block].reshape(shape)
    for epoch in itertools.count():
        order = np.random.default_rng([recipe.seed + number, epoch]).permutation(blocks - blocks % stage.rows)
        for batch, chosen in enumerate(order.reshape(-1, stage.rows)):
            length = stage.block if batch % recipe.long_every else recipe.long_row
            yield (
                torch.from_numpy(ids[chosen].reshape(-1, length).astype(np.int64)),
                torch.from_numpy(weights[chosen].reshape(-1, length)),
            )


class NF4Rounding(torch.nn.Module):
    """A weight as NF4 would give it back, with the gradient of the weight itself (straight-through)."""

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        from bitsandbytes.functional import dequantize_4bit, quantize_4bit

        with torch.no_grad():
            packed, state = quantize_4bit(weight.contiguous(), quant_type="nf4")
            rounded = dequantize_4bit(packed, state).reshape(weight.shape)
        return weight + (rounded - weight).detach()


def new_model(recipe: Recipe, tokenizer: PreTrainedTokenizerFast) -> Qwen3ForCausalLM:
    torch.manual_seed(recipe.seed)
    config = Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=recipe.hidden,
        num_hidden_layers=recipe.layers,
        num_attention_heads=recipe.heads,
        num_key_value_heads=recipe.groups,
        head_dim=recipe.hidden // recipe.heads,
        intermediate_size=recipe.intermediate,
        max_position_embeddings=8192,
        tie_word_embeddings=True,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=None,
    )
    return Qwen3ForCausalLM(config)


def optimisers(recipe: Recipe, model: Qwen3ForCausalLM) -> list[torch.optim.Optimizer]:
    matrices = [p for name, p in model.named_parameters() if p.ndim == 2 and "embed" not in name]
    rest = [p for name, p in model.named_parameters() if p.ndim != 2 or "embed" in name]
    return [
        torch.optim.Muon(matrices, lr=recipe.muon_rate, weight_decay=0.01, adjust_lr_fn="original"),
        torch.optim.AdamW(rest, lr=recipe.adam_rate, weight_decay=0.0, betas=(0.9, 0.98)),
    ]


def rate(recipe: Recipe, stage: Stage, step: int) -> float:
    """The trapezoid: up over the warm-up, flat, and down to zero over the cool-down."""
    return min(1.0, (step + 1) / recipe.warmup, (stage.steps - step) / (recipe.cooldown * stage.steps))


def train(recipe: Recipe, work: Path) -> tuple[Qwen3ForCausalLM, list[float]]:
    """The model after the last stage, from the newest checkpoint in `work` if there is one; seconds of each stage."""
    torch.set_num_threads(recipe.threads)
    _claim(work, recipe)
    model = new_model(recipe, build_tokenizer(recipe, work))
    print(f"{sum(p.numel() for p in model.parameters()):,} parameters", flush=True)
    return model, [_train_stage(recipe, number, model, work) for number in range(len(recipe.stages))]


def _train_stage(recipe: Recipe, number: int, model: Qwen3ForCausalLM, work: Path) -> float:
    """Take the stage's steps that its checkpoint does not have yet; a new stage starts with fresh optimisers.

    Returns the seconds that the stage took, corpus included, over all processes that worked on it.
    """
    stage, steppers = recipe.stages[number], optimisers(recipe, model)
    began = time.monotonic()
    start, spent = _restore(work / f"stage-{number}.pt", model, steppers)
    if start == stage.steps:
        return spent
    ids, weights = build_data(recipe, number, work)
    rounding = stage.steps - int(stage.steps * stage.rounded)
    print(f"stage {number}: {len(ids):,} tokens, from step {start}", flush=True)
    for step, (block, weight) in enumerate(itertools.islice(batches(recipe, number, ids, weights), stage.steps)):
        if step < start:
            continue
        if step >= rounding and not _is_rounded(model):
            _round_weights(model)
        loss = _step(model, steppers, block, weight, rate(recipe, stage, step))
        if step % 50 == 0:
            print(f"step {step}/{stage.steps} loss {loss:.4f} {time.monotonic() - began:.0f} s", flush=True)
        if (step + 1) % CHECKPOINT_EVERY == 0 or step + 1 == stage.steps:
            _checkpoint(work / f"stage-{number}.pt", model, steppers, step + 1, spent + time.monotonic() - began)
    _unround_weights(model)
    return spent + time.monotonic() - began


def _claim(work: Path, recipe: Recipe) -> None:
    """Raises DataError where the work folder holds the corpus and checkpoints of another recipe."""
    path, mine = work / "recipe.json", _as_json(recipe)
    if not path.exists():
        write_json(path, mine)
    if read_json(path) != mine:
        raise DataError(f"{work} belongs to another recipe of the base model; choose another --work or remove it")


def _as_json(recipe: Recipe) -> dict[str, Any]:
    return asdict(recipe) | {"stages": [asdict(stage) for stage in recipe.stages]}


def _step(
    model: Qwen3ForCausalLM,
    steppers: list[torch.optim.Optimizer],
    block: torch.Tensor,
    weight: torch.Tensor,
    scale: float,
) -> float:
    hidden = model.model(input_ids=block).last_hidden_state[:, :-1]
    losses = cross_entropy(model.lm_head(hidden).flatten(0, 1), block[:, 1:].flatten(), reduction="none")
    weight = weight[:, 1:].flatten()
    loss = (losses * weight).sum() / weight.sum()
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    for stepper in steppers:
        for group in stepper.param_groups:
            group["lr"] = group.setdefault("peak", group["lr"]) * scale
        stepper.step()
        stepper.zero_grad(set_to_none=True)
    return loss.item()


def _linears(model: Qwen3ForCausalLM) -> Iterator[torch.nn.Linear]:
    for layer in model.model.layers:
        yield from (module for module in layer.modules() if isinstance(module, torch.nn.Linear))


def _round_weights(model: Qwen3ForCausalLM) -> None:
    for linear in list(_linears(model)):
        parametrize.register_parametrization(linear, "weight", NF4Rounding())


def _is_rounded(model: Qwen3ForCausalLM) -> bool:
    return any(parametrize.is_parametrized(linear) for linear in _linears(model))


def _unround_weights(model: Qwen3ForCausalLM) -> None:
    for linear in list(_linears(model)):
        if parametrize.is_parametrized(linear):
            parametrize.remove_parametrizations(linear, "weight", leave_parametrized=False)


def _checkpoint(
    path: Path, model: Qwen3ForCausalLM, steppers: list[torch.optim.Optimizer], step: int, seconds: float
) -> None:
    plain = {name.replace(".parametrizations.weight.original", ".weight"): p for name, p in model.state_dict().items()}
    state = {"step": step, "seconds": seconds, "model": plain, "steppers": [s.state_dict() for s in steppers]}
    partial = path.with_suffix(".partial")
    torch.save(state, partial)
    partial.rename(path)


def _restore(path: Path, model: Qwen3ForCausalLM, steppers: list[torch.optim.Optimizer]) -> tuple[int, float]:
    """The steps and seconds that the checkpoint has behind it; none where there is no checkpoint."""
    if not path.exists():
        return 0, 0.0
    state = torch.load(path, weights_only=True)
    model.load_state_dict(state["model"])
    for stepper, saved in zip(steppers, state["steppers"], strict=True):
        stepper.load_state_dict(saved)
    return state["step"], state["seconds"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=paths.data() / "base", help="where the model goes")
    parser.add_argument("--work", type=Path, default=paths.data() / "cache" / "pretrain", help="corpus and checkpoints")
    parser.add_argument("--steps", type=int, help="at most so many steps a stage, for a trial")
    arguments = parser.parse_args()
    recipe = Recipe()
    if arguments.steps:
        shorter = (replace(stage, steps=min(stage.steps, arguments.steps)) for stage in recipe.stages)
        recipe = replace(recipe, stages=tuple(shorter))
    arguments.work.mkdir(parents=True, exist_ok=True)
    model, seconds = train(recipe, arguments.work)
    model.save_pretrained(arguments.out)
    PreTrainedTokenizerFast.from_pretrained(arguments.work / "tokenizer").save_pretrained(arguments.out)
    files = {path.name: file_sha256(path) for path in sorted(arguments.out.iterdir()) if path.name != "manifest.json"}
    manifest = {
        "command": "python -m dagger_nb.base.pretrain",
        "recipe": _as_json(recipe),
        "seconds_of_stages": [round(spent) for spent in seconds],
        "torch": torch.__version__.partition("+")[0],
        "files": files,
    }
    write_json(arguments.out / "manifest.json", manifest)
    print(json.dumps(manifest, indent=1))


if __name__ == "__main__":
    main()
