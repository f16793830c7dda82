"""Build the tiny base model from nothing: `python -m dagger_nb.base.pretrain`.

Recipe: a Qwen3 of 1.3 million parameters, trained in fp32 on a corpus of episodes and reviews with Muon (matrices) and
AdamW (the rest) and a trapezoid learning rate. A document is never cut: what to read next depends on a test report that
stands at its beginning. In the last third of the steps the linear weights are rounded to NF4 in the forward pass
(straight-through gradients), because QLoRA will load them in NF4. Resumable: run it again.
"""

from __future__ import annotations

import argparse
import itertools
import json
import multiprocessing
import random
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path

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
from dagger_nb.rendering import Renderer
from dagger_nb.store import file_sha256, read_json, write_json

CHECKPOINT_EVERY = 200  # steps
CHUNK = 250  # tasks or repositories that a process encodes before it reports
OPEN = 64  # rows that may still take a document


@dataclass(frozen=True)
class Recipe:
    """Everything that decides the base model's bytes (with the CPU type and the thread count)."""

    seed: int = 20260513
    vocabulary: int = 1536
    hidden: int = 128
    layers: int = 6
    heads: int = 4
    groups: int = 1
    intermediate: int = 384
    steps: int = 4400
    tasks: int = 14_000  # tasks whose episode is read, with drills
    reviewed: int = 11_000  # repositories whose reviews are read
    row: int = 1024  # tokens of a row, which holds whole documents
    rows: int = 8  # rows of a step; one step in `long_every` joins them four by four, for long distances
    long_every: int = 12
    muon_rate: float = 0.02
    adam_rate: float = 3e-3
    warmup: int = 50
    cooldown: float = 0.4  # share of the steps over which the rate falls to zero
    rounded: float = 0.35  # share of the steps, at the end, with NF4 in the forward pass
    threads: int = 2


def build_tokenizer(recipe: Recipe, work: Path) -> PreTrainedTokenizerFast:
    """The tokenizer of the first tasks' text; kept in `work` for a resumed run."""
    folder = work / "tokenizer"
    if not folder.exists():
        tokenizer = train_tokenizer(
            corpus.texts([corpus.document(index) for index in range(600)]), vocab_size=recipe.vocabulary
        )
        tokenizer.save_pretrained(work / "tokenizer.partial")
        (work / "tokenizer.partial").rename(folder)
    return PreTrainedTokenizerFast.from_pretrained(folder)


def build_data(recipe: Recipe, work: Path) -> tuple[np.ndarray, np.ndarray]:
    """Ids and loss weights [rows, recipe.row] of the corpus; kept in `work` for a resumed run."""
    path = work / "corpus.npz"
    if not path.exists():
        pieces = _encode_all(recipe, work)
        random.Random(f"order-{recipe.seed}").shuffle(pieces)
        ids, weights = packed(pieces, recipe.row)
        np.savez(work / "partial.npz", ids=ids, weights=weights)
        (work / "partial.npz").rename(path)
    data = np.load(path)
    return data["ids"], data["weights"]


def packed(pieces: Sequence[tuple[np.ndarray, np.ndarray]], row: int) -> tuple[np.ndarray, np.ndarray]:
    """Documents in rows [N, row], each whole in the first of the open rows that has room; weight 0 fills the rest.

    Of the rare document that is longer than a row only the end is kept.
    """
    pieces = [(ids[-row:], weights[-row:]) for ids, weights in pieces]
    rows: list[list[int]] = []
    room: list[int] = []  # left in each of the last OPEN rows
    for number, (ids, _) in enumerate(pieces):
        place = next((place for place, left in enumerate(room) if left >= len(ids)), None)
        if place is None:
            rows.append([])
            room = [*room[max(0, len(room) + 1 - OPEN) :], row]
            place = len(room) - 1
        rows[len(rows) - len(room) + place].append(number)
        room[place] -= len(ids)
    filled = np.zeros((len(rows), row), dtype=np.int32), np.zeros((len(rows), row), dtype=np.float32)
    for index, numbers in enumerate(rows):
        for target, joined in zip(filled, zip(*(pieces[number] for number in numbers), strict=True), strict=True):
            joined = np.concatenate(joined)
            target[index, : len(joined)] = joined
    return filled


def _encode_all(recipe: Recipe, work: Path) -> list[tuple[np.ndarray, np.ndarray]]:
    jobs, began, pieces = list(_jobs(recipe, work)), time.monotonic(), []
    with ProcessPoolExecutor(recipe.threads, multiprocessing.get_context("spawn")) as pool:
        for done, chunk in enumerate(pool.map(_encode_chunk, jobs), 1):
            pieces += chunk
            print(f"corpus: part {done}/{len(jobs)}, {time.monotonic() - began:.0f} s", flush=True)
    return pieces


