"""What vLLM serves is what the trainer trains: its numbers, its words, its adapters; and it never outlives us."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from agreement import TIE, difference, same_words

from dagger_nb.base.reenact import episode
from dagger_nb.episode import Conditions, Limits, Plan
from dagger_nb.errors import DataError, EnvironmentProblem, PolicyError
from dagger_nb.mixing import STUDENT_ALONE
from dagger_nb.policies import teacher
from dagger_nb.policies.protocol import Sampling
from dagger_nb.records import Action, Turn
from dagger_nb.rollout import run_cohort
from dagger_nb.serving import Server
from dagger_nb.students import load_for_acting
from dagger_nb.tasks import tasks
from dagger_nb.training.model import load_adapter, load_student

ROOT = Path(__file__).resolve().parents[2]
LOGPROB_TOLERANCE = 5e-4  # nats, the largest difference of any token; measured 8e-5 on a CPU in fp32
GREEDY = Sampling(max_new_tokens=96)
NAMES = ("base", "first adapter", "second adapter")


@pytest.fixture(scope="module")
def sequences(renderer) -> list[list[int]]:
    """Three whole episodes of the teacher, in the student's tokens."""
    return [
        [*renderer.prompt_ids(task)]
        + [
            i
            for turn in episode(task)
            for i in (*renderer.action_ids(turn.action), *renderer.observation_ids(turn.observation))
        ]
        for task in tasks("test", 3)
    ]


@pytest.fixture(scope="module")
def trainer(versions, sequences) -> list[list[torch.Tensor]]:
    """The trainer's log-probabilities of each sequence under each version: NF4 base, peft adapter, fp32."""
    found = []
    for version in versions:
        model = load_student(version.base)
        model = load_adapter(model, Path(version.adapter)) if version.adapter else model
        found.append([log_probabilities(model.eval(), ids) for ids in sequences])
    return found


@torch.inference_mode()
def log_probabilities(model, ids: list[int]) -> torch.Tensor:
    """[len(ids) - 1]: of each token but the first."""
    logits = model(input_ids=torch.tensor([ids])).logits[0, :-1]
    return torch.log_softmax(logits.double(), dim=-1).gather(1, torch.tensor(ids[1:])[:, None])[:, 0]


async def scores(server: Server, version, renderer, sequences) -> list[torch.Tensor]:
    async with server.student(version, renderer) as student:
        return [torch.tensor(await student.score(ids), dtype=torch.float64) for ids in sequences]


# --- the same numbers, the same words ---------------------------------------------------------------------


@pytest.mark.parametrize("which", range(3), ids=NAMES)
def test_served_log_probabilities_are_the_trainers(which, server, versions, renderer, sequences, trainer):
    found = asyncio.run(scores(server, versions[which], renderer, sequences))
    worst = max(float((a - b).abs().max()) for a, b in zip(found, trainer[which], strict=True))
    print(f"{NAMES[which]}: {sum(map(len, found))} tokens, largest difference {worst:.1e} nats")
    assert worst < LOGPROB_TOLERANCE
    for other in set(range(3)) - {which}:  # and nobody else's
        apart = max(float((a - b).abs().max()) for a, b in zip(found, trainer[other], strict=True))
        assert apart > 100 * LOGPROB_TOLERANCE


