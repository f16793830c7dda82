"""The prefix tree against its definition, and a fit against itself when it is killed."""

from __future__ import annotations

import copy
import os
import signal
import subprocess
import sys
from dataclasses import replace
from itertools import product

import numpy as np
import pytest
import torch
from peft import PeftModel
from torch.nn.attention.flex_attention import create_block_mask
from torch.nn.functional import cross_entropy, scaled_dot_product_attention
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import Qwen3Config, Qwen3ForCausalLM, TrainingArguments

from dagger_nb.errors import ConfigError, DataError
from dagger_nb.records import Action, Label
from dagger_nb.settings import LoraSettings, TrainingSettings
from dagger_nb.training.attention import ATTENTIONS, DENSE, FLEX, TREE, block_attention, choose
from dagger_nb.training.batches import fill, plan_steps
from dagger_nb.training.fit import fit
from dagger_nb.training.loss import divisor, summed_loss
from dagger_nb.training.mask import BLOCK, ancestor_mask, block_mask, bucket, mask_mod, pack, padded
from dagger_nb.training.model import (
    adapter_digest,
    add_adapter,
    load_adapter,
    load_student,
    merged_full_precision,
    save_adapter,
)
from dagger_nb.training.tree import (
    Example,
    Segments,
    Target,
    as_executed,
    build_tree,
    drop_overlong,
    make_example,
    one_by_one,
    sequence_tokens,
    tree_tokens,
)

pytestmark = pytest.mark.usefixtures("one_thread")

VOCABULARY = 80  # unlike any other size here
SETTINGS = TrainingSettings(passes=2, batch_tokens=150, learning_rate=1e-2)


# --- what is trained on ------------------------------------------------------------------------------------


def random_example(seed: int, turns: int = 5) -> Example:
    """Labels of every kind: as executed, sharing a beginning, longer, shorter, wholly different, two at a turn."""
    rng = np.random.default_rng(seed)

    def ids(low: int, high: int) -> tuple[int, ...]:
        return tuple(int(token) for token in rng.integers(0, VOCABULARY, rng.integers(low, high)))

    segments = Segments(ids(1, 9), tuple((ids(1, 7), ids(1, 6)) for _ in range(turns)))
    targets = []
    for turn in range(turns):
        executed = segments.turns[turn][0]
        choices = [executed, executed[:-1] + ids(1, 5), executed + ids(1, 3), executed[:1], ids(1, 6)]
        for index in rng.choice(len(choices), rng.integers(0, 3), replace=False):
            label = choices[index]
            targets.append(Target(turn, label, float(rng.choice([0.0, 0.5, 1.0, 3.0, -1.0])), label != executed))
    return Example(segments, (*targets, Target(turns - 1, ids(1, 6), 2.0, True)))


def state(example: Example, turn: int) -> tuple[int, ...]:
    segments = example.segments
    return sum((action + seen for action, seen in segments.turns[:turn]), segments.prompt_ids)


def paths(tree) -> list[tuple[int, ...]]:
    """For each token of a tree the ids from the root to it, by walking up to the nearest open subtree."""
    found: list[tuple[int, ...]] = []
    for token in range(tree.tokens):
        above = [k for k in range(token) if token < tree.leave_T[k]]
        found.append((*(found[above[-1]] if above else ()), int(tree.ids_T[token])))
    return found


@pytest.mark.parametrize("seed", range(30))
def test_tree_says_what_each_label_says(seed: int) -> None:
    example = random_example(seed)
    tree = build_tree(example)
    spelled = paths(tree)
    assert len(set(spelled)) == tree.tokens  # no prefix stands twice
    assert tree.positions_T.tolist() == [len(path) - 1 for path in spelled]
    expected = [
        (state(example, target.turn) + target.ids[:j], target.ids[j], target.weight)
        for target in example.targets
        if target.weight
        for j in range(len(target.ids))
    ]
    said = zip((spelled[at] for at in tree.at_P), tree.target_P.tolist(), tree.weight_P.tolist(), strict=True)
    assert list(said) == expected
    assert tree.trunk >= example.segments.state_length(example.targets[-1].turn)
    assert all(tree.leave_T[: tree.trunk] >= tree.trunk)  # the trunk is one path


