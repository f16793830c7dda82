"""The measured rates behind a prediction: what one episode, turn, token or patch of each kind of phase uses.

They lie in data/plan/rates.json, a row for each kind of phase, with the runs and the machine that they come from.
"""

from __future__ import annotations

import os
import platform
import re
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from dagger_nb import paths
from dagger_nb.errors import DataError
from dagger_nb.experiment import Experiment
from dagger_nb.planning.usage import GRADE, TRAIN, Usage, count
from dagger_nb.settings import Settings
from dagger_nb.store import write_json

Rates = Mapping[str, Mapping[str, float]]

_COUNTS = ("episodes", "turns", "prompt_tokens", "action_tokens", "observation_tokens", "trained_tokens")


def rates_file() -> Path:
    return paths.data() / "plan" / "rates.json"


def rate_of(kind: str, rates: Rates) -> Mapping[str, float]:
    """The rates of one kind of phase. Raises DataError, saying how to measure them, when there are none."""
    if kind not in rates:
        raise DataError(
            f"{rates_file()} has no rates of {kind!r}; run a profile with such a phase, then "
            "`dagger-nb plan --measure --profile` and its name"
        )
    return rates[kind]


def write_rates(settings: Settings, runs: Mapping[str, Experiment], logs: Sequence[Path] = ()) -> Path:
    """Write rates.json from this machine's runs of some settings; `logs`, or executed notebooks, tell their times.

    Raises:
        DataError: a log cannot be read, or does not tell the time of a kind of episodes.
    """
    used = count(runs.values())
    turn_seconds = seconds_per_turn([_text(path) for path in logs], used)
    rates = measure(used, turn_seconds, time_grading(), settings.training.passes)
    folders = ", ".join(run.store.root.name for run in runs.values())
    machine = f"{platform.machine()}, {os.cpu_count()} CPUs"
    source = f"profile {settings.profile}, seed {settings.seed}: {folders}; {machine}"
    return write_json(rates_file(), {"source": source, "rates": rates})


def _text(log: Path) -> str:
    try:
        return log.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{log} cannot be read ({error}); name logs or executed notebooks with --log") from error


def measure(
    used: Sequence[Usage], turn_seconds: Mapping[str, float], grading_seconds: float, passes: int
) -> dict[str, dict[str, float]]:
    """Rates by kind of phase, each a ratio of sums over the phases of that kind.

    Args:
        used: `usage.count`.
        turn_seconds: worker-seconds of a turn by kind, as `seconds_per_turn` reads them from logs.
        grading_seconds: of one graded patch.
        passes: over each training's trees.
    """
    collected = {phase.phase: phase.episodes for phase in used}
    sums: dict[str, Counter[str]] = {}
    for phase in used:
        total = sums.setdefault(phase.kind, Counter())
        total.update({name: getattr(phase, name) for name in (*_COUNTS, "test_runs", "fresh_runs", "seconds")})
        total["collected"] += collected.get(phase.phase.replace(" train ", " collect "), 0)
    return {kind: _rates_of(kind, total, turn_seconds, grading_seconds, passes) for kind, total in sorted(sums.items())}


def _rates_of(
    kind: str, total: Mapping[str, float], turn_seconds: Mapping[str, float], grading_seconds: float, passes: int
) -> dict[str, float]:
    fresh = total["fresh_runs"] / total["test_runs"] if total["test_runs"] else 0.0
    if kind == GRADE:
        return {"test_runs": total["test_runs"] / total["episodes"], "fresh": fresh, "seconds": grading_seconds}
    if kind.startswith(TRAIN):
        return {
            "kept": total["episodes"] / total["collected"],
            "tree": total["trained_tokens"] / total["episodes"] / passes,
            "seconds": total["seconds"] / total["trained_tokens"],
        }
    return {
        "turns": total["turns"] / total["episodes"],
        "prompt": total["prompt_tokens"] / total["episodes"],
        "action": total["action_tokens"] / total["turns"],
        "observation": total["observation_tokens"] / total["turns"],
        "test_runs": total["test_runs"] / total["turns"],
        "fresh": fresh,
        "seconds": turn_seconds[kind],
    }


_PROGRESS = re.compile(r"(\w+) (round (\d+)/\d+|[\w-]+) · \d+/\d+ cohorts · .*? · (\d+) turns, .*? · (\d+) s")


def seconds_per_turn(logs: Iterable[str], used: Sequence[Usage]) -> dict[str, float]:
    """Worker-seconds of a turn by kind of phase, from the lines of progress in logs or executed notebooks.

    Raises:
        DataError: a kind of episodes has no line.
    """
    kinds = {phase.phase: phase.kind for phase in used if phase.turns}
    turns: Counter[str] = Counter()
    seconds: Counter[str] = Counter()
    for name, exam, round_, played, spent in (found for log in logs for found in _PROGRESS.findall(log)):
        kind = kinds.get(f"{name} collect {round_}" if round_ else f"{name} {exam}")
        if kind:
            turns[kind] += int(played)
            seconds[kind] += int(spent)
    if missing := sorted(set(kinds.values()) - set(turns)):
        raise DataError(f"no line of progress tells the time of {missing}; name the executed notebooks with --log")
    return {kind: seconds[kind] / turns[kind] for kind in turns}


def time_grading(patches: int = 4) -> float:
    """Seconds of one grading: gold patches of dev, one after another, on this machine now."""
    from dagger_nb.evaluation.grading import grade_all
    from dagger_nb.sandboxes import local_factory
    from dagger_nb.tasks import tasks

    pairs = [(task, task.patch) for task in tasks("dev", patches)]
    with local_factory() as factory:
        began = time.monotonic()
        grade_all(pairs, factory)
        return (time.monotonic() - began) / patches
