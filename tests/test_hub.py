"""Real tasks: rows of both schemas through swebench's own code, splits that never change, files, and no hub."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import random
import subprocess
from pathlib import Path
from typing import Any

import pytest

from dagger_nb import paths, records
from dagger_nb.errors import ConfigError, DataError, EnvironmentProblem
from dagger_nb.tasks import generate, hub, older, tasks_of

OLDER_PATCH = """diff --git a/tests/test_sum.py b/tests/test_sum.py
--- a/tests/test_sum.py
+++ b/tests/test_sum.py
@@ -1,4 +1,7 @@
 from sums import add


+def test_add():
+    assert add(2, 3) == 5
+
 def test_zero():
     assert add(0, 0) == 0
diff --git a/tests/test_new.py b/tests/test_new.py
new file mode 100644
--- /dev/null
+++ b/tests/test_new.py
@@ -0,0 +1,5 @@
+from sums import add
+
+
+def test_new():
+    assert add(1, 1) == 2
diff --git a/tests/notes.txt b/tests/notes.txt
new file mode 100644
--- /dev/null
+++ b/tests/notes.txt
@@ -0,0 +1 @@
+data
"""


def older_row(number: int = 0, repo: str = "dask/dask", **more: Any) -> dict[str, Any]:
    """A row with the columns that SWE-Gym has, lists of tests as lists."""
    row = {
        "instance_id": f"{repo.replace('/', '__')}-{number}",
        "repo": repo,
        "base_commit": "0" * 40,
        "problem_statement": "Sums are wrong.",
        "hints_text": "",
        "created_at": "2024-01-01T00:00:00Z",
        "patch": "diff --git a/sums.py b/sums.py\n",
        "test_patch": OLDER_PATCH,
        "FAIL_TO_PASS": ["tests/test_sum.py::test_add", "tests/test_new.py::test_new"],
        "PASS_TO_PASS": ["tests/test_sum.py::test_zero"],
        "version": "2023.1",
    }
    return row | more


def newer_row(number: int = 0, **more: Any) -> dict[str, Any]:
    """A row of swebench 5's schema, lists of tests as JSON as in SWE-bench Verified."""
    task = generate("train", number)
    row = task.to_instance() | {"instance_id": f"astropy__astropy-{number}", "repo": "astropy/astropy"}
    lists = {name: json.dumps(row[name]) for name in ("FAIL_TO_PASS", "PASS_TO_PASS")}
    return row | lists | {"difficulty": "15 min - 1 hour", "environment_setup_commit": "0" * 40} | more


def swe_gym(count: int = 2438) -> list[dict[str, Any]]:
    return [older_row(number, test_patch="diff --git a/t.py b/t.py\n") for number in range(count)]


def write_parquet(path: Path, rows: list[dict[str, Any]]) -> Path:
    import pyarrow
    import pyarrow.parquet

    path.parent.mkdir(parents=True, exist_ok=True)
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    return path


