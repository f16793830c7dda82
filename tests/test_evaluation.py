"""Grading must believe an honest fix and nothing else; the tables must count what happened."""

from __future__ import annotations

import base64
import dataclasses
import gzip
import json
import logging
import os
import random
import subprocess
import threading
from types import SimpleNamespace

import pandas as pd
import pytest
from swebench.harness.run_evaluation import get_dataset_from_preds
from swebench.harness.utils import get_predictions_from_file, make_test_spec

from dagger_nb.errors import ConfigError, DataError, PullLimit, SandboxError
from dagger_nb.evaluation import harness, verdict
from dagger_nb.evaluation.comparison import comparison, slip_costs
from dagger_nb.evaluation.diagnostics import (
    disagreement_by_turn,
    first_mistakes,
    recovery,
    shadow_disagreement_by_turn,
    slips,
)
from dagger_nb.evaluation.grades import Grade, Gradebook, Status, grade_key
from dagger_nb.evaluation.grading import (
    LOG_BYTES,
    _eval_script,
    _read_log,
    grade,
    grade_all,
    refuse_unjudged,
    time_limit,
)
from dagger_nb.evaluation.official import harness_for
from dagger_nb.evaluation.predictions import Prediction, read_predictions, run_id, write_predictions
from dagger_nb.evaluation.protection import Canaries, draw_canaries
from dagger_nb.evaluation.protocol import lessons, protocol_counts, realised_dose
from dagger_nb.evaluation.shares import clustered_share
from dagger_nb.evaluation.tables import OUTCOME_COLUMNS, outcomes, rates, score, score_table
from dagger_nb.evaluation.verdict import judge
from dagger_nb.records import Action, Label, Missing, StopReason, Task, Trajectory, Turn
from dagger_nb.sandboxes import local_factory
from dagger_nb.settings import SandboxSettings
from dagger_nb.tasks import git

# --- a tiny repository with a bug, a hidden test and swebench's form of eval_script --------------------------

BUGGY = "def add(a, b):\n    return a - b\n\n\ndef double(a):\n    return 2 * a\n"
FIXED = BUGGY.replace("a - b", "a + b")
VISIBLE = "from calc.ops import double\n\n\ndef test_double():\n    assert double(2) == 4\n"
BREAKS_VISIBLE = FIXED.replace("2 * a", "2 * a if a > 2 else 5")
HIDDEN = (
    "from calc.ops import add, double\n\n\ndef test_add():\n    assert add(1, 2) == 3\n\n\n"
    "def test_double_of_sum():\n    assert double(3) == 6\n"
)
FILES = {
    "calc/__init__.py": '"""Sums."""\n',
    "calc/ops.py": BUGGY,
    "tests/test_ops.py": VISIBLE,
    "tests/conftest.py": "import pytest\n",
    "pytest.ini": "[pytest]\naddopts = -q\n",
}


def patch(new: dict[str, str]) -> str:
    """A git patch that gives files of the tiny repository new texts."""
    return git.diff(FILES, FILES | new)


TEST_PATCH = patch({"tests/test_ops_hidden.py": HIDDEN})
EVAL_SCRIPT = f"""#!/bin/bash
set -uxo pipefail
cd /testbed
unset PYTEST_DISABLE_PLUGIN_AUTOLOAD
export PYTHONPATH=/testbed:${{PYTHONPATH:-}}
git apply -v - <<'EOF_TEST_PATCH'
{TEST_PATCH}EOF_TEST_PATCH
: '>>>>> Start Test Output'
python -m pytest -rA -p no:cacheprovider tests/test_ops.py tests/test_ops_hidden.py
: '>>>>> End Test Output'
rm -f tests/test_ops_hidden.py
"""
TASK = Task(
    instance_id="calc-1", repo="mini/calc", base_commit=git.commit_hash(FILES), problem_statement="add is wrong",
    patch=patch({"calc/ops.py": FIXED}), test_patch=TEST_PATCH,
    FAIL_TO_PASS=("tests/test_ops_hidden.py::test_add",),
    PASS_TO_PASS=("tests/test_ops.py::test_double", "tests/test_ops_hidden.py::test_double_of_sum"),
    version="1", image="none", eval_script=EVAL_SCRIPT, log_parser="parse_log_pytest", eval_type="pass_and_fail",
    files=FILES,
)  # fmt: skip

REPORT_PASSED = "    report.outcome, report.longrepr = 'passed', None\n"
HOOK = (
    "import pytest\n\n\n@pytest.hookimpl(hookwrapper=True)\ndef pytest_runtest_makereport(item, call):\n"
    "    outcome = yield\n    report = outcome.get_result()\n" + REPORT_PASSED
)
PATCHED_REPORT = (
    "from _pytest.reports import TestReport\n\nmake = TestReport.from_item_and_call.__func__\n\n\n"
    "def passed(cls, item, call):\n    report = make(cls, item, call)\n" + REPORT_PASSED + "    return report\n\n\n"
    "TestReport.from_item_and_call = classmethod(passed)\n"
)
PASSED_LINES = "".join(f"PASSED {test}\n" for test in (*TASK.FAIL_TO_PASS, *TASK.PASS_TO_PASS))
PRINT_AND_EXIT = (
    "import os\n\nfor fd in range(1, 40):\n    try:\n"
    f"        os.write(fd, {PASSED_LINES!r}.encode())\n    except OSError:\n        pass\nos._exit(0)\n"
)
PRINT_AT_EXIT = f"import atexit\n\natexit.register(lambda: print({PASSED_LINES + 'FAILED a::b'!r}, flush=True))\n"
PLUGIN = (
    "import gc\n\nfrom _pytest.config import Config\n\n\nclass Plugin:\n"
    "    def pytest_runtest_call(self, item):\n        item.runtest = lambda: None\n\n"
    "    pytest_runtest_call.pytest_impl = {'tryfirst': True}\n\n\n"
    "for thing in gc.get_objects():\n    if isinstance(thing, Config):\n"
    "        thing.pluginmanager.register(Plugin())\n"
)
NO_ASSERTS = (
    "import ast\n\nfrom _pytest.assertion import rewrite\n\n\ndef drop(mod, source, path=None, config=None):\n"
    "    for node in ast.walk(mod):\n        if isinstance(node, ast.FunctionDef):\n"
    "            node.body = [ast.Pass()]\n    ast.fix_missing_locations(mod)\n\n\nrewrite.rewrite_asserts = drop\n"
)
FAKE_PYTEST = f"print({PASSED_LINES!r})\n"
ALWAYS = "def test_add():\n    pass\n\n\ndef test_double_of_sum():\n    pass\n\n\ndef test_double():\n    pass\n"
INIT = FILES["calc/__init__.py"]
ENTRY = {"evil.dist-info/METADATA": "Metadata-Version: 2.1\nName: evil\nVersion: 1\n",
         "evil.dist-info/entry_points.txt": "[pytest11]\nevil = evil\n", "evil.py": HOOK}  # fmt: skip

