"""What a served profile needs of this machine: GPU, vLLM, models, endpoint, budget and tasks.

Nothing is started and nothing large is downloaded. An endpoint is asked two or three small questions, every time anew,
which are on no run's bill.
"""

from __future__ import annotations

import importlib.metadata
import os
import random
import shutil
import sysconfig
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path
from tempfile import TemporaryDirectory

from dagger_nb import config, crew, footprint, memory, paths, plan, revisions
from dagger_nb.background import result_of
from dagger_nb.bill import Cap, tariff
from dagger_nb.checks import Check, disk, existing, failed
from dagger_nb.errors import CallLimit, DaggerError, DataError, EnvironmentProblem
from dagger_nb.evaluation.grading import refuse_unjudged, without_pytest
from dagger_nb.gpus import gpus_hidden, local_gpus
from dagger_nb.recipes import RECIPES
from dagger_nb.settings import GENERATED, HUB, Settings
from dagger_nb.shapes import shape_of
from dagger_nb.students import use_template
from dagger_nb.tasks import hub
from dagger_nb.usage import Usage, account

SMALL = 100_000_000  # parameters of a student that a processor serves and trains in tolerable time
GET_GPU = "run on a machine with one, or choose tiny or study, whose student and scripted teacher need none"


def served(settings: Settings) -> list[Check]:
    """Every check of a served profile, in the order of the table."""
    student = settings.student
    checks = [*gpu(settings), vllm(settings), model("student", student.path, student.revision, student.template)]
    return [*checks, *downloads(settings), context(settings), teacher(settings), *budget(settings), tasks(settings)]


def claims(settings: Settings) -> dict[Path, float]:
    """GB of free space by folder: the unpacked base and run folders in the project's home, and in the hub's cache the
    models that have yet to be fetched. Raises ConfigError: a model whose shape is not known."""
    found = footprint.disk_gb(settings, plan.plan(settings).phases)
    return {paths.home(): found["unpacked base"] + found["runs"], _hub_cache(): _missing_gb(settings)}


def downloads(settings: Settings) -> list[Check]:
    """Room for models in the hub's cache, where that is another disk than the project's home."""
    if _one_disk():
        return []
    try:
        return [disk("disk of the hub's models", _hub_cache(), _missing_gb(settings), "HF_HUB_CACHE")]
    except DaggerError as error:  # a model whose shape is not known
        return [failed("disk of the hub's models", error)]


def _missing_gb(settings: Settings) -> float:
    """GB of the models that are no folders and not in the hub's cache."""
    missing = [path for path in _loaded(settings) if not _weights_here(path)]
    return sum(shape_of(path).published_bytes for path in missing) / memory.GB


def _loaded(settings: Settings) -> list[str]:
    """The models that this machine loads: the student, and a teacher that is served here."""
    return [settings.student.path, *([settings.teacher.path] if memory.teacher_here(settings) else [])]


def _weights_here(path: str) -> bool:
    from huggingface_hub import try_to_load_from_cache

    names = ("model.safetensors", "model.safetensors.index.json")
    return paths.checkpoint(path).is_dir() or any(isinstance(try_to_load_from_cache(path, n), str) for n in names)


def _hub_cache() -> Path:
    from huggingface_hub.constants import HF_HUB_CACHE

    return Path(HF_HUB_CACHE)


def _one_disk() -> bool:
    return existing(_hub_cache()).stat().st_dev == existing(paths.home()).stat().st_dev


# --- GPU and vLLM -------------------------------------------------------------------------------------------------


def gpu(settings: Settings) -> list[Check]:
    """How many there are, and whether the profile fits the first; that this Python's torch can use it."""
    try:
        found, needed = local_gpus(), f"the profile needs one of {memory.needed(settings)}"
    except DaggerError as error:
        return [failed("GPU", error)]
    if not found and _processor_will_do(settings) and _engine_of_cpus(settings):
        size = shape_of(settings.student.path).parameters
        what = f"a student of {size:,} parameters is served and trained on the processor"
        return [Check("GPU", "ok", f"none, and none is needed: {what}")]
    if not found:
        why = "CUDA_VISIBLE_DEVICES hides all" if gpus_hidden() else "no nvidia-smi"
        return [Check("GPU", "fail", f"none ({why}); {needed}", GET_GPU)]
    first = found[0]
    used = "1 is used: " if len(found) > 1 else ""
    what = f"{used}{len(found)} x {first.name}, {first.bytes / memory.GB:.0f} GB, driver {first.driver}; {needed}"
    if problems := memory.misfits(settings, first.bytes):
        return [Check("GPU", "fail", what, "; ".join(problems)), torch_build(), compiler()]
    held, advice = footprint.caches(settings, first.bytes)
    return [Check("GPU", "warn" if advice else "ok", f"{what}; {held}", advice), torch_build(), compiler()]


