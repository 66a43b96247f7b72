"""What callers give by mistake is refused by name before anything changes; what they may expect to work does."""

import os

import numpy as np
import pytest
import torch
from checkpoints import save

import stateful_kv as skv
from stateful_kv.runtime import StaleHandle
from stateful_kv.spans import call_pieces, call_spans

VOCAB = 40
SHAPE = {"num_hidden_layers": 1, "hidden_size": 32, "intermediate_size": 48, "vocab_size": VOCAB}
SHORT = skv.SamplingParams(max_tokens=3)
NAN, INF = float("nan"), float("inf")
HUGE = 2**80


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    return save("llama2", tmp_path_factory.mktemp("errors"), SHAPE)


@pytest.fixture(scope="module")
def model(directory):
    return skv.models.load(directory, torch.device("cpu"))


def engine_of(model, **options):
    return skv.Engine(model, **{"num_blocks": 16, "block_size": 8, **options})


@pytest.fixture
def engine(model):
    engine = engine_of(model)
    yield engine
    engine._loop.runtime.check()


def refused(act, error, message):
    """The whole message, which may end with more."""
    with pytest.raises(error) as caught:
        act()
    assert type(caught.value) is error and str(caught.value).startswith(message)


# ---- what is no part of an engine


@pytest.mark.parametrize(
    "name, value, error, came",
    [
        ("max_tokens", 4.0, TypeError, "4.0, expected an integer"),
        ("max_tokens", True, TypeError, "True, expected an integer"),
        ("max_tokens", 0, ValueError, "0, expected 1 to 2147483647"),
        ("max_tokens", HUGE, ValueError, f"{HUGE}, expected 1 to 2147483647"),
        ("temperature", None, TypeError, "None, expected a finite number >= 0"),
        ("temperature", "0.5", TypeError, "'0.5', expected a finite number >= 0"),
        ("temperature", True, TypeError, "True, expected a finite number >= 0"),
        ("temperature", [0.5], TypeError, "[0.5], expected a finite number >= 0"),
        ("temperature", torch.ones(2), TypeError, "tensor([1., 1.]), expected a finite number >= 0"),
        ("temperature", -1, ValueError, "-1, expected a finite number >= 0"),
        ("temperature", NAN, ValueError, "nan, expected a finite number >= 0"),
        ("temperature", INF, ValueError, "inf, expected a finite number >= 0"),
        ("temperature", 10**400, ValueError, "1000"),
        ("temperature", 1e39, ValueError, "1e+39, expected a finite number >= 0"),  # infinite in float32
        ("top_k", 1.5, TypeError, "1.5, expected an integer"),
        ("top_k", HUGE, ValueError, f"{HUGE}, expected -2147483648 to 2147483647"),
        ("top_p", "1", TypeError, "'1', expected a number >= 0"),
        ("top_p", NAN, ValueError, "nan, expected a number >= 0"),
        ("top_p", -0.1, ValueError, "-0.1, expected a number >= 0"),
        ("min_p", (0.5,), TypeError, "(0.5,), expected a number <= 1"),
        ("min_p", NAN, ValueError, "nan, expected a number <= 1"),
        ("min_p", 1.1, ValueError, "1.1, expected a number <= 1"),
        ("stop_token_ids", 2, TypeError, "2, expected integers"),
        ("stop_token_ids", (2.7,), TypeError, "2.7, expected an integer"),
        ("stop_token_ids", "ab", TypeError, "'a', expected an integer"),
        ("stop_token_ids", [True], TypeError, "True, expected an integer"),
        ("stop_token_ids", [-1], ValueError, "-1, expected 0 to 2147483647"),
        ("seed", 1.9, TypeError, "1.9, expected an integer"),
        ("seed", "1", TypeError, "'1', expected an integer"),
        ("seed", False, TypeError, "False, expected an integer"),
    ],
)
def test_sampling_params_are_refused_by_name(name, value, error, came):
    refused(lambda: skv.SamplingParams(**{name: value}), error, f"SamplingParams: {name} is {came}")


def test_a_number_that_python_does_not_write_is_refused_like_others():
    message = "SamplingParams: top_k is <int>, expected -2147483648 to 2147483647"
    refused(lambda: skv.SamplingParams(top_k=10**5000), ValueError, message)