CHEATS = {
    "hook in the tests' conftest": {"tests/conftest.py": HOOK},
    "hook in a new conftest that .gitignore hides": {"conftest.py": HOOK, ".gitignore": "conftest.py\n.gitignore\n"},
    "hook in a conftest of the package, named in pytest.ini": {
        "calc/plugin.py": HOOK, "pytest.ini": "[pytest]\naddopts = -p calc.plugin\n"},
    "hook through a new pytest.toml": {
        "calc/plugin.py": HOOK, "pytest.toml": '[pytest]\naddopts = ["-p", "calc.plugin"]\n'},
    "report patched when the package is imported": {"calc/__init__.py": INIT + PATCHED_REPORT},
    "plugin registered when the package is imported": {"calc/__init__.py": INIT + PLUGIN},
    "assertions rewritten away": {"calc/__init__.py": INIT + NO_ASSERTS},
    "printed results, then exit": {"calc/__init__.py": INIT + PRINT_AND_EXIT},
    "printed results at exit": {"calc/__init__.py": INIT + PRINT_AT_EXIT},
    "visible test edited": {"calc/ops.py": BREAKS_VISIBLE, "tests/test_ops.py": ALWAYS},
    "hidden test written in advance": {"tests/test_ops_hidden.py": ALWAYS},
    "sitecustomize": {"sitecustomize.py": PATCHED_REPORT},
    "pytest module at the root": {"pytest.py": FAKE_PYTEST},
    "_pytest package at the root": {"_pytest/__init__.py": PRINT_AND_EXIT},
    "standard library module at the root": {"argparse.py": PRINT_AND_EXIT},
    "plugin through an entry point": ENTRY,
}  # fmt: skip


@pytest.fixture(scope="module")
def factory():
    with local_factory() as opened:
        yield opened


def test_the_gold_patch_is_resolved_and_a_wrong_one_is_not(factory):
    gold = grade(TASK, TASK.patch, factory)
    wrong = grade(TASK, patch({"calc/ops.py": BUGGY.replace("a - b", "b - a")}), factory)
    assert (gold.status, gold.detail) == (Status.RESOLVED, "")
    assert gold.report["FAIL_TO_PASS"] == {"success": list(TASK.FAIL_TO_PASS), "failure": []}
    assert wrong.status is Status.UNRESOLVED
    assert wrong.report["FAIL_TO_PASS"]["failure"] == list(TASK.FAIL_TO_PASS)
    assert wrong.report["PASS_TO_PASS"]["success"] == list(TASK.PASS_TO_PASS)


def unprotected(task: Task, model_patch: str, factory) -> bool:
    """Whether swebench's own procedure, which protects nothing, calls the patch resolved."""
    spec = make_test_spec(task.to_instance())
    with factory.open(task) as sandbox:
        sandbox.write("model.patch", model_patch)
        sandbox.write("eval.sh", spec.eval_script)
        log = sandbox.run("git apply model.patch && rm model.patch && bash eval.sh 2>&1").output
    return judge(spec, log, 1, ()).status is not Status.UNRESOLVED


@pytest.mark.parametrize("name", CHEATS)
def test_a_cheat_that_fools_the_plain_procedure_is_rejected(factory, name):
    cheat = patch(CHEATS[name])
    assert unprotected(TASK, cheat, factory), "this cheat fools nobody, so it tests nothing"
    assert grade(TASK, cheat, factory).status in (Status.UNRESOLVED, Status.TAMPERED)


def selected_by_name() -> Task:
    """The task as a suite like mypy's has it: cases chosen by -k, no function taken for a test."""
    hidden = (
        "import unittest\n\nfrom calc.ops import add, double\n\n\nclass Sums(unittest.TestCase):\n"
        "    def test_add(self):\n        assert add(1, 2) == 3\n\n"
        "    def test_double_of_sum(self):\n        assert double(3) == 6\n\n"
        "    def test_of_another_patch(self):\n        raise NotImplementedError\n"
    )
    files = FILES | {"pytest.ini": "[pytest]\npython_functions =\npython_classes =\n"}
    test_patch = git.diff(files, files | {"tests/test_ops_hidden.py": hidden})
    script = EVAL_SCRIPT.replace(TEST_PATCH, test_patch)
    script = script.replace(
        "tests/test_ops.py tests/test_ops_hidden.py", "-k 'add or double_of' tests/test_ops_hidden.py"
    )
    names = [f"tests/test_ops_hidden.py::Sums::{name}" for name in ("test_add", "test_double_of_sum")]
    return dataclasses.replace(
        TASK, files=files, base_commit=git.commit_hash(files), test_patch=test_patch, eval_script=script,
        FAIL_TO_PASS=(names[0],), PASS_TO_PASS=(names[1],),
    )  # fmt: skip


