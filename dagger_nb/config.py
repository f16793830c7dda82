"""Reading settings, strictly.

A profile is a table of budgets over the defaults of `settings`, an override is a dotted name (`training.passes`) with a
value. Nothing is guessed: an unknown name, a value of the wrong type or out of range, and a combination that cannot
work are each refused when they are read.
"""

from __future__ import annotations

import ast
import dataclasses
import difflib
import functools
import math
import typing
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from dagger_nb import paths
from dagger_nb.errors import ConfigError
from dagger_nb.profiles import PROFILES
from dagger_nb.settings import GENERATED, HUB, SECRET, TASK_FILES, Limit, OneOf, Settings


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
            shown = "(not shown)" if isinstance(limit, SECRET) else repr(value)
            raise ConfigError(f"{name} = {shown} is refused: it must be {limit}{_near_choice(value, limit)}")
    return value


def _near_choice(value: object, limit: Limit) -> str:
    return nearest(value, limit.names) if isinstance(limit, OneOf) else ""


_WORDS = {int: "a whole number", float: "a number", str: "a text", bool: "True or False"}


def _refuse_degenerate(settings: Settings) -> None:
    """Refuse combinations that would waste a run or make its result meaningless."""
    _refuse({**_general(settings), **_of_source(settings), **_of_serving(settings)})


def refuse_images(settings: Settings) -> None:
    """Raise ConfigError where tasks whose repositories lie in images would meet what is for generated ones."""
    _refuse(_of_images(settings))


def _refuse(reasons: Mapping[str, bool]) -> None:
    """Raise ConfigError with the first message that is deserved."""
    for message, deserved in reasons.items():
        if deserved:
            raise ConfigError(message)


def _general(settings: Settings) -> dict[str, bool]:
    """Message -> whether it is deserved."""
    episode, student, teacher = settings.episode, settings.student.path.strip(), settings.teacher.path.strip()
    labels = settings.labels
    return {
        f"episode.max_new_tokens = {episode.max_new_tokens} leaves no room for a prompt in "
        f"episode.context = {episode.context}; lower the first": episode.max_new_tokens >= episode.context,
        f"teacher.path = {teacher!r} is the student.path {student!r}: a student that labels itself learns nothing; "
        "name another teacher": bool(student) and _same_model(student, teacher, here=not settings.teacher.endpoint),
        "tasks.test = 0 leaves nothing to report; set it to at least 1": settings.tasks.test == 0,
        "student.path is empty; name a checkpoint's folder or hub id": not student,
        "teacher.path is empty; use 'scripted', or name a checkpoint": not teacher,
        "teacher.endpoint is set, but teacher.path = 'scripted' asks nobody; name the endpoint's model in "
        "teacher.path, or leave teacher.endpoint out": settings.teacher.scripted and bool(settings.teacher.endpoint),
        "a limit on money (labels.money, labels.round_money) limits nothing where tokens cost nothing; set "
        "labels.price_prompt and labels.price_completion, for a million tokens": bool(labels.money + labels.round_money)
        and not (labels.price_prompt and labels.price_completion),
    }


def _same_model(student: str, teacher: str, here: bool) -> bool:
    """Whether two names are of one checkpoint: equal ones, one folder by two paths, or, where both are loaded `here`, a
    hub id and a folder that has its name."""
    folders = [paths.checkpoint(name) for name in (student, teacher)]
    local = [folder.is_dir() for folder in folders]
    if all(local):
        return folders[0].samefile(folders[1])
    names = [folder.name.lower() if here and any(local) else str(folder).lower() for folder in folders]
    return names[0] == names[1]


def _of_serving(settings: Settings) -> dict[str, bool]:
    """Message -> whether it is deserved, about what vLLM serves on this machine."""
    weights, quantise, teacher = settings.serving.weights, settings.student.quantise, settings.teacher
    found = {
        "serving.weights = 'bf16' beside student.quantise = True: adapters are trained on an NF4 base, and would be "
        "served on another; use 'nf4' or 'dequantised', or train with student.quantise = False": weights == "bf16"
        and quantise,
        f"serving.weights = {weights!r} beside student.quantise = False: adapters are trained on the checkpoint as it "
        "is; use 'bf16'": weights != "bf16" and not quantise,
        "teacher.style = 'native' needs a server that parses this model's calls; for a teacher that is served here "
        "name its own style (hermes, qwen3_coder or text)": teacher.style == "native"
        and not (teacher.scripted or teacher.endpoint),
    }
    return found if settings.served else {}


SMALLEST_CONTEXT = 16_384  # prompt, a long issue text and one cut observation of a real repository


def _of_images(settings: Settings) -> dict[str, bool]:
    """Message -> whether it is deserved, about tasks whose repositories lie in images."""
    source = settings.tasks.source
    return {
        f"teacher.path = 'scripted' cannot label tasks of {source!r}: it knows generated ones only; name a model "
        "(and teacher.endpoint where another machine serves it)": settings.teacher.scripted,
        f"sandbox.back_end = {settings.sandbox.back_end!r} cannot run tasks of {source!r}, which live in container "
        "images; set it to 'docker'": settings.sandbox.back_end != "docker",
    }


def _of_source(settings: Settings) -> dict[str, bool]:
    """Message -> whether it is deserved, about where tasks come from."""
    source, context = settings.tasks.source, settings.episode.context
    hub = source in HUB
    known = f"{GENERATED}, {', '.join(HUB)}, or a file that ends in {', '.join(TASK_FILES)}"
    return {
        f"tasks.source = {source!r} is refused: it must be {known}{nearest(source, (GENERATED, *HUB))}": not (
            hub or source == GENERATED or source.endswith(TASK_FILES)
        ),
        **(_of_images(settings) if hub else {}),
        f"episode.context = {context} is too small for tasks of {source!r}; set it to at least {SMALLEST_CONTEXT}": hub
        and context < SMALLEST_CONTEXT,
    }
