"""The settings: frozen dataclasses that nest one level deep, with what each value may be; `config` reads them."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import re
from dataclasses import dataclass, field
from typing import Annotated, Any

# --- what a value may be ----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Range:
    """Numbers from `low` to `high`, both included unless `open` (then `low` itself is refused)."""

    low: float
    high: float = math.inf
    open: bool = False

    def admits(self, value: float) -> bool:
        return (self.low < value if self.open else self.low <= value) and value <= self.high

    def __str__(self) -> str:
        start = f"{'more than' if self.open else 'at least'} {self.low:g}"
        return start if self.high == math.inf else f"{start} and at most {self.high:g}"


@dataclass(frozen=True, slots=True)
class OneOf:
    """One of a few names."""

    names: tuple[str, ...]

    def admits(self, value: str) -> bool:
        return value in self.names

    def __str__(self) -> str:
        return "one of " + ", ".join(self.names)


@dataclass(frozen=True, slots=True)
class VariableName:
    """The name of an environment variable, in capitals: a key that is put here by mistake is refused, and not shown."""

    def admits(self, value: str) -> bool:
        return re.fullmatch("[A-Z_][A-Z0-9_]*", value) is not None

    def __str__(self) -> str:
        return "the name, in capitals, of the environment variable that holds the key"


@dataclass(frozen=True, slots=True)
class Address:
    """The URL of a server, or an empty text. A user name, a key or parameters in it would be written into every record:
    it is refused with them, and not shown."""

    def admits(self, value: str) -> bool:
        return not value or value.startswith(("http://", "https://")) and not {"@", "?"} & set(value)

    def __str__(self) -> str:
        return (
            "an address like http://localhost:8000/v1, without user name, key or parameters; the key belongs into the "
            "environment variable that teacher.key_variable names"
        )


Limit = Range | OneOf | VariableName | Address
SECRET = VariableName | Address  # what these refuse may hold a key, and is not shown

Count = Annotated[int, Range(0)]
Positive = Annotated[int, Range(1)]
Amount = Annotated[float, Range(0)]
Rate = Annotated[float, Range(0, open=True)]
Fraction = Annotated[float, Range(0, 1)]

SCRIPTED = "scripted"
GENERATED = "generated"  # the mini repositories: tasks.generate
HUB = ("swe-gym", "swe-bench-verified")
TASK_FILES = (".parquet", ".json", ".jsonl")

# --- the settings -----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class TaskSettings:
    """How many tasks of each split; every recipe trains on `dagger.rounds * tasks_per_round` trajectories.

    `source` is where they come from (`tasks.tasks_of` says what the splits are then).
    """

    tasks_per_round: Positive
    dev: Count
    test: Count
    longer: Count
    unseen: Count
    diagnostic: Count  # of the test tasks, the first so many also sampled, with slips, and on the teacher's states
    source: str = GENERATED  # or swe-gym, swe-bench-verified, or a .parquet, .json or .jsonl file of tasks


@dataclass(frozen=True, slots=True)
class EpisodeSettings:
    """Limits of one episode (turns, tokens, seconds) and how the student samples while data is collected."""

    max_turns: Positive = 60
    context: Annotated[int, Range(256)] = 8192  # tokens of the whole episode, prompt included
    max_new_tokens: Positive = 160  # tokens of one action
    loop_repeats: Annotated[int, Range(2)] = 3  # equal turns in a row that end the episode
    temperature: Amount = 0.7  # paper: T = 0.7, top-p 0.9 in roll-outs
    top_p: Annotated[float, Range(0, 1, open=True)] = 0.9
    cohort: Positive = 32  # episodes of one file, written whole; a local student decodes them together
    command_timeout_s: Rate = 60.0
    observation_chars: Annotated[int, Range(200)] = 2_000  # of one observation; a longer one loses its middle


@dataclass(frozen=True, slots=True)
class StudentSettings:
    """The student's checkpoint (a folder relative to the project, or a hub id), how it is packed, and who runs it."""

    path: str = "data/base"
    revision: str = ""  # of a hub id: a commit to pin; empty takes the newest and records it (`revisions`)
    template: str = ""  # file of a chat template in the place of the checkpoint's own, relative to the project
    quantise: bool = True  # NF4 base
    back_end: Annotated[str, OneOf(("local", "vllm"))] = "local"