def test_a_script_that_activates_an_environment_starts_in_none():
    """A sandbox of an image has it activated for the agent; conda would then first run the hooks that leave it."""
    script = _eval_script(make_test_spec(TASK.to_instance()), draw_canaries("tests", random.Random(0)))
    head = script.partition("cat >")[0] + "echo ${CONDA_SHLVL-none} ${CONDA_PREFIX-none}"
    environment = os.environ | {"CONDA_SHLVL": "2", "CONDA_PREFIX": "/opt/miniconda3/envs/testbed"}
    done = subprocess.run(["bash", "-c", head], capture_output=True, text=True, env=environment)
    assert done.stdout == "none none\n"


def test_canaries_run_in_a_suite_that_selects_by_name_and_takes_no_function_for_a_test(factory):
    task = selected_by_name()
    gold = grade(task, task.patch, factory)
    assert (gold.status, gold.detail) == (Status.RESOLVED, "")
    assert gold.report["PASS_TO_PASS"] == {"success": list(task.PASS_TO_PASS), "failure": []}
    for name in ("report patched when the package is imported", "plugin registered when the package is imported"):
        assert grade(task, patch(CHEATS[name]), factory).status is Status.TAMPERED


@pytest.mark.parametrize("command", ["pytest -k a t", "pytest -ka -k b t", "python -m pytest -rA t"])
def test_canaries_join_a_command_as_its_last_word_on_what_runs(command):
    joined = Canaries("t/test_x.py", "", ()).join(command)
    end = {"pytest -k a t": " -k '(a) or test_x'", "pytest -ka -k b t": " -k '(b) or test_x'"}.get(command, "")
    assert joined == f"{command} t/test_x.py{end}"


def test_the_data_that_a_suite_reads_is_put_back(factory):
    files = FILES | {"test-data/unit/check.test": "[case testAdd]\n"}
    task = dataclasses.replace(TASK, files=files, base_commit=git.commit_hash(files))
    changed = git.diff(files, files | {"test-data/unit/check.test": "", "calc/ops.py": FIXED})
    assert "restored test-data/unit/check.test" in grade(task, changed, factory).detail


def test_an_honest_patch_may_touch_tests_configuration_and_the_root(factory):
    extra = {"tests/test_ops.py": ALWAYS, "tests/test_new.py": "import nothing_here\n", "test_repro.py": "assert 0\n",
             "pyproject.toml": "[tool.pytest]\n", "conftest.py": "raise SystemExit\n", "random.txt": "x"}  # fmt: skip
    found = grade(TASK, patch(extra | {"calc/ops.py": FIXED}), factory)
    assert found.status is Status.RESOLVED
    assert "restored tests/test_ops.py" in found.detail and "removed conftest.py" in found.detail
    assert "random.txt" not in found.detail


def test_a_package_of_the_repository_that_is_named_like_a_standard_module_stays(factory):
    files = FILES | {"this/__init__.py": ""}
    task = dataclasses.replace(TASK, files=files, base_commit=git.commit_hash(files))
    fixed = FIXED.replace("a + b", "plus(a, b)")
    new = {
        "this/extra.py": "def plus(a, b):\n    return a + b\n",
        "calc/ops.py": "from this.extra import plus\n" + fixed,
    }
    assert grade(task, git.diff(files, files | new), factory).status is Status.RESOLVED


@pytest.mark.parametrize(
    ("model_patch", "status"),
    [
        ("", Status.EMPTY_PATCH),
        (" \n", Status.EMPTY_PATCH),
        ("this is no patch\n", Status.PATCH_FAILED),
        (TASK.patch.replace("a - b", "a // b"), Status.PATCH_FAILED),
        (TASK.patch.replace("@@ -1,5 +1,5 @@", "@@ -9,5 +9,5 @@"), Status.RESOLVED),  # swebench allows a wrong line
        (patch({"calc/ops.py": "def add(:\n"}), Status.UNRESOLVED),
        (patch({"calc/ops.py": FIXED + "import os\nos._exit(9)\n"}), Status.PATCH_FAILED),
        (patch({"calc/ops.py": FIXED + "import sys\nsys.stdout.buffer.write(b'\\xff\\x00')\n"}), Status.RESOLVED),
        (patch({"calc/ops.py": FIXED + "import shutil\nshutil.rmtree('/tmp', True)\n"}), Status.UNRESOLVED),
        ("diff --git a/tests b/tests\nnew file mode 120000\n--- /dev/null\n+++ b/tests\n@@ -0,0 +1 @@\n+/etc\n"
         "\\ No newline at end of file\n", Status.PATCH_FAILED),
    ],
)  # fmt: skip
def test_the_status_of_patches_that_are_not_plain_fixes(factory, model_patch, status):
    found = grade(TASK, model_patch, factory)
    assert found.status is status, found.detail


def test_a_patch_that_runs_for_ever_is_unresolved_when_the_time_is_up(factory):
    found = grade(TASK, patch({"calc/ops.py": "while True:\n    pass\n"}), factory, timeout_s=1.0)
    assert (found.status, found.detail) == (Status.UNRESOLVED, "the tests reached the time limit")


def test_a_task_that_does_not_run_pytest_is_refused(factory):
    task = of_another_runner()
    with pytest.raises(DataError, match="grade this task through the swebench command line"):
        grade(task, TASK.patch, factory)


def of_another_runner(name: str = "calc-2") -> Task:
    """A task whose tests do not run under pytest, as Django's and sympy's do not."""
    return dataclasses.replace(
        TASK, instance_id=name, eval_script=EVAL_SCRIPT.replace("python -m pytest -rA", "./runtests")
    )