def test_mask_is_the_ancestor_relation_and_keeps_trees_apart() -> None:
    trees = [build_tree(random_example(seed)) for seed in (3, 4, 5)]
    row = pack(trees)
    spelled = [(number, path) for number, tree in enumerate(trees) for path in paths(tree)]
    mask = ancestor_mask(row.leave_T)
    predicate = mask_mod(row.leave_T)
    for query, key in product(range(row.tokens), repeat=2):
        (tree_q, path_q), (tree_k, path_k) = spelled[query], spelled[key]
        related = tree_q == tree_k and path_q[: len(path_k)] == path_k
        assert bool(mask[query, key]) == related
        assert bool(predicate(None, None, torch.tensor(query), torch.tensor(key))) == related


def test_label_as_executed_adds_no_token_and_a_lesson_only_what_differs() -> None:
    segments = Segments((1, 2, 3), (((4, 5, 6), (7, 8)), ((9, 10), (11,))))
    plain = Example(segments, (Target(0, (4, 5, 6)), Target(1, (9, 10))))
    assert tree_tokens(plain) == 3 + 5 + 1
    assert sequence_tokens(plain) == (3 + 2) + (3 + 5 + 1)
    lesson = Example(segments, (Target(0, (4, 12, 13, 6), lesson=True), Target(1, (9, 10))))
    assert tree_tokens(lesson) == tree_tokens(plain) + 2
    assert lesson.lessons == 1
    assert build_tree(as_executed(lesson)).ids_T.tolist() == build_tree(plain).ids_T.tolist()


def test_lessons_weigh_what_the_setting_says() -> None:
    segments = Segments((1,), (((2,), (3,)), ((4,), (5,))))
    finish = Action("", "finish")
    labels = [
        Label("task", 0, 0, "base", turn, "student", None, "teacher", "template", finish, ids, lesson)
        for turn, ids, lesson in ((0, (2,), False), (1, (9,), True))
    ]
    example = make_example(segments, labels, lesson_weight=2.5)
    assert [(target.weight, target.lesson) for target in example.targets] == [(1.0, False), (2.5, True)]
    assert build_tree(example).weight_P.tolist() == [1.0, 2.5]
    assert build_tree(make_example(segments, labels, lesson_weight=0.0)).actions == 1


def test_overlong_labels_are_counted_or_refused_never_cut(student: PeftModel, tmp_path) -> None:
    example = Example(Segments((1, 2), (((3, 4), (5,)), ((6, 7), (8,)))), (Target(0, (3, 4)), Target(1, (6, 9, 9))))
    kept, dropped = drop_overlong(example, 7)
    assert (kept.targets, dropped) == (example.targets[:1], 1)
    assert drop_overlong(example, 8) == (example, 0)
    with pytest.raises(DataError, match="turn 1 ends at token 8, beyond the context of 7"):
        fit(student, [example], SETTINGS, context=7, output_dir=tmp_path / "a", seed=0)
    drop = replace(SETTINGS, overlong="drop")
    result = fit(student, [example], drop, context=7, output_dir=tmp_path / "b", seed=0)
    assert (result.labels, result.dropped) == (1, 1)


@pytest.mark.parametrize(
    ("example", "message"),
    [
        (Example(Segments((), (((1,), (2,)),)), (Target(0, (1,)),)), "empty prompt"),
        (Example(Segments((1,), (((), (2,)),)), (Target(0, (1,)),)), "empty prompt or action"),
        (Example(Segments((1,), (((1,), (2,)),)), (Target(1, (1,)),)), "turn 1 is empty or outside the 1 turns"),
        (Example(Segments((1,), (((1,), (2,)),)), (Target(0, ()),)), "turn 0 is empty"),
        (Example(Segments((1,), (((1,), (2,)),)), (Target(0, (1,), weight=0.0),)), "no label that weighs"),
    ],
)
def test_a_torn_example_is_refused(example: Example, message: str) -> None:
    with pytest.raises(DataError, match=message):
        build_tree(example)


