"""Grading must believe an honest fix and nothing else; the tables must count what happened."""

from __future__ import annotations

import dataclasses
import json
import logging
import threading

import pandas as pd
import pytest
from swebench.harness.reporting import make_run_report
from swebench.harness.run_evaluation import get_dataset_from_preds
from swebench.harness.utils import get_predictions_from_file, make_test_spec

from dagger_nb.errors import DataError, SandboxError
from dagger_nb.evaluation import harness
from dagger_nb.evaluation.diagnostics import (
    disagreement_by_turn,
    first_mistakes,
    recovery,
    shadow_disagreement_by_turn,
    slips,
)
from dagger_nb.evaluation.grades import Grade, Gradebook, Status, grade_key
from dagger_nb.evaluation.grading import grade, grade_all
from dagger_nb.evaluation.predictions import Prediction, read_predictions, run_id, write_predictions
from dagger_nb.evaluation.protocol import lessons, protocol_counts, realised_dose
from dagger_nb.evaluation.shares import clustered_share
from dagger_nb.evaluation.tables import outcomes, rates, score, score_table
from dagger_nb.evaluation.verdict import judge
from dagger_nb.records import Action, Label, StopReason, Task, Trajectory, Turn
from dagger_nb.sandboxes import local_factory
from dagger_nb.sandboxes.protocol import CommandResult
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
    "for thing in gc.get_objects():\n    if isinstance(thing, Config):\n        thing.pluginmanager.register(Plugin())\n"
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
    "hook in a new conftest": {"conftest.py": HOOK},
    "hook in the tests' conftest": {"tests/conftest.py": HOOK},
    "hook in a conftest of the package, named in pytest.ini": {
        "calc/plugin.py": HOOK, "pytest.ini": "[pytest]\naddopts = -p calc.plugin\n"},
    "hook through a new pytest.toml": {"calc/plugin.py": HOOK, "pytest.toml": '[pytest]\naddopts = ["-p", "calc.plugin"]\n'},
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
    return not judge(spec, log, 1, ()).status is Status.UNRESOLVED


@pytest.mark.parametrize("name", CHEATS)
def test_a_cheat_that_fools_the_plain_procedure_is_rejected(factory, name):
    cheat = patch(CHEATS[name])
    assert unprotected(TASK, cheat, factory), "this cheat fools nobody, so it tests nothing"
    assert grade(TASK, cheat, factory).status in (Status.UNRESOLVED, Status.TAMPERED)
