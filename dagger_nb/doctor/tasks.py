"""Whether a profile's tasks are here, suffice and can be graded; nothing large is downloaded."""

from __future__ import annotations

from dagger_nb import config, paths
from dagger_nb.doctor.checks import Check, failed
from dagger_nb.doctor.models import unreachable
from dagger_nb.errors import DaggerError
from dagger_nb.evaluation.grading import refuse_unjudged, without_pytest
from dagger_nb.settings import GENERATED, HUB, Settings
from dagger_nb.tasks import hub


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