@pytest.mark.parametrize("which", range(2), ids=NAMES[:2])
def test_greedy_trajectories_are_the_local_models(which, server, versions, renderer, sandboxes):
    """Every state of the local trajectories is asked; equal answers everywhere are equal trajectories."""
    local, chosen = load_for_acting(versions[which]), tasks("test", 6)
    limits = Limits(max_turns=12, context=5000)
    rollouts = run_cohort(
        [Plan(task) for task in chosen],
        Conditions(STUDENT_ALONE, GREEDY, 0, versions[which].name, limits),
        session=local.session(len(chosen), limits.context),
        teacher=teacher.label,
        renderer=renderer,
        factory=sandboxes,
    )

    async def ask() -> list[list[tuple[int, ...]]]:
        async with server.student(versions[which], renderer) as student:

            async def of(task, turns) -> list[tuple[int, ...]]:
                states = [student.answer(task, turns[:n], GREEDY, 0) for n in range(len(turns))]
                return [answer.token_ids for answer in await asyncio.gather(*states)]

            return await asyncio.gather(
                *(of(task, r.trajectory.turns) for task, r in zip(chosen, rollouts, strict=True))
            )

    found, states, differences = asyncio.run(ask()), 0, []
    for task, rollout, answers in zip(chosen, rollouts, found, strict=True):
        for turn, said in zip(rollout.trajectory.turns, answers, strict=True):
            states += 1
            if not same_words(turn.token_ids, said):
                differences.append(difference(local, renderer, task, rollout.trajectory.turns, turn.index, said))
    print(f"{NAMES[which]}: {states} states of {len(chosen)} trajectories, differing: {differences}")
    assert states > 20
    assert all(found.gap < TIE for found in differences)


# --- what is asked ----------------------------------------------------------------------------------------


def test_answers_have_ids_log_probabilities_and_a_bill(server, versions, renderer):
    task = tasks("test", 1)[0]

    async def ask():
        async with server.student(versions[0], renderer) as student:
            first = await student.answer(task, (), GREEDY, 0)
            again = await student.answer(task, (), GREEDY, 0)
            cut = await student.answer(task, (), Sampling(max_new_tokens=3), 0)
            return first, again, cut, await student.score([*renderer.prompt_ids(task), *first.token_ids])

    first, again, cut, scored = asyncio.run(ask())
    read = len(renderer.prompt_ids(task))
    assert first.token_ids[-1] == renderer.end_id and renderer.end_id not in first.token_ids[:-1]
    assert first.action == renderer.parse(first.token_ids) and first.action.tool
    assert (first.usage.prompt, first.usage.completion) == (read, len(first.token_ids))
    assert again.token_ids == first.token_ids and again.usage.cached > read // 2
    assert cut.token_ids == first.token_ids[:3]
    torch.testing.assert_close(
        torch.tensor(first.logprobs), torch.tensor(scored[read - 1 :]), rtol=0, atol=LOGPROB_TOLERANCE
    )


def test_a_seed_decides_what_is_sampled(server, versions, renderer):
    """In a state that the student has never seen the like of, so that it is unsure; alone, and in a batch."""
    strange = Turn(0, "student", Action("", "", raw="?"), "?", tuple(range(600, 640)), 0)

    async def ask(*seeds: int):
        async with server.student(versions[1], renderer) as student:
            answers = [student.answer(tasks("test", 1)[0], (strange,), Sampling(2.0, 1.0, 24), seed) for seed in seeds]
            return [answer.token_ids for answer in await asyncio.gather(*answers)]

    alone, together = asyncio.run(ask(2**52 + 5)), asyncio.run(ask(1, 2**52 + 5, 2, 3))
    assert together[1] == alone[0]
    assert len(set(together)) == 4


# --- adapters ---------------------------------------------------------------------------------------------


def test_adapters_are_swapped_and_nothing_of_the_old_one_stays(server, versions, renderer, sequences):
    short = [ids[:400] for ids in sequences[:1]]
    turns = [asyncio.run(scores(server, versions[which], renderer, short))[0] for which in (1, 2, 1, 0)]
    torch.testing.assert_close(turns[0], turns[2], rtol=0, atol=LOGPROB_TOLERANCE)
    assert min(float((turns[a] - turns[b]).abs().max()) for a, b in ((0, 1), (1, 2), (2, 3))) > 0.1

    async def after_the_block() -> None:
        async with server.student(versions[1], renderer) as student:
            first = await student.answer(tasks("test", 1)[0], (), GREEDY, 0)
            with server.adapter(versions[2]):  # two at once
                assert (await student.answer(tasks("test", 1)[0], (), GREEDY, 0)).token_ids == first.token_ids
            student.model = versions[2].name  # gone
            await student.answer(tasks("test", 1)[0], (), GREEDY, 0)

    with pytest.raises(PolicyError, match="status 404.*does not exist"):
        asyncio.run(after_the_block())


