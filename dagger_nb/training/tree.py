"""A labelled trajectory as one prefix tree of tokens.

The executed turns are the trunk; a label adds to the tree what it does not share with it. Every token stands
once, at the position (RoPE) that is its depth, and may look at its ancestors only, so that each label is
predicted exactly as it would be in a sequence of its own (PEERS.md: up to M+1 sequences, each with its prefix).

The tokens lie in depth-first order with the trunk first. Hence token k is an ancestor of token q, or q itself,
just when `k <= q < leave[k]`, where `leave[k]` is the end of k's subtree: one number a token is the whole mask.

Shapes: T tokens of a tree, P predictions. A prediction is a triple: after token `at`, the next one should be
`target`, with a weight; several may stand at one token, as where label and executed action part.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from dagger_nb.errors import DataError
from dagger_nb.records import Label


@dataclass(frozen=True, slots=True)
class Segments:
    """An episode as token ids: the prompt, then for each turn the action and what follows it.

    The prompt and every observation end with the generation prompt; an action ends with the end-of-turn token.
    """

    prompt_ids: tuple[int, ...]
    turns: tuple[tuple[tuple[int, ...], tuple[int, ...]], ...]  # (action_ids, observation_ids)

    def state_length(self, turn: int) -> int:
        """Tokens before the action of a turn."""
        return len(self.prompt_ids) + sum(len(action) + len(seen) for action, seen in self.turns[:turn])


@dataclass(frozen=True, slots=True)
class Target:
    """What should have been said at the state of a turn. `lesson`: the label differs from what was executed."""

    turn: int
    ids: tuple[int, ...]
    weight: float = 1.0
    lesson: bool = False


@dataclass(frozen=True, slots=True)
class Example:
    """One trajectory with its labels; a turn may have none, one or several."""

    segments: Segments
    targets: tuple[Target, ...]

    @property
    def lessons(self) -> int:
        """Labels that differ from what was executed."""
        return sum(target.lesson for target in self.targets)


@dataclass(frozen=True, slots=True, eq=False)
class TokenTree:
    """One example ready to pack. The first `trunk` tokens are a path from the root; the rest are branches."""

    ids_T: np.ndarray
    positions_T: np.ndarray
    leave_T: np.ndarray
    trunk: int
    at_P: np.ndarray
    target_P: np.ndarray
    weight_P: np.ndarray  # float32
    actions: int  # labelled actions that the predictions spell

    @property
    def tokens(self) -> int:
        return len(self.ids_T)


def make_example(segments: Segments, labels: Iterable[Label], *, lesson_weight: float = 1.0) -> Example:
    """A trajectory's labels as targets; those that differ from what was executed weigh `lesson_weight`."""
    targets = (
        Target(label.turn, label.token_ids, lesson_weight if label.lesson else 1.0, label.lesson) for label in labels
    )
    return Example(segments, tuple(targets))


def drop_overlong(example: Example, context: int) -> tuple[Example, int]:
    """The example without the labels that end beyond `context` tokens, and how many those were."""
    kept = tuple(target for target in example.targets if _end(example, target) <= context)
    return replace(example, targets=kept), len(example.targets) - len(kept)


def refuse_overlong(example: Example, context: int) -> None:
    """Raise DataError if a label ends beyond `context` tokens: a label is never cut."""
    for target in example.targets:
        if _end(example, target) > context:
            raise DataError(
                f"the label of turn {target.turn} ends at token {_end(example, target)}, beyond the context of "
                f"{context}; raise the context, or drop such labels (overlong='drop', counted)"
            )


def build_tree(example: Example) -> TokenTree:
    """The example's prefix tree. Labels of weight 0 and whatever follows the last labelled state are left out.

    Raises:
        DataError: an empty prompt, action or label, a label of a turn that does not exist, or no label at all.
    """
    targets = _usable(example)
    trie = _Trie()
    states = _insert_trunk(trie, example.segments, max(target.turn for target in targets))
    predictions = [_insert_label(trie, states[target.turn], target) for target in targets]
    ids, positions, leave, place = trie.arrays()
    at, target, weight = (np.concatenate(column) for column in zip(*predictions, strict=True))
    trunk = _first_path(leave)
    return TokenTree(ids, positions, leave, trunk, place[at], target, weight.astype(np.float32), len(targets))


