"""What a caller asks of a turn: sampling, stops, speculation."""

import random
from collections.abc import Iterable
from dataclasses import dataclass

from .arguments import INF, INT32, each, flag, integer, real

LARGEST = 3.4028234e38  # that float32 holds, in which tokens are drawn


@dataclass(frozen=True)
class SamplingParams:
    """How one answer is drawn.

    max_tokens: at most this many tokens; None = as many as the model has positions for and the pool blocks.
    temperature 0: greedy, else logits / temperature. top_k <= 0, top_p >= 1, min_p <= 0 or None switch those filters
    off. stop_token_ids (any iterable of ids, or None) end the answer and are part of it. seed (any integer, taken
    modulo 2^64): same seed, same conversation, same answer, with drafts or without; None draws a fresh one for each
    turn.
    """

    max_tokens: int | None = 128
    temperature: float = 0.0
    top_k: int | None = 0
    top_p: float | None = 1.0
    min_p: float | None = 0.0
    stop_token_ids: Iterable[int] | None = ()
    seed: int | None = None

    def __post_init__(self):
        def keep(name, value):
            object.__setattr__(self, name, value)

        call = "SamplingParams"
        if self.max_tokens is not None:
            keep("max_tokens", integer(call, "max_tokens", self.max_tokens, 1, INT32[1]))
        keep("temperature", real(call, "temperature", self.temperature, 0.0, LARGEST, "a finite number >= 0"))
        keep("top_k", 0 if self.top_k is None else integer(call, "top_k", self.top_k, *INT32))
        keep("top_p", 1.0 if self.top_p is None else real(call, "top_p", self.top_p, 0.0, INF, "a number >= 0"))
        keep("min_p", 0.0 if self.min_p is None else real(call, "min_p", self.min_p, -INF, 1.0, "a number <= 1"))
        if self.seed is not None:
            keep("seed", integer(call, "seed", self.seed, -INF, INF))
        stops = () if self.stop_token_ids is None else each(call, "stop_token_ids", self.stop_token_ids, "integers")
        keep("stop_token_ids", tuple(integer(call, "stop_token_ids", t, 0, INT32[1]) for t in stops))

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
        call = "PromptLookup"
        for name, low, high, hint in (
            ("max_ngram", 1, 16, ""),
            ("min_ngram", 1, 16, ""),
            ("num_drafts", 1, 2**20, " (speculation=None: no drafts)"),
            ("relatives", 0, 64, ""),
            ("branches", 0, 16, ""),
        ):
            object.__setattr__(self, name, integer(call, name, getattr(self, name), low, high, hint))
        for name in ("latest", "adaptive"):
            object.__setattr__(self, name, flag(call, name, getattr(self, name)))
        if self.branches and self.num_drafts > 63:
            raise ValueError(f"{call}: num_drafts is {self.num_drafts}, expected at most 63 with branches")
        if self.min_ngram > self.max_ngram:
            raise ValueError(
                f"{call}: min_ngram is {self.min_ngram}, expected at most max_ngram, which is {self.max_ngram}"
            )
