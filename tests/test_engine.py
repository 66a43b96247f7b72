"""Sessions on a small model: what a conversation answers never depends on how it got into the cache."""

import itertools

import numpy as np
import pytest
import torch
from checkpoints import VOCAB, save
from interrupts import InterruptAfter

import stateful_kv as skv
from stateful_kv.runtime import StaleHandle

FIXED = skv.PromptLookup(adaptive=False)  # drafts whatever they cost here
DEFAULTS = {"num_blocks": 128, "block_size": 8, "speculation": FIXED}
GREEDY = skv.SamplingParams(max_tokens=8)
SAMPLED = skv.SamplingParams(max_tokens=12, temperature=0.8, top_k=40, top_p=0.95, min_p=0.01, seed=11)


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory):
    return save("llama3", tmp_path_factory.mktemp("engine"))


@pytest.fixture
def engine_of(checkpoint):
    """Engines that share nothing but the weights; every test ends with the runtime's own check of its invariants."""
    made = []

    def make(**options):
        made.append(skv.Engine.from_pretrained(checkpoint, **{**DEFAULTS, **options}))
        return made[-1]

    yield make
    for engine in made:
        engine._loop.runtime.check()


def delta(seed: int, n: int) -> list[int]:
    return np.random.default_rng(seed).integers(0, VOCAB, n).tolist()


def cold(engine_of, prompt, params):
    """The answer to `prompt` computed from nothing."""
    return engine_of(prefix_cache=False, speculation=None).complete(prompt, params).tokens


@pytest.mark.parametrize("params", [GREEDY, SAMPLED], ids=["greedy", "sampled"])
def test_turns_answer_as_from_scratch_and_feed_only_the_delta(engine_of, params):
    engine = engine_of(speculation=None)
    session = engine.open_session()
    for i, n in enumerate([50, 1, 16, 7]):
        before = session.tokens
        turn = session.generate(delta(i, n), params)
        prompt = before + delta(i, n)
        assert turn.tokens == cold(engine_of, prompt, params)
        assert session.tokens == prompt + turn.tokens
        stats = turn.stats
        unwritten = 1 if before else 0  # the last sampled token's KV
        assert (stats.prompt_tokens, stats.delta_tokens, stats.recomputed_tokens) == (len(prompt), n, 0)
        assert stats.reused_tokens == len(before) - unwritten
        assert stats.fed_tokens == n + unwritten + params.max_tokens - 1
    assert engine.stats()["rows_fed"] == len(session) - 1


@pytest.mark.parametrize("params", [GREEDY, SAMPLED], ids=["greedy", "sampled"])
def test_speculation_changes_nothing_but_the_number_of_steps(engine_of, params):
    repetitive = delta(1, 12) * 6
    answers, steps = [], []
    longer = skv.SamplingParams(**{**params.__dict__, "max_tokens": 40})
    short, adaptive = skv.PromptLookup(2, 1, 3, latest=False, adaptive=False), skv.PromptLookup()
    for speculation in (None, FIXED, short, adaptive):
        engine = engine_of(speculation=speculation)
        session = engine.open_session()
        answers.append([session.generate(repetitive, longer).tokens, session.generate(delta(2, 5), longer).tokens])
        steps.append(engine.stats()["steps"])
    assert answers[0] == answers[1] == answers[2]
    assert steps[1] <= steps[0]


def test_speculation_is_used_and_counted(engine_of):
    engine = engine_of()
    session = engine.open_session()
    first = session.generate(delta(3, 30), skv.SamplingParams(max_tokens=30))
    session.rollback(0)
    # The answer stands in the conversation already: whatever precedes it now proposes it.
    turn = session.generate(delta(3, 30) + first.tokens + delta(3, 30), skv.SamplingParams(max_tokens=30))
    assert turn.stats.drafted >= turn.stats.accepted >= 0
    assert len(turn.tokens) == 30
    assert turn.stats.fed_tokens <= 90 + 30 + turn.stats.drafted


def test_many_requests_in_one_batch_answer_as_alone(engine_of):
    prompts = [delta(i, n) for i, n in enumerate([40, 3, 17, 64, 1, 25])]
    params = [skv.SamplingParams(max_tokens=4 + i, temperature=0.9 * (i % 2), seed=i) for i in range(6)]
    engine = engine_of(max_seqs=4, max_batch_tokens=32)  # fewer rows than requests, chunks shorter than prompts
    sessions = [engine.open_session() for _ in prompts]
    turns = engine.generate([skv.Request(s, p, q) for s, p, q in zip(sessions, prompts, params)])
    for prompt, q, turn, session in zip(prompts, params, turns, sessions):
        assert turn.tokens == cold(engine_of, prompt, q)
        assert session.tokens == prompt + turn.tokens


