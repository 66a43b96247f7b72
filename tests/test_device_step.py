"""Steps that the device takes by itself: what they leave behind is what the host's steps leave."""

import random
import statistics
import time

import numpy as np
import pytest
import torch
from device_steps import VOCAB, engine_of, params_of, small_model

import stateful_kv as skv
from stateful_kv import device_step


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return small_model(tmp_path_factory.mktemp("device_step"))


def text_of(r, lengths=(1, 3, 10, 30, 70)):
    """Some repeat themselves, so that drafts are found; most are short enough to join as rows of a step."""
    n = r.choice(lengths)
    return r.choice([[r.randrange(VOCAB) for _ in range(n)], [r.randrange(VOCAB)] * n])


class Script:
    """Sessions that open, take turns, fork, roll back, give up and close: the same for whichever engine."""

    def __init__(self, engine, seed):
        self.engine, self.r = engine, random.Random(seed)
        self.sessions, self.ids, self.steps, self.turns = [engine.open_session()], {}, {}, {}

    def between_steps(self):
        r, engine = self.r, self.engine
        busy = {i for s, i in self.ids.items() if i not in self.turns}
        idle = [k for k in range(len(self.sessions)) if self.ids.get(k) not in busy]
        for k in idle:
            action = r.choice(["turn", "turn", "turn", "fork", "rollback", "wait"])
            session = self.sessions[k]
            if action == "turn" and len(session) < 300:
                request = skv.Request(session, text_of(r), params_of(r))
                self.ids[k] = engine.submit(request)
                self.steps[self.ids[k]] = []
            elif action == "fork" and len(self.sessions) < 7:
                self.sessions.append(session.fork() if len(session) else engine.open_session())
            elif action == "rollback" and len(session):
                session.rollback(r.randrange(len(session)))
        if busy and r.random() < 0.05:
            given_up = r.choice(sorted(busy))
            engine.abort(given_up)
            self.turns[given_up] = None

    def take(self, events):
        for event in events:
            self.steps[event.request_id].append(event.tokens)
            if event.turn is not None:
                self.turns[event.request_id] = event.turn

    def step(self):
        self.take(self.engine.step())


def counts(turn):
    names = ("prompt_tokens", "reused_tokens", "delta_tokens", "fed_tokens", "drafted", "accepted")
    return turn and (turn.finish_reason, turn.tokens, [getattr(turn.stats, name) for name in names])


def run_settled(engine, seed, rounds):
    """Yields what there is after every step, results of steps under way taken over each time."""
    script = Script(engine, seed)
    for _ in range(rounds):
        script.between_steps()
        script.step()
        if engine._loop.device_loop is not None and engine._loop.device_loop._launched:
            script.step() if not engine._turns.running else script.take(engine_events(engine))
        runtime = engine._loop.runtime
        runtime.check()
        running = {i: runtime.known_tokens(i).tolist() for i in engine._turns.running}
        yield running, [s.tokens for s in script.sessions], {i: counts(t) for i, t in script.turns.items()}, script


def engine_events(engine):
    """The events of steps under way, as step() would return them."""
    advance, loop = engine._loop.step, engine._loop
    loop.step = loop.device_loop._take_all
    try:
        return engine.step()
    finally:
        loop.step = advance


@pytest.mark.parametrize("speculation", [None, skv.PromptLookup(num_drafts=5, adaptive=False)], ids=["plain", "drafts"])
@pytest.mark.parametrize("seed", range(4))
def test_the_state_after_every_step_is_that_of_the_hosts_steps(model, speculation, seed):
    """Sessions join, leave, stop, fork and roll back: the same tokens known after every step, the same turns."""
    host = run_settled(engine_of(model, speculation=speculation), seed, 60)
    engine = engine_of(model, speculation=speculation, device_loop=True)
    for want, got in zip(host, run_settled(engine, seed, 60)):
        assert got[:3] == want[:3]
    assert got[3].steps == want[3].steps
    loop = engine._loop
    assert loop.device_loop.steps > 25 and loop.steps > 0
    assert engine.stats()["rows_fed"] == want[3].engine.stats()["rows_fed"]
    finished = [t for t in got[3].turns.values() if t]
    assert {t.finish_reason for t in finished} == {"stop", "length"}
    assert speculation is None or sum(t.stats.accepted for t in finished) > 0


