"""Whether an endpoint can label at all, found out before hours are spent: one list, and one or two small calls."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dagger_nb import scaffold
from dagger_nb.config import nearest
from dagger_nb.errors import ConfigError
from dagger_nb.policies import styles
from dagger_nb.policies.endpoint import EndpointPolicy, Reply
from dagger_nb.policies.protocol import Sampling

# A state with a past: some servers admit a first call of a tool, and refuse every history that holds one.
PROBE = (
    {"role": "system", "content": scaffold.SYSTEM_PROMPT},
    {
        "role": "user",
        "content": "List the files in /testbed, then print the first, each by a call of execute_bash.",
    },
    scaffold.action_message(scaffold.canonical_action("", "execute_bash", {"command": "ls /testbed"}, "")),
    scaffold.observation_message("README.md\nsetup.py"),
)
GREEDY = Sampling(max_new_tokens=512)


async def check(policy: EndpointPolicy, *, student: str = "", context: int = 0, sampling: Sampling = GREEDY) -> str:
    """Refuse an endpoint that cannot label, and else say what was found. Billed as any call, and kept as any answer.

    Args:
        student: the student's folder or hub id, which must not stand behind the endpoint.
        context: tokens that an episode may have (0: not checked); checked where the server says what it admits.
        sampling: as the run will ask: some servers take no seed or top-p, and some models one temperature alone.

    Raises:
        PolicyError: the server or its key does not work. ConfigError: the model, its context or the way it calls
            tools does not fit, or it is the student. BudgetError: the limits do not admit one call.
    """
    settings = policy.settings
    listed = await policy.listed()
    row = listed.get(settings.path, {})
    if listed and not row:
        known = f"{nearest(settings.path, listed)}; it has {', '.join(sorted(listed)[:20])}"
        raise ConfigError(f"teacher.path = {settings.path!r} is not served at {settings.endpoint}{known}")
    _refuse_student(policy, row, student)
    _refuse_context(policy, row, context)
    _refuse_style(policy, await _said(policy, sampling))
    return f"{policy.name} at {settings.endpoint} calls tools in the style {settings.style!r}"


async def _said(policy: EndpointPolicy, sampling: Sampling) -> Reply:
    """The reply to the probe, asked for anew where the one that is kept calls no tool.

    A model may stumble once, and a server may have been given the right parser since.
    """
    reply, _ = await policy.reply(PROBE, sampling, seed=-1)  # the largest that is sent
    if styles.read(reply["message"], policy.settings.style).malformed:
        reply, _ = await policy.reply(PROBE, sampling, seed=-1, anew=True)
    return reply


def _refuse_student(policy: EndpointPolicy, row: Mapping[str, Any], student: str) -> None:
    served = {str(name).rstrip("/").lower() for name in (policy.settings.path, row.get("root"), row.get("parent"))}
    name = student.rstrip("/").lower()
    snapshot = f"models--{name.replace('/', '--')}/"  # in the path of a hub's model that is served from the cache
    if student and (name in served or any(snapshot in root for root in served)):
        raise ConfigError(
            f"the teacher {policy.name!r} at {policy.settings.endpoint} is the student {student!r}: a student that "
            "labels itself learns nothing; name another teacher"
        )


def _refuse_context(policy: EndpointPolicy, row: Mapping[str, Any], context: int) -> None:
    admitted = row.get("max_model_len")
    if isinstance(admitted, int) and admitted < context:
        raise ConfigError(
            f"{policy.name!r} at {policy.settings.endpoint} reads {admitted} tokens and an episode may have {context}; "
            "start it with a larger context, or lower episode.context"
        )


def _refuse_style(policy: EndpointPolicy, reply: Reply) -> None:
    style, message = policy.settings.style, reply["message"]
    action = styles.read(message, style)
    if not action.malformed:
        return
    better = styles.fitting(message) or ("text" if style != "text" else "")
    advice = f"set teacher.style = {better!r}" if better else "choose a model that follows instructions"
    if reply.get("finish_reason") == "length":
        advice = "its answer was cut off: raise episode.max_new_tokens"
    said = policy.clean(str(message.get("content") or ""))
    raise ConfigError(f"{policy.name} does not call tools in the style {style!r} ({action.error}: {said!r}); {advice}")
