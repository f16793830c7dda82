"""Grade a patch: a fresh sandbox, a protected tree, the instance's own tests, swebench's own verdict.

The steps: apply the patch, put the tests and their configuration back and remove what shadows them
(`protection`), add canaries, run the instance's eval_script once, judge its log (`verdict`).

Tests that do not run under pytest (Django's, sympy's) have no canaries and are judged by swebench's command line
(`official`), which protects nothing: such a verdict believes the log.
"""

from __future__ import annotations

import base64
import random
import re
import secrets
import threading
import time
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import closing
from dataclasses import replace
from itertools import chain
from pathlib import Path

from swebench.harness.constants import END_TEST_OUTPUT, START_TEST_OUTPUT, TEST_EXIT_CODE_VAR
from swebench.harness.run_evaluation import GIT_APPLY_CMDS
from swebench.harness.utils import make_test_spec
from swebench.types import TestSpec

from dagger_nb.errors import ConfigError, DataError, PullLimit, SandboxError
from dagger_nb.evaluation.grades import Grade, Gradebook, Status, grade_key
from dagger_nb.evaluation.official import Harness
from dagger_nb.evaluation.predictions import Prediction
from dagger_nb.evaluation.protection import PATCH_FAILED, UNPROTECTED, Canaries, draw_canaries, prepare_script
from dagger_nb.evaluation.verdict import judge
from dagger_nb.records import Task
from dagger_nb.sandboxes.protocol import PAUSE_S, PAUSED, PAUSES, CommandResult, Sandbox, SandboxFactory
from dagger_nb.settings import SandboxSettings

TIMEOUT_S = 30.0  # wall clock of one grading of a generated task
REAL_TIMEOUT_S = 1800.0  # and of a real repository's: swebench's own default
LOG_BYTES = 16_000_000  # what is kept of a test run's output; it begins at swebench's marker, where there is one
NO_HARNESS = "only swebench's command line judges tests that do not run under pytest; set sandbox.back_end = 'docker'"
GZIP = 31  # zlib's name of the format: a window of 15 bits, with gzip's header

# A sandbox has the image's environment activated, and the script activates it itself: swebench starts it in none, where
# conda has no deactivating hook to run, which may miss variables of the shell that ran the activating one.
_UNACTIVATED = "unset CONDA_SHLVL CONDA_PREFIX CONDA_DEFAULT_ENV"
_PYTEST = re.compile(r"(^|[\s/])pytest(\s|$)")  # the program or the module, and not pytest.ini
_COMMAND = """
out=$PWD/{box}.log
work=$(mktemp -d) && mv {box}/* "$work" && rmdir {box} || exit {unprotected}
bash "$work/prepare.sh" "$work" || exit
bash "$work/eval.sh" > "$work/log" 2>&1 < /dev/null
code=$?
first=$(grep -a -n -m 1 -F '{marker}' "$work/log" | cut -d: -f1)
tail -n "+${{first:-1}}" "$work/log" | head -c {limit} | gzip | base64 > "$out"
exit $code
"""


def grade(
    task: Task,
    model_patch: str,
    factory: SandboxFactory,
    *,
    timeout_s: float | None = None,
    wait: Callable[[float], object] = time.sleep,
) -> Grade:
    """The verdict on one patch, from a sandbox opened for it alone; without `timeout_s` it has `time_limit` seconds.

    Random: the canaries' names, from a secret; no verdict depends on them. A sandbox that fails gives
    an `infrastructure` grade and no exception. A registry that limits pulls is waited for with `wait`, which returns
    something true where the waiting is to end.

    Raises:
        DataError: the task's eval_script does not run pytest between swebench's markers; `grade_all` hands
            such a task to its `harness`.
    """
    if not model_patch.strip():
        return Grade(task.instance_id, Status.EMPTY_PATCH, detail="the patch is empty")
    spec = make_test_spec(task.to_instance())
    timeout_s = timeout_s or time_limit(task)
    rng = random.Random(secrets.token_hex())
    canaries = draw_canaries(_test_folder(task), rng)
    script = _eval_script(spec, canaries)
    try:
        with closing(_opened(task, factory, wait)) as sandbox:
            result, log = _run(sandbox, model_patch, script, timeout_s)
    except (SandboxError, OSError) as error:
        return Grade(task.instance_id, Status.INFRASTRUCTURE, detail=str(error))
    return _graded(spec, result, log, canaries)