def test_prefixes_are_shared_and_namespaces_keep_them_apart(engine_of):
    engine = engine_of()
    prompt = delta(5, 61)
    expected = cold(engine_of, prompt, GREEDY)
    assert engine.complete(prompt, GREEDY).stats.reused_tokens == 0
    again = engine.complete(prompt, GREEDY)
    assert again.stats.reused_tokens == len(prompt) - 1 and again.tokens == expected
    partly = engine.complete(prompt[:37] + delta(6, 9), GREEDY)
    assert partly.stats.reused_tokens == 37
    assert partly.tokens == cold(engine_of, prompt[:37] + delta(6, 9), GREEDY)
    assert engine.complete(prompt, GREEDY, namespace="another tenant").stats.reused_tokens == 0
    assert engine_of(prefix_cache=False).complete(prompt, GREEDY).tokens == expected


def test_fork_is_copy_on_write(engine_of):
    engine = engine_of(speculation=None)
    parent = engine.open_session()
    parent.generate(delta(7, 43), GREEDY)
    past, used = parent.tokens, engine.stats()["blocks_copied"]
    child, twin = parent.fork(), parent.fork()
    assert engine.stats()["blocks_copied"] == used  # nothing is copied by forking
    deltas = [delta(8, 11), delta(9, 5), delta(9, 5)]
    turns = engine.generate([skv.Request(s, d, SAMPLED) for s, d in zip((parent, child, twin), deltas)])
    assert engine.stats()["blocks_copied"] > used
    for session, d, turn in zip((parent, child, twin), deltas, turns):
        assert turn.tokens == cold(engine_of, past + d, SAMPLED)
        assert turn.stats.fed_tokens == len(d) + 1 + SAMPLED.max_tokens - 1
        assert session.tokens == past + d + turn.tokens


def test_rollback_then_go_on_is_a_fresh_conversation(engine_of):
    engine = engine_of()
    session = engine.open_session()
    session.generate(delta(10, 50), GREEDY)
    for length in (53, 48, 41, 9, 0):
        session.rollback(length)
        assert len(session) == length
        prompt = session.tokens + delta(length, 6)
        assert session.generate(delta(length, 6), SAMPLED).tokens == cold(engine_of, prompt, SAMPLED)
        session.rollback(length)


def test_stop_tokens_end_the_answer_and_belong_to_it(engine_of):
    prompt = delta(11, 30)
    free = cold(engine_of, prompt, SAMPLED)
    stop = free[4]
    stopping = skv.SamplingParams(**{**SAMPLED.__dict__, "stop_token_ids": (stop,)})
    session = engine_of().open_session()
    turn = session.generate(prompt, stopping)
    assert turn.finish_reason == "stop"
    assert turn.tokens == free[: free.index(stop) + 1]
    assert session.tokens == prompt + turn.tokens


@pytest.mark.parametrize("take", [1, 3, 7, 12])
def test_stream_commits_exactly_what_it_yielded(engine_of, take):
    prompt = delta(12, 20) * 2
    expected = cold(engine_of, prompt, SAMPLED)
    session = engine_of().open_session()
    stream = session.stream(prompt, SAMPLED)
    assert list(itertools.islice(stream, take)) == expected[:take]
    stream.close()
    assert session.tokens == prompt + expected[:take]
    follow = session.generate(delta(13, 4), GREEDY)
    assert follow.tokens == cold(engine_of, prompt + expected[:take] + delta(13, 4), GREEDY)


def test_servers_submit_step_and_abort(engine_of):
    engine = engine_of()
    sessions = [engine.open_session() for _ in range(3)]
    prompts = [delta(20 + i, 15 + i) for i in range(3)]
    ids = [engine.submit(skv.Request(s, p, SAMPLED)) for s, p in zip(sessions[:2], prompts[:2])]
    got = {i: [] for i in ids}
    turns = {}
    for step in itertools.count():
        if step == 2:  # joins late
            ids.append(engine.submit(skv.Request(sessions[2], prompts[2], SAMPLED)))
            got[ids[2]] = []
        if step == 4:
            engine.abort(ids[1])
        for event in engine.step():
            got[event.request_id] += event.tokens
            if event.turn:
                turns[event.request_id] = event.turn
        if step > 4 and len(turns) == 2:
            break
        assert step < 100
    for k in (0, 2):
        assert got[ids[k]] == turns[ids[k]].tokens == cold(engine_of, prompts[k], SAMPLED)
    assert sessions[1].tokens == []
    assert engine.step() == []
    engine.abort(ids[1])  # gone already: a disconnecting client may be late
    with pytest.raises(ValueError, match="request_id"):
        engine.abort(ids[2] + 1)


