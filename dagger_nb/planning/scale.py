"""Rates at the paper's scale, by kind of phase, from models' shapes, a GPU's data sheet and assumptions.

Nothing of that size was measured here: data/plan/scale.json holds every assumption with its unit and source, and says
of each whether it was measured. What follows from them (a roofline, the GPU shared by all servers in turn):

    a turn of a model   prefill = (new tokens + missed history) x (2 x active parameters
                                  + 4 x layers x heads x head size x live tokens) / (FLOPS x prefill_mfu)
                        decode  = action tokens x (weights touched + n x live tokens x KV bytes)
                                  / (bandwidth x decode_bandwidth) / n
                        n = episodes at once: serving.concurrency, or as many as the caches hold
    a turn              max(student's + teacher's share of the GPU, command_seconds / workers); the teacher has none in
                        exams whose states it does not label
    a trained token     (6 linear + 8 adapter parameters + 18 x layers x heads x head size x length / 2
                        + 6 x vocabulary x hidden x labels) / (FLOPS x train_hfu), counted as benchmarks/gpu.py does;
                        labels = action / (action + observation), the share of tokens that is predicted
"""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import product
from typing import Any

from dagger_nb import paths
from dagger_nb.experiment import EXAMS, diagnosed
from dagger_nb.mixing import BernoulliMixer
from dagger_nb.planning.rates import Rates
from dagger_nb.planning.usage import GRADE, TRAIN
from dagger_nb.recipes import recipe
from dagger_nb.settings import Settings
from dagger_nb.sizing import memory
from dagger_nb.sizing.shapes import Shape, shape_of

DEFAULT_GPU = "NVIDIA H200"
SPLITS = ("test", "unseen", "longer", "dev")


@dataclass(frozen=True, slots=True)
class Gpu:
    """One GPU: bytes of memory, bytes a second, dense bf16 FLOP a second."""

    name: str
    bytes: float
    bandwidth: float
    flops: float


@dataclass(frozen=True, slots=True)
class Episode:
    """The mean episode: turns, and tokens of its prompt, of an action and of an observation."""

    turns: float
    prompt: float
    action: float
    observation: float

    @property
    def length(self) -> float:
        return self.prompt + self.turns * (self.action + self.observation)

    @property
    def live(self) -> float:
        """Tokens of the history at a turn, over the whole episode."""
        return (self.prompt + self.length) / 2


@functools.cache
def _data() -> Mapping[str, Any]:
    return json.loads((paths.data() / "plan" / "scale.json").read_text(encoding="utf-8"))


def assumptions() -> Mapping[str, Mapping[str, Any]]:
    """Name -> value, unit, whether it was measured, and source."""
    return _data()["rates"]


def value(name: str) -> float:
    return float(assumptions()[name]["value"])


def gpus() -> dict[str, Gpu]:
    """The GPUs that a plan can be made for, by name."""
    return {name: Gpu(name, **numbers) for name, numbers in _data()["gpus"].items()}


def known_gpu(name: str) -> Gpu | None:
    """The known GPU whose name a device's begins with, the longest such; None where there is none."""
    known = gpus()
    return known.get(max((each for each in known if name.startswith(each)), key=len, default=""))


def episode(settings: Settings) -> Episode:
    """The mean episode under the settings' limits on turns and context."""
    prompt, action, observation = value("prompt"), value("action"), value("observation")
    turns = value("turns") * settings.episode.max_turns / 100
    return Episode(
        min(turns, (settings.episode.context - prompt) / (action + observation)), prompt, action, observation
    )


def at_once(settings: Settings, gpu: Gpu) -> float:
    """Episodes in flight: `serving.concurrency`, or as many as the caches hold (at least 1)."""
    return max(
        1.0, min(settings.serving.concurrency, memory.episodes_at_once(settings, gpu.bytes, episode(settings).live))
    )