# --- loss and gradients ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> str:
    """A random Qwen3 whose layers are large enough to be quantised."""
    config = Qwen3Config(
        vocab_size=VOCABULARY,
        hidden_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        intermediate_size=96,
        max_position_embeddings=256,
        tie_word_embeddings=True,
        initializer_range=0.2,
    )
    folder = tmp_path_factory.mktemp("base")
    with torch.random.fork_rng():
        torch.manual_seed(7)
        Qwen3ForCausalLM(config).save_pretrained(folder)
    return str(folder)


def with_adapter(checkpoint: str, *, quantise: bool, trained: bool = True) -> PeftModel:
    """An adapter as after some training: B is not zero."""
    model = add_adapter(load_student(checkpoint, quantise=quantise), LoraSettings(rank=4, alpha=8), seed=1)
    generator = torch.Generator().manual_seed(2)
    for name, parameter in model.named_parameters():
        if trained and "lora_B" in name:
            parameter.data.normal_(0, 0.2, generator=generator)
    return model


@pytest.fixture(scope="module", params=[True, False], ids=["nf4", "plain"])
def student(request, checkpoint: str) -> PeftModel:
    return with_adapter(checkpoint, quantise=request.param)


def one_sequence_a_label(model: PeftModel, examples: list[Example]) -> torch.Tensor:
    """The definition, with the model as it is: sum over labels of weight * cross-entropy of its tokens."""
    total = torch.zeros(())
    for example in examples:
        for target in example.targets:
            prefix = state(example, target.turn)
            logits = model(input_ids=torch.tensor([prefix + target.ids])).logits[0, len(prefix) - 1 : -1]
            total = total + target.weight * cross_entropy(logits, torch.tensor(target.ids), reduction="sum")
    return total


def gradients(model: PeftModel, loss: torch.Tensor) -> dict[str, torch.Tensor]:
    model.zero_grad()
    loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.requires_grad}


@pytest.mark.parametrize("attention", [TREE, DENSE])
@pytest.mark.parametrize("head_rows", [1000, 7])
@pytest.mark.parametrize("seeds", [(0,), (1, 2, 3), (4, 5)])
def test_tree_equals_one_sequence_a_label(student: PeftModel, seeds, head_rows: int, attention: str) -> None:
    examples = [random_example(seed) for seed in seeds]
    base = student.get_base_model()
    base.set_attn_implementation("sdpa")
    reference = one_sequence_a_label(student, examples)
    expected = gradients(student, reference)
    base.set_attn_implementation(attention)
    loss = summed_loss(base, pack([build_tree(example) for example in examples]), head_rows=head_rows)
    found = gradients(student, loss)
    assert loss.item() == pytest.approx(reference.item(), rel=2e-5)
    assert len(found) == 2 * 7 * 2  # A and B of seven linear layers in two blocks
    for name, gradient in expected.items():
        assert gradient.abs().max() > 0, name
        torch.testing.assert_close(found[name], gradient, rtol=1e-3, atol=2e-5 * gradient.abs().max().item())


def test_packed_rows_and_single_labels_add_up(student: PeftModel) -> None:
    example = random_example(6)
    base = student.get_base_model()
    base.set_attn_implementation(TREE)
    whole = summed_loss(base, pack([build_tree(example)]), head_rows=100)
    parts = summed_loss(base, pack([build_tree(single) for single in one_by_one(example)]), head_rows=100)
    assert whole.item() == pytest.approx(parts.item(), rel=1e-5)


def test_divisors_count_tokens_or_actions() -> None:
    trees = [build_tree(Example(Segments((1,), (((2, 3), (4,)),)), (Target(0, (2, 3)), Target(0, (5, 6, 7)))))] * 2
    assert divisor(trees, "token") == 10
    assert divisor(trees, "action") == 4
    with pytest.raises(ConfigError, match="'per_item' is unknown"):
        divisor(trees, "per_item")


class Seen(TorchDispatchMode):
    """The shapes of all tensors that were computed."""

    def __init__(self) -> None:
        super().__init__()
        self.shapes: set[tuple[int, ...]] = set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, tuple | list) else [result]:
            if isinstance(tensor, torch.Tensor):
                self.shapes.add(tuple(tensor.shape))
        return result


