"""Answers kept for prompts that come again: the same answers, nothing computed, and only where that is certain."""

import pytest
import torch
from checkpoints import save

import stateful_kv as skv

VOCAB = 40
SHAPE = {"num_hidden_layers": 1, "hidden_size": 32, "intermediate_size": 48, "vocab_size": VOCAB}
GREEDY = skv.SamplingParams(max_tokens=6)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return skv.models.load(save("llama2", tmp_path_factory.mktemp("responses"), SHAPE), torch.device("cpu"))


def engine_of(model, response_cache=8, **options):
    return skv.Engine(model, num_blocks=64, block_size=8, response_cache=response_cache, **options)


def fed(engine):
    return engine.stats()["rows_fed"]


@pytest.mark.parametrize("device_loop", [False, True])
def test_a_repeated_conversation_is_answered_without_a_step(model, device_loop):
    engine, plain = engine_of(model, device_loop=device_loop), engine_of(model, response_cache=0)
    answers = []
    for e in (plain, engine, engine):
        session, before = e.open_session(), fed(e)
        turns = [session.generate(delta, GREEDY) for delta in ([1, 2, 3], [4], [5, 6])]
        answers.append(([t.tokens for t in turns], [t.finish_reason for t in turns], session.tokens))
        cached = [t.stats.from_response_cache for t in turns]
    assert answers[0] == answers[1] == answers[2]
    assert cached == [True] * 3 and fed(engine) == before
    stats = engine.stats()
    assert (stats["response_hits"], stats["response_misses"], stats["response_tokens"]) == (3, 3, 18)
    assert turns[2].stats.fed_tokens == turns[2].stats.reused_tokens == 0 and turns[2].stats.prompt_tokens == 18
    # What the cached turns left without KV is computed by the next turn that is not known.
    new = session.generate([7, 8, 9], skv.SamplingParams(max_tokens=9))
    assert not new.stats.from_response_cache
    assert new.tokens == plain.complete([*answers[0][2], 7, 8, 9], skv.SamplingParams(max_tokens=9)).tokens
    engine._loop.runtime.check()


def test_it_is_off_by_default(model):
    engine = skv.Engine(model, num_blocks=64)
    turns = [engine.complete([1, 2, 3], GREEDY) for _ in range(2)]
    assert not any(t.stats.from_response_cache for t in turns)
    assert engine.stats()["response_hits"] == engine.stats()["response_misses"] == 0


def is_known(engine, prompt, params=GREEDY, namespace=""):
    return engine.complete(prompt, params, namespace).stats.from_response_cache


def test_only_the_very_same_question_counts(model):
    engine = engine_of(model, response_cache=100)
    sampled = dict(max_tokens=6, temperature=0.9, top_k=9, top_p=0.9, min_p=0.01, stop_token_ids=(39,), seed=3)
    assert not is_known(engine, [1, 2, 3]) and is_known(engine, [1, 2, 3])
    assert not is_known(engine, [1, 2, 3, 4]) and not is_known(engine, [1, 2]) and not is_known(engine, [1, 2, 4])
    assert not is_known(engine, [1, 2, 3], namespace="a") and not is_known(engine, [1, 2, 3], namespace="b")
    assert is_known(engine, [1, 2, 3], namespace="a")
    assert not is_known(engine, [1, 2, 3], skv.SamplingParams(max_tokens=7))
    assert not is_known(engine, [1, 2, 3], skv.SamplingParams(max_tokens=6, stop_token_ids=(38,)))
    # Greedy answers do not depend on filters or the seed.
    assert is_known(engine, [1, 2, 3], skv.SamplingParams(max_tokens=6, top_k=3, seed=5))
    assert not is_known(engine, [1, 2, 3], skv.SamplingParams(**sampled))
    assert is_known(engine, [1, 2, 3], skv.SamplingParams(**sampled))
    for name, value in dict(temperature=0.8, top_k=8, top_p=0.8, min_p=0.0, stop_token_ids=(), seed=4).items():
        assert not is_known(engine, [1, 2, 3], skv.SamplingParams(**sampled | {name: value})), name
    misses = engine.stats()["response_misses"]
    fresh = skv.SamplingParams(**sampled | {"seed": None})
    assert not is_known(engine, [1, 2, 3], fresh) and not is_known(engine, [1, 2, 3], fresh)
    assert engine.stats()["response_misses"] == misses  # was never asked for


