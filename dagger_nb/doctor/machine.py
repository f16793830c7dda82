"""What every profile needs of this machine: Python, programs, packages, a sandbox, cores, the committed base model."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import shutil
import tomllib
import warnings
from pathlib import Path

from packaging.requirements import Requirement

from dagger_nb import paths, store
from dagger_nb.doctor.checks import Check, failed
from dagger_nb.errors import DaggerError, DataError
from dagger_nb.sandboxes.local import local_factory

PINNED = ("torch", "transformers", "peft", "bitsandbytes", "accelerate", "swebench", "papermill", "pytest")


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
