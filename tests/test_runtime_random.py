"""Random operations on the runtime over a fake KV memory: answers never depend on eviction, preemption, forks,
interleaving, drafts or chunking; failed, aborted and cancelled calls change nothing; every invariant holds always."""

import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from runtime_model import VOCAB, FakeDevice, answer

rt = pytest.importorskip("stateful_kv.runtime")

tokens_strategy = st.lists(st.integers(0, VOCAB - 1), max_size=14)
# Few different prompts, so that sessions meet in the tree.
SHARED = [[1, 2, 3, 4, 5, 6, 0, 1, 2, 3, 3, 3], [1, 2, 3, 4, 5, 0, 0, 0], [1, 2, 2], [6] * 9]
delta_strategy = st.one_of(
    tokens_strategy,
    st.sampled_from(SHARED),
    st.tuples(st.sampled_from(SHARED), tokens_strategy).map(lambda p: p[0] + p[1]),
)


class Machine(RuleBasedStateMachine):
    @initialize(
        num_blocks=st.integers(3, 40),
        block_size=st.sampled_from([1, 2, 3, 4, 8]),
        max_batch_tokens=st.integers(4, 40),
        max_seqs=st.integers(1, 4),
        num_drafts=st.sampled_from([0, 1, 3, 8]),
        prefix_cache=st.sampled_from([True, True, True, False]),
        latest=st.booleans(),
        policy=st.sampled_from(["lru", "turns"]),
        num_relatives=st.sampled_from([0, 1, 3]),
        num_branches=st.sampled_from([0, 2, 8]),
    )
    def make(self, num_blocks, block_size, prefix_cache, **options):
        self.capacity = num_blocks * block_size
        self.options = dict(options, prefix_cache=prefix_cache)
        self.rt = rt.Runtime(num_blocks, block_size, prefix_cache=prefix_cache, **options)
        self.device = FakeDevice(self.rt, num_blocks, block_size)
        self.sessions = {}  # handle -> committed tokens
        self.requests = {}  # id -> [session, prompt, expected tokens, expected reason, generated tokens]

    # ---- helpers

    def idle(self):
        busy = {r[0] for r in self.requests.values()}
        return sorted(h for h in self.sessions if h not in busy)

    def take(self, events):
        for request_id, new, reason in events:
            request = self.requests[request_id]
            session, prompt, expected, expected_reason, generated = request
            generated += new
            assert generated == expected[: len(generated)]
            if reason is not None:
                assert generated == expected and reason == expected_reason
                self.sessions[session] = prompt + generated
                stats = self.rt.stats_of(request_id)
                assert stats["prompt_tokens"] == len(prompt) and stats["accepted"] <= stats["drafted"]
                assert stats["reused_tokens"] <= len(prompt)
                del self.requests[request_id]

    # ---- operations

    @rule(namespace=st.sampled_from(["", "a"]))
    def open(self, namespace):
        if len(self.sessions) < 8:
            self.sessions[self.rt.open(namespace)] = []

    @rule(
        data=st.data(),
        delta=delta_strategy,
        max_tokens=st.integers(1, 20),
        stop=st.booleans(),
        priority=st.integers(0, 1),
    )
    def submit(self, data, delta, max_tokens, stop, priority):
        if not self.idle():
            return
        session = data.draw(st.sampled_from(self.idle()))
        prompt = self.sessions[session] + delta
        stops = (2, 5) if stop else ()
        arguments = dict(stop_token_ids=stops, priority=priority)
        if not prompt:
            with pytest.raises(ValueError, match="empty"):
                self.rt.submit(session, delta, max_tokens, **arguments)
            return
        if len(prompt) + max_tokens - 1 > self.capacity:
            with pytest.raises(rt.OutOfBlocks) as error:
                self.rt.submit(session, delta, max_tokens, **arguments)
            assert error.value.needed > self.rt.stats()["num_blocks"]
            return
        request_id = self.rt.submit(session, np.array(delta, np.int32), max_tokens, **arguments)
        self.requests[request_id] = [session, prompt, *answer(prompt, max_tokens, stops), []]
        with pytest.raises(ValueError, match="busy"):
            self.rt.submit(session, [1], 1)

    @rule(data=st.data(), spans=st.lists(tokens_strategy, max_size=3))
    def set_spans(self, data, spans):
        if self.idle():
            self.rt.set_spans(data.draw(st.sampled_from(self.idle())), spans)

    @precondition(lambda self: self.requests)
    @rule(num_steps=st.integers(1, 6))
    def step(self, num_steps):
        for _ in range(num_steps):
            events = self.device.step()
            assert (events is None) == (not self.requests)
            if events is None:
                return
            self.rt.check()
            self.take(events)

    @precondition(lambda self: self.requests)
    @rule(ran=st.booleans())
    def cancelled_step(self, ran):
        """A forward pass that failed, before or after it wrote into the cache."""
        info = self.rt.plan()
        self.rt.check()
        with pytest.raises(ValueError, match="planned"):
            self.rt.plan()
        if ran:
            self.device.run(info)
        self.rt.cancel_step()

    @precondition(lambda self: self.requests)
    @rule(data=st.data())
    def abort(self, data):
        request_id = data.draw(st.sampled_from(sorted(self.requests)))
        self.rt.abort(request_id)
        del self.requests[request_id]
        with pytest.raises(rt.StaleHandle):
            self.rt.abort(request_id)

    @precondition(lambda self: self.requests)
    @rule(data=st.data())
    def finish(self, data):
        request_id = data.draw(st.sampled_from(sorted(self.requests)))
        session, prompt, _, _, generated = self.requests.pop(request_id)
        keep = data.draw(st.integers(0, len(generated)))
        self.rt.finish(request_id, keep)
        self.sessions[session] = prompt + generated[:keep]

    @precondition(lambda self: self.idle() and len(self.sessions) < 8)
    @rule(data=st.data())
    def fork(self, data):
        session = data.draw(st.sampled_from(self.idle()))
        self.sessions[self.rt.fork(session)] = list(self.sessions[session])

    @precondition(lambda self: self.idle())
    @rule(data=st.data())
    def rollback(self, data):
        session = data.draw(st.sampled_from(self.idle()))
        length = data.draw(st.integers(0, len(self.sessions[session])))
        self.rt.rollback(session, length)
        del self.sessions[session][length:]

    @precondition(lambda self: self.idle())
    @rule(data=st.data())
    def close(self, data):
        session = data.draw(st.sampled_from(self.idle()))
        self.rt.close(session)
        del self.sessions[session]
        with pytest.raises(rt.StaleHandle):
            self.rt.length(session)

    @rule(num_blocks=st.integers(1, 10))
    def evict(self, num_blocks):
        before = self.rt.stats()
        freed = self.rt.evict(num_blocks)
        assert freed == min(num_blocks, before["evictable"])
        assert self.rt.stats()["free"] == before["free"] + freed

    @rule()
    def index_drafts(self):
        self.rt.index_drafts()

    # ---- what always holds

    @invariant()
    def consistent(self):
        if not hasattr(self, "rt"):
            return
        self.rt.check()
        stats = self.rt.stats()
        assert stats["free"] + stats["evictable"] + stats["protected"] + stats["session_held"] == stats["num_blocks"]
        assert stats["running"] + stats["waiting"] == len(self.requests)
        if not self.requests:
            assert stats["protected"] == stats["session_held"] == 0
        for session, tokens in self.sessions.items():
            assert self.rt.length(session) == len(tokens)
            assert self.rt.tokens(session).tolist() == tokens
            assert self.rt.resident(session) <= len(tokens)

    def teardown(self):
        if not hasattr(self, "rt"):
            return
        for _ in range(10_000):
            events = self.device.step()
            if events is None:
                break
            self.take(events)
        assert not self.requests, "requests never finished"
        for session in list(self.sessions):
            self.rt.close(session)
        self.rt.check()
        self.rt.evict(10_000)
        stats = self.rt.stats()
        assert stats["free"] == stats["num_blocks"] and stats["nodes"] == stats["namespaces"] == 0


TestRandomOperations = Machine.TestCase
TestRandomOperations.settings = settings(
    max_examples=500, stateful_step_count=40, deadline=None, suppress_health_check=list(HealthCheck)
)
