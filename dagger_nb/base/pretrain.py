"""Build the tiny base model from nothing: `python -m dagger_nb.base.pretrain`.

Recipe: a Qwen3 of about a million parameters, trained in fp32 on packed blocks of the corpus with Muon (matrices)
and AdamW (the rest), a trapezoid learning rate, and in the last third with its linear weights rounded to NF4 in the
forward pass (straight-through gradients), because QLoRA will load them in NF4. Resumable: run it again.

It stops where SFT is competent, not perfect: on dev SFT then errs in 1.2 % of the teacher's own states. After 3,200
steps on twice as many tasks it errs in 0.4 %; DAgger's rounds then visit hardly a state that demonstrations do not show
(11 of 2,700 labels were lessons), so that no way of collecting data could make a difference.

`python -m dagger_nb.base.compare FOLDER` says whether a model built elsewhere is the committed one.
"""

from __future__ import annotations

import argparse
import itertools
import json
import multiprocessing
import random
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from torch.nn.functional import cross_entropy
from torch.nn.utils import parametrize
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

from dagger_nb import paths
from dagger_nb.base import corpus
from dagger_nb.base.tokenizer import train_tokenizer
from dagger_nb.errors import DataError
from dagger_nb.provenance import processor
from dagger_nb.rendering import Renderer
from dagger_nb.store import file_sha256, read_json, write_json

CHECKPOINT_EVERY = 200  # steps
CHUNK = 1000  # tasks that a process encodes before it reports


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
    tasks: int = 5_000  # tasks whose episode is read in pieces that cover it, with drills
    searches: int = 24_000  # further tasks, of which only the way from the failure to the repair is read
    block: int = 512  # tokens of a row
    rows: int = 16  # rows of a step; one step in `long_every` joins them eight by eight, for long positions
    long_every: int = 8
    steps: int = 1500
    muon_rate: float = 0.02
    adam_rate: float = 3e-3
    warmup: int = 50
    cooldown: float = 0.4  # share of the steps over which the rate falls to zero
    quantised: float = 0.35  # share of the steps, at the end, with NF4 in the forward pass
    threads: int = 2


def build_data(recipe: Recipe, work: Path) -> tuple[PreTrainedTokenizerFast, np.ndarray, np.ndarray]:
    """Tokenizer, ids [N] and weights [N] of the shuffled corpus; kept in `work` for a resumed run."""
    if not (work / "corpus.npz").exists():
        sample = list(corpus.documents(0, 600))
        tokenizer = train_tokenizer(corpus.texts(sample), vocab_size=recipe.vocabulary)
        tokenizer.save_pretrained(work / "tokenizer")
        ids, weights = _encode_all(recipe, work)
        np.savez(work / "partial.npz", ids=ids, weights=weights)
        (work / "partial.npz").rename(work / "corpus.npz")
    data = np.load(work / "corpus.npz")
    return PreTrainedTokenizerFast.from_pretrained(work / "tokenizer"), data["ids"], data["weights"]


def _encode_all(recipe: Recipe, work: Path) -> tuple[np.ndarray, np.ndarray]:
    total, began, pieces = recipe.tasks + recipe.searches, time.monotonic(), []
    with ProcessPoolExecutor(recipe.threads, multiprocessing.get_context("spawn")) as pool:
        jobs = [(recipe, work, first, min(first + CHUNK, total)) for first in range(0, total, CHUNK)]
        for (*_, end), chunk in zip(jobs, pool.map(_encode_chunk, jobs), strict=True):
            pieces += chunk
            print(f"corpus: {end}/{total} tasks, {time.monotonic() - began:.0f} s", flush=True)
    random.Random(f"order-{recipe.seed}").shuffle(pieces)
    return np.concatenate([ids for ids, _ in pieces]), np.concatenate([weights for _, weights in pieces])


def _encode_chunk(job: tuple[Recipe, Path, int, int]) -> list[tuple[np.ndarray, np.ndarray]]:
    """The documents of the tasks `first` to `end`; the same ones however the corpus is cut in chunks."""
    recipe, work, first, end = job
    renderer, pieces = Renderer(PreTrainedTokenizerFast.from_pretrained(work / "tokenizer")), []
    whole = max(0, min(end, recipe.tasks) - first)
    for number, (task, turns, drills) in enumerate(corpus.documents(first, whole), first + 1):
        pieces += corpus.encode(renderer, task, turns, drills, random.Random(f"cut-{recipe.seed}-{number}"))
    for turns in corpus.episodes(first + whole, end - first - whole):
        pieces.append(corpus.encode_search(renderer, turns))
    return pieces