def write_jsonl(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def cached(own_home: Path) -> Path:
    """The folder of fetched tasks, with all of SWE-Gym's size and a few of SWE-bench Verified."""
    folder = paths.cache() / "tasks"
    write_jsonl(folder / "swe-gym.jsonl", swe_gym())
    write_jsonl(folder / "swe-bench-verified.jsonl", [newer_row(number) for number in range(6)])
    return folder


# --- both schemas through swebench -----------------------------------------------------------------------------


def test_swebench_takes_a_task_of_either_schema():
    from swebench.harness.log_parsers import PARSER_REGISTRY
    from swebench.harness.utils import make_test_spec

    for row in (older_row(), newer_row()):
        task = older.to_task(row, "train")
        spec = make_test_spec(task.to_instance())
        assert spec.eval_script_list[spec.eval_script_list.index("SWEBENCH_TEST_EXIT_CODE=$?") - 1].count("pytest")
        assert spec.FAIL_TO_PASS == list(task.FAIL_TO_PASS) and spec.log_parser in PARSER_REGISTRY
        assert records.from_json(records.to_json(task), records.Task) == task


def test_a_row_of_the_newer_schema_is_kept_as_it_is():
    row = newer_row()
    task = older.to_task(row)
    assert {name: getattr(task, name) for name in older.ADDED} == {name: row[name] for name in older.ADDED}


def test_images_are_named_as_their_publisher_does():
    assert older.to_task(older_row(7)).image == "xingyaoww/sweb.eval.x86_64.dask_s_dask-7:latest"
    monai = older.to_task(older_row(7, repo="Project-MONAI/MONAI"))
    assert monai.image == "xingyaoww/sweb.eval.x86_64.project-monai_s_monai-7:latest"


def test_markers_and_data_files_are_swebenchs_own():
    from swebench.harness import constants

    assert (older.START, older.END) == (constants.START_TEST_OUTPUT, constants.END_TEST_OUTPUT)
    assert list(older.DATA_FILES) == constants.NON_TEST_EXTS


@pytest.mark.parametrize("repo", sorted(older.REPOSITORIES))
def test_every_parser_reads_what_its_repositorys_command_prints(repo):
    from swebench.harness.log_parsers import PARSER_REGISTRY

    log = "PASSED t.py::test_a\nFAILED t.py::test_b - assert 1 == 2\nERROR t.py::test_c\n"
    log += "t.py::test_d PASSED\n" if repo == "pydantic/pydantic" else ""
    found = PARSER_REGISTRY[older.REPOSITORIES[repo].log_parser](log, None)
    assert {"t.py::test_a": "PASSED", "t.py::test_b": "FAILED", "t.py::test_c": "ERROR"}.items() <= found.items()
    assert ("t.py::test_d" in found) == (repo == "pydantic/pydantic")


def test_the_command_names_the_test_files_of_the_patch_and_no_data():
    script = older.to_task(older_row()).eval_script
    assert "\npytest -n0 -rA --color=no tests/test_sum.py tests/test_new.py\n" in script
    assert f"git checkout {'0' * 40} tests/test_sum.py\n" in script
    assert script.count("rm -f tests/test_new.py tests/notes.txt\n") == 2


def test_mypys_cases_are_chosen_by_name():
    patch = "diff --git a/test-data/unit/check-x.test b/test-data/unit/check-x.test\n+[case testOne]\n+[case testTwo]\n"
    tests = {"FAIL_TO_PASS": ["mypy/test/testcheck.py::Suite::testOne"], "PASS_TO_PASS": []}
    script = older.to_task(older_row(repo="python/mypy", test_patch=patch, **tests)).eval_script
    assert "\npytest -n0 -rA -k 'testOne or testTwo' mypy/test/testcheck.py\n" in script


def test_renamed_and_deleted_test_files_are_put_back():
    patch = "diff --git a/old.py b/new.py\nsimilarity index 100%\nrename from old.py\nrename to new.py\n"
    patch += "diff --git a/gone.py b/gone.py\ndeleted file mode 100644\n"
    script = older.to_task(older_row(test_patch=patch)).eval_script
    assert "old.py gone.py\nrm -f new.py\n" in script and "--color=no new.py\n" in script


def test_a_made_script_is_graded_rightly_by_a_real_run(tmp_path):
    """The script, its folder and environment changed for this machine, run on a wrong and on a right tree."""
    task, log = repository_task(tmp_path), tmp_path / "log"
    for source, resolved in (("a - b", False), ("a + b", True)):
        (tmp_path / "sums.py").write_text(f"def add(a, b):\n    return {source}\n")
        assert verdict(task, tmp_path, log)["resolved"] is resolved
    assert (
        not (tmp_path / "tests/test_new.py").exists() and "test_add" not in (tmp_path / "tests/test_sum.py").read_text()
    )


def test_hooks_of_conda_that_read_unset_variables_do_not_end_the_script(tmp_path):
    """As those of the compilers in pandas' images do; swebench's own header, which both graders write, forbids it."""
    hook = tmp_path / "activate"
    hook.write_text('conda() { eval "saved=\\"\\$ADDR2LINE\\""; }\n')
    (tmp_path / "repository").mkdir()
    task = repository_task(tmp_path / "repository")
    (tmp_path / "repository" / "sums.py").write_text("def add(a, b):\n    return a + b\n")
    task = dataclasses.replace(task, eval_script=task.eval_script.replace("/opt/miniconda3/bin/activate", str(hook)))
    assert verdict(task, tmp_path / "repository", tmp_path / "log")["resolved"]


@pytest.mark.parametrize(
    ("path", "built"),
    [("calc.py", False), ("src/calc.pyx", True), ("src/calc.pyx.in", True), ("src/a.h", True), ("notes.c.md", False)],
)
def test_pandas_is_built_again_where_compiled_code_was_touched(tmp_path, path, built):
    """A patch of Cython would else be judged by what was compiled before it."""
    repository_task(tmp_path)
    program = tmp_path.parent / f"{tmp_path.name}-bin" / "python"
    program.parent.mkdir()
    program.write_text('#!/bin/sh\necho "$PIP_NO_INDEX $*"\n')
    program.chmod(0o755)
    (tmp_path / path).parent.mkdir(exist_ok=True)
    (tmp_path / path).write_text("changed\n")
    (build,) = older.REPOSITORIES["pandas-dev/pandas"].before
    environment = {"PATH": f"{program.parent}:/usr/bin:/bin"}
    done = subprocess.run(["bash", "-c", build], capture_output=True, text=True, cwd=tmp_path, env=environment)
    assert done.stdout.startswith("1 -m pip install -ve . --no-build-isolation") is built and not done.stderr


def repository_task(folder: Path) -> records.Task:
    (folder / "tests").mkdir()
    (folder / "sums.py").write_text("def add(a, b):\n    return a - b\n")
    (folder / "tests/test_sum.py").write_text("from sums import add\n\n\ndef test_zero():\n    assert add(0, 0) == 0\n")
    git = ["git", "-c", "user.name=t", "-c", "user.email=t@t"]
    for command in (["init", "-q"], ["add", "."], ["commit", "-qm", "base"]):
        subprocess.run([*git, *command], cwd=folder, check=True)
    commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=folder, check=True, capture_output=True, text=True).stdout
    return older.to_task(older_row(repo="iterative/dvc", base_commit=commit.strip()))


