"""From a test run's log to a verdict: swebench's parser and report, and the evidence behind a success.

swebench decides whether the expected tests passed. Its success is believed only when every expected test
was seen with one status, the canaries failed, and pytest itself ended with exit code 1, as it must when
tests fail. A success without the evidence is `tampered`; a failure needs no evidence.
"""

from __future__ import annotations

import tempfile
from collections import defaultdict
from collections.abc import Mapping, Sequence

from swebench.harness.constants import END_TEST_OUTPUT, START_TEST_OUTPUT, TestStatus
from swebench.harness.grading import get_eval_report, get_logs_eval, test_maintained
from swebench.types import TestSpec

from dagger_nb.evaluation.grades import Grade, Status

_STATUSES = {status.value for status in TestStatus}


def judge(spec: TestSpec, log: str, exit_code: int, canary_ids: Sequence[str]) -> Grade:
    """The verdict on a test run's log: swebench's report, then the evidence behind a success.

    `exit_code` is pytest's own, learnt outside the log; `canary_ids` are the tests that must fail.
    """
    with tempfile.NamedTemporaryFile("w", suffix=".log", encoding="utf-8", errors="replace") as file:
        file.write(log)
        file.flush()
        statuses, _ = get_logs_eval(spec, file.name)
        prediction = {"instance_id": spec.instance_id, "model_patch": "given"}
        row = get_eval_report(spec, prediction, file.name, include_tests_status=True)[spec.instance_id]
    report = {name: row["tests_status"][name] for name in ("FAIL_TO_PASS", "PASS_TO_PASS") if "tests_status" in row}
    if not row["resolved"]:
        return Grade(spec.instance_id, Status.UNRESOLVED, report, _why_unresolved(row, exit_code))
    doubt = _doubt(spec, log, statuses, exit_code, canary_ids)
    return Grade(spec.instance_id, Status.TAMPERED if doubt else Status.RESOLVED, report, doubt)


def _why_unresolved(row: Mapping[str, object], exit_code: int) -> str:
    if "tests_status" in row:
        return ""
    reason = row.get("infra_failure_reason", "")
    return f"no test results (exit code {exit_code})" + (f", perhaps {reason}" if reason else "")


def _doubt(spec: TestSpec, log: str, statuses: Mapping[str, str], exit_code: int, canary_ids: Sequence[str]) -> str:
    """Why a reported success is not to be believed; empty when it is."""
    expected = [*spec.FAIL_TO_PASS, *spec.PASS_TO_PASS]
    reported = _reported(log)
    if log.count(START_TEST_OUTPUT) != 1 or log.count(END_TEST_OUTPUT) != 1:
        return "the log holds the markers of the test output more than once"
    if unseen := [test for test in expected if not test_maintained(test, statuses)]:
        return f"expected tests were not seen: {unseen[:3]}"
    if mixed := [test for test in (*expected, *canary_ids) if len(reported.get(test, ())) > 1]:
        return f"the log gives several statuses to {mixed[:3]}"
    if spared := [test for test in canary_ids if statuses.get(test) != TestStatus.FAILED.value]:
        return f"tests that must fail did not: {[(test, statuses.get(test, 'unseen')) for test in spared]}"
    if exit_code != 1:
        return f"pytest ended with exit code {exit_code}, not with 1 for the failed canaries"
    return ""


def _reported(log: str) -> dict[str, set[str]]:
    """Every status that the log gives to each test id, in which PASSED and XFAIL are one, as for swebench.

    Ids end at the first blank, as in its parsers, so that tests with blanks in their parameters may share one.
    """
    statuses: dict[str, set[str]] = defaultdict(set)
    for line in log.split("\n"):
        word, *rest = line.split(maxsplit=2)[:2] or [""]
        if word in _STATUSES and rest:
            statuses[rest[0]].add(TestStatus.PASSED.value if word == TestStatus.XFAIL.value else word)
    return statuses
