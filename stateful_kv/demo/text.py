"""Conversations as tokens: the committed tokenizer, or a checkpoint's own, and its chat format.

Role markers are special tokens; what stands between them never is. A tool result that spells `<|end|>` is encoded
as the characters it consists of and cannot end a turn.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..models.fields import Fields
from .calls import CLOSE, OPEN

TOKENIZER_FILE = Path(__file__).parent / "tokenizer.json"
ROLES = ("system", "user", "assistant", "tool")
END = "<|end|>"
PAD = "<|pad|>"
VOCAB_SIZE = 2560

# How a message of a role begins and ends: (the marker that gives the format away, begin, end, tool's role name).
_FORMATS = (
    ("<|assistant|>", "<|{role}|>\n", END, "\n", "tool"),
    ("<|im_start|>", "<|im_start|>{role}\n", "<|im_end|>", "\n", "tool"),
    ("<|start_header_id|>", "<|start_header_id|>{role}<|end_header_id|>\n\n", "<|eot_id|>", "", "ipython"),
)


def train_tokenizer(texts: list[str], path: Path = TOKENIZER_FILE) -> None:
    """Byte-level BPE with the chat's special tokens; digits stand alone, so that ids are copied digit by digit."""
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    # A digit, a word, punctuation with the single spaces inside it (JSON's `", "` is one piece), other space.
    words = Regex(r"\p{N}| ?\p{L}+| ?[^\s\p{L}\p{N}]+(?: [^\s\p{L}\p{N}]+)*|\s+(?!\S)|\s+")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(words, behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE - 2,
        min_frequency=2,
        special_tokens=[PAD, END, *(f"<|{role}|>" for role in ROLES)],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    # The call's tags are tokens, but not special: they are part of the text that a model writes.
    tokenizer.add_tokens([AddedToken(tag, special=False, normalized=False) for tag in (OPEN, CLOSE)])
    tokenizer.save(str(path))


class ChatText:
    """Encodes messages and decodes answers with one tokenizer.json."""

    def __init__(self, path: Path = TOKENIZER_FILE, eos_token_ids: tuple[int, ...] = ()) -> None:
        from tokenizers import Tokenizer

        self.tokenizer = Tokenizer.from_file(str(path))
        # Saved with the tokenizer for whoever made batches with it; here a text is all of its tokens and no more.
        self.tokenizer.no_truncation()
        self.tokenizer.no_padding()
        self.bos = self._bos()
        for marker, begin, end, after, tool_role in _FORMATS:
            if self.tokenizer.token_to_id(marker) is not None:
                self.begin, self.after, self.tool_role = begin, after, tool_role
                self.end_ids = self._markers(end)
                if len(self.end_ids) != 1:
                    count = len(self.end_ids)
                    raise ValueError(
                        f"{path}: {end!r}, the end of a chat with {marker!r}, is {count} tokens, expected 1"
                    )
                break
        else:
            # A base model without chat tokens: roles as headings, a turn ends with the end of text.
            self.begin, self.after, self.tool_role = "### {role}\n", "\n\n", "tool"
            self.end_ids = list(eos_token_ids[:1])
        self.stop_token_ids = tuple(dict.fromkeys((*self.end_ids[:1], *eos_token_ids)))

    @classmethod
    def from_checkpoint(cls, directory: Path) -> ChatText:
        if not (directory / "tokenizer.json").is_file():
            raise FileNotFoundError(f"{directory} has no tokenizer.json")
        config = Fields.read(directory / "config.json")
        ids = _eos_token_ids(config, config.get("vocab_size"))
        # The ids that end an answer often stand only here (the config's is then the end of text): as in transformers
        # and vLLM any of them stops.
        generation = directory / "generation_config.json"
        if generation.is_file():
            ids += _eos_token_ids(Fields.read(generation), config.get("vocab_size"))
        return cls(directory / "tokenizer.json", tuple(dict.fromkeys(ids)))

    def _bos(self) -> list[int]:
        """What the tokenizer itself puts before every text, if anything; it may put something behind it, too."""
        text = self.tokenizer.encode("x", add_special_tokens=False).ids
        ids = self.tokenizer.encode("x").ids
        return next((ids[:i] for i in range(len(ids)) if ids[i : i + len(text)] == text), [])

    def _markers(self, text: str) -> list[int]:
        self.tokenizer.encode_special_tokens = False
        return self.tokenizer.encode(text, add_special_tokens=False).ids

    def body(self, text: str) -> list[int]:
        """Tokens of plain text; a special token spelled in it stays plain text."""
        self.tokenizer.encode_special_tokens = True
        return self.tokenizer.encode(text, add_special_tokens=False).ids

    def begin_message(self, role: str) -> list[int]:
        return self._markers(self.begin.format(role=self.tool_role if role == "tool" else role))

    def end_message(self) -> list[int]:
        return self.end_ids + self._markers(self.after)

    def message(self, role: str, text: str) -> list[int]:
        return self.begin_message(role) + self.body(text) + self.end_message()

    def finish_answer(self, tokens: list[int]) -> list[int]:
        """What must follow an answer's tokens so that the message is complete, whether it stopped or was cut off."""
        ended = bool(tokens) and tokens[-1] in self.stop_token_ids
        return self._markers(self.after) if ended else self.end_message()

    def decode(self, tokens: list[int]) -> str:
        """The answer's text without the stop token."""
        if tokens and tokens[-1] in self.stop_token_ids:
            tokens = tokens[:-1]
        return self.tokenizer.decode(tokens, skip_special_tokens=False)


def _eos_token_ids(entries: Fields, vocab_size: Any) -> tuple[int, ...]:
    """None, an id or a list of ids."""
    value = entries.get("eos_token_id")
    ids = [] if value is None else value if isinstance(value, list) else [value]
    last = vocab_size - 1 if type(vocab_size) is int else None
    for token in ids:
        if type(token) is not int or token < 0 or (last is not None and token > last):
            raise entries.wrong("eos_token_id", "ids from 0 on" if last is None else f"ids from 0 to {last}")
    return tuple(ids)