@pytest.mark.parametrize(
    "name, value, kept",
    [
        ("max_tokens", None, None),
        ("max_tokens", np.int64(5), 5),
        ("max_tokens", torch.tensor(5), 5),
        ("temperature", 1, 1.0),
        ("temperature", np.float32(0.5), 0.5),
        ("temperature", torch.tensor(0.5), 0.5),
        ("top_k", None, 0),
        ("top_k", -1, -1),
        ("top_p", None, 1.0),
        ("top_p", 2, 2.0),
        ("min_p", None, 0.0),
        ("min_p", -INF, -INF),
        ("stop_token_ids", None, ()),
        ("stop_token_ids", np.array([3, 4], np.uint8), (3, 4)),
        ("stop_token_ids", torch.tensor([3, 4]), (3, 4)),
        ("stop_token_ids", (t for t in (3, 4)), (3, 4)),
        ("seed", None, None),
        ("seed", HUGE, HUGE),
    ],
)
def test_sampling_params_are_kept_as_plain_numbers(engine, name, value, kept):
    params = skv.SamplingParams(**{"max_tokens": 2, "temperature": 0.8, name: value})
    found = getattr(params, name)
    assert found == kept and type(found) is type(kept)
    assert engine.complete([1, 2, 3], params).tokens


@pytest.mark.parametrize("off", [{"top_k": None}, {"top_k": -1}, {"top_p": None}, {"min_p": None}])
def test_a_filter_that_is_none_is_off(engine, off):
    plain = {"max_tokens": 8, "temperature": 0.8, "seed": 3}
    answers = [engine.complete([1, 2, 3], skv.SamplingParams(**plain, **more)).tokens for more in ({}, off)]
    assert answers[0] == answers[1]


@pytest.mark.parametrize(
    "name, value, error, came",
    [
        ("max_ngram", None, TypeError, "None, expected an integer"),
        ("max_ngram", 17, ValueError, "17, expected 1 to 16"),
        ("min_ngram", 0, ValueError, "0, expected 1 to 16"),
        ("min_ngram", 5, ValueError, "5, expected at most max_ngram, which is 4"),
        ("num_drafts", 2.5, TypeError, "2.5, expected an integer"),
        ("num_drafts", True, TypeError, "True, expected an integer"),
        ("num_drafts", 0, ValueError, "0, expected 1 to 1048576 (speculation=None: no drafts)"),
        ("num_drafts", HUGE, ValueError, f"{HUGE}, expected 1 to 1048576"),
        ("relatives", 1.0, TypeError, "1.0, expected an integer"),
        ("relatives", -1, ValueError, "-1, expected 0 to 64"),
        ("branches", 17, ValueError, "17, expected 0 to 16"),
        ("latest", "no", TypeError, "'no', expected True or False"),
        ("adaptive", None, TypeError, "None, expected True or False"),
    ],
)
def test_prompt_lookup_is_refused_by_name(name, value, error, came):
    refused(lambda: skv.PromptLookup(**{name: value}), error, f"PromptLookup: {name} is {came}")


def test_numpys_numbers_are_numbers(model):
    options = {"num_blocks": np.int64(16), "block_size": np.uint8(8), "max_seqs": torch.tensor(2)}
    lookup = skv.PromptLookup(num_drafts=np.int32(3), latest=np.True_)
    assert type(lookup.num_drafts) is int and lookup.latest is True
    engine = skv.Engine(model, speculation=lookup, prefix_cache=np.False_, **options)
    assert engine.complete([1, 2, 3] * 4, SHORT).tokens == engine_of(model).complete([1, 2, 3] * 4, SHORT).tokens


# ---- engines


@pytest.mark.parametrize(
    "name, value, error, came",
    [
        ("block_size", 8.0, TypeError, "8.0, expected an integer"),
        ("block_size", 257, ValueError, "257, expected 1 to 256"),
        ("num_blocks", "8", TypeError, "'8', expected an integer"),
        ("num_blocks", HUGE, ValueError, f"{HUGE}, expected 1 to 2147483647"),
        ("max_batch_tokens", None, TypeError, "None, expected an integer"),
        ("max_seqs", True, TypeError, "True, expected an integer"),
        ("response_cache", -1, ValueError, "-1, expected 0 to 2147483647"),
        ("response_cache", True, TypeError, "True, expected an integer"),
        ("eviction", None, ValueError, "None, expected 'lru' or 'turns'"),
        ("eviction", "fifo", ValueError, "'fifo', expected 'lru' or 'turns'"),
        ("prefix_cache", "no", TypeError, "'no', expected True or False"),
        ("deterministic", "False", TypeError, "'False', expected True or False"),
        ("cascade", 1, TypeError, "1, expected True or False"),
        ("device_loop", None, TypeError, "None, expected True or False"),
        ("speculation", True, TypeError, "True, expected a PromptLookup or None"),
    ],
)
def test_engines_are_refused_by_name(model, name, value, error, came):
    refused(lambda: engine_of(model, **{name: value}), error, f"Engine: {name} is {came}")


