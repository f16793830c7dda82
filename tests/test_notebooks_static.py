"""What can be known of the notebooks without running them."""

from __future__ import annotations

import ast
import io
import re
import tokenize
from pathlib import Path

import nbformat
import papermill
import pytest
from IPython.core.inputtransformer2 import TransformerManager

from dagger_nb import runner
from dagger_nb.profiles import PROFILES

FOLDER = Path(__file__).resolve().parents[1] / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
COMMON_PARAMETERS = {"profile", "seed", "overrides"}
FORBIDDEN = {
    "a shell command or magic that leaves Python": re.compile(r"get_ipython\(\)\.(system|getoutput|run_\w*magic)"),
    "sys.exit, exit or quit": re.compile(r"\b(sys\.exit|os\._exit|(?<![\w.])exit|(?<![\w.])quit)\s*\("),
    "input()": re.compile(r"(?<![\w.])input\s*\("),
    "a thread": re.compile(r"\b(threading|Thread|ThreadPoolExecutor|_thread)\b"),
    "a widget progress bar": re.compile(r"tqdm\.(notebook|auto)|ipywidgets|tqdm_notebook"),
    "os.chdir": re.compile(r"\bos\.chdir\b"),
}
ABSOLUTE = re.compile(r"""(?<![\w:/.<])(/(?:home|root|tmp|usr|opt|var|work|mnt|Users|private)/[\w.-]+|[A-Z]:\\\w+)""")
SECRET = re.compile(r"\b(sk-[A-Za-z0-9]{16,}|hf_[A-Za-z0-9]{16,}|ghp_[A-Za-z0-9]{16,})")

each_notebook = pytest.mark.parametrize("path", NOTEBOOKS or [None], ids=lambda path: path.stem if path else "none")


@pytest.fixture
def cells(path: Path | None) -> list[nbformat.NotebookNode]:
    assert path is not None, f"no notebooks in {FOLDER}; restore them with git"
    return nbformat.read(path, as_version=4).cells


def code_of(cells: list[nbformat.NotebookNode]) -> list[nbformat.NotebookNode]:
    return [cell for cell in cells if cell.cell_type == "code"]


def tags(cell: nbformat.NotebookNode) -> set[str]:
    return set(cell.metadata.get("tags", []))


def python_of(cell: nbformat.NotebookNode) -> str:
    """The cell as the kernel compiles it: `!ls` and `%cd` become calls of get_ipython()."""
    return TransformerManager().transform_cell(cell.source)


def test_the_story_is_complete() -> None:
    numbers = [path.stem.partition("_")[0] for path in NOTEBOOKS]
    assert numbers == [f"{number:02d}" for number in range(len(numbers))] and len(numbers) >= 8, numbers


@each_notebook
def test_the_format_is_valid_and_every_cell_has_an_id(path: Path, cells: list) -> None:
    nbformat.validate(nbformat.read(path, as_version=4))
    identities = [cell.get("id") for cell in cells]
    assert all(identities) and len(set(identities)) == len(identities)


@each_notebook
def test_one_parameters_cell_of_annotated_and_explained_literals(path: Path, cells: list) -> None:
    declared = runner.declared_parameters(path)
    assert set(declared) >= COMMON_PARAMETERS
    assert set(papermill.inspect_notebook(str(path))) == set(declared)
    (source,) = [cell.source for cell in cells if "parameters" in tags(cell)]
    commented = {
        token.start[0]
        for token in tokenize.generate_tokens(io.StringIO(source).readline)
        if token.type == tokenize.COMMENT
    }
    for statement in ast.parse(source).body:
        assert statement.end_lineno in commented, f"no comment beside: {ast.unparse(statement)}"


@each_notebook
def test_every_profile_is_named_where_one_is_chosen(path: Path, cells: list) -> None:
    (source,) = [cell.source for cell in cells if "parameters" in tags(cell)]
    (line,) = [line for line in source.splitlines() if line.startswith("profile: str")]
    assert all(name in line for name in PROFILES)


@pytest.mark.parametrize("path", NOTEBOOKS[2:7], ids=lambda path: path.stem)
def test_a_notebook_that_spends_or_judges_states_what_each_profile_needs(path: Path, cells: list) -> None:
    (call,) = [cell for cell in code_of(cells) if "notebook.needs(" in cell.source]
    assert f'notebook.needs(settings, "{path.stem[:2]}"' in call.source and cells.index(call) <= 4