@pytest.mark.parametrize("head_rows", [1, 7, 32, 10_000])
def test_the_head_in_pieces_equals_the_head_at_once_and_forms_no_more_logits(student: PeftModel, head_rows: int):
    row = pack([build_tree(random_example(seed)) for seed in (7, 8, 9)])
    base, count = student.get_base_model(), len(row.target_P)
    base.set_attn_implementation(TREE)
    expected = summed_loss(base, row, head_rows=count)
    wanted = gradients(student, expected)
    with Seen() as seen:
        loss = summed_loss(base, row, head_rows=head_rows)
        found = gradients(student, loss)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)
    for name, gradient in wanted.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-5, atol=1e-6 * gradient.abs().max().item())
    logits = {shape[0] for shape in seen.shapes if shape[1:] == (VOCABULARY,) and shape[0] <= count}
    assert count > 32 and max(logits) == min(head_rows, count)


def test_checkpointing_computes_each_layer_twice_and_changes_no_gradient(checkpoint: str) -> None:
    model = with_adapter(checkpoint, quantise=True).train()
    base, row = model.get_base_model(), pack([build_tree(random_example(9))])
    base.set_attn_implementation(TREE)
    passes: list[str] = []
    for layer in base.model.layers:
        layer.mlp.register_forward_pre_hook(lambda *_: passes.append("mlp"))
    wanted = gradients(model, summed_loss(base, row, head_rows=100))
    assert len(passes) == 2
    base.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    found = gradients(model, summed_loss(base, row, head_rows=100))
    assert len(passes) == 2 + 4
    for name, gradient in wanted.items():
        torch.testing.assert_close(found[name], gradient, rtol=0, atol=0)


# --- the block mask ----------------------------------------------------------------------------------------


def long_row():
    """Some 700 tokens: several blocks, and trees that begin and end within one."""
    return pack([build_tree(random_example(seed, turns=60)) for seed in (1, 2)])


@pytest.mark.parametrize("length", [None, 1024])
def test_block_mask_is_what_the_predicate_gives_block_by_block(length: int | None) -> None:
    row = long_row() if length is None else padded(long_row(), length)
    assert row.tokens > 4 * BLOCK
    found = block_mask(row.leave_T)
    expected = create_block_mask(mask_mod(row.leave_T), None, None, row.tokens, row.tokens, device="cpu")
    assert found.shape == expected.shape and found.sparsity() == expected.sparsity() > 0
    assert torch.equal(found.to_dense(), expected.to_dense())
    assert torch.equal(found.kv_num_blocks, expected.kv_num_blocks)
    assert torch.equal(found.full_kv_num_blocks, expected.full_kv_num_blocks)
    assert found.full_kv_num_blocks.sum() > 0


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
def test_flex_attention_agrees_in_the_forward_pass() -> None:
    """Unfused, as the compiled kernel needs a C++ compiler on CPU and has no backward there."""
    row = long_row()
    generator = torch.Generator().manual_seed(0)
    query, key, value = (torch.randn(1, heads, row.tokens, 16, generator=generator) for heads in (4, 2, 2))
    dense = scaled_dot_product_attention(query, key, value, attn_mask=ancestor_mask(row.leave_T), enable_gqa=True)
    found, _ = block_attention(torch.nn.Module(), query, key, value, block_mask(row.leave_T))
    torch.testing.assert_close(found, dense.transpose(1, 2))


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
def test_every_attention_gives_the_same_loss(student: PeftModel) -> None:
    row, base = pack([build_tree(random_example(seed)) for seed in (1, 2, 3)]), student.get_base_model()
    losses = {}
    for name, attention in ATTENTIONS.items():
        base.set_attn_implementation(attention)
        with torch.no_grad():
            losses[name] = summed_loss(base, row, head_rows=50).item()
    assert losses == pytest.approx(dict.fromkeys(ATTENTIONS, losses["dense"]), rel=1e-5)