def test_the_answers_used_latest_are_kept(model):
    engine = engine_of(model, response_cache=2)
    assert [is_known(engine, [n]) for n in (1, 2, 1, 3, 1, 2, 3)] == [False, False, True, False, True, False, False]


def test_streams_servers_and_turns_that_fail(model):
    engine = engine_of(model)
    answer = engine.complete([1, 2, 3], GREEDY).tokens
    session = engine.open_session()
    stream = session.stream([1, 2, 3], GREEDY)
    assert [next(stream), next(stream)] == answer[:2]
    stream.close()
    assert session.tokens == [1, 2, 3, *answer[:2]]
    other = engine.open_session()
    ids = [engine.submit(skv.Request(s, tokens, GREEDY)) for s, tokens in ((other, [1, 2, 3]), (session, [9]))]
    events = engine.step()
    assert events[0].request_id == ids[0] and events[0].tokens == events[0].turn.tokens == answer
    while engine._turns.running:
        engine.step()
    assert len(set(ids)) == 2
    third = engine.open_session()
    with pytest.raises(ValueError, match="not in the vocabulary"):
        engine.generate([skv.Request(third, [1, 2, 3], GREEDY), skv.Request(engine.open_session(), [VOCAB], GREEDY)])
    assert third.tokens == []
    engine._loop.runtime.check()


def test_a_turn_given_up_leaves_no_answer(model):
    engine = engine_of(model)
    stream = engine.open_session().stream([5, 5], GREEDY)
    next(stream)
    stream.close()
    request = engine.submit(skv.Request(engine.open_session(), [5, 5], GREEDY))
    engine.step()
    engine.abort(request)
    assert not is_known(engine, [5, 5])


@pytest.mark.parametrize("response_cache", [8, 0])
@pytest.mark.parametrize("is_over", [False, True])
def test_an_aborted_request_is_taken_back_until_it_was_told_of(model, response_cache, is_over):
    """Known from the cache, computed in another's turn, or not begun: what is not told of yet makes no difference."""
    engine = engine_of(model, response_cache)
    answer = engine.complete([1, 2, 3], GREEDY).tokens
    session = engine.open_session()
    session.generate([7], GREEDY)
    before = session.tokens
    engine.complete([*before, 1, 2, 3], GREEDY)
    request = engine.submit(skv.Request(session, [1, 2, 3], GREEDY))
    if is_over:
        engine.open_session().generate([9], skv.SamplingParams(max_tokens=20))
    assert (len(session) > len(before)) == (is_over or response_cache > 0)
    engine.abort(request)
    assert session.tokens == before
    assert engine.step() == []
    engine.abort(request)
    session.rollback(0)
    assert session.generate([1, 2, 3], GREEDY).tokens == answer
    engine._loop.runtime.check()


@pytest.mark.parametrize("later", ["generate", "submit", "rollback", "told"])
def test_a_known_turn_stands_once_told_of_or_built_on(model, later):
    engine = engine_of(model)
    answer = engine.complete([1, 2, 3], GREEDY).tokens
    session = engine.open_session()
    request = engine.submit(skv.Request(session, [1, 2, 3], GREEDY))
    told = []
    if later == "generate":
        expected = [1, 2, 3, *answer, 8, *session.generate([8], GREEDY).tokens]
    elif later == "submit":
        expected, newer = [1, 2, 3, *answer], engine.submit(skv.Request(session, [8], GREEDY))
    elif later == "rollback":
        expected = [1, 2, 3, *answer[:2]]
        session.rollback(5)
    else:
        expected, told = [1, 2, 3, *answer], engine.step()
    engine.abort(request)
    assert session.tokens == expected
    while later == "submit" and engine._turns.running:
        told += engine.step()
    told += engine.step()
    assert [event.tokens for event in told if event.request_id == request] == [answer]
    if later == "submit":
        assert session.tokens == [*expected, 8, *(t for e in told if e.request_id == newer for t in e.tokens)]


def test_no_event_comes_of_a_known_turn_aborted_after_its_session_was_closed(model):
    engine = engine_of(model)
    engine.complete([1, 2, 3], GREEDY)
    session = engine.open_session()
    request = engine.submit(skv.Request(session, [1, 2, 3], GREEDY))
    session.close()
    engine.abort(request)
    assert engine.step() == []
    engine._loop.runtime.check()