def _opened(task: Task, factory: SandboxFactory, wait: Callable[[float], object]) -> Sandbox:
    """A sandbox, where need be when the registry hands out its image again. Raises SandboxError."""
    for _ in range(PAUSES):
        try:
            return factory.open(task)
        except PullLimit:
            if wait(PAUSE_S):
                raise
    return factory.open(task)


def time_limit(task: Task) -> float:
    """Seconds that the tests of a task may take: only generated tasks carry their few files with them."""
    return TIMEOUT_S if task.files else REAL_TIMEOUT_S


def without_pytest(tasks: Sequence[Task]) -> list[Task]:
    """The tasks that `grade` refuses: their eval_script runs no pytest right before swebench's end marker."""
    return [task for task in tasks if _pytest_line(make_test_spec(task.to_instance())) is None]


def refuse_unjudged(tasks: Sequence[Task], sandbox: SandboxSettings) -> None:
    """Raise ConfigError where tasks need swebench's command line and these sandboxes are not Docker's."""
    if sandbox.back_end != "docker" and (found := without_pytest(tasks)):
        raise ConfigError(
            f"{len(found)} of {len(tasks)} tasks cannot be graded, {found[0].instance_id} first: {NO_HARNESS}"
        )


def grade_all(
    pairs: Sequence[tuple[Task, str]],
    factory: SandboxFactory,
    *,
    jobs: int = 1,
    progress: Callable[[int, int], None] | None = None,
    store_path: Path | None = None,
    timeout_s: float | None = None,
    harness: Harness | None = None,
    log: Callable[[str], None] = print,
) -> list[Grade]:
    """The grades of (task, model patch) pairs, in their order; equal pairs are graded once.

    With `store_path` each grade is kept as soon as it is known and found again by the task's content and
    the patch, so that an interrupted call goes on where it stopped. `progress` gets (done, all) in
    distinct pairs. `jobs` is the number of sandboxes open at once. `harness` (`official.harness_for`) judges, after
    the others, the tasks whose tests do not run under pytest, each with one patch; without it their grade is an
    infrastructure failure. What patches that are not graded yet need is fetched before, and `log` is told.
    """
    keys = [grade_key(task, patch, timeout_s or time_limit(task)) for task, patch in pairs]
    wanted = dict(zip(keys, pairs, strict=True))
    book = Gradebook(store_path) if store_path else None
    known = {key: stored for key in wanted if book and (stored := book.get(key))}
    tell = progress or (lambda done, total: None)
    tell(len(known), len(wanted))
    missing = {key: pair for key, pair in wanted.items() if key not in known}
    others = {key: (task, patch) for key, (task, patch) in missing.items() if patch.strip() and without_pytest([task])}
    own = {key: pair for key, pair in missing.items() if key not in others}
    factory.prefetch([task for task, patch in own.values() if patch.strip()], log)
    for key, fresh in chain(_in_parallel(own, factory, jobs, timeout_s, log), _by_harness(others, harness)):
        if book:
            book.add(key, fresh)
        known[key] = fresh
        tell(len(known), len(wanted))
    return [known[key] for key in keys]


def _in_parallel(
    missing: Mapping[str, tuple[Task, str]],
    factory: SandboxFactory,
    jobs: int,
    timeout_s: float | None,
    log: Callable[[str], None],
) -> Iterator[tuple[str, Grade]]:
    """Grades as they come; an exception or an interrupt cancels what has not started."""
    pool, leaving = ThreadPoolExecutor(jobs), threading.Event()

    def wait(seconds: float) -> bool:
        log(PAUSED)
        return leaving.wait(seconds)

    how = {"timeout_s": timeout_s, "wait": wait}
    try:
        futures = {pool.submit(grade, task, patch, factory, **how): key for key, (task, patch) in missing.items()}
        for future in as_completed(futures):
            yield futures[future], future.result()
    finally:
        leaving.set()
        pool.shutdown(cancel_futures=True)


