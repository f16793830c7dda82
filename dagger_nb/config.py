"""Profiles and strict settings.

Settings are frozen dataclasses that nest one level deep. A profile is a table of budgets over the defaults,
an override is a dotted name (`training.passes`) with a value. Nothing is guessed: an unknown name, a value of
the wrong type or out of range, and a combination that cannot work are each refused when they are read.
"""

from __future__ import annotations

import ast
import dataclasses
import difflib
import functools
import hashlib
import json
import math
import re
import typing
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any

from dagger_nb.errors import ConfigError
from dagger_nb.profiles import PROFILES

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
    endpoint: str = ""  # URL of any OpenAI-compatible server; empty: vLLM serves `path` on this machine
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
    processes: Positive = 512
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

    rank: Annotated[int, Range(1, 1024)] = 16
    alpha: Positive = 32


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


# --- reading ----------------------------------------------------------------------------------------------


def load(profile: str, overrides: Mapping[str, object] | None = None) -> Settings:
    """The settings of a profile with overrides on top (`{"training.passes": 2, "seed": 1}`).

    Raises:
        ConfigError: an unknown profile or name, a value of the wrong type or out of range, or a combination
            that cannot work. The message names the setting, the value, and what is allowed.
    """
    if profile not in PROFILES:
        raise ConfigError(f"unknown profile {profile!r}{nearest(profile, PROFILES)}; profiles: {', '.join(PROFILES)}")
    values: dict[str, dict[str, object]] = {"": {"profile": profile}}
    for name, value in {**PROFILES[profile], **(overrides or {})}.items():
        group, _, leaf = name.rpartition(".")
        values.setdefault(group, {})[leaf] = _checked(name, value)
    groups = {name: kind(**values.get(name, {})) for name, kind in _groups().items()}
    settings = Settings(**values[""], **groups)
    _refuse_degenerate(settings)
    return settings


def pairs(texts: Sequence[str]) -> dict[str, Any]:
    """`name=value` pairs of a command line; a value is read as a Python literal where it is one, else as text.

    Raises:
        ConfigError: a text that is no pair.
    """
    values: dict[str, Any] = {}
    for text in texts:
        name, mark, value = text.partition("=")
        if not mark or not name.strip():
            raise ConfigError(f"-p {text!r} is not name=value; write for example -p seed=1")
        try:
            values[name.strip()] = ast.literal_eval(value)
        except (ValueError, SyntaxError):
            values[name.strip()] = value
    return values


def setting_names() -> tuple[str, ...]:
    """Every name that `load` takes as an override, sorted."""
    return tuple(sorted(_kinds()))


def nearest(name: object, known: Collection[str]) -> str:
    """` (did you mean 'x'?)` for the known name most like `name`, or an empty string where none is near."""
    close = difflib.get_close_matches(str(name), sorted(known), n=1, cutoff=0.5)
    return f" (did you mean {close[0]!r}?)" if close else ""


@functools.cache
def _groups() -> dict[str, type]:
    hints = typing.get_type_hints(Settings)
    return {name: kind for name, kind in hints.items() if dataclasses.is_dataclass(kind)}


@functools.cache
def _kinds() -> dict[str, Any]:
    """Dotted name of each setting -> its annotated type."""
    kinds = dict(typing.get_type_hints(Settings, include_extras=True))
    del kinds["profile"]
    for group, kind in _groups().items():
        del kinds[group]
        hints = typing.get_type_hints(kind, include_extras=True)
        kinds |= {f"{group}.{leaf}": hint for leaf, hint in hints.items()}
    return kinds


def _checked(name: str, value: object) -> object:
    kinds = _kinds()
    if name not in kinds:
        leaves = [known for known in kinds if known.rpartition(".")[2] == name]
        hint = f" (did you mean {leaves[0]!r}?)" if leaves else nearest(name, kinds)
        raise ConfigError(f"unknown setting {name!r}{hint}; see dagger_nb.config.setting_names() for all of them")
    base, *limits = typing.get_args(kinds[name]) or (kinds[name],)
    if base is float and type(value) is int:
        value = float(value)
    if type(value) is not base:
        raise ConfigError(f"{name} = {value!r} is refused: it must be {_WORDS[base]}, not {type(value).__name__}")
    if base is float and not math.isfinite(value):
        raise ConfigError(f"{name} = {value!r} is refused: it must be finite")
    for limit in limits:
        if not limit.admits(value):
            shown = "(not shown)" if isinstance(limit, VariableName) else repr(value)
            raise ConfigError(f"{name} = {shown} is refused: it must be {limit}{_near_choice(value, limit)}")
    return value


def _near_choice(value: object, limit: Range | OneOf | VariableName) -> str:
    return nearest(value, limit.names) if isinstance(limit, OneOf) else ""


_WORDS = {int: "a whole number", float: "a number", str: "a text", bool: "True or False"}


def _refuse_degenerate(settings: Settings) -> None:
    """Refuse combinations that would waste a run or make its result meaningless."""
    for message, refused in {**_general(settings), **_of_source(settings)}.items():
        if refused:
            raise ConfigError(message)


def _general(settings: Settings) -> dict[str, bool]:
    """Message -> whether it is deserved."""
    episode, student, teacher = settings.episode, settings.student.path.strip(), settings.teacher.path.strip()
    return {
        f"episode.max_new_tokens = {episode.max_new_tokens} leaves no room for a prompt in "
        f"episode.context = {episode.context}; lower the first": episode.max_new_tokens >= episode.context,
        f"teacher.path = student.path = {student!r}: a student that labels itself learns nothing; "
        "name another teacher": bool(student) and student.rstrip("/").lower() == teacher.rstrip("/").lower(),
        "tasks.test = 0 leaves nothing to report; set it to at least 1": settings.tasks.test == 0,
        "student.path is empty; name a checkpoint's folder or hub id": not student,
        "teacher.path is empty; use 'scripted', or name a checkpoint": not teacher,
        "teacher.endpoint is set, but teacher.path = 'scripted' asks nobody; name the endpoint's model in "
        "teacher.path, or leave teacher.endpoint out": settings.teacher.scripted and bool(settings.teacher.endpoint),
    }


SMALLEST_CONTEXT = 16_384  # prompt, a long issue text and one cut observation of a real repository


def _of_source(settings: Settings) -> dict[str, bool]:
    """Message -> whether it is deserved, about where tasks come from."""
    source, context = settings.tasks.source, settings.episode.context
    hub = source in HUB
    known = f"{GENERATED}, {', '.join(HUB)}, or a file that ends in {', '.join(TASK_FILES)}"
    return {
        f"tasks.source = {source!r} is refused: it must be {known}{nearest(source, (GENERATED, *HUB))}": not (
            hub or source == GENERATED or source.endswith(TASK_FILES)
        ),
        f"teacher.path = 'scripted' cannot label tasks of {source!r}: it knows generated ones only; name a model "
        "(and teacher.endpoint where another machine serves it)": hub and settings.teacher.scripted,
        f"sandbox.back_end = {settings.sandbox.back_end!r} cannot run tasks of {source!r}, which live in container "
        "images; set it to 'docker'": hub and settings.sandbox.back_end != "docker",
        f"episode.context = {context} is too small for tasks of {source!r}; set it to at least {SMALLEST_CONTEXT}": hub
        and context < SMALLEST_CONTEXT,
    }
