"""What a caller asks of a turn: sampling, stops, speculation."""

import operator
import random
from dataclasses import dataclass, field


@dataclass(frozen=True)
class SamplingParams:
    """How one answer is drawn.

    max_tokens: at most this many tokens. temperature 0: greedy, else logits / temperature. top_k <= 0, top_p >= 1,
    min_p <= 0 switch those filters off. stop_token_ids (any iterable of ids) end the answer and are part of it. seed
    (any integer, taken modulo 2^64): same seed, same conversation, same answer, with drafts or without; None draws a
    fresh one for each turn.
    """

    max_tokens: int = 128
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    stop_token_ids: tuple[int, ...] = field(default=())
    seed: int | None = None

    def __post_init__(self):
        for name, low, high in (("max_tokens", 1, 2**31 - 1), ("top_k", -(2**31), 2**31 - 1)):
            try:
                value = operator.index(getattr(self, name))
            except TypeError:
                raise TypeError(f"SamplingParams: {name} is {getattr(self, name)!r}, expected an integer") from None
            if not low <= value <= high:
                raise ValueError(f"SamplingParams: {name} is {value}, expected {low} to {high}")
        try:
            stops = tuple(operator.index(t) for t in self.stop_token_ids)
            seed = None if self.seed is None else operator.index(self.seed)
        except TypeError:
            raise TypeError(
                f"SamplingParams: stop_token_ids is {self.stop_token_ids!r}, seed {self.seed!r}, expected integers"
            ) from None
        if any(not 0 <= t < 2**31 for t in stops):
            raise ValueError(f"SamplingParams: stop_token_ids is {stops}, expected token ids")
        object.__setattr__(self, "stop_token_ids", stops)
        object.__setattr__(self, "seed", seed)
        if not 0.0 <= self.temperature < float("inf"):
            raise ValueError(f"SamplingParams: temperature is {self.temperature}, expected a finite number >= 0")
        if self.top_p != self.top_p or self.min_p != self.min_p:
            raise ValueError("SamplingParams: top_p or min_p is NaN, expected a number")

    def drawn_seed(self) -> int:
        if self.seed is None:
            return random.getrandbits(63)
        return (self.seed + 2**63) % 2**64 - 2**63  # any integer, as 64 bits


@dataclass(frozen=True)
class PromptLookup:
    """Prompt-lookup speculation: when the last n tokens (max_ngram down to min_ngram) occurred before in the
    conversation, propose the tokens that followed, at most num_drafts. latest: the latest such place, else the
    earliest. adaptive: only as many as are expected to raise the tokens per second of the whole batch, by the measured
    time of steps and by how the conversation's own drafts fared, so how many is not the same in two runs, though
    answers are; False = always num_drafts. relatives: how many other conversations to draft from where they know a
    longer tail: the one this was forked from, and those of the namespace that begin with the same tokens and took turns
    latest. branches: how many other continuations, of other places where the last tokens occurred and of the other
    sources, may make the drafts a tree of at most num_drafts (then 63 at most) tokens. A branch is fed where it is
    expected to bring more than the end of the chain, by how often such branches have been right in the conversation so
    far. Answers are those of chains but for rounding (Engine's deterministic)."""

    max_ngram: int = 4
    min_ngram: int = 1
    num_drafts: int = 8
    latest: bool = True
    adaptive: bool = True
    relatives: int = 0
    branches: int = 0

    def __post_init__(self):
        if not 0 <= self.relatives <= 64:
            raise ValueError(f"PromptLookup: relatives is {self.relatives}, expected 0 to 64")
        if not 0 <= self.branches <= 16:
            raise ValueError(f"PromptLookup: branches is {self.branches}, expected 0 to 16")
        if self.branches and self.num_drafts > 63:
            raise ValueError(f"PromptLookup: num_drafts is {self.num_drafts}, expected at most 63 with branches")
        if not 1 <= self.min_ngram <= self.max_ngram <= 16:
            raise ValueError(
                f"PromptLookup: min_ngram is {self.min_ngram}, max_ngram {self.max_ngram}, "
                "expected 1 <= min_ngram <= max_ngram <= 16"
            )
        if self.num_drafts < 1:
            raise ValueError(
                f"PromptLookup: num_drafts is {self.num_drafts}, expected at least 1 (or speculation=None)"
            )