def test_more_blocks_than_memory_could_hold_are_refused_before_they_are_tried(model, monkeypatch):
    message = "Engine: num_blocks is 2147483647, of 4096 bytes each, expected at most the "
    refused(lambda: skv.Engine(model, num_blocks=2**31 - 1), ValueError, message)
    monkeypatch.setattr(os, "sysconf", lambda name: {"SC_PAGE_SIZE": 4096, "SC_PHYS_PAGES": 100}[name])
    message = "Engine: num_blocks is 101, of 4096 bytes each, expected at most the 100 that cpu memory could hold"
    refused(lambda: skv.Engine(model, num_blocks=101), ValueError, message)
    skv.Engine(model, num_blocks=100)


def test_a_step_of_any_size_takes_no_more_memory_than_sessions_have_tokens(model):
    engine = engine_of(model, max_batch_tokens=2**31 - 1, max_seqs=2)
    assert engine._loop.runtime.buffers["token_ids"].shape == (2 * 512,)
    assert engine.complete([1, 2, 3], SHORT).tokens == engine_of(model).complete([1, 2, 3], SHORT).tokens


def test_a_model_is_a_decoder(directory, model, monkeypatch):
    refused(lambda: skv.Engine(str(directory)), TypeError, "Engine: model is '")
    monkeypatch.setattr(model, "device", torch.device("meta"))
    refused(lambda: skv.Engine(model), NotImplementedError, "Engine: the model's device is meta, expected cpu or cuda")


def test_from_pretrained_takes_what_torch_and_vllm_take(directory):
    for dtype, found in ((None, torch.float32), ("auto", torch.float32), ("bfloat16", torch.bfloat16)):
        assert skv.Engine.from_pretrained(directory, device=None, dtype=dtype, num_blocks=2).model.dtype == found
    for name, value, error, expected in (
        ("device", "gpu", ValueError, "'cpu' or 'cuda'"),
        ("device", 1.5, ValueError, "'cpu' or 'cuda'"),
        ("dtype", torch.int8, ValueError, "one of auto, float32, float16, bfloat16"),
        ("dtype", "int4", ValueError, "one of auto, float32, float16, bfloat16"),
        ("dtype", np.ones(2), ValueError, "one of auto, float32, float16, bfloat16"),
    ):
        message = f"from_pretrained: {name} is {value!r}, expected {expected}"
        refused(lambda n=name, v=value: skv.Engine.from_pretrained(directory, **{n: v}), error, message)
    message = "from_pretrained: directory is None, expected a path"
    refused(lambda: skv.Engine.from_pretrained(None), TypeError, message)


# ---- tokens


BAD_TOKENS = [
    (None, TypeError, " is None, expected a flat sequence of integers"),
    (7, TypeError, " is 7, expected a flat sequence of integers"),
    ("text", TypeError, " is 'text', expected a flat sequence of integers"),
    ({1, 2}, TypeError, " is {1, 2}, expected a flat sequence of integers"),
    ((t for t in (1, 2)), TypeError, " is <generator object"),
    ([1, 2.5], TypeError, "[1] is 2.5, expected a flat sequence of integers"),
    ([1, None], TypeError, "[1] is None, expected a flat sequence of integers"),
    (["1"], TypeError, "[0] is '1', expected a flat sequence of integers"),
    (np.array([True]), TypeError, "[0] is "),
    ([[1, 2]], TypeError, " has shape [1, 2], expected a flat sequence of integers"),
    ([[]], TypeError, " has shape [1, 0], expected a flat sequence of integers"),
    ([[1], [2, 3]], TypeError, " is [[1], [2, 3]], expected a flat sequence of integers"),
    (torch.ones(1, 2), TypeError, " has shape [1, 2], expected a flat sequence of integers"),
    (torch.ones(2).bfloat16(), TypeError, " is tensor([1., 1.], dtype=torch.bfloat16), expected a flat sequence"),
    (torch.ones(2, device="meta"), TypeError, " is tensor(..., device='meta', size=(2,)), expected a flat sequence"),
    ([1, VOCAB], ValueError, f"[1]: {VOCAB} is not in the vocabulary, expected 0 to {VOCAB - 1}"),
    (torch.tensor([3, -1]), ValueError, f"[1]: -1 is not in the vocabulary, expected 0 to {VOCAB - 1}"),
    ([2**63, -1], ValueError, f"[0]: {2**63} is not in the vocabulary, expected 0 to {VOCAB - 1}"),
    ([1, HUGE], ValueError, f"[1]: {HUGE} is not in the vocabulary, expected 0 to {VOCAB - 1}"),
]