def verdict(task: records.Task, folder: Path, log: Path) -> dict[str, Any]:
    import sys

    from swebench.harness.grading import get_eval_report
    from swebench.harness.utils import make_test_spec

    spec = make_test_spec(task.to_instance())
    script = spec.eval_script.replace("source /opt/miniconda3/bin/activate\nconda activate testbed\n", "")
    script = script.replace("/testbed", str(folder))
    script = script.replace(
        "pytest -rA", f"{sys.executable} -B -m pytest -rA -p no:cacheprovider -c /dev/null --rootdir ."
    )
    environment = {"PYTHONPATH": ".", "HOME": str(log.parent)} | PATH
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, cwd=folder, env=environment)
    log.write_text(done.stdout + done.stderr)
    prediction = {"instance_id": task.instance_id, "model_name_or_path": "m", "model_patch": "x"}
    return get_eval_report(spec, prediction, str(log), True)[task.instance_id]


PATH = {"PATH": "/usr/bin:/bin", "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"base_commit": ""}, "lacks base_commit"),
        ({"FAIL_TO_PASS": "not json"}, "FAIL_TO_PASS is no list"),
        ({"PASS_TO_PASS": [1]}, "PASS_TO_PASS is no list"),
        ({"repo": "some/other"}, "lacks image, eval_script, log_parser, eval_type.*swebench 5"),
    ],
)
def test_a_row_that_will_not_do_is_refused(changed, said):
    with pytest.raises(DataError, match=said):
        older.to_task(older_row(**changed))


# --- splits ------------------------------------------------------------------------------------------------------


def test_the_holdout_is_the_same_on_every_machine():
    ids = [row["instance_id"] for row in swe_gym()]
    held = hub.holdout(random.Random(1).sample(ids, len(ids)))
    assert len(held) == 100 and held == hub.holdout(ids)
    assert hashlib.sha256("".join(sorted(held)).encode()).hexdigest()[:16] == "3ec90a9fd6681dec"


def test_training_never_meets_the_holdout_and_comes_round_in_another_order(cached):
    held = {task.instance_id for task in hub.tasks("swe-gym", "test", 100)}
    series = [task.instance_id for task in hub.tasks("swe-gym", "train", 2 * 2338)]
    first, second = series[:2338], series[2338:]
    assert len(held) == 100 and held.isdisjoint(series)
    assert len(set(first)) == 2338 and set(first) == set(second) and first != second


def test_a_part_of_the_series_is_what_the_whole_has_there(cached):
    whole = hub.tasks("swe-gym", "train", 2400)
    assert hub.tasks("swe-gym", "train", 100, start=2300) == whole[2300:]
    assert [task.split for task in whole[:2]] == ["train", "train"]
    assert hub.tasks("swe-gym", "train", 3, start=100_000) != whole[:3]


def test_the_first_tasks_of_an_exam_are_a_part_of_all(cached):
    assert hub.tasks("swe-gym", "unseen", 2) == hub.tasks("swe-gym", "unseen", 6)[:2]
    assert hub.tasks("swe-bench-verified", "test", 6) != hub.tasks("swe-gym", "test", 6)


