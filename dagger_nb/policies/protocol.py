"""What a policy is that answers one state at a time: a served model, an endpoint, or the oracle in their place."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from dagger_nb.bill import Tokens
from dagger_nb.records import Action, Task, Turn
from dagger_nb.settings import EpisodeSettings

Teacher = Callable[[Task, Sequence[Turn]], Action]  # one that answers at once, as the scripted oracle does


@dataclass(frozen=True, slots=True)
class Sampling:
    """How tokens are chosen. temperature 0 is greedy; top_p keeps the smallest set of that much probability."""

    temperature: float = 0.0
    top_p: float = 1.0
    max_new_tokens: int = EpisodeSettings().max_new_tokens


@dataclass(frozen=True, slots=True)
class Answer:
    """One action and how it came about.

    `token_ids` are the ids that the model sampled, end-of-turn token included where it was reached; they are
    empty where the model has another tokenizer than the student. `logprobs` has one number a sampled token, or none.
    """

    action: Action
    token_ids: tuple[int, ...] = ()
    logprobs: tuple[float, ...] = ()
    usage: Tokens = Tokens()


class Policy(Protocol):
    """Answers a state: the task and the turns so far. Concurrent calls are independent of each other."""

    name: str  # goes into records: the version of a student, or the teacher that gave a label

    async def answer(self, task: Task, turns: Sequence[Turn], sampling: Sampling, seed: int) -> Answer:
        """The policy's next action. `seed` fixes what is sampled where the policy can honour it.

        Raises:
            PolicyError: no answer in spite of retries; the episode ends as an infrastructure failure, or the
                label is recorded as missing.
            BudgetError: the answer would overrun a hard limit; nothing was asked.
        """
