"""The tiny student's tokenizer: byte-level BPE with a chat template that carries tool calls (Hermes format).

Recurring pieces of the scaffold's syntax are single tokens, so that an action costs some twenty tokens; the
text itself is ordinary JSON. The template only ever appends: rendering a longer chat never changes its beginning.
"""

from __future__ import annotations

from collections.abc import Iterable

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

PAD, START, END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"

CHAT_TEMPLATE = """\
{%- for message in messages -%}
{%- if message.role == 'system' -%}
<|im_start|>system
{{ message.content }}{% if tools %}
<tools>
{% for tool in tools %}{{ tool.function | tojson }}
{% endfor %}</tools>{% endif %}<|im_end|>
{% elif message.role == 'tool' -%}
<|im_start|>user
<tool_response>
{{ message.content }}
</tool_response><|im_end|>
{% elif message.tool_calls -%}
<|im_start|>assistant
{{ message.content }}{% for call in message.tool_calls %}
<tool_call>
{{ call.function | tojson }}
</tool_call>{% endfor %}<|im_end|>
{% else -%}
<|im_start|>{{ message.role }}
{{ message.content }}<|im_end|>
{% endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}
<|im_start|>assistant
{% endif -%}
"""

_CALL = '<tool_call>\n{"name": "'
_EDITOR = _CALL + 'str_replace_editor", "arguments": {"command": "'
PHRASES = (
    _CALL + 'execute_bash", "arguments": {"command": "',
    _EDITOR + 'view", "path": "/testbed/',
    _EDITOR + 'str_replace", "path": "/testbed/',
    _EDITOR,
    _CALL + 'finish", "arguments": {}}\n</tool_call>',
    '"}}\n</tool_call>',
    "]}}\n</tool_call>",
    '", "view_range": [',
    '", "old_str": "',
    '", "new_str": "',
    "user\n<tool_response>\n",
    "assistant\n",
    '{"type": "function", "function": ',
    '", "parameters": {"type": "object", "properties": {',
    '": {"type": "string"}',
    '": {"type": "integer"}',
    '"description": "',
    '"required": ["',
    ', "',
    "\n</tool_response>",
    "python -m pytest",
    "grep -rn 'def ",
    "grep -rn ",
    "' /testbed",
    "git diff -U0",
    "git checkout -- ",
    "git checkout . && git clean -fdxq",
    'sed -i \\"',
    "s|.*|",
    "/testbed/",
    ".py",
    "FAILED tests/test_",
    "ERROR tests/test_",
    "::test_",
    " - assert ",
    "= short test summary info =",
    "File edited.",
)


def train_tokenizer(texts: Iterable[str], *, vocab_size: int) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer of at most `vocab_size` ids, phrases and special tokens included."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [  # a number is the same token after a space, a comma or a line break, so that it can be copied
            pre_tokenizers.Split(Regex(r"\d+"), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - len(PHRASES) - 3,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_without_phrases(texts), trainer)
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in (PAD, START, END)])
    tokenizer.add_tokens([AddedToken(phrase, special=False, normalized=False) for phrase in PHRASES])
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token=PAD, eos_token=END)
    fast.chat_template = CHAT_TEMPLATE
    return fast


def _without_phrases(texts: Iterable[str]) -> Iterable[str]:
    """The texts with phrases cut out, so that BPE spends no merges on what is a token already."""
    yield from (str(number) for number in range(100) for _ in range(200))
    for text in texts:
        for phrase in (*PHRASES, START, END):
            text = text.replace(phrase, "\x00")
        yield from (piece for piece in text.split("\x00") if piece)
