"""A hub's model is one commit for all who load it, also when another is pushed; a folder has none."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from dagger_nb import config, paths, revisions
from dagger_nb.errors import EnvironmentProblem
from dagger_nb.provenance import provenance
from dagger_nb.store import read_json

OLD, NEW, PINNED = "a" * 40, "b" * 40, "c" * 40


@pytest.fixture
def asked(monkeypatch, own_home) -> list[tuple[str, str | None]]:
    """A hub whose newest commit is OLD at first and then NEW; the questions that it was asked."""
    questions: list[tuple[str, str | None]] = []

    def download(repo: str, name: str, revision: str | None = None) -> str:
        questions.append((repo, revision))
        return f"snapshots/{OLD if len(questions) == 1 else NEW}/{name}"

    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    return questions


def test_what_was_newest_at_first_stays_until_the_runs_are_removed(asked):
    assert revisions.recorded("org/model") == ""
    assert [revisions.commit_of("org/model") for _ in range(3)] == [OLD] * 3
    assert revisions.recorded("org/model") == OLD and asked == [("org/model", None)]
    assert revisions.commit_of("org/model", "a-tag") == NEW and asked[1:] == [("org/model", "a-tag")]
    shutil.rmtree(paths.runs())
    assert revisions.commit_of("org/model") == NEW


def test_a_commit_and_a_folder_are_not_asked_for(asked, tiny_base):
    assert revisions.commit_of("org/model", PINNED) == revisions.recorded("org/model", PINNED) == PINNED
    assert revisions.commit_of(str(tiny_base), "main") == revisions.recorded(str(tiny_base)) == ""
    assert not asked and not paths.runs().exists()


def test_a_model_that_is_nowhere_says_what_to_check(own_home, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(EnvironmentProblem, match=r"no checkpoint 'org/none'.*its revision.*hf download org/none"):
        revisions.commit_of("org/none")
    assert not revisions.recorded("org/none")


def test_the_manifest_names_commits_of_the_hubs_models_only(asked):
    assert "models" not in provenance(config.load("smoke"))
    settings = config.load("smoke", {"student.path": "org/model", "student.revision": "v1"})
    revisions.commit_of("org/model", "v1")
    assert provenance(settings)["models"] == {"student": OLD}


LOAD = """
import json, sys
from pathlib import Path
from dagger_nb import config
from dagger_nb.experiment import Experiment
from dagger_nb.fleet import Fleet
from dagger_nb.serving.weights import local_checkpoint
from dagger_nb.students import load_for_acting
from dagger_nb.training import session

class Loaded(Exception):
    pass

def load_student(base, **more):
    raise Loaded(more["revision"])

session.load_student = load_student
settings = config.load("smoke", {"student.path": "org/tiny", "threads": 1})
found = Experiment("sft", settings, Fleet(1), print)
facts = {"server": local_checkpoint("org/tiny").name, "run": found.store.root.name}
facts["tokenizer"] = found.renderer.tokenizer.chat_template[:1]
facts["acting"] = load_for_acting(found.student_after(0)).renderer.tokenizer.chat_template[:1]
try:
    session.train_adapter([], base=found.base, previous=None, settings=settings, renderer=found.renderer, tasks={},
                          folder=Path(sys.argv[1]).parent / "adapter", seed=0, log=print)
except Loaded as told:
    facts["trainer"] = str(told)
Path(sys.argv[1]).write_text(json.dumps(facts))
"""


@pytest.mark.slow
def test_tokenizer_weights_trainer_and_server_take_the_recorded_commit(tiny_base, own_home, tmp_path):
    """With a hub's cache of two commits: the newest changes between two processes of a run, the model does not."""
    cache = tmp_path / "hub" / "models--org--tiny"
    for commit in (OLD, NEW):
        shutil.copytree(tiny_base, cache / "snapshots" / commit)
    template = next((cache / "snapshots" / NEW).glob("chat_template*"))
    template.write_text("\n" + template.read_text())  # the newer commit says something else
    (cache / "refs").mkdir()
    facts = []
    for newest in (OLD, NEW):
        (cache / "refs" / "main").write_text(newest)
        facts.append(_load(tmp_path))
    assert facts[0] == facts[1] and facts[0]["server"] == OLD and facts[0]["trainer"] == OLD
    assert facts[0]["tokenizer"] == facts[0]["acting"] != "\n"
    assert read_json(paths.runs() / "models.json") == {"org/tiny": OLD}
    (paths.runs() / "models.json").unlink()
    again = _load(tmp_path)
    assert (again["server"], again["trainer"], again["tokenizer"], again["acting"]) == (NEW, NEW, "\n", "\n")


def _load(folder: Path) -> dict[str, object]:
    offline = {"HF_HUB_CACHE": str(folder / "hub"), "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(paths.project())}
    told = folder / "told.json"
    done = subprocess.run(
        [sys.executable, "-c", LOAD, str(told)], env=os.environ | offline, check=False, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(told.read_text())
