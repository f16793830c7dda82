"""The crew of a served student as far as it needs no vLLM; tests/serving has the rest."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from dagger_nb import config
from dagger_nb.crew import ServedCrew
from dagger_nb.errors import EnvironmentProblem


class Stand:
    """What stands in for a server; it does not come up while `refuses`."""

    up: list[str] = []
    refuses = ""

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

    def provenance(self) -> dict[str, str]:
        return {"engine": "none"}


@pytest.fixture
def crew(tiny_base, own_home, monkeypatch) -> Iterator[ServedCrew]:
    for role in ("student", "teacher"):
        monkeypatch.setattr(f"dagger_nb.serving.{role}_server", lambda *_, role=role, **__: Stand(role))
    monkeypatch.setattr("dagger_nb.crew.local_gpus", tuple)
    served = {"student.back_end": "vllm", "student.path": str(tiny_base), "teacher.path": "some/teacher"}
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


@pytest.mark.parametrize("role", [0, 1])
def test_a_server_that_has_ended_is_started_again_with_the_other(crew, role):
    crew._start()
    before = list(crew._up)
    before[role].running = False
    crew._start()
    assert Stand.up == ["teacher", "student"] and not set(before) & set(crew._up)
    crew.rest()
    assert Stand.up == []
