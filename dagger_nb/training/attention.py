"""Three kernels for one result: a token looks at its ancestors and itself only.

They go by the names that `training.attention` takes; transformers knows them by the values of ATTENTIONS.

* `tree` (ours): each trunk is plain causal attention, which kernels do without reading a mask, and only the
  branches, a few percent of the tokens, use one. On 2 CPU cores about half the time of the dense mask.
* `dense`: scaled_dot_product_attention with a mask [1, 1, T, T], the reference. On CPU its memory grows with T
  squared in every layer (benchmarks/head.py measures it); good up to some 4,000 tokens.
* `flex`: FlexAttention with a block mask, for long trees on a GPU. It has no backward pass on CPU; there only its
  forward pass is compared with the dense mask.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, flex_attention
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface

from dagger_nb.errors import ConfigError

TREE, DENSE, FLEX = "dagger_tree", "sdpa", "dagger_flex"
ATTENTIONS = {"tree": TREE, "dense": DENSE, "flex": FLEX}
LENGTHS = 256  # that the flex kernel may be compiled for in one process; mask.bucket makes 16 of an octave


def choose(name: str, device: torch.device) -> str:
    """transformers' name of an attention to train with on a device; "auto" is tree on a CPU and flex on a GPU.

    Raises:
        ConfigError: an unknown name, or flex on a CPU.
    """
    if name == "auto":
        name = "flex" if device.type == "cuda" else "tree"
    if name not in ATTENTIONS:
        raise ConfigError(f"attention {name!r} is unknown; choose auto or one of {', '.join(ATTENTIONS)}")
    if name == "flex" and device.type != "cuda":
        raise ConfigError("FlexAttention has no backward pass on a CPU; set training.attention to auto, tree or dense")
    return ATTENTIONS[name]


@dataclass(frozen=True, slots=True, eq=False)
class Spans:
    """Of each tree in a row: its start, the end of its trunk, its end, and what its branches may see.

    The last is a float mask [branches, tree] to add to the scores, or None where there is no branch.
    """

    trees: tuple[tuple[int, int, int, Tensor | None], ...]


def tree_attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Spans,
    scaling: float | None = None,
    dropout: float = 0.0,
    **_: Any,
) -> tuple[Tensor, None]:
    """Shapes: query [1, H, T, D], key and value [1, G, T, D]; returns [1, T, H, D]. No dropout."""
    outputs = []
    for start, trunk, stop, mask in attention_mask.trees:
        whole, stem = slice(start, stop), slice(start, trunk)
        outputs.append(_attend(query[:, :, stem], key[:, :, stem], value[:, :, stem], None, scaling))
        if mask is not None:
            outputs.append(_attend(query[:, :, trunk:stop], key[:, :, whole], value[:, :, whole], mask, scaling))
    return torch.cat(outputs, dim=2).transpose(1, 2), None


def _attend(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scaling: float | None) -> Tensor:
    """Causal where there is no mask."""
    mask = mask if mask is None else mask.to(query.dtype)
    if mask is not None and query.is_cuda:  # no fused kernel there takes a mask and shared key heads together
        key, value = (tensor.repeat_interleave(query.shape[1] // key.shape[1], dim=1) for tensor in (key, value))
    return scaled_dot_product_attention(
        query, key, value, attn_mask=mask, is_causal=mask is None, scale=scaling, enable_gqa=True
    )


def block_attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: BlockMask,
    scaling: float | None = None,
    dropout: float = 0.0,
    **_: Any,
) -> tuple[Tensor, None]:
    """Shapes as in tree_attention. Compiled for each length on a GPU, unfused on a CPU."""
    if query.is_cuda:
        with torch._dynamo.config.patch(recompile_limit=LENGTHS):
            output = _compiled()(query, key, value, block_mask=attention_mask, scale=scaling, enable_gqa=True)
    else:
        output = flex_attention(query, key, value, block_mask=attention_mask, scale=scaling, enable_gqa=True)
    return output.transpose(1, 2), None


@functools.cache
def _compiled() -> Any:
    """With `fullgraph` a kernel that cannot be had is an error; without, all T x T scores would be formed."""
    return torch.compile(flex_attention, dynamic=False, fullgraph=True)


AttentionInterface.register(TREE, tree_attention)
AttentionInterface.register(FLEX, block_attention)
