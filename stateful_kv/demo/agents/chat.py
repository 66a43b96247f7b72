"""Conversations as text and tokens: ChatML with Hermes-style calls, a byte-level BPE with Qwen2's pre-tokenizer.

TEMPLATE is the same format as the Jinja template that a checkpoint carries for other engines.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ..calls import CLOSE, OPEN
from ..text import ChatText
from .episodes import Conversation
from .tasks import Message

VOCAB_SIZE = 2048
PAD, BEGIN, END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
_CALL_FORMAT = f'Call a tool with {OPEN}{{"name": "TOOL", "arguments": {{...}}}}{CLOSE}'
# Qwen2's: words with one character before them, single digits, runs of punctuation, line ends.
_PIECES = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
TEMPLATE = (
    "{%- for message in messages %}"
    "{{- '<|im_start|>' + message.role + '\\n' }}"
    "{%- if message.content %}{{- message.content }}{%- endif %}"
    "{%- if loop.first and tools %}"
    "{{- '\\n' + " + json.dumps(_CALL_FORMAT) + " + '\\n<tools>' }}"
    "{%- for tool in tools %}{{- '\\n' + ((tool.function if tool.function else tool) | tojson) }}{%- endfor %}"
    "{{- '\\n</tools>' }}"
    "{%- endif %}"
    "{%- for call in message.tool_calls or [] %}"
    '{{- \'<tool_call>{"name": "\' + call.function.name + \'", "arguments": \''
    " + (call.function.arguments if call.function.arguments is string else call.function.arguments | tojson)"
    " + '}</tool_call>' }}"
    "{%- endfor %}"
    "{{- '<|im_end|>\\n' }}"
    "{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"
)
# How much a token counts in training: prompts and results little, answers fully, copied values more.
_CONTEXT_WEIGHT, _ANSWER_WEIGHT, _VALUE_WEIGHT = 0.1, 1.0, 2.0


def tools_text(tools: list[dict[str, Any]]) -> str:
    """What follows the first system message's own text; nothing without tools."""
    if not tools:
        return ""
    return "\n".join(["", _CALL_FORMAT, "<tools>", *map(json.dumps, tools), "</tools>"])


def texts(conversation: Conversation) -> Iterable[tuple[Message, str]]:
    """Every message with its text as the model sees it."""
    for idx, message in enumerate(conversation.messages):
        yield message, message.text + (tools_text(conversation.tools) if idx == 0 else "")


def template_messages(conversation: Conversation) -> list[dict[str, Any]]:
    """The messages in the form that transformers' apply_chat_template and servers take."""
    result = []
    for message in conversation.messages:
        if message.call:
            function = {"name": message.call.name, "arguments": message.call.arguments}
            entry = {"role": "assistant", "content": "", "tool_calls": [{"type": "function", "function": function}]}
        else:
            entry = {"role": message.role, "content": message.text}
        result.append(entry)
    return result


def render(conversation: Conversation) -> str:
    """The conversation as one text, what TEMPLATE gives for it."""
    return "".join(f"{BEGIN}{message.role}\n{text}{END}\n" for message, text in texts(conversation))


def encode(conversation: Conversation, text: ChatText) -> tuple[list[int], list[float]]:
    """Tokens of the conversation and how much each counts in training."""
    ids: list[int] = []
    weights: list[float] = []
    for message, body_text in texts(conversation):
        header = text.begin_message(message.role)
        text.tokenizer.encode_special_tokens = True
        encoding = text.tokenizer.encode(body_text, add_special_tokens=False)
        answers = message.role == "assistant"
        own = [_ANSWER_WEIGHT if answers else _CONTEXT_WEIGHT] * len(encoding.ids)
        if message.call:
            spans = value_spans(message)
            own = [
                _VALUE_WEIGHT if any(a < end and begin < b for a, b in spans) else weight
                for weight, (begin, end) in zip(own, encoding.offsets)
            ]
        ids += [*header, *encoding.ids, *text.end_message()]
        weights += [*[0.0] * len(header), *own, _ANSWER_WEIGHT if answers else 0.0, 0.0]
    return ids, weights


def value_spans(message: Message) -> list[tuple[int, int]]:
    """Where the arguments' values stand in the text of a call, as character positions."""
    spans, position = [], 0
    for key, value in message.call.arguments.items():
        head, body = f"{json.dumps(key)}: ", json.dumps(value)
        begin = message.text.index(head + body, position) + len(head)
        position = begin + len(body)
        spans.append((begin, position))
    return spans


def train_tokenizer(conversations: Iterable[Conversation], path: Path) -> None:
    """A byte-level BPE of VOCAB_SIZE entries over the conversations' texts, written as tokenizer.json."""
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_PIECES), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE - 2,
        min_frequency=3,
        special_tokens=[PAD, BEGIN, END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    # A message's role begins it: roles become words of the vocabulary too.
    tokenizer.train_from_iterator((f"{m.role}\n{text}" for c in conversations for m, text in texts(c)), trainer)
    # The call's tags are tokens, but not special: they are part of the text that a model writes.
    tokenizer.add_tokens([AddedToken(tag, special=False, normalized=False) for tag in (OPEN, CLOSE)])
    tokenizer.save(str(path))


def tokenizer_config(max_length: int) -> dict[str, Any]:
    """tokenizer_config.json: special tokens and the chat template, as transformers and servers read them."""
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "add_prefix_space": False,
        "bos_token": None,
        "eos_token": END,
        "pad_token": PAD,
        "unk_token": None,
        "clean_up_tokenization_spaces": False,
        "model_max_length": max_length,
        "chat_template": TEMPLATE,
    }
