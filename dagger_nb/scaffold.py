"""The agent's side of the environment: three tools, their schemas, parsing, and execution.

The tools are those of the paper's OpenHands-like scaffold: `execute_bash`, `str_replace_editor` (view,
create, str_replace, insert) and `finish`. A model's reply is parsed to one canonical `Action`; an Action
is run against any `Sandbox` and gives the observation that the model reads next. Observations of failed
tool calls begin with `ERROR`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from dagger_nb.records import Action, Task, Turn
from dagger_nb.sandboxes.protocol import Sandbox
from dagger_nb.settings import EpisodeSettings

SYSTEM_PROMPT = "You repair the repository in /testbed. Each turn: a short thought, then one tool call."

OBSERVATION_CHARS = EpisodeSettings().observation_chars


def _tool(name: str, description: str, properties: dict[str, Any], required: list[str]) -> dict[str, Any]:
    parameters = {"type": "object", "properties": properties, "required": required}
    return {"type": "function", "function": {"name": name, "description": description, "parameters": parameters}}


_STRING = {"type": "string"}
_INTEGER = {"type": "integer"}

TOOLS: tuple[dict[str, Any], ...] = (
    _tool("execute_bash", "Run a bash command in /testbed.", {"command": _STRING}, ["command"]),
    _tool(
        "str_replace_editor",
        "View or edit a file.",
        {
            "command": {"type": "string", "enum": ["view", "create", "str_replace", "insert"]},
            "path": _STRING,
            "view_range": {"type": "array", "items": _INTEGER},
            "file_text": _STRING,
            "old_str": _STRING,
            "new_str": _STRING,
            "insert_line": _INTEGER,
        },
        ["command", "path"],
    ),
    _tool("finish", "Submit the work.", {}, []),
)

_ARGUMENTS: Mapping[str, Mapping[str, type]] = {
    "execute_bash": {"command": str},
    "str_replace_editor": {
        "command": str,
        "path": str,
        "view_range": list,
        "file_text": str,
        "old_str": str,
        "new_str": str,
        "insert_line": int,
    },
    "finish": {},
}


# --- messages ---------------------------------------------------------------------------------------------


def initial_messages(task: Task) -> list[dict[str, Any]]:
    """The chat before the first turn: system prompt and problem statement."""
    return [{"role": "system", "content": SYSTEM_PROMPT}, {"role": "user", "content": task.problem_statement}]


def action_message(action: Action) -> dict[str, Any]:
    """The assistant's message of an action, arguments in the schema's order; a malformed reply word for word."""
    if action.malformed:
        return {"role": "assistant", "content": action.raw}
    ordered = {name: action.arguments[name] for name in _ARGUMENTS[action.tool] if name in action.arguments}
    function = {"name": action.tool, "arguments": ordered}
    return {
        "role": "assistant",
        "content": action.thought,
        "tool_calls": [{"type": "function", "function": function}],
    }


def observation_message(observation: str) -> dict[str, Any]:
    return {"role": "tool", "content": observation}


def messages_before(task: Task, turns: Sequence[Turn]) -> list[dict[str, Any]]:
    """The chat that the state after `turns` shows to a policy."""
    messages = initial_messages(task)
    for turn in turns:
        messages += [action_message(turn.action), observation_message(turn.observation)]
    return messages


# --- parsing ----------------------------------------------------------------------------------------------

_CALL = re.compile(r"<tool_call>\s*(.*?)\s*</tool_call>", re.DOTALL)


def parse(text: str) -> Action:
    """The canonical action of a reply in Hermes format: a thought, then one `<tool_call>` with JSON inside.

    Never raises: a reply that does not parse becomes a malformed Action that keeps the text.

    >>> parse('Run it.<tool_call>\\n{"name": "execute_bash", "arguments": {"command": "ls"}}\\n</tool_call>').tool
    'execute_bash'
    >>> parse('I give up').error
    'no <tool_call> in the reply'
    """
    calls = _CALL.findall(text)
    if len(calls) != 1:
        return _malformed(text, f"{'more than one' if calls else 'no'} <tool_call> in the reply")
    try:
        call = json.loads(calls[0])
        json.dumps(call, ensure_ascii=False).encode()  # half a surrogate pair is no text that can be kept
    except (ValueError, RecursionError):
        return _malformed(text, "the tool call is not valid JSON")
    if not isinstance(call, dict) or not isinstance(call.get("arguments", {}), dict):
        return _malformed(text, "the tool call is not an object with name and arguments")
    thought = text[: text.index("<tool_call>")].strip()
    return canonical_action(thought, call.get("name"), call.get("arguments", {}), text)


def canonical_action(thought: str, tool: Any, arguments: Mapping[str, Any], raw: str) -> Action:
    """The action of a call that any format carried, or a malformed one where the call breaks the schema."""
    if not isinstance(tool, str) or tool not in _ARGUMENTS:
        return _malformed(raw, f"unknown tool {tool!r}; the tools are {', '.join(_ARGUMENTS)}")
    allowed = _ARGUMENTS[tool]
    for name, value in arguments.items():
        if name not in allowed:
            return _malformed(raw, f"{tool} has no argument {name!r}")
        if not isinstance(value, allowed[name]) or isinstance(value, bool):
            return _malformed(raw, f"{tool}: {name} must be of type {allowed[name].__name__}")
    required = {"execute_bash": ("command",), "str_replace_editor": ("command", "path")}.get(tool, ())
    missing = [name for name in required if name not in arguments]
    if missing:
        return _malformed(raw, f"{tool} needs {', '.join(missing)}")
    return Action(thought=thought, tool=tool, arguments=dict(arguments))


def _malformed(raw: str, error: str) -> Action:
    return Action(thought="", tool="", raw=raw, error=error)


# --- execution --------------------------------------------------------------------------------------------


def execute(action: Action, sandbox: Sandbox, *, timeout_s: float | None = None, chars: int = OBSERVATION_CHARS) -> str:
    """Run an action and return its observation.

    Args:
        timeout_s: wall-clock limit of one command, seconds; None for the sandbox's own.
        chars: how many characters of an output or a file are shown; the middle of a longer one is cut, and marked.

    Raises:
        SandboxError: the sandbox itself failed.
    """
    if action.malformed:
        return f"ERROR: {action.error}"
    if action.tool == "finish":
        return ""
    if action.tool == "execute_bash":
        return _bash(action.arguments["command"], sandbox, timeout_s, chars)
    return _clip(_edit(action.arguments, sandbox), chars)


def _bash(command: str, sandbox: Sandbox, timeout_s: float | None, chars: int) -> str:
    result = sandbox.run(command, timeout_s)
    body = _clip(result.output.rstrip("\n"), chars)
    if result.timed_out:
        return f"{body}\nERROR: timed out".lstrip("\n")
    if not result.exit_code:
        return body or "(no output)"
    return f"{body}\n[exit {result.exit_code}]".lstrip("\n")


def _edit(arguments: Mapping[str, Any], sandbox: Sandbox) -> str:
    command = _EDITS.get(arguments["command"])
    if command is None:
        return f"ERROR: unknown command {arguments['command']!r}; use {', '.join(_EDITS)}"
    try:
        return command(arguments, sandbox)
    except FileNotFoundError:
        return f"ERROR: no such file {arguments['path']}"
    except IsADirectoryError:
        return f"ERROR: {arguments['path']} is a directory"
    except KeyError as missing:
        return f"ERROR: {arguments['command']} needs {missing.args[0]}"
    except UnicodeDecodeError:
        return f"ERROR: {arguments['path']} is not text"
    except OSError as problem:
        return f"ERROR: {arguments['path']}: {problem.strerror or 'not allowed'}"


def _view(arguments: Mapping[str, Any], sandbox: Sandbox) -> str:
    lines = _lines(sandbox.read(arguments["path"]))
    bounds = arguments.get("view_range", [1, -1])
    if len(bounds) != 2 or not all(type(bound) is int for bound in bounds):
        return "ERROR: view_range must be [first, last]"
    first, last = bounds[0], len(lines) if bounds[1] == -1 else min(bounds[1], len(lines))
    if not 1 <= first <= max(last, 1):
        return f"ERROR: view_range {bounds} is outside the {len(lines)} lines"
    return "\n".join(f"{number} {lines[number - 1]}" for number in range(first, last + 1)) or "(empty file)"


def _create(arguments: Mapping[str, Any], sandbox: Sandbox) -> str:
    sandbox.write(arguments["path"], arguments["file_text"])
    return "File written."


def _str_replace(arguments: Mapping[str, Any], sandbox: Sandbox) -> str:
    text, old, new = sandbox.read(arguments["path"]), arguments["old_str"], arguments["new_str"]
    count = text.count(old) if old else 0
    if count != 1:
        return "ERROR: old_str not found" if not count else f"ERROR: old_str found {count} times"
    if old == new:
        return "ERROR: old_str and new_str are equal"
    sandbox.write(arguments["path"], text.replace(old, new))
    return "File edited."


def _insert(arguments: Mapping[str, Any], sandbox: Sandbox) -> str:
    lines = _lines(sandbox.read(arguments["path"]))
    at = arguments["insert_line"]
    if not 0 <= at <= len(lines):
        return f"ERROR: insert_line {at} is outside 0..{len(lines)}"
    lines.insert(at, arguments["new_str"].rstrip("\n"))
    sandbox.write(arguments["path"], "\n".join(lines) + "\n")
    return "File edited."


def _lines(text: str) -> list[str]:
    """Lines as grep and sed count them: a form feed or a carriage return ends none."""
    lines = text.split("\n")
    return lines if lines[-1] else lines[:-1]


_EDITS: Mapping[str, Callable[[Mapping[str, Any], Sandbox], str]] = {
    "view": _view,
    "create": _create,
    "str_replace": _str_replace,
    "insert": _insert,
}


def _clip(text: str, chars: int) -> str:
    if len(text) <= chars:
        return text
    half = chars // 2
    return f"{text[:half]}\n... {len(text) - 2 * half} characters cut ...\n{text[-half:]}"


def is_loop(turns: Sequence[Turn], repeats: int, *, longest: int = 3) -> bool:
    """Whether the episode ends in `repeats` copies of the same 1 to `longest` turns (actions and observations)."""
    return any(_repeats(turns, period, repeats) for period in range(1, longest + 1))


def _repeats(turns: Sequence[Turn], period: int, repeats: int) -> bool:
    tail = turns[-period * repeats :]
    return len(tail) == period * repeats and all(
        _same_turn(turn, tail[place % period]) for place, turn in enumerate(tail)
    )


def _same_turn(a: Turn, b: Turn) -> bool:
    same = a.action.raw == b.action.raw if a.action.malformed else a.action.same_call(b.action)
    return same and a.observation == b.observation
