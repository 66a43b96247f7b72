"""Answers kept for prompts that come again, exactly and to be answered in the same way: Engine(response_cache=...).

Nothing is computed for such a turn, so it is counted apart and says nothing about speed.
"""

import collections
import hashlib

import numpy as np

from .sampling import SamplingParams


class ResponseCache:
    """The answers used latest, at most `capacity` of them. A key is a digest (BLAKE2b, 256 bits) of namespace, prompt
    and parameters; prompts themselves are not kept."""

    def __init__(self, capacity: int):
        self.capacity = capacity
        self.hits = self.misses = self.tokens = 0  # tokens: of the answers given from here
        self._answers: collections.OrderedDict[bytes, tuple[np.ndarray, str]] = collections.OrderedDict()

    def key(
        self, namespace: bytes, before: np.ndarray, delta: np.ndarray, params: SamplingParams, max_tokens: int
    ) -> bytes | None:
        """None: the answer is drawn with a fresh seed, or nothing is ever kept."""
        is_greedy = params.temperature == 0
        if self.capacity == 0 or not (is_greedy or params.seed is not None):
            return None
        drawn = () if is_greedy else (params.temperature, params.top_k, params.top_p, params.min_p, params.drawn_seed())
        asked = (len(namespace), max_tokens, sorted(set(params.stop_token_ids)), drawn)
        digest = hashlib.blake2b(repr(asked).encode(), digest_size=32)
        for part in (namespace, before.tobytes(), delta.tobytes()):
            digest.update(part)
        return digest.digest()

    def find(self, key: bytes | None) -> tuple[np.ndarray, str] | None:
        """The answer and why it ended; counts what was asked for."""
        if key is None:
            return None
        answer = self._answers.get(key)
        if answer is None:
            self.misses += 1
            return None
        self.hits += 1
        self.tokens += len(answer[0])
        self._answers.move_to_end(key)
        return answer

    def keep(self, key: bytes | None, tokens: list[int], finish_reason: str) -> None:
        if key is None:
            return
        self._answers[key] = np.asarray(tokens, np.int32), finish_reason
        self._answers.move_to_end(key)
        if len(self._answers) > self.capacity:
            self._answers.popitem(last=False)

    def stats(self) -> dict[str, int]:
        return {"response_hits": self.hits, "response_misses": self.misses, "response_tokens": self.tokens}
