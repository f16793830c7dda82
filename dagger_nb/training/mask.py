"""Packed trees, and attention in which a token looks at its ancestors only.

Three ways to the same result, each chosen by the name that transformers knows it by:

* `dagger_tree` (ours): each trunk is plain causal attention, which kernels do without reading a mask, and only
  the branches, a few percent of the tokens, use one. On 2 CPU cores about half the time of the dense mask.
* `sdpa` with the dense mask [1, 1, T, T]: the reference; memory grows with T squared.
* `flex_attention` with a block mask: for long trees on a GPU. It has no backward on CPU.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, create_block_mask
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface

from dagger_nb.errors import ConfigError
from dagger_nb.training.tree import TokenTree

TREE = "dagger_tree"
ATTENTIONS = (TREE, "sdpa", "flex_attention")


@dataclass(frozen=True, slots=True, eq=False)
class Row:
    """Several trees side by side as one batch row; `leave`, `at` and `spans` count from the row's start.

    Shapes: T tokens, P predictions; `ids_1T` and `positions_1T` carry a batch axis of 1.
    """

    ids_1T: Tensor
    positions_1T: Tensor
    leave_T: Tensor
    at_P: Tensor
    target_P: Tensor
    weight_P: Tensor
    spans: tuple[tuple[int, int, int], ...]  # of each tree: start, end of the trunk, end

    @property
    def tokens(self) -> int:
        return self.ids_1T.shape[1]

    def to(self, device: torch.device | str) -> Row:
        tensors = ("ids_1T", "positions_1T", "leave_T", "at_P", "target_P", "weight_P")
        return replace(self, **{name: getattr(self, name).to(device) for name in tensors})


def pack(trees: Sequence[TokenTree]) -> Row:
    """Trees one after the other. None sees another: no subtree ends beyond its own tree."""
    starts = np.concatenate([[0], np.cumsum([tree.tokens for tree in trees])[:-1]])
    shifted = list(zip(trees, (int(start) for start in starts), strict=True))
    return Row(
        ids_1T=_join([tree.ids_T for tree in trees])[None],
        positions_1T=_join([tree.positions_T for tree in trees])[None],
        leave_T=_join([tree.leave_T + start for tree, start in shifted]),
        at_P=_join([tree.at_P + start for tree, start in shifted]),
        target_P=_join([tree.target_P for tree in trees]),
        weight_P=_join([tree.weight_P for tree in trees]),
        spans=tuple((start, start + tree.trunk, start + tree.tokens) for tree, start in shifted),
    )


def ancestor_mask(leave_T: Tensor, queries: slice = slice(None)) -> Tensor:
    """[queries, T], true where the key is an ancestor of the query or the query itself."""
    place_T = torch.arange(len(leave_T), device=leave_T.device)
    query = place_T[queries, None]
    return (place_T <= query) & (query < leave_T)


def mask_mod(leave_T: Tensor) -> Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]:
    """The same predicate in the form that FlexAttention traces."""

    def is_ancestor(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return (key <= query) & (query < leave_T[key])

    return is_ancestor


def block_mask(leave_T: Tensor) -> BlockMask:
    """FlexAttention's sparse mask; blocks without an ancestor pair are never computed."""
    return create_block_mask(mask_mod(leave_T), None, None, len(leave_T), len(leave_T), device=leave_T.device)


def attention_argument(row: Row, attention: str) -> Any:
    """What the model must be given as its attention mask for one of ATTENTIONS."""
    if attention == TREE:
        return _Spans(row)
    if attention == "sdpa":
        return ancestor_mask(row.leave_T)[None, None]
    if attention == "flex_attention":
        return block_mask(row.leave_T)
    raise ConfigError(f"attention {attention!r} is unknown; choose one of {', '.join(ATTENTIONS)}")


class _Spans:
    """Trunk and branches of each tree, and what the branches may see: a float mask [branches, tree] or None."""

    def __init__(self, row: Row) -> None:
        self.trees = [(*span, _branch_mask(row.leave_T[span[0] : span[2]] - span[0], span)) for span in row.spans]


def _branch_mask(leave_T: Tensor, span: tuple[int, int, int]) -> Tensor | None:
    start, trunk, stop = span
    if trunk == stop:
        return None
    seen = ancestor_mask(leave_T, slice(trunk - start, None))
    return torch.zeros(seen.shape, device=seen.device).masked_fill_(~seen, float("-inf"))


def tree_attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: _Spans,
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
    return scaled_dot_product_attention(
        query, key, value, attn_mask=mask, is_causal=mask is None, scale=scaling, enable_gqa=True
    )


def _join(arrays: Sequence[np.ndarray]) -> Tensor:
    return torch.from_numpy(np.concatenate(arrays))


AttentionInterface.register(TREE, tree_attention)
