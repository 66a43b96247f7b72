"""What interrupts, dropped streams and closed sessions leave behind: nothing that another conversation would notice."""

import pytest
import torch
from checkpoints import save
from interrupts import InterruptAfter

import stateful_kv as skv
from stateful_kv.runtime import StaleHandle

SHAPE = {"num_hidden_layers": 1, "hidden_size": 32, "intermediate_size": 48, "vocab_size": 40}


def greedy(max_tokens):
    return skv.SamplingParams(max_tokens=max_tokens)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return skv.models.load(save("llama2", tmp_path_factory.mktemp("interrupts"), SHAPE), torch.device("cpu"))


@pytest.fixture
def engine_of(model):
    made = []

    def make(**options):
        made.append(skv.Engine(model, **{"num_blocks": 100, "block_size": 8, "speculation": None, **options}))
        return made[-1]

    yield make
    for engine in made:
        engine._loop.runtime.check()


def answer(engine_of, prompt, n):
    return engine_of().complete(prompt, greedy(n)).tokens


def set_runtime(engine, runtime):
    for loop in filter(None, (engine._loop, engine._loop.device_loop)):
        loop.runtime = runtime


def interrupted(engine, method, n, act):
    """Does what is interrupted after the n-th call of a method of the runtime."""
    runtime = engine._loop.runtime
    set_runtime(engine, InterruptAfter(runtime, method, n))
    with pytest.raises(KeyboardInterrupt):
        act()
    set_runtime(engine, runtime)


def take_all(engine, request_id):
    """All events of a submitted request: their tokens and its turn."""
    tokens = []
    for _ in range(100):
        for event in engine.step():
            assert event.request_id == request_id
            tokens += event.tokens
            if event.turn is not None:
                assert engine.step() == []
                return tokens, event.turn
    raise AssertionError("the request never ended")


# ---- streams that end late


def finished_behind(engine):
    """A session, and a stream of it whose turn another's turn took to its end while one token was read."""
    session, other = engine.open_session(), engine.open_session()
    stream = session.stream([1, 2, 3], greedy(8))
    next(stream)
    other.generate([5, 6], greedy(12))
    assert len(session) == 11 and not engine._turns.running
    return session, stream


@pytest.mark.parametrize("is_closed", [True, False], ids=["closed", "dropped"])
def test_an_old_stream_takes_nothing_from_a_newer_turn_of_the_same_length(engine_of, is_closed):
    session, stream = finished_behind(engine_of())
    session.rollback(0)
    turn = session.generate([9, 9, 9], greedy(8))
    if is_closed:
        stream.close()
    del stream
    assert session.tokens == [9, 9, 9, *turn.tokens]


def test_an_old_stream_takes_nothing_from_a_newer_stream(engine_of):
    session, stream = finished_behind(engine_of())
    session.rollback(0)
    newer = session.stream([9, 9, 9], greedy(20))
    tokens = [next(newer) for _ in range(8)]
    newer.close()
    stream.close()
    assert session.tokens == [9, 9, 9, *tokens]


def test_a_stream_finished_behind_commits_what_it_yielded_while_nothing_else_happened(engine_of):
    engine = engine_of()
    session, stream = finished_behind(engine)
    with pytest.raises(ValueError, match="length"):
        session.rollback(100)
    with pytest.raises(ValueError, match="vocabulary"):
        session.generate([40])
    interrupted(engine, "commit", 2, lambda: session.generate([7], greedy(3)))
    stream.close()
    assert session.tokens == [1, 2, 3, *answer(engine_of, [1, 2, 3], 1)]


def drop_within_a_step(engine, monkeypatch, max_tokens=1):
    """A session whose stream was dropped during the only step of another session's turn."""
    session, other = engine.open_session(), engine.open_session()
    streams = [session.stream([1, 2, 3], greedy(8))]
    next(streams[0])
    run = engine._loop._run

    def dropping(plan):
        streams.clear()
        run(plan)

    monkeypatch.setattr(engine._loop, "_run", dropping)
    other.generate([4], greedy(max_tokens))
    monkeypatch.undo()
    return session


