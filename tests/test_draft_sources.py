"""Drafts from relatives and from expected spans, through the engine: the same answers in fewer steps."""

import json

import numpy as np
import pytest
from checkpoints import VOCAB, save

import stateful_kv as skv
from stateful_kv.spans import call_pieces, call_spans

FIXED = skv.PromptLookup(adaptive=False)  # drafts whatever they cost here
LONG = skv.SamplingParams(max_tokens=24)
SAMPLED = skv.SamplingParams(max_tokens=24, temperature=0.9, seed=5)
PROMPT = np.random.default_rng(1).integers(0, VOCAB, 40).tolist()
WEATHER = {
    "name": "get_weather",
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}, "days": {"type": "integer"}}},
}
TIME = {"type": "function", "function": {"name": "now", "parameters": {"type": "object", "properties": {}}}}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return save("llama3", tmp_path_factory.mktemp("draft_sources"))


def engine_of(checkpoint, **options):
    return skv.Engine.from_pretrained(
        checkpoint, **{"num_blocks": 128, "block_size": 8, "speculation": FIXED, **options}
    )


@pytest.mark.parametrize("params", [LONG, SAMPLED], ids=["greedy", "sampled"])
def test_what_a_relative_said_is_drafted(checkpoint, params):
    plain = engine_of(checkpoint, speculation=None).open_session().generate(PROMPT, params)
    engine = engine_of(checkpoint, speculation=skv.PromptLookup(relatives=2, adaptive=False))
    turns = [engine.open_session(namespace).generate(PROMPT, params) for namespace in ("a", "b", "a")]
    assert all(turn.tokens == plain.tokens for turn in turns)
    assert [turn.stats.drafted_relatives > 0 for turn in turns] == [False, False, True]
    stats = turns[2].stats
    assert stats.accepted_relatives > 0 and stats.accepted_relatives <= stats.accepted
    assert stats.drafted_relatives + stats.drafted_spans <= stats.drafted


def test_expected_spans_are_drafted_in_a_session_and_its_forks(checkpoint):
    plain = engine_of(checkpoint, speculation=None).open_session().generate(PROMPT, LONG)
    engine = engine_of(checkpoint)
    span = plain.tokens[2:20]
    session = engine.open_session(draft_spans=[[1, 2, 3], span])
    fork = session.fork()
    for turn in (session.generate(PROMPT, LONG), fork.generate(PROMPT, LONG)):
        assert turn.tokens == plain.tokens
        assert turn.stats.accepted_spans > 0
    other = engine.open_session().generate(PROMPT, LONG)
    assert other.tokens == plain.tokens and other.stats.drafted_spans == 0


def test_bad_arguments_are_refused(checkpoint):
    engine = engine_of(checkpoint)
    sessions = engine.stats()["sessions"]
    with pytest.raises(ValueError, match="not in the vocabulary"):
        engine.open_session(draft_spans=[[VOCAB]])
    assert engine.stats()["sessions"] == sessions
    with pytest.raises(ValueError, match="relatives is 65, expected 0 to 64"):
        skv.PromptLookup(relatives=65)
    with pytest.raises(ValueError, match="expected a tool with a name"):
        call_pieces({"parameters": {}})


def test_pieces_and_values_make_a_call():
    first, middle, last = call_pieces(WEATHER)
    call = json.loads(f"{first}Oslo{middle}3{last}")
    assert call == {"name": "get_weather", "arguments": {"city": "Oslo", "days": 3}}
    assert json.loads("".join(call_pieces(TIME))) == {"name": "now", "arguments": {}}
    renamed = call_pieces(WEATHER, "tool", 'in"put')[0]
    assert renamed == '{"tool": "get_weather", "in\\"put": {"city": "'


def test_spans_are_the_pieces_of_every_tool_encoded():
    spans = call_spans([WEATHER, TIME], lambda text: list(text.encode()), opening="<call>")
    texts = [bytes(span).decode() for span in spans]
    assert texts == ["<call>" + call_pieces(WEATHER)[0], *call_pieces(WEATHER)[1:], "<call>" + call_pieces(TIME)[0]]
