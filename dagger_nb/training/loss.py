"""The paper's loss on packed trees.

Eq. 12-13: L_i = E_{s ~ d_i}[ -sum_j log pi_theta(a~_j | s, a~_{<j}) ], token cross-entropy on the teacher's
action, summed over the action's tokens, without temperature. Two normalisations, by name:

* `action`: sum over the tokens of an action, mean over the actions of an optimiser step (Eq. 12-13 as written);
* `token`: mean over the label tokens of an optimiser step (what transformers' Trainer does with
  `num_items_in_batch`): an action counts by its length.

Weights multiply the terms of the sum and leave the divisor alone, so that negative weights (advantages) work.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel

from dagger_nb.errors import ConfigError
from dagger_nb.training.attention import FLEX
from dagger_nb.training.mask import Row, attention_argument, bucket, padded
from dagger_nb.training.tree import TokenTree

NORMALISATIONS = ("token", "action")


def divisor(trees: Sequence[TokenTree], normalisation: str) -> int:
    """What the sum over an optimiser step's trees is divided by: its label tokens, or its labelled actions."""
    if normalisation not in NORMALISATIONS:
        raise ConfigError(f"normalisation {normalisation!r} is unknown; choose one of {', '.join(NORMALISATIONS)}")
    return sum(len(tree.target_P) if normalisation == "token" else tree.actions for tree in trees)


def summed_loss(model: PreTrainedModel, row: Row, *, head_rows: int) -> Tensor:
    """Scalar: sum of weight * -log p(target) over the row's predictions, in nats.

    `model` is a causal language model (adapters inside) whose attention is one of attention.ATTENTIONS. Logits
    exist only where something is predicted, and for at most `head_rows` predictions at once. The row goes to the
    model's device; products are in bf16 on a GPU (softmax, loss and sums in fp32), and in fp32 on a CPU.
    """
    attention = model.config._attn_implementation
    row = (padded(row, bucket(row.tokens)) if attention == FLEX else row).to(model.device)
    with torch.autocast(model.device.type, torch.bfloat16, enabled=model.device.type == "cuda"):
        hidden = model.get_decoder()(
            input_ids=row.ids_1T,
            position_ids=row.positions_1T,
            attention_mask={"full_attention": attention_argument(row, attention)},
            use_cache=False,
        ).last_hidden_state[0]
        return _head_loss(model.get_output_embeddings(), hidden[row.at_P], row, head_rows)


def _head_loss(head: nn.Module, hidden_PC: Tensor, row: Row, head_rows: int) -> Tensor:
    pieces = zip(*(tensor.split(head_rows) for tensor in (hidden_PC, row.target_P, row.weight_P)), strict=True)
    if len(hidden_PC) <= head_rows:
        return _weighted(head, hidden_PC, row.target_P, row.weight_P)
    # The backward pass computes each piece's logits again instead of keeping them.
    return torch.stack([checkpoint(_weighted, head, *piece, use_reentrant=False) for piece in pieces]).sum()


def _weighted(head: nn.Module, hidden_PC: Tensor, target_P: Tensor, weight_P: Tensor) -> Tensor:
    nll_P = cross_entropy(head(hidden_PC).float(), target_P, reduction="none")
    return (nll_P * weight_P).sum()