@pytest.mark.parametrize("tokens, error, came", BAD_TOKENS, ids=lambda value: type(value).__name__)
def test_tokens_are_refused_by_name(engine, tokens, error, came):
    session = engine.open_session()
    before = engine.stats()
    for call, name, act in (
        ("generate", "tokens", lambda: session.generate(tokens)),
        ("stream", "tokens", lambda: session.stream(tokens)),
        ("submit", "tokens", lambda: engine.submit(skv.Request(session, tokens))),
        ("complete", "prompt", lambda: engine.complete(tokens)),
        ("score", "tokens", lambda: engine.score(tokens)),
        ("open_session", "draft_spans[1]", lambda: engine.open_session(draft_spans=[[1], tokens])),
    ):
        refused(act, error, f"{call}: {name}{came}")
    assert session.tokens == [] and engine.stats() == before


GOOD_TOKENS = [
    (1, 2, 3),
    range(1, 4),
    np.arange(0, 8, 2)[:0:-1] // 2,
    np.array([3, 2, 1], ">u2"),
    torch.tensor([1, 2, 3]),
    list(torch.tensor([1, 2, 3])),
    [np.int8(1), np.uint64(2), 3],  # of which numpy makes floats
    np.array([1, 2, 3], object),
]


@pytest.mark.parametrize("tokens", GOOD_TOKENS, ids=lambda value: type(value).__name__)
def test_integers_of_any_kind_are_tokens(engine, tokens):
    plain = [int(t) for t in tokens]
    assert sorted(plain) == [1, 2, 3]
    assert engine.complete(tokens, SHORT).tokens == engine.complete(plain, SHORT).tokens
    engine.open_session(draft_spans=(tokens for _ in range(2))).close()


@pytest.mark.parametrize("empty", [[], (), np.array([]), torch.empty(0)], ids=lambda value: type(value).__name__)
def test_no_tokens_are_a_turn_only_of_a_session_that_has_some(engine, empty):
    session = engine.open_session()
    for call, name, act in (
        ("generate", "tokens", lambda: session.generate(empty)),
        ("complete", "prompt", lambda: engine.complete(empty)),
    ):
        refused(act, ValueError, f"{call}: {name} is empty, expected at least one in an empty session")
    refused(lambda: engine.score(empty), ValueError, "score: got 0 tokens, expected 1 to 512")
    refused(lambda: engine.score([1] * 513), ValueError, "score: got 513 tokens, expected 1 to 512")
    session.generate([1, 2], SHORT)
    assert len(session.generate(empty, SHORT).tokens) == 3


# ---- sessions and requests


@pytest.mark.parametrize(
    "length, error, came",
    [
        (1.0, TypeError, "1.0, expected an integer"),
        (None, TypeError, "None, expected an integer"),
        (True, TypeError, "True, expected an integer"),
        ("1", TypeError, "'1', expected an integer"),
        (-1, ValueError, "-1, expected 0 to 5, the tokens that the session has"),
        (6, ValueError, "6, expected 0 to 5, the tokens that the session has"),
        (HUGE, ValueError, f"{HUGE}, expected 0 to 5, the tokens that the session has"),
    ],
)
def test_a_rollback_is_refused_by_name(engine, length, error, came):
    session = engine.open_session()
    session.generate([1, 2], SHORT)
    before = session.tokens
    refused(lambda: session.rollback(length), error, f"rollback: length is {came}")
    assert session.tokens == before
    session.rollback(np.int64(1))
    assert session.tokens == [1]


