"""From cohorts on disk to an adapter on disk: the one place where records meet the trainer."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import torch

from dagger_nb.records import Label, StopReason, Task, Trajectory
from dagger_nb.rendering import Renderer
from dagger_nb.revisions import commit_of
from dagger_nb.settings import Settings
from dagger_nb.store import CohortRecord, write_json
from dagger_nb.training.accelerator import accelerator
from dagger_nb.training.fit import FitResult, fit
from dagger_nb.training.model import add_adapter, free_accelerator, load_adapter, load_student, save_adapter
from dagger_nb.training.tree import Example, Segments, make_example


def segments(task: Task, trajectory: Trajectory, renderer: Renderer) -> Segments:
    """The token segments of a trajectory: exactly the ids that the student read and said."""
    turns = tuple((turn.token_ids, renderer.observation_ids(turn.observation)) for turn in trajectory.turns)
    return Segments(renderer.prompt_ids(task), turns)


def examples_of(
    records: Iterable[CohortRecord], tasks: Mapping[str, Task], renderer: Renderer, *, keep: str, lesson_weight: float
) -> tuple[list[Example], int]:
    """Training examples, and how many trajectories the filter dropped (`keep`: "finish" or "none" for all)."""
    examples, dropped = [], 0
    for record in records:
        labels: dict[tuple[str, int], list[Label]] = {}
        for label in record.labels:
            labels.setdefault((label.instance_id, label.attempt), []).append(label)
        for trajectory in record.trajectories:
            if not trajectory.turns or (keep == "finish" and trajectory.stop is not StopReason.FINISH):
                dropped += 1
                continue
            whole = segments(tasks[trajectory.instance_id], trajectory, renderer)
            examples.append(make_example(whole, labels.get(trajectory.key, ()), lesson_weight=lesson_weight))
    return examples, dropped


def train_adapter(
    records: Iterable[CohortRecord],
    *,
    base: str,
    previous: Path | None,
    settings: Settings,
    renderer: Renderer,
    tasks: Mapping[str, Task],
    folder: Path,
    seed: int,
    log: Callable[[str], None],
) -> Path:
    """Train on top of `previous` (None: a fresh adapter) and save into `folder`; fit.json is written last.

    On a GPU where there is one, unless students act on the CPU (`local`), so that such runs are the same everywhere.
    Called again after a kill, it goes on from the last checkpoint, to the same bits on a CPU. The GPU is empty
    afterwards, for the servers of the next phase.
    """
    torch.set_num_threads(settings.threads)
    examples, dropped = examples_of(
        records, tasks, renderer, keep=settings.dagger.filter, lesson_weight=settings.training.lesson_weight
    )
    result, adapter = _fitted(examples, base, previous, settings, folder, seed, log)
    free_accelerator()
    shutil.rmtree(_work(folder))
    write_json(folder / "fit.json", _report(result) | {"adapter": adapter, "episodes_dropped": dropped})
    return folder


def _fitted(
    examples: Sequence[Example],
    base: str,
    previous: Path | None,
    settings: Settings,
    folder: Path,
    seed: int,
    log: Callable[[str], None],
) -> tuple[FitResult, str]:
    """How the fit went and the digest of the saved adapter; nobody refers to the model any more."""
    student, device = settings.student, accelerator() if settings.served else "cpu"
    commit = commit_of(base, student.revision)
    model = load_student(base, quantise=student.quantise, device=device, revision=commit)
    model = load_adapter(model, previous, trainable=True) if previous else add_adapter(model, settings.lora, seed=seed)
    context, work = settings.episode.context, _work(folder)
    result = fit(model, examples, settings.training, context=context, output_dir=work, seed=seed, progress=log)
    return result, save_adapter(model, folder)


def _work(folder: Path) -> Path:
    """Where the checkpoints of the fit of an adapter's folder are."""
    return folder.with_name("training")


def _report(result: FitResult) -> dict[str, object]:
    return dataclasses.asdict(result)
