"""Engine and Session: conversations that stay on the device, and the turns taken on them.

An Engine owns one model, one block pool and the radix tree over it; a Session is one agent's conversation in it.
One thread owns an engine and all its sessions.
"""

import os
import pathlib
import time
from collections.abc import Iterable, Sequence

import numpy as np
import torch
from torch import Tensor

from . import models
from .arguments import INF, INT32, each, flag, instance, integer, namespace_bytes, shown, token_ids
from .device_step import DeviceLoop
from .generate import KVCache, Loop, score
from .responses import ResponseCache
from .runtime import OutOfBlocks, Runtime, StaleHandle
from .sampling import PromptLookup, SamplingParams
from .session import Before, Event, Prepared, Request, Running, Session, Tokens, Turn, TurnStats

DTYPES = {"auto": None, "float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
GREEDY = SamplingParams()


class Engine:
    """One model, one block pool, many sessions.

    num_blocks: cache blocks of block_size tokens; None = 90 % of the free memory of a GPU, or a quarter of the host's
    (at most 8 GiB) on the CPU. speculation: PromptLookup(...) or None. prefix_cache: whether sessions share prefixes
    through the radix tree (a session always keeps its own). max_batch_tokens: rows of one step; longer deltas are
    ingested in chunks. max_seqs: requests that run at the same time. eviction: which idle prefix goes first when the
    pool is full: "lru", or "turns" for agents that take turns, where the least recently used is the next one needed.

    deterministic: True = bitwise the same logits and tokens for a turn from scratch, from the cache, with drafts or
    without, alone or in any batch and in any chunking (same processor, build and model); False = attention may split
    its work by what the batch looks like, and on the CPU read the KV of one or a few tokens where it lies, which is
    faster in long contexts, and on a GPU the linears are torch's. None = True on the CPU, False on CUDA: the linears
    that True takes there need 1.1 to 3.1 times cuBLAS's time on an H200. Trees of drafts (PromptLookup's branches)
    exclude it: a branch's keys are elsewhere while it is verified than in a chain, which changes the order of sums.
    Where branches are asked for, None is False.

    device_loop: True = steps that decode, verify or ingest short deltas run without the host (device_step.py), on a GPU
    as replays of CUDA graphs; the host is one step behind, so that a call of step() returns the events of the step
    before. Answers are the same. Steps of long deltas, of a full pool or with drafts from other conversations are the
    host's as before. Its drafts are chains: branches are refused.

    cascade: whether a prefix that neighbours of a batch share is read once for all of them (ops.delta_prefill_grouped)
    where a model of the costs says that it pays; None = on CUDA, unless deterministic. It excludes deterministic, whose
    bits must not depend on what a row shares; where it is True, deterministic=None is False.

    response_cache: how many answers to keep for prompts that come again: the same tokens in the same namespace, greedy
    or with the same seed, and the same parameters. Such a turn is not computed (TurnStats.from_response_cache); its KV
    is when a later turn needs it. 0 = none. stats() counts response_hits, response_misses and response_tokens.
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
        deterministic: bool | None = None,
        cascade: bool | None = None,
        device_loop: bool = False,
        response_cache: int = 0,
    ):
        if not isinstance(model, models.Decoder):
            raise TypeError(
                f"Engine: model is {shown(model)}, expected a Decoder (Engine.from_pretrained takes a directory)"
            )
        block_size = integer("Engine", "block_size", block_size, 1, 256)
        if num_blocks is not None:
            num_blocks = integer("Engine", "num_blocks", num_blocks, 1, INT32[1])
        max_batch_tokens = integer("Engine", "max_batch_tokens", max_batch_tokens, 1, INT32[1])
        max_seqs = integer("Engine", "max_seqs", max_seqs, 1, 2**20)
        response_cache = integer("Engine", "response_cache", response_cache, 0, INT32[1])
        prefix_cache = flag("Engine", "prefix_cache", prefix_cache)
        device_loop = flag("Engine", "device_loop", device_loop)
        deterministic = None if deterministic is None else flag("Engine", "deterministic", deterministic)
        cascade = None if cascade is None else flag("Engine", "cascade", cascade)
        if not isinstance(eviction, str) or eviction not in ("lru", "turns"):
            raise ValueError(f"Engine: eviction is {shown(eviction)}, expected 'lru' or 'turns'")
        if speculation is not None and not isinstance(speculation, PromptLookup):
            raise TypeError(f"Engine: speculation is {speculation!r}, expected a PromptLookup or None")
        if model.device.type not in ("cpu", "cuda"):
            raise NotImplementedError(f"Engine: the model's device is {model.device}, expected cpu or cuda")
        if model.device.type == "cuda" and model.dtype == torch.float32:
            raise NotImplementedError(
                "Engine: the model's dtype is float32 on cuda, expected float16 or bfloat16: pass dtype=torch.bfloat16"
            )
        draft = speculation or PromptLookup()
        if deterministic is None:
            deterministic = model.device.type == "cpu" and draft.branches == 0 and not cascade
        self.deterministic = deterministic
        if cascade and self.deterministic:
            raise ValueError("Engine: cascade is True, expected False or None where deterministic is True")
        _require_trees_fit(draft, model, self.deterministic, device_loop)
        if self.deterministic:
            model = model.row_independent()
        self.model, self.block_size = model, block_size
        self.max_length = model.config.max_position
        max_blocks_per_seq = -(-self.max_length // block_size)
        if num_blocks is None:
            num_blocks = _default_num_blocks(model, block_size, max_blocks_per_seq * max_seqs)
        else:
            _require_memory(model, block_size, num_blocks)
        max_batch_tokens = min(max_batch_tokens, max_seqs * self.max_length)  # no step has more, and rows take memory
        self.num_blocks = num_blocks
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
            num_relatives=draft.relatives,
            num_branches=draft.branches,
        )
        num_splits = -1 if self.deterministic else 0
        self._loop = Loop(model, KVCache(model, num_blocks, block_size), self._runtime, num_splits)
        self._loop.is_timed = speculation is not None and speculation.adaptive
        # Not on the CPU unless asked for: 2 to 8 sequences sharing up to 1024 tokens were slower with AVX2.
        by_device = model.device.type == "cuda" and not self.deterministic
        self._loop.shares_spans = by_device if cascade is None else cascade
        if device_loop:
            self._loop.device_loop = DeviceLoop(
                model, self._loop.cache, self._runtime, self._loop.planned, draft,
                num_drafts=draft.num_drafts if speculation else 0, max_length=self.max_length, block_size=block_size,
                num_splits=num_splits, is_timed=self._loop.is_timed,
            )  # fmt: skip
        self._responses = ResponseCache(response_cache)
        self._running: dict[int, Running] = {}
        self._submitted: dict[int, tuple[Running, int]] = {}  # and how many tokens step() has told of each
        self._is_inside = False  # a step is under way, or what was left of one is being settled
        self._is_behind = False  # the runtime may know more than the events taken over
        self._to_finish: list[tuple[Running, int]] = []  # closed streams and how many tokens each had yielded
        self._last_request_id = 0

    @classmethod
    def from_pretrained(
        cls,
        directory: str | pathlib.Path,
        device: str | torch.device | None = "cpu",
        dtype: torch.dtype | str | None = None,
        **options,
    ) -> "Engine":
        """An engine on a Hugging Face checkpoint directory (Llama, Qwen2, Qwen3, Mistral); `options` as for Engine.

        dtype: torch's or its name; None or "auto" = the one the config names, else float32. Raises NotImplementedError
        naming an unsupported architecture, ValueError naming a missing tensor.
        """
        if not isinstance(directory, (str, os.PathLike)):
            raise TypeError(f"from_pretrained: directory is {shown(directory)}, expected a path")
        named = DTYPES.get(dtype, dtype) if isinstance(dtype, str) else dtype
        if not any(named is known for known in DTYPES.values()):
            raise ValueError(f"from_pretrained: dtype is {shown(dtype)}, expected one of {', '.join(DTYPES)}")
        try:
            place = torch.device("cpu" if device is None else device)
        except (TypeError, ValueError, RuntimeError) as error:
            raise ValueError(f"from_pretrained: device is {shown(device)}, expected 'cpu' or 'cuda'") from error
        return cls(models.load(directory, place, named), **options)

    # ---- conversations ----

    def open_session(self, namespace: str | bytes | None = "", draft_spans: Iterable[Tokens] | None = ()) -> Session:
        """A new, empty conversation. Prefixes are shared within a namespace only (one per tenant, say; None is "").

        draft_spans: texts that its answers, and those of its forks, are expected to contain (spans.call_spans makes
        them of tools' schemas): where an answer begins like one, the rest is drafted. Raises ValueError for bad tokens.
        """
        namespace = namespace_bytes("open_session", namespace)
        texts = () if draft_spans is None else each("open_session", "draft_spans", draft_spans, "sequences of integers")
        spans = [self._checked(text, "open_session", f"draft_spans[{i}]") for i, text in enumerate(texts)]
        session = Session(self, self._runtime.open(namespace), namespace)
        if spans:
            self._runtime.set_spans(session._handle, spans)
        return session

    def generate(self, requests: Sequence[Request]) -> list[Turn]:
        """Takes one turn in each request's session, all in one ragged batch; returns when all are done.

        All or nothing: when one fails, every session is as it was before the call.
        """
        return self._generate(requests, "generate")

    def complete(
        self, prompt: Tokens, params: SamplingParams | None = None, namespace: str | bytes | None = ""
    ) -> Turn:
        """One stateless completion: the longest prefix of the prompt found in the radix tree is reused."""
        with self.open_session(namespace_bytes("complete", namespace)) as session:
            return self._generate([Request(session, prompt, params)], "complete")[0]

    # ---- servers: requests join and leave between steps ----

    def submit(self, request: Request) -> int:
        """Enqueues a turn; step() serves it. Returns its id. Raises ValueError for bad tokens, OutOfBlocks for a turn
        that the whole pool could not hold if its answer got as long as max_tokens."""
        return self._begin(self._prepared(request, "submit")).request_id

    def step(self) -> list[Event]:
        """One step of everything that runs; returns what happened to submitted requests since the last call, one event
        for each that got tokens. With nothing to do it returns an empty list. Under memory pressure requests wait or
        are preempted and go on later; one that could never fit was refused with OutOfBlocks by submit()."""
        self._settle()
        if self._running:
            self._advance()
        events, submitted = [], {}
        for request_id, (running, num_told) in self._submitted.items():
            if len(running.tokens) > num_told:
                events.append(Event(request_id, running.tokens[num_told:], running.turn))
            if running.turn is None:
                submitted[request_id] = running, len(running.tokens)
        self._submitted = submitted  # the last thing: until here an interrupt loses no event
        return events

    def abort(self, request_id: int) -> None:
        """Forgets a submitted request: its session is as before it, no event of it comes any more; so too where its
        turn is over (the response cache knew the answer, say) and step() has not told of that yet. Once it has, or
        where the session went on since, nothing is left to forget: the turn stands."""
        request_id = integer("abort", "request_id", request_id, -INF, INF)
        if not 0 < request_id <= self._last_request_id:
            raise ValueError(f"abort: request_id is {shown(request_id)}, expected an id that submit() returned")
        self._settle()
        running = self._running.get(request_id)
        if running is None:
            running, _ = self._submitted.get(request_id, (None, 0))
            if running is None or not self._is_latest(running):
                return
            del self._submitted[request_id]
        self._restore([running.before])

    def stats(self) -> dict[str, int]:
        """Counters and the state of the pool: rows_fed (rows that entered the model), steps, blocks_copied, tree_steps
        (steps in which some drafts were a tree), grouped_steps (in which shared prefixes were read once), and all of
        runtime.Runtime.stats()."""
        self._settle()
        loops = [self._loop, *filter(None, [self._loop.device_loop])]
        own = {name: sum(getattr(loop, name) for loop in loops) for name in ("rows_fed", "steps", "blocks_copied")}
        own["tree_steps"], own["grouped_steps"] = self._loop.tree_steps, self._loop.grouped_steps
        return {**self._runtime.stats(), **own, **self._responses.stats()}

    def score(self, tokens: Tokens) -> Tensor:
        """float32 logits [vocab] of what follows `tokens`, computed from nothing, beside the cache."""
        checked = self._checked(tokens, "score")
        if not 1 <= len(checked) <= self.max_length:
            raise ValueError(f"score: got {len(checked)} tokens, expected 1 to {self.max_length}")
        return score(self.model, checked.tolist(), self.block_size, self._loop.num_splits)

    # ---- inside ----

    def _checked(self, tokens: Tokens, call: str, name: str = "tokens") -> np.ndarray:
        return token_ids(call, name, tokens, self.model.config.vocab_size)

    def _idle(self, session: Session, call: str) -> Before:
        """The session as it is. Raises ValueError while a turn of it is in progress, StaleHandle once it is closed."""
        instance(call, "session", session, Session)
        if session._engine is not self:
            raise ValueError(f"{call}: the session belongs to another engine")
        if session._is_closed:
            raise StaleHandle(f"{call}: the session is closed")
        self._settle()
        request_id = self._runtime.request_of(session._handle)
        if (running := self._running.get(request_id)) is not None:
            raise ValueError(f"{call}: the session is busy with {running.how_to_end()}")
        if request_id:  # an interrupt left it behind
            self._runtime.abort(request_id)
        return session, len(session), session._last_turn

    def _is_latest(self, running: Running) -> bool:
        """Whether a turn that is over was the last thing that happened in its session."""
        session = running.session
        return session._is_closed or (
            session._last_turn == running.request_id and not self._runtime.request_of(session._handle)
        )

    def _generate(self, requests: Sequence[Request], call: str) -> list[Turn]:
        given = each(call, "requests", requests, "a sequence of Request")
        prepared = [self._prepared(request, call, f"requests[{i}]") for i, request in enumerate(given)]
        before = [p.before for p in prepared]
        if len({id(session) for session, *_ in before}) < len(before):
            raise ValueError(f"{call}: a session is busy with another request of the batch")
        try:
            running = [self._begin(p) for p in prepared]
            while any(r.turn is None for r in running):
                self._advance()
        except BaseException:
            self._restore(before)
            raise
        return [r.turn for r in running]

    def _prepared(self, request: Request, call: str, name: str = "request") -> Prepared:
        """The request, found good; nothing is changed yet."""
        instance(call, name, request, Request)
        before = self._idle(request.session, call)
        params = GREEDY if request.params is None else request.params
        instance(call, "params", params, SamplingParams)
        priority = integer(call, "priority", request.priority, *INT32)
        tokens_name = "prompt" if call == "complete" else "tokens"
        tokens = self._checked(request.tokens, call, tokens_name)
        prompt = before[1] + len(tokens)
        if prompt == 0:
            raise ValueError(f"{call}: {tokens_name} is empty, expected at least one in an empty session")
        room = self.max_length - prompt
        if room < 1:
            raise ValueError(
                f"{call}: {before[1]} tokens so far + {len(tokens)} new leave no room for an answer within the "
                f"model's {self.max_length} positions"
            )
        most = params.max_tokens
        if most is None:
            most = max(1, self._room_in_pool(prompt))
        most = min(most, room)
        return Prepared(call, before, tokens, params, most, priority)

    def _begin(self, p: Prepared) -> Running:
        try:
            key = self._response_key(p)
            if (known := self._responses.find(key)) is not None:
                running = self._answer(p, *known)
            else:
                running = self._enqueue(p)
                running.response_key = key
            if p.call == "submit":
                self._submitted[running.request_id] = running, 0
            return running
        except BaseException:
            self._restore([p.before])
            raise

    def _response_key(self, p: Prepared) -> bytes | None:
        if self._responses.capacity == 0:
            return None
        session = p.before[0]
        before = self._runtime.tokens(session._handle)
        return self._responses.key(session._namespace, before, p.tokens, p.params, p.max_tokens)

    def _enqueue(self, p: Prepared) -> Running:
        params = p.params
        try:
            # By position: eight keywords would take longer than all of the runtime's own work.
            request_id = self._runtime.submit(
                p.before[0]._handle,
                p.tokens,
                p.max_tokens,
                params.temperature,
                params.top_k,
                params.top_p,
                params.min_p,
                params.drawn_seed(),
                np.asarray(params.stop_token_ids, np.int32),
                -1,  # num_drafts: the runtime's
                p.priority,
            )
        except OutOfBlocks as error:
            raise self._explained(error, p) from None
        self._last_request_id = max(self._last_request_id, request_id)
        running = Running(request_id, p.before, len(p.tokens), params.stop_token_ids, p.call)
        self._running[request_id] = running
        return running

    def _room_in_pool(self, prompt_length: int) -> int:
        """The longest answer that the whole pool could hold; its last token is never written."""
        return self.num_blocks * self.block_size - prompt_length + 1

    def _explained(self, error: OutOfBlocks, p: Prepared) -> OutOfBlocks:
        """The same error in terms of what the caller gave."""
        start = p.before[1]
        fits = self._room_in_pool(start + len(p.tokens))
        explained = OutOfBlocks(
            f"{p.call}: out of KV blocks: {start} tokens so far + {len(p.tokens)} new + up to {p.max_tokens} of the "
            f"answer (max_tokens is {p.params.max_tokens}) need {error.needed} blocks of {self.block_size}, the engine "
            f"has {self.num_blocks}: expected "
            + (f"max_tokens at most {fits}" if fits > 0 else "fewer tokens")
            + ", or a larger num_blocks of Engine"
        )
        for name in ("needed", "free", "evictable", "pinned"):
            setattr(explained, name, getattr(error, name))
        return explained

    def _answer(self, p: Prepared, answer: np.ndarray, finish_reason: str) -> Running:
        """A turn that is over as it begins."""
        session, start, _ = p.before
        request_id = self._runtime.append(session._handle, np.concatenate([p.tokens, answer]))
        self._last_request_id = max(self._last_request_id, request_id)
        running = Running(request_id, p.before, len(p.tokens))
        running.tokens = answer.tolist()
        stats = TurnStats(start + len(p.tokens), 0, len(p.tokens), 0, 0, 0, 0, 0.0, 0.0, from_response_cache=True)
        running.turn = Turn(list(running.tokens), finish_reason, stats)
        session._last_turn = request_id
        return running

    def _advance(self) -> None:
        """One step; its events go to the requests they belong to."""
        num_running = len(self._running)
        self._is_inside = self._is_behind = True
        try:
            events = self._loop.step()
            if events is not None:
                now = time.perf_counter()
                for request_id, tokens, finish_reason in events:
                    if (running := self._running.get(request_id)) is not None:
                        self._take_over(running, tokens, finish_reason, now)
                    elif finish_reason is None:  # an interrupt left it behind
                        self._runtime.abort(request_id)
                self._is_behind = False
        finally:
            self._is_inside = False
        self._settle()
        if events is None and len(self._running) == num_running:
            raise RuntimeError("no request can run, although some are waiting")

    def _take_over(self, running: Running, tokens: list[int], finish_reason: str | None, now: float) -> None:
        if not running.tokens:
            running.first_token_at = now
        running.tokens += tokens
        if finish_reason is not None:
            self._complete(running, finish_reason, now)

    def _complete(self, running: Running, finish_reason: str, now: float) -> None:
        names = (
            "prompt_tokens",
            "reused_tokens",
            "delta_tokens",
            "recomputed_tokens",
            "fed_tokens",
            "drafted",
            "accepted",
            "drafted_spans",
            "accepted_spans",
            "drafted_relatives",
            "accepted_relatives",
            "drafted_branches",
            "accepted_branches",
        )
        try:
            stats = self._runtime.stats_of(running.request_id)
        except StaleHandle:  # they are told once, and an interrupt came as they were
            stats = dict.fromkeys(names, 0)
            stats["prompt_tokens"], stats["delta_tokens"] = running.prompt_length, running.delta_length
        stats["reused_tokens"] = min(stats["reused_tokens"], stats["prompt_tokens"] - 1)  # one row is fed at least
        turn_stats = TurnStats(
            **{name: stats[name] for name in names},
            prefill_s=running.first_token_at - running.submitted_at,
            decode_s=now - running.first_token_at,
        )
        self._responses.keep(running.response_key, running.tokens, finish_reason)
        running.session._last_turn = running.request_id
        running.turn = Turn(running.tokens, finish_reason, turn_stats)
        self._running.pop(running.request_id, None)

    def _settle(self) -> None:
        """Finishes what an interrupt or a stream dropped in the middle of a step left to do. Before anything else that
        asks or changes the runtime; costs nothing where nothing is left."""
        if self._is_inside or not (self._is_behind or self._to_finish):
            return
        self._is_inside = True
        try:
            if self._is_behind:
                self._catch_up()
                self._is_behind = False
            while self._to_finish:
                self._end_early(*self._to_finish.pop(0))
        finally:
            self._is_inside = False

    def _catch_up(self) -> None:
        """Events of a step that an interrupt swallowed, from what the runtime knows of each request."""
        self._runtime.cancel_step()
        now = time.perf_counter()
        for running in list(self._running.values()):
            handle, num_known = running.session._handle, running.prompt_length + len(running.tokens)
            if self._runtime.request_of(handle) == running.request_id:
                tokens, finish_reason = self._runtime.known_tokens(running.request_id, num_known).tolist(), None
            else:
                tokens = self._runtime.tokens(handle)[num_known:].tolist()
                answer = running.tokens + tokens
                finish_reason = "stop" if answer and answer[-1] in running.stop_token_ids else "length"
                if not answer:  # forgotten, not finished
                    self._running.pop(running.request_id)
                    self._submitted.pop(running.request_id, None)
                    continue
            self._take_over(running, tokens, finish_reason, now)

    def _restore(self, before: list[Before]) -> None:
        """Sessions as they were: whatever an interrupt left half done, by what the runtime says of each of them."""
        self._settle()
        for session, length, last_turn in before:
            self._forget_turn(session)
            if not session._is_closed and len(session) > length:
                session.rollback(length)
            session._last_turn = last_turn

    def _forget_turn(self, session: Session) -> None:
        """Aborts the session's turn in progress, if there is one; no event of it comes any more."""
        for request_id in [i for i, r in self._running.items() if r.session is session]:
            self._submitted.pop(request_id, None)
            self._running.pop(request_id, None)
        if not session._is_closed and (request_id := self._runtime.request_of(session._handle)):
            self._runtime.abort(request_id)

    def _finish_early(self, running: Running, num_kept: int) -> None:
        """Ends a stream's turn with exactly its first num_kept tokens: after the step, where one is under way because
        the garbage collector dropped the stream in the middle of it."""
        self._to_finish.append((running, num_kept))
        self._settle()

    def _end_early(self, running: Running, num_kept: int) -> None:
        session = running.session
        if session._is_closed:
            return
        in_progress = self._runtime.request_of(session._handle)
        if in_progress == running.request_id:
            self._running.pop(running.request_id, None)
            self._runtime.finish(running.request_id, num_kept)
            session._last_turn = running.request_id
        elif not in_progress and session._last_turn == running.request_id:
            # Computed to its end already, and nothing that the session did since builds on the whole answer.
            self._runtime.rollback(session._handle, running.prompt_length + num_kept)
            session._last_turn = 0


def _require_trees_fit(draft: PromptLookup, model: models.Decoder, deterministic: bool, device_loop: bool) -> None:
    if draft.branches == 0:
        return
    for is_on, name, why in (
        (deterministic, "deterministic", "a branch's sums are ordered otherwise than a chain's"),
        (device_loop, "device_loop", "the device's drafts are chains"),
    ):
        if is_on:
            raise ValueError(f"Engine: {name} is True and PromptLookup.branches {draft.branches}: {why}")
    # By its slot an ancestor lies nearer than by its position: a window may hide none of them.
    windows = [layer.window_left for layer in model.layers if 0 <= layer.window_left < draft.num_drafts]
    if windows:
        raise ValueError(
            f"Engine: PromptLookup.num_drafts is {draft.num_drafts} with branches, expected at most the {min(windows)} "
            "tokens before its own that a sliding window of the model shows"
        )


def _default_num_blocks(model: models.Decoder, block_size: int, useful: int) -> int:
    per_block = KVCache.bytes_per_block(model, block_size)
    if model.device.type == "cuda":
        budget = int(torch.cuda.mem_get_info(model.device)[0] * 0.9)
    else:
        budget = min(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_AVPHYS_PAGES") // 4, 8 << 30)
    return max(1, min(budget // per_block, useful))


def _require_memory(model: models.Decoder, block_size: int, num_blocks: int) -> None:
    """Refuses what could not be there even if nothing else was: allocators fail later, or never and are killed."""
    per_block = KVCache.bytes_per_block(model, block_size)
    if model.device.type == "cuda":
        total = torch.cuda.mem_get_info(model.device)[1]
    else:
        total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if num_blocks > total // per_block:
        raise ValueError(
            f"Engine: num_blocks is {num_blocks}, of {per_block} bytes each, expected at most the {total // per_block} "
            f"that {model.device.type} memory could hold"
        )