def test_padding_adds_a_tree_that_predicts_nothing() -> None:
    row = long_row()
    more = padded(row, bucket(row.tokens))
    assert (more.tokens, more.tokens % BLOCK) == (bucket(row.tokens), 0)
    assert padded(more, more.tokens) is more and torch.equal(more.target_P, row.target_P)
    mask = ancestor_mask(more.leave_T)
    assert torch.equal(mask[: row.tokens, : row.tokens], ancestor_mask(row.leave_T))
    assert not mask[row.tokens :, : row.tokens].any() and not mask[: row.tokens, row.tokens :].any()
    assert more.spans[-1] == (row.tokens, more.tokens, more.tokens)


def test_buckets_waste_little_and_are_few() -> None:
    lengths = {tokens: bucket(tokens) for tokens in range(1, 70_000, 37)}
    assert all(0 <= found - tokens < max(BLOCK, tokens / 16) for tokens, found in lengths.items())
    assert len(set(lengths.values())) <= 100 and sorted(lengths.values()) == list(lengths.values())


def test_attention_is_chosen_by_the_device() -> None:
    cpu, gpu = torch.device("cpu"), torch.device("cuda")
    assert (choose("auto", cpu), choose("auto", gpu)) == (TREE, FLEX)
    assert (choose("dense", cpu), choose("tree", gpu), choose("flex", gpu)) == (DENSE, TREE, FLEX)
    with pytest.raises(ConfigError, match="attention 'eager' is unknown"):
        choose("eager", gpu)
    with pytest.raises(ConfigError, match="no backward pass on a CPU"):
        choose("flex", cpu)


# --- models and adapters -----------------------------------------------------------------------------------


