"""What keeps a patch from grading itself.

Before the tests run, everything that decides which tests run and what counts as passing is put back as
it was at base_commit (`PROTECTED`), and modules that would stand in for pytest or the standard library
are removed (`SHADOWS`). With the tests run canaries: tests of unpredictable names that must fail. They
run whatever a suite selects by `-k` and whatever names its configuration gives to tests.

Covered: edited, deleted or added tests, conftest.py and pytest configuration; interpreter start-up
files; entry points that pytest would load as plugins; modules shadowing pytest; code of the package
that, once imported, makes every test pass, ends the process early or prints results of its own.
Not covered: code that behaves differently for the expected tests only, such as objects equal to
everything, and code written against this very grader that finds the canaries at run time and spares
them (a selection by `-k` names them a second time on pytest's command line). The tests and the code under
test share one process; only reading the patch helps there. Nothing of all this holds for tests that do not
run under pytest, which swebench's command line judges (`official`): there a patch may also edit the tests
that the instance's own script does not put back, and print results.
"""

from __future__ import annotations

import random
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass

# One extended regular expression a line, matched against paths relative to the repository.
PROTECTED = (
    r"(^|/)(tests?|test-data)/",  # mypy's cases and the stubs that they see are in test-data
    r"(^|/)(test_[^/]*|[^/]*_test)\.py(/|$)",
    r"(^|/)conftest\.py(/|$)",
    r"(^|/)(\.?pytest\.(ini|toml)|tox\.ini|setup\.cfg|pyproject\.toml)(/|$)",
    r"(^|/)(sitecustomize|usercustomize)([./]|$)",
    r"(^|/)[^/]*\.(pyc|pyo|pth)(/|$)",
    r"(^|/)[^/]*\.(dist|egg)-info(/|$)",  # their entry points would load as pytest plugins
)

_RUNNER = ("pytest", "_pytest", "py", "pluggy", "iniconfig", "packaging", "pygments", "exceptiongroup", "tomli")

# Only modules at the top: the repository's root comes first on the import path of `python -m pytest`.
SHADOWS = (rf"^({'|'.join(sorted({*_RUNNER, *sys.stdlib_module_names}))})(/|\.py$|([.][^/]*)?\.so$)",)

PATCH_FAILED, UNPROTECTED = 9, 8  # exit codes of the script below; pytest's own end at 5

_PREPARE = r"""
set -u -o pipefail
work=$1
cat > "$work/protected" <<'END'
{protected}
END
cat > "$work/shadows" <<'END'
{shadows}
END
others() {{ git ls-files -z --others | LC_ALL=C sort -z; }}
added() {{ others | LC_ALL=C comm -z -13 "$work/before" -; }}
matching() {{ grep -zE -f "$work/$1" || [ $? -eq 1 ]; }}
say() {{ tr '\0' '\n' | sed "s/^/$1 /"; }}
git_files() {{
  (cd .git && find config config.worktree commondir hooks info -printf '%p %y %l\n' -type f -exec sha256sum {{}} +) \
    2> /dev/null | LC_ALL=C sort
}}
unspoilt() {{ [ "$(git_files)" = "$(cat "$work/git_files")" ] || {{ echo "the patch writes into .git"; return 1; }}; }}

apply() {{
  {attempts}
  unspoilt && git apply --check --reverse "$work/patch"
}}
remove_added() {{
  added | matching protected > "$work/gone" || return 1
  added | matching shadows | while IFS= read -r -d '' path; do
    [ -n "$(git ls-tree HEAD -- "${{path%%/*}}")" ] || printf '%s\0' "$path"
  done >> "$work/gone" || return 1
  xargs -0r rm -rf -- < "$work/gone"
}}
restore_changed() {{
  git ls-files -z --modified | LC_ALL=C sort -zu | matching protected > "$work/changed" || return 1
  xargs -0r git checkout -q HEAD -- < "$work/changed"
}}

git_files > "$work/git_files"
others > "$work/before" || exit {unprotected}
apply > "$work/applied" 2>&1 || {{ tail -n 20 "$work/applied"; exit {patch_failed}; }}
unspoilt && git reset -q && remove_added && restore_changed || exit {unprotected}
say removed < "$work/gone"
say restored < "$work/changed"
"""


def prepare_script(apply_commands: Sequence[str]) -> str:
    """The bash script that applies the file `patch` of its folder $1 and then protects the tree it runs in.

    No code of the patch runs in it: a patch that gives git's own files new contents is refused before git is asked
    again. `apply_commands` are tried in turn, each on a clean tree, as swebench does. What was there before the patch
    and is not tracked (an installed package's metadata, built extensions) is left alone. Exit code: 0, PATCH_FAILED
    or UNPROTECTED; prints what it put back.
    """
    retry = "\n  unspoilt || return 1\n  git reset -q --hard; git clean -fdq\n  "
    attempts = retry.join(f'{command} "$work/patch" && return' for command in apply_commands)
    patterns = {"protected": "\n".join(PROTECTED), "shadows": "\n".join(SHADOWS)}
    return _PREPARE.format(attempts=attempts, patch_failed=PATCH_FAILED, unprotected=UNPROTECTED, **patterns)


@dataclass(frozen=True, slots=True)
class Canaries:
    """A test file that must fail: its path, its text and the pytest ids of its tests."""

    path: str
    text: str
    ids: tuple[str, ...]

    def join(self, command: str) -> str:
        """The pytest command with the canaries' file; a selection by -k, of which the last counts, admits it too.

        >>> Canaries("t/test_x.py", "", ()).join("pytest -k 'a or b' t")
        "pytest -k 'a or b' t t/test_x.py -k '(a or b) or test_x'"
        """
        chosen = _selection(command)
        name = self.path.rpartition("/")[2].removesuffix(".py")
        return " ".join([command, self.path, *([f"-k {shlex.quote(f'({chosen}) or {name}')}"] if chosen else [])])


def _selection(command: str) -> str:
    """The expression of the last -k of a command; empty where there is none."""
    words = shlex.split(command)
    pairs = zip(words, [*words[1:], ""], strict=True)
    found = [after if word == "-k" else word[2:] for word, after in pairs if word.startswith("-k")]
    return found[-1] if found else ""


def draw_canaries(folder: str, rng: random.Random) -> Canaries:
    """Canaries for `folder` (relative; "" is the root) of random names: a failing assertion and an exception.

    `__test__` makes pytest collect them also where its configuration takes no function for a test, as mypy's does.
    """
    path = f"{folder}/test_{_word(rng)}_{_word(rng)}.py".removeprefix("/")
    first, second = f"test_{_word(rng)}", f"test_{_word(rng)}"
    low, high = rng.randrange(1000), rng.randrange(1000, 2000)
    text = (
        f"def {first}():\n    value = {low}\n    assert value == {high}\n\n\n"
        f"def {second}():\n    raise ValueError({high})\n\n\n{first}.__test__ = {second}.__test__ = True\n"
    )
    return Canaries(path, text, (f"{path}::{first}", f"{path}::{second}"))


def _word(rng: random.Random) -> str:
    return "".join(rng.choice("bdfgklmnprstv") + rng.choice("aeiou") for _ in range(5))