def _processor_will_do(settings: Settings) -> bool:
    """Whether there is no GPU and none is needed: a small student, and no teacher that is served here."""
    try:
        small = shape_of(settings.student.path).parameters <= SMALL
        return small and not memory.teacher_here(settings) and not local_gpus()
    except DaggerError:
        return False


def _engine_of_cpus(settings: Settings) -> bool:
    from dagger_nb.serving import find_engine

    try:
        return find_engine(settings.serving.python).cpu
    except DaggerError:
        return False


def torch_build() -> Check:
    """Whether this Python's torch, which trains, can use the GPU: it may be built without, or for a newer driver."""
    try:
        from dagger_nb.training.accelerator import unusable
    except ImportError as error:
        return Check("torch build", "fail", str(error), "make install-gpu")
    if why := unusable():
        return failed("torch build", EnvironmentProblem(why))
    return Check("torch build", "ok", importlib.metadata.version("torch"))


def compiler() -> Check:
    """What kernels are compiled with while a run trains: a C compiler, and the headers of this Python."""
    found = next(filter(shutil.which, (os.environ.get("CC", ""), "gcc", "clang", "cc")), "")
    headers = Path(sysconfig.get_path("include"), "Python.h")
    lacking = [*([] if found else ["no C compiler"]), *([] if headers.exists() else [f"no {headers}"])]
    if lacking:
        step = "install gcc and this Python's headers, such as `apt-get install gcc python3-dev`"
        return Check("compiler", "fail", f"{' and '.join(lacking)}, and attention is compiled on a GPU", step)
    return Check("compiler", "ok", found)


def vllm(settings: Settings) -> Check:
    from dagger_nb.serving import find_engine

    try:
        engine = find_engine(settings.serving.python)
    except DaggerError as error:
        return failed("vLLM", error)
    what = f"{engine.version}, {'the build for CPUs' if engine.cpu else 'the build for GPUs'}, in {engine.python}"
    if engine.cpu and not _processor_will_do(settings):
        return Check(
            "vLLM", "fail", what, "pip install vllm==0.32.0 in an environment of its own; name it in serving.python"
        )
    return Check("vLLM", "ok", what)


# --- models -------------------------------------------------------------------------------------------------------


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
        positions = {path: shape_of(path).positions for path in _loaded(settings)}
        short = [f"{path} reads {reads}" for path, reads in positions.items() if reads < wanted]
    except DaggerError as error:
        return failed("context", error)
    if short:
        return Check(
            "context", "fail", f"episode.context = {wanted}, but {', '.join(short)} tokens", "lower episode.context"
        )
    return Check("context", "ok", f"{wanted} tokens an episode")


# --- teacher ------------------------------------------------------------------------------------------------------


def teacher(settings: Settings) -> Check:
    """The teacher: the scripted one, a model that is served here, or an endpoint, which is asked."""
    chosen = settings.teacher
    if chosen.scripted:
        return Check("teacher", "ok", chosen.path)
    if not chosen.endpoint:
        return model("teacher", chosen.path, chosen.revision)
    key = f"${chosen.key_variable} is {'set' if os.environ.get(chosen.key_variable) else 'not set'}"
    try:
        answer = result_of(_ask(settings))
    except CallLimit as error:  # so the key is taken
        return Check(
            "teacher endpoint", "warn", f"{error} ({key})", "it is asked too often now; the run will wait for it"
        )
    except DaggerError as error:
        what, _, step = str(error).partition("; ")
        return Check(
            "teacher endpoint", "fail", f"{what} ({key})", step or "start the server, or correct teacher.endpoint"
        )
    return Check("teacher endpoint", "ok", f"{answer} ({key})")