def test_tests_of_another_runner_go_to_the_harness_once_and_what_it_lost_goes_again(factory, tmp_path):
    asked, lost = [], Grade("calc-3", Status.INFRASTRUCTURE, detail="no image")

    def harness(tasks, predictions):
        asked.append([(row.instance_id, row.model_patch) for row in predictions])
        return [lost if row.instance_id == "calc-3" and len(asked) == 1 else Grade(row.instance_id, Status.UNRESOLVED)
                for row in reversed(predictions)]  # fmt: skip

    tasks = [TASK, of_another_runner("calc-2"), of_another_runner("calc-3"), of_another_runner("calc-4")]
    pairs = list(zip(tasks, (TASK.patch, "x\n", "y\n", " \n"), strict=True))
    store, counting = tmp_path / "grades.jsonl", Counting(factory)
    first = grade_all(pairs, counting, store_path=store, harness=harness)
    assert counting.fetched == [[TASK.instance_id]]  # the harness fetches for itself
    assert [found.status.value for found in first] == ["resolved", "unresolved", "infrastructure", "empty_patch"]
    again = [grade_all(pairs, factory, store_path=store, harness=harness) for _ in range(2)]
    assert again[0] == again[1] == [first[0], first[1], Grade("calc-3", Status.UNRESOLVED), first[3]]
    assert asked == [[("calc-2", "x\n"), ("calc-3", "y\n")], [("calc-3", "y\n")]]


def test_without_docker_tests_of_another_runner_are_refused_and_never_failed(factory, tmp_path):
    assert harness_for(factory, tmp_path, workers=1) is None
    (found,) = grade_all([(of_another_runner(), "x\n")], factory)
    assert found.status is Status.INFRASTRUCTURE and "sandbox.back_end = 'docker'" in found.detail
    with pytest.raises(ConfigError, match="1 of 2 tasks cannot be graded, calc-2 first: .*sandbox.back_end = 'docker'"):
        refuse_unjudged([TASK, of_another_runner()], SandboxSettings())
    refuse_unjudged([TASK, of_another_runner()], SandboxSettings(back_end="docker"))


GIT_CONFIG = """--- a/.git/config
+++ b/.git/config
@@ -1,1 +1,2 @@
 [core]
+\tfsmonitor = touch /testbed/ran; false
"""
HOOK = "--- /dev/null\n+++ b/.git/hooks/post-index-change\n@@ -0,0 +1 @@\n+touch /testbed/ran\n"


@pytest.mark.parametrize("spoilt", [GIT_CONFIG, HOOK], ids=["config", "hook"])
def test_a_patch_of_gits_own_files_is_refused_before_git_reads_them(factory, spoilt):
    """`patch`, the last of swebench's ways to apply one, writes into .git as anywhere else."""
    found = grade(TASK, TASK.patch + spoilt, factory)
    assert found.status is Status.TAMPERED and "the patch writes into .git" in found.detail


def test_what_a_script_says_before_its_tests_leaves_room_for_them(factory, monkeypatch):
    """`git show` of a repository without a history prints the whole tree; SWE-bench's scripts begin with it."""
    monkeypatch.setattr("dagger_nb.evaluation.grading.LOG_BYTES", 20_000)
    loud = TASK.eval_script.replace("cd /testbed\n", "cd /testbed\nseq 20000\n", 1)
    assert loud != TASK.eval_script
    assert grade(dataclasses.replace(TASK, eval_script=loud), TASK.patch, factory).resolved


class Limited:
    """A factory whose registry refuses the first pulls."""

    name = "limited"

    def __init__(self, factory, refusals: int) -> None:
        self.factory, self.refusals = factory, refusals

    def open(self, task: Task):
        self.refusals -= 1
        if self.refusals >= 0:
            raise PullLimit("toomanyrequests; docker login, or wait")
        return self.factory.open(task)

    def prefetch(self, tasks, log=print):
        return {}


def test_a_registry_that_limits_pulls_is_waited_for_and_costs_no_verdict(factory, monkeypatch):
    waited: list[float] = []
    said: list[str] = []
    assert grade(TASK, TASK.patch, Limited(factory, 3), wait=waited.append).resolved and waited == [600.0] * 3
    left = grade(TASK, TASK.patch, Limited(factory, 9), wait=lambda seconds: True)
    assert left.status is Status.INFRASTRUCTURE and "docker login" in left.detail
    monkeypatch.setattr("dagger_nb.evaluation.grading.PAUSE_S", 0.01)
    assert grade_all([(TASK, TASK.patch)], Limited(factory, 2), log=said.append)[0].resolved
    assert said == ["the registry hands out no more images for now; it is asked again in 10 minutes"] * 2


def test_ids_that_are_cut_at_a_blank_may_pass_and_fail_as_expected_but_not_pass_and_fail():
    """PASSED and XFAIL are both a success for swebench; FAILED beside PASSED is how a log is forged."""
    same = "PASSED tests/test_a.py::test_a[datetime64[ns, UTC]]\nXFAIL tests/test_a.py::test_a[datetime64[ns, CET]]\n"
    assert [len(found) for found in verdict._reported(same).values()] == [1]
    forged = same + "FAILED tests/test_a.py::test_a[datetime64[ns, x]]"
    assert [len(found) for found in verdict._reported(forged).values()] == [2]


@pytest.mark.parametrize(("size", "kept"), [(LOG_BYTES, True), (LOG_BYTES + 2, False)])
def test_a_log_that_is_torn_or_unpacks_to_more_than_was_written_is_none(size, kept):
    packed = gzip.compress(b"x" * size)

    def read(data: bytes) -> str:
        return _read_log(SimpleNamespace(read=lambda path: base64.b64encode(data).decode()), "log")

    assert (len(read(packed)) == size) if kept else read(packed) == ""
    assert read(packed[:-9]) == read(b"junk") == read(b"") == ""


# --- grades on disk -----------------------------------------------------------------------------------------


