"""A machine with a GPU, checked in a minute: `make test-gpu`.

Each piece of training against the same piece on the CPU, in fp32 there and in bf16 here.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import Qwen3Config, Qwen3ForCausalLM
from transformers.integrations.bitsandbytes import dequantize_bnb_weight

from dagger_nb.errors import ConfigError
from dagger_nb.settings import LoraSettings, TrainingSettings
from dagger_nb.training.attention import ATTENTIONS, block_attention
from dagger_nb.training.fit import fit
from dagger_nb.training.loss import summed_loss
from dagger_nb.training.mask import ancestor_mask, block_mask, bucket, pack, padded
from dagger_nb.training.model import add_adapter, load_student, save_adapter
from dagger_nb.training.tree import Example, Segments, Target, build_tree

pytestmark = pytest.mark.skipif(
    not torch.cuda.is_available(), reason="no CUDA GPU that torch can use; run these where there is one"
)
VOCABULARY = 512
SETTINGS = TrainingSettings(passes=1, batch_tokens=1500, learning_rate=1e-3, schedule="linear", warmup_steps=0)


def example(seed: int, turns: int = 12) -> Example:
    """Some 700 tokens; every other label is a lesson."""
    rng = np.random.default_rng(seed)

    def ids(low: int, high: int) -> tuple[int, ...]:
        return tuple(rng.integers(0, VOCABULARY, rng.integers(low, high)).tolist())

    segments = Segments(ids(60, 90), tuple((ids(8, 20), ids(20, 50)) for _ in range(turns)))
    labels = (said if turn % 2 else said[:3] + ids(5, 20) for turn, (said, _) in enumerate(segments.turns))
    return Example(segments, tuple(Target(turn, label) for turn, label in enumerate(labels)))


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    config = Qwen3Config(
        vocab_size=VOCABULARY,
        hidden_size=256,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=64,
        intermediate_size=512,
        max_position_embeddings=4096,
    )
    folder = tmp_path_factory.mktemp("base")
    torch.manual_seed(0)
    Qwen3ForCausalLM(config).bfloat16().float().save_pretrained(folder)  # the same weights in bf16 and in fp32
    return folder


def student(checkpoint: Path, device: str, *, quantise: bool = True):
    """The same adapter on both devices, as after some training."""
    model = add_adapter(load_student(checkpoint, device=device, quantise=quantise), LoraSettings(rank=8), seed=1)
    generator = torch.Generator().manual_seed(2)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data.copy_(torch.randn(parameter.shape, generator=generator) * 0.02)
    return model.train()


def distance(found: torch.Tensor, expected: torch.Tensor) -> float:
    """Relative error in norm."""
    found, expected = (tensor.detach().double().cpu() for tensor in (found, expected))
    return float((found - expected).norm() / expected.norm())


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 2e-2)])
def test_flex_attention_equals_the_dense_mask_forward_and_backward(dtype: torch.dtype, tolerance: float) -> None:
    row = pack([build_tree(example(seed)) for seed in (1, 2, 3)])
    row = padded(row, bucket(row.tokens))
    generator = torch.Generator().manual_seed(0)
    shapes = [(1, heads, row.tokens, 64) for heads in (4, 2, 2, 4)]
    query, key, value, upstream = (torch.randn(shape, generator=generator) for shape in shapes)

    def results(device: str, kind: torch.dtype, attend) -> list[torch.Tensor]:
        inputs = [tensor.to(device, kind).requires_grad_() for tensor in (query, key, value)]
        output = attend(*inputs)
        return [output, *torch.autograd.grad(output, inputs, upstream.to(device, kind))]

    mask, blocks = ancestor_mask(row.leave_T), block_mask(row.leave_T.cuda())
    exact = results(
        "cpu",
        torch.float64,
        lambda q, k, v: scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=True),
    )
    found = results(
        "cuda", dtype, lambda q, k, v: block_attention(torch.nn.Module(), q, k, v, blocks)[0].transpose(1, 2)
    )
    for name, ours, wanted in zip(("output", "query", "key", "value"), found, exact, strict=True):
        assert distance(ours, wanted) < tolerance, name


def test_nf4_on_the_gpu_is_nf4_on_the_cpu(checkpoint: Path) -> None:
    here, there = (dict(load_student(checkpoint, device=device).named_modules()) for device in ("cuda", "cpu"))
    packed = [name for name, module in here.items() if type(module).__name__ == "Linear4bit"]
    assert len(packed) == 14
    for name in packed:
        found, expected = (dequantize_bnb_weight(modules[name].weight) for modules in (here, there))
        assert distance(found, expected) < 5e-3, name  # bf16 here


@pytest.mark.parametrize("attention", sorted(ATTENTIONS))
@pytest.mark.parametrize("quantise", [True, False], ids=["nf4", "plain"])
def test_loss_and_gradients_equal_those_of_the_cpu(checkpoint: Path, attention: str, quantise: bool) -> None:
    row = pack([build_tree(example(seed)) for seed in (4, 5)])
    values, gradients = [], []
    for device, name in (("cuda", attention), ("cpu", "dense")):
        model = student(checkpoint, device, quantise=quantise)
        base = model.get_base_model()
        base.set_attn_implementation(ATTENTIONS[name])
        loss = summed_loss(base, row, head_rows=50)
        loss.backward()
        values.append(loss.item())
        gradients.append({key: p.grad for key, p in model.named_parameters() if p.requires_grad})
    assert values[0] == pytest.approx(values[1], rel=5e-3)
    found, expected = gradients
    assert found.keys() == expected.keys() and all(p.dtype == torch.float32 for p in found.values())
    whole = [torch.cat([g.detach().cpu().flatten() for g in each.values()]) for each in gradients]
    assert distance(*whole) < 5e-2


def test_a_whole_fit_follows_the_cpu(checkpoint: Path, tmp_path: Path) -> None:
    examples = [example(seed) for seed in range(6)]
    settings = replace(SETTINGS, checkpointing=True, head_rows=100, longest_first=True, row_tokens=1500)
    losses = {}
    for device in ("cuda", "cpu"):
        model = student(checkpoint, device)
        result = fit(model, examples, settings, context=2000, output_dir=tmp_path / device, seed=0, progress=None)
        assert result.device.startswith(device) and len(save_adapter(model, tmp_path / f"{device}-adapter")) == 64
        losses[device] = [entry.loss for entry in result.log]
    assert losses["cuda"] == pytest.approx(losses["cpu"], rel=2e-2) and len(losses["cpu"]) >= 3


def test_too_little_memory_is_explained(checkpoint: Path, tmp_path: Path) -> None:
    model = student(checkpoint, "cuda")
    torch.cuda.empty_cache()
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_allocated() + 2**21) / total)
    try:
        with pytest.raises(ConfigError, match="too little memory for a row of .* training.checkpointing"):
            settings = replace(SETTINGS, attention="tree")
            fit(model, [example(0)], settings, context=2000, output_dir=tmp_path, seed=0, progress=None)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