@each_notebook
def test_overrides_reach_the_settings_and_every_folder(path: Path, cells: list) -> None:
    assert runner.declared_parameters(path)["overrides"] == {}
    runner.check_parameters(path, {"overrides": {"teacher.endpoint": "http://localhost:8000/v1"}})
    code = "\n".join(cell.source for cell in code_of(cells))
    assert "notebook.begin(profile, seed, overrides)" in code
    for call in re.findall(r"(?:begin|result_folder|find|examine)\(profile[^)]*\)", code):
        assert call.endswith(", overrides)"), f"{path.name}: {call}"


@each_notebook
@pytest.mark.parametrize("what", FORBIDDEN)
def test_nothing_that_papermill_would_not_notice(path: Path, cells: list, what: str) -> None:
    for cell in code_of(cells):
        found = FORBIDDEN[what].search(python_of(cell))
        assert not found, f"{path.name} uses {what}: {found.group()!r}"


@each_notebook
def test_no_bare_except_and_no_silent_catch_all(path: Path, cells: list) -> None:
    for cell in code_of(cells):
        for node in ast.walk(ast.parse(python_of(cell))):
            if isinstance(node, ast.ExceptHandler):
                caught = ast.unparse(node.type) if node.type else "everything"
                assert caught not in ("everything", "Exception", "BaseException"), f"{path.name} catches {caught}"


@each_notebook
def test_no_absolute_paths_and_no_keys(path: Path, cells: list) -> None:
    assert cells
    text = path.read_text(encoding="utf-8")
    for pattern in (ABSOLUTE, SECRET):
        found = pattern.search(text)
        assert not found, f"{path.name} contains {found.group()!r}"


@each_notebook
def test_between_18_and_30_cells_with_prose_between_code(path: Path, cells: list) -> None:
    assert 18 <= len(cells) <= 30, f"{path.name} has {len(cells)} cells"
    kinds = "".join("c" if cell.cell_type == "code" else "p" for cell in cells)
    assert "ccc" not in kinds, f"{path.name}: three code cells in a row, from cell {kinds.index('ccc') + 1}"
    assert cells[0].cell_type == "markdown" and cells[0].source.startswith("# ")
    assert all(cell.source.strip() for cell in cells), f"{path.name} has an empty cell"


@each_notebook
def test_nine_code_cells_in_ten_are_short(path: Path, cells: list) -> None:
    lengths = sorted(len(cell.source.splitlines()) for cell in code_of(cells))
    long = [length for length in lengths if length > 15]
    assert len(long) <= len(lengths) / 10, f"{path.name}: cells of {long} lines"


@each_notebook
def test_definitions_only_where_they_are_the_lesson(path: Path, cells: list) -> None:
    definitions = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
    for cell in code_of(cells):
        found = [node.name for node in ast.walk(ast.parse(python_of(cell))) if isinstance(node, definitions)]
        assert not found or "lesson" in tags(cell), f"{path.name} defines {found} in a cell without the tag 'lesson'"


@each_notebook
def test_outputs_are_stripped_unless_published(path: Path, cells: list) -> None:
    """Publishing writes `metadata.dagger_nb.published`; then every code cell has run, in order, without an error."""
    published = nbformat.read(path, as_version=4).metadata.get("dagger_nb", {}).get("published", False)
    counts = [cell.execution_count for cell in code_of(cells)]
    if published:
        assert counts == sorted(count for count in counts if count), f"{path.name}: not run from top to bottom"
        assert not any(out.output_type == "error" for cell in code_of(cells) for out in cell.outputs)
    else:
        assert not any(cell.outputs for cell in code_of(cells)), f"{path.name} has outputs; strip or publish it"
        assert not any(counts), f"{path.name} has execution counts; strip or publish it"


@each_notebook
def test_differences_that_are_a_laptops_are_told_as_such_beside_the_profiles_own(path: Path, cells: list) -> None:
    told = [cell.source for cell in cells if "Differences from the paper" in cell.source]
    assert len(told) == 1 or path.stem.startswith("01")
    if path.stem[:2] in ("01", "07"):  # of theory alone, and of figures
        return
    assert "in the laptop profiles** (of a served profile the cell above prints its own)" in told[0]
    assert code_of(cells)[-1].source.endswith("notebook.differences(settings)")