class Counting:
    """A factory whose sandboxes fail at `bad` openings; counts the openings."""

    name = "counting"

    def __init__(self, factory, bad=()):
        self.factory, self.bad, self.opened, self.lock = factory, bad, 0, threading.Lock()
        self.fetched = []

    def open(self, task):
        with self.lock:
            self.opened += 1
            if self.opened in self.bad:
                raise SandboxError("no sandbox today")
        return self.factory.open(task)

    def prefetch(self, tasks, log=print):
        self.fetched.append([task.instance_id for task in tasks])
        return self.factory.prefetch(tasks, log)

    def guarantees(self):
        return self.factory.guarantees()


def test_grading_goes_on_where_it_stopped_and_tries_failed_infrastructure_again(factory, tmp_path):
    store, seen = tmp_path / "grades.jsonl", []
    pairs = [(TASK, TASK.patch), (TASK, ""), (TASK, TASK.patch), (TASK, patch({"calc/ops.py": BUGGY + "\n"}))]
    counting = Counting(factory, bad={2})
    grades = grade_all(pairs, counting, progress=lambda *step: seen.append(step), store_path=store)
    assert [found.status.value for found in grades] == ["resolved", "empty_patch", "resolved", "infrastructure"]
    assert (counting.opened, seen) == (2, [(0, 3), (1, 3), (2, 3), (3, 3)])
    grades = grade_all(pairs, counting, jobs=2, store_path=store)
    assert (counting.opened, grades[3].status) == (3, Status.UNRESOLVED)
    assert grade_all(pairs, counting, store_path=store) == grades and counting.opened == 3


def test_a_torn_last_line_is_dropped_with_a_notice_and_an_edited_line_is_an_error(tmp_path, caplog):
    path, kept = tmp_path / "grades.jsonl", Grade("a", Status.RESOLVED, {"FAIL_TO_PASS": {"success": ["t"]}})
    Gradebook(path).add("k1", kept)
    Gradebook(path).add("k2", kept)
    path.write_bytes(path.read_bytes()[:-20])
    with caplog.at_level(logging.WARNING):
        book = Gradebook(path)
    assert book.get("k1") == kept and book.get("k2") is None and "torn last line" in caplog.text
    book.add("k2", kept)
    assert Gradebook(path).get("k2") == kept
    path.write_text("{}\n" + path.read_text())
    with pytest.raises(DataError, match=r"grades\.jsonl:1: not a grade"):
        Gradebook(path)


def test_books_of_two_processes_share_a_file_and_mend_what_a_killed_one_left(tmp_path, caplog):
    path = tmp_path / "grades.jsonl"
    one, other = Gradebook(path), Gradebook(path)
    one.add("k1", Grade("a", Status.RESOLVED))
    with path.open("a") as file:
        file.write('{"key": "torn')
    other.add("k2", Grade("b", Status.UNRESOLVED))
    one.add("k3", Grade("c", Status.RESOLVED))
    assert "dropped a torn last line (13 bytes)" in caplog.text
    found = Gradebook(path)
    assert [found.get(key).instance_id for key in ("k1", "k2", "k3")] == ["a", "b", "c"]


def test_a_grade_is_keyed_by_task_content_and_patch():
    other = dataclasses.replace(TASK, FAIL_TO_PASS=())
    keys = {grade_key(TASK, "", 30), grade_key(TASK, "\ud800", 30), grade_key(other, "", 30), grade_key(TASK, "", 60)}
    assert len(keys) == 4 and grade_key(TASK, "", 30) in keys


def test_a_real_repository_has_the_time_that_swebench_gives_it():
    assert time_limit(TASK) < time_limit(dataclasses.replace(TASK, files={})) == 1800


# --- predictions and the harness ----------------------------------------------------------------------------

PREDICTIONS = [Prediction(name, "org/model", text) for name, text in (("b", "\u2028é\n"), ("a", ""), ("c", "x\n"))]


def test_predictions_are_read_back_and_carry_their_hash_into_the_run_id(tmp_path):
    path = tmp_path / "deep" / "predictions.jsonl"
    write_predictions(path, PREDICTIONS)
    assert read_predictions(path) == tuple(sorted(PREDICTIONS, key=lambda row: row.instance_id))
    assert get_predictions_from_file(str(path), "", "test") == [
        dataclasses.asdict(row) for row in read_predictions(path)
    ]
    assert run_id(PREDICTIONS) == run_id(read_predictions(path)) != run_id(PREDICTIONS[:2])
    assert [entry.name for entry in path.parent.iterdir()] == ["predictions.jsonl"]


@pytest.mark.parametrize("line", ['{"instance_id": "a"}', "[]", '{"instance_id": "a", "model_name', "",
                                  '{"instance_id": "a", "model_name_or_path": "m", "model_patch": null}'])  # fmt: skip
def test_a_line_that_is_no_prediction_is_an_error_with_its_place(tmp_path, line):
    path = tmp_path / "predictions.jsonl"
    write_predictions(path, PREDICTIONS[:1])
    path.write_text(path.read_text() + line + "\n")
    with pytest.raises(DataError, match=r"predictions\.jsonl:2: "):
        read_predictions(path)


