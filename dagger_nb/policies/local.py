"""A transformers model that acts in many episodes at once, its KV cache kept from turn to turn.

Nothing that a model has read is read again: a slot's cache grows by what its episode appends, and can be
rewound. All slots of a cohort decode in one batch whose shape depends on the cohort alone, so that the same
cohort gives the same tokens, bit for bit (same CPU type and thread count).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface

from dagger_nb.errors import BudgetError
from dagger_nb.policies.protocol import Sampling

ATTENTION = "dagger_slots"


def slot_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor,
    scaling: float | None = None,
    dropout: float = 0.0,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """Grouped-query attention that never repeats keys: the heads of a group become rows of one query.

    Shapes: query [B, H, L, D], key and value [B, G, T, D], mask [B, 1, L, T] (true where visible).
    """
    batch, heads, length, width = query.shape
    groups = key.shape[1]
    rows = query.reshape(batch, groups, heads // groups * length, width)
    mask = attention_mask.repeat(1, 1, heads // groups, 1)
    out = scaled_dot_product_attention(rows, key, value, attn_mask=mask, scale=scaling)
    return out.reshape(batch, heads, length, width).transpose(1, 2), None


AttentionInterface.register(ATTENTION, slot_attention)


class _SlotCache:
    """Keys and values of every slot, [slots, groups, capacity, width] a layer; what `past_key_values` must do."""

    def __init__(self, config: Any, slots: int) -> None:
        self.shape = (slots, config.num_key_value_heads, 0, config.head_dim)
        self.layers: list[list[torch.Tensor]] = [
            [torch.zeros(self.shape), torch.zeros(self.shape)] for _ in range(config.num_hidden_layers)
        ]
        self.rows: torch.Tensor | None = None  # the slots of the current forward pass; None for all of them
        self.columns = torch.zeros(0)  # [rows, L]: where the new keys go
        self.visible = 0  # columns that the current forward pass may look at

    def reserve(self, capacity: int) -> None:
        """Room for `capacity` tokens a slot; grows by halves so that growing is rare."""
        have = self.layers[0][0].shape[2]
        if have >= capacity:
            return
        extra = (*self.shape[:2], max(capacity, have * 3 // 2) - have, self.shape[3])
        for layer in self.layers:
            layer[:] = [torch.cat([tensor, torch.zeros(extra)], dim=2) for tensor in layer]

    def update(self, key: torch.Tensor, value: torch.Tensor, layer: int, *_: Any) -> tuple[torch.Tensor, torch.Tensor]:
        return tuple(self._write(store, new) for store, new in zip(self.layers[layer], (key, value), strict=True))

    def _write(self, store: torch.Tensor, new: torch.Tensor) -> torch.Tensor:
        rows = torch.arange(store.shape[0]) if self.rows is None else self.rows
        store[rows[:, None], :, self.columns] = new.transpose(1, 2)
        seen = store[:, :, : self.visible]
        return seen if self.rows is None else seen[rows]


class Cohort:
    """`slots` episodes that share one model and one KV cache.

    `model` is a causal language model in evaluation mode whose attention implementation is ATTENTION.
    `limit` is the context window, tokens.
    """

    def __init__(self, model: Any, slots: int, *, end_id: int, limit: int) -> None:
        self.model, self.end_id, self.limit = model, end_id, limit
        self.tokens: list[list[int]] = [[] for _ in range(slots)]
        self._held: list[list[int]] = [[] for _ in range(slots)]  # the tokens whose keys the cache holds
        self._valid = [0] * slots  # how many of the held tokens agree with `tokens`, from the start
        self._cache = _SlotCache(model.config, slots)

    def extend(self, slot: int, ids: Sequence[int]) -> None:
        """Append what the episode said or was told. Raises BudgetError beyond the context window."""
        if len(self.tokens[slot]) + len(ids) > self.limit:
            have = len(self.tokens[slot])
            raise BudgetError(
                f"slot {slot}: {have} + {len(ids)} tokens exceed the context of {self.limit}; raise episode.context"
            )
        self.tokens[slot].extend(ids)
        self._revalidate(slot)

    def rewind(self, slot: int, length: int) -> None:
        """Forget everything after the first `length` tokens; if they are said again their keys are still there."""
        del self.tokens[slot][length:]
        self._valid[slot] = min(self._valid[slot], length)

    def _revalidate(self, slot: int) -> None:
        held, tokens, valid = self._held[slot], self.tokens[slot], self._valid[slot]
        while valid < min(len(held), len(tokens)) and held[valid] == tokens[valid]:
            valid += 1
        self._valid[slot] = valid

    @torch.inference_mode()
    def generate(
        self, slots: Sequence[int], sampling: Sampling, draws: Mapping[int, np.random.Generator]
    ) -> dict[int, tuple[int, ...]]:
        """Let the model speak in each of `slots`; returns the sampled ids, end-of-turn token included if reached.

        `draws` holds each slot's own source of chance (unused when greedy), so that one slot's luck never
        depends on another's. The sampled ids are appended to the slots.
        """
        said: dict[int, list[int]] = {slot: [] for slot in slots}
        active = sorted(slots)
        while active:
            chosen = _choose(self._next_logits(active), sampling, [draws.get(slot) for slot in active])
            for slot, token in zip(active, chosen, strict=True):
                said[slot].append(token)
                self.tokens[slot].append(token)
            active = [slot for slot in active if self._goes_on(slot, said[slot], sampling)]
        return {slot: tuple(ids) for slot, ids in said.items()}

    def _goes_on(self, slot: int, said: Sequence[int], sampling: Sampling) -> bool:
        room = len(said) < sampling.max_new_tokens and len(self.tokens[slot]) < self.limit
        return room and said[-1] != self.end_id

    def _next_logits(self, slots: Sequence[int]) -> torch.Tensor:
        """[len(slots), vocabulary]: feeds each slot's tokens that are not cached yet (the last one always is fed)."""
        starts = [min(self._valid[slot], len(self.tokens[slot]) - 1) for slot in slots]
        pending = [self.tokens[slot][start:] for slot, start in zip(slots, starts, strict=True)]
        width = max(map(len, pending))
        ids = torch.tensor([piece + [0] * (width - len(piece)) for piece in pending])
        columns = torch.tensor(starts)[:, None] + torch.arange(width)
        hidden = self._forward(slots, ids, columns)
        last = torch.tensor([len(piece) - 1 for piece in pending])
        for slot, start, piece in zip(slots, starts, pending, strict=True):
            self._held[slot][start:] = piece
            self._valid[slot] = len(self._held[slot])
        return self.model.lm_head(hidden[torch.arange(len(slots)), last])

    def _forward(self, slots: Sequence[int], ids: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
        cache = self._cache
        cache.visible = int(columns.max()) + 1
        cache.reserve(cache.visible)
        cache.rows = None if len(slots) == cache.shape[0] else torch.tensor(slots)
        cache.columns = columns
        mask = torch.arange(cache.visible)[None, None, None, :] <= columns[:, None, :, None]
        return self.model.model(
            input_ids=ids,
            position_ids=columns,
            attention_mask={"full_attention": mask},
            past_key_values=cache,
            use_cache=True,
        ).last_hidden_state


def _choose(logits: torch.Tensor, sampling: Sampling, draws: Sequence[np.random.Generator | None]) -> list[int]:
    """One token a row: the most likely one, or by inverse transform over the top-p set, most likely first."""
    if sampling.temperature == 0:
        return logits.argmax(dim=-1).tolist()
    probabilities = torch.softmax(logits.double() / sampling.temperature, dim=-1)
    ordered, tokens = probabilities.sort(dim=-1, descending=True, stable=True)
    below = ordered.cumsum(dim=-1) - ordered
    kept = torch.where(below < sampling.top_p, ordered, 0.0).cumsum(dim=-1)
    uniform = torch.tensor([rng.random() for rng in draws], dtype=torch.float64)[:, None]
    place = (kept <= uniform * kept[:, -1:]).sum(dim=-1).clamp(max=logits.shape[-1] - 1)
    return tokens[torch.arange(len(place)), place].tolist()
