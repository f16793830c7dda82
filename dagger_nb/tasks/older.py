"""Rows of SWE-bench's first schema, as SWE-Gym's are, turned into the tasks that swebench 5 grades.

A row of the first schema has no image, eval_script, log_parser or eval_type: swebench up to 4 (and SWE-Gym's fork of
it) kept them as tables of its own, by repository and version; swebench 5 reads them from the row. What is written
here for SWE-Gym's eleven repositories follows that fork's tables (the test commands and parsers of
SWE-Gym/SWE-Bench-Fork, read in public copies of it).

Checked here: that swebench 5 takes the result, finds the markers and knows the parsers, and that a real run of such
a script on a small repository is graded rightly. Not checked, as no image can be pulled here: a run in an image.
Left out on purpose: the fork's second installation before the tests. The images hold the installed package already, in
editable mode, so that a patch of Python files takes effect, and grading has no network. pandas alone is compiled: it is
built again, from what the image holds, where a patch touches what is compiled.
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dagger_nb.errors import DataError
from dagger_nb.records import Task
from dagger_nb.tasks.evaluation import END, HEREDOC, START

NEEDED = ("instance_id", "repo", "base_commit", "problem_statement", "patch", "test_patch",
          "FAIL_TO_PASS", "PASS_TO_PASS", "version")  # fmt: skip
ADDED = ("image", "eval_script", "log_parser", "eval_type")  # what swebench 5 has and the first schema lacks
DATA_FILES = (".json", ".png", "csv", ".txt", ".md", ".jpg", ".jpeg", ".pkl", ".yml", ".yaml", ".toml")


@dataclass(frozen=True, slots=True)
class Suite:
    """How a repository's tests are run: `before` in the shell, then `command` and the files; which parser reads it."""

    command: str
    before: tuple[str, ...] = ()
    log_parser: str = "parse_log_pytest"


# The fork's installation of pandas, made not to ask for a network, after a patch of Cython or C.
_BUILD = """if git status --porcelain -uall | grep -E '\\.(pyx|pxd|pxi|c|h|cpp)(\\.in)?"?$' > /dev/null; then
  PIP_NO_INDEX=1 python -m pip install -ve . --no-build-isolation --no-deps -Ceditable-verbose=true
fi"""

# Some versions of mypy run without -n0, which only decides how many processes pytest uses. pydantic's fork parser
# differs from parse_log_pytest_v2 in one respect: it drops a bracketed percentage behind FAILED.
REPOSITORIES: Mapping[str, Suite] = {
    "bokeh/bokeh": Suite("pytest -rA -n0"),
    "conan-io/conan": Suite("pytest -n0 -rA", before=("export PYTHONPATH=${PYTHONPATH:-}:$(pwd)",)),
    "dask/dask": Suite("pytest -n0 -rA --color=no"),
    "facebookresearch/hydra": Suite("pytest -rA --tb=long"),
    "getmoto/moto": Suite("pytest -n0 -rA"),
    "iterative/dvc": Suite("pytest -rA"),
    "modin-project/modin": Suite("pytest -n0 -rA"),
    "pandas-dev/pandas": Suite("pytest -rA --tb=long", before=(_BUILD,)),
    "project-monai/monai": Suite("pytest -rA"),
    "pydantic/pydantic": Suite(
        "pytest -rA --tb=short -vv -o console_output_style=classic --no-header", log_parser="parse_log_pytest_v2"
    ),
    "python/mypy": Suite("pytest -n0 -rA"),
}


def to_task(row: Mapping[str, Any], split: str = "") -> Task:
    """The task of a row in either schema; what a row of the first lacks is filled in.

    Raises:
        DataError: a field is missing or of another kind, or the repository's test command is not known.
    """
    if missing := [name for name in NEEDED if row.get(name) in (None, "")]:
        raise DataError(f"task {row.get('instance_id', '?')}: the row lacks {', '.join(missing)}")
    fields = {name: row[name] for name in NEEDED}
    fields |= {name: _test_ids(row, name) for name in ("FAIL_TO_PASS", "PASS_TO_PASS")}
    fields["version"] = str(row["version"])
    return Task(**fields, **_added(row | fields), split=split)


