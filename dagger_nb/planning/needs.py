"""What one notebook needs and takes by the planner's figures: in the profile at hand, and in every profile."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pandas as pd

from dagger_nb import config
from dagger_nb.planning import footprint
from dagger_nb.planning.plan import Plan, grading, plan
from dagger_nb.planning.usage import GRADE, Usage
from dagger_nb.profiles import LAPTOP_GB, PROFILES
from dagger_nb.recipes import RECIPES
from dagger_nb.settings import GENERATED, Settings
from dagger_nb.sizing import memory
from dagger_nb.sizing.gpus import local_gpus

_RECIPES_OF = {"02": (), "03": ("base", "sft"), "04": ("dagger", "switch"), "05": (), "06": ()}
_FIRST = "sft collect 1"  # collected by notebook 02 and read by 03
_SAMPLE, _OFFICIAL = "sample", "official"  # what notebook 06 grades beside the runs' exams, here and by swebench


def text(settings: Settings, number: str, patches: int = 0) -> str:
    """What notebook `number` ("02" to "06") takes in every profile, and then in a few lines under these settings.

    The last line is what a running notebook's progress shows. `patches` are graded beside what is planned.

    Raises:
        ConfigError: it asks or trains models, and the profile does not fit this machine's GPU.
        DataError: a rate is missing.
    """
    predicted = plan(settings)
    mine = phases(predicted, number, patches)
    models = _models(settings, mine) if settings.served and _asks_models(mine) else []
    lines = [
        f"notebook {number} in every profile, without overrides:",
        table(number, patches).to_string(),
        "",
        f"rates: {predicted.source}",
        *models,
        f"notebook {number}, profile {settings.profile}: {_takes(mine)}",
    ]
    return "\n".join(lines)


def table(number: str, patches: int = 0) -> pd.DataFrame:
    """What notebook `number` needs and takes, a row a profile.

    `tokens` in millions; `pull hours`: at the most, at Docker Hub's limit; `GPU`: the memory of the smallest that will
    do; `disk` in GB, a laptop's of all notebooks.
    """
    return pd.DataFrame([_row(config.load(name), number, patches) for name in PROFILES]).set_index("profile")


def phases(predicted: Plan, number: str, patches: int = 0) -> list[Usage]:
    """The phases that notebook `number` runs; later ones find them done."""
    recipes = _RECIPES_OF[number]
    found = [phase for phase in predicted.phases if phase.phase == _FIRST and number == "02"]
    found += [p for p in predicted.phases if p.phase != _FIRST and p.phase.partition(" ")[0] in recipes]
    tasks, graded = predicted.settings.tasks, {_SAMPLE: patches}
    if number == "06" and tasks.source != GENERATED:  # generated instances were validated one by one
        graded[_SAMPLE] += tasks.test + tasks.unseen  # every gold patch
        graded[_OFFICIAL] = tasks.unseen * (2 + len(RECIPES))  # gold patches twice, and each recipe's
    return found + [grading(name, n, predicted.settings, predicted.rates) for name, n in graded.items() if n]


def pulls(settings: Settings, mine: Sequence[Usage]) -> int:
    """Images pulled at the most. swebench's command line judges all patches of an instance while its image is here."""
    unseen = settings.tasks.unseen
    each = [replace(p, episodes=unseen) if p.phase == f"{_OFFICIAL} {GRADE}" else p for p in mine]
    return footprint.pulls_at_most(settings, each)


def _row(settings: Settings, number: str, patches: int) -> dict[str, object]:
    predicted = plan(settings)
    mine = phases(predicted, number, patches)
    served = settings.served and _asks_models(mine)
    queries = footprint.teacher_tokens(settings, mine)[0] if served else 0
    return {
        "profile": settings.profile,
        "episodes": f"{_episodes(mine):,.0f}",
        "tokens": f"{sum(phase.tokens for phase in mine) / 1e6:,.2f}",
        "patches": f"{_patches(mine):,.0f}",
        "time": _time(mine),
        "pull hours": f"{footprint.pull_hours(pulls(settings, mine)):,.0f}",
        "GPU": f"{memory.needed_bytes(settings) / memory.GB:.0f} GB" if served else "none",
        "Docker": "yes" if mine and settings.sandbox.back_end == "docker" else "no",
        "disk": f"{_disk_gb(settings, mine):,.0f}" if _asks_models(mine) else "0",
        "teacher's queries": f"{queries:,.0f}",
        "rates": "assumed" if settings.served else "measured",
    }


def _disk_gb(settings: Settings, mine: Sequence[Usage]) -> float:
    if settings.served:
        return sum(footprint.disk_gb(settings, mine).values())
    return LAPTOP_GB[settings.profile]


def _takes(mine: Sequence[Usage]) -> str:
    if _asks_models(mine):
        return f"{_episodes(mine):,.0f} episodes, {sum(phase.tokens for phase in mine):,.0f} tokens, {_time(mine)}"
    graded = f"; {_patches(mine):,.0f} patches are graded, {_time(mine)}" if mine else ""
    return f"collects and trains nothing, it reads what 03 and 04 wrote{graded}"


def _models(settings: Settings, mine: Sequence[Usage]) -> list[str]:
    for gpu in local_gpus()[:1]:
        memory.refuse_misfit(settings, gpu.bytes)
    queries, tokens = footprint.teacher_tokens(settings, mine)
    return [
        f"one GPU of {memory.needed(settings)} or more, Docker, {_disk_gb(settings, mine):,.0f} GB of disk",
        f"teacher: {queries:,.0f} queries, {tokens.prompt:,} prompt and {tokens.completion:,} completion tokens",
    ]


def _asks_models(mine: Sequence[Usage]) -> bool:
    return any(phase.turns for phase in mine)


def _episodes(mine: Sequence[Usage]) -> float:
    return sum(phase.episodes for phase in mine if phase.turns)


def _patches(mine: Sequence[Usage]) -> float:
    return sum(phase.episodes for phase in mine if phase.kind == GRADE)


def _time(mine: Sequence[Usage]) -> str:
    seconds = sum(phase.seconds for phase in mine)
    return f"{seconds / 60:.1f} minutes" if seconds < 3600 else f"{seconds / 3600:,.1f} hours"
