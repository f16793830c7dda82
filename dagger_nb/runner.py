"""Notebooks run by papermill, strictly.

Papermill ends with success where a parameter is misspelt, where a value is derived inside the parameters cell
(and stays stale), where no cell is tagged, where `sys.exit(0)` ends a notebook half-way, and where a thread
fails. Each of these is an error here, found before anything runs where that is possible.
"""

from __future__ import annotations

import ast
import contextlib
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import nbformat
import papermill
from nbclient.exceptions import CellTimeoutError, DeadKernelError
from papermill.exceptions import PapermillExecutionError

from dagger_nb import paths, store
from dagger_nb.config import nearest
from dagger_nb.errors import ConfigError, DaggerError, DataError, EnvironmentProblem

KERNEL = "dagger-nb"
TIMEOUT_S = 6 * 3600.0  # of one notebook; `study` takes hours

Say = Callable[[str], None]


class NotebookError(DaggerError, RuntimeError):
    """A notebook failed, timed out, or did not run to its end."""


@dataclass(frozen=True, slots=True)
class NotebookResult:
    """One executed notebook: its source, its executed copy, wall-clock seconds, and whether it was a skip."""

    path: Path
    output: Path
    seconds: float
    skipped: bool = False


# --- what a notebook takes --------------------------------------------------------------------------------


def read_notebook(path: Path) -> nbformat.NotebookNode:
    """The notebook in format 4. Raises ConfigError where there is none, DataError where it is torn."""
    if not path.is_file():
        others = [other.name for other in list_notebooks(path.parent)]
        raise ConfigError(f"no notebook {path}{nearest(path.name, others)}; there are: {', '.join(others) or 'none'}")
    try:
        return nbformat.read(path, as_version=4)
    except (ValueError, KeyError, AttributeError) as error:
        raise DataError(f"{path} is not a notebook ({error}); restore it with git") from error


def list_notebooks(folder: Path) -> list[Path]:
    """The notebooks of a folder in the order of their names."""
    return sorted(folder.glob("*.ipynb"))


def declared_parameters(path: Path) -> dict[str, object]:
    """Names and defaults of the one cell tagged `parameters`.

    Raises:
        ConfigError: no such cell, more than one, or something in it other than a literal given to a name:
            papermill would leave a derived value stale.
    """
    tagged = [c for c in read_notebook(path).cells if "parameters" in c.metadata.get("tags", [])]
    if len(tagged) != 1 or tagged[0].cell_type != "code":
        raise ConfigError(f"{path} has {len(tagged)} cells tagged 'parameters'; it needs exactly one, a code cell")
    declared: dict[str, object] = {}
    try:
        for statement in ast.parse(tagged[0].source).body:
            name, value = _assignment(statement)
            declared[name] = ast.literal_eval(value)
    except (SyntaxError, ValueError, TypeError) as error:
        raise ConfigError(
            f"{path}: its parameters cell may only give literals to names ({error}); derive values in the next cell"
        ) from error
    return declared


def _assignment(statement: ast.stmt) -> tuple[str, ast.expr]:
    if isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name) and statement.value:
        return statement.target.id, statement.value
    raise ValueError(f"line {statement.lineno} is not `name: type = literal`")


def check_parameters(path: Path, parameters: Mapping[str, object]) -> None:
    """Raise ConfigError for a name that the notebook does not declare, or a value of another type than its default."""
    declared = declared_parameters(path)
    for name, value in parameters.items():
        if name not in declared:
            raise ConfigError(
                f"{path.name} has no parameter {name!r}{nearest(name, declared)}; it takes: {', '.join(declared)}"
            )
        default = declared[name]
        wider = type(default) is float and type(value) is int
        if default is not None and type(value) is not type(default) and not wider:
            wanted = type(default).__name__
            raise ConfigError(f"{path.name}: parameter {name} = {value!r} must be of type {wanted} (as {default!r} is)")


# --- one notebook -----------------------------------------------------------------------------------------


def run_notebook(
    path: Path,
    parameters: Mapping[str, object],
    *,
    output: Path,
    timeout_s: float = TIMEOUT_S,
    say: Say = print,
) -> NotebookResult:
    """Execute a notebook in its own folder, with the running interpreter as its kernel, and keep the copy at `output`.

    Args:
        parameters: values for names of its parameters cell.
        timeout_s: wall-clock seconds for the whole notebook.
        say: takes lines of progress.

    Raises:
        ConfigError: a parameter or the parameters cell is wrong; nothing has run.
        NotebookError: a cell failed, was not reached, or the time is over; `output` holds what there is.
        EnvironmentProblem: `output` cannot be written.
    """
    check_parameters(path, parameters)
    paths.writable(output.parent)
    began = time.monotonic()
    count = len(read_notebook(path).cells) + bool(parameters)  # papermill adds a cell with the values
    progress = _Progress(path, count, began, say)
    with _own_kernel(), _explained(path, output, progress):
        executed = papermill.execute_notebook(
            str(path.resolve()),
            str(output.resolve()),
            parameters=dict(parameters),
            kernel_name=KERNEL,
            language="python",
            progress_bar=False,
            cwd=str(path.resolve().parent),
            stdout_file=progress,
            on_cell_start=progress.cell,
            timeout_func=lambda _: max(0.05, began + timeout_s - time.monotonic()),
        )
    _require_complete(path, executed, output)
    _say_python3(executed, output)
    return NotebookResult(path, output, time.monotonic() - began)


