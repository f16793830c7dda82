"""What every notebook calls first and last; the notebooks themselves stay a story of short cells."""

from __future__ import annotations

import atexit
import os
import platform
from collections.abc import Iterable, Mapping, Sequence
from importlib import metadata

from dagger_nb import config, paths
from dagger_nb.crew import executor
from dagger_nb.evaluation.grades import Grade
from dagger_nb.fleet import Executor
from dagger_nb.labelling import tally
from dagger_nb.settings import GENERATED, LabelSettings, Settings
from dagger_nb.store import CohortRecord

_executors: dict[int | Settings, Executor] = {}


def begin(profile: str, seed: int, overrides: Mapping[str, object] | None = None) -> Settings:
    """The settings of a notebook; prints what it runs on and where its results go.

    Raises:
        ConfigError: an unknown profile or setting, or a value that cannot be.
    """
    settings = config.load(profile, {"seed": seed, **(overrides or {})})
    versions = ", ".join(f"{name} {metadata.version(name).partition('+')[0]}" for name in ("torch", "transformers"))
    print(f"profile {profile}, seed {seed}; Python {platform.python_version()}, {versions}, {os.cpu_count()} CPUs")
    for name, value in (overrides or {}).items():
        print(f"in the place of the profile's: {name} = {value!r}")
    print(f"results go to {_short(paths.result_folder(profile, seed, overrides))}")
    return settings


def needs(settings: Settings, number: str, patches: int = 0) -> None:
    """Print what notebook `number` ("02" to "06") needs and takes here and in every profile, before anything is spent.

    `patches` are graded by it beside those of the plan.

    Raises:
        ConfigError: the profile does not fit this machine's GPU.
    """
    from dagger_nb.planning.needs import text

    print(text(settings, number, patches))


def differences(settings: Settings) -> None:
    """Print, numbered, where a profile of real tasks leaves the paper; of a laptop's the notebooks tell themselves."""
    from dagger_nb.deviations import text

    if settings.tasks.source != GENERATED:
        print(f"where profile {settings.profile} leaves the paper:\n{text(settings)}")


def fleet(settings: Settings) -> Executor:
    """Who runs this notebook's episodes, made at the first call and kept for the others."""
    key = settings if settings.served else settings.workers
    for other, crew in _executors.items():  # of settings that a reader has changed since: its servers hold the GPU
        if other != key:
            crew.rest()
    if key not in _executors:
        _executors[key] = executor(settings)
        atexit.register(_executors[key].close)  # before Python itself is taken apart
    return _executors[key]


def check(holds: bool, claim: str) -> None:
    """One line of a Checks cell: print the claim that holds, or stop the notebook with the one that does not."""
    assert holds, f"this check failed: {claim}"
    print(f"ok: {claim}")


def check_controls(
    gold: Sequence[Grade], again: Sequence[Grade], note: Sequence[Grade], settings: Settings
) -> tuple[str, ...]:
    """Check that gold patches are resolved and patches that only leave a note are not; returns doubtful instances.

    Generated tasks must all do so. Of real ones some are broken or flaky, or their image cannot be had: these are named
    and counted, and stop the notebook only where no instance is left whose verdicts mean something. `again` is a second
    grading of the gold patches, in which flaky instances may show.
    """
    unresolved = {grade.instance_id: f"gold: {grade.status.value}" for grade in gold if not grade.resolved}
    noted = {grade.instance_id: "resolved by a note" for grade in note if grade.resolved}
    if settings.tasks.source == GENERATED:
        check(not unresolved, "every gold patch is resolved")
        check(not noted, "a note is no repair")
        return ()
    flaky = {grade.instance_id: f"gold, graded again: {grade.status.value}" for grade in again if not grade.resolved}
    doubtful = noted | flaky | unresolved
    names = ", ".join(f"{name} ({why})" for name, why in sorted(doubtful.items())) or "none"
    print(f"gold patches resolved: {len(gold) - len(unresolved)} of {len(gold)}; doubtful instances: {names}")
    check(any(grade.instance_id not in doubtful for grade in gold), "an instance is left that is not doubtful")
    return tuple(sorted(doubtful))


def check_labels(records: Iterable[CohortRecord], settings: Settings) -> None:
    """Check that every state that was to be labelled has its label.

    A model may fail to answer: then each state needs a label or a record of why it has none, and both are counted.
    """
    labels = settings.labels if settings.served else LabelSettings()  # processes of this machine label every state
    found = tally(records, labels.states, labels.k)
    if settings.teacher.scripted:
        which = (
            "every visited state" if labels.states == "every" else f"every state of labels.states = {labels.states!r}"
        )
        check(found.complete and not found.missing, f"{which} has one label")
        return
    check(found.complete, "every state that was to be labelled has one label, or is recorded as missing")
    reasons = ", ".join(f"{count} {reason}" for reason, count in found.missing.items()) or "none"
    print(f"{found.labels} labels of {found.asked} states; missing: {reasons}")


def check_demonstrations(records: Iterable[CohortRecord], settings: Settings) -> None:
    """Check that the labels of episodes in which the teacher alone acted are what it did.

    A model's malformed turn is executed where it is malformed twice, and then has no label.
    """
    found = tally(records, settings.labels.states, settings.labels.k)
    check(not found.differing, "on its own states the teacher agrees with itself: every label is what was executed")


def check_lengths(dropped: Iterable[int], settings: Settings) -> None:
    """Check that no label was longer than the context, or count those that were where `training.overlong` is "drop"."""
    counts = list(dropped)
    if settings.training.overlong == "drop":
        print(f"{sum(counts)} labels were longer than the context and were dropped")
        return
    check(all(count == 0 for count in counts), "no label was cut or dropped for being longer than the context")


def _short(path: object) -> str:
    """A path relative to the home folder, so that saved outputs name no folder of this machine."""
    return os.path.relpath(str(path), paths.home())
