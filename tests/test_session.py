"""Where records meet the trainer: real episodes, rendered, are trained as trees exactly as label by label."""

from __future__ import annotations

import gc
import itertools
import json
import random
import weakref

import pytest
import torch

from dagger_nb import config
from dagger_nb.base.reenact import episode
from dagger_nb.labelling import label_trajectory
from dagger_nb.policies import teacher
from dagger_nb.records import Action, StopReason, Trajectory, Turn
from dagger_nb.settings import LoraSettings
from dagger_nb.store import CohortRecord
from dagger_nb.tasks import tasks
from dagger_nb.training import fit, session
from dagger_nb.training.attention import TREE
from dagger_nb.training.loss import summed_loss
from dagger_nb.training.mask import pack
from dagger_nb.training.model import adapter_digest, add_adapter, load_student
from dagger_nb.training.session import examples_of, segments, train_adapter
from dagger_nb.training.tree import build_tree, one_by_one, refuse_overlong

JUNK = Action("Look around.", "execute_bash", {"command": "ls"})


def executed(task, renderer, seed: int) -> Trajectory:
    """A teacher's episode in which some read-only turns are a student's that looks elsewhere: lessons in the labels."""
    rng, turns = random.Random(seed), []
    for turn in episode(task):
        if rng.random() < 0.3:
            turns.append((JUNK, "pytest.ini\ntests"))
        turns.append((turn.action, turn.observation))
    made = tuple(
        Turn(i, "student", action, seen, renderer.action_ids(action), len(renderer.observation_ids(seen)))
        for i, (action, seen) in enumerate(turns)
    )
    prompt = len(renderer.prompt_ids(task))
    return Trajectory(task.instance_id, 0, 1, "base", made, StopReason.FINISH, "", prompt)


@pytest.fixture(scope="module")
def recorded(renderer):
    """Three real episodes with labels at every state, as the records that a run keeps."""
    chosen = tasks("train", 3)
    paths = [executed(task, renderer, seed) for seed, task in enumerate(chosen)]
    labels = [
        label
        for task, path in zip(chosen, paths, strict=True)
        for label in label_trajectory(task, path, teacher=teacher.label, name=teacher.NAME, renderer=renderer)
    ]
    return chosen, CohortRecord(tuple(paths), tuple(labels), {})


@pytest.fixture(scope="module")
def real(recorded, renderer):
    """The tasks, their episodes, and the examples these make."""
    chosen, record = recorded
    examples = examples_of([record], by_id(chosen), renderer, keep="finish", lesson_weight=2.0)
    return chosen, record.trajectories, examples


def by_id(chosen):
    return {task.instance_id: task for task in chosen}


def loss_and_gradients(model, trees):
    model.zero_grad(set_to_none=True)
    loss = sum(summed_loss(model.get_base_model(), pack([tree]), head_rows=512) for tree in trees)
    loss.backward()
    return loss.item(), {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def test_real_trajectories_train_as_one_sequence_a_label(real, tiny_base):
    _, _, (examples, dropped) = real
    model = add_adapter(load_student(tiny_base), LoraSettings(rank=4, alpha=8), seed=0)
    model.get_base_model().set_attn_implementation(TREE)
    torch.manual_seed(1)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.02)
    assert dropped == 0 and sum(example.lessons for example in examples) > 3
    whole, gradients = loss_and_gradients(model, [build_tree(example) for example in examples])
    singles = [build_tree(single) for example in examples for single in one_by_one(example)]
    apart, wanted = loss_and_gradients(model, singles)
    assert whole == pytest.approx(apart, rel=1e-5)
    assert gradients.keys() == wanted.keys() and gradients
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, wanted[name], rtol=2e-4, atol=2e-4 * float(wanted[name].abs().max()))