@pytest.mark.parametrize(
    "namespace, error, came",
    [
        (5, TypeError, "5, expected text or bytes"),
        (["a"], TypeError, "['a'], expected text or bytes"),
        ("\ud800", ValueError, "'\\ud800', expected text that UTF-8 can hold"),
    ],
)
def test_a_namespace_is_refused_by_name(engine, namespace, error, came):
    before = engine.stats()
    refused(lambda: engine.open_session(namespace), error, f"open_session: namespace is {came}")
    refused(lambda: engine.complete([1], namespace=namespace), error, f"complete: namespace is {came}")
    assert engine.stats() == before


def test_no_namespace_is_the_common_one(engine):
    engine.complete([1] * 20, SHORT)
    reused = [engine.complete([1] * 20, SHORT, name).stats.reused_tokens for name in (None, "", b"", "a", b"a")]
    assert reused == [19, 19, 19, 0, 19]


def test_what_is_no_request_is_refused_by_name(engine):
    session, before = engine.open_session(), engine.stats()
    good = skv.Request(session, [1, 2], SHORT)
    for act, error, message in (
        (lambda: engine.submit([1, 2]), TypeError, "submit: request is [1, 2], expected Request"),
        (lambda: engine.generate(None), TypeError, "generate: requests is None, expected a sequence of Request"),
        (lambda: engine.generate(good), TypeError, "generate: requests is Request("),
        (lambda: engine.generate([good, 3]), TypeError, "generate: requests[1] is 3, expected Request"),
        (lambda: engine.submit(skv.Request(None, [1])), TypeError, "submit: session is None, expected Session"),
        (lambda: session.generate([1], {}), TypeError, "generate: params is {}, expected SamplingParams"),
        (lambda: session.stream([1], 5), TypeError, "stream: params is 5, expected SamplingParams"),
        (lambda: engine.complete([1], "x"), TypeError, "complete: params is 'x', expected SamplingParams"),
        (lambda: engine.open_session("", 5), TypeError, "open_session: draft_spans is 5, expected sequences"),
        (lambda: engine.open_session("", [1, 2]), TypeError, "open_session: draft_spans[0] is 1, expected a flat"),
    ):
        refused(act, error, message)
    for priority, error, came in (
        (1.5, TypeError, "1.5, expected an integer"),
        (None, TypeError, "None, expected an integer"),
        (True, TypeError, "True, expected an integer"),
        (HUGE, ValueError, f"{HUGE}, expected -2147483648 to 2147483647"),
    ):
        request = skv.Request(session, [1], SHORT, priority)
        refused(lambda r=request: engine.submit(r), error, f"submit: priority is {came}")
    for request_id, error, came in (
        (None, TypeError, "None, expected an integer"),
        (1.0, TypeError, "1.0, expected an integer"),
        (1, ValueError, "1, expected an id that submit() returned"),
        (HUGE, ValueError, f"{HUGE}, expected an id that submit() returned"),
    ):
        refused(lambda i=request_id: engine.abort(i), error, f"abort: request_id is {came}")
    assert session.tokens == [] and engine.stats() == before and not engine._turns.running


def test_nothing_of_a_batch_begins_where_one_request_is_bad(model):
    engine = engine_of(model, response_cache=4)
    engine.complete([1, 2], SHORT)
    sessions = [engine.open_session() for _ in range(2)]
    before = engine.stats()
    requests = [skv.Request(sessions[0], [1, 2], SHORT), skv.Request(sessions[1], [VOCAB], SHORT)]
    refused(lambda: engine.generate(requests), ValueError, f"generate: tokens[0]: {VOCAB} is not in the vocabulary")
    assert engine.stats() == before and sessions[0].tokens == []


def test_no_params_are_the_default_ones(model):
    engine = engine_of(model, num_blocks=32)
    sessions = [engine.open_session() for _ in range(2)]
    turns = engine.generate([skv.Request(sessions[0], [1, 2], None), skv.Request(sessions[1], [1, 2])])
    assert turns[0].tokens == turns[1].tokens and len(turns[0].tokens) == skv.SamplingParams().max_tokens


# ---- sessions that are busy or closed