def test_an_adapter_that_vllm_refuses_is_an_error_in_its_words(server, versions, tmp_path):
    with pytest.raises(DataError, match="no adapter in"), server.adapter(replace(versions[1], adapter=str(tmp_path))):
        pass
    with pytest.raises(EnvironmentProblem, match="did not load .*already"):
        with server.adapter(versions[1]), server.adapter(versions[1]):
            pass


# --- it never outlives us ---------------------------------------------------------------------------------

STARTER = """
import sys, time
from pathlib import Path
from dagger_nb.settings import ServingSettings
from dagger_nb.serving import ServedModel, Server, find_engine
model = ServedModel(Path(sys.argv[2]), 1024)
with Server(model, find_engine(sys.argv[1]), ServingSettings(start_timeout_s=1800.0), log=Path("vllm.log")) as server:
    print(server.port, flush=True)
    time.sleep(3600)
"""


def family(mark: str) -> dict[int, str]:
    """Every living process whose environment holds the mark, or that is in the session of one: pid -> command line."""
    marked = {pid for pid in living() if mark.encode() in read(pid, "environ")}
    sessions = {os.getsid(pid) for pid in marked} - {os.getsid(0)}
    members = marked | {pid for pid in living() if session_of(pid) in sessions}
    return {pid: read(pid, "cmdline").replace(b"\0", b" ").decode(errors="replace") for pid in sorted(members)}


def living() -> list[int]:
    return [int(folder.name) for folder in Path("/proc").glob("[0-9]*") if b") Z " not in read(folder.name, "stat")]


def session_of(pid: int) -> int:
    try:
        return os.getsid(pid)
    except ProcessLookupError:
        return 0


def read(pid: int | str, name: str) -> bytes:
    try:
        return Path(f"/proc/{pid}/{name}").read_bytes()
    except OSError:
        return b""


def gone(pids: Iterable[int], seconds: float = 120.0) -> bool:
    end = time.monotonic() + seconds
    while set(pids) & set(living()) and time.monotonic() < end:
        time.sleep(0.2)
    return not set(pids) & set(living())


def test_a_killed_notebook_leaves_no_server(served, engine, tmp_path):
    mark = f"dagger-{uuid.uuid4().hex}"
    parent = subprocess.Popen(
        [sys.executable, "-c", STARTER, engine.python, str(served.folder)],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT), "DAGGER_TEST_MARK": mark},
        stdout=subprocess.PIPE,
        text=True,
    )
    line = next(line for line in parent.stdout if line.strip().isdigit())
    before = family(mark)
    assert sum("vllm" in command.lower() for command in before.values()) >= 2, before  # the API's and the engine
    began = time.monotonic()
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    assert gone(before), family(mark)
    print(f"{len(before)} processes gone {time.monotonic() - began:.1f} s after the kill")
    with socket.socket() as probe:
        assert probe.connect_ex(("127.0.0.1", int(line))) != 0


def test_an_engine_that_dies_ends_the_run_with_its_log(
    served, engine, settings, versions, renderer, tmp_path, monkeypatch
):
    mark = f"dagger-{uuid.uuid4().hex}"
    monkeypatch.setenv("DAGGER_TEST_MARK", mark)
    before: dict[int, str] = {}

    async def ask(server: Server) -> None:
        async with server.student(versions[0], renderer) as student:
            await student.answer(tasks("test", 1)[0], (), GREEDY, 0)
            before.update(family(mark))
            engines = [pid for pid, command in before.items() if "VLLM::" in command]
            for pid in engines:
                os.kill(pid, signal.SIGKILL)
            assert engines
            await student.answer(tasks("test", 1)[0], (), GREEDY, 0)

    with pytest.raises(EnvironmentProblem, match=r"(?s)vLLM server (has ended|does not answer).*The end of .*vllm.log"):
        with Server(served, engine, settings, log=tmp_path / "vllm.log") as server:
            asyncio.run(ask(server))
    assert gone(before), family(mark)
