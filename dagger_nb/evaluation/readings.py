"""What one turn did, judged by its action and observation alone, for any agent of the scaffold."""

from __future__ import annotations

import re

from dagger_nb.policies.history import command, failed_call
from dagger_nb.records import Action, Turn

_FULL_TEST_RUN = re.compile(r"(cd /testbed\s*(&&|;)\s*)?(python3? -m )?pytest(\s+-{1,2}[\w=-]+)*")
_SUMMARY = re.compile(r"^=*\s*\d+ (passed|failed|errors?|skipped)\b.*", re.MULTILINE)
_RED = re.compile(r"\b[1-9]\d* (failed|errors?)\b")
_CHANGES = re.compile(r"\bsed\s+(-\w*i|--in-place)|\bgit\s+(checkout|restore|reset|apply|stash|clean|revert)\b"
                      r"|(?<![0-9&<=-])>{1,2}(?!\s*(/dev/null|&))|\b(mv|cp|rm|tee|patch|truncate|touch)\s")  # fmt: skip


def is_edit(turn: Turn) -> bool:
    """Whether the turn changed files: an editor command but `view` that worked, or a bash command that writes.

    Bash is judged by its text (sed -i, redirections, git checkout, mv, ...), so a script that writes files
    under another name is missed.
    """
    if turn.action.tool == "str_replace_editor":
        return turn.action.arguments.get("command") != "view" and not failed_call(turn)
    return bool(_CHANGES.search(command(turn)))


def is_full_test_run(turn: Turn) -> bool:
    """Whether the turn ran all visible tests to an end: pytest without a path, and a summary in the output."""
    return bool(_FULL_TEST_RUN.fullmatch(command(turn).strip()) and _SUMMARY.search(turn.observation))


def shows_failures(turn: Turn) -> bool:
    """Whether the last summary line of a test run counts failures or errors."""
    summaries = [match[0] for match in _SUMMARY.finditer(turn.observation)]
    return bool(summaries and _RED.search(summaries[-1]))


def same_reply(a: Action, b: Action) -> bool:
    """Whether two replies are the same call, or the same malformed text."""
    return a.raw == b.raw if a.malformed and b.malformed else a.same_call(b)
