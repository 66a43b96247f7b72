"""A conversation and what happens in it: sessions, requests, streams, turns and what they cost."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from torch import Tensor

from .arguments import integer
from .runtime import StaleHandle
from .sampling import SamplingParams

if TYPE_CHECKING:
    from .turns import Turns

Tokens = Sequence[int] | np.ndarray | Tensor
Before = tuple["Session", int, int]  # a session, its length and its last turn


@dataclass(frozen=True)
class TurnStats:
    """What a turn cost.

    Tokens: prompt = everything the answer depends on; of it, reused came from the cache, delta is what the caller
    brought, recomputed is KV that had been evicted. fed = rows that entered the model, answer and drafts included.
    drafted / accepted: speculated tokens; of them what came from draft_spans and from relatives, and from any source as
    branches beside the first continuation, the rest from the conversation itself. Seconds: prefill_s from submission to
    the first token, decode_s from there to the last.
    """

    prompt_tokens: int
    reused_tokens: int
    delta_tokens: int
    recomputed_tokens: int
    fed_tokens: int
    drafted: int
    accepted: int
    prefill_s: float
    decode_s: float
    drafted_spans: int = 0
    accepted_spans: int = 0
    drafted_relatives: int = 0
    accepted_relatives: int = 0
    drafted_branches: int = 0
    accepted_branches: int = 0
    from_response_cache: bool = False  # nothing was computed

    @property
    def ttft_s(self) -> float:
        """Time to first token: another name of prefill_s."""
        return self.prefill_s


@dataclass(frozen=True)
class Turn:
    """One answer: its tokens, why it ended ("stop" | "length"), what it cost."""

    tokens: list[int]
    finish_reason: str
    stats: TurnStats


@dataclass(frozen=True)
class Request:
    """A turn to take: `tokens` are appended to the session's conversation, then an answer is drawn."""

    session: Session
    tokens: Tokens
    params: SamplingParams | None = field(default_factory=SamplingParams)
    priority: int = 0  # under memory pressure the lowest is preempted first


@dataclass(frozen=True)
class Event:
    """What a submitted request got since the call of step() before; `turn` is set on its last event."""

    request_id: int
    tokens: list[int]
    turn: Turn | None


class Prepared(NamedTuple):
    """A request found good, and the call it came by; max_tokens: those that the model has positions for."""

    call: str
    before: Before
    tokens: np.ndarray
    params: SamplingParams
    max_tokens: int
    priority: int


class Running:
    """A submitted request on its way."""

    def __init__(
        self,
        request_id: int,
        before: Before,
        delta_length: int,
        stop_token_ids: tuple[int, ...] = (),
        call: str = "generate",
    ):
        self.call = call
        self.request_id, self.before, self.stop_token_ids = request_id, before, stop_token_ids
        self.session = before[0]
        self.delta_length, self.prompt_length = delta_length, before[1] + delta_length
        self.tokens: list[int] = []
        self.turn: Turn | None = None
        self.response_key: bytes | None = None
        self.submitted_at = time.perf_counter()
        self.first_token_at = self.submitted_at

    def how_to_end(self) -> str:
        ways = {"stream": "read the stream to its end, close() it", "submit": "step() until its turn is over"}
        way = ways.get(self.call, "wait until the call returns")
        return f"request {self.request_id} of an earlier {self.call}(): {way} or abort({self.request_id})"


class Session:
    """An agent's conversation, until close(). Its tokens stay; its KV stays while memory allows and is otherwise
    recomputed, with the same answers."""

    def __init__(self, turns: Turns, handle: int, namespace: bytes = b""):
        self._turns, self._handle, self._namespace = turns, handle, namespace
        self._is_closed = False
        self._last_turn = 0  # the request whose turn was the last thing that happened here; 0: it was something else

    def __bool__(self) -> bool:
        return True  # an empty conversation is a conversation

    @property
    def tokens(self) -> list[int]:
        self._turns.settle()
        return self._turns.runtime.tokens(self._handle).tolist()

    def __len__(self) -> int:
        self._turns.settle()
        return self._turns.runtime.length(self._handle)

    @property
    def resident(self) -> int:
        """How many leading tokens have their KV in the cache right now."""
        self._turns.settle()
        return self._turns.runtime.resident(self._handle)

    def generate(self, new_tokens: Tokens, params: SamplingParams | None = None) -> Turn:
        """One turn: ingests new_tokens (a delta; the conversation so far is not computed again), draws an answer.

        Raises ValueError for bad tokens, OutOfBlocks when the pool cannot hold the turn; the session is then as before.
        """
        return self._turns.generate([Request(self, new_tokens, params)], "generate")[0]

    def stream(self, new_tokens: Tokens, params: SamplingParams | None = None) -> Stream:
        """As generate, token by token. Closing the stream early (or dropping it) commits new_tokens and exactly the
        tokens it yielded."""
        return Stream(self._turns, Request(self, new_tokens, params))

    def fork(self) -> Session:
        """A second conversation with the same past. Copy-on-write: no KV is copied until one of the two writes into the
        tail block they share."""
        self._turns.idle(self, "fork")
        return Session(self._turns, self._turns.runtime.fork(self._handle), self._namespace)

    def rollback(self, length: int) -> None:
        """Forgets everything after the first `length` tokens."""
        _, present, _ = self._turns.idle(self, "rollback")
        length = integer("rollback", "length", length, 0, present, ", the tokens that the session has")
        self._turns.runtime.rollback(self._handle, length)
        self._last_turn = 0

    def close(self) -> None:
        """Ends the conversation, and a turn in progress with it; what it wrote stays in the prefix cache until evicted.
        Closing twice is harmless; anything else on a closed session raises runtime.StaleHandle."""
        if not self._is_closed:
            self._turns.settle()
            self._turns.forget_turn(self)
            self._is_closed = True  # first: interrupts arrive as a call returns
            self._turns.runtime.close(self._handle)

    def __enter__(self) -> Session:
        return self

    def __exit__(self, *_) -> None:
        self.close()


class Stream:
    """An answer, token by token: an iterator that can be closed early. It ends where Engine.abort forgets its turn, and
    raises runtime.StaleHandle once its session is closed."""

    _is_open = False

    def __init__(self, turns: Turns, request: Request):
        self._turns, self._num_yielded = turns, 0
        self._running = turns.begin(turns.prepared(request, "stream"))
        self._is_open = True

    def __iter__(self) -> Stream:
        return self

    def __next__(self) -> int:
        running = self._running
        if not self._is_open:
            raise StopIteration
        if running.session._is_closed:
            raise StaleHandle("stream: its session is closed")
        try:
            self._turns.settle()
            while self._num_yielded == len(running.tokens) and running.request_id in self._turns.running:
                self._turns.advance()
        except BaseException:
            self._is_open = False
            self._turns.restore([running.before])
            raise
        is_forgotten = running.turn is None and running.request_id not in self._turns.running
        if is_forgotten or self._num_yielded == len(running.tokens):
            self._is_open = False
            raise StopIteration
        self._num_yielded += 1
        return running.tokens[self._num_yielded - 1]

    def close(self) -> None:
        """Ends the turn where it stands; closing twice is harmless."""
        if self._is_open:
            self._is_open = False
            self._turns.finish_early(self._running, self._num_yielded)

    def __del__(self) -> None:
        self.close()