def test_merged_model_has_the_same_logits(student: PeftModel) -> None:
    student.get_base_model().set_attn_implementation("sdpa")
    ids = torch.arange(40)[None] % VOCABULARY
    with torch.no_grad():
        expected = student.eval()(input_ids=ids).logits
        merged = merged_full_precision(student)
        torch.testing.assert_close(merged(input_ids=ids).logits, expected, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(student(input_ids=ids).logits, expected, rtol=0, atol=0)
        torch.testing.assert_close(student.train()(input_ids=ids).logits, expected, rtol=0, atol=0)
    assert not any("lora" in name for name, _ in merged.named_modules())
    assert {parameter.dtype for parameter in merged.parameters()} == {torch.float32}


def test_adapter_comes_back_and_is_named_by_its_weights(checkpoint: str, tmp_path) -> None:
    first = with_adapter(checkpoint, quantise=True)
    name = save_adapter(first, tmp_path / "a")
    again = load_adapter(load_student(checkpoint), tmp_path / "a", trainable=True)
    assert save_adapter(again, tmp_path / "b") == name == adapter_digest(tmp_path / "a")
    fresh = with_adapter(checkpoint, quantise=True, trained=False)
    assert save_adapter(fresh, tmp_path / "c") != name
    same = add_adapter(load_student(checkpoint), LoraSettings(rank=4, alpha=8), seed=1)
    other = add_adapter(load_student(checkpoint), LoraSettings(rank=4, alpha=8), seed=2)
    assert save_adapter(same, tmp_path / "d") == adapter_digest(tmp_path / "c")
    assert save_adapter(other, tmp_path / "e") != adapter_digest(tmp_path / "c")


def test_adapters_that_do_not_fit_are_refused(checkpoint: str, tmp_path) -> None:
    with pytest.raises(DataError, match="no adapter in"):
        load_adapter(load_student(checkpoint), tmp_path)
    config = replace_width(load_student(checkpoint, quantise=False).config)
    save_adapter(add_adapter(Qwen3ForCausalLM(config), LoraSettings(rank=4, alpha=8), seed=1), tmp_path)
    with pytest.raises(DataError, match="does not fit this base"):
        load_adapter(load_student(checkpoint), tmp_path)


def replace_width(config: Qwen3Config) -> Qwen3Config:
    config = copy.deepcopy(config)
    config.hidden_size = 32
    return config


# --- batches and fits --------------------------------------------------------------------------------------


def test_steps_hold_every_example_once_a_pass() -> None:
    sizes = [30, 10, 80, 25, 25, 40, 5]
    plan = {"passes": 3, "batch_tokens": 60, "row_tokens": 60}
    steps = plan_steps(sizes, **plan, longest_first=True, seed=5)
    flat = [index for step in steps for index in step]
    assert [sorted(flat[i : i + 7]) for i in (0, 7, 14)] == [list(range(7))] * 3
    assert flat[:7] != flat[7:14]
    assert all(sum(sizes[i] for i in step) <= 60 or len(step) == 1 for step in steps)
    assert steps[0] == (2,)
    assert steps == plan_steps(sizes, **plan, longest_first=True, seed=5)
    assert steps != plan_steps(sizes, **plan, longest_first=True, seed=6)
    usual = plan_steps(sizes, **plan, longest_first=False, seed=5)
    assert usual != steps and sorted(usual) == sorted(steps)
    assert fill([], sizes, 60) == []


def test_the_longest_row_comes_first_not_the_longest_example() -> None:
    sizes, plan = [50, 30, 30, 30], {"passes": 1, "batch_tokens": 100, "longest_first": True}
    assert max(sizes[i] for i in plan_steps(sizes, **plan, row_tokens=40, seed=0)[0]) == 50  # rows of one example
    for seed in range(20):
        first = plan_steps(sizes, **plan, row_tokens=100, seed=seed)[0]
        assert sum(sizes[i] for i in first) >= 80


def examples_to_fit() -> list[Example]:
    return [random_example(seed) for seed in range(12)]


def fitted(checkpoint: str, folder, settings: TrainingSettings, progress=None) -> tuple[str, tuple]:
    """Digest of the adapter and the log of a fit that starts from the same student every time."""
    model = with_adapter(checkpoint, quantise=True, trained=False)
    result = fit(
        model,
        examples_to_fit(),
        settings,
        context=200,
        output_dir=folder,
        seed=3,
        progress=progress,
        progress_every_s=0,
    )
    return save_adapter(model, folder / "adapter"), result.log


class OfTwo(TrainingArguments):
    """What a Trainer finds on a machine with two GPUs."""

    def __post_init__(self) -> None:
        super().__post_init__()
        assert self.n_gpu <= 1
        self._n_gpu = 2


def test_a_machine_with_two_gpus_trains_on_the_first_alone(checkpoint: str, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("dagger_nb.training.fit.TrainingArguments", OfTwo)
    assert fitted(checkpoint, tmp_path / "two", SETTINGS)[1]


class Killed(Exception):
    pass


def test_a_killed_fit_goes_on_with_the_same_bits(checkpoint: str, tmp_path) -> None:
    settings = replace(SETTINGS, save_steps=2)
    whole = fitted(checkpoint, tmp_path / "whole", settings)
    steps = len(whole[1])
    assert steps >= 6
    assert [entry.step for entry in whole[1]] == list(range(1, steps + 1))

    def killer(line: str) -> None:
        if f"step 5 of {steps}" in line:
            raise Killed

    with pytest.raises(Killed):
        fitted(checkpoint, tmp_path / "cut", settings, killer)
    torn = tmp_path / "cut" / "checkpoint-5"
    torn.mkdir()
    (torn / "trainer_state.json").write_text('{"global_step": ')
    lines: list[str] = []
    assert fitted(checkpoint, tmp_path / "cut", settings, lines.append) == whole
    assert lines[0] == f"training goes on after step 4 of {steps}"
    assert not torn.exists()


KILL_SCRIPT = """
import sys, pathlib, torch
sys.path[:0] = sys.argv[1:3]
torch.set_num_threads(1)
import test_training as t
print(t.fitted(sys.argv[3], pathlib.Path(sys.argv[4]), t.replace(t.SETTINGS, save_steps=1), print)[0])
"""


@pytest.mark.slow
def test_sigkill_in_the_middle_changes_nothing(checkpoint: str, tmp_path) -> None:
    tests = os.path.dirname(__file__)
    script = [KILL_SCRIPT, tests, os.path.dirname(tests), checkpoint, str(tmp_path / "cut")]
    child = subprocess.Popen([sys.executable, "-u", "-c", *script], stdout=subprocess.PIPE, text=True)
    for line in child.stdout:
        if "step 3 of" in line:
            child.send_signal(signal.SIGKILL)
            break
    child.stdout.close()
    assert child.wait() == -signal.SIGKILL
    settings = replace(SETTINGS, save_steps=1)
    assert fitted(checkpoint, tmp_path / "cut", settings) == fitted(checkpoint, tmp_path / "whole", settings)


def test_a_fit_that_lacked_memory_goes_on_with_settings_that_need_less(checkpoint: str, tmp_path, monkeypatch) -> None:
    whole = fitted(checkpoint, tmp_path / "whole", replace(SETTINGS, save_steps=1))[1]
    rows = []

    def lacking(model: object, row: object, *, head_rows: int) -> torch.Tensor:
        rows.append(row)
        if head_rows > 5 and len(rows) > 4:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return summed_loss(model, row, head_rows=head_rows)

    monkeypatch.setattr("dagger_nb.training.fit.summed_loss", lacking)
    with pytest.raises(ConfigError, match="lower training.head_rows, .* the fit goes on"):
        fitted(checkpoint, tmp_path / "cut", replace(SETTINGS, save_steps=1))
    said: list[str] = []
    less = fitted(checkpoint, tmp_path / "cut", replace(SETTINGS, head_rows=5, save_steps=2), said.append)[1]
    assert any("training goes on after step" in line for line in said)
    assert [entry.loss for entry in less] == pytest.approx([entry.loss for entry in whole], rel=1e-3)


def test_rows_checkpointing_and_attention_change_last_bits_only(checkpoint: str, tmp_path) -> None:
    def losses(name: str, **options) -> list[float]:
        return [entry.loss for entry in fitted(checkpoint, tmp_path / name, replace(SETTINGS, **options))[1]]

    usual = losses("usual")
    assert usual[-1] < usual[0]
    assert losses("rows", row_tokens=60) == pytest.approx(usual, rel=1e-3)
    assert losses("memory", checkpointing=True, head_rows=5, attention="dense") == pytest.approx(usual, rel=1e-3)


def test_loss_is_the_mean_that_the_normalisation_names(checkpoint: str, tmp_path) -> None:
    examples = [random_example(1)]
    expected = one_sequence_a_label(with_adapter(checkpoint, quantise=True, trained=False), examples).item()
    counts = {"token": len(build_tree(examples[0]).target_P), "action": build_tree(examples[0]).actions}
    for name, count in counts.items():
        model = with_adapter(checkpoint, quantise=True, trained=False)
        settings = replace(SETTINGS, normalisation=name)
        result = fit(model, examples, settings, context=200, output_dir=tmp_path / name, seed=0, progress=None)
        assert result.log[0].loss == pytest.approx(expected / count, rel=1e-4)
        assert model.get_base_model().config._attn_implementation == "sdpa"


def test_what_cannot_work_is_refused(checkpoint: str, tmp_path) -> None:
    model = with_adapter(checkpoint, quantise=True)
    shared = {"context": 200, "seed": 0, "progress": None}
    with pytest.raises(ConfigError, match="none of 0 examples"):
        fit(model, [], SETTINGS, output_dir=tmp_path / "a", **shared)
    with pytest.raises(ConfigError, match="no backward pass on a CPU"):
        fit(model, examples_to_fit(), replace(SETTINGS, attention="flex"), output_dir=tmp_path / "b", **shared)
    fit(model, examples_to_fit()[:2], replace(SETTINGS, save_steps=1), output_dir=tmp_path / "b", **shared)
    with pytest.raises(DataError, match="another fit"):
        fit(model, examples_to_fit()[:3], SETTINGS, output_dir=tmp_path / "b", **shared)
    with pytest.raises(ConfigError, match="the loss is nan"):
        broken = replace(random_example(0), targets=(Target(0, (1, 2), float("nan")),))
        fit(model, [broken], SETTINGS, output_dir=tmp_path / "c", **shared)
