"""Random models of exactly the shapes of Qwen3-4B and 8B, random labelled trajectories, and what a step computes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from bitsandbytes.nn import Linear4bit, Params4bit
from peft import PeftModel
from transformers import AutoModelForCausalLM, PreTrainedModel, Qwen3Config

from dagger_nb.settings import LoraSettings
from dagger_nb.sizing.shapes import Shape, shape_of
from dagger_nb.training.mask import Row, pack
from dagger_nb.training.model import add_adapter
from dagger_nb.training.tree import Example, Segments, Target, as_executed, build_tree, one_by_one

TREE, PLAIN, SINGLE = "tree", "plain trajectory", "one sequence a label"

# --- the model --------------------------------------------------------------------------------------------


TINY = Shape(
    hidden=192, intermediate=512, layers=5, heads=6, kv_heads=2, head_dim=32, vocabulary=1536, positions=8192, tied=True
)  # the project's own student
MODELS = {"4b": "Qwen/Qwen3-4B-Instruct-2507", "8b": "Qwen/Qwen3-8B"}


def shape_named(name: str) -> Shape:
    """`tiny`, or one of MODELS with exactly its numbers."""
    return TINY if name == "tiny" else shape_of(MODELS[name])


def build(shape: Shape, *, packed: bool, device: torch.device, rank: int, longest: int) -> PeftModel:
    """A random model with a fresh adapter in training mode, its layers checkpointed; bf16 on a GPU, fp32 on a CPU.

    The base is made on the device and packed there layer by layer, so that it is never whole in two forms.
    """
    config = Qwen3Config(
        vocab_size=shape.vocabulary,
        hidden_size=shape.hidden,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        head_dim=shape.head_dim,
        intermediate_size=shape.intermediate,
        max_position_embeddings=2 * longest,
        tie_word_embeddings=shape.tied,
    )
    torch.manual_seed(0)
    with torch.device(device):
        base = AutoModelForCausalLM.from_config(
            config, dtype=torch.bfloat16 if device.type == "cuda" else torch.float32
        )
    if packed:
        pack_nf4(base)
    base.requires_grad_(False)
    base.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    return add_adapter(base, LoraSettings(rank=rank, alpha=2 * rank), seed=0).train()


def pack_nf4(model: PreTrainedModel) -> None:
    """Replace each linear layer but the head by its NF4 form, with double quantisation as load_student has it."""
    decoder = model.get_decoder()
    for name, linear in list(decoder.named_modules()):
        if isinstance(linear, torch.nn.Linear):
            weight = linear.weight.data
            packed = Linear4bit(
                linear.in_features,
                linear.out_features,
                bias=False,
                compute_dtype=weight.dtype,
                quant_type="nf4",
                device="meta",
            )
            packed.support_avx512bf16_for_cpu = False
            packed.weight = Params4bit(weight, quant_type="nf4", module=packed).to(weight.device)
            decoder.set_submodule(name, packed)
    model.is_loaded_in_4bit = True  # peft asks


# --- the data ---------------------------------------------------------------------------------------------


def trajectory(length: int, turn_tokens: int, lessons: float, vocabulary: int, seed: int) -> Example:
    """A random labelled trajectory whose tree has a trunk of `length` tokens at most.

    A sixteenth or more of it is the prompt, and a quarter of each turn the action, which a lesson shares an eighth
    of. The last turn has no observation to speak of.
    """
    rng = np.random.default_rng(seed)

    def ids(count: int) -> tuple[int, ...]:
        return tuple(rng.integers(0, vocabulary, count).tolist())

    action = turn_tokens // 4
    turns = length * 15 // 16 // turn_tokens
    prompt = length - (turns - 1) * turn_tokens - action
    pairs = tuple((ids(action), ids(turn_tokens - action)) for _ in range(turns))
    differs = (rng.permutation(turns) < round(lessons * turns)).tolist()
    targets = (
        Target(turn, said[: action // 8] + ids(action - action // 8) if differs[turn] else said, lesson=differs[turn])
        for turn, (said, _) in enumerate(pairs)
    )
    return Example(Segments(ids(prompt), pairs), tuple(targets))


def rows_of(form: str, example: Example, singles: int) -> tuple[list[Row], float]:
    """The form's rows, one for each pass, and how many times their work makes the whole example."""
    if form == SINGLE:
        each = list(one_by_one(example))
        chosen = [each[(2 * part + 1) * len(each) // (2 * singles)] for part in range(min(singles, len(each)))]
        return [pack([build_tree(one)]) for one in chosen], len(each) / len(chosen)
    return [pack([build_tree(example if form == TREE else as_executed(example))])], 1.0


def operations(shape: Shape, rank: int, rows: Sequence[Row], head_rows: int) -> dict[str, tuple[float, float]]:
    """Part -> (model, executed) floating-point operations of one step, by the formulas above."""
    linear, adapter = shape.layers * shape.layer_weights, shape.adapter(rank)
    tokens = sum(row.tokens for row in rows)
    pairs = sum(int((row.positions_1T + 1).sum()) for row in rows)
    scores = shape.heads * shape.head_dim * shape.layers * pairs
    head = shape.vocabulary * shape.hidden
    predictions = [len(row.target_P) for row in rows]
    again = sum(count for count in predictions if count > head_rows)
    return {
        "base": (4 * linear * tokens, 6 * linear * tokens),
        "adapter": (6 * adapter * tokens, 8 * adapter * tokens),
        "attention": (12 * scores, 18 * scores),
        "head": (4 * head * sum(predictions), 4 * head * sum(predictions) + 2 * head * again),
    }