def model_seconds(shape: Shape, settings: Settings, gpu: Gpu) -> float:
    """GPU seconds that one turn of one model takes, the weights' reading shared by all episodes at once."""
    each, n = episode(settings), at_once(settings, gpu)
    read = each.action + each.observation + (1 - value("cached")) * each.live
    attended = 4 * shape.layers * shape.heads * shape.head_dim * each.live
    prefill = read * (2 * shape.active + attended) / (gpu.flops * value("prefill_mfu"))
    step = _touched(shape, n) + n * each.live * shape.kv_bytes
    return prefill + each.action * step / (gpu.bandwidth * value("decode_bandwidth")) / n


def _touched(shape: Shape, n: float) -> float:
    """Bytes of weights that one step of `n` tokens reads: of the experts, those that any of the tokens chose."""
    if not shape.experts:
        return shape.published_bytes
    experts = shape.layers * shape.experts * shape.expert * shape.linear_bytes
    idle = experts * (1 - shape.active_experts / shape.experts) ** n
    looked_up = 2.0 * (shape.embeddings - shape.vocabulary * shape.hidden)  # the embedding's, a row a token
    return shape.published_bytes - idle - looked_up


def turn_seconds(settings: Settings, gpu: Gpu, student_share: float, *, labelled: bool = True) -> float:
    """Wall-clock seconds of a turn, all episodes at once, of which the student acts in a share."""
    on_gpu = student_share * model_seconds(shape_of(settings.student.path), settings, gpu)
    if labelled and memory.teacher_here(settings):
        on_gpu += model_seconds(shape_of(settings.teacher.path), settings, gpu)
    return max(on_gpu, value("command_seconds") / min(settings.workers, at_once(settings, gpu)))


def train_seconds(settings: Settings, gpu: Gpu) -> float:
    """Seconds of a token of a tree in one pass."""
    shape, each = shape_of(settings.student.path), episode(settings)
    linear = 6 * shape.layers * shape.layer_weights + 8 * shape.adapter(settings.lora.rank)
    attention = 18 * shape.layers * shape.heads * shape.head_dim * each.length / 2
    head = 6 * shape.vocabulary * shape.hidden * each.action / (each.action + each.observation)
    return (linear + attention + head) / (gpu.flops * value("train_hfu"))


def rates(settings: Settings, gpu: Gpu) -> Rates:
    """What `plan` multiplies with: a row for each kind of phase that a served profile has."""
    found = {f"{who} train": _row(settings, gpu, share) for who, share in student_shares(settings).items()}
    for who, split in product(("base", "student", "slips", "teacher"), SPLITS):
        found[f"{who} {split}"] = _row(settings, gpu, 1.0, labelled=_labelled(who, split, settings))
    trained = {"kept": value("kept"), "tree": episode(settings).length * value("tree")}
    for who in student_shares(settings):
        found[f"{TRAIN} {who}"] = trained | {"seconds": train_seconds(settings, gpu)}
    found[GRADE] = {"test_runs": 1.0, "fresh": 1.0, "seconds": value("grading_seconds")}
    return found


def _labelled(who: str, split: str, settings: Settings) -> bool:
    """Whether the teacher labels the states of such an exam; `test-sampled` is planned as `test` is."""
    alike = (exam for exam in EXAMS.values() if (exam.split, exam.slips) == (split, who == "slips"))
    return any(diagnosed(exam, settings) for exam in alike)


def _row(settings: Settings, gpu: Gpu, student_share: float, *, labelled: bool = True) -> dict[str, float]:
    each = episode(settings)
    return {
        "turns": each.turns,
        "prompt": each.prompt,
        "action": each.action,
        "observation": each.observation,
        "test_runs": value("test_runs"),
        "fresh": 1.0,
        # worker-seconds, as `plan` divides
        "seconds": turn_seconds(settings, gpu, student_share, labelled=labelled) * settings.workers,
    }


def student_shares(settings: Settings) -> dict[str, float]:
    """Who collects -> in which share of the turns the student acts (of the rounds in which it acts at all)."""
    mixer = recipe("dagger", settings).mixer
    betas = (
        [mixer.schedule.beta(r) for r in range(1, settings.dagger.rounds + 1)]
        if isinstance(mixer, BernoulliMixer)
        else []
    )
    mixed = [1 - beta for beta in betas if beta < 1]
    return {"teacher": 0.0, "mixed": sum(mixed) / max(1, len(mixed)), "switch": 0.5}
