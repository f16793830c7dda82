"""Which examples make an optimiser step, in which order, and which of them share a forward pass."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from torch.utils.data import Dataset

from dagger_nb.training.loss import divisor
from dagger_nb.training.mask import pack
from dagger_nb.training.tree import TokenTree


def plan_steps(
    sizes: Sequence[int], *, passes: int, batch_tokens: int, row_tokens: int, longest_first: bool, seed: int
) -> list[tuple[int, ...]]:
    """Indices of the examples of each optimiser step, for all passes one after the other.

    Each pass shuffles anew (the only chance here, from `seed` and the number of the pass), then fills steps up
    to `batch_tokens` tokens; an example that is longer is a step of its own. `longest_first` moves the step with
    the longest row (`row_tokens` at most, or one example) to the front of the first pass, so that a lack of memory
    shows at once.
    """
    steps: list[tuple[int, ...]] = []
    for number in range(passes):
        order = np.random.default_rng([seed, number]).permutation(len(sizes)).tolist()
        groups = fill(order, sizes, batch_tokens)
        if longest_first and number == 0:
            longest = max(groups, key=lambda group: _longest_row(group, sizes, row_tokens))
            groups.sort(key=lambda group: group != longest)
        steps.extend(groups)
    return steps


def _longest_row(group: Sequence[int], sizes: Sequence[int], row_tokens: int) -> int:
    return max(sum(sizes[index] for index in row) for row in fill(group, sizes, row_tokens))


def fill(order: Iterable[int], sizes: Sequence[int], limit: int) -> list[tuple[int, ...]]:
    """Cut `order` into groups of at most `limit` tokens; what is longer alone stands alone.

    >>> fill([0, 1, 2, 3], [3, 2, 9, 1], 5)
    [(0, 1), (2,), (3,)]
    """
    groups: list[list[int]] = []
    room = -1
    for index in order:
        if sizes[index] > room:
            groups.append([])
            room = limit
        groups[-1].append(index)
        room -= sizes[index]
    return [tuple(group) for group in groups]


class StepData(Dataset):
    """One item is one optimiser step: its packed rows, and what the sum of their losses is divided by."""

    def __init__(
        self, trees: Sequence[TokenTree], steps: Sequence[tuple[int, ...]], *, row_tokens: int, normalisation: str
    ) -> None:
        self.trees, self.steps = trees, steps
        self._row_tokens, self._normalisation = row_tokens, normalisation

    def __len__(self) -> int:
        return len(self.steps)

    def __getitem__(self, step: int) -> dict[str, Any]:
        trees = [self.trees[index] for index in self.steps[step]]
        groups = fill(range(len(trees)), [tree.tokens for tree in trees], self._row_tokens)
        rows = [pack([trees[index] for index in group]) for group in groups]
        return {"rows": rows, "divisor": divisor(trees, self._normalisation)}


def only_item(items: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The collator: a loader's batch is one step already."""
    (item,) = items
    return item
