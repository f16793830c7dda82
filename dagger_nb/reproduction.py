"""All notebooks in order, as one reproduction that goes on where it was interrupted.

A finished notebook leaves a small state file beside its executed copy; while notebook, parameters, package
and committed inputs are what they were, the next call skips it, so an interrupted reproduction goes on.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nbformat

from dagger_nb import paths, store
from dagger_nb.config import nearest
from dagger_nb.errors import ConfigError
from dagger_nb.evaluation.grades import LOST
from dagger_nb.runner import (
    TIMEOUT_S,
    NotebookResult,
    Say,
    check_parameters,
    declared_parameters,
    list_notebooks,
    read_notebook,
    run_notebook,
)


def reproduce(
    profile: str,
    seed: int,
    parameters: Mapping[str, Any] | None = None,
    *,
    folder: Path | None = None,
    output: Path | None = None,
    timeout_s: float = TIMEOUT_S,
    force: bool = False,
    say: Say = print,
) -> list[NotebookResult]:
    """Run every notebook in order; those that are finished and unchanged are skipped unless `force`.

    One that has lost something to the infrastructure is run again by the next call, and with it the later ones, which
    read what it finds.

    Args:
        parameters: further values; each goes to the notebooks that declare it, and one must.
        folder: the notebooks, by default `paths.notebooks()`.
        output: for executed copies and state files, by default `paths.report_folder` of profile, seed and overrides.

    Raises:
        ConfigError: before anything runs, for every notebook at once.
        NotebookError, EnvironmentProblem: from the notebook that stopped; earlier ones stay finished.
    """
    sources = list_notebooks(folder or paths.notebooks())
    if not sources:
        raise ConfigError(f"no notebooks in {folder or paths.notebooks()}; restore them with git")
    values = {"profile": profile, "seed": seed, **(parameters or {})}
    chosen = _share_out(sources, values)
    output = paths.writable(output or paths.report_folder(profile, seed, values.get("overrides")))
    inputs = inputs_digest()
    results: list[NotebookResult] = []
    for source in sources:
        inputs = _sha(inputs, *(c.source for c in read_notebook(source).cells if c.cell_type == "code"))
        job = _Job(source, chosen[source], output / source.name, inputs)
        force = force or _state(job).get("lost", False)
        results.append(_run_unless_finished(job, timeout_s=timeout_s, force=force, say=say))
    return results


def _share_out(sources: Sequence[Path], values: Mapping[str, Any]) -> dict[Path, dict[str, object]]:
    """Which notebook gets which values: those that it declares."""
    declared = {source: declared_parameters(source) for source in sources}
    known = sorted(set().union(*declared.values()))
    for name in values:
        if name not in known:
            hint = nearest(name, known)
            raise ConfigError(f"no notebook has a parameter {name!r}{hint}; they take: {', '.join(known)}")
    chosen = {s: {name: value for name, value in values.items() if name in declared[s]} for s in sources}
    for source, share in chosen.items():
        check_parameters(source, share)
    return chosen


@dataclass(frozen=True, slots=True)
class _Job:
    """One notebook; `inputs` is the digest of all that it may read, the code of earlier notebooks included."""

    source: Path
    values: Mapping[str, object]
    output: Path
    inputs: str

    @property
    def state(self) -> Path:
        return self.output.with_suffix(".json")

    @property
    def key(self) -> str:
        """What a finished copy must have been made from to be still good."""
        cells = [cell.source for cell in read_notebook(self.source).cells]
        return _sha(self.inputs, json.dumps(self.values, sort_keys=True), *cells)


def _run_unless_finished(job: _Job, *, timeout_s: float, force: bool, say: Say) -> NotebookResult:
    seconds = None if force else _finished(job)
    if seconds is not None:
        say(f"{job.source.name}: finished before in {seconds:.0f} s, and nothing has changed since")
        return NotebookResult(job.source, job.output, seconds, skipped=True)
    job.state.unlink(missing_ok=True)
    key = job.key
    result = run_notebook(job.source, job.values, output=job.output, timeout_s=timeout_s, say=say)
    row = {"key": key, "sha256": store.file_sha256(job.output), "seconds": round(result.seconds, 1)}
    lost = _lost(job.output)
    store.write_json(job.state, row | {"lost": lost})
    tail = f"; some was {LOST}, and the same command tries it again" if lost else ""
    say(f"{job.source.name}: finished in {result.seconds:.0f} s{tail}")
    return result


def _lost(output: Path) -> bool:
    """Whether an executed copy says that something was lost which a later run may have."""
    printed = (out.get("text", "") for cell in nbformat.read(output, 4).cells for out in cell.get("outputs", ()))
    return any(LOST in text for text in printed)


def _finished(job: _Job) -> float | None:
    """Seconds of the earlier run where it had the same key and its copy is untouched; else None."""
    row = _state(job)
    try:
        same = row["key"] == job.key and row["sha256"] == store.file_sha256(job.output)
        return float(row["seconds"]) if same else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _state(job: _Job) -> dict[str, Any]:
    """What the earlier run left; nothing where there was none, or its state is torn."""
    try:
        row = json.loads(job.state.read_text("utf-8"))
    except (OSError, ValueError):
        return {}
    return row if isinstance(row, dict) else {}


def inputs_digest() -> str:
    """SHA-256 (hex) of the package's source and the committed inputs (data/ without runs, caches, answers, results)."""
    package = Path(__file__).resolve().parent
    written = {"runs", "cache", "answers", "results"}
    files = [f for f in package.rglob("*") if f.suffix != ".pyc"]
    files += [f for f in paths.data().rglob("*") if f.relative_to(paths.data()).parts[0] not in written]
    total = hashlib.sha256()
    for file in sorted(f for f in files if f.is_file()):
        total.update(f"{file.name} {store.file_sha256(file)}\n".encode())
    return total.hexdigest()


def _sha(*parts: str) -> str:
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()
