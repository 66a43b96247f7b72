"""Engine and Session: conversations that stay on the device, and the turns taken on them.

An Engine owns one model, one block pool and the radix tree over it; a Session is one agent's conversation in it.
One thread owns an engine and all its sessions.
"""

import os
import pathlib
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from . import models
from .generate import KVCache, Loop, score
from .runtime import OutOfBlocks, Runtime
from .sampling import PromptLookup, SamplingParams

Tokens = Sequence[int] | np.ndarray | Tensor


@dataclass(frozen=True)
class TurnStats:
    """What a turn cost.

    Tokens: prompt = everything the answer depends on; of it, reused came from the cache, delta is what the caller
    brought, recomputed is KV that had been evicted. fed = rows that entered the model, answer and drafts included.
    drafted / accepted: speculated tokens. Seconds: prefill_s from submission to the first token, decode_s from there to
    the last.
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

    session: "Session"
    tokens: Tokens
    params: SamplingParams = field(default_factory=SamplingParams)
    priority: int = 0  # under memory pressure the lowest is preempted first


@dataclass(frozen=True)
class Event:
    """What a step did for one submitted request; `turn` is set on its last event."""

    request_id: int
    tokens: list[int]
    turn: Turn | None


class _Running:
    """A submitted request on its way."""

    def __init__(self, request_id: int, session: "Session", start_length: int, delta_length: int):
        self.request_id, self.session = request_id, session
        self.start_length, self.delta_length = start_length, delta_length
        self.tokens: list[int] = []
        self.turn: Turn | None = None
        self.is_server_request = False
        self.submitted_at = time.perf_counter()
        self.first_token_at = self.submitted_at


class Session:
    """An agent's conversation, until close(). Its tokens stay; its KV stays while memory allows and is otherwise
    recomputed, with the same answers."""

    def __init__(self, engine: "Engine", handle: int):
        self._engine, self._handle = engine, handle

    @property
    def tokens(self) -> list[int]:
        return self._engine._runtime.tokens(self._handle).tolist()

    def __len__(self) -> int:
        return self._engine._runtime.length(self._handle)

    @property
    def resident(self) -> int:
        """How many leading tokens have their KV in the cache right now."""
        return self._engine._runtime.resident(self._handle)

    def generate(self, new_tokens: Tokens, params: SamplingParams | None = None) -> Turn:
        """One turn: ingests new_tokens (a delta; the conversation so far is not computed again), draws an answer.

        Raises ValueError for bad tokens, OutOfBlocks when the pool cannot hold the turn; the session is then as before.
        """
        return self._engine.generate([Request(self, new_tokens, params or SamplingParams())])[0]

    def stream(self, new_tokens: Tokens, params: SamplingParams | None = None) -> Iterator[int]:
        """As generate, token by token. Closing the iterator early commits exactly the tokens it yielded."""
        return self._engine._stream(Request(self, new_tokens, params or SamplingParams()))

    def fork(self) -> "Session":
        """A second conversation with the same past. Copy-on-write: no KV is copied until one of the two writes into the
        tail block they share."""
        return Session(self._engine, self._engine._runtime.fork(self._handle))

    def rollback(self, length: int) -> None:
        """Forgets everything after the first `length` tokens."""
        self._engine._runtime.rollback(self._handle, length)

    def close(self) -> None:
        """Ends the conversation; what it wrote stays in the prefix cache until evicted. Closing twice is harmless."""
        if self._handle is not None:
            self._engine._runtime.close(self._handle)
            self._handle = None

    def __enter__(self) -> "Session":
        return self

    def __exit__(self, *_) -> None:
        self.close()


class Engine:
    """One model, one block pool, many sessions.

    num_blocks: cache blocks of block_size tokens; None = 90 % of the free memory of a GPU, or a quarter of the host's
    (at most 8 GiB) on the CPU. speculation: PromptLookup(...) or None. prefix_cache: whether sessions share prefixes
    through the radix tree (a session always keeps its own). max_batch_tokens: rows of one step; longer deltas are
    ingested in chunks. max_seqs: requests that run at the same time. eviction: which idle prefix goes first when the
    pool is full: "lru", or "turns" for agents that take turns, where the least recently used is the next one needed.
    """

    def __init__(
        self,
        model: models.Decoder,
        *,
        num_blocks: int | None = None,
        block_size: int = 16,
        speculation: PromptLookup | None = PromptLookup(),  # noqa: B008 - frozen
        prefix_cache: bool = True,
        max_batch_tokens: int = 2048,
        max_seqs: int = 64,
        eviction: str = "lru",
    ):
        self.model, self.block_size = model, block_size
        self.max_length = model.config.max_position
        max_blocks_per_seq = -(-self.max_length // block_size)
        if num_blocks is None:
            num_blocks = _default_num_blocks(model, block_size, max_blocks_per_seq * max_seqs)
        draft = speculation or PromptLookup()
        self._runtime = Runtime(
            num_blocks=num_blocks,
            block_size=block_size,
            max_batch_tokens=max_batch_tokens,
            max_seqs=min(max_seqs, max_batch_tokens),  # each running request may need a row in a step
            max_blocks_per_seq=max_blocks_per_seq,
            max_ngram=draft.max_ngram,
            min_ngram=draft.min_ngram,
            num_drafts=draft.num_drafts if speculation else 0,
            latest=draft.latest,
            prefix_cache=prefix_cache,
            policy=eviction,
        )
        self._loop = Loop(model, KVCache(model, num_blocks, block_size), self._runtime)
        self._running: dict[int, _Running] = {}
        self._events: list[Event] = []

    @classmethod
    def from_pretrained(
        cls,
        directory: str | pathlib.Path,
        device: str | torch.device = "cpu",
        dtype: torch.dtype | None = None,
        **options,
    ) -> "Engine":
        """An engine on a Hugging Face checkpoint directory (Llama, Qwen2, Qwen3, Mistral); `options` as for Engine.

        Raises NotImplementedError naming an unsupported architecture, ValueError naming a missing tensor.
        """
        return cls(models.load(directory, torch.device(device), dtype), **options)

    # ---- conversations ----

    def open_session(self, namespace: str = "") -> Session:
        """A new, empty conversation. Prefixes are shared within a namespace only (one per tenant, say)."""
        return Session(self, self._runtime.open(namespace))

    def generate(self, requests: Sequence[Request]) -> list[Turn]:
        """Takes one turn in each request's session, all in one ragged batch; returns when all are done.

        All or nothing: when one fails, every session is as it was before the call.
        """
        running: list[_Running] = []
        try:
            for request in requests:
                running.append(self._submit(request))
            while any(r.turn is None for r in running):
                self._advance()
        except BaseException:
            for r in reversed(running):
                self._undo(r)
            raise
        return [r.turn for r in running]

    def complete(self, prompt: Tokens, params: SamplingParams | None = None, namespace: str = "") -> Turn:
        """One stateless completion: the longest prefix of the prompt found in the radix tree is reused."""
        with self.open_session(namespace) as session:
            return session.generate(prompt, params)

    # ---- servers: requests join and leave between steps ----

    def submit(self, request: Request) -> int:
        """Enqueues a turn; step() serves it. Returns its id. Raises ValueError for bad tokens, OutOfBlocks for a turn
        that the whole pool could not hold."""
        running = self._submit(request)
        running.is_server_request = True
        return running.request_id

    def step(self) -> list[Event]:
        """One step of everything that runs; returns what happened to submitted requests since the last call. With
        nothing to do it returns an empty list. Under memory pressure requests wait or are preempted and go on later;
        one that could never fit was refused with OutOfBlocks by submit()."""
        if self._running:
            self._advance()
        events, self._events = self._events, []
        return events

    def abort(self, request_id: int) -> None:
        """Forgets a submitted request; its session is as before it."""
        running = self._running.get(request_id)
        if running is None:
            raise ValueError(f"abort: request_id is {request_id}, expected a request that is still running")
        self._undo(running)

    def stats(self) -> dict[str, int]:
        """Counters and the state of the pool: rows_fed (rows that entered the model), steps, blocks_copied, and all of
        runtime.Runtime.stats()."""
        loop = self._loop
        own = {"rows_fed": loop.rows_fed, "steps": loop.steps, "blocks_copied": loop.blocks_copied}
        return {**self._runtime.stats(), **own}

    def score(self, tokens: Tokens) -> Tensor:
        """float32 logits [vocab] of what follows `tokens`, computed from nothing, beside the cache."""
        return score(self.model, self._checked(tokens).tolist(), self.block_size)

    # ---- inside ----

    def _checked(self, tokens: Tokens) -> np.ndarray:
        if isinstance(tokens, Tensor):
            tokens = tokens.cpu().numpy()
        array = np.asarray(tokens)
        if array.size == 0:
            return np.empty(0, np.int32)
        if array.ndim != 1 or array.dtype.kind not in "iu":
            raise TypeError(f"tokens: got shape {array.shape} of {array.dtype}, expected a flat sequence of integers")
        low, high = int(array.min()), int(array.max())
        if low < 0 or high >= self.model.config.vocab_size:
            bad = low if low < 0 else high
            raise ValueError(
                f"tokens: {bad} is not in the vocabulary, expected 0 to {self.model.config.vocab_size - 1}"
            )
        return np.ascontiguousarray(array, np.int32)

    def _submit(self, request: Request) -> _Running:
        session, params = request.session, request.params
        if session._engine is not self:
            raise ValueError("generate: the session belongs to another engine")
        tokens = self._checked(request.tokens)
        start = len(session)
        if start + len(tokens) + params.max_tokens > self.max_length:
            raise ValueError(
                f"generate: {start} tokens so far + {len(tokens)} new + max_tokens {params.max_tokens} exceed "
                f"the model's {self.max_length} positions"
            )
        request_id = self._runtime.submit(
            session._handle,
            tokens,
            max_tokens=params.max_tokens,
            temperature=params.temperature,
            top_k=params.top_k,
            top_p=params.top_p,
            min_p=params.min_p,
            seed=params.drawn_seed(),
            stop_token_ids=np.asarray(params.stop_token_ids, np.int32),
            priority=request.priority,
        )
        running = _Running(request_id, session, start, len(tokens))
        self._running[request_id] = running
        return running

    def _advance(self) -> None:
        """One step; its events go to the requests they belong to."""
        events = self._loop.step()
        if events is None:
            raise RuntimeError("no request can run, although some are waiting")
        now = time.perf_counter()
        for request_id, tokens, finish_reason in events:
            running = self._running[request_id]
            if not running.tokens:
                running.first_token_at = now
            running.tokens += tokens
            if finish_reason is not None:
                self._complete(running, finish_reason, now)
            if running.is_server_request:
                self._events.append(Event(request_id, tokens, running.turn))

    def _complete(self, running: _Running, finish_reason: str, now: float) -> None:
        stats = self._runtime.stats_of(running.request_id)
        del self._running[running.request_id]
        names = (
            "prompt_tokens",
            "reused_tokens",
            "delta_tokens",
            "recomputed_tokens",
            "fed_tokens",
            "drafted",
            "accepted",
        )
        turn_stats = TurnStats(
            **{name: stats[name] for name in names},
            prefill_s=running.first_token_at - running.submitted_at,
            decode_s=now - running.first_token_at,
        )
        running.turn = Turn(running.tokens, finish_reason, turn_stats)

    def _undo(self, running: _Running) -> None:
        """The session as it was before the request, finished or not."""
        if running.turn is not None:
            running.session.rollback(running.start_length)
            return
        self._runtime.abort(running.request_id)
        del self._running[running.request_id]

    def _stream(self, request: Request) -> Iterator[int]:
        running = self._submit(request)
        yielded = 0
        try:
            while True:
                while yielded < len(running.tokens):
                    yielded += 1
                    yield running.tokens[yielded - 1]
                if running.turn is not None:
                    return
                self._advance()
        except GeneratorExit:
            if running.turn is not None:
                request.session.rollback(running.start_length + running.delta_length + yielded)
            else:
                self._runtime.finish(running.request_id, yielded)
                del self._running[running.request_id]
            raise
        except BaseException:
            self._undo(running)
            raise


def _default_num_blocks(model: models.Decoder, block_size: int, useful: int) -> int:
    per_block = KVCache.bytes_per_block(model, block_size)
    if model.device.type == "cuda":
        budget = int(torch.cuda.mem_get_info(model.device)[0] * 0.9)
    else:
        budget = min(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_AVPHYS_PAGES") // 4, 8 << 30)
    return max(1, min(budget // per_block, useful))


__all__ = [
    "Engine",
    "Event",
    "OutOfBlocks",
    "PromptLookup",
    "Request",
    "SamplingParams",
    "Session",
    "Turn",
    "TurnStats",
]
