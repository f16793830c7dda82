"""Parameter counts against transformers' own models, memory by phase, and profiles that do not fit."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from dagger_nb import config, paths
from dagger_nb.errors import ConfigError, DataError, EnvironmentProblem
from dagger_nb.settings import Settings
from dagger_nb.sizing import gpus, memory, shapes

KNOWN = json.loads((paths.data() / "models" / "shapes.json").read_text())
SERVED = ("qwen3-0.6b", "qwen3-4b", "qwen3-8b")
H100, H200 = 80e9, 141e9
FP8 = "Qwen/Qwen3-Coder-30B-A3B-Instruct-FP8"


@pytest.mark.parametrize("name", sorted(KNOWN))
def test_parameters_are_those_of_transformers_model(name: str) -> None:
    """The whole model, built on the meta device, so that nothing is allocated."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    numbers = {key: value for key, value in KNOWN[name].items() if key != "quantization_config"}
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**numbers))
    model.tie_weights()
    assert shapes.shape_of(name).parameters == sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("Qwen/Qwen3-0.6B", 596_049_920),
        ("Qwen/Qwen3-4B-Instruct-2507", 4_022_468_096),
        ("Qwen/Qwen3-8B", 8_190_735_360),
        ("Qwen/Qwen3-Coder-30B-A3B-Instruct", 30_532_122_624),
    ],
)
def test_the_profiles_models_have_their_published_sizes(name: str, parameters: int) -> None:
    assert shapes.shape_of(name).parameters == parameters


def test_an_adapter_has_the_parameters_that_peft_makes() -> None:
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoConfig, AutoModelForCausalLM

    small = KNOWN["Qwen/Qwen3-0.6B"] | {"num_hidden_layers": 1}
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**small))
        adapted = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", r=32, target_modules="all-linear"))
    trained = sum(parameter.numel() for parameter in adapted.parameters() if parameter.requires_grad)
    assert shapes.of_config(small, "").adapter(32) == trained


def test_what_the_mixture_of_experts_multiplies_with() -> None:
    shape = shapes.shape_of("Qwen/Qwen3-Coder-30B-A3B-Instruct")
    assert shape.active + shape.vocabulary * shape.hidden == pytest.approx(3.35e9, rel=0.02)  # "A3B", embedding counted
    dense = shapes.shape_of("Qwen/Qwen3-4B-Instruct-2507")
    assert dense.active == dense.parameters - dense.norms


def test_a_token_of_qwen3_4b_takes_144_kib_of_cache() -> None:
    assert shapes.shape_of("Qwen/Qwen3-4B-Instruct-2507").kv_bytes == 144 * 1024
    assert shapes.shape_of("Qwen/Qwen3-Coder-30B-A3B-Instruct").kv_bytes == 96 * 1024


def test_a_local_folder_is_read_from_its_own_config(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(KNOWN["Qwen/Qwen3-8B"]))
    assert shapes.shape_of(str(tmp_path)) == shapes.shape_of("Qwen/Qwen3-8B")
    assert shapes.shape_of("data/base").layers == 4
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama"}))
    with pytest.raises(DataError, match="'llama' is not planned for"):
        shapes.shape_of(str(tmp_path))
    with pytest.raises(DataError, match="did you mean 'Qwen/Qwen3-8B'"):
        shapes.shape_of("Qwen/Qwen3-8b")


@pytest.mark.parametrize("profile", SERVED)
def test_served_profiles_fit_an_h200(profile: str) -> None:
    settings = config.load(profile)
    assert memory.misfits(settings, H200) == []
    assert 0 < memory.needed_bytes(settings) <= H200
    assert memory.misfits(settings, memory.needed_bytes(settings) * 1.001) == []
    assert memory.misfits(settings, memory.needed_bytes(settings) * 0.999)


@pytest.mark.parametrize(
    ("profile", "teacher", "on_80", "on_141"),
    [
        ("qwen3-0.6b", {}, True, True),
        ("qwen3-4b", {}, False, True),
        ("qwen3-4b", {"teacher.path": FP8}, True, True),
        ("qwen3-4b", {"teacher.endpoint": "http://localhost:1/v1"}, True, True),
        ("qwen3-8b", {}, False, True),
        ("qwen3-8b", {"teacher.path": FP8}, True, True),
        ("qwen3-8b", {"teacher.endpoint": "http://localhost:1/v1"}, True, True),
    ],
)
def test_which_gpu_holds_a_profile(profile: str, teacher: dict[str, object], on_80: bool, on_141: bool) -> None:
    settings = config.load(profile, teacher)
    assert [not memory.misfits(settings, size) for size in (H100, H200)] == [on_80, on_141]


@pytest.mark.parametrize("profile", ["qwen3-4b", "qwen3-8b"])
def test_a_profile_that_does_not_fit_is_refused_with_the_override_that_does(profile: str) -> None:
    said = f"'{profile}' does not fit.*collect and evaluate.*give -p teacher.path={FP8} .*or put it behind teacher.endp"
    with pytest.raises(ConfigError, match=said):
        memory.refuse_misfit(config.load(profile), H100)
    assert f"GB with -p teacher.path={FP8})" in memory.needed(config.load(profile))


