"""The splits: what each holds and the seed that all of its tasks come from."""

from __future__ import annotations

from dataclasses import dataclass

from dagger_nb.errors import ConfigError

KINDS = (
    "operator", "comparison", "constant", "off_by_one", "variable", "swapped_arguments", "missing_return",
    "wrong_import", "wrong_call", "method", "dict_key", "start_value",
)  # fmt: skip
HELD_OUT_KINDS = ("boolean", "min_max")


@dataclass(frozen=True, slots=True)
class SplitSpec:
    """One split. Task `index` is drawn from `random.Random(f'{seed}/{index}')` and nothing else."""

    name: str
    seed: str
    bugs: tuple[int, int]  # fewest and most
    kinds: tuple[str, ...]
    size: int | None  # None: unlimited
    modules: tuple[int, int] = (3, 4)
    must_kinds: tuple[str, ...] = ()  # at least one bug is of one of these

    def check(self, index: int) -> None:
        """Raises ConfigError when the split has no such index."""
        if index < 0 or (self.size is not None and index >= self.size):
            last = "any number from 0" if self.size is None else f"0 to {self.size - 1}"
            raise ConfigError(f"split {self.name!r} has no task {index}; indices: {last}")


def _spec(name: str, bugs: tuple[int, int], size: int | None, **more) -> SplitSpec:
    return SplitSpec(name, f"dagger-nb/tasks/1/{name}", bugs, more.pop("kinds", KINDS), size, **more)


SPLITS: dict[str, SplitSpec] = {
    spec.name: spec
    for spec in (
        _spec("pretrain", (1, 1), None),
        _spec("train", (2, 4), None),
        _spec("dev", (2, 4), 200),
        _spec("test", (2, 4), 400),
        _spec("longer", (5, 6), 200, modules=(4, 5)),
        _spec("unseen", (2, 4), 200, kinds=KINDS + HELD_OUT_KINDS, must_kinds=HELD_OUT_KINDS),
    )
}


def split_spec(name: str) -> SplitSpec:
    """Raises ConfigError for an unknown split."""
    if name not in SPLITS:
        raise ConfigError(f"unknown split {name!r}; one of: {', '.join(SPLITS)}")
    return SPLITS[name]
