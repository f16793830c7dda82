"""The profiles, as tables of budgets over the defaults of `config`, whose `load` reads and checks them.

The laptop's profiles set budgets only, all the same ones. The served profiles set the same budgets and, all the same
names again, what the paper's scale changes; `deviations` says where and why they leave the paper.
"""

from __future__ import annotations

from collections.abc import Mapping

LAPTOP_GB = {"smoke": 1.0, "tiny": 2.0, "study": 20.0}  # free space for runs, caches and reports; others are planned
PREFIX_TEMPLATE = "data/models/qwen3.jinja"  # for hybrid Qwen3 models, whose own template rewrites earlier turns

_SERVED: Mapping[str, object] = {
    "tasks.source": "swe-gym",
    "episode.max_turns": 100,
    "episode.context": 65_536,
    "episode.max_new_tokens": 2_048,
    "episode.temperature": 0.7,
    "episode.top_p": 0.9,
    "episode.cohort": 1,  # a file an episode: a killed run loses no finished one
    "episode.command_timeout_s": 120.0,
    "episode.observation_chars": 10_000,  # a hundred lines of most files; some 2,500 tokens
    "student.path": "Qwen/Qwen3-4B-Instruct-2507",
    "student.template": "",
    "student.quantise": True,
    "student.back_end": "vllm",
    "teacher.path": "Qwen/Qwen3-Coder-30B-A3B-Instruct",
    "teacher.style": "qwen3_coder",
    "sandbox.back_end": "docker",
    "sandbox.cpus": 4.0,
    "sandbox.memory_gb": 16.0,
    "lora.rank": 32,
    "lora.alpha": 64,
    "training.learning_rate": 3e-5,
    "training.schedule": "constant",
    "training.batch_tokens": 819_200,  # about 16 trees of the assumed mean length
    "training.aggregation": "current",
    "training.overlong": "drop",
    "training.row_tokens": 65_536,
    "training.checkpointing": True,
    "training.longest_first": True,
    "training.save_steps": 10,
    "dagger.schedule": "paper",
    "dagger.switch_turns_per_round": 20,
    "dagger.filter": "finish",
}
_PAPER_BUDGETS: Mapping[str, object] = {
    "tasks.tasks_per_round": 512,
    "tasks.dev": 0,
    "tasks.test": 100,  # the holdout of SWE-Gym
    "tasks.longer": 0,
    "tasks.unseen": 500,  # SWE-bench Verified
    "tasks.diagnostic": 50,
    "training.passes": 3,
    "dagger.rounds": 5,
    "workers": 8,
    "serving.concurrency": 8,  # mean episodes that the caches of an H200 hold beside both models
}
PROFILES: Mapping[str, Mapping[str, object]] = {
    "smoke": {
        "tasks.tasks_per_round": 3,
        "tasks.dev": 4,
        "tasks.test": 4,
        "tasks.longer": 2,
        "tasks.unseen": 2,
        "tasks.diagnostic": 4,
        "training.passes": 1,
        "dagger.rounds": 2,
    },
    "tiny": {
        "tasks.tasks_per_round": 24,
        "tasks.dev": 24,
        "tasks.test": 40,
        "tasks.longer": 16,
        "tasks.unseen": 16,
        "tasks.diagnostic": 16,
        "training.passes": 3,
        "dagger.rounds": 3,
    },
    "study": {
        "tasks.tasks_per_round": 48,
        "tasks.dev": 100,
        "tasks.test": 300,
        "tasks.longer": 60,
        "tasks.unseen": 60,
        "tasks.diagnostic": 60,
        "training.passes": 3,
        "dagger.rounds": 4,
    },
    "qwen3-0.6b": {
        **_SERVED,
        "tasks.tasks_per_round": 16,
        "tasks.dev": 0,
        "tasks.test": 16,
        "tasks.longer": 0,
        "tasks.unseen": 16,
        "tasks.diagnostic": 8,
        "training.passes": 1,
        "dagger.rounds": 2,
        "workers": 8,
        "serving.concurrency": 16,
        "episode.max_turns": 30,
        "episode.context": 32_768,
        "student.path": "Qwen/Qwen3-0.6B",
        "student.template": PREFIX_TEMPLATE,
        "teacher.path": "Qwen/Qwen3-4B-Instruct-2507",
        "teacher.style": "hermes",
        "training.batch_tokens": 65_536,
        "training.row_tokens": 32_768,
    },
    "qwen3-4b": {**_SERVED, **_PAPER_BUDGETS},
    "qwen3-8b": {
        **_SERVED,
        **_PAPER_BUDGETS,
        "student.path": "Qwen/Qwen3-8B",
        "student.template": PREFIX_TEMPLATE,
        "episode.context": 40_960,
    },
}
