"""Whether this machine's GPU fits a profile, and torch, a compiler and vLLM can use it; nothing is started on it."""

from __future__ import annotations

import importlib.metadata
import os
import shutil
import sysconfig
from pathlib import Path

from dagger_nb.doctor.checks import Check, failed
from dagger_nb.errors import DaggerError, EnvironmentProblem
from dagger_nb.planning import footprint
from dagger_nb.settings import Settings
from dagger_nb.sizing import memory
from dagger_nb.sizing.gpus import gpus_hidden, local_gpus
from dagger_nb.sizing.shapes import shape_of

SMALL = 100_000_000  # parameters of a student that a processor serves and trains in tolerable time
GET_GPU = "run on a machine with one, or choose tiny or study, whose student and scripted teacher need none"


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
