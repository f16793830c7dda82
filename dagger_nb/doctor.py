"""What this machine has and lacks for a profile, each finding with its next step."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import shutil
import sys
import tomllib
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path

from packaging.requirements import Requirement

from dagger_nb import config, paths, store
from dagger_nb.checks import Check, disk, failed, on_its_disk
from dagger_nb.errors import ConfigError, DaggerError, DataError, EnvironmentProblem
from dagger_nb.profiles import LAPTOP_GB
from dagger_nb.sandboxes.local import local_factory
from dagger_nb.settings import GENERATED, Settings

PINNED = ("torch", "transformers", "peft", "bitsandbytes", "accelerate", "swebench", "papermill", "pytest")


def examine(profile: str, overrides: Mapping[str, object] | None = None) -> list[Check]:
    """Every check for a profile, in the order of the table. Raises ConfigError for an unknown profile or setting."""
    settings = config.load(profile, overrides)
    local = settings.sandbox.back_end == "local"
    checks = [
        python_version(sys.version_info[:3]),
        tool("git"),
        *([sandbox()] if local else containers(settings)),
        *packages(pinned_requirements()),
        threads(settings.threads),
        planned_disk(settings),
        write_permission(),
    ]
    if settings.served:
        from dagger_nb import readiness

        return [*checks, *readiness.served(settings)]
    return [
        *checks,
        *own_tasks(settings),
        *own_teacher(settings),
        base_model(paths.checkpoint(settings.student.path)),
        *([optional_program("docker", "Docker", "containers as sandboxes")] if local else []),
        optional_program("nvidia-smi", "GPU", "the Qwen3 profiles"),
        optional_module("vllm", "vLLM", "serving the Qwen3 profiles"),
    ]


def refuse_unready(profile: str, overrides: Mapping[str, object], *, begun: bool) -> None:
    """Raise EnvironmentProblem with every failed check; once a run has begun, it has taken part of its room itself."""
    lacking = [c for c in examine(profile, overrides) if c.status == "fail" and not (begun and c.room)]
    if lacking:
        raise EnvironmentProblem(
            f"profile {profile} cannot run here; mend what fails, then give the same command again:\n{table(lacking)}"
        )


def containers(settings: Settings) -> list[Check]:
    """Of sandboxes that are Docker's: the engine, its disk, and whether its machine has memory and cores for them."""
    from dagger_nb import container_checks

    try:
        beside = claims(settings)
    except DaggerError:  # which `planned_disk` tells
        beside = {}
    return container_checks.containers(settings, beside)


def own_tasks(settings: Settings) -> list[Check]:
    """Of tasks that are not generated: whether they are here, suffice, and can be graded."""
    if settings.tasks.source == GENERATED:
        return []
    from dagger_nb import readiness

    return [readiness.tasks(settings)]


def own_teacher(settings: Settings) -> list[Check]:
    """Of a teacher that is not the scripted one: why the student of this process cannot learn from it."""
    if settings.teacher.scripted:
        return []
    from dagger_nb import crew

    try:
        crew.refuse_teacher(settings)
    except ConfigError as error:
        return [failed("teacher", error)]
    return []


def planned_disk(settings: Settings) -> Check:
    try:
        return disk("disk", paths.home(), on_its_disk(paths.home(), claims(settings)), paths.HOME_VARIABLE)
    except DaggerError as error:  # a model whose shape is not known
        return failed("disk", error)


def claims(settings: Settings) -> dict[Path, float]:
    """GB of free space that a profile needs, by folder, without what sandboxes take."""
    if settings.profile in LAPTOP_GB:
        return {paths.home(): LAPTOP_GB[settings.profile]}
    from dagger_nb import readiness

    return readiness.claims(settings)


def table(checks: Iterable[Check]) -> str:
    """The checks as lines of text: status, name, finding, next step."""
    lines = [f"{c.status:<5}{c.name:<17}{c.what}{f'  ->  {c.next_step}' if c.next_step else ''}" for c in checks]
    return "\n".join(lines)


def python_version(version: tuple[int, ...]) -> Check:
    text = ".".join(map(str, version))
    if version >= (3, 11) and version < (3, 15):
        return Check("python", "ok", text)
    return Check("python", "fail", f"{text}; 3.11 to 3.14 will do", "make PYTHON=/path/to/python3.12 setup")


def tool(name: str) -> Check:
    found = shutil.which(name)
    if found:
        return Check(name, "ok", found)
    return Check(name, "fail", "not found", f"install {name} with the system's package manager")


def sandbox(backend: str | None = None) -> Check:
    """Which back end isolates commands here (or what the named one does), and each protection that it does not hold."""
    try:
        with warnings.catch_warnings(action="ignore"), local_factory(backend=backend) as factory:
            held = factory.guarantees()
    except DaggerError as error:
        return Check("sandbox", "fail", str(error), "install bubblewrap")
    name = held.pop("back end")
    weak = [f"{what} {how}" for what, how in held.items() if not how.startswith("held")]
    if not weak:
        return Check("sandbox", "ok", f"{name}, every protection held")
    get = "run where a cgroup may be made (systemd-run --user --scope -p Delegate=yes, or root)"
    if name == "plain":
        get = "install bubblewrap, or allow unprivileged user namespaces"
    return Check("sandbox", "warn", f"{name}; {'; '.join(weak)}", get)


def pinned_requirements() -> dict[str, Requirement]:
    """Name -> requirement of pyproject.toml, for the packages on which results depend."""
    project = tomllib.loads((paths.project() / "pyproject.toml").read_text("utf-8"))["project"]
    requirements = {requirement.name: requirement for requirement in map(Requirement, project["dependencies"])}
    return {name: requirements[name] for name in PINNED}


def packages(requirements: dict[str, Requirement]) -> list[Check]:
    return [_package(name, requirement) for name, requirement in requirements.items()]


def _package(name: str, requirement: Requirement) -> Check:
    get = f"pip install '{requirement}'"
    try:
        version = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return Check(name, "fail", "not installed", get)
    if version in requirement.specifier:
        return Check(name, "ok", version)
    return Check(name, "fail", f"{version} does not meet {requirement.specifier}", get)


def threads(wanted: int) -> Check:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if cores >= wanted:
        return Check("cores", "ok", f"{cores}, of which the profile uses {wanted}")
    return Check("cores", "warn", f"{cores}, the profile asks for {wanted}: slower than stated")


def write_permission() -> Check:
    try:
        return Check("write permission", "ok", str(paths.writable(paths.runs())))
    except DaggerError as error:
        return failed("write permission", error)


def base_model(folder: Path) -> Check:
    """The committed base model against the SHA-256 of each file in its manifest."""
    restore = f"git checkout -- {os.path.relpath(folder, paths.project())}"
    try:
        files = store.read_json(folder / "manifest.json")["files"]
        wrong = store.changed_files(folder, files)
    except (DataError, OSError, KeyError, AttributeError, TypeError) as error:
        return Check("base model", "fail", f"{folder}: no manifest that can be read ({error})", restore)
    if wrong:
        return Check("base model", "fail", f"{folder}: missing or changed files: {', '.join(wrong)}", restore)
    return Check("base model", "ok", f"{folder}, {len(files)} files as in its manifest")


def optional_program(name: str, title: str, purpose: str) -> Check:
    found = shutil.which(name)
    return Check(title, "ok", found or f"not found; only needed for {purpose}")


def optional_module(name: str, title: str, purpose: str) -> Check:
    found = importlib.util.find_spec(name) is not None
    return Check(title, "ok", "installed" if found else f"not installed; only needed for {purpose}")
