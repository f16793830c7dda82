"""Whether an adapter fits the base that is served."""

from __future__ import annotations

import json
from pathlib import Path

from dagger_nb.errors import DataError
from dagger_nb.serving.weights import content_digest

_WEIGHTS = "adapter_model.safetensors"
_PREFIX = "base_model.model."


def refuse_misfit(adapter: Path, base: str, served: Path, rank: int) -> None:
    """Refuse an adapter that the server of `served` (made of `base`) cannot take or would be wrong on.

    Raises:
        DataError: not an adapter, of a larger rank than `rank`, of another base, or of other shapes.
    """
    try:
        config = json.loads((adapter / "adapter_config.json").read_text())
        needed = max(config["r"], *config.get("rank_pattern", {}).values(), 0)
        trained_on = str(config["base_model_name_or_path"])
    except (OSError, KeyError, ValueError) as error:
        raise DataError(f"no adapter in {adapter} ({error}); train it first") from error
    if needed > rank:
        raise DataError(f"the adapter in {adapter} has rank {needed}, the server takes {rank}; raise lora.rank")
    if not _same_base(trained_on, base):
        raise DataError(f"the adapter in {adapter} was trained on {trained_on}, served is {base}; serve its own base")
    _refuse_other_shapes(adapter, served)


def _same_base(trained_on: str, base: str) -> bool:
    """By name or content. A folder that is gone (a run that was moved) leaves only the shapes to compare."""
    if trained_on == base:
        return True
    there = Path(trained_on)
    if there.is_dir() and Path(base).is_dir():
        return content_digest(there) == content_digest(Path(base))
    return there.is_absolute()


def _refuse_other_shapes(adapter: Path, served: Path) -> None:
    shapes = {name: shape for file in sorted(served.glob("*.safetensors")) for name, shape in _shapes(file).items()}
    for name, shape in _shapes(adapter / _WEIGHTS).items():
        module, _, side = name.removeprefix(_PREFIX).partition(".lora_")
        whole = shapes.get(f"{module}.weight")
        inner = side.startswith("A")
        if whole is None or shape[1 if inner else 0] != whole[1 if inner else 0]:
            raise DataError(
                f"the adapter in {adapter} does not fit {served}: {module} is {whole} there, and the adapter's "
                f"{'A' if inner else 'B'} is {shape}; serve the base it was trained on"
            )


def _shapes(file: Path) -> dict[str, list[int]]:
    """Name -> shape of a file's tensors, from its header alone."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, framework="numpy") as tensors:
            return {name: tensors.get_slice(name).get_shape() for name in tensors.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise DataError(f"{file} cannot be read ({error}); train or copy it again") from error
