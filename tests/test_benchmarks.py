"""The benchmarks of training run, count what they say they count, and lose no row."""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from dagger_nb.training.attention import TREE as TREE_ATTENTION
from dagger_nb.training.loss import summed_loss
from dagger_nb.training.model import load_student

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "benchmarks"))
import gpu  # noqa: E402
import head  # noqa: E402
import synthetic  # noqa: E402

pytestmark = pytest.mark.usefixtures("one_thread")

CPU = torch.device("cpu")
SMALL = ["--device", "cpu", "--shape", "tiny", "--turn-tokens", "32", "--singles", "2", "--seconds", "0", "--rank", "4"]


def test_shapes_are_those_of_qwen3() -> None:
    """Billions of parameters, without embeddings and with them, as the model cards have them."""
    found = {name: synthetic.shape_named(name) for name in synthetic.MODELS}
    linear = {name: shape.layers * shape.layer_weights / 1e9 for name, shape in found.items()}
    assert linear == pytest.approx({"4b": 3.63, "8b": 6.95}, rel=2e-3)
    assert {name: shape.parameters / 1e9 for name, shape in found.items()} == pytest.approx(
        {"4b": 4.02, "8b": 8.19}, rel=2e-3
    )


@pytest.mark.parametrize("packed", [True, False])
def test_weights_are_counted_as_the_model_has_them(packed: bool) -> None:
    shape = synthetic.TINY
    model = synthetic.build(shape, packed=packed, device=CPU, rank=4, longest=64)
    base, adapter = shape.layers * shape.layer_weights, shape.adapter(4)
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    frozen = sum(p.numel() for name, p in model.named_parameters() if "base_layer" in name)
    assert trained == adapter and frozen == (base // 2 if packed else base)  # two weights share a byte


def test_nf4_packed_in_place_is_nf4_as_it_is_loaded(tmp_path) -> None:
    shape = synthetic.TINY
    synthetic.build(shape, packed=False, device=CPU, rank=4, longest=64).unload().save_pretrained(tmp_path)
    loaded = load_student(tmp_path).get_decoder().layers[0].mlp.up_proj.weight
    made = synthetic.build(shape, packed=True, device=CPU, rank=4, longest=64)
    weight = made.get_base_model().get_decoder().layers[0].mlp.up_proj.base_layer.weight
    assert torch.equal(weight.data, loaded.data)
    assert torch.equal(weight.quant_state.absmax, loaded.quant_state.absmax)


@pytest.mark.parametrize("head_rows", [16, 10_000])
def test_operations_are_what_a_step_executes(head_rows: int) -> None:
    """Exactly torch's own count, with attention that forms all pairs and keeps the scores (16 H D T T, not 18 S)."""
    shape, rank = synthetic.TINY, 4
    example = synthetic.trajectory(160, 32, 0.4, shape.vocabulary, seed=0)
    (row,), _ = synthetic.rows_of(synthetic.PLAIN, example, singles=0)
    model = synthetic.build(shape, packed=False, device=CPU, rank=rank, longest=160)
    model.get_base_model().set_attn_implementation(TREE_ATTENTION)
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        summed_loss(model.get_base_model(), row, head_rows=head_rows).backward()
    parts = synthetic.operations(shape, rank, [row], head_rows)
    pairs = row.tokens * (row.tokens + 1) / 2
    assert parts["attention"][0] == 12 * shape.heads * shape.head_dim * shape.layers * pairs
    scores = shape.heads * shape.head_dim * shape.layers * row.tokens**2
    executed = sum(parts[name][1] for name in ("base", "adapter", "head")) + 16 * scores
    never_again = 2 * rank * shape.hidden * row.tokens * shape.layers  # a layer's last product need not be repeated
    assert counter.get_total_flops() == executed - never_again


def test_a_tree_has_fewer_pairs_and_tokens_than_its_labels_apart() -> None:
    shape = synthetic.TINY
    example = synthetic.trajectory(400, 40, 0.5, shape.vocabulary, seed=1)
    assert len(example.targets) == 9 and example.lessons == 4
    work = {
        form: synthetic.rows_of(form, example, singles=9)
        for form in (synthetic.TREE, synthetic.PLAIN, synthetic.SINGLE)
    }
    tokens = {form: sum(row.tokens for row in rows) for form, (rows, _) in work.items()}
    branches = 4 - example.targets[-1].lesson  # behind the last label nothing was executed that it could part from
    assert tokens[synthetic.PLAIN] == 399 and tokens[synthetic.TREE] == 399 + 8 * branches
    assert tokens[synthetic.SINGLE] == sum(79 + 40 * turn for turn in range(9))
    rows, times = synthetic.rows_of(synthetic.SINGLE, example, singles=3)
    assert (len(rows), times) == (3, 3.0)
    assert sum(row.tokens for row in rows) * times == tokens[synthetic.SINGLE]


@pytest.mark.slow
def test_gpu_benchmark_runs_on_a_cpu_goes_on_and_refuses_to_mix(tmp_path, capsys) -> None:
    path = tmp_path / "gpu.json"
    gpu.main([*SMALL, "--lengths", "128", "--json", str(path)])
    first = json.loads(path.read_text())
    forms = [(row["base"], row["form"]) for row in first["rows"]]
    both = [synthetic.TREE, synthetic.PLAIN]
    assert forms == [("nf4", form) for form in (*both, synthetic.SINGLE)] + [("full", form) for form in both]
    for row in first["rows"]:
        assert row["seconds"] > 0 and 0 < row["mfu"] < row["hfu"] and len(row["runs"]) == 2
        assert set(row["tflop"]) == {"base", "adapter", "attention", "head"}
    assert all(value for value in first["ratios"][0].values())
    gpu.main([*SMALL, "--lengths", "64", "128", "--json", str(path)])
    second = json.loads(path.read_text())
    assert second["rows"][:5] == first["rows"] and len(second["rows"]) == 10 and len(second["commands"]) == 2
    with pytest.raises(SystemExit, match="another machine, version or option"):
        gpu.main([*SMALL, "--lessons", "0.5", "--json", str(path)])
    capsys.readouterr()
    with pytest.raises(SystemExit):
        gpu.main(["--device", "cpu", "--shape", "tiny"])
    assert "those of a GPU" in capsys.readouterr().err


@pytest.mark.slow
def test_a_case_that_fails_is_a_row_and_only_lack_of_memory_is_final(tmp_path, monkeypatch) -> None:
    path = tmp_path / "gpu.json"
    arguments = [*SMALL, "--lengths", "96", "128", "--lessons", "1", "--json", str(path)]
    real = gpu.summed_loss

    def small_gpu(model, row, *, head_rows):
        if row.tokens > 120:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 4.00 GiB.")
        if len(row.spans) == 1 and row.spans[0][1] < row.spans[0][2]:
            raise RuntimeError("no kernel")
        return real(model, row, head_rows=head_rows)

    monkeypatch.setattr(gpu, "summed_loss", small_gpu)
    gpu.main(arguments)
    rows = json.loads(path.read_text())["rows"]
    final = [row for row in rows if row.get("out_of_memory")]
    broken = [row for row in rows if row.get("out_of_memory") is False]
    assert final and broken and all(row["length"] == 128 for row in final)
    assert broken[0]["failed"] == "RuntimeError: no kernel"
    assert len(rows) == 10 and any("seconds" in row for row in rows)
    monkeypatch.setattr(gpu, "summed_loss", real)
    gpu.main(arguments)
    again = json.loads(path.read_text())["rows"]
    assert [row for row in again if "failed" in row] == final and len(again) == 10


@pytest.mark.slow
def test_head_benchmark_compares_in_one_run(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(head, "WIDE", dataclasses.replace(synthetic.TINY, hidden=64, layers=1, vocabulary=2000))
    path = tmp_path / "head.json"
    sizes = ["--head-length", "640", "--pieces", "8", "--length", "320", "--lengths", "320", "--repeats", "1"]
    head.main([*sizes, "--json", str(path)])
    rows = json.loads(path.read_text())["rows"]
    assert [row["way"] for row in rows] == ["all logits", "pieces of 8", "kept", "computed again", "tree", "dense"]
    assert all(row["seconds"] > 0 and row["mib"] > 0 for row in rows)
    assert [row["seconds_ratio"] for row in rows[::2]] == [1.0, 1.0, 1.0]