def tree_tokens(example: Example) -> int:
    """Tokens that the example costs as a tree."""
    return build_tree(example).tokens


def sequence_tokens(example: Example) -> int:
    """Tokens that it would cost as one sequence a label, each with its prefix (the last token is never fed)."""
    return sum(build_tree(single).tokens for single in one_by_one(example))


def one_by_one(example: Example) -> Iterator[Example]:
    """The same labels as one example each: the form that the tree must equal."""
    return (replace(example, targets=(target,)) for target in _usable(example))


def as_executed(example: Example) -> Example:
    """The plain trajectory: what was executed is its own label at every labelled turn."""
    turns = sorted({target.turn for target in _usable(example)})
    return replace(example, targets=tuple(Target(turn, example.segments.turns[turn][0]) for turn in turns))


def _end(example: Example, target: Target) -> int:
    return example.segments.state_length(target.turn) + len(target.ids)


def _usable(example: Example) -> list[Target]:
    """The labels that weigh something, after a look at the whole example."""
    segments = example.segments
    if not segments.prompt_ids or not all(action for action, _ in segments.turns):
        raise DataError("an example has an empty prompt or action; render the trajectory again")
    for target in example.targets:
        if not 0 <= target.turn < len(segments.turns) or not target.ids:
            raise DataError(
                f"the label of turn {target.turn} is empty or outside the {len(segments.turns)} turns of its "
                "trajectory; labels and trajectory are not of the same episode"
            )
    targets = [target for target in example.targets if target.weight]
    if not targets:
        raise DataError("an example has no label that weighs anything; leave it out")
    return targets


def _insert_trunk(trie: _Trie, segments: Segments, last: int) -> list[int]:
    """Insert everything up to the state of turn `last`; returns the last node of each turn's state."""
    node = trie.insert(_Trie.ROOT, segments.prompt_ids)[-1]
    states = [node]
    for action, seen in segments.turns[:last]:
        node = trie.insert(node, action + seen)[-1]
        states.append(node)
    return states


def _insert_label(trie: _Trie, state: int, target: Target) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Nodes to predict at, targets and weights; the label's last token is predicted but never read."""
    nodes = [state, *trie.insert(state, target.ids[:-1])]
    return np.array(nodes), np.array(target.ids), np.full(len(nodes), target.weight)


def _first_path(leave_T: np.ndarray) -> int:
    """Length of the path that starts at the root and always takes the first child."""
    inner = leave_T > np.arange(len(leave_T)) + 1
    return int(np.argmin(inner)) + 1


class _Trie:
    """Tokens by (parent, token); parents come before their children."""

    ROOT = -1

    def __init__(self) -> None:
        self._nodes: dict[tuple[int, int], int] = {}

    def insert(self, parent: int, ids: Sequence[int]) -> list[int]:
        """Walk from `parent` along `ids`, adding what is missing; returns the nodes on the way."""
        path = []
        for token in ids:
            parent = self._nodes.setdefault((parent, token), len(self._nodes))
            path.append(parent)
        return path

    def arrays(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """ids, depths and subtree ends in depth-first order (children by age), and each node's place in it."""
        parents, ids = zip(*self._nodes, strict=True)
        size = [1] * len(ids)
        for node in range(len(ids) - 1, 0, -1):
            size[parents[node]] += size[node]
        place, depth, free = [0], [0], [1]  # free: the next free place below each node
        for node in range(1, len(ids)):
            parent = parents[node]
            place.append(free[parent])
            depth.append(depth[parent] + 1)
            free.append(free[parent] + 1)
            free[parent] += size[node]
        order = np.argsort(place)
        ids_N, depth_N, place_N, size_N = (np.array(column, dtype=np.int64) for column in (ids, depth, place, size))
        return ids_N[order], depth_N[order], (place_N + size_N)[order], place_N