def batches(recipe: Recipe, ids: np.ndarray, weights: np.ndarray) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Endless (ids [rows, length], weights [rows, length]); the order depends on the seed and the epoch only."""
    blocks = len(ids) // recipe.block
    shape = (blocks, recipe.block)
    ids, weights = ids[: blocks * recipe.block].reshape(shape), weights[: blocks * recipe.block].reshape(shape)
    for epoch in itertools.count():
        order = np.random.default_rng([recipe.seed, epoch]).permutation(blocks - blocks % recipe.rows)
        for number, chosen in enumerate(order.reshape(-1, recipe.rows)):
            length = recipe.block * (8 if number % recipe.long_every == 0 else 1)
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


def rate(recipe: Recipe, step: int) -> float:
    """The trapezoid: up over the warm-up, flat, and down to zero over the cool-down."""
    return min(1.0, (step + 1) / recipe.warmup, (recipe.steps - step) / (recipe.cooldown * recipe.steps))


def train(recipe: Recipe, work: Path) -> Qwen3ForCausalLM:
    """Train to the last step, from the newest checkpoint in `work` if there is one."""
    torch.set_num_threads(recipe.threads)
    _claim(work, recipe)
    tokenizer, ids, weights = build_data(recipe, work)
    model = new_model(recipe, tokenizer)
    steppers = optimisers(recipe, model)
    start = _restore(work, model, steppers)
    rounding = int(recipe.steps * (1 - recipe.quantised))
    print(f"{sum(p.numel() for p in model.parameters()):,} parameters; {len(ids):,} tokens in the corpus", flush=True)
    began = time.monotonic()
    for step, (block, weight) in enumerate(batches(recipe, ids, weights)):
        if step >= recipe.steps:
            break
        if step < start:
            continue
        if step >= rounding and not parametrize.is_parametrized(model.model.layers[0].mlp.up_proj):
            _round_weights(model)
        loss = _step(model, steppers, block, weight, rate(recipe, step))
        if step % 50 == 0:
            print(f"step {step}/{recipe.steps} loss {loss:.4f} {time.monotonic() - began:.0f} s", flush=True)
        if step % CHECKPOINT_EVERY == CHECKPOINT_EVERY - 1:
            _checkpoint(work, model, steppers, step + 1)
    return _without_rounding(model)


def _claim(work: Path, recipe: Recipe) -> None:
    """Raises DataError where the work folder holds the corpus and checkpoints of another recipe."""
    path, mine = work / "recipe.json", asdict(recipe)
    if not path.exists():
        write_json(path, mine)
    if read_json(path) != mine:
        raise DataError(f"{work} belongs to another recipe of the base model; choose another --work or remove it")


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


def _without_rounding(model: Qwen3ForCausalLM) -> Qwen3ForCausalLM:
    for linear in list(_linears(model)):
        if parametrize.is_parametrized(linear):
            parametrize.remove_parametrizations(linear, "weight", leave_parametrized=False)
    return model


def _checkpoint(work: Path, model: Qwen3ForCausalLM, steppers: list[torch.optim.Optimizer], step: int) -> None:
    plain = {name.replace(".parametrizations.weight.original", ".weight"): p for name, p in model.state_dict().items()}
    state = {"step": step, "model": plain, "steppers": [s.state_dict() for s in steppers]}
    torch.save(state, work / "checkpoint.partial")
    (work / "checkpoint.partial").rename(work / "checkpoint.pt")


def _restore(work: Path, model: Qwen3ForCausalLM, steppers: list[torch.optim.Optimizer]) -> int:
    if not (work / "checkpoint.pt").exists():
        return 0
    state = torch.load(work / "checkpoint.pt", weights_only=True)
    model.load_state_dict(state["model"])
    for stepper, saved in zip(steppers, state["steppers"], strict=True):
        stepper.load_state_dict(saved)
    return state["step"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=paths.data() / "base", help="where the model goes")
    parser.add_argument("--work", type=Path, default=paths.data() / "cache" / "pretrain", help="corpus and checkpoints")
    parser.add_argument("--steps", type=int, default=Recipe.steps)
    arguments = parser.parse_args()
    recipe = Recipe(steps=arguments.steps)
    arguments.work.mkdir(parents=True, exist_ok=True)
    began = time.monotonic()
    model = train(recipe, arguments.work)
    model.save_pretrained(arguments.out)
    PreTrainedTokenizerFast.from_pretrained(arguments.work / "tokenizer").save_pretrained(arguments.out)
    files = {path.name: file_sha256(path) for path in sorted(arguments.out.iterdir()) if path.name != "manifest.json"}
    manifest = {
        "command": "python -m dagger_nb.base.pretrain",
        "recipe": asdict(recipe),
        "seconds_of_this_run": round(time.monotonic() - began),
        "torch": torch.__version__.partition("+")[0],
        "processor": processor(),
        "files": files,
    }
    write_json(arguments.out / "manifest.json", manifest)
    print(json.dumps(manifest, indent=1))


if __name__ == "__main__":
    main()
