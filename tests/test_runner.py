"""The strict notebook runner, on small notebooks that hold each of papermill's silent failures."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import nbformat
import pandas as pd
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

from dagger_nb import paths, report, reproduction, runner
from dagger_nb.errors import ConfigError, DataError
from dagger_nb.evaluation.grades import LOST

PARAMETERS = "profile: str = 'tiny'  # budgets\nseed: int = 0  # root seed\nrate: float = 0.5  # a number"


def notebook(path: Path, *sources: str, parameters: tuple[str, ...] = (PARAMETERS,)) -> Path:
    cells = [new_markdown_cell(f"# Story {path.stem}")]
    cells += [new_code_cell(source, metadata={"tags": ["parameters"]}) for source in parameters]
    cells += [new_code_cell(source) for source in sources]
    path.parent.mkdir(parents=True, exist_ok=True)
    nbformat.write(new_notebook(cells=cells), path)
    return path


def silent(_: str) -> None:
    """A listener that keeps nothing."""


def printed(path: Path) -> str:
    cells = nbformat.read(path, as_version=4).cells
    return "".join(out.get("text", "") for cell in cells if cell.cell_type == "code" for out in cell.outputs)


# --- one notebook -----------------------------------------------------------------------------------------


def test_a_good_notebook_runs_with_this_interpreter_in_its_own_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = notebook(
        tmp_path / "books" / "03_ok.ipynb",
        "import os, sys, dagger_nb\nprint(sys.executable, os.getcwd(), profile, seed, rate)",
    )
    monkeypatch.chdir(tmp_path)
    lines: list[str] = []
    output = tmp_path / "out" / "03_ok.ipynb"
    result = runner.run_notebook(Path("books/03_ok.ipynb"), {"seed": 4, "rate": 1}, output=output, say=lines.append)
    assert printed(output).strip() == f"{sys.executable} {path.parent} tiny 4 1"
    assert result.output == output and result.seconds > 0 and not result.skipped
    assert nbformat.read(output, as_version=4).metadata.kernelspec.name == "python3"
    assert lines[0].startswith("notebook 03 cell 2/4 ... ") and lines[-1].startswith("notebook 03 cell 4/4 ... ")


@pytest.mark.parametrize(
    ("sources", "said"),
    [
        (("import sys", "sys.exit(0)", "print('never')"), "cell 5 did not run to its end"),
        (("1 / 0", "print('never')"), "cell 4 failed with ZeroDivisionError"),
        (("import threading\nt = threading.Thread(target=lambda: 1 / 0)\nt.start()\nt.join()",), "nobody caught"),
        (("import os\nos._exit(0)",), "kernel died in cell 4"),
    ],
    ids=["sys.exit", "failing cell", "thread", "dead kernel"],
)
def test_a_notebook_that_does_not_end_well_is_an_error(tmp_path: Path, sources: tuple[str, ...], said: str) -> None:
    path = notebook(tmp_path / "bad.ipynb", *sources)
    with pytest.raises(runner.NotebookError) as caught:
        runner.run_notebook(path, {"seed": 1}, output=tmp_path / "out.ipynb", say=silent)
    assert said in str(caught.value) and "bad.ipynb" in str(caught.value) and "out.ipynb" in str(caught.value)
    assert "never" not in printed(tmp_path / "out.ipynb")


def test_a_cell_marked_to_be_left_out_is_an_error(tmp_path: Path) -> None:
    path = notebook(tmp_path / "bad.ipynb", "print('left out')")
    content = nbformat.read(path, as_version=4)
    content.cells[-1].metadata["tags"] = ["skip-execution"]
    nbformat.write(content, path)
    with pytest.raises(runner.NotebookError, match="did not run to its end"):
        runner.run_notebook(path, {}, output=tmp_path / "out.ipynb", say=silent)


def test_the_time_limit_holds_for_the_whole_notebook(tmp_path: Path) -> None:
    path = notebook(tmp_path / "slow.ipynb", *["import time\ntime.sleep(0.8)"] * 20)  # each cell is within it
    with pytest.raises(runner.NotebookError, match="the time limit ended cell"):
        runner.run_notebook(path, {}, output=tmp_path / "out.ipynb", timeout_s=2, say=silent)


def test_long_cells_report_what_they_print(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner._Progress, "EVERY_S", 0.0)
    lines: list[str] = []
    path = notebook(tmp_path / "07_long.ipynb", "print('round 1: 12/32 episodes', flush=True)")
    runner.run_notebook(path, {}, output=tmp_path / "out.ipynb", say=lines.append)
    assert any(line.endswith("round 1: 12/32 episodes") and line.startswith("notebook 07 cell 3/3") for line in lines)


# --- parameters -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"sead": 1}, "did you mean 'seed'"),
        ({"seed": "1"}, "must be of type int"),
        ({"seed": True}, "must be of type int"),
        ({"profile": 3}, "must be of type str"),
    ],
)
def test_a_wrong_parameter_is_refused_before_anything_runs(
    tmp_path: Path, values: dict[str, object], said: str
) -> None:
    path = notebook(tmp_path / "a.ipynb", "open('ran', 'w')")
    with pytest.raises(ConfigError, match=said):
        runner.run_notebook(path, values, output=tmp_path / "out.ipynb", say=silent)
    assert not (tmp_path / "ran").exists() and not (tmp_path / "out.ipynb").exists()


@pytest.mark.parametrize(
    "cells",
    [
        (),
        (PARAMETERS, PARAMETERS),
        ("seed: int = 1  # ok\ndouble: int = 2 * seed  # stale",),
        ("seed = 1",),
        ("import os",),
        ("seed: int = (",),
    ],
    ids=["no cell", "two cells", "derived value", "no type", "import", "syntax"],
)
def test_a_bad_parameters_cell_is_refused(tmp_path: Path, cells: tuple[str, ...]) -> None:
    with pytest.raises(ConfigError, match="parameters"):
        runner.declared_parameters(notebook(tmp_path / "a.ipynb", parameters=cells))


def test_a_missing_or_torn_notebook_is_explained(tmp_path: Path) -> None:
    notebook(tmp_path / "03_sft.ipynb")
    with pytest.raises(ConfigError, match="did you mean '03_sft.ipynb'"):
        runner.read_notebook(tmp_path / "03_stf.ipynb")
    (tmp_path / "torn.ipynb").write_text((tmp_path / "03_sft.ipynb").read_text()[:100])
    with pytest.raises(DataError, match="torn.ipynb"):
        runner.read_notebook(tmp_path / "torn.ipynb")


# --- all notebooks ----------------------------------------------------------------------------------------


@pytest.fixture
def two_books(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[bool]]:
    """Two notebooks that write down each run; calling it reproduces them and says which were skipped."""
    monkeypatch.setattr(reproduction, "inputs_digest", lambda: "a package that nobody edits meanwhile")
    log = f"open({str(tmp_path / 'log')!r}, 'a').write"
    notebook(tmp_path / "books" / "00_a.ipynb", f"{log}('a')")
    only_seed = ("seed: int = 0  # root seed",)
    notebook(tmp_path / "books" / "01_b.ipynb", f"{log}('b')", parameters=only_seed)

    def reproduce(seed: int = 0, **options: object) -> list[bool]:
        results = reproduction.reproduce(
            "smoke", seed, folder=tmp_path / "books", output=tmp_path / "out", say=silent, **options
        )
        return [result.skipped for result in results]

    return reproduce


def test_finished_notebooks_are_skipped_until_something_changes(tmp_path: Path, two_books: Callable) -> None:
    books = tmp_path / "books"
    assert two_books() == [False, False]
    assert two_books() == [True, True]
    assert two_books(seed=1) == [False, False]
    content = nbformat.read(books / "01_b.ipynb", as_version=4)
    content.cells[0].source = "# New prose"
    nbformat.write(content, books / "01_b.ipynb")
    assert two_books(seed=1) == [True, False]
    content = nbformat.read(books / "00_a.ipynb", as_version=4)
    content.cells[-1].source += "  # new code: what comes later may read what it writes"
    nbformat.write(content, books / "00_a.ipynb")
    assert two_books(seed=1) == [False, False]
    (tmp_path / "out" / "01_b.ipynb").write_text("edited")
    assert two_books(seed=1) == [True, False]
    (tmp_path / "out" / "00_a.json").write_text('{"key": "to')
    assert two_books(seed=1) == [False, True]


def test_what_was_lost_to_the_infrastructure_is_tried_by_the_same_command(tmp_path: Path, two_books: Callable) -> None:
    """And what is read from it later; nothing else is run again."""
    book, down = tmp_path / "books" / "00_a.ipynb", tmp_path / "down"
    down.touch()
    said = f"import os\nprint('1 of 9 tasks have no verdict, {LOST}' if os.path.exists({str(down)!r}) else 'all')"
    content = nbformat.read(book, as_version=4)
    content.cells[-1].source += f"\n{said}"
    nbformat.write(content, book)
    assert two_books() == two_books() == [False, False]
    down.unlink()
    assert two_books() == [False, False]
    assert two_books() == [True, True]


def test_a_changed_package_or_input_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = tmp_path / "data"
    (data / "runs").mkdir(parents=True)
    (data / "base").mkdir()
    monkeypatch.setattr(reproduction.paths, "data", lambda: data)
    monkeypatch.setattr(reproduction, "__file__", str(tmp_path / "package" / "runner.py"))
    seen = [reproduction.inputs_digest()]
    for name in ("data/base/weights.bin", "package/module.py", "package/template.jinja"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("content")
        seen.append(reproduction.inputs_digest())
    assert len(set(seen)) == 4
    for name in ("runs/written.jsonl", "cache/observations.sqlite", "answers/answers.sqlite", "results/outcomes.csv"):
        (data / name).parent.mkdir(exist_ok=True)
        (data / name).write_text("by a run")
        assert reproduction.inputs_digest() == seen[-1], name


def test_force_runs_again(two_books: Callable) -> None:
    assert two_books() == [False, False]
    assert two_books(force=True) == [False, False]


def test_a_parameter_that_no_notebook_takes_stops_before_the_first(tmp_path: Path, two_books: Callable) -> None:
    with pytest.raises(ConfigError, match="did you mean 'rate'"):
        two_books(parameters={"rat": 0.1})
    with pytest.raises(ConfigError, match="no notebooks"):
        reproduction.reproduce("smoke", 0, folder=tmp_path / "nowhere", output=tmp_path / "out", say=silent)
    assert not (tmp_path / "log").exists()


def test_a_killed_reproduction_goes_on_with_the_unfinished_notebook(tmp_path: Path) -> None:
    log, books, out = tmp_path / "log", tmp_path / "books", tmp_path / "out"
    write = f"import os\nopen({str(log)!r}, 'a').write('%s')"
    wait = f"import time\nwhile not os.path.exists({str(tmp_path / 'go')!r}):\n    time.sleep(0.05)"
    notebook(books / "00_a.ipynb", write % "a")
    notebook(
        books / "01_b.ipynb", write % "b", f"open({str(tmp_path / 'kernel')!r}, 'w').write(str(os.getpid()))", wait
    )
    code = (
        "from pathlib import Path\nfrom dagger_nb import reproduction\n"
        "reproduction.inputs_digest = lambda: 'unchanged'\n"
        f"reproduction.reproduce('tiny', 0, folder=Path({str(books)!r}), output=Path({str(out)!r}))"
    )
    environment = os.environ | {"PYTHONPATH": str(paths.project())}
    first = subprocess.Popen([sys.executable, "-c", code], env=environment, stdout=subprocess.DEVNULL)
    _wait_for(lambda: (tmp_path / "kernel").exists() and (tmp_path / "kernel").read_text())
    first.send_signal(signal.SIGKILL)
    first.wait()
    kernel = int((tmp_path / "kernel").read_text())
    _wait_for(lambda: not _alive(kernel))
    assert log.read_text() == "ab" and not (out / "01_b.json").exists()
    (tmp_path / "go").touch()
    subprocess.run([sys.executable, "-c", code], env=environment, check=True, stdout=subprocess.DEVNULL)
    assert log.read_text() == "abb"
    assert json.loads((out / "01_b.json").read_text())["seconds"] > 0


def _wait_for(true: Callable[[], object], seconds: float = 60.0) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.05)


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
        return "Z" not in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (ProcessLookupError, FileNotFoundError):
        return False


# --- the report -------------------------------------------------------------------------------------------


def test_the_report_begins_with_the_rates_and_folds_the_long_tables(tmp_path: Path) -> None:
    rows = [("sft", 0, f"t{i}", "test", f"r{i}", i < 3, exam) for exam in ("test", "longer") for i in range(4)]
    outcomes = pd.DataFrame(rows, columns=["recipe", "seed", "instance_id", "split", "repo", "resolved", "exam"])
    outcomes.to_csv(tmp_path / "outcomes.csv", index=False)
    (tmp_path / "disagreement.csv").write_text("share,turns\n0.3541666666666667,48\n")
    text = report.build([], tmp_path / "html", title="x", results=tmp_path, figures=tmp_path).read_text()
    order = [text.index(f"<h2>{head}") for head in ("Tasks resolved", "Notebooks", "Figures", "Tables")]
    assert order == sorted(order) and text.index("3/4 [30%, 95%]") < order[1]
    assert text.count("<details>") == 2 and "<td>0.3542</td><td>48</td>" in text


def test_the_report_stands_alone(tmp_path: Path) -> None:
    draw = (
        "import matplotlib.pyplot as plt\nfigure, axes = plt.subplots()\naxes.plot([1, 2])\n"
        f"figure.savefig({str(tmp_path / 'curve.png')!r})"
    )
    path = notebook(tmp_path / "00_a.ipynb", draw, "'<b>bold</b>'")
    output = tmp_path / "out" / "00_a.ipynb"
    runner.run_notebook(path, {}, output=output, say=silent)
    (tmp_path / "table.csv").write_text('method,"solved [95 %]"\nsft,"50 [40, 60] <i>"\n')
    index = report.build([output], tmp_path / "html", title="a <title>", results=tmp_path, figures=tmp_path)
    text = index.read_text()
    assert "<title>a &lt;title&gt;</title>" in text and "50 [40, 60] &lt;i&gt;" in text
    assert 'href="00_a.html"' in text and "Story 00_a" in text and "data:image/png;base64," in text
    page = (tmp_path / "html" / "00_a.html").read_text()
    assert "data:image/png;base64," in page
    for fetched in ("<script", "@import", 'src="http', '<link rel="stylesheet"', "url(http"):
        assert fetched not in page + text, fetched
