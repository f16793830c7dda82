"""How model families read a chat with tools and how they write a call, to and from the canonical form.

A chat in canonical form (`scaffold.messages_before`) is rendered for a model in its own style, and the message
that it answers is read back to an `Action`, which is then rendered again for the student. The styles are

* native: the API's own `tools` and `tool_calls`; the server knows the model's template and parser;
* hermes: `<tool_call>` with a JSON object inside (Qwen3 and others);
* qwen3_coder: `<tool_call><function=name><parameter=name>` with the values as plain text between the tags;
* text: a fenced block of JSON, for models that were never taught to call tools.

The last three are written into ordinary messages, so that they work with any server, also one that has no parser
for the model, and a call that does not parse is seen word for word. Tags and places are those of the models'
own chat templates; the sentences around them are ours.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from dagger_nb import scaffold
from dagger_nb.records import Action

NATIVE = "native"
Message = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Written:
    """A style that is written into ordinary messages: how tools are announced, a call is written and read, and what
    a tool answered is shown."""

    announcement: str
    write: Callable[[Mapping[str, Any]], str]
    read: Callable[[str], Action]
    observation: str = "<tool_response>\n{}\n</tool_response>"


def render(chat: Sequence[Mapping[str, Any]], style: str) -> list[Message]:
    """A canonical chat as the messages of a request in `style`.

    >>> render([{"role": "user", "content": "?"}, {"role": "tool", "content": "a.py"}], "hermes")[1]
    {'role': 'user', 'content': '<tool_response>\\na.py\\n</tool_response>'}
    """
    return list(_native(chat) if style == NATIVE else _written(chat, WRITTEN[style]))


def tools(style: str) -> tuple[Mapping[str, Any], ...]:
    """The tools of a request: the scaffold's where the API carries them, none where the messages do."""
    return scaffold.TOOLS if style == NATIVE else ()


def read(message: Mapping[str, Any], style: str) -> Action:
    """The canonical action of the message that a model answered; malformed where it is not one call that fits.

    A server may parse calls also where it was not asked to: `tool_calls` are read in every style. Reasoning that
    ends in `</think>` is no part of the action.
    """
    content = _sound(_text(message.get("content"))).rpartition("</think>")[2]
    if message.get("tool_calls") or style == NATIVE:
        return _read_native(content, message.get("tool_calls") or [])
    return WRITTEN[style].read(content)


def _text(content: Any) -> str:
    """The text of a reply; of one in parts, as some servers of reasoning models send, the parts that are text."""
    if isinstance(content, list):
        texts = (part.get("text") for part in content if isinstance(part, Mapping))
        return "".join(text for text in texts if isinstance(text, str))
    return content if isinstance(content, str) else ""


def fitting(message: Mapping[str, Any]) -> str:
    """The first style in which a message is a well-formed action, or an empty text."""
    return next((style for style in (NATIVE, *WRITTEN) if not read(message, style).malformed), "")


# --- native -----------------------------------------------------------------------------------------------


def _native(chat: Sequence[Mapping[str, Any]]) -> Iterator[Message]:
    call_id = ""
    for place, message in enumerate(chat):
        if message.get("tool_calls"):
            call_id = f"call{place:05}"  # nine letters and digits, as the strictest servers want them
            yield _native_call(message, call_id)
        elif message["role"] == "tool" and call_id:
            yield {"role": "tool", "tool_call_id": call_id, "content": message["content"]}
            call_id = ""
        elif message["role"] == "tool":  # the answer to a malformed reply: there is no call that it belongs to
            yield {"role": "user", "content": message["content"]}
        else:
            yield _plain(message)


def _native_call(message: Mapping[str, Any], call_id: str) -> Message:
    function = message["tool_calls"][0]["function"]
    arguments = json.dumps(function["arguments"], ensure_ascii=False)
    call = {"id": call_id, "type": "function", "function": {"name": function["name"], "arguments": arguments}}
    return {"role": "assistant", "content": message["content"], "tool_calls": [call]}


def _plain(message: Mapping[str, Any]) -> Message:
    """A message as it is; no server takes an empty reply in the history."""
    return {"role": message["role"], "content": message["content"] or "(nothing)"}


def _read_native(content: str, calls: Sequence[Mapping[str, Any]]) -> Action:
    raw = content + "".join(json.dumps(call, ensure_ascii=False) for call in calls)
    if len(calls) != 1:
        return _malformed(raw, f"{'more than one' if calls else 'no'} tool call in the reply")
    function = calls[0].get("function") or {}
    arguments = function.get("arguments") or "{}"
    return _from_json(content, function.get("name"), arguments, raw)


# --- written into messages --------------------------------------------------------------------------------


def _written(chat: Sequence[Mapping[str, Any]], style: Written) -> Iterator[Message]:
    for message in chat:
        if message["role"] == "system":
            yield {"role": "system", "content": f"{message['content']}\n\n{style.announcement}"}
        elif message["role"] == "tool":
            yield {"role": "user", "content": style.observation.format(message["content"])}
        elif message.get("tool_calls"):
            call = style.write(message["tool_calls"][0]["function"])
            yield {"role": "assistant", "content": f"{message['content']}\n{call}".lstrip("\n")}
        else:
            yield _plain(message)


def _schemas() -> str:
    return "\n".join(json.dumps(tool) for tool in scaffold.TOOLS)


