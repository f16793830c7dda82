"""pyproject.toml, environment.yml, lock file and Makefile tell the same story, and the shell around them works."""

from __future__ import annotations

import ast
import graphlib
import importlib.metadata
import os
import re
import shutil
import stat
import subprocess
import sys
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
ENVIRONMENT = yaml.safe_load((ROOT / "environment.yml").read_text())


def _requirements(*groups: str) -> dict[str, Requirement]:
    """Name -> requirement of the laptop path (no groups), or of the named extras."""
    lines = [line for group in groups for line in PROJECT["optional-dependencies"][group]]
    return {item.name: item for item in map(Requirement, lines if groups else PROJECT["dependencies"])}


def _lock() -> dict[str, str]:
    lines = (ROOT / "requirements.lock").read_text().splitlines()
    pairs = (line.split("==") for line in lines if line and not line.startswith("#"))
    return {canonicalize_name(name): version for name, version in pairs}


def _frozen() -> dict[str, str]:
    """Name -> version of what is installed here."""
    frozen = subprocess.run([sys.executable, "-m", "pip", "freeze"], capture_output=True, text=True, check=True).stdout
    return dict(line.split("==") for line in frozen.splitlines() if "==" in line)


def _conda() -> tuple[list[str], list[str]]:
    plain = [item for item in ENVIRONMENT["dependencies"] if isinstance(item, str)]
    (nested,) = [item["pip"] for item in ENVIRONMENT["dependencies"] if isinstance(item, dict)]
    return plain, nested


def test_every_dependency_has_a_floor_and_a_ceiling() -> None:
    for requirement in (_requirements() | _requirements("gpu", "serving", "docker", "dev")).values():
        operators = {specifier.operator for specifier in requirement.specifier}
        assert operators in ({"=="}, {">=", "<"}), str(requirement)


def test_the_versions_that_laptop_trainer_and_server_share() -> None:
    laptop = _requirements()
    assert str(laptop["torch"].specifier) == "==2.13.0"
    assert set(str(laptop["transformers"].specifier).split(",")) == {">=5.16.1", "<5.20"}
    assert str(_requirements("gpu")["vllm"].specifier) == "==0.32.0"
    assert "vllm" not in laptop


def test_environment_yml_has_the_bounds_of_pyproject() -> None:
    _, nested = _conda()
    listed = {item.name: item for item in map(Requirement, (line for line in nested if line != "-e ."))}
    assert "-e ." in nested
    assert listed == _requirements() | _requirements("gpu", "serving", "docker", "dev")


def test_environment_yml_takes_the_python_of_pyproject() -> None:
    plain, _ = _conda()
    python = Requirement(next(item for item in plain if item.startswith("python>")))
    assert str(python.specifier) == str(Requirement(f"python{PROJECT['requires-python']}").specifier)


def test_the_lock_meets_every_bound_and_names_no_index() -> None:
    lock = _lock()
    for name, requirement in (_requirements() | _requirements("serving", "docker", "dev")).items():
        assert Version(lock[name]) in requirement.specifier, name
    assert all(Version(version).local is None for version in lock.values())
    assert not any(name.startswith(("nvidia", "cuda", "triton", "vllm")) for name in lock)
    text = (ROOT / "requirements.lock").read_text()
    assert "://" not in text and "--hash" not in text


def test_the_lock_installs_on_the_oldest_python_that_is_promised() -> None:
    """The newest version of a package may ask for a newer Python than the project does."""
    (floor,) = (bound.version for bound in SpecifierSet(PROJECT["requires-python"]) if bound.operator == ">=")
    for name in _lock().keys() & set(map(canonicalize_name, _frozen())):
        asked = importlib.metadata.metadata(name)["Requires-Python"] or ""
        assert f"{floor}.0" in SpecifierSet(asked), f"lock an older {name}: this one asks for Python {asked}"


def test_what_is_installed_is_what_the_lock_names() -> None:
    """The tests speak of the shipped versions only if they run on them."""
    installed = _frozen()
    for name in ("torch", "transformers", "peft", "bitsandbytes", "swebench", "papermill"):
        assert installed[name].partition("+")[0] == _lock()[name], name