def _added(row: Mapping[str, Any]) -> dict[str, str]:
    """The fields of `ADDED`, the row's own where it has them."""
    own = {name: row[name] for name in ADDED if row.get(name)}
    if len(own) == len(ADDED):
        return own
    suite = REPOSITORIES.get(row["repo"].lower())
    if suite is None:
        lacking = ", ".join(name for name in ADDED if name not in own)
        raise DataError(
            f"task {row['instance_id']}: the row lacks {lacking}, and how {row['repo']} is tested is not known; "
            "take rows of swebench 5's schema (SWE-bench/SWE-bench_Verified has it)"
        )
    made = {
        "image": image(row["instance_id"]),
        "eval_script": eval_script(row, suite),
        "log_parser": suite.log_parser,
        "eval_type": "pass_and_fail",
    }
    return made | own


def image(instance_id: str) -> str:
    """The image that SWE-Gym's authors published for an instance (Docker Hub allows no double underscore)."""
    return f"xingyaoww/sweb.eval.x86_64.{instance_id}:latest".lower().replace("__", "_s_")


def _test_ids(row: Mapping[str, Any], name: str) -> tuple[str, ...]:
    """Ids of tests: a list, or the JSON of one."""
    value = row[name]
    try:
        ids = json.loads(value) if isinstance(value, str) else list(value)
    except (json.JSONDecodeError, TypeError) as error:
        raise DataError(f"task {row['instance_id']}: {name} is no list of tests ({error})") from error
    if not isinstance(ids, list) or not all(isinstance(test, str) for test in ids):
        raise DataError(f"task {row['instance_id']}: {name} is no list of tests")
    return tuple(ids)


# --- the script ---------------------------------------------------------------------------------------------------


def eval_script(row: Mapping[str, Any], suite: Suite) -> str:
    """Restores the test files, applies the test patch and runs the tests between swebench's markers.

    Files that the patch adds are removed and the others checked out, each in a command of its own: `git checkout`
    does nothing at all when one of its paths does not exist in the commit.
    """
    files = _files(row["test_patch"])
    changed, added = [old for old, _ in files if old], [new for old, new in files if new and new != old]
    reset = [f"git checkout {row['base_commit']} {_quoted(changed)}"] if changed else []
    reset += [f"rm -f {_quoted(added)}"] if added else []
    return "\n".join(
        [
            "#!/bin/bash",
            "set -uxo pipefail",
            "set +u",  # as in the fork: pandas' images have hooks of conda that read variables which are not set
            "source /opt/miniconda3/bin/activate",
            "conda activate testbed",
            "cd /testbed",
            "git config --global --add safe.directory /testbed",
            *suite.before,
            *reset,
            f"git apply -v - <<'{HEREDOC}'",
            row["test_patch"].rstrip("\n"),
            HEREDOC,
            f": '{START}'",
            f"{suite.command} {_selection(row)}",
            f": '{END}'",
            *reset,
            "",
        ]
    )


_FILE = re.compile(r"^diff --git a/(.*) b/(.*)$", re.MULTILINE)


def _files(patch: str) -> list[tuple[str, str]]:
    """(old, new) path of each file of a patch; an empty one where the file is added or deleted."""
    found = list(_FILE.finditer(patch))
    ends = [*(match.start() for match in found[1:]), len(patch)]
    pairs = []
    for match, end in zip(found, ends, strict=True):
        old, new = match.groups()
        head = patch[match.end() : end].partition("\n@@")[0]
        pairs.append(("" if "\nnew file mode" in head else old, "" if "\ndeleted file mode" in head else new))
    return pairs


def _selection(row: Mapping[str, Any]) -> str:
    """What pytest is told to run: the test files of the patch; of mypy's data-driven suites the cases in the patch."""
    cases = re.findall(r"\[case ([^\]]+)\]", row["test_patch"]) if row["repo"].lower() == "python/mypy" else []
    files = [new for _, new in _files(row["test_patch"]) if new and not new.endswith((*DATA_FILES, ".test"))]
    if cases or not files:
        files = sorted({test.partition("::")[0] for test in (*row["FAIL_TO_PASS"], *row["PASS_TO_PASS"])})
    chosen = [f"-k {shlex.quote(' or '.join(dict.fromkeys(cases)))}"] if cases else []
    return " ".join([*chosen, _quoted(files)])


def _quoted(paths: Sequence[str]) -> str:
    return " ".join(shlex.quote(path) for path in dict.fromkeys(paths))