def _write_hermes(function: Mapping[str, Any]) -> str:
    return f"<tool_call>\n{json.dumps(function, ensure_ascii=False)}\n</tool_call>"


def _read_hermes(text: str) -> Action:
    action = scaffold.parse(text)
    return replace(action, thought=_thought(action.thought))


def _write_coder(function: Mapping[str, Any]) -> str:
    values = "".join(
        f"<parameter={name}>\n{value if isinstance(value, str) else json.dumps(value)}\n</parameter>\n"
        for name, value in function["arguments"].items()
    )
    return f"<tool_call>\n<function={function['name']}>\n{values}</function>\n</tool_call>"


def _write_text(function: Mapping[str, Any]) -> str:
    return f"```json\n{json.dumps(function, ensure_ascii=False)}\n```"


# A value may hold the closing tags: it ends at the last one before the next parameter or the end.
_FUNCTION = re.compile(r"<function=([^>\n]*)>(.*?)</function>\s*(?=</tool_call>|<tool_call>|<function=|\Z)", re.DOTALL)
_PARAMETER = re.compile(r"<parameter=([^>\n]*)>\n?(.*?)\n?</parameter>\s*(?=<parameter=|\Z)", re.DOTALL)
_TAG = re.compile(r"</?tool_call>")
_FENCE = re.compile(r"^```(?:json)?[ \t]*\n(.*?)\n```[ \t]*$", re.DOTALL | re.MULTILINE)


def _read_coder(text: str) -> Action:
    calls = list(_FUNCTION.finditer(text))
    if len(calls) != 1:
        return _malformed(text, f"{'more than one' if calls else 'no'} <function=...> in the reply")
    name, body = calls[0][1].strip(), calls[0][2]
    arguments = {key.strip(): _value(name, key.strip(), value) for key, value in _PARAMETER.findall(body)}
    return _checked(text[: calls[0].start()], name, arguments, text)


def _value(tool: str, parameter: str, value: str) -> Any:
    """A parameter's value by its type in the schema; as text where it is text, unknown, or not of its type."""
    if _TYPES.get((tool, parameter), "string") == "string":
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError):
        return value


_TYPES = {
    (tool["function"]["name"], name): schema["type"]
    for tool in scaffold.TOOLS
    for name, schema in tool["function"]["parameters"]["properties"].items()
}


def _read_text(text: str) -> Action:
    calls = list(_FENCE.finditer(text))
    if len(calls) != 1:
        return _malformed(text, f"{'more than one' if calls else 'no'} fenced block in the reply")
    thought = text[: calls[0].start()]
    try:
        call = json.loads(calls[0][1])
    except (ValueError, RecursionError):
        return _malformed(text, "the fenced block is not valid JSON")
    if not isinstance(call, dict):
        return _malformed(text, "the fenced block is not an object with name and arguments")
    return _from_json(thought, call.get("name"), call.get("arguments", {}), text)


def _from_json(thought: str, name: Any, arguments: Any, raw: str) -> Action:
    """The action of a call whose arguments are an object, or the JSON of one."""
    try:
        found = json.loads(arguments) if isinstance(arguments, str) else arguments
    except (ValueError, RecursionError):
        return _malformed(raw, "the arguments are not valid JSON")
    if not isinstance(found, dict):
        return _malformed(raw, "the arguments are not an object")
    return _checked(thought, name, found, raw)


def _checked(said: str, name: Any, arguments: Mapping[str, Any], raw: str) -> Action:
    """The action of a call and of what was said before it."""
    try:
        json.dumps(arguments, ensure_ascii=False).encode()
    except ValueError:  # half a surrogate pair is no text that can be kept
        return _malformed(raw, "the arguments are not valid text")
    return scaffold.canonical_action(_thought(said), name, arguments, raw)


def _thought(said: str) -> str:
    """What was said before a call, up to a stray tag of one, which no student should learn to write."""
    return _TAG.split(said, maxsplit=1)[0].strip()


def _malformed(raw: str, error: str) -> Action:
    return Action(thought="", tool="", raw=_sound(raw), error=error)


def _sound(text: str) -> str:
    """The text with each half of a surrogate pair, which JSON can carry and no file can keep, made a question mark."""
    return text.encode(errors="replace").decode()


_ONE_CALL = "Each turn ends with exactly one call, written like this, and nothing after it:\n"

WRITTEN: Mapping[str, Written] = {
    "hermes": Written(
        f"# Tools\n\nThe signatures of the functions are within <tools></tools>:\n<tools>\n{_schemas()}\n</tools>\n\n"
        f'{_ONE_CALL}<tool_call>\n{{"name": <function-name>, "arguments": <args-json-object>}}\n</tool_call>',
        _write_hermes,
        _read_hermes,
    ),
    "qwen3_coder": Written(
        f"# Tools\n\nThe signatures of the functions are within <tools></tools>:\n<tools>\n{_schemas()}\n</tools>\n\n"
        f"{_ONE_CALL}<tool_call>\n<function=function_name>\n<parameter=parameter_name>\nvalue, which may span lines\n"
        "</parameter>\n</function>\n</tool_call>",
        _write_coder,
        _read_coder,
    ),
    "text": Written(
        f"You have these tools (JSON schemas, one a line):\n{_schemas()}\n\n"
        f'{_ONE_CALL}```json\n{{"name": "execute_bash", "arguments": {{"command": "ls"}}}}\n```',
        _write_text,
        _read_text,
        observation="Observation:\n{}",
    ),
}