def test_an_interrupted_turn_leaves_everything_as_it_was(engine_of, monkeypatch):
    engine = engine_of(max_batch_tokens=16)
    a, b = engine.open_session(), engine.open_session()
    a.generate(delta(30, 21), GREEDY)
    tokens_before = a.tokens
    real, calls = engine.model.logits, itertools.count()

    def interrupted(hidden):
        if next(calls) == 3:
            raise KeyboardInterrupt
        return real(hidden)

    monkeypatch.setattr(engine.model, "logits", interrupted)
    with pytest.raises(KeyboardInterrupt):
        engine.generate([skv.Request(a, delta(31, 30), SAMPLED), skv.Request(b, delta(32, 3), GREEDY)])
    monkeypatch.undo()
    assert (a.tokens, b.tokens) == (tokens_before, [])
    engine._loop.runtime.check()
    assert a.generate(delta(31, 30), SAMPLED).tokens == cold(engine_of, tokens_before + delta(31, 30), SAMPLED)
    assert b.generate(delta(32, 3), GREEDY).tokens == cold(engine_of, delta(32, 3), GREEDY)


@pytest.mark.parametrize("method", ["submit", "plan", "commit", "stats_of"])
@pytest.mark.parametrize("n", [1, 2])
def test_an_interrupt_between_two_calls_leaves_everything_as_it_was(engine_of, method, n):
    engine = engine_of(max_batch_tokens=16)
    a, b = engine.open_session(), engine.open_session()
    a.generate(delta(30, 21), GREEDY)
    tokens_before, runtime = a.tokens, engine._loop.runtime
    engine._loop.runtime = InterruptAfter(runtime, method, n)
    with pytest.raises(KeyboardInterrupt):
        engine.generate([skv.Request(a, delta(31, 30), SAMPLED), skv.Request(b, delta(32, 3), GREEDY)])
    engine._loop.runtime = runtime
    assert (a.tokens, b.tokens) == (tokens_before, [])
    runtime.check()
    assert a.generate(delta(31, 30), SAMPLED).tokens == cold(engine_of, tokens_before + delta(31, 30), SAMPLED)
    assert b.generate(delta(32, 3), GREEDY).tokens == cold(engine_of, delta(32, 3), GREEDY)


def test_a_stream_closed_late_takes_nothing_from_later_turns(engine_of):
    engine = engine_of()
    session = engine.open_session()
    stream = session.stream(delta(14, 9), skv.SamplingParams(max_tokens=1))
    first = next(stream)  # computed to its end, not yet noticed by the reader
    second = session.generate(delta(15, 4), GREEDY)
    stream.close()
    del stream
    assert session.tokens == delta(14, 9) + [first] + delta(15, 4) + second.tokens


def test_a_stream_starts_at_once_and_may_be_closed_unread(engine_of):
    engine = engine_of()
    session = engine.open_session()
    with pytest.raises(ValueError, match="vocabulary"):
        session.stream([VOCAB])
    session.stream(delta(16, 20), GREEDY).close()
    assert session.tokens == delta(16, 20)
    assert session.generate([1], GREEDY).tokens == cold(engine_of, delta(16, 20) + [1], GREEDY)
    with pytest.raises(ZeroDivisionError), engine.open_session() as other:
        stream = other.stream(delta(17, 5), GREEDY)
        next(stream)
        raise ZeroDivisionError


def test_an_answer_ends_where_the_positions_do(engine_of):
    session = engine_of().open_session()
    turn = session.generate(delta(18, 500), skv.SamplingParams(max_tokens=100))
    assert (turn.finish_reason, len(turn.tokens), len(session)) == ("length", 12, 512)


