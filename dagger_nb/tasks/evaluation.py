"""The fields that swebench's harness reads: the image's name and the script that grades a tree."""

from __future__ import annotations

from collections.abc import Sequence

START, END = ">>>>> Start Test Output", ">>>>> End Test Output"
HEREDOC = "EOF_114329324912"  # the word that swebench's own scripts use


def image(instance_id: str) -> str:
    """The name that swebench derives for an instance, in this project's namespace."""
    return f"dagger-nb/sweb.eval.x86_64.{instance_id}:latest".lower().replace("__", "_1776_")


def eval_script(base_commit: str, tests: Sequence[str], hidden: Sequence[str], test_patch: str) -> str:
    """Restores the tests and pytest.ini, adds the hidden tests, and runs both.

    `-rA` prints one line a test that `parse_log_pytest` reads; `bash -x` prints the markers, which
    is why they stand behind a colon.
    """
    return "\n".join(
        [
            "#!/bin/bash",
            "set -uxo pipefail",
            "cd /testbed",
            f"git checkout {base_commit} pytest.ini {' '.join(tests)}",
            f"rm -f {' '.join(hidden)}",
            f"git apply -v - <<'{HEREDOC}'",
            test_patch + HEREDOC,
            "export PYTEST_DISABLE_PLUGIN_AUTOLOAD=1",
            f": '{START}'",
            f"python -m pytest -rA --noconftest -c pytest.ini {' '.join(sorted([*tests, *hidden]))}",
            f": '{END}'",
            f"git checkout {base_commit} {' '.join(tests)}",
            f"rm -f {' '.join(hidden)}",
            "",
        ]
    )