@contextlib.contextmanager
def _explained(path: Path, output: Path, progress: _Progress) -> Iterator[None]:
    """Turn what papermill and its client raise into errors of this package."""
    try:
        yield
    except PapermillExecutionError as error:
        if error.ename == "KeyboardInterrupt":
            raise KeyboardInterrupt from error
        what = f"cell {progress.number} failed with {error.ename}: {error.evalue}".rstrip(": ")
        raise _failure(path, what, output) from error
    except CellTimeoutError as error:
        what = f"the time limit ended cell {progress.number}, {progress.elapsed()} after the start"
        raise _failure(path, what, output) from error
    except DeadKernelError as error:
        raise _failure(path, f"its kernel died in cell {progress.number} (out of memory?)", output) from error
    except OSError as error:
        raise EnvironmentProblem(f"{path.name} stopped: {error}; free space or permissions, run again") from error


def _failure(path: Path, what: str, output: Path) -> NotebookError:
    return NotebookError(
        f"{path.name}: {what}; see {output}, mend the cause, and give the same command again to go on from there"
    )


def _require_complete(path: Path, executed: nbformat.NotebookNode, output: Path) -> None:
    """Refuse a notebook with a cell that did not end, or that left an error behind (in a thread, say)."""
    for number, cell in enumerate(executed.cells, start=1):
        if cell.cell_type != "code" or not cell.source.strip():
            continue
        state = cell.metadata.get("papermill", {})
        if state.get("status") != "completed" or state.get("exception") or not cell.execution_count:
            raise _failure(path, f"cell {number} did not run to its end (sys.exit, or a cell left out)", output)
        for out in cell.outputs:
            text = out.get("text", "") if out.get("name") == "stderr" else ""
            if out.output_type == "error" or "Exception in thread" in text:
                raise _failure(path, f"cell {number} left an error that nobody caught", output)


def _say_python3(executed: nbformat.NotebookNode, output: Path) -> None:
    """Name the usual kernel in the executed copy, so that it opens in any Jupyter."""
    executed.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
    store.write_text(output, nbformat.writes(executed))


@contextlib.contextmanager
def _own_kernel() -> Iterator[None]:
    """Offer a kernel that is this interpreter with this package, whatever kernels and profiles the machine has."""
    with tempfile.TemporaryDirectory(prefix="dagger-nb-kernel-") as folder:
        spec = Path(folder) / "kernels" / KERNEL / "kernel.json"
        spec.parent.mkdir(parents=True)
        package_root = str(Path(__file__).resolve().parents[1])
        python_path = os.pathsep.join(filter(None, [package_root, os.environ.get("PYTHONPATH", "")]))
        arguments = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}", "--log-level=CRITICAL"]
        environment = {
            "PYTHONPATH": python_path,
            "IPYTHONDIR": f"{folder}/ipython",
            "PYTHONWARNINGS": "ignore:IProgress not found",  # widgets would break saved notebooks
        }
        content = {"argv": arguments, "display_name": KERNEL, "language": "python", "env": environment}
        spec.write_text(json.dumps(content))
        with _environment(JUPYTER_PATH=folder, JUPYTER_RUNTIME_DIR=f"{folder}/runtime"):
            yield


@contextlib.contextmanager
def _environment(**values: str) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name)
            else:
                os.environ[name] = value


class _Progress:
    """Says which cell begins, and, at most every `EVERY_S` seconds, the last line that the notebook printed."""

    EVERY_S = 5.0

    def __init__(self, path: Path, count: int, began: float, say: Say) -> None:
        self.name, self.count, self.number = path.stem.partition("_")[0], count, 0
        self._began, self._say, self._last = began, say, began

    def cell(self, cell: nbformat.NotebookNode, cell_index: int) -> None:
        self.number = cell_index + 1
        if cell.cell_type == "code":
            self._line("")

    def write(self, text: str) -> None:
        line = text.strip().rpartition("\n")[2].strip()
        if line and time.monotonic() - self._last >= self.EVERY_S:
            self._line(f"  {line}")

    def flush(self) -> None:
        """Papermill flushes after each write; lines go out at once."""

    def elapsed(self) -> str:
        return f"{time.monotonic() - self._began:.0f} s"

    def _line(self, text: str) -> None:
        self._last = time.monotonic()
        self._say(f"notebook {self.name} cell {self.number}/{self.count} ... {self.elapsed()}{text}")
