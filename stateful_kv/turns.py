"""The turns of an engine's sessions on their way: checked, begun, advanced step by step, taken back or ended early.

What the runtime knows is the truth: an interrupt may come anywhere, and whatever it left half done is settled from that
before anything else is asked or changed.
"""

import time
from collections.abc import Sequence

import numpy as np

from .arguments import INF, INT32, each, instance, integer, shown, token_ids
from .generate import Loop
from .responses import ResponseCache
from .runtime import OutOfBlocks, Runtime, StaleHandle
from .sampling import SamplingParams
from .session import Before, Event, Prepared, Request, Running, Session, Tokens, Turn, TurnStats

GREEDY = SamplingParams()


class Turns:
    """Engine and Session call it; one of each engine."""

    def __init__(
        self, loop: Loop, responses: ResponseCache, vocab_size: int, max_length: int, num_blocks: int,
        block_size: int,
    ):  # fmt: skip
        self.loop, self.responses = loop, responses
        self.vocab_size, self.max_length = vocab_size, max_length
        self.num_blocks, self.block_size = num_blocks, block_size
        self.running: dict[int, Running] = {}
        self.submitted: dict[int, tuple[Running, int]] = {}  # and how many tokens step() has told of each
        self.last_request_id = 0
        self._is_inside = False  # a step is under way, or what was left of one is being settled
        self._is_behind = False  # the runtime may know more than the events taken over
        self._to_finish: list[tuple[Running, int]] = []  # closed streams and how many tokens each had yielded

    @property
    def runtime(self) -> Runtime:
        return self.loop.runtime

    def checked(self, tokens: Tokens, call: str, name: str = "tokens") -> np.ndarray:
        return token_ids(call, name, tokens, self.vocab_size)

    def idle(self, session: Session, call: str) -> Before:
        """The session as it is. Raises ValueError while a turn of it is in progress, StaleHandle once it is closed."""
        instance(call, "session", session, Session)
        if session._turns is not self:
            raise ValueError(f"{call}: the session belongs to another engine")
        if session._is_closed:
            raise StaleHandle(f"{call}: the session is closed")
        self.settle()
        request_id = self.runtime.request_of(session._handle)
        if (running := self.running.get(request_id)) is not None:
            raise ValueError(f"{call}: the session is busy with {running.how_to_end()}")
        if request_id:  # an interrupt left it behind
            self.runtime.abort(request_id)
        return session, len(session), session._last_turn

    def is_latest(self, running: Running) -> bool:
        """Whether a turn that is over was the last thing that happened in its session."""
        session = running.session
        return session._is_closed or (
            session._last_turn == running.request_id and not self.runtime.request_of(session._handle)
        )

    def generate(self, requests: Sequence[Request], call: str) -> list[Turn]:
        given = each(call, "requests", requests, "a sequence of Request")
        prepared = [self.prepared(request, call, f"requests[{i}]") for i, request in enumerate(given)]
        before = [p.before for p in prepared]
        if len({id(session) for session, *_ in before}) < len(before):
            raise ValueError(f"{call}: a session is busy with another request of the batch")
        try:
            running = [self.begin(p) for p in prepared]
            while any(r.turn is None for r in running):
                self.advance()
        except BaseException:
            self.restore(before)
            raise
        return [r.turn for r in running]

    def step(self) -> list[Event]:
        """Engine.step."""
        self.settle()
        if self.running:
            self.advance()
        events, submitted = [], {}
        for request_id, (running, num_told) in self.submitted.items():
            if len(running.tokens) > num_told:
                events.append(Event(request_id, running.tokens[num_told:], running.turn))
            if running.turn is None:
                submitted[request_id] = running, len(running.tokens)
        self.submitted = submitted  # the last thing: until here an interrupt loses no event
        return events

    def abort(self, request_id: int) -> None:
        """Engine.abort."""
        request_id = integer("abort", "request_id", request_id, -INF, INF)
        if not 0 < request_id <= self.last_request_id:
            raise ValueError(f"abort: request_id is {shown(request_id)}, expected an id that submit() returned")
        self.settle()
        running = self.running.get(request_id)
        if running is None:
            running, _ = self.submitted.get(request_id, (None, 0))
            if running is None or not self.is_latest(running):
                return
            del self.submitted[request_id]
        self.restore([running.before])

    def prepared(self, request: Request, call: str, name: str = "request") -> Prepared:
        """The request, found good; nothing is changed yet."""
        instance(call, name, request, Request)
        before = self.idle(request.session, call)
        params = GREEDY if request.params is None else request.params
        instance(call, "params", params, SamplingParams)
        priority = integer(call, "priority", request.priority, *INT32)
        tokens_name = "prompt" if call == "complete" else "tokens"
        tokens = self.checked(request.tokens, call, tokens_name)
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

    def begin(self, p: Prepared) -> Running:
        try:
            key = self._response_key(p)
            if (known := self.responses.find(key)) is not None:
                running = self._answer(p, *known)
            else:
                running = self._enqueue(p)
                running.response_key = key
            if p.call == "submit":
                self.submitted[running.request_id] = running, 0
            return running
        except BaseException:
            self.restore([p.before])
            raise

    def _response_key(self, p: Prepared) -> bytes | None:
        if self.responses.capacity == 0:
            return None
        session = p.before[0]
        before = self.runtime.tokens(session._handle)
        return self.responses.key(session._namespace, before, p.tokens, p.params, p.max_tokens)

    def _enqueue(self, p: Prepared) -> Running:
        params = p.params
        try:
            # By position: eight keywords would take longer than all of the runtime's own work.
            request_id = self.runtime.submit(
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
        self.last_request_id = max(self.last_request_id, request_id)
        running = Running(request_id, p.before, len(p.tokens), params.stop_token_ids, p.call)
        self.running[request_id] = running
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
        request_id = self.runtime.append(session._handle, np.concatenate([p.tokens, answer]))
        self.last_request_id = max(self.last_request_id, request_id)
        running = Running(request_id, p.before, len(p.tokens))
        running.tokens = answer.tolist()
        stats = TurnStats(start + len(p.tokens), 0, len(p.tokens), 0, 0, 0, 0, 0.0, 0.0, from_response_cache=True)
        running.turn = Turn(list(running.tokens), finish_reason, stats)
        session._last_turn = request_id
        return running

    def advance(self) -> None:
        """One step; its events go to the requests they belong to."""
        num_running = len(self.running)
        self._is_inside = self._is_behind = True
        try:
            events = self.loop.step()
            if events is not None:
                now = time.perf_counter()
                for request_id, tokens, finish_reason in events:
                    if (running := self.running.get(request_id)) is not None:
                        self._take_over(running, tokens, finish_reason, now)
                    elif finish_reason is None:  # an interrupt left it behind
                        self.runtime.abort(request_id)
                self._is_behind = False
        finally:
            self._is_inside = False
        self.settle()
        if events is None and len(self.running) == num_running:
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
            stats = self.runtime.stats_of(running.request_id)
        except StaleHandle:  # they are told once, and an interrupt came as they were
            stats = dict.fromkeys(names, 0)
            stats["prompt_tokens"], stats["delta_tokens"] = running.prompt_length, running.delta_length
        stats["reused_tokens"] = min(stats["reused_tokens"], stats["prompt_tokens"] - 1)  # one row is fed at least
        turn_stats = TurnStats(
            **{name: stats[name] for name in names},
            prefill_s=running.first_token_at - running.submitted_at,
            decode_s=now - running.first_token_at,
        )
        self.responses.keep(running.response_key, running.tokens, finish_reason)
        running.session._last_turn = running.request_id
        running.turn = Turn(running.tokens, finish_reason, turn_stats)
        self.running.pop(running.request_id, None)

    def settle(self) -> None:
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
        self.runtime.cancel_step()
        now = time.perf_counter()
        for running in list(self.running.values()):
            handle, num_known = running.session._handle, running.prompt_length + len(running.tokens)
            if self.runtime.request_of(handle) == running.request_id:
                tokens, finish_reason = self.runtime.known_tokens(running.request_id, num_known).tolist(), None
            else:
                tokens = self.runtime.tokens(handle)[num_known:].tolist()
                answer = running.tokens + tokens
                finish_reason = "stop" if answer and answer[-1] in running.stop_token_ids else "length"
                if not answer:  # forgotten, not finished
                    self.running.pop(running.request_id)
                    self.submitted.pop(running.request_id, None)
                    continue
            self._take_over(running, tokens, finish_reason, now)

    def restore(self, before: list[Before]) -> None:
        """Sessions as they were: whatever an interrupt left half done, by what the runtime says of each of them."""
        self.settle()
        for session, length, last_turn in before:
            self.forget_turn(session)
            if not session._is_closed and len(session) > length:
                session.rollback(length)
            session._last_turn = last_turn

    def forget_turn(self, session: Session) -> None:
        """Aborts the session's turn in progress, if there is one; no event of it comes any more."""
        for request_id in [i for i, r in self.running.items() if r.session is session]:
            self.submitted.pop(request_id, None)
            self.running.pop(request_id, None)
        if not session._is_closed and (request_id := self.runtime.request_of(session._handle)):
            self.runtime.abort(request_id)

    def finish_early(self, running: Running, num_kept: int) -> None:
        """Ends a stream's turn with exactly its first num_kept tokens: after the step, where one is under way because
        the garbage collector dropped the stream in the middle of it."""
        self._to_finish.append((running, num_kept))
        self.settle()

    def _end_early(self, running: Running, num_kept: int) -> None:
        session = running.session
        if session._is_closed:
            return
        in_progress = self.runtime.request_of(session._handle)
        if in_progress == running.request_id:
            self.running.pop(running.request_id, None)
            self.runtime.finish(running.request_id, num_kept)
            session._last_turn = running.request_id
        elif not in_progress and session._last_turn == running.request_id:
            # Computed to its end already, and nothing that the session did since builds on the whole answer.
            self.runtime.rollback(session._handle, running.prompt_length + num_kept)
            session._last_turn = 0
