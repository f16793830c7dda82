"""The base model's recipe: re-enacted episodes, the tokenizer, the corpus, and a pre-training that can be killed."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from dagger_nb import paths, scaffold
from dagger_nb.base import compare, corpus, pretrain, reenact
from dagger_nb.base.tokenizer import PHRASES
from dagger_nb.errors import DataError
from dagger_nb.evaluation.tables import OUTCOME_COLUMNS
from dagger_nb.policies import teacher
from dagger_nb.tasks import generate

RECIPE = pretrain.Recipe(
    seed=1, hidden=64, layers=2, heads=2, intermediate=64, block=32, rows=8, steps=6, quantised=0.4, warmup=2, threads=1
)


# --- episodes without a sandbox ------------------------------------------------------------------------------


@pytest.mark.parametrize(("split", "index"), [
    ("pretrain", 0), ("pretrain", 7), ("pretrain", 12), ("train", 3), ("unseen", 1), ("longer", 4),
])  # fmt: skip
def test_a_reenacted_episode_equals_the_sandboxs_byte_for_byte(split, index, sandboxes):
    task = generate(split, index)
    with sandboxes.open(task) as sandbox:
        for turn in reenact.episode(task):
            assert scaffold.execute(turn.action, sandbox) == turn.observation


def test_a_broken_import_is_reenacted_too(sandboxes):
    task = next(t for t in (generate("pretrain", i) for i in range(200)) if "wrong_import" in t.bug_kinds)
    turns = reenact.episode(task)
    assert any("ImportError" in turn.observation for turn in turns)
    with sandboxes.open(task) as sandbox:
        assert [scaffold.execute(turn.action, sandbox) for turn in turns] == [turn.observation for turn in turns]


# --- the tokenizer -------------------------------------------------------------------------------------------


@given(st.text(alphabet=st.characters(exclude_categories=["Cs"])))
@settings(max_examples=150, deadline=None)
def test_any_text_comes_back_from_its_tokens(renderer, text):
    ids = renderer.tokenizer.encode(text, add_special_tokens=False)
    assert renderer.tokenizer.decode(ids, skip_special_tokens=False) == text


def test_every_byte_has_a_token_and_comes_back(renderer):
    for byte in range(256):
        text = chr(byte) * 3
        assert renderer.tokenizer.decode(renderer.tokenizer.encode(text, add_special_tokens=False)) == text
    mixed = "".join(map(chr, range(1, 0x600))) + "\U0001f600 \ufffd\u2028"
    assert renderer.tokenizer.decode(renderer.tokenizer.encode(mixed, add_special_tokens=False)) == mixed


def test_a_phrase_is_one_token_where_no_longer_one_takes_it(renderer):
    for phrase in PHRASES:
        assert len(renderer.tokenizer.encode(phrase, add_special_tokens=False)) == 1, phrase


def test_a_number_is_the_same_token_after_any_character(renderer):
    ids = [
        renderer.tokenizer.encode(f"{before}42", add_special_tokens=False)[-1] for before in (" ", ",", "\n", "[", "x")
    ]
    assert len(set(ids)) == 1


# --- the corpus ----------------------------------------------------------------------------------------------


def encoded(renderer, count: int = 3) -> list[tuple[np.ndarray, np.ndarray]]:
    return [
        piece
        for number, (task, turns, drills) in enumerate(corpus.documents(0, count))
        for piece in corpus.encode(renderer, task, turns, drills, random.Random(number))
    ]


def test_the_corpus_is_the_same_every_time(renderer):
    for (ids, weights), (ids2, weights2) in zip(encoded(renderer), encoded(renderer), strict=True):
        assert np.array_equal(ids, ids2) and np.array_equal(weights, weights2)
        assert len(ids) == len(weights) and set(weights) <= {np.float32(corpus.SAID), np.float32(corpus.READ)}


def test_the_corpus_shows_one_bug_repairs_of_its_own_split_and_no_recovery():
    for task, turns, drills in corpus.documents(20, 8):
        assert task.split == "pretrain" and len(task.bug_kinds) == 1
        assert not any(turn.observation.startswith("ERROR") for turn in turns)
        assert not any(turn.action.arguments.get("command") == teacher.RESET_ALL for turn in turns)
        assert len(drills) == corpus.DRILLS_PER_TASK


def test_what_is_said_weighs_more_than_what_is_read(renderer):
    ids, weights = encoded(renderer)[0]
    said = renderer.tokenizer.decode(ids[weights == corpus.SAID])
    assert "Run the tests." in said and "[100%]" not in said


def test_a_search_goes_from_the_failure_to_the_repair(renderer):
    for turns in corpus.episodes(40, 4):
        ids, weights = corpus.encode_search(renderer, turns)
        text, said = renderer.tokenizer.decode(ids), renderer.tokenizer.decode(ids[weights == corpus.SAID])
        assert "1 passed" not in said and text.count("[100%]") + text.count("1 error") == 1
        assert said.count('"str_replace"') == 1 and said.rstrip().endswith("<|im_end|>")


# --- pre-training --------------------------------------------------------------------------------------------


def prepared(work: Path, tiny_base: Path) -> Path:
    """A work folder with a tiny corpus in it, as `build_data` leaves one."""
    work.mkdir()
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        (work / "tokenizer").mkdir(exist_ok=True)
        (work / "tokenizer" / name).write_bytes((tiny_base / name).read_bytes())
    rng = np.random.default_rng(0)
    ids = rng.integers(0, 400, 32 * 8 * 4).astype(np.int32)
    np.savez(work / "corpus.npz", ids=ids, weights=np.ones(len(ids), np.float32))
    return work


TRAIN = """
import os, signal, sys
from pathlib import Path
sys.path[:0] = [sys.argv[4], sys.argv[5]]
import test_base
from dagger_nb.base import pretrain
pretrain.CHECKPOINT_EVERY = 1
keep = pretrain._checkpoint
def kill(work, model, steppers, step):
    if step == int(sys.argv[2]) and sys.argv[3] == "before":
        os.kill(os.getpid(), signal.SIGKILL)
    keep(work, model, steppers, step)
    if step == int(sys.argv[2]):
        os.kill(os.getpid(), signal.SIGKILL)