def test_an_override_that_would_not_help_is_not_named() -> None:
    (problem,) = memory.misfits(config.load("qwen3-4b", {"student.path": "Qwen/Qwen3-0.6B"}), 48e9)
    assert FP8 not in problem and "teacher.endpoint" in problem
    small = config.load("qwen3-0.6b")
    assert memory.needed(small) == "24 GB" and memory.with_smaller_teacher(small) is None
    assert memory.with_smaller_teacher(config.load("qwen3-4b", {"teacher.path": FP8})) is None


def test_weights_in_8_bits_take_what_their_authors_published() -> None:
    """31.2 GB on the hub: embeddings, norms and routers stay in 16 bits."""
    assert shapes.shape_of(FP8).published_bytes == pytest.approx(31.2e9, rel=2e-3)
    plain = shapes.shape_of(FP8.removesuffix("-FP8"))
    assert plain.published_bytes == 2 * plain.parameters
    with pytest.raises(DataError, match="quantised by 'awq'"):
        shapes.of_config(KNOWN[FP8] | {"quantization_config": {"quant_method": "awq"}}, "here")


def test_training_on_64k_is_planned_below_80_gb() -> None:
    assert memory.training(config.load("qwen3-4b")).total < 80e9


def test_without_checkpointing_every_layer_is_kept() -> None:
    plain, again = (
        memory.training(config.load("qwen3-4b", {"training.checkpointing": kept})).parts["layers at work"]
        for kept in (False, True)
    )
    assert plain == pytest.approx(36 * again)
    assert memory.misfits(config.load("qwen3-4b", {"training.checkpointing": False}), H200)


def test_a_quantised_base_takes_a_third_of_a_plain_one() -> None:
    packed, plain = (
        memory.training(config.load("qwen3-8b", {"student.quantise": quantise, "serving.weights": weights})).parts[
            "base"
        ]
        for quantise, weights in ((True, "dequantised"), (False, "bf16"))
    )
    assert plain == 2 * 8_190_735_360 and packed / plain == pytest.approx(0.37, abs=0.01)


def test_packed_linear_layers_take_what_bitsandbytes_takes() -> None:
    """4 bits a weight, one byte for 64 of them, four bytes for 256 of these: counted on a real packed layer."""
    import bitsandbytes.functional as nf4
    import torch

    packed, state = nf4.quantize_4bit(torch.zeros(512, 1024), quant_type="nf4", compress_statistics=True)
    stored = packed.numel() + state.absmax.numel() + 4 * state.state2.absmax.numel()
    assert stored / (512 * 1024) == pytest.approx(memory.NF4_BYTES, rel=1e-3)


def test_the_gpu_is_divided_so_that_both_caches_hold_as_many_tokens() -> None:
    settings = config.load("qwen3-4b")
    student, teacher = memory.shares(settings, H200)
    assert student + teacher == pytest.approx(settings.serving.memory_share)
    parts = memory.serving(settings).parts
    rooms = (
        student * H200 - parts["student weights"] - parts["student adapter"] - memory.RESERVE_SERVED,
        teacher * H200 - parts["teacher weights"] - memory.RESERVE_SERVED,
    )
    held = [room / shapes.shape_of(path).kv_bytes for room, path in zip(rooms, _models(settings), strict=True)]
    assert held[0] == pytest.approx(held[1]) and held[0] > settings.episode.context
    alone = config.load("qwen3-4b", {"teacher.endpoint": "http://localhost:1/v1"})
    assert memory.shares(alone, H200) == (settings.serving.memory_share, 0.0)


def _models(settings: Settings) -> tuple[str, str]:
    return settings.student.path, settings.teacher.path


# --- nvidia-smi -----------------------------------------------------------------------------------------------------


def nvidia_smi(folder: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    """A program of that name, first on the path."""
    program = folder / "nvidia-smi"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")


def test_gpus_are_read_from_nvidia_smi(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nvidia_smi(tmp_path, monkeypatch, "echo 'NVIDIA H200, 143771, 570.86.15'; echo 'NVIDIA H200, 143771, 570.86.15'")
    found = gpus.local_gpus()
    assert len(found) == 2 and found[0] == gpus.LocalGpu("NVIDIA H200", 143771 * 2**20, "570.86.15")


def test_only_what_cuda_may_use_is_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a workstation's GPUs the first may be a small one for the screen."""
    nvidia_smi(tmp_path, monkeypatch, 'test "$3 $4" = "--id 1" && echo "NVIDIA H200, 143771, 1" || exit 6')
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    assert [gpu.name for gpu in gpus.local_gpus()] == ["NVIDIA H200"]
    for none in ("", "-1"):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", none)
        assert gpus.local_gpus() == []


def test_a_broken_driver_is_explained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nvidia_smi(tmp_path, monkeypatch, "echo 'Driver/library version mismatch'; exit 18")
    with pytest.raises(EnvironmentProblem, match="Driver/library version mismatch"):
        gpus.local_gpus()


def test_no_nvidia_smi_is_no_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert gpus.local_gpus() == []
