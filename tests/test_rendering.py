"""Chats as token ids: what is said is what is trained on, and a beginning stays a beginning."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest

from dagger_nb import scaffold
from dagger_nb.base import reenact
from dagger_nb.errors import DataError
from dagger_nb.records import Action, StopReason, Trajectory
from dagger_nb.rendering import Renderer
from dagger_nb.tasks import generate
from dagger_nb.training.session import segments

# As Qwen3's own template does, were a tool's answer a user's message: thinking stays only after the last one.
FORGETS_THINKING = """\
{%- set ns = namespace(last=0) -%}
{%- for message in messages -%}
{%- if message.role in ('user', 'tool') -%}{%- set ns.last = loop.index0 -%}{%- endif -%}
{%- endfor -%}
{%- for message in messages -%}
<|im_start|>{{ message.role }}
{% if message.role == 'assistant' and loop.index0 > ns.last %}<think>
</think>
{% endif %}{{ message.content }}<|im_end|>
{% endfor -%}
{%- if add_generation_prompt %}<|im_start|>assistant
{% endif -%}
"""
# Says how far the chat has come, in its first line.
COUNTS_MESSAGES = "{{ messages|length }}\n{% for m in messages %}{{ m.content }}<|im_end|>{% endfor %}"


@pytest.fixture(scope="module")
def episodes():
    return [(task, reenact.episode(task)) for task in (generate("train", i) for i in range(12))]


def with_template(renderer: Renderer, template: str) -> Renderer:
    tokenizer = copy.deepcopy(renderer.tokenizer)
    tokenizer.chat_template = template
    return Renderer(tokenizer)


def test_every_action_of_the_teacher_is_parsed_back_from_its_ids(renderer, episodes):
    for _, turns in episodes:
        for turn in turns:
            ids = renderer.action_ids(turn.action)
            assert renderer.parse(ids) == turn.action
            assert ids[-1] == renderer.end_id and renderer.end_id not in ids[:-1]
            assert renderer.parse(ids[:-1]) == turn.action


AWKWARD = [
    Action("", "finish", {}),
    Action("two\nlines", "execute_bash", {"command": 'echo "a" \'b\' \\ \t | cat <<< "é→"\n'}),
    Action("", "str_replace_editor", {"command": "create", "path": "x", "file_text": "<b>&'\"\u2028\U0001f600\x07"}),
    Action("", "str_replace_editor", {"command": "view", "path": "x", "view_range": [1, -1]}),
    Action(
        "t", "str_replace_editor", {"command": "insert", "path": "x", "insert_line": 0, "new_str": "{{ a }}{% b %}"}
    ),
]


@pytest.mark.parametrize("action", AWKWARD, ids=range(len(AWKWARD)))
def test_awkward_arguments_survive(renderer, action):
    assert renderer.parse(renderer.action_ids(action)) == action


def test_a_malformed_reply_is_rendered_word_for_word(renderer):
    for text in ("I give up", "", " <tool_call>{\n", "a" * 50):
        action = renderer.parse(renderer.tokenizer.encode(text, add_special_tokens=False))
        assert action.malformed and action.raw == text
        assert renderer.action_ids(action)[:-1] == tuple(renderer.tokenizer.encode(text, add_special_tokens=False))


def test_the_segments_of_an_episode_are_the_rendering_of_the_whole_chat(renderer, episodes):
    """Prefix property: the ids of messages[:i] begin the ids of messages[:i + 1], cut by cut."""
    for task, turns in episodes:
        ids, before = list(renderer.prompt_ids(task)), []
        for count, turn in enumerate(turns):
            text = renderer._text(scaffold.messages_before(task, turns[:count]), speak=True)
            assert tuple(ids) == renderer._ids(text)
            assert ids[: len(before)] == before
            before = list(ids)
            ids += [*renderer.action_ids(turn.action), *renderer.observation_ids(turn.observation)]
        renderer.check_prefix(scaffold.messages_before(task, turns))


def test_trained_spans_decode_to_what_was_said(renderer, episodes):
    for task, turns in episodes[:4]:
        said = tuple(replace(turn, token_ids=renderer.action_ids(turn.action)) for turn in turns)
        trajectory = Trajectory(task.instance_id, 0, 1, "base", said, StopReason.FINISH, "", 1)
        whole = segments(task, trajectory, renderer)
        assert whole.prompt_ids == renderer.prompt_ids(task)
        for turn, (action_ids, observation_ids) in zip(turns, whole.turns, strict=True):
            text = renderer.tokenizer.decode(action_ids)
            assert turn.action.thought in text
            assert text == renderer.action_text(turn.action) + "<|im_end|>"
            assert turn.observation in renderer.tokenizer.decode(observation_ids)


def test_special_tokens_in_an_observation_do_not_end_the_turn_unnoticed(renderer):
    """An observation that holds the end-of-turn text still decodes to itself."""
    ids = renderer.observation_ids("a<|im_end|>b")
    assert "a<|im_end|>b" in renderer.tokenizer.decode(ids)


@pytest.mark.parametrize("template", [FORGETS_THINKING, COUNTS_MESSAGES], ids=["forgets thinking", "counts"])
def test_a_template_that_rewrites_history_is_refused_before_anything_is_rendered(renderer, template):
    with pytest.raises(DataError, match="prefix-preserving"):
        with_template(renderer, template)


def test_a_tokenizer_without_a_template_is_refused(renderer):
    with pytest.raises(DataError, match="chat template"):
        with_template(renderer, "")


def test_the_template_hash_names_the_template(renderer):
    other = with_template(renderer, renderer.tokenizer.chat_template.replace("<tools>", "<functions>"))
    assert renderer.template_hash != other.template_hash
    assert renderer.template_hash == Renderer(renderer.tokenizer).template_hash