pretrain._checkpoint = kill
pretrain.train(test_base.RECIPE, Path(sys.argv[1]))
"""


@pytest.mark.parametrize(("step", "when"), [(2, "after"), (5, "before")])
def test_a_killed_pretraining_goes_on_to_the_same_weights(tmp_path, tiny_base, monkeypatch, step, when):
    """Killed before and after NF4 rounding begins (at step 3 of 6)."""
    here = Path(__file__).parent
    straight = weights(pretrain.train(RECIPE, prepared(tmp_path / "straight", tiny_base)))
    killed = prepared(tmp_path / "killed", tiny_base)
    arguments = [sys.executable, "-c", TRAIN, str(killed), str(step), when, str(here), str(here.parent)]
    assert (
        subprocess.run(arguments, check=False, env=os.environ | {"OMP_NUM_THREADS": "1"}).returncode == -signal.SIGKILL
    )
    taken, keep = [], pretrain._step
    monkeypatch.setattr(pretrain, "_step", lambda *arguments: taken.append(1) or keep(*arguments))
    resumed = weights(pretrain.train(RECIPE, killed))
    assert len(taken) == RECIPE.steps - step + (when == "before")
    assert straight.keys() == resumed.keys()
    assert all(torch.equal(straight[name], resumed[name]) for name in straight)
    untrained = weights(pretrain.new_model(RECIPE, pretrain.build_data(RECIPE, killed)[0]))
    assert not all(torch.equal(straight[name], untrained[name]) for name in straight)


def weights(model) -> dict[str, torch.Tensor]:
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


def test_a_work_folder_of_another_recipe_is_refused(tmp_path, tiny_base):
    work = prepared(tmp_path / "work", tiny_base)
    pretrain._claim(work, RECIPE)
    pretrain._claim(work, RECIPE)
    with pytest.raises(DataError, match="another recipe"):
        pretrain._claim(work, pretrain.Recipe())


def test_nf4_rounding_hardly_moves_what_is_rounded_already_and_keeps_the_gradient():
    torch.manual_seed(0)
    weight = torch.nn.Parameter(torch.randn(64, 128) * 0.05)
    rounding = pretrain.NF4Rounding()
    once = rounding(weight)
    twice = rounding(once.detach())
    assert 0.03 < (once - weight).abs().mean() / weight.abs().mean() < 0.15
    assert torch.allclose(once, twice, rtol=0, atol=1e-6 * float(once.detach().abs().max()))
    once.sum().backward()
    assert torch.equal(weight.grad, torch.ones_like(weight))


def test_batches_are_a_permutation_of_the_blocks_and_depend_on_seed_and_epoch_alone():
    ids = np.arange(32 * 8 * 4, dtype=np.int32)
    ones = np.ones(len(ids), np.float32)

    def epoch(recipe: pretrain.Recipe) -> list[np.ndarray]:
        stream = pretrain.batches(recipe, ids, ones)
        return [next(stream)[0].numpy() for _ in range(4)]

    first = epoch(RECIPE)
    assert sorted(np.concatenate([batch.ravel() for batch in first]).tolist()) == ids.tolist()
    assert all(np.array_equal(a, b) for a, b in zip(first, epoch(RECIPE), strict=True))
    assert first[0].shape == (1, 256) and first[1].shape == (8, 32)  # a long row, then short ones


def test_the_rate_rises_stays_and_falls_to_zero():
    rates = [pretrain.rate(pretrain.Recipe(), step) for step in range(pretrain.Recipe().steps)]
    peak = rates.index(1.0)
    assert peak == pretrain.Recipe().warmup - 1 and rates[: peak + 1] == sorted(rates[: peak + 1])
    assert rates[peak:] == sorted(rates[peak:], reverse=True) and 0 < rates[-1] < 0.01


# --- a rebuilt base beside the committed one -----------------------------------------------------------------

COMMITTED = paths.data() / "base"


@pytest.fixture
def rebuilt(tmp_path) -> Path:
    """A copy of the committed base, to be changed."""
    return Path(shutil.copytree(COMMITTED, tmp_path / "rebuilt"))


def test_the_committed_base_is_itself(rebuilt, capsys):
    assert compare.main([str(rebuilt)]) == 0
    assert "every file" in capsys.readouterr().out


def test_another_tokenizer_or_a_missing_file_is_another_base_on_any_processor(rebuilt, monkeypatch, capsys):
    monkeypatch.setattr(compare, "on_dev", None)  # no rate can make up for them
    (rebuilt / "tokenizer.json").write_text((rebuilt / "tokenizer.json").read_text() + " ")
    (rebuilt / "generation_config.json").unlink()
    assert compare.main([str(rebuilt)]) == 1
    assert "other bytes than the committed ones: generation_config.json, tokenizer.json\n" in capsys.readouterr().out


@pytest.mark.parametrize(("solved", "code"), [(25, 0), (8, 1)])
def test_other_weights_have_to_solve_as_many_dev_tasks(rebuilt, monkeypatch, capsys, solved, code):
    (rebuilt / compare.WEIGHTS).write_bytes((rebuilt / compare.WEIGHTS).read_bytes() + b"\0")

    def outcomes(name, place, profile):
        count = solved if place == rebuilt else 24
        rows = [(name, 0, f"t{n}", "dev", f"r{n}", n < count) for n in range(40)]
        return pd.DataFrame(rows, columns=OUTCOME_COLUMNS)

    monkeypatch.setattr(compare, "on_dev", outcomes)
    assert compare.main([str(rebuilt)]) == code
    assert "committed: 24/40" in (said := capsys.readouterr().out) and f"rebuilt: {solved}/40" in said


@pytest.mark.slow
def test_changed_weights_are_examined_as_the_committed_ones_are(rebuilt, own_home):
    known = compare.on_dev("committed", COMMITTED, "smoke")
    zeros = {name: torch.zeros_like(tensor) for name, tensor in load_file(rebuilt / compare.WEIGHTS).items()}
    save_file(zeros, rebuilt / compare.WEIGHTS, metadata={"format": "pt"})
    other = compare.on_dev("rebuilt", rebuilt, "smoke")
    assert list(known.instance_id) == list(other.instance_id) and set(known.split) == {"dev"}
    assert known.resolved.any() and set(other.recipe) == {"rebuilt"} and not other.resolved.any()


def test_a_folder_without_a_model_is_refused(tmp_path, capsys):
    assert compare.main([str(tmp_path)]) == 2
    assert "pretrain --out" in capsys.readouterr().err
