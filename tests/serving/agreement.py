"""Where two greedy decodings part, and how near the two best tokens are there."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from dagger_nb.records import Task, Turn
from dagger_nb.rendering import Renderer
from dagger_nb.students import LocalStudent

TIE = 1e-3  # nats between the two best tokens, below which greedy decoding may go either way


@dataclass(frozen=True)
class Difference:
    """The first token in which an answer in the state before `turn` differs from what was executed there.

    `gap` is the difference of the local model's two best log-probabilities, nats.
    """

    turn: int
    position: int
    gap: float


def same_words(executed: Sequence[int], said: Sequence[int]) -> bool:
    """Whether two answers are equal, but for an end-of-turn token that was added to one that ran out of room."""
    shorter = min(len(executed), len(said))
    return tuple(executed[:shorter]) == tuple(said[:shorter]) and abs(len(executed) - len(said)) <= 1


@torch.inference_mode()
def difference(
    local: LocalStudent, renderer: Renderer, task: Task, turns: Sequence[Turn], index: int, said: Sequence[int]
) -> Difference:
    """Between turn `index` of the local model's episode and what was said in its place."""
    executed = turns[index].token_ids
    position = next(n for n, (a, b) in enumerate(zip(executed, said, strict=False)) if a != b)
    session = local.session(1, 1 << 16)
    session.extend(0, renderer.prompt_ids(task))
    for turn in turns[:index]:
        session.extend(0, (*turn.token_ids, *renderer.observation_ids(turn.observation)))
    session.extend(0, executed[:position])
    logits = session._next_logits([0])[0]
    best = torch.log_softmax(logits.double(), dim=-1).topk(2).values
    return Difference(index, position, float(best[0] - best[1]))
