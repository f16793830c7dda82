"""Packed trees, and which token may see which, in the form that each attention wants it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask
from torch.nn.functional import pad

from dagger_nb.training.attention import FLEX, TREE, Spans
from dagger_nb.training.tree import TokenTree

BLOCK = 128  # tokens a side of FlexAttention's blocks


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


def bucket(tokens: int) -> int:
    """The next of 16 lengths an octave, all of whole blocks, so that kernels are compiled for few lengths.

    >>> bucket(1000), bucket(5000), bucket(65536), bucket(66000)
    (1024, 5120, 65536, 69632)
    """
    step = max(BLOCK, 2 ** (tokens - 1).bit_length() // 32)
    return -(-tokens // step) * step


def padded(row: Row, length: int) -> Row:
    """The row with one more tree behind it, that fills it to `length` tokens and predicts nothing."""
    start, more = row.tokens, length - row.tokens
    if not more:
        return row
    positions_1M = torch.arange(more, device=row.leave_T.device)[None]
    return replace(
        row,
        ids_1T=pad(row.ids_1T, (0, more)),
        positions_1T=torch.cat([row.positions_1T, positions_1M], dim=1),
        leave_T=pad(row.leave_T, (0, more), value=length),
        spans=(*row.spans, (start, length, length)),
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
    """FlexAttention's sparse mask; blocks without an ancestor pair are never computed.

    It is found from the ends of the subtrees alone, so that no T x T mask is formed (4 GiB at 64K tokens): of a
    block of queries and an earlier block of keys some pair is visible where the last subtree of those keys ends
    beyond the first query, and every pair where the first to end does so beyond the last query.
    """
    tokens = len(leave_T)
    ends = pad(leave_T, (0, -tokens % BLOCK)).view(-1, BLOCK)
    first = torch.arange(len(ends), device=leave_T.device)[:, None] * BLOCK
    earlier = first.T < first
    full = earlier & (ends.amin(1) >= first + BLOCK)
    some = (first.T == first) | earlier & (ends.amax(1) > first)
    return BlockMask.from_kv_blocks(
        *_ordered(some & ~full),
        *_ordered(full),
        BLOCK_SIZE=BLOCK,
        mask_mod=mask_mod(leave_T.int()),
        seq_lengths=(tokens, tokens),
    )


def _ordered(blocks: Tensor) -> tuple[Tensor, Tensor]:
    """Of each row of blocks how many are set, [1, 1, B], and the places of those first, [1, 1, B, B]."""
    places = blocks.int().argsort(dim=1, descending=True, stable=True)
    return blocks.sum(1, dtype=torch.int32)[None, None], places.int()[None, None]


def attention_argument(row: Row, attention: str) -> Spans | BlockMask | Tensor:
    """What the model must be given as its attention mask; `attention` is a value of attention.ATTENTIONS."""
    if attention == TREE:
        return Spans(tuple((*span, _branch_mask(row.leave_T, span)) for span in row.spans))
    if attention == FLEX:
        return block_mask(row.leave_T)
    return ancestor_mask(row.leave_T)[None, None]


def _branch_mask(leave_T: Tensor, span: tuple[int, int, int]) -> Tensor | None:
    start, trunk, stop = span
    if trunk == stop:
        return None
    seen = ancestor_mask(leave_T[start:stop] - start, slice(trunk - start, None))
    return torch.zeros(seen.shape, device=seen.device).masked_fill_(~seen, float("-inf"))


def _join(arrays: Sequence[np.ndarray]) -> Tensor:
    return torch.from_numpy(np.concatenate(arrays))