def test_segments_are_what_was_read_and_said_and_labels_decode_to_calls(real, renderer):
    chosen, paths, (examples, _) = real
    for task, path, example in zip(chosen, paths, examples, strict=True):
        whole = segments(task, path, renderer)
        assert example.segments == whole
        assert len(whole.prompt_ids) == path.prompt_tokens
        for turn, (said, read) in zip(path.turns, whole.turns, strict=True):
            assert renderer.parse(said).same_call(turn.action) and len(read) == turn.observation_tokens
        for target in example.targets:
            meant = teacher.label(task, path.turns[: target.turn])
            assert renderer.parse(target.ids).same_call(meant)
            assert target.weight == (2.0 if target.lesson else 1.0)
        refuse_overlong(example, 4096)


def test_the_filter_drops_unfinished_episodes_and_counts_them(real, renderer):
    import dataclasses

    chosen, paths, _ = real
    looped = dataclasses.replace(paths[0], stop=StopReason.LOOP)
    labels = tuple(label_trajectory(chosen[0], looped, teacher=teacher.label, name=teacher.NAME, renderer=renderer))
    record, known = CohortRecord((looped,), labels, {}), by_id(chosen)
    assert examples_of([record], known, renderer, keep="finish", lesson_weight=1.0) == ([], 1)
    kept, dropped = examples_of([record], known, renderer, keep="none", lesson_weight=1.0)
    assert len(kept) == 1 and dropped == 0


def test_an_episode_whose_labels_are_all_missing_teaches_nothing(recorded, renderer):
    chosen, record = recorded
    unlabelled = CohortRecord(record.trajectories[:1], (), {})
    (example,), dropped = examples_of([unlabelled], by_id(chosen), renderer, keep="finish", lesson_weight=1.0)
    assert example.targets == () and dropped == 0


def test_nothing_of_a_trained_model_stays_in_memory(recorded, tiny_base, renderer, tmp_path, monkeypatch):
    """The servers of the next round want the whole GPU, in the same process."""
    chosen, record = recorded
    made, emptied = [], []

    def adapted(*arguments: object, **options: object):
        model = add_adapter(*arguments, **options)
        made.extend(map(weakref.ref, (model, model.get_base_model(), *model.parameters())))
        return model

    monkeypatch.setattr(session, "add_adapter", adapted)
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: emptied.append(sum(each() is not None for each in made)))
    settings = config.load("smoke", {"training.passes": 1})
    gc.disable()
    try:
        train_adapter(
            [record], base=str(tiny_base), previous=None, settings=settings, renderer=renderer, tasks=by_id(chosen),
            folder=tmp_path / "adapter", seed=0, log=lambda line: None,
        )  # fmt: skip
    finally:
        gc.enable()
    assert emptied == [0]  # the model was gone when the allocator was emptied


def test_a_round_killed_in_training_goes_on_to_the_same_bits(recorded, tiny_base, renderer, tmp_path, monkeypatch):
    chosen, record = recorded
    settings = config.load("smoke", {"training.passes": 2, "training.batch_tokens": 600, "training.save_steps": 1})
    lines: list[str] = []

    def train(name: str) -> tuple[str, object]:
        folder = train_adapter(
            [record],
            base=str(tiny_base),
            previous=None,
            settings=settings,
            renderer=renderer,
            tasks=by_id(chosen),
            folder=tmp_path / name / "adapter",
            seed=0,
            log=lines.append,
        )
        report = json.loads((folder / "fit.json").read_text())
        assert report["device"] == "cpu" and not (tmp_path / name / "training").exists()
        return adapter_digest(folder), report["log"]

    whole, rows = train("whole"), itertools.count(1)
    assert len(whole[1]) >= 4

    def killed(*arguments, **options):
        if next(rows) == 4:
            raise KeyboardInterrupt
        return summed_loss(*arguments, **options)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(fit, "summed_loss", killed)
        train("cut")
    assert train("cut") == whole
    assert lines == [f"training goes on after step 3 of {len(whole[1])}"]