def test_a_stream_dropped_during_a_step_has_ended_after_it(engine_of, monkeypatch):
    first = answer(engine_of, [1, 2, 3], 1)
    engine = engine_of()
    session = drop_within_a_step(engine, monkeypatch)
    assert engine.step() == []
    assert session.tokens == [1, 2, 3, *first]
    session = drop_within_a_step(engine_of(), monkeypatch)
    assert session.generate([7], greedy(2)).tokens == answer(engine_of, [1, 2, 3, *first, 7], 2)
    engine = engine_of()
    engine.submit(skv.Request(drop_within_a_step(engine, monkeypatch, 3), [7], greedy(1)))
    assert engine.step()[0].turn.tokens == answer(engine_of, [1, 2, 3, *first, 7], 1)


# ---- sessions closed and turns aborted


@pytest.mark.parametrize("is_closed", [True, False], ids=["closed", "aborted"])
def test_a_stream_whose_turn_is_gone_runs_nobody_elses(engine_of, is_closed):
    engine = engine_of()
    session, other = engine.open_session(), engine.open_session()
    stream = session.stream([1, 2, 3], greedy(8))
    next(stream)
    other_id = engine.submit(skv.Request(other, [4, 5], greedy(20)))
    steps = engine.stats()["steps"]
    if is_closed:
        session.close()
        for _ in range(2):
            with pytest.raises(StaleHandle):
                next(stream)
    else:
        engine.abort(other_id - 1)
        assert list(stream) == [] and session.tokens == []
    stream.close()
    assert engine.stats()["steps"] == steps
    assert take_all(engine, other_id)[0] == answer(engine_of, [4, 5], 20)


def test_an_aborted_stream_yields_nothing_that_was_computed_already(engine_of):
    engine = engine_of()
    session = engine.open_session()
    stream = session.stream([1, 2, 3], greedy(30))
    engine.open_session().generate([4], greedy(3))
    engine.abort(engine._loop.runtime.request_of(session._handle))
    assert list(stream) == [] and session.tokens == []


def test_no_event_comes_of_a_request_whose_session_was_closed(engine_of):
    engine = engine_of()
    closed, aborted, other = (engine.open_session() for _ in range(3))
    ids = [engine.submit(skv.Request(session, [1, 2], greedy(30))) for session in (closed, aborted)]
    other.generate([3], greedy(2))
    closed.close()
    engine.abort(ids[1])
    assert engine.step() == []
    assert engine.step() == []


@pytest.mark.parametrize("response_cache", [0, 8])
def test_a_session_is_refused_twice_in_a_batch_before_anything_happens(engine_of, response_cache):
    engine = engine_of(response_cache=response_cache)
    engine.complete([1, 2, 3], greedy(4))
    session, before = engine.open_session(), engine.stats()
    requests = [skv.Request(session, [1, 2, 3], greedy(4)), skv.Request(session, [7], greedy(4))]
    with pytest.raises(ValueError, match="busy"):
        engine.generate(requests)
    assert session.tokens == []
    assert engine.stats() == before


# ---- interrupts


@pytest.mark.parametrize("device_loop", [False, True])
@pytest.mark.parametrize("n", [1, 2, 3, 4])
def test_an_interrupt_after_a_commit_loses_nothing_of_other_requests(engine_of, device_loop, n):
    """Of the submitted request the last interrupt swallows the event that finishes it."""
    engine = engine_of(device_loop=device_loop)
    a, b = engine.open_session(), engine.open_session()
    request_id = engine.submit(skv.Request(a, [1, 2, 3], greedy(4)))
    act = lambda: engine.generate([skv.Request(b, [4, 5], greedy(6))])  # noqa: E731
    interrupted(engine, "commit_ahead" if device_loop else "commit", n, act)
    tokens, turn = take_all(engine, request_id)
    assert tokens == turn.tokens == answer(engine_of, [1, 2, 3], 4)
    assert (turn.finish_reason, turn.stats.prompt_tokens) == ("length", 3)
    assert a.tokens == [1, 2, 3, *tokens] and b.tokens == []
    assert b.generate([4, 5], greedy(6)).tokens == answer(engine_of, [4, 5], 6)