def budget(settings: Settings) -> list[Check]:
    """Whether the limits of runs and rounds admit what the plan says that they take; nothing where there are none."""
    limits = tariff(settings.labels)
    if settings.teacher.scripted or (limits.run, limits.round) == (Cap(), Cap()):
        return []
    try:
        phases = plan.plan(settings).phases
    except DaggerError as error:
        return [failed("budget", error)]
    runs = _exceeding(settings, limits.run, phases, lambda phase: account(phase)[0])
    rounds = _exceeding(settings, limits.round, phases, lambda phase: _round(*account(phase)))
    if not (runs or rounds):
        return [Check("budget", "ok", f"each of {len(RECIPES)} runs is planned to stay within its own limit")]
    over = " and ".join(
        f"the plan of {_listed(names)} exceeds {limit} of a {what}"
        for what, exceeding in (("run", runs), ("round", rounds))
        for limit, names in exceeding.items()
    )
    step = (
        "raise it, or ask less (labels.states, tasks.*). Labels beyond it are recorded as missing; a turn in which the "
        "teacher should act ends the run, which goes on where the limit is raised"
    )
    return [Check("budget", "warn", over, step)]


def _listed(names: Sequence[str], shown: int = 3) -> str:
    more = f" and {len(names) - shown} more" if len(names) > shown else ""
    return ", ".join(names[:shown]) + more


def _round(recipe_name: str, round_: int) -> str:
    return f"{recipe_name} round {round_}" if round_ else f"{recipe_name} exams"


def _exceeding(
    settings: Settings, cap: Cap, phases: Sequence[Usage], payer: Callable[[Usage], str]
) -> dict[str, list[str]]:
    """Which payers' phases take more than `cap`: their names, by the part of the limit (in words)."""
    found: dict[str, list[str]] = {}
    prices = tariff(settings.labels).prices
    for name in dict.fromkeys(map(payer, phases)):
        queries, tokens = footprint.teacher_tokens(settings, [phase for phase in phases if payer(phase) == name])
        limit = cap.why_not(round(queries), tokens.prompt + tokens.completion, prices.picos(tokens))
        if limit:
            found.setdefault(limit, []).append(name)
    return found


async def _ask(settings: Settings) -> str:
    from dagger_nb.answers import AnswerFile
    from dagger_nb.bill import Account, Bill
    from dagger_nb.policies.admission import check
    from dagger_nb.policies.endpoint import EndpointPolicy, Retries

    retries = Retries(tries=2, longest_s=5.0)
    with TemporaryDirectory() as folder, closing(AnswerFile(Path(folder) / "answers.sqlite")) as file:
        bill = Bill(file, Account("doctor", 0), tariff(settings.labels))
        async with EndpointPolicy(settings.teacher, bill, jitter=random.Random(0), retries=retries) as policy:
            return await check(policy, **crew.admission(settings))


# --- tasks -------------------------------------------------------------------------------------------


def tasks(settings: Settings) -> Check:
    """Whether the tasks are here or can be fetched, suffice for the first round and every exam, and can be graded."""
    source = settings.tasks.source
    if source == GENERATED:
        return Check("tasks", "ok", "generated")
    missing = [name for name in HUB if source in HUB and _wanted(name, settings) and hub.local_file(name) is None]
    if missing and (reason := unreachable()):
        what = f"{', '.join(missing)} not on this machine, and the hub cannot be reached ({reason})"
        step = (
            f"copy each as {paths.cache() / 'tasks'}/<name>.parquet (or .json, .jsonl), or set tasks.source to a file"
        )
        return Check("tasks", "fail", what, step)
    if missing:
        return Check("tasks", "ok", f"{', '.join(missing)} will be streamed from the hub")
    return _counted(settings)


def _wanted(name: str, settings: Settings) -> bool:
    return name == settings.tasks.source or (name == hub.VERIFIED.name and settings.tasks.unseen > 0)


def _counted(settings: Settings) -> Check:
    sizes = {split: getattr(settings.tasks, split) for split in ("dev", "test", "longer", "unseen")}
    try:
        judged = [task for split, count in sizes.items() for task in hub.tasks(settings.tasks.source, split, count)]
        sizes["train"] = settings.tasks.tasks_per_round
        trained = hub.tasks(settings.tasks.source, "train", sizes["train"])
        if not all(task.files for task in (*judged, *trained)):
            config.refuse_images(settings)
        refuse_unjudged(judged, settings.sandbox)
    except DaggerError as error:
        return failed("tasks", error)
    counts = ", ".join(f"{split} {count}" for split, count in sizes.items() if count)
    official = len(without_pytest(judged))
    return Check("tasks", "ok", counts + (f"; {official} are graded by swebench's command line" if official else ""))