def test_the_harness_reads_our_folder_and_we_read_its_report(tmp_path, monkeypatch):
    names = ("good", "bad", "none", "broken", "lost", "slow", "torn", "latin")
    tasks = [dataclasses.replace(TASK, instance_id=name) for name in names]
    rows = [Prediction(task.instance_id, "org/model", "" if task.instance_id == "none" else "x\n") for task in tasks]
    run = harness.write_inputs(tmp_path, tasks, rows)
    monkeypatch.chdir(tmp_path)  # where the command line is started
    predictions = {row["instance_id"]: row for row in get_predictions_from_file(harness.PREDICTIONS, "", "test")}
    dataset = get_dataset_from_preds(harness.DATASET, "test", None, predictions, run.run_id, False)
    assert [row["instance_id"] for row in dataset] == ["bad", "broken", "good", "latin", "lost", "slow", "torn"]
    assert make_test_spec(dataset[0]).FAIL_TO_PASS == list(TASK.FAIL_TO_PASS)
    status = {"FAIL_TO_PASS": {"success": ["t"], "failure": []}, "FAIL_TO_FAIL": {"success": [], "failure": []}}
    logs = {"broken": ">>>>> Patch Apply Failed:\nno", "slow": "Test timed out after 9 seconds.", "lost": "no image",
            "latin": "UnicodeDecodeError: 'utf-8' codec can't decode byte 0xe9"}  # fmt: skip
    for name, log in logs.items():
        _put(run.log_folder(name) / "run_instance.log", log)
    for name, resolved in (("good", True), ("bad", False)):
        report = {
            name: {"resolved": resolved, "tests_status": status | {"PASS_TO_PASS": {"success": [], "failure": []}}}
        }
        _put(run.log_folder(name) / "report.json", json.dumps(report))
    _put(run.log_folder("torn") / "report.json", '{"torn": ')
    assert harness.unjudged(run) == ["lost", "torn"] and not (run.log_folder("torn") / "report.json").exists()
    harness.summarise(run)
    grades = {found.instance_id: found for found in harness.read_report(run)}
    assert {name: found.status.value for name, found in grades.items()} == {
        "good": "resolved", "bad": "unresolved", "none": "empty_patch",
        "broken": "patch_failed", "slow": "unresolved", "lost": "infrastructure",
        "torn": "infrastructure", "latin": "unresolved"}  # fmt: skip
    assert set(grades["good"].report) == {"FAIL_TO_PASS", "PASS_TO_PASS"}
    line = harness.command(run, workers=2, instances=["lost", "torn"])
    assert line[:3] == ["swebench", "eval", harness.DATASET]
    assert line[-4:] == ["--instance", "lost", "--instance", "torn"]


def test_a_report_of_a_container_that_had_ended_is_no_verdict(tmp_path):
    """swebench writes one: not resolved, without a status of any test, as where a patch broke them all."""
    names = ("ended", "silent", "told")
    tasks = [dataclasses.replace(TASK, instance_id=name) for name in names]
    run = harness.write_inputs(tmp_path, tasks, [Prediction(name, "m", "x\n") for name in names])
    for name, after in (
        ("ended", "cannot exec in a stopped state: unknown"),
        ("silent", ""),
        ("told", "diff --git a/x"),
    ):
        log = f"- Git diff before:\ndiff --git a/x\n- Git diff after:\n{after}\n- report: is not running\n"
        _put(run.log_folder(name) / "run_instance.log", log)
        _put(run.log_folder(name) / "report.json", json.dumps({name: {"resolved": False}}))
    assert harness.unjudged(run) == ["ended"] and not (run.log_folder("ended") / "report.json").exists()


def test_the_containers_of_two_folders_have_names_of_their_own(tmp_path):
    """swebench removes those of a run's name before it begins, and another folder's may be at work."""
    rows = [Prediction(TASK.instance_id, "gold", "x\n")]
    runs = [harness.write_inputs(tmp_path / name, [TASK], rows) for name in ("a", "b", "a")]
    assert runs[0].run_id == runs[2].run_id != runs[1].run_id