def _by_harness(others: Mapping[str, tuple[Task, str]], harness: Harness | None) -> Iterator[tuple[str, Grade]]:
    """Grades of tasks whose tests do not run under pytest."""
    keys = {task.instance_id: key for key, (task, _) in others.items()}
    if others and harness:
        rows = [Prediction(task.instance_id, "graded", patch) for task, patch in others.values()]
        yield from ((keys[row.instance_id], row) for row in harness([task for task, _ in others.values()], rows))
    elif others:
        yield from ((key, Grade(name, Status.INFRASTRUCTURE, detail=NO_HARNESS)) for name, key in keys.items())


def _test_folder(task: Task) -> str:
    """Where the canaries go: beside an expected test, so that pytest finds the same root folder."""
    return min(task.FAIL_TO_PASS + task.PASS_TO_PASS).partition("::")[0].rpartition("/")[0]


def _eval_script(spec: TestSpec, canaries: Canaries) -> str:
    """The instance's own script with the canaries on its pytest command, ending with pytest's exit code."""
    lines, tests = list(spec.eval_script_list), _pytest_line(spec)
    if tests is None:
        raise DataError(
            f"{spec.instance_id}: no pytest command right before the line with {END_TEST_OUTPUT!r} in eval_script; "
            "grade this task through the swebench command line (dagger_nb.evaluation.official)"
        )
    lines[tests] = canaries.join(lines[tests])
    write = f"cat > {canaries.path} <<'END_OF_CANARIES'\n{canaries.text}END_OF_CANARIES"
    return "\n".join(["set -uxo pipefail", _UNACTIVATED, write, *lines, f'exit "${TEST_EXIT_CODE_VAR}"', ""])


def _pytest_line(spec: TestSpec) -> int | None:
    """Where the script's pytest command is; None where there is none."""
    found = [number for number, line in enumerate(spec.eval_script_list) if line == f"{TEST_EXIT_CODE_VAR}=$?"]
    return found[0] - 1 if len(found) == 1 and _PYTEST.search(spec.eval_script_list[found[0] - 1]) else None


def _run(sandbox: Sandbox, model_patch: str, script: str, timeout_s: float) -> tuple[CommandResult, str]:
    """Everything in one command: apply, protect, test. What it prints is what was protected; the log is apart.

    The folder's name is secret, so that the patch cannot hold a file of that name, and gone before any
    code of the patch runs. The log is read from a file, as a command's output is cut for agents.
    """
    box = f".grading-{secrets.token_hex(8)}"
    sandbox.write(f"{box}/patch", model_patch)
    sandbox.write(f"{box}/prepare.sh", prepare_script(GIT_APPLY_CMDS))
    sandbox.write(f"{box}/eval.sh", script)
    command = _COMMAND.format(box=box, limit=LOG_BYTES, unprotected=UNPROTECTED, marker=START_TEST_OUTPUT)
    result = sandbox.run(command, timeout_s)
    return result, "" if result.timed_out else _read_log(sandbox, f"{box}.log")


def _read_log(sandbox: Sandbox, path: str) -> str:
    """The test log; empty where the tests left none that is whole (a full disk, a hostile patch)."""
    try:
        stream = zlib.decompressobj(GZIP)
        text = stream.decompress(base64.b64decode(sandbox.read(path)), LOG_BYTES + 1)
        return text.decode("utf-8", "replace") if stream.eof else ""
    except (OSError, ValueError, zlib.error):
        return ""


def _graded(spec: TestSpec, result: CommandResult, log: str, canaries: Canaries) -> Grade:
    """The grade of a finished run. Codes of the preparation come with no log, or from a patch that lies."""
    if result.timed_out:
        return Grade(spec.instance_id, Status.UNRESOLVED, detail="the tests reached the time limit")
    if result.exit_code == PATCH_FAILED:
        return Grade(spec.instance_id, Status.PATCH_FAILED, detail=f"the patch does not apply: {result.output}")
    if result.exit_code == UNPROTECTED:
        return Grade(spec.instance_id, Status.TAMPERED, detail=f"the tree could not be protected: {result.output}")
    verdict = judge(spec, log, result.exit_code, canaries.ids)
    notes = "; ".join(filter(None, (verdict.detail, *result.output.splitlines())))
    return replace(verdict, detail=notes)
