"""GPU memory by phase, computed from the models' shapes and the settings, and whether a profile fits.

    serve    weights as published, 2 bytes each (fp8: 1 in linear layers), of an NF4 student as below
             adapter = its parameters x 2 bytes; reserve = 2 GB a server; KV cache = tokens x bytes of a token,
             2 (keys, values) x 2 bytes x layers x key-value heads x head size
    train    base = linear layers x 0.516 bytes (NF4: 4 bits, and for 64 of them one byte, and for 256 of these 4)
             or x 2 bytes (bf16), + embeddings and norms x 2 bytes
             adapter = its parameters x 16 bytes (weight, gradient and two moments in 32 bits)
             checkpoints = layers x tokens x hidden x 2 bytes (the input of each layer; the rest is computed again)
             layer = tokens x (4 bytes x (4 hidden + 3 heads x size + 4 kv heads x size + 4 intermediate)
                     + 4 bytes x (5 hidden + heads x size + intermediate)), the values of one layer and their
                     gradients in 16 bits, and the adapter's inputs in 32 (of every layer without checkpointing)
             logits = training.head_rows x vocabulary x 12 bytes (in 16 and 32 bits, and their gradients)
             reserve = 4 GB

`tokens` in training are training.row_tokens, or those of the longest tree where that is more: the context x 1.2.
ASSUMED are the reserves, the 1.2, and what of a layer is alive at the same time; benchmarks/gpu.py measures the peak.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from dagger_nb.errors import ConfigError
from dagger_nb.settings import Settings
from dagger_nb.sizing.shapes import Shape, shape_of

GB = 1e9
NF4_BYTES = 0.5 + 1 / 64 + 4 / (64 * 256)  # of a weight, double quantisation as bitsandbytes packs it
RESERVE_SERVED, RESERVE_TRAINED = 2 * GB, 4 * GB
TREE = 1.2  # tokens of the longest tree for each token of context
SERVE, TRAIN = "collect and evaluate", "train"  # the phases that share one GPU in turn
# The same teachers in fewer bytes, by the same authors. Turns of student and teacher alternate, so that both are served
# at the same time: loading them in turn would cost minutes a turn.
SMALLER: Mapping[str, str] = {"Qwen/Qwen3-Coder-30B-A3B-Instruct": "Qwen/Qwen3-Coder-30B-A3B-Instruct-FP8"}


@dataclass(frozen=True, slots=True)
class Phase:
    """What one phase holds on the GPU, in bytes, part by part."""

    name: str
    parts: Mapping[str, float]

    @property
    def total(self) -> float:
        return sum(self.parts.values())


def teacher_here(settings: Settings) -> bool:
    """Whether a teacher model is served on this machine."""
    return not settings.teacher.scripted and not settings.teacher.endpoint


def serving(settings: Settings) -> Phase:
    """Collecting and evaluating, at the least: all that is served, and room for one longest episode in each cache."""
    student, context = shape_of(settings.student.path), settings.episode.context
    parts = {
        "student weights": _served(student, settings),
        "student adapter": 2.0 * student.adapter(settings.lora.rank),
        "student KV cache, one longest episode": float(context * student.kv_bytes),
        "reserve": RESERVE_SERVED,
    }
    if teacher_here(settings):
        teacher = shape_of(settings.teacher.path)
        parts["teacher weights"] = teacher.published_bytes
        parts["teacher KV cache, one longest episode"] = float(context * teacher.kv_bytes)
        parts["reserve"] += RESERVE_SERVED
    return Phase(SERVE, parts)


def _served(shape: Shape, settings: Settings) -> float:
    packed = settings.serving.weights == "nf4"
    return _packed(shape) if packed else shape.published_bytes


def _packed(shape: Shape) -> float:
    return shape.layers * shape.layer_weights * NF4_BYTES + 2.0 * (shape.embeddings + shape.norms)


def training(settings: Settings) -> Phase:
    """One step of training on the longest tree."""
    shape = shape_of(settings.student.path)
    tokens = max(settings.training.row_tokens, settings.episode.context * TREE)
    kept = 1 if settings.training.checkpointing else shape.layers
    parts = {
        "base": _packed(shape) if settings.student.quantise else 2.0 * shape.parameters,
        "adapter, gradient, moments": 16.0 * shape.adapter(settings.lora.rank),
        "checkpoints": 2.0 * shape.layers * tokens * shape.hidden,
        "layers at work": kept * tokens * _inside(shape),
        "logits": 12.0 * settings.training.head_rows * shape.vocabulary,
        "reserve": RESERVE_TRAINED,
    }
    return Phase(TRAIN, parts)


def _inside(shape: Shape) -> float:
    """Bytes that one layer holds for one token while its gradient is computed."""
    wide, narrow = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    values = 4 * shape.hidden + 3 * wide + 4 * narrow + 4 * shape.intermediate
    return 4.0 * values + 4.0 * (5 * shape.hidden + wide + shape.intermediate)


def phases(settings: Settings) -> list[Phase]:
    """Every phase of a served profile; none where the student runs in this process without a GPU."""
    return [serving(settings), training(settings)] if settings.served else []


def episodes_at_once(settings: Settings, gpu_bytes: float, tokens: float) -> float:
    """How many episodes of `tokens` tokens the caches hold beside all that is served."""
    return max(0.0, _room(settings, gpu_bytes) / (tokens * _kv_bytes(settings)))


def _room(settings: Settings, gpu_bytes: float) -> float:
    """Bytes that are left for caches; negative where not even the weights fit."""
    fixed = sum(size for part, size in serving(settings).parts.items() if "KV cache" not in part)
    return gpu_bytes * settings.serving.memory_share - fixed


def _kv_bytes(settings: Settings) -> int:
    """Bytes of one token of an episode in all caches."""
    both = shape_of(settings.student.path).kv_bytes
    return both + (shape_of(settings.teacher.path).kv_bytes if teacher_here(settings) else 0)


def shares(settings: Settings, gpu_bytes: float) -> tuple[float, float]:
    """`serving.memory_share` divided between the student's and the teacher's server, so that both hold as many tokens.

    The teacher's share is 0 where it is not served here.
    """
    parts = serving(settings).parts
    if not teacher_here(settings):
        return settings.serving.memory_share, 0.0
    fixed = parts["teacher weights"] + RESERVE_SERVED
    cache = _room(settings, gpu_bytes) * shape_of(settings.teacher.path).kv_bytes / _kv_bytes(settings)
    teacher = (fixed + cache) / gpu_bytes
    return settings.serving.memory_share - teacher, teacher


def needed_bytes(settings: Settings) -> float:
    """Memory of the smallest GPU that holds every phase; servers may take `serving.memory_share` of it."""
    return max((phase.total / _share(phase, settings) for phase in phases(settings)), default=0.0)


def needed(settings: Settings) -> str:
    """The size of that GPU in words, and with which override a smaller one will do."""
    size, smaller = f"{needed_bytes(settings) / GB:.0f} GB", with_smaller_teacher(settings)
    return f"{size} ({needed_bytes(smaller) / GB:.0f} GB with {_override(smaller)})" if smaller else size


def _share(phase: Phase, settings: Settings) -> float:
    return 1.0 if phase.name == TRAIN else settings.serving.memory_share


def misfits(settings: Settings, gpu_bytes: float) -> list[str]:
    """In words, each phase that a GPU of this size does not hold, with what to change; empty where all fit."""
    problems = []
    for phase in phases(settings):
        admitted = gpu_bytes * _share(phase, settings)
        if phase.total > admitted:
            problems.append(
                f"{phase.name}: {phase.total / GB:.0f} GB are needed, {admitted / GB:.0f} GB are there; "
                f"{_advice(phase, settings, gpu_bytes)}"
            )
    return problems


def _advice(phase: Phase, settings: Settings, gpu_bytes: float) -> str:
    if phase.name == TRAIN or not teacher_here(settings):
        return _ADVICE[phase.name]
    smaller = with_smaller_teacher(settings)
    if smaller and serving(smaller).total <= gpu_bytes * smaller.serving.memory_share:
        return f"give {_override(smaller)} (the same teacher in 8 bits), or put it behind teacher.endpoint"
    return "put the teacher behind teacher.endpoint, or lower episode.context"


def with_smaller_teacher(settings: Settings) -> Settings | None:
    """The settings with the same teacher in fewer bytes, or None where none is known or none is served here."""
    path = SMALLER.get(settings.teacher.path)
    if path is None or not teacher_here(settings):
        return None
    return replace(settings, teacher=replace(settings.teacher, path=path))


def _override(settings: Settings) -> str:
    return f"-p teacher.path={settings.teacher.path}"


_ADVICE = {
    SERVE: "lower episode.context, or choose a smaller student",
    TRAIN: "set student.quantise and training.checkpointing to True, lower episode.context, or take a smaller student",
}


def refuse_misfit(settings: Settings, gpu_bytes: float) -> None:
    """Raise ConfigError where the profile does not fit a GPU of this size, before anything is started."""
    if problems := misfits(settings, gpu_bytes):
        raise ConfigError(f"profile {settings.profile!r} does not fit this GPU: {'; '.join(problems)}")
