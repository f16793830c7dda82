"""Every check of a profile, in the order of the table.

What only some profiles need is loaded for these alone: the doctor of a laptop waits for no torch and no pandas, and
tells where they are missing.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping
from pathlib import Path

from dagger_nb import config, paths
from dagger_nb.doctor import machine
from dagger_nb.doctor.checks import Check, disk, failed, on_its_disk
from dagger_nb.errors import DaggerError, EnvironmentProblem
from dagger_nb.profiles import LAPTOP_GB
from dagger_nb.settings import GENERATED, Settings


def examine(profile: str, overrides: Mapping[str, object] | None = None) -> list[Check]:
    """Every check for a profile. Raises ConfigError for an unknown profile or setting."""
    settings = config.load(profile, overrides)
    local = settings.sandbox.back_end == "local"
    checks = [
        machine.python_version(sys.version_info[:3]),
        machine.tool("git"),
        *([machine.sandbox()] if local else engine(settings)),
        *machine.packages(machine.pinned_requirements()),
        machine.threads(settings.threads),
        planned_disk(settings),
        machine.write_permission(),
    ]
    if settings.served:
        return [*checks, *served(settings)]
    return [
        *checks,
        *own_tasks(settings),
        *own_teacher(settings),
        machine.base_model(paths.checkpoint(settings.student.path)),
        *([machine.optional_program("docker", "Docker", "containers as sandboxes")] if local else []),
        machine.optional_program("nvidia-smi", "GPU", "the Qwen3 profiles"),
        machine.optional_module("vllm", "vLLM", "serving the Qwen3 profiles"),
    ]


def refuse_unready(profile: str, overrides: Mapping[str, object], *, begun: bool) -> None:
    """Raise EnvironmentProblem with every failed check; once a run has begun, it has taken part of its room itself."""
    lacking = [c for c in examine(profile, overrides) if c.status == "fail" and not (begun and c.room)]
    if lacking:
        raise EnvironmentProblem(
            f"profile {profile} cannot run here; mend what fails, then give the same command again:\n{table(lacking)}"
        )


def table(checks: Iterable[Check]) -> str:
    """The checks as lines of text: status, name, finding, next step."""
    lines = [f"{c.status:<5}{c.name:<17}{c.what}{f'  ->  {c.next_step}' if c.next_step else ''}" for c in checks]
    return "\n".join(lines)


def served(settings: Settings) -> list[Check]:
    """Of a served profile: GPU, vLLM, models, endpoint, budget and tasks."""
    from dagger_nb.doctor.gpu import gpu, vllm
    from dagger_nb.doctor.models import context, model
    from dagger_nb.doctor.room import downloads
    from dagger_nb.doctor.tasks import tasks
    from dagger_nb.doctor.teacher import budget, teacher

    student = settings.student
    checks = [*gpu(settings), vllm(settings), model("student", student.path, student.revision, student.template)]
    return [*checks, *downloads(settings), context(settings), teacher(settings), *budget(settings), tasks(settings)]


def engine(settings: Settings) -> list[Check]:
    """Of sandboxes that are Docker's: the engine, its disk, and whether its machine has memory and cores for them."""
    from dagger_nb.doctor.containers import containers

    try:
        beside = claims(settings)
    except DaggerError:  # which `planned_disk` tells
        beside = {}
    return containers(settings, beside)


def own_tasks(settings: Settings) -> list[Check]:
    """Of tasks that are not generated: whether they are here, suffice, and can be graded."""
    if settings.tasks.source == GENERATED:
        return []
    from dagger_nb.doctor.tasks import tasks

    return [tasks(settings)]


def own_teacher(settings: Settings) -> list[Check]:
    """Of a teacher that is not the scripted one: why the student of this process cannot learn from it."""
    if settings.teacher.scripted:
        return []
    from dagger_nb.doctor.teacher import refused

    return refused(settings)


def planned_disk(settings: Settings) -> Check:
    """Room in the project's home, and for whatever else the profile puts on the same disk."""
    try:
        return disk("disk", paths.home(), on_its_disk(paths.home(), claims(settings)), paths.HOME_VARIABLE)
    except DaggerError as error:  # a model whose shape is not known
        return failed("disk", error)


def claims(settings: Settings) -> dict[Path, float]:
    """GB of free space that a profile needs, by folder, without what sandboxes take."""
    if settings.profile in LAPTOP_GB:
        return {paths.home(): LAPTOP_GB[settings.profile]}
    from dagger_nb.doctor import room

    return room.claims(settings)
