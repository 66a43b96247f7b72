"""What a caller asks of a turn: sampling, stops, speculation."""

import random
from dataclasses import dataclass, field


@dataclass(frozen=True)
class SamplingParams:
    """How one answer is drawn.

    max_tokens: at most this many tokens. temperature 0: greedy, else logits / temperature. top_k <= 0, top_p >= 1,
    min_p <= 0 switch those filters off. stop_token_ids end the answer and are part of it. seed: same seed, same
    conversation, same answer, with drafts or without; None draws a fresh one for each turn.
    """

    max_tokens: int = 128
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    stop_token_ids: tuple[int, ...] = field(default=())
    seed: int | None = None

    def __post_init__(self):
        if self.max_tokens < 1:
            raise ValueError(f"SamplingParams: max_tokens is {self.max_tokens}, expected at least 1")
        if not 0.0 <= self.temperature < float("inf"):
            raise ValueError(f"SamplingParams: temperature is {self.temperature}, expected a finite number >= 0")
        if self.top_p != self.top_p or self.min_p != self.min_p:
            raise ValueError("SamplingParams: top_p or min_p is NaN, expected a number")

    def drawn_seed(self) -> int:
        return random.getrandbits(63) if self.seed is None else int(self.seed)


@dataclass(frozen=True)
class PromptLookup:
    """Prompt-lookup speculation: when the last n tokens (max_ngram down to min_ngram) occurred before in the
    conversation, propose the num_drafts tokens that followed. latest: the latest such place, else the earliest."""

    max_ngram: int = 4
    min_ngram: int = 1
    num_drafts: int = 8
    latest: bool = True

    def __post_init__(self):
        if not 1 <= self.min_ngram <= self.max_ngram:
            raise ValueError(
                f"PromptLookup: min_ngram is {self.min_ngram}, max_ngram {self.max_ngram}, expected 1 <= min <= max"
            )
        if self.num_drafts < 1:
            raise ValueError(
                f"PromptLookup: num_drafts is {self.num_drafts}, expected at least 1 (or speculation=None)"
            )