@dataclass(frozen=True, slots=True)
class TeacherSettings:
    """Who labels: `scripted` is the oracle of the generated tasks; otherwise a model, at an endpoint or served here."""

    path: str = SCRIPTED  # or a checkpoint's folder, a hub id, the model's name at the endpoint
    revision: str = ""
    endpoint: Annotated[str, Address()] = ""  # OpenAI-compatible; empty: vLLM serves `path` on this machine
    style: Annotated[str, OneOf(("native", "hermes", "qwen3_coder", "text"))] = "native"  # how it calls tools
    key_variable: Annotated[str, VariableName()] = "TEACHER_API_KEY"  # holds the key, which itself is never kept
    timeout_s: Rate = 300.0  # of one try
    length_name: Annotated[str, OneOf(("max_tokens", "max_completion_tokens"))] = "max_tokens"  # as the server has it

    @property
    def scripted(self) -> bool:
        """Whether the oracle of the generated tasks labels, and no model."""
        return self.path == SCRIPTED


@dataclass(frozen=True, slots=True)
class LabelSettings:
    """Which states are labelled (`labelling.states_to_label`), and hard limits on what labels may cost, of a run and of
    each round (0: no limit)."""

    states: Annotated[str, OneOf(("every", "kth", "student", "first"))] = "every"
    k: Positive = 1  # every k-th turn, or the first k turns
    queries: Count = 0
    tokens: Count = 0  # prompt and completion together
    money: Amount = 0.0  # in the currency of the prices below
    round_queries: Count = 0
    round_tokens: Count = 0
    round_money: Amount = 0.0
    price_prompt: Amount = 0.0  # for a million tokens
    price_cached: Amount = 0.0  # of prompt tokens that the server had read before; 0: as price_prompt
    price_completion: Amount = 0.0


@dataclass(frozen=True, slots=True)
class SandboxSettings:
    """Where actions run. The limits are of one container; the local back end has its own (`sandboxes.Limits`)."""

    back_end: Annotated[str, OneOf(("local", "docker"))] = "local"
    image: str = ""  # for tasks that bring their files; empty: one made of this machine's own Python, git and bash
    cpus: Rate = 4.0
    memory_gb: Rate = 16.0
    processes: Positive = 8192  # threads count; libraries start one for each processor of the host, several times over
    images_gb: Rate = 200.0  # disk that pulled images may take before the least recently used are removed


@dataclass(frozen=True, slots=True)
class ServingSettings:
    """How vLLM is started on this machine."""

    python: str = ""  # the interpreter of vLLM's own environment; empty: this one
    weights: Annotated[str, OneOf(("nf4", "bf16", "dequantised"))] = "dequantised"  # of the base that adapters sit on
    memory_share: Annotated[float, Range(0, 1, open=True)] = 0.9  # of the GPU
    start_timeout_s: Rate = 900.0
    concurrency: Positive = 128  # episodes at once


@dataclass(frozen=True, slots=True)
class LoraSettings:
    """Low-rank adapters on every linear layer."""

    rank: Annotated[int, Range(1, 512)] = 16  # vLLM serves none above
    alpha: Positive = 32


# Of training, what decides memory, speed and the last bits of a sum, as the processor does, and nothing else.
OF_MEMORY = ("attention", "checkpointing", "head_rows", "row_tokens", "save_steps")