def _jobs(recipe: Recipe, work: Path) -> Iterator[tuple[str, int, int, Recipe, Path]]:
    """(kind of document, first, count, …) of each part of the corpus."""
    for kind, count in (("episodes", recipe.tasks), ("reviews", recipe.reviewed)):
        for first in range(0, count, CHUNK):
            yield kind, first, min(CHUNK, count - first), recipe, work


def _encode_chunk(job: tuple[str, int, int, Recipe, Path]) -> list[tuple[np.ndarray, np.ndarray]]:
    """The documents of one part; the same ones however the corpus is cut in parts."""
    kind, first, count, recipe, work = job
    renderer, pieces = Renderer(build_tokenizer(recipe, work)), []
    for index in range(first, first + count):
        rng = random.Random(f"{kind}-{recipe.seed}-{index}")
        if kind == "episodes":
            pieces += corpus.encode_task(renderer, index, rng)
        else:
            pieces += [corpus.encode_review(renderer, turns, rng) for turns in reviews(index)]
    return pieces


def batches(recipe: Recipe, ids: np.ndarray, weights: np.ndarray) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Endless (ids [rows, length], weights [rows, length]); the order depends on seed and epoch only."""
    for epoch in itertools.count():
        order = np.random.default_rng([recipe.seed, epoch]).permutation(len(ids) - len(ids) % recipe.rows)
        for batch, chosen in enumerate(order.reshape(-1, recipe.rows)):
            length = recipe.row * (4 if batch % recipe.long_every == 0 else 1)
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
    model = new_model(recipe, build_tokenizer(recipe, work))
    print(f"{sum(p.numel() for p in model.parameters()):,} parameters", flush=True)
    steppers = optimisers(recipe, model)
    start = _restore(work / "checkpoint.pt", model, steppers)
    ids, weights = build_data(recipe, work)
    rounding = recipe.steps - int(recipe.steps * recipe.rounded)
    print(f"{ids.size:,} tokens, from step {start}", flush=True)
    began = time.monotonic()
    for step, (row, weight) in enumerate(itertools.islice(batches(recipe, ids, weights), recipe.steps)):
        if step < start:
            continue
        if step >= rounding and not _is_rounded(model):
            _round_weights(model)
        loss = _step(model, steppers, row, weight, rate(recipe, step))
        if step % 50 == 0:
            print(f"step {step}/{recipe.steps} loss {loss:.4f} {time.monotonic() - began:.0f} s", flush=True)
        if (step + 1) % CHECKPOINT_EVERY == 0 or step + 1 == recipe.steps:
            _checkpoint(work / "checkpoint.pt", model, steppers, step + 1)
    _unround_weights(model)
    return model


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
    row: torch.Tensor,
    weight: torch.Tensor,
    scale: float,
) -> float:
    hidden, counted = model.model(input_ids=row).last_hidden_state[:, :-1], weight[:, 1:] > 0
    losses = cross_entropy(model.lm_head(hidden[counted]), row[:, 1:][counted], reduction="none")
    weight = weight[:, 1:][counted]
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


def _checkpoint(path: Path, model: Qwen3ForCausalLM, steppers: list[torch.optim.Optimizer], step: int) -> None:
    plain = {name.replace(".parametrizations.weight.original", ".weight"): p for name, p in model.state_dict().items()}
    state = {"step": step, "model": plain, "steppers": [s.state_dict() for s in steppers]}
    partial = path.with_suffix(".partial")
    torch.save(state, partial)
    partial.rename(path)


def _restore(path: Path, model: Qwen3ForCausalLM, steppers: list[torch.optim.Optimizer]) -> int:
    """The number of steps that the checkpoint has behind it; 0 where there is none."""
    if not path.exists():
        return 0
    state = torch.load(path, weights_only=True)
    model.load_state_dict(state["model"])
    for stepper, saved in zip(steppers, state["steppers"], strict=True):
        stepper.load_state_dict(saved)
    return state["step"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=paths.data() / "base", help="where the model goes")
    parser.add_argument("--work", type=Path, default=paths.data() / "cache" / "pretrain", help="corpus and checkpoints")
    parser.add_argument("--steps", type=int, help="other number of steps, for a trial")
    arguments = parser.parse_args()
    recipe = Recipe()
    if arguments.steps:
        recipe = replace(recipe, steps=arguments.steps)
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
        "files": files,
    }
    write_json(arguments.out / "manifest.json", manifest)
    print(json.dumps(manifest, indent=1))


if __name__ == "__main__":
    main()
