"""Whether a profile's models are here, can be used for tool calls and training, and read its episodes."""

from __future__ import annotations

from pathlib import Path

from dagger_nb import paths, revisions
from dagger_nb.doctor.checks import Check, failed
from dagger_nb.errors import DaggerError, DataError
from dagger_nb.settings import Settings
from dagger_nb.sizing import memory
from dagger_nb.sizing.shapes import shape_of
from dagger_nb.students import use_template


def loaded(settings: Settings) -> list[str]:
    """The models that this machine loads: the student, and a teacher that is served here."""
    return [settings.student.path, *([settings.teacher.path] if memory.teacher_here(settings) else [])]


def model(name: str, path: str, revision: str, template: str = "") -> Check:
    """Whether the model's tokenizer is here and its chat template can be used for tool calls and for training.

    `template` is a file of the project that is used in the place of the model's own (`students.renderer_of`).

    What is looked at is what a run would load: the commit that is recorded, where there is one.
    """
    from transformers import AutoTokenizer

    source = str(paths.checkpoint(path))
    try:
        commit = revisions.recorded(source, revision)
    except DaggerError as error:
        return failed(f"{name} model", error)
    try:
        tokenizer = AutoTokenizer.from_pretrained(source, revision=commit or revision or None, local_files_only=True)
    except (OSError, ValueError):
        return not_here(name, path, commit or revision)
    try:
        use_template(tokenizer, template)
        refuse_template(tokenizer, trained=name == "student")
    except DaggerError as error:
        return failed(f"{name} model", error)
    return Check(f"{name} model", "ok", path if Path(source).is_dir() else path + _at(commit, revision))


def _at(commit: str, revision: str) -> str:
    """Which commit of a hub's model was looked at, in words."""
    if not commit:
        return f", {revision or 'newest'} revision here; the first run asks the hub and records the commit"
    return f" at {commit}" if commit == revision else f" at {commit}, recorded in {revisions.record()}"


def refuse_template(tokenizer: object, *, trained: bool) -> None:
    """Raise DataError where a chat template lacks, shows no tools, or (for a student) rewrites the history."""
    from dagger_nb import scaffold
    from dagger_nb.rendering import Renderer

    if not getattr(tokenizer, "chat_template", None):
        raise DataError("the tokenizer has no chat template; choose a chat model")
    chat = [{"role": "system", "content": scaffold.SYSTEM_PROMPT}, {"role": "user", "content": "?"}]
    shown = tokenizer.apply_chat_template(chat, tools=list(scaffold.TOOLS), tokenize=False)
    if "execute_bash" not in shown:
        raise DataError("the chat template shows no tools; choose a model that calls tools")
    if trained:
        Renderer(tokenizer)


def not_here(name: str, path: str, revision: str) -> Check:
    """A hub id whose files are not in this machine's cache: can it be fetched?"""
    title, fetch = f"{name} model", f"hf download {path}{f' --revision {revision}' if revision else ''}"
    if "/" not in path or Path(path).is_absolute():
        return Check(title, "fail", f"{path} is no folder with a tokenizer and no hub id", f"correct {name}.path")
    if reason := unreachable():
        what = f"{path} is not on this machine, and the hub cannot be reached ({reason})"
        return Check(title, "fail", what, f"with a network: {fetch}; without: name its folder as {name}.path")
    return Check(title, "warn", f"{path} is not on this machine yet; the hub answers", fetch)


def unreachable() -> str:
    """Why the Hugging Face hub cannot be reached, or an empty text."""
    from huggingface_hub import HfApi

    try:
        HfApi().model_info("Qwen/Qwen3-0.6B", timeout=10)
    except Exception as error:  # huggingface_hub and its transport have no common base of errors
        return f"{type(error).__name__}: {error}".partition("\n")[0][:120]
    return ""


def context(settings: Settings) -> Check:
    """Whether both models can read an episode of the profile's length."""
    wanted = settings.episode.context
    try:
        positions = {path: shape_of(path).positions for path in loaded(settings)}
        short = [f"{path} reads {reads}" for path, reads in positions.items() if reads < wanted]
    except DaggerError as error:
        return failed("context", error)
    if short:
        return Check(
            "context", "fail", f"episode.context = {wanted}, but {', '.join(short)} tokens", "lower episode.context"
        )
    return Check("context", "ok", f"{wanted} tokens an episode")