def test_a_turn_that_an_interrupt_swallowed_says_why_it_ended(engine_of):
    stop = answer(engine_of, [1, 2, 3], 2)[1]
    engine = engine_of()
    a = engine.open_session()
    params = skv.SamplingParams(max_tokens=9, stop_token_ids=(stop,))
    request_id = engine.submit(skv.Request(a, [1, 2, 3], params))
    interrupted(engine, "commit", 2, lambda: engine.open_session().generate([4], greedy(3)))
    a.generate([7], greedy(2))  # whatever the session does next
    tokens, turn = take_all(engine, request_id)
    assert turn.finish_reason == "stop" and tokens == turn.tokens and tokens[-1] == stop


@pytest.mark.parametrize("n", [1, 2])
def test_an_interrupt_between_two_events_of_a_step_loses_none(engine_of, monkeypatch, n):
    engine = engine_of()
    a, b = engine.open_session(), engine.open_session()
    request_id = engine.submit(skv.Request(a, [1, 2, 3], greedy(1)))
    completed = []
    complete = engine._turns._complete

    def interrupting(running, *arguments):
        completed.append(running)
        if len(completed) == n:
            raise KeyboardInterrupt
        complete(running, *arguments)

    monkeypatch.setattr(engine._turns, "_complete", interrupting)
    with pytest.raises(KeyboardInterrupt):
        b.generate([4, 5], greedy(1))
    monkeypatch.undo()
    assert b.tokens == []
    tokens, turn = take_all(engine, request_id)
    assert tokens == turn.tokens == answer(engine_of, [1, 2, 3], 1)


def test_a_turn_whose_statistics_an_interrupt_took_along_ends_nevertheless(engine_of):
    engine = engine_of()
    a = engine.open_session()
    request_id = engine.submit(skv.Request(a, [1, 2], greedy(2)))
    interrupted(engine, "stats_of", 1, lambda: engine.open_session().generate([3], greedy(2)))
    tokens, turn = take_all(engine, request_id)
    assert tokens == turn.tokens == answer(engine_of, [1, 2], 2)
    assert (turn.stats.prompt_tokens, turn.stats.delta_tokens) == (2, 2)


@pytest.mark.parametrize("kind", ["stream", "submit"])
@pytest.mark.parametrize("method", ["submit", "append"])
def test_an_interrupted_submission_leaves_nothing_behind(engine_of, kind, method):
    engine = engine_of(response_cache=4 * (method == "append"))
    if method == "append":
        engine.complete([1, 2], greedy(4))
    a, b = engine.open_session(), engine.open_session()
    take = {
        "stream": lambda: a.stream([1, 2], greedy(4)),
        "submit": lambda: engine.submit(skv.Request(a, [1, 2], greedy(4))),
    }
    interrupted(engine, method, 1, take[kind])
    assert a.tokens == [] and not engine._loop.runtime.is_running(a._handle)
    assert b.generate([3], greedy(2)).tokens == answer(engine_of, [3], 2)
    assert engine.step() == []
    assert a.generate([1, 2], greedy(4)).tokens == answer(engine_of, [1, 2], 4)


@pytest.mark.parametrize("is_asked", [True, False])
def test_a_request_that_only_the_runtime_knows_is_aborted(engine_of, is_asked):
    engine = engine_of()
    a, b = engine.open_session(), engine.open_session()
    a.stream([1, 2], greedy(4))._is_open = False
    engine._turns.running.clear()
    if is_asked:
        assert a.generate([1, 2], greedy(4)).tokens == answer(engine_of, [1, 2], 4)
    assert b.generate([3], greedy(2)).tokens == answer(engine_of, [3], 2)
    assert not engine._loop.runtime.is_running(a._handle)


def test_a_request_that_the_runtime_does_not_know_any_more_is_ended(engine_of):
    engine = engine_of()
    a = engine.open_session()
    engine.submit(skv.Request(a, [1, 2], greedy(4)))
    engine._loop.runtime.abort(engine._loop.runtime.request_of(a._handle))
    assert engine.step() == [] and not engine._turns.running
    assert a.generate([1, 2], greedy(4)).tokens == answer(engine_of, [1, 2], 4)


def test_a_stream_that_an_interrupt_left_half_made_can_be_dropped():
    skv.session.Stream.__new__(skv.session.Stream).__del__()
