"""What decides a run, and so names its folder; and where its results come from, which its manifest says."""

from __future__ import annotations

import platform
import re
import shutil
import subprocess
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from typing import Any

from dagger_nb import paths
from dagger_nb.recipes import RECIPES, recipe
from dagger_nb.records import digest
from dagger_nb.revisions import recorded
from dagger_nb.sandboxes import factory_for
from dagger_nb.settings import OF_MEMORY, Settings
from dagger_nb.store import read_json
from dagger_nb.tasks import hub

# What a run may cost, where its parts run and what fits there: with other values the same run goes on.
OPERATION = {
    "labels": ("queries", "tokens", "money", "round_queries", "round_tokens", "round_money")
    + ("price_prompt", "price_cached", "price_completion"),
    "teacher": ("endpoint", "key_variable", "timeout_s"),
    "sandbox": ("images_gb",),
    "training": OF_MEMORY,
    "serving": ("python", "memory_share", "start_timeout_s", "concurrency"),
}


def identity(name: str, settings: Settings) -> dict[str, Any]:
    """What decides a run's training: the recipe and the settings, but no budgets, no workers and no profile name.

    Who acts is the recipe's own mixer and not the settings behind all of them, so that another schedule of DAgger
    finds the runs of SFT and of the switch done.
    """
    chosen, kept = recipe(name, settings), settings.to_dict()
    for irrelevant in ("profile", "workers", "evaluation"):
        del kept[irrelevant]
    for group, names in OPERATION.items():
        kept[group] = {setting: value for setting, value in kept[group].items() if setting not in names}
    kept["tasks"] = {"source": settings.tasks.source}
    kept["dagger"] = {"filter": settings.dagger.filter}
    collected = {"mixer": asdict(chosen.mixer), "rounds": chosen.rounds, "tasks_per_round": chosen.tasks_per_round}
    return {"recipe": name, **collected, "settings": kept, "base": _base_digest(settings)}


def run_folder(name: str, settings: Settings) -> Path:
    """Where the run of a recipe under some settings is, or would be."""
    return paths.run_folder(name, settings.seed, digest(identity(name, settings)))


def begun(settings: Settings) -> bool:
    """Whether this machine has collected something under these settings, whatever it may cost."""
    return any((run_folder(name, settings) / "rounds").is_dir() for name in RECIPES)


def _base_digest(settings: Settings) -> str:
    manifest = paths.checkpoint(settings.student.path) / "manifest.json"
    return digest(read_json(manifest)["files"]) if manifest.exists() else settings.student.path


def provenance(settings: Settings) -> dict[str, Any]:
    """Where a result comes from: code, versions, machine, and the settings."""
    with factory_for(settings.sandbox) as factory:
        guarantees = {"backend": factory.name, **factory.guarantees()}
    return {
        "git": _git("rev-parse", "HEAD"),
        "dirty": bool(_git("status", "--porcelain", "--untracked-files=no")),
        "python": platform.python_version(),
        "machine": platform.machine(),
        "processor": processor(),
        "versions": {name: metadata.version(name).partition("+")[0] for name in PACKAGES},
        "sandbox": guarantees,
        "tasks": hub.origin(settings.tasks.source),
        "settings": settings.to_dict(),
    } | _commits(settings)


def processor() -> str:
    """The name of the CPU type, on which the last bits of every sum depend; empty where the system does not tell."""
    cpuinfo = Path("/proc/cpuinfo")
    named = re.search(r"^model name\s*:\s*(.+)$", cpuinfo.read_text(), re.MULTILINE) if cpuinfo.exists() else None
    return named[1].strip() if named else platform.processor()


def _commits(settings: Settings) -> dict[str, Any]:
    """The commits of the hub's models that this machine loaded; nothing where all of them are folders."""
    models = {"student": settings.student} | ({} if settings.teacher.endpoint else {"teacher": settings.teacher})
    found = {role: recorded(str(paths.checkpoint(model.path)), model.revision) for role, model in models.items()}
    known = {role: commit for role, commit in found.items() if commit}
    return {"models": known} if known else {}


PACKAGES = ("torch", "transformers", "peft", "bitsandbytes", "swebench", "pytest", "numpy")


def _git(*arguments: str) -> str:
    if shutil.which("git") is None:
        return ""
    done = subprocess.run(["git", *arguments], cwd=paths.project(), capture_output=True, text=True, check=False)
    return done.stdout.strip()
