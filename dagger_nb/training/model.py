"""The student: an NF4 base (QLoRA) with a low-rank adapter on every linear layer.

Training reads the 4-bit weights as they are, which costs a few percent on a CPU (benchmarks/tree.py); inference,
a token at a time, is done by the unpacked and merged model (`merged_full_precision`), which has the same logits.
"""

from __future__ import annotations

import copy
import gc
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from bitsandbytes.nn import Linear4bit
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora import LoraLayer
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, PreTrainedModel
from transformers.integrations.bitsandbytes import dequantize_bnb_weight
from transformers.utils import logging

from dagger_nb.errors import DataError
from dagger_nb.settings import LoraSettings
from dagger_nb.store import file_sha256

WEIGHTS = "adapter_model.safetensors"


def load_student(
    path_or_id: str | Path,
    *,
    quantise: bool = True,
    double_quant: bool = True,
    dtype: torch.dtype | None = None,
    device: str = "cpu",
    revision: str = "",
) -> PreTrainedModel:
    """A frozen base for an adapter, NF4 unless `quantise` is false; `revision` is of a hub id, empty for the newest.

    `dtype` is that of weights and products, and by itself bf16 on a GPU and fp32 on a CPU, where bf16 products are
    some sixty times slower unless it has AMX or AVX512-bf16. An adapter is fp32 on both.
    """
    dtype = dtype or (torch.bfloat16 if device.startswith("cuda") else torch.float32)
    nf4 = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_compute_dtype=dtype,
        bnb_4bit_use_double_quant=double_quant,
    )
    with no_progress_bar():
        model = AutoModelForCausalLM.from_pretrained(
            path_or_id,
            revision=revision or "main",
            dtype=dtype,
            device_map=device,
            quantization_config=nf4 if quantise else None,
        )
    for module in model.modules():
        if isinstance(module, Linear4bit):
            # bitsandbytes would compute in bf16 in evaluation mode where the CPU has AVX512-bf16.
            module.support_avx512bf16_for_cpu = False
    return model.requires_grad_(False)


def free_accelerator() -> None:
    """Give back what models that nobody refers to hold: those in cycles, as the trainer's are, and the allocator's."""
    gc.collect()
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()


@contextmanager
def no_progress_bar() -> Iterator[None]:
    """Bars break saved notebooks."""
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def add_adapter(model: PreTrainedModel, settings: LoraSettings, *, seed: int) -> PeftModel:
    """A fresh adapter on every linear layer but the head; `seed` decides the A matrices, B is zero."""
    config = LoraConfig(
        task_type="CAUSAL_LM",
        r=settings.rank,
        lora_alpha=settings.alpha,
        lora_dropout=0.0,
        target_modules="all-linear",
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return get_peft_model(model, config)


def save_adapter(model: PeftModel, folder: Path) -> str:
    """Write the adapter into `folder`; returns its digest."""
    for config in model.peft_config.values():
        config.target_modules = sorted(config.target_modules)  # a set would be written in an order of chance
    model.save_pretrained(folder, save_embedding_layers=False)
    return adapter_digest(folder)


def load_adapter(model: PreTrainedModel, folder: Path, *, trainable: bool = False) -> PeftModel:
    """The base with a saved adapter on it.

    Raises:
        DataError: there is no adapter in the folder, or it belongs to a base of another shape.
    """
    adapter_digest(folder)
    try:
        return PeftModel.from_pretrained(model, folder, is_trainable=trainable)
    except RuntimeError as error:
        raise DataError(f"the adapter in {folder} does not fit this base; load the base it was trained on") from error


def adapter_digest(folder: Path) -> str:
    """SHA-256 (hex) of a saved adapter's weights: the version name of a student."""
    file = Path(folder) / WEIGHTS
    if not file.is_file():
        raise DataError(f"no adapter in {folder} ({WEIGHTS} is missing); train it first")
    return file_sha256(file)


def merged_full_precision(model: PeftModel) -> PreTrainedModel:
    """A plain model that equals base + adapter to float error: the fast form for inference on a CPU.

    The base is the unpacked NF4 one, not the checkpoint before quantisation. `model` is left as it was.
    """
    plain = copy.deepcopy(model.get_base_model())
    for name, module in list(plain.named_modules()):
        if isinstance(module, LoraLayer):
            plain.set_submodule(name, _merged(module))
    if getattr(plain, "hf_quantizer", None) is not None:
        plain.hf_quantizer.remove_quantization_config(plain)
    return plain.requires_grad_(False).eval()


@torch.no_grad()
def _merged(layer: LoraLayer) -> torch.nn.Linear:
    base = layer.get_base_layer()
    weight = dequantize_bnb_weight(base.weight) + layer.get_delta_weight(*layer.active_adapters)
    linear = torch.nn.Linear(*reversed(weight.shape), bias=base.bias is not None, device="meta")
    linear.weight, linear.bias = torch.nn.Parameter(weight), base.bias
    return linear