def test_what_a_source_lacks_is_refused(cached):
    with pytest.raises(ConfigError, match="has no tasks for 'train'"):
        hub.tasks("swe-bench-verified", "train", 1)
    with pytest.raises(ConfigError, match="has no tasks for 'longer'; set tasks.longer = 0"):
        hub.tasks("swe-gym", "longer", 1)
    with pytest.raises(ConfigError, match="has 6 tasks for 'unseen'; set tasks.unseen to at most that"):
        hub.tasks("swe-gym", "unseen", 7)
    assert hub.tasks("swe-gym", "longer", 0) == []


def test_generated_tasks_are_what_they_were():
    assert tasks_of("generated", "train", 2, start=3) == [generate("train", 3), generate("train", 4)]


# --- files and the hub -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".parquet", ".jsonl", ".json"])
def test_a_local_file_of_any_kind_gives_the_same_tasks(suffix, tmp_path):
    rows = [older_row(number, split="train" if number else "test") for number in range(4)]
    path = tmp_path / f"own{suffix}"
    if suffix == ".parquet":
        write_parquet(path, rows)
    elif suffix == ".jsonl":
        write_jsonl(path, rows)
    else:
        path.write_text(json.dumps(rows))
    found = tasks_of(str(path), "train", 3)
    assert sorted(task.instance_id for task in found) == ["dask__dask-1", "dask__dask-2", "dask__dask-3"]
    assert tasks_of(str(path), "test", 1) == [older.to_task(rows[0], "test")]


def test_verified_as_parquet_goes_through_datasets(own_home):
    rows = [newer_row(number) for number in range(3)]
    write_parquet(paths.cache() / "tasks" / "swe-bench-verified.parquet", rows)
    found = hub.tasks("swe-bench-verified", "test", 3)
    assert {task.instance_id: task for task in found} == {
        row["instance_id"]: older.to_task(row, "test") for row in rows
    }


def test_a_file_of_the_projects_own_records_keeps_its_trees(tmp_path):
    own = [generate("train", number) for number in range(2)]
    path = tmp_path / "own.jsonl"
    path.write_text("".join(records.to_json(task) + "\n" for task in own))
    assert sorted(tasks_of(str(path), "train", 2), key=lambda task: task.instance_id) == own


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "not a table of tasks"),
        ('{"a": 1}\n', "not a table of tasks"),
        (json.dumps(older_row()) + "\n", "has no field `split`"),
        (2 * (json.dumps(older_row(split="train")) + "\n"), "1 tasks are there twice"),
    ],
)
def test_a_file_that_will_not_do_is_refused(text, said, tmp_path):
    (tmp_path / "own.jsonl").write_text(text)
    with pytest.raises(DataError, match=said):
        tasks_of(str(tmp_path / "own.jsonl"), "train", 1)


def test_a_part_of_swe_gym_is_refused_as_its_holdout_would_be_another(own_home):
    write_jsonl(paths.cache() / "tasks" / "swe-gym.jsonl", swe_gym(5))
    with pytest.raises(DataError, match="5 tasks, swe-gym has 2438"):
        hub.tasks("swe-gym", "train", 1)


def test_no_file_and_no_hub_say_how_to_go_on(own_home, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(EnvironmentProblem, match="copy its test split to .*swe-bench-verified.parquet"):
        hub.tasks("swe-bench-verified", "test", 1)
    assert not list((paths.cache() / "tasks").iterdir())
    with pytest.raises(EnvironmentProblem, match="correct tasks.source"):
        tasks_of(str(tmp_path / "none.json"), "train", 1)


def test_what_was_fetched_is_kept_with_its_commit(own_home, monkeypatch):
    """The network's part is replaced; the file, its origin and what is read from it are real."""
    monkeypatch.setattr(hub, "_stream", lambda dataset: ("c" * 40, [newer_row(number) for number in range(2)]))
    assert len(hub.tasks("swe-bench-verified", "test", 2)) == 2
    origin = hub.origin("swe-bench-verified")
    assert origin["commit"] == "c" * 40 and origin["rows"] == 2 and origin["file"] == "swe-bench-verified.jsonl"
    monkeypatch.setattr(hub, "_stream", None)
    assert len(hub.tasks("swe-bench-verified", "test", 1)) == 1
    write_parquet(paths.cache() / "tasks" / "swe-bench-verified.parquet", [newer_row(9)])
    assert "commit" not in hub.origin("swe-bench-verified") and hub.origin("swe-gym") == {}
    own = paths.cache() / "tasks" / "swe-bench-verified.parquet"
    assert hub.origin(str(own)) == hub.origin("swe-bench-verified") and hub.origin("generated") == {}