def test_bad_requests_are_refused_before_anything_happens(engine_of):
    engine, other = engine_of(), engine_of()
    session = engine.open_session()
    session.generate(delta(40, 10), GREEDY)
    before = session.tokens
    good = skv.Request(session, delta(41, 3), GREEDY)
    foreign = skv.Request(other.open_session(), [1], GREEDY)
    cases = [
        ([skv.Request(session, [1, VOCAB], GREEDY)], ValueError, f"{VOCAB} is not in the vocabulary"),
        ([skv.Request(session, [-1], GREEDY)], ValueError, "-1 is not in the vocabulary"),
        ([skv.Request(session, [[1]], GREEDY)], TypeError, "flat sequence"),
        ([skv.Request(session, [1.5], GREEDY)], TypeError, "integers"),
        ([skv.Request(session, [1] * 600, GREEDY)], ValueError, "positions"),
        ([good, foreign], ValueError, "another engine"),
        ([good, good], Exception, "running|busy"),
        ([skv.Request(engine.open_session(), [], GREEDY)], ValueError, "empty"),
    ]
    for requests, error, message in cases:
        with pytest.raises(error, match=message):
            engine.generate(requests)
        assert session.tokens == before
        engine._loop.runtime.check()
    for bad in (dict(max_tokens=0), dict(temperature=-1.0), dict(temperature=float("nan")), dict(top_p=float("nan"))):
        with pytest.raises(ValueError, match="SamplingParams"):
            skv.SamplingParams(**bad)
    for bad in (
        dict(max_tokens=4.0),
        dict(top_k=1.5),
        dict(seed=1.9),
        dict(stop_token_ids=2),
        dict(stop_token_ids=(2.7,)),
    ):
        with pytest.raises(TypeError, match="SamplingParams"):
            skv.SamplingParams(**bad)
    assert skv.SamplingParams(stop_token_ids={3}, seed=2**64 + 5).drawn_seed() == 5
    for bad in (dict(block_size=0), dict(block_size=300), dict(max_batch_tokens=0), dict(num_blocks=2**31)):
        with pytest.raises(ValueError, match=f"Engine: {next(iter(bad))}"):
            engine_of(**bad)
    with pytest.raises(TypeError, match="speculation"):
        engine_of(speculation=True)
    session.close()
    session.close()
    for use in (lambda: session.generate([1], GREEDY), lambda: len(session), session.fork):
        with pytest.raises(StaleHandle):
            use()


def test_memory_pressure_costs_time_and_never_answers(engine_of):
    """Six conversations in a pool that holds about two: evicted, preempted, recomputed, always the same answers."""
    engine = engine_of(num_blocks=24, max_batch_tokens=48)
    sessions = [engine.open_session() for _ in range(6)]
    texts = [[] for _ in sessions]
    recomputed = 0
    for turn in range(3):
        requests = [skv.Request(s, delta(100 * turn + i, 20 + i), SAMPLED) for i, s in enumerate(sessions)]
        for i, done in enumerate(engine.generate(requests)):
            prompt = texts[i] + delta(100 * turn + i, 20 + i)
            assert done.tokens == cold(engine_of, prompt, SAMPLED)
            texts[i] = prompt + done.tokens
            recomputed += done.stats.recomputed_tokens
    assert [s.tokens for s in sessions] == texts
    assert recomputed > 0
    assert engine.stats()["evicted_blocks"] > 0


def test_an_exhausted_pool_is_an_answer(engine_of):
    engine = engine_of(num_blocks=10)
    session = engine.open_session()
    session.generate(delta(50, 30), GREEDY)
    before = session.tokens
    with pytest.raises(skv.OutOfBlocks) as caught:
        session.generate(delta(51, 60), GREEDY)
    assert "block" in str(caught.value)
    assert session.tokens == before
    assert session.generate(delta(52, 10), SAMPLED).tokens == cold(engine_of, before + delta(52, 10), SAMPLED)


def test_seed_none_draws_a_fresh_seed(engine_of):
    engine = engine_of()
    params = skv.SamplingParams(max_tokens=20, temperature=2.0)
    answers = {tuple(engine.complete(delta(60, 9), params).tokens) for _ in range(4)}
    assert len(answers) > 1


def test_bfloat16_and_tokens_of_any_integer_kind(engine_of):
    engine = engine_of(dtype=torch.bfloat16)
    prompt = delta(70, 33)
    kinds = [prompt, tuple(prompt), np.array(prompt), np.array(prompt, np.uint16), torch.tensor(prompt)]
    answers = [engine.complete(kind, GREEDY).tokens for kind in kinds]
    assert all(len(a) == GREEDY.max_tokens for a in answers)