@dataclass(frozen=True, slots=True)
class TrainingSettings:
    """How an adapter is fitted. `batch_tokens` are tokens of packed trees in one optimiser step.

    From `row_tokens` on: memory and speed. They change the last bits of a result, and `longest_first` the order.
    """

    passes: Positive
    learning_rate: Rate = 2e-3
    schedule: Annotated[str, OneOf(("constant", "linear", "cosine"))] = "constant"
    warmup_steps: Count = 10
    batch_tokens: Positive = 4096
    clip: Rate = 1.0  # largest norm of the gradient
    normalisation: Annotated[str, OneOf(("token", "action"))] = "token"  # the loss is a mean over these
    lesson_weight: Amount = 1.0  # weight of labels that differ from what was executed
    aggregation: Annotated[str, OneOf(("union", "window", "current"))] = "current"  # paper: each online batch
    window: Positive = 2  # rounds kept by aggregation = "window"
    overlong: Annotated[str, OneOf(("error", "drop"))] = "error"  # labels that end beyond the context; drop counts them
    row_tokens: Positive = 8192  # of one forward and backward pass; a longer tree is a pass of its own
    head_rows: Positive = 4096  # predictions whose logits exist at the same time
    attention: Annotated[str, OneOf(("auto", "tree", "dense", "flex"))] = "auto"  # training.mask; auto: by the device
    checkpointing: bool = False  # a layer's activations are computed again in the backward pass, not kept
    longest_first: bool = False  # the longest batch opens the fit, so that a lack of memory shows at once
    save_steps: Positive = 100  # optimiser steps between two checkpoints


@dataclass(frozen=True, slots=True)
class DaggerSettings:
    """Rounds of collecting and training, and who acts in them."""

    rounds: Positive
    schedule: Annotated[str, OneOf(("paper", "constant", "linear", "cosine", "exponential", "step"))] = "paper"
    floor: Fraction = 0.0  # beta never falls below it (schedule "paper" has its own floor of 0.6)
    switch_turns_per_round: Positive = 10  # T_max(i) = min(this * i, max_turns); release: 20 of 100 turns
    filter: Annotated[str, OneOf(("finish", "none"))] = "finish"  # finish: keep submitted episodes only


@dataclass(frozen=True, slots=True)
class EvaluationSettings:
    """How students are judged: alone and greedy; in exams of their own also sampled, and with slips."""

    sampled_temperature: Rate = 0.7
    slip_rate: Fraction = 0.08  # turns at which a plausible wrong edit replaces the student's action


@dataclass(frozen=True, slots=True)
class Settings:
    """Everything that decides what a run computes, and `workers`, which decides only how fast."""

    profile: str
    tasks: TaskSettings
    training: TrainingSettings
    dagger: DaggerSettings
    seed: Count = 0
    workers: Positive = 2  # sandboxes at work at the same time
    threads: Positive = 1  # of torch in training; more only helps on idle cores, and changes the last bits
    episode: EpisodeSettings = field(default_factory=EpisodeSettings)
    student: StudentSettings = field(default_factory=StudentSettings)
    teacher: TeacherSettings = field(default_factory=TeacherSettings)
    labels: LabelSettings = field(default_factory=LabelSettings)
    sandbox: SandboxSettings = field(default_factory=SandboxSettings)
    serving: ServingSettings = field(default_factory=ServingSettings)
    lora: LoraSettings = field(default_factory=LoraSettings)
    evaluation: EvaluationSettings = field(default_factory=EvaluationSettings)

    @property
    def served(self) -> bool:
        """Whether vLLM runs the student, on a machine with a GPU; else this machine's processes do."""
        return self.student.back_end == "vllm"

    def to_dict(self) -> dict[str, Any]:
        """Nested plain values, as JSON would keep them (tuples become lists)."""
        return json.loads(json.dumps(dataclasses.asdict(self)))

    def digest(self) -> str:
        """SHA-256 (hex) of the canonical JSON without `workers`; equal settings find the same run folder."""
        decisive = {name: value for name, value in self.to_dict().items() if name != "workers"}
        text = json.dumps(decisive, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()