def test_the_package_is_light_and_silent() -> None:
    code = (
        "import sys, dagger_nb, dagger_nb.cli; print([n for n in ('torch', 'matplotlib', 'numpy') if n in sys.modules])"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert (run.stdout, run.stderr) == ("[]\n", "")


def test_the_doctor_needs_none_of_what_it_may_find_missing() -> None:
    """Nor does a reproduction wait for it: torch alone takes seconds to load."""
    code = "import sys, dagger_nb.doctor; print([n for n in ('torch', 'transformers', 'pandas') if n in sys.modules])"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert run.stdout == "[]\n"


def test_every_package_folder_would_be_installed() -> None:
    folders = {path.parent for path in (ROOT / "dagger_nb").rglob("*.py")}
    assert [folder for folder in sorted(folders) if not (folder / "__init__.py").is_file()] == []


# --- Makefile and CI --------------------------------------------------------------------------------------


def _make(*arguments: str, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MAKE")}
    return subprocess.run(["make", *arguments], cwd=cwd, capture_output=True, text=True, env=environment)


@pytest.mark.parametrize("target", ["reproduce", "smoke", "test", "lint", "bench", "test-docker", "test-gpu"])
def test_every_target_sets_up_the_environment_first(target: str, tmp_path: Path) -> None:
    for name in ("Makefile", "pyproject.toml", "requirements.lock"):
        shutil.copy(ROOT / name, tmp_path)
    plan = _make("-n", target, cwd=tmp_path).stdout
    package = plan.index("-c requirements.lock -e '.[serving,docker,dev]'")
    assert plan.index("-m venv .venv") < plan.index("torch==2.13.0") < package
    assert "--index-url" not in plan
    stamp = tmp_path / ".venv" / ".installed"
    stamp.parent.mkdir()
    stamp.touch()
    assert "pip install" not in _make("-n", target, cwd=tmp_path).stdout
    os.utime(tmp_path / "pyproject.toml", (2e9, 2e9))
    assert "pip install" in _make("-n", target, cwd=tmp_path).stdout


def test_the_torch_index_is_a_choice() -> None:
    plan = _make("-n", "-B", "setup", "TORCH_INDEX=https://download.pytorch.org/whl/cpu").stdout
    assert "--index-url https://download.pytorch.org/whl/cpu" in plan


def _fake_python(folder: Path, body: str) -> str:
    path = folder / "fakepython"
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return str(path)


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ('test "$1" = --version && echo Python 3.9.2; exit 1', "Python 3.9.2 will not do; dagger-nb needs Python 3.11"),
        ('case "$2" in *ensurepip*) exit 1;; esac', "python3-venv"),
    ],
    ids=["too old", "no venv"],
)
def test_a_python_that_will_not_do_is_explained(tmp_path: Path, body: str, said: str) -> None:
    run = _make("checkpython", f"PYTHON={_fake_python(tmp_path, body)}")
    assert run.returncode != 0 and said in run.stderr


def test_a_missing_python_is_explained() -> None:
    run = _make("checkpython", "PYTHON=/nowhere/python3")
    assert run.returncode != 0 and "/nowhere/python3 not found; install Python 3.11" in run.stderr


def test_help_lists_every_target() -> None:
    listed = {line.split()[0] for line in _make("help").stdout.splitlines()}
    groups = {"test", "test-slow", "test-docker", "test-serving", "test-gpu", "bench", "bench-gpu"}
    assert (
        listed
        == {"help", "setup", "install-gpu", "install-vllm-cpu", "reproduce", "smoke", "lint", "lock", "clean"} | groups
    )


def test_ci_runs_tests_smoke_and_the_tiny_reproduction() -> None:
    script = ROOT / ".ci" / "run"
    assert os.access(script, os.X_OK)
    assert subprocess.run(["bash", "-n", str(script)]).returncode == 0
    steps = re.findall(r"^step \w+ (make [\w-]+)$", script.read_text(), re.MULTILINE)
    assert [step for step in steps if step in ("make test", "make smoke", "make reproduce")] == [
        "make test",
        "make smoke",
        "make reproduce",
    ]
    targets = {line.split()[0] for line in _make("help").stdout.splitlines()}
    assert {step.split()[1] for step in steps} <= targets


def test_readme_commands_exist() -> None:
    """Each `make` target and `dagger-nb` command of the README is one that there is."""
    text = (ROOT / "README.md").read_text()
    blocks = "\n".join(re.findall(r"```\w*\n(.*?)```", text, re.DOTALL))
    targets = {line.split()[0] for line in _make("help").stdout.splitlines()}
    assert set(re.findall(r"^make ([\w-]+)", blocks, re.MULTILINE)) <= targets
    commands = set(re.findall(r"dagger-nb (reproduce|[a-z]+)", blocks)) - {"git"}
    assert commands <= {"reproduce", "run", "doctor", "plan", "show", "clean"}
    assert "make reproduce" in blocks and "make test" in blocks


def test_binary_files_are_not_touched_by_line_endings() -> None:
    attributes = (ROOT / ".gitattributes").read_text()
    assert all(f"*.{kind} binary" in attributes for kind in ("safetensors", "png", "pdf"))


def test_modules_import_one_another_in_one_direction_only() -> None:
    """Imports inside functions count too; those for type checkers do not."""
    paths = {".".join(path.with_suffix("").parts[-_depth(path) :]): path for path in (ROOT / "dagger_nb").rglob("*.py")}
    modules = {name.removesuffix(".__init__"): path for name, path in paths.items()}
    graph = {name: {_imported(pair, modules) for pair in _imports(path)} - {name} for name, path in modules.items()}
    order = list(graphlib.TopologicalSorter(graph).static_order())  # CycleError names the circle
    assert order.index("dagger_nb.records") < order.index("dagger_nb.experiment") < order.index("dagger_nb.cli")


def _depth(path: Path) -> int:
    return len(path.relative_to(ROOT).parts)


def _imports(path: Path) -> Iterator[tuple[str, str]]:
    """(module, name) of each import from the package."""
    tree = ast.parse(path.read_text())
    typing = [node for node in ast.walk(tree) if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"]
    skipped = {inner for node in typing for inner in ast.walk(node)}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node not in skipped and (node.module or "").startswith("dagger_nb"):
            yield from ((node.module, alias.name) for alias in node.names)


def _imported(pair: tuple[str, str], modules: Mapping[str, Path]) -> str:
    return ".".join(pair) if ".".join(pair) in modules else pair[0]
