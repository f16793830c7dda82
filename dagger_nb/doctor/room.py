"""Free space that a profile needs, on which disk, without what sandboxes take."""

from __future__ import annotations

from pathlib import Path

from dagger_nb import paths
from dagger_nb.doctor.checks import Check, disk, existing, failed
from dagger_nb.doctor.models import loaded
from dagger_nb.errors import DaggerError
from dagger_nb.planning import footprint
from dagger_nb.planning.plan import plan
from dagger_nb.settings import Settings
from dagger_nb.sizing import memory
from dagger_nb.sizing.shapes import shape_of


def claims(settings: Settings) -> dict[Path, float]:
    """GB of free space by folder: the unpacked base and run folders in the project's home, and in the hub's cache the
    models that have yet to be fetched. Raises ConfigError: a model whose shape is not known."""
    found = footprint.disk_gb(settings, plan(settings).phases)
    return {paths.home(): found["unpacked base"] + found["runs"], _hub_cache(): _missing_gb(settings)}


def downloads(settings: Settings) -> list[Check]:
    """Room for models in the hub's cache, where that is another disk than the project's home."""
    if _one_disk():
        return []
    try:
        return [disk("disk of the hub's models", _hub_cache(), _missing_gb(settings), "HF_HUB_CACHE")]
    except DaggerError as error:  # a model whose shape is not known
        return [failed("disk of the hub's models", error)]


def _missing_gb(settings: Settings) -> float:
    """GB of the models that are no folders and not in the hub's cache."""
    missing = [path for path in loaded(settings) if not _weights_here(path)]
    return sum(shape_of(path).published_bytes for path in missing) / memory.GB


def _weights_here(path: str) -> bool:
    from huggingface_hub import try_to_load_from_cache

    names = ("model.safetensors", "model.safetensors.index.json")
    return paths.checkpoint(path).is_dir() or any(isinstance(try_to_load_from_cache(path, n), str) for n in names)


def _hub_cache() -> Path:
    from huggingface_hub.constants import HF_HUB_CACHE

    return Path(HF_HUB_CACHE)


def _one_disk() -> bool:
    return existing(_hub_cache()).stat().st_dev == existing(paths.home()).stat().st_dev