def test_a_busy_session_says_what_it_is_busy_with_and_how_that_ends(engine):
    session, other = engine.open_session(), engine.open_session()
    stream = session.stream([1, 2, 3], SHORT)
    request_id = engine.submit(skv.Request(other, [4, 5], SHORT))
    for busy, way in (
        (session, "request 1 of an earlier stream(): read the stream to its end, close() it or abort(1)"),
        (other, "request 2 of an earlier submit(): step() until its turn is over or abort(2)"),
    ):
        for call, act in (
            ("generate", lambda s=busy: s.generate([1])),
            ("stream", lambda s=busy: s.stream([1])),
            ("submit", lambda s=busy: engine.submit(skv.Request(s, [1]))),
            ("fork", busy.fork),
            ("rollback", lambda s=busy: s.rollback(0)),
        ):
            refused(act, ValueError, f"{call}: the session is busy with {way}")
    stream.close()
    engine.abort(request_id)
    assert len(session.generate([1], SHORT).tokens) == len(other.generate([1], SHORT).tokens) == 3
    for end in (list, lambda stream: engine.abort(engine._turns.last_request_id)):
        end(session.stream([1, 2, 3], SHORT))
        session.rollback(0)


def test_a_closed_session_says_so(engine):
    session = engine.open_session()
    session.close()
    for call, act in (
        ("generate", lambda: session.generate([1])),
        ("stream", lambda: session.stream([1])),
        ("submit", lambda: engine.submit(skv.Request(session, [1]))),
        ("fork", session.fork),
        ("rollback", lambda: session.rollback(0)),
    ):
        refused(act, StaleHandle, f"{call}: the session is closed")


# ---- the pool


def test_a_turn_that_could_not_fit_says_which_numbers_to_change(engine):
    session = engine.open_session()
    session.generate([1] * 40, SHORT)
    before = session.tokens
    with pytest.raises(skv.OutOfBlocks) as caught:
        session.generate([2] * 50, skv.SamplingParams(max_tokens=100))
    assert str(caught.value) == (
        "generate: out of KV blocks: 43 tokens so far + 50 new + up to 100 of the answer (max_tokens is 100) need 24 "
        "blocks of 8, the engine has 16: expected max_tokens at most 36, or a larger num_blocks of Engine"
    )
    e = caught.value
    assert (e.needed, e.free + e.evictable + e.pinned) == (24, 16)
    with pytest.raises(skv.OutOfBlocks, match=r"max_tokens at most 36,"):
        session.generate([2] * 50, skv.SamplingParams(max_tokens=37))
    with pytest.raises(skv.OutOfBlocks, match=r"submit: .* the engine has 16: expected fewer tokens, or a larger num_"):
        engine.submit(skv.Request(session, [2] * 200, SHORT))
    assert session.tokens == before
    assert len(session.generate([2] * 50, skv.SamplingParams(max_tokens=36)).tokens) == 36


def test_max_tokens_none_is_what_there_is_room_for(model):
    params = skv.SamplingParams(max_tokens=None)
    for num_blocks, room in ((16, 16 * 8 - 20 + 1), (100, 512 - 20)):
        engine = engine_of(model, num_blocks=num_blocks)
        turn = engine.complete([1] * 20, params)
        assert (len(turn.tokens), turn.finish_reason) == (room, "length")
    with pytest.raises(skv.OutOfBlocks, match=r"up to 1 of the answer \(max_tokens is None\) need 17 blocks"):
        engine_of(model).complete([1] * 130, params)


# ---- tools


def test_tools_are_refused_by_name_and_may_lack_parameters():
    for act, message in (
        (lambda: call_pieces(None), "call_pieces: tool is None, expected a mapping"),
        (lambda: call_pieces({"function": 3}), "call_pieces: tool is 3, expected a mapping"),
        (lambda: call_pieces({"name": "f", "parameters": "x"}), "call_pieces: parameters is 'x', expected a mapping"),
        (lambda: call_spans(None, list), "call_spans: tools is None, expected a sequence of tools"),
    ):
        refused(act, TypeError, message)
    bare = ['{"name": "f", "arguments": {}}']
    assert call_pieces({"name": "f", "parameters": None}) == bare
    assert call_pieces({"name": "f", "parameters": {"type": "object", "properties": None}}) == bare
    pieces = call_pieces({"name": "f", "parameters": {"properties": {"any": True}}})
    assert pieces == ['{"name": "f", "arguments": {"any": ', "}}"]
