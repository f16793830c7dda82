"""The crew of a served student as far as it needs no vLLM; tests/serving has the rest."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterator
from contextlib import closing
from types import SimpleNamespace

import pytest

from dagger_nb import config, paths
from dagger_nb.answers import AnswerFile
from dagger_nb.bill import Account, Bill
from dagger_nb.crew import ServedCrew
from dagger_nb.errors import ConfigError, EnvironmentProblem
from dagger_nb.policies.endpoint import EndpointPolicy
from dagger_nb.sizing.gpus import LocalGpu
from dagger_nb.store import write_json


class Stand:
    """What stands in for a server; it does not come up while `refuses`."""

    up: list[str] = []
    refuses = ""
    on_gpu = True

    def __init__(self, role: str) -> None:
        self.role, self.running, self.url = role, False, f"http://{role}"

    def __enter__(self) -> Stand:
        if self.role == Stand.refuses:
            raise EnvironmentProblem("out of memory")
        self.running = True
        Stand.up.append(self.role)
        return self

    def __exit__(self, *_: object) -> None:
        self.running = False
        Stand.up.remove(self.role)

    def close(self) -> None:
        assert not self.running

    def provenance(self) -> dict[str, str]:
        return {"engine": "none"}


@pytest.fixture
def crew(tiny_base, own_home, monkeypatch) -> Iterator[ServedCrew]:
    for role in ("student", "teacher"):
        monkeypatch.setattr(f"dagger_nb.serving.{role}_server", lambda *_, role=role, **__: Stand(role))
    monkeypatch.setattr("dagger_nb.crew.local_gpus", tuple)
    teacher = {"teacher.path": "some/teacher", "teacher.style": "hermes"}
    served = {"student.back_end": "vllm", "student.path": str(tiny_base), **teacher}
    with ServedCrew(config.load("smoke", served)) as found:
        yield found
    assert Stand.up == []


def test_a_server_that_does_not_come_up_leaves_none_and_the_next_try_starts_both(crew, monkeypatch):
    """Else the teacher of the first try would hold its share of the GPU beside the second try's."""
    monkeypatch.setattr(Stand, "refuses", "student")
    with pytest.raises(EnvironmentProblem, match="out of memory"):
        crew._start()
    assert Stand.up == []
    monkeypatch.setattr(Stand, "refuses", "")
    crew._start()
    crew._start()  # they are up
    assert Stand.up == ["teacher", "student"]


def test_a_teacher_that_is_served_here_is_known_by_the_commit_that_is_served(crew):
    """Answers are kept, and labels named, by it; a pushed commit changes neither."""
    commit = "a" * 40
    write_json(paths.runs() / "models.json", {"some/teacher": commit})
    crew._start()
    assert (crew._teacher.revision, crew._teacher.endpoint) == (commit, "http://teacher/v1")

    async def name() -> str:
        bill = Bill(file, Account("run", 1))
        async with EndpointPolicy(crew._teacher, bill, jitter=random.Random(0)) as policy:
            return policy.name

    with closing(AnswerFile(paths.answers())) as file:
        assert asyncio.run(name()) == f"some/teacher@{commit}"


@pytest.mark.parametrize("profile", ["qwen3-4b", "qwen3-8b"])
def test_one_gpu_of_80_gb_is_divided_or_refused_before_a_server_starts(own_home, monkeypatch, profile):
    monkeypatch.setattr("dagger_nb.crew.renderer_of", lambda *_: None)
    monkeypatch.setattr("dagger_nb.crew.local_gpus", lambda: [LocalGpu("NVIDIA H100 80GB HBM3", 81559 * 2**20, "570")])
    with (
        ServedCrew(config.load(profile)) as crew,
        pytest.raises(ConfigError, match="give -p teacher.path=Qwen/.*-FP8"),
    ):
        crew._start()
    smaller = config.load(profile, {"teacher.path": "Qwen/Qwen3-Coder-30B-A3B-Instruct-FP8"})
    with ServedCrew(smaller) as crew:
        student, teacher = (settings.serving.memory_share for settings in crew._shares())
    assert student + teacher == pytest.approx(0.9) and teacher * 81559 * 2**20 > 31.2e9


@pytest.mark.parametrize("role", [0, 1])
def test_a_server_that_has_ended_is_started_again_with_the_other(crew, role):
    crew._start()
    before = list(crew._up)
    before[role].running = False
    crew._start()
    assert Stand.up == ["teacher", "student"] and not set(before) & set(crew._up)
    crew.rest()
    assert Stand.up == []


def test_servers_that_hold_no_gpu_go_on_while_the_student_is_trained(crew, monkeypatch):
    monkeypatch.setattr(Stand, "on_gpu", False)
    crew._start()
    before = list(crew._up)
    crew.rest()
    crew._start()
    assert crew._up == before and Stand.up == ["teacher", "student"]


def test_a_teacher_that_cannot_label_is_refused_before_anything_is_pulled(crew, monkeypatch):
    async def refuse(policy: EndpointPolicy, **how: object) -> str:
        assert how["sampling"].temperature == 0.7 and how["context"] == 8192
        raise ConfigError(f"{policy.settings.endpoint} calls no tools")

    monkeypatch.setattr("dagger_nb.policies.admission.check", refuse)
    monkeypatch.setattr("dagger_nb.crew.factory_for", lambda *_, **__: pytest.fail("images would be pulled"))
    with pytest.raises(ConfigError, match="http://teacher/v1 calls no tools"):
        list(crew.run([SimpleNamespace(run="run", round=1, cache=None)]))


def test_how_the_student_is_served_is_told_without_a_server(crew):
    """The manifest of a run that was resumed after its last episode says it too."""
    assert crew.facts() == {"serving": {"engine": "none"}} and Stand.up == []
