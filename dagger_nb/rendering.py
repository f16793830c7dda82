"""From chats to token ids, by the model's own chat template, in segments that only ever grow.

An episode is a list of segments: the prompt, then for each turn the ids of the action (as sampled, ending
with the end-of-turn token) and the ids of what follows it up to the next place where the model speaks.
Because a segment is never rendered again, what was trained on, what was rolled out and the KV cache agree.
A template that rewrites earlier turns (as Qwen3's stock one drops earlier thinking) is refused.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

from dagger_nb import scaffold
from dagger_nb.errors import DataError
from dagger_nb.records import Action, Task

_CALL = scaffold.action_message(Action("Well.", "execute_bash", {"command": "ls"}))
_PROBE = [{"role": "user", "content": "?"}, *[_CALL, scaffold.observation_message("x")] * 2]


class Renderer:
    """Renders tasks, actions and observations for one tokenizer (a transformers tokenizer with a chat template)."""

    def __init__(self, tokenizer: Any, tools: Sequence[Mapping[str, Any]] = scaffold.TOOLS) -> None:
        if not getattr(tokenizer, "chat_template", None):
            raise DataError("the tokenizer has no chat template; use a chat model or set tokenizer.chat_template")
        self.tokenizer = tokenizer
        self.tools = [dict(tool) for tool in tools]
        self.end_id: int = tokenizer.eos_token_id
        self.template_hash = hashlib.sha256(tokenizer.chat_template.encode()).hexdigest()[:16]
        self.check_prefix(_PROBE)

    def prompt_ids(self, task: Task) -> tuple[int, ...]:
        """System prompt, tools, problem statement and the generation prompt."""
        return self._ids(self._text(scaffold.initial_messages(task), speak=True))

    def request_ids(self, request: str) -> tuple[int, ...]:
        """A chat that is one user message, without system prompt or tools, and the generation prompt."""
        return self._ids(self._text([{"role": "user", "content": request}], speak=True))

    def action_text(self, action: Action) -> str:
        """What the model says for an action, end-of-turn token excluded."""
        if action.malformed:
            return action.raw
        probe = [{"role": "user", "content": "?"}]
        before = self._text(probe, speak=True)
        text = self._after(before, self._text([*probe, scaffold.action_message(action)], speak=False))
        return text[: text.rindex(self.tokenizer.eos_token)]

    def action_ids(self, action: Action) -> tuple[int, ...]:
        """Ids of an action as a label: its text and the end-of-turn token."""
        return (*self._ids(self.action_text(action)), self.end_id)

    def observation_ids(self, observation: str) -> tuple[int, ...]:
        """Ids between an action's end-of-turn token and the place where the model speaks next."""
        said = [{"role": "user", "content": "?"}, {"role": "assistant", "content": "!"}]
        before = self._text(said, speak=False)
        head = before[: before.rindex(self.tokenizer.eos_token) + len(self.tokenizer.eos_token)]
        after = self._text([*said, scaffold.observation_message(observation)], speak=True)
        return self._ids(self._after(head, after))

    def parse(self, token_ids: Sequence[int]) -> Action:
        """The action that sampled ids mean (with or without the end-of-turn token)."""
        ids = [i for i in token_ids if i != self.end_id]
        return scaffold.parse(self.tokenizer.decode(ids, skip_special_tokens=False))

    def means(self, token_ids: Sequence[int], action: Action) -> bool:
        """Whether ids, had they been sampled, would be executed as `action`: sampling stops at the first end of a turn.

        Not every call can be said: a text with the format's own tags in it cannot, nor one that the tokenizer changes.
        """
        ids = tuple(token_ids)
        return self.end_id in ids and self.parse(ids[: ids.index(self.end_id)]).same_call(action)

    def check_prefix(self, messages: Sequence[Mapping[str, Any]]) -> None:
        """Raise DataError where the rendering of a chat's beginning is not a prefix of the rendering of the chat."""
        whole = self._text(messages, speak=False)
        for length in range(1, len(messages)):
            if messages[length - 1]["role"] != "system" and not whole.startswith(
                self._text(messages[:length], speak=False)
            ):
                raise DataError(
                    f"the chat template rewrites earlier messages (from message {length}); use a prefix-preserving one"
                )

    def _text(self, messages: Sequence[Mapping[str, Any]], *, speak: bool) -> str:
        return self.tokenizer.apply_chat_template(
            list(messages), tools=self.tools, tokenize=False, add_generation_prompt=speak
        )

    def _after(self, before: str, text: str) -> str:
        if not text.startswith(before):
            raise DataError(
                "the chat template does not keep earlier messages as they were; use a prefix-preserving one"
            )
        return text[len(before) :]

    def _ids(self, text: str) -> tuple[int, ...]:
        return tuple(self.tokenizer.encode(text, add_special_tokens=False))