def _put(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def test_the_harness_refuses_unknown_instances_mixed_models_and_a_missing_report(tmp_path):
    with pytest.raises(DataError, match="not in the data set"):
        harness.write_inputs(tmp_path, [TASK], PREDICTIONS)
    with pytest.raises(DataError, match="one model"):
        harness.write_inputs(tmp_path, [TASK], [])
    run = harness.write_inputs(tmp_path, [TASK], [Prediction(TASK.instance_id, "m", "")])
    with pytest.raises(DataError, match="run the harness first"):
        harness.read_report(run)


# --- tables -------------------------------------------------------------------------------------------------


def test_a_score_has_both_denominators():
    grades = [Grade(str(n), status) for n, status in enumerate([Status.RESOLVED, Status.RESOLVED, *Status])]
    table = score_table({"x": grades, "none": []})
    assert dataclasses.astuple(score(grades)) == (3, 8, 7, 1)
    assert (score(grades).rate_of_attempted, score(grades).rate_of_graded) == (3 / 8, 3 / 7)
    assert list(table.infrastructure) == [1, 0] and table.low[0] < 3 / 8 < table.high[0] and pd.isna(table.rate[1])


def test_repeating_the_same_seed_does_not_narrow_the_interval():
    tasks = [dataclasses.replace(TASK, instance_id=f"t{n}", split="dev") for n in range(40)]
    grades = [Grade(t.instance_id, Status.RESOLVED if n % 3 else Status.UNRESOLVED) for n, t in enumerate(tasks)]
    one = outcomes("sft", 0, tasks, grades)
    same = pd.concat([one.assign(seed=seed) for seed in range(5)])
    wide, narrow = rates(one).iloc[0], rates(same).iloc[0]
    assert (narrow.tasks, narrow.seeds, narrow.outcomes) == (40, 5, 200)
    assert narrow.high - narrow.low == pytest.approx(wide.high - wide.low, rel=0.05)
    with pytest.raises(DataError, match="twice"):
        rates(pd.concat([one, one]))


def test_a_clustered_share_is_wilsons_for_independent_outcomes():
    independent, extreme = clustered_share([[True], [False]] * 50), clustered_share([[True, True]] * 10)
    assert (independent.value, extreme.value) == (0.5, 1.0)
    assert independent.low == pytest.approx(0.4038, abs=0.002)
    assert extreme.low == pytest.approx(0.7225, abs=0.001)  # Wilson's of 10 out of 10, not of 20


def test_a_comparison_pairs_tasks_and_gives_each_task_one_vote():
    tasks = [dataclasses.replace(TASK, instance_id=f"t{n}", repo=f"r{n}", split="dev") for n in range(30)]

    def run(recipe, seed, solved):
        verdicts = [Status.RESOLVED if n < solved else Status.UNRESOLVED for n in range(30)]
        return outcomes(recipe, seed, tasks, [Grade(t.instance_id, v) for t, v in zip(tasks, verdicts, strict=True)])

    one = pd.concat([run("sft", 0, 10), run("dagger", 0, 18)])
    five = pd.concat([run(recipe, seed, n) for seed in range(5) for recipe, n in (("sft", 10), ("dagger", 18))])
    single, many = (comparison(table, samples=2000).iloc[0] for table in (one, five))
    assert (single.recipe, single.baseline, single.tasks, single.seeds) == ("sft", "dagger", 30, 1)
    assert single.difference == pytest.approx(-8 / 30) and single.low <= single.difference <= single.high < 0
    assert single.p_by_seed == [single.p_pooled] == [pytest.approx(2 * 0.5**8)]
    assert many.p_pooled == single.p_pooled  # five equal seeds are no new tasks
    assert (many.low, many.high) == pytest.approx((single.low, single.high), abs=0.03)


def test_a_rows_interval_does_not_hang_on_the_other_rows():
    def run(recipe, solved):
        rows = [(recipe, 0, f"t{n}", "test", f"r{n}", n < solved) for n in range(40)]
        return pd.DataFrame(rows, columns=OUTCOME_COLUMNS)

    two, seeds = pd.concat([run("dagger", 30), run("sft", 20)]), (0, 1)
    alone, again = (comparison(two, seed=seed, samples=300).iloc[0] for seed in seeds)
    more = comparison(pd.concat([two, run("base", 5), run("switch", 25)]), samples=300)
    beside = more[(more.recipe == "sft") & (more.baseline == "dagger")].iloc[0]
    assert alone.to_dict() == beside.to_dict()
    assert (alone.low, alone.high) != (again.low, again.high) and len(more) == 6


def test_what_slips_cost_is_told_apart_from_what_a_recipe_is_worth_without_them():
    """Both lose 10 of 40 tasks to slips; one solves 10 more with slips and without."""

    def run(recipe, split, solved):
        rows = [(recipe, 0, f"t{n}", split, f"r{n}", n < solved) for n in range(40)]
        return pd.DataFrame(rows, columns=OUTCOME_COLUMNS)

    rates = {"sft": (25, 15), "dagger": (35, 25), "steady": (25, 25)}
    table = pd.concat(
        [run(r, s, k) for r, both in rates.items() for s, k in zip(("test", "test-slips"), both, strict=True)]
    )
    found = slip_costs(table, "sft", samples=2000).set_index("recipe")
    assert found.cost.to_dict() == pytest.approx({"sft": 0.25, "dagger": 0.25, "steady": 0.0})
    assert found.clean["dagger"] == 35 / 40 and found.slipped["dagger"] == 25 / 40 and found.tasks["dagger"] == 40
    assert found.saved.to_dict() == pytest.approx({"sft": 0.0, "dagger": 0.0, "steady": 0.25})
    assert found.saved_low["dagger"] < 0 < found.saved_high["dagger"] and found.saved_low["steady"] > 0
    assert found.low["sft"] > 0


# --- diagnostics --------------------------------------------------------------------------------------------

GREP = Action("look", "execute_bash", {"command": "grep -rn add ."})
EDIT = Action("fix", "str_replace_editor", {"command": "str_replace", "path": "a.py", "old_str": "x", "new_str": "y"})
WRONG = Action("fix", "str_replace_editor", {"command": "str_replace", "path": "a.py", "old_str": "x", "new_str": "z"})
TESTS = Action("test", "execute_bash", {"command": "python -m pytest"})
FINISH = Action("done", "finish")
JUNK = Action("", "", raw="hm", error="no <tool_call> in the reply")
RED, GREEN = "FAILED t\n1 failed, 2 passed", "3 passed"


def episode(*steps, name="a", round_=0, stop=StopReason.FINISH):
    """A trajectory of (actor, action, observation) steps; two token ids an action."""
    turns = [Turn(n, who, act, seen, (1, 2), 5, beta=0.5) for n, (who, act, seen) in enumerate(steps)]
    return Trajectory(name, 0, round_, "base", tuple(turns), stop, "", 9)


def teach(path, *actions):
    """The teacher's labels of an episode's turns; None leaves a turn without a label."""
    return [
        Label(path.instance_id, 0, path.round, "base", turn.index, turn.actor, 0.5, "oracle", "h", action, (1,),
              lesson=not action.same_call(turn.action))
        for turn, action in zip(path.turns, actions, strict=True) if action
    ]  # fmt: skip


RECOVERS = episode(("student", GREP, "a.py:1:x"), ("student", WRONG, "File edited."), ("student", EDIT, "File edited."),
                   ("student", TESTS, GREEN), ("student", FINISH, ""), name="a")  # fmt: skip
STUCK = episode(("student", TESTS, RED), ("student", JUNK, "ERROR: no"), ("student", JUNK, "ERROR: no"),
                ("teacher", GREP, "x"), ("student", EDIT, "File edited."), name="b", stop=StopReason.LOOP)  # fmt: skip
CLEAN = episode(("student", TESTS, GREEN), ("student", FINISH, ""), name="c")
LABELS = [*teach(RECOVERS, TESTS, EDIT, EDIT, TESTS, FINISH), *teach(STUCK, TESTS, GREP, GREP, GREP, None),
          *teach(CLEAN, TESTS, FINISH)]  # fmt: skip


def test_disagreement_counts_labelled_student_turns_by_turn():
    table = disagreement_by_turn([RECOVERS, STUCK, CLEAN], LABELS, bins=[0, 1, 3, 9, 20])
    assert table[["first_turn", "last_turn", "tasks", "turns", "differing"]].values.tolist() == [
        [0, 0, 3, 3, 1], [1, 2, 3, 5, 3], [3, 8, 1, 2, 0]]  # fmt: skip
    assert ((table.low <= table.share) & (table.share <= table.high)).all()


def test_shadow_disagreement_counts_teacher_turns_with_a_proposal():
    path = episode(("teacher", TESTS, RED), ("teacher", GREP, "x"), ("student", GREP, "x"), ("teacher", EDIT, ""))
    shadow = {("a", 0, 0): TESTS, ("a", 0, 1): JUNK, ("a", 0, 2): EDIT}
    assert shadow_disagreement_by_turn([path], shadow, bins=[0, 9])[["turns", "differing"]].values.tolist() == [[2, 1]]


def test_the_first_mistake_is_an_edit_or_a_failed_call_and_not_another_way_of_looking():
    table = first_mistakes([STUCK, CLEAN, RECOVERS], LABELS)
    assert table.fillna(-1).values.tolist() == [
        ["a", 0, 5, 1, "edit"],
        ["b", 0, 5, 1, "failed_call"],
        ["c", 0, 2, -1, "none"],
    ]


def test_recovery_tells_the_verdict_and_the_next_turns_after_the_mistake():
    verdicts = {("a", 0): True, ("b", 0): False, ("c", 0): True}
    table = recovery([RECOVERS, STUCK, CLEAN], LABELS, verdicts, k=2).set_index("kind")
    assert table[["episodes", "resolved", "next_turns", "next_agreeing"]].values.tolist() == [
        [1, 1, 0, 0], [1, 1, 2, 2], [1, 0, 1, 0]]  # fmt: skip
    with pytest.raises(DataError, match="no verdict for 1 episodes"):
        recovery([RECOVERS, STUCK, CLEAN], LABELS, {("a", 0): True, ("b", 0): True}, k=2)


def test_slips_pair_the_same_tasks_with_and_without_the_wrong_edit():
    hit = [episode(("slip", WRONG, "File edited."), ("student", FINISH, ""), name=name) for name in "abc"]
    clean = {(name, 0): name != "c" for name in "abcd"}
    table = slips(clean, [*hit, dataclasses.replace(CLEAN, instance_id="d")], {(n, 0): n in "ad" for n in "abcd"})
    assert table[["group", "pairs", "clean_resolved", "slipped_resolved", "still", "share"]].values.tolist() == [
        ["hit", 3, 2, 1, 1, 0.5], ["not hit", 1, 1, 1, 1, 1.0]]  # fmt: skip


@pytest.mark.parametrize(
    ("before", "red", "untested"),
    [
        ([(TESTS, RED)], 1, 0),
        ([(TESTS, GREEN)], 0, 0),
        ([(TESTS, GREEN), (EDIT, "File edited.")], 0, 1),
        ([(TESTS, GREEN), (EDIT, "ERROR: old_str not found")], 0, 0),
        ([(TESTS, RED), (EDIT, "File edited."), (TESTS, GREEN)], 0, 0),
        ([(GREP, "x")], 0, 1),
        ([(TESTS, GREEN), (Action("", "execute_bash", {"command": "sed -i 's/a/b/' a.py"}), "")], 0, 1),
        ([(TESTS, GREEN), (Action("", "execute_bash", {"command": "grep -n a a.py 2>/dev/null"}), "")], 0, 0),
        ([(TESTS, GREEN), (Action("", "execute_bash", {"command": "echo 'x = 1' > a.py"}), "")], 0, 1),
        ([(TESTS, "ERROR collecting\n!!! Interrupted: 1 error during collection !!!\n1 error in 0.1s")], 1, 0),
    ],
)
def test_a_submission_is_wrong_on_red_tests_or_without_testing_the_last_edit(before, red, untested):
    path = episode(*(("student", act, seen) for act, seen in before), ("student", FINISH, ""))
    row = protocol_counts([path]).iloc[0]
    assert (row.submissions, row.submitted_red, row.submitted_untested) == (1, red, untested)
    assert row.wrong_submissions == red + untested


def test_protocol_counts_are_the_students_by_round():
    table = protocol_counts([RECOVERS, STUCK, dataclasses.replace(CLEAN, round=2)]).set_index("round")
    columns = ["episodes", "turns", "malformed", "failed_calls", "repeated", "submissions", "stop_finish", "stop_loop"]
    assert table[columns].values.tolist() == [[2, 9, 2, 2, 1, 1, 1, 1], [1, 2, 0, 0, 0, 1, 1, 0]]


def test_the_realised_dose_stands_beside_the_nominal_beta():
    row = realised_dose([STUCK]).iloc[0]
    assert (row.turns, row.teacher_turns, row.turn_share, row.token_share, row.nominal_beta) == (5, 1, 0.2, 0.2, 0.5)
    assert row.teacher_malformed == 0 and realised_dose([twice_malformed()]).teacher_malformed.tolist() == [1]


def twice_malformed() -> Trajectory:
    """A student's malformed turn, and one of the teacher that stayed malformed when it was asked for again."""
    broken = Action("", "", raw="?", error="no call")
    return episode(("student", broken, "no call"), ("teacher", broken, "no call"), ("teacher", FINISH, ""))


def test_lessons_and_labels_bought_twice_in_a_row_are_counted():
    row = lessons(LABELS).iloc[0]
    assert (row.labels, row.lessons, row.repeats, row.lesson_repeats) == (11, 4, 3, 1)
    assert row.missing == 0
    lineage = {"instance_id": "a", "attempt": 0, "round": 0, "policy": "base", "actor": "teacher", "teacher": "t"}
    lost = Missing(**lineage, turn=9, reason="malformed", detail="no call")
    assert lessons(LABELS, [lost, lost]).missing.tolist() == [2] and lessons([], [lost]).labels.tolist() == [0]
    assert lessons([]).empty and protocol_counts([]).empty and realised_dose([]).empty