def cached_kv(engine, tokens):
    """The KV of a conversation that has just been taken, by the blocks its next turn would find."""
    runtime, n = engine._loop.runtime, len(tokens) - 1
    session = engine.open_session()
    runtime.submit(session._handle, np.asarray(tokens, np.int32), 1)
    info = runtime.plan()
    table = torch.from_numpy(runtime.buffers["block_table"][: info.num_seqs].copy())
    row = int(np.flatnonzero(runtime.buffers["seqused_k"])[0])
    reused = (int(runtime.buffers["seqused_k"][row]) - info.num_tokens) // engine.block_size * engine.block_size
    runtime.cancel_step()
    runtime.abort(runtime.request_of(session._handle))
    session.close()
    assert reused >= n - 1 - engine.block_size
    slots = torch.arange(reused)
    blocks, offsets = table[row, slots // engine.block_size].long(), slots % engine.block_size
    cache = engine._loop.cache
    return [torch.stack([k[blocks, offsets], v[blocks, offsets]]) for k, v in zip(cache.keys, cache.values)]


def test_the_cache_holds_the_same_bits(model):
    r = random.Random(1)
    texts = [[r.randrange(VOCAB) for _ in range(20)] * 2, [5] * 13, [r.randrange(VOCAB) for _ in range(31)]]
    params = skv.SamplingParams(max_tokens=30)
    found = []
    for device_loop in (False, True):
        engine = engine_of(model, device_loop=device_loop)
        sessions = [engine.open_session() for _ in texts]
        for delta in ([], [1, 2, 3]):
            engine.generate([skv.Request(s, delta or t, params) for s, t in zip(sessions, texts)])
        found.append([cached_kv(engine, s.tokens) for s in sessions])
    for host, device in zip(*found):
        for a, b in zip(host, device):
            assert torch.equal(a[:, : b.size(1)], b[:, : a.size(1)]) and min(a.size(1), b.size(1)) > 60


@pytest.mark.parametrize("adaptive", [False, True])
@pytest.mark.parametrize("seed", range(2))
def test_a_host_one_step_behind_gets_the_same_answers(model, seed, adaptive):
    """Nobody waits for results here; where blocks suffice for a part of the sessions only, some are preempted."""
    r = random.Random(seed)
    jobs = [(text_of(r, (1, 3, 10)), text_of(r, (1, 3, 10)), params_of(r), params_of(r)) for _ in range(12)]
    answers = []
    for options in (
        {"speculation": None},
        {"device_loop": True, "speculation": skv.PromptLookup(num_drafts=4, adaptive=adaptive)},
        {"device_loop": True, "num_blocks": 12, "speculation": skv.PromptLookup(num_drafts=4, adaptive=adaptive)},
        {"device_loop": True, "speculation": None, "deterministic": True, "max_seqs": 3},
    ):
        engine = engine_of(model, **options)
        sessions = [engine.open_session() for _ in jobs]
        turns = engine.generate([skv.Request(s, a, p) for s, (a, _, p, _) in zip(sessions, jobs)])
        turns += engine.generate([skv.Request(s, b, p) for s, (_, b, _, p) in zip(sessions, jobs)])
        answers.append([(t.tokens, t.finish_reason) for t in turns])
        assert answers[-1] == answers[0]
        if "device_loop" in options:
            assert engine._loop.device_loop.steps > 10
        if "num_blocks" in options:
            assert engine._loop.steps > 3 and (adaptive or engine.stats()["preemptions"] > 0)
        engine._loop.runtime.check()


def sent_by_turn(model, monkeypatch, length):
    """Bytes sent to the device in each of three turns of a session of that many tokens and a short one."""
    sent, send = [], device_step.BatchState._send
    monkeypatch.setattr(device_step.BatchState, "_send", lambda s, a: (sent.append(a.nbytes), send(s, a))[1])
    engine = engine_of(model, num_blocks=400, max_seqs=3, device_loop=True, speculation=None)
    sessions = [engine.open_session() for _ in range(2)]
    for session, n in zip(sessions, (length, 9)):
        session.generate([i % VOCAB for i in range(n)], skv.SamplingParams(max_tokens=2))
    turns = []
    for _ in range(3):
        sent.clear()
        engine.generate([skv.Request(s, [1, 2, 3], skv.SamplingParams(max_tokens=5)) for s in sessions])
        turns.append(sum(sent))
    return turns


def test_what_a_turn_sends_does_not_grow_with_the_conversation(model, monkeypatch):
    """Nor does the device forget the blocks and tokens of a session between its turns."""
    short, long = (sent_by_turn(model, monkeypatch, length) for length in (100, 470))
    assert all(abs(a - b) <= 64 for a, b in zip(short, long))  # a block more or less


@pytest.mark.parametrize("options", [{}, {"max_seqs": 2}, {"num_blocks": 60}, {"prefix_cache": False}], ids=str)
@pytest.mark.parametrize("seed", range(3))
def test_the_device_holds_what_the_host_says_it_does(model, monkeypatch, seed, options):
    """Rows change hands, blocks are evicted, copied and shared again: after every update each row has its session's
    blocks and tokens."""
    update, seen = device_step.BatchState.update, []

    def checked(state, runtime, planned):
        update(state, runtime, planned)
        for row in np.flatnonzero(planned["ahead_request"]).tolist():
            end = int(planned["table_end"][row])
            assert state.block_table[row, :end].tolist() == planned["block_table"][row, :end].tolist()
            known = runtime.known_tokens(int(planned["ahead_request"][row])).tolist()
            assert state.history[row, : len(known)].tolist() == known
            seen.append(int(planned["table_begin"][row]))

    monkeypatch.setattr(device_step.BatchState, "update", checked)
    engine = engine_of(model, device_loop=True, **options)
    for _ in run_settled(engine, seed, 60):
        pass
    assert len(seen) > 20 and any(seen) and not all(seen)


def test_streams_that_end_early(model):
    engine, reference = engine_of(model, device_loop=True), engine_of(model)
    sessions = [e.open_session() for e in (engine, reference)]
    for n in (1, 4, 7):
        taken = []
        for session in sessions:
            stream = session.stream([n, n, n], skv.SamplingParams(max_tokens=20))
            taken.append([next(stream) for _ in range(n)])
            stream.close()
        assert taken[0] == taken[1] and sessions[0].tokens == sessions[1].tokens
    answers = [session.generate([3], skv.SamplingParams(max_tokens=5)).tokens for session in sessions]
    assert answers[0] == answers[1]


def test_more_stop_tokens_than_the_device_knows_are_the_hosts(model):
    params = skv.SamplingParams(max_tokens=20, stop_token_ids=tuple(range(17)))
    engine = engine_of(model, device_loop=True)
    turn = engine.complete([1, 2, 3], params)
    assert turn.tokens == engine_of(model).complete([1, 2, 3], params).tokens
    assert engine._loop.device_loop.steps == 0


def test_a_failed_step_changes_nothing(model, monkeypatch):
    engine, reference = engine_of(model, device_loop=True), engine_of(model)
    params = skv.SamplingParams(max_tokens=12)
    sessions = [e.open_session() for e in (engine, reference)]
    for session in sessions:
        session.generate([1, 2, 3], params)
    before, real = sessions[0].tokens, device_step.forward
    left = iter([0, 0, 0, 1])
    monkeypatch.setattr(device_step, "forward", lambda *a: 1 / 0 if next(left) else real(*a))
    with pytest.raises(ZeroDivisionError):
        sessions[0].generate([4, 5], params)
    monkeypatch.undo()
    assert sessions[0].tokens == before
    engine._loop.runtime.check()
    answers = [session.generate([4, 5], params).tokens for session in sessions]
    assert answers[0] == answers[1]


def test_a_copy_that_failed_is_made_again(model, monkeypatch):
    """A fork inside a block; the step that should copy that block fails, and the request goes on."""
    engine, reference = engine_of(model, device_loop=True), engine_of(model)
    params, children = skv.SamplingParams(max_tokens=12), []
    for e in (engine, reference):
        parent = e.open_session()
        parent.generate([1, 2, 3], params)
        children.append(parent.fork())
    real, failures = device_step.ops.copy_blocks, [ZeroDivisionError]

    def copy_blocks(*args):
        if failures:
            raise failures.pop()
        real(*args)

    monkeypatch.setattr(device_step.ops, "copy_blocks", copy_blocks)
    engine.submit(skv.Request(children[0], [7], params))
    with pytest.raises(ZeroDivisionError):
        engine.step()
    engine._loop.runtime.check()
    events = []
    while not events or events[-1].turn is None:
        events += engine.step()
    tokens = events[-1].turn.tokens
    assert tokens == children[1].generate([7], params).tokens and children[0].tokens == children[1].tokens
    assert engine._loop.device_loop.blocks_copied == 1
    engine._loop.runtime.check()


def test_a_step_that_draws_nothing_is_an_error(model, monkeypatch):
    engine = engine_of(model, device_loop=True)
    session = engine.open_session()
    session.generate([1, 2, 3], skv.SamplingParams(max_tokens=3))
    before = session.tokens
    real = device_step.ops.verify_drafts
    monkeypatch.setattr(device_step.ops, "verify_drafts", lambda *a, **k: (real(*a, **k), k["num_tokens"].zero_()))
    with pytest.raises(ValueError, match="commit_ahead: row 0 reports 0 tokens of 1 logit rows"):
        session.generate([4], skv.SamplingParams(max_tokens=3))
    monkeypatch.undo()
    assert session.tokens == before and session.generate([4], skv.SamplingParams(max_tokens=3)).tokens


class Timed:
    """A runtime that keeps what it is told steps took."""

    def __init__(self, runtime):
        self.runtime, self.seconds = runtime, []

    def __getattr__(self, name):
        return getattr(self.runtime, name)

    def commit_ahead(self, requests, results, seconds):
        self.seconds.append(seconds)
        return self.runtime.commit_ahead(requests, results, seconds)


class Reached:
    """An event of a GPU, that many milliseconds after another."""

    def __init__(self, at):
        self.at = at

    def elapsed_time(self, end):
        return end.at - self.at

    def synchronize(self):
        pass


@pytest.mark.parametrize("adaptive", [False, True])
@pytest.mark.parametrize("is_on_gpu", [False, True])
def test_what_callers_do_between_steps_is_no_time_of_theirs(model, adaptive, is_on_gpu):
    """What drafts cost would be judged by it. Of a GPU's step its events say what it took."""
    engine = engine_of(model, device_loop=True, speculation=skv.PromptLookup(num_drafts=3, adaptive=adaptive))
    loop = engine._loop.device_loop
    timed = loop.runtime = Timed(loop.runtime)
    engine.submit(skv.Request(engine.open_session(), [1, 2, 3], skv.SamplingParams(max_tokens=8)))
    while engine._turns.running:
        engine.step()
        if loop._launched and is_on_gpu:
            loop._launched[-1] = loop._launched[-1]._replace(began=Reached(2.0), is_done=Reached(5.0))
        time.sleep(0.1)
    if not adaptive:
        assert timed.seconds == [0.0] * len(timed.seconds)
    elif is_on_gpu:
        assert timed.seconds == pytest.approx([3e-3] * len(timed.seconds))
    else:
        assert 0 < statistics.median(timed.seconds) < 0.1


def test_sizes_of_captured_steps():
    sizes = [device_step.padded(n) for n in range(1, 1000)]
    assert all(n <= size <= max(2 * n, 1) and size <= n * 1.34 + 2 for n, size in enumerate(sizes, 1))
    assert len(set(sizes)) <= 32 and sorted(sizes) == sizes
