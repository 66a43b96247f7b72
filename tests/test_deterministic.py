"""Engine(deterministic=True): logits and tokens are bitwise the same however a conversation got into the cache.

Random conversations are cut into turns, chunks, drafts and batches at random; every logits row that any of them
computes is compared with every other row of the same prefix (logits_tap.py). Contexts pass the fixed positions at which
attention is split.
"""

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from checkpoints import VOCAB, save
from logits_tap import Seen, Tap

import stateful_kv as skv
from stateful_kv.models import decoder

SHAPE = dict(num_hidden_layers=2, max_position_embeddings=4096)
DTYPES = (torch.bfloat16, torch.float32)
MODELS = [(name, dtype) for name in ("llama3", "qwen2", "qwen3", "mistral") for dtype in DTYPES]
SPLIT = 1024  # positions between the splits of batch-invariant attention


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("deterministic")


def engine_of(folder, name, dtype, seen, **options):
    path = save(name, folder, SHAPE)
    engine = skv.Engine.from_pretrained(path, dtype=dtype, **{"num_blocks": 800, "block_size": 16, **options})
    Tap(engine, seen)
    return engine


def tokens_of(seed, count):
    """Text that repeats itself, as tool calls do: pieces of a few tokens, met again and again."""
    r = np.random.default_rng(seed)
    pieces = [r.integers(0, VOCAB, r.integers(1, 9)).tolist() for _ in range(6)]
    text = []
    while len(text) < count:
        text += pieces[r.integers(0, 6)]
    return text[:count]


@st.composite
def conversations(draw):
    """Turns of one conversation: (tokens, params)."""
    first = draw(st.sampled_from([1, 30, 200, SPLIT - 20, SPLIT, 2 * SPLIT - 30]))
    turns = []
    for i in range(draw(st.integers(1, 3))):
        count = first if i == 0 else draw(st.integers(1, 60))
        params = skv.SamplingParams(
            max_tokens=draw(st.integers(1, 24)),
            temperature=draw(st.sampled_from([0.0, 0.0, 0.7, 1.3])),
            top_p=draw(st.sampled_from([1.0, 0.9])),
            seed=draw(st.integers(0, 99)),
        )
        turns.append((tokens_of(draw(st.integers(0, 99)), count), params))
    return turns


options_of_an_engine = st.fixed_dictionaries(
    dict(
        max_batch_tokens=st.sampled_from([9, 33, 130, 2048]),
        block_size=st.sampled_from([8, 16, 48]),
        prefix_cache=st.booleans(),
        speculation=st.one_of(
            st.none(),
            st.builds(
                skv.PromptLookup, st.integers(1, 4), st.just(1), st.integers(1, 12), st.booleans(), st.just(False)
            ),
        ),
    )
)


def from_scratch(engine, turns):
    """The answers to every turn, each prompt computed from nothing."""
    answers, prompt = [], []
    for tokens, params in turns:
        answers.append(engine.complete(prompt + tokens, params).tokens)
        prompt += tokens + answers[-1]
    return answers


def in_pieces(session, tokens, cuts):
    """Feeds tokens up to each cut and takes the answer back; returns what is left of them."""
    start = 0
    for cut in sorted(cuts):
        if start < cut < len(tokens):
            length = len(session) + cut - start
            session.generate(tokens[start:cut], skv.SamplingParams(max_tokens=2))
            session.rollback(length)
            start = cut
    return tokens[start:]


@pytest.mark.parametrize("name, dtype", MODELS, ids=str)
def test_any_split_of_a_conversation_gives_the_same_bits(name, dtype, folder):
    seen, drafted = Seen(), []
    cold = engine_of(folder, name, dtype, seen, prefix_cache=False, speculation=None)

    @hypothesis.settings(max_examples=8, deadline=None, database=None, derandomize=True)
    @hypothesis.given(
        together=st.lists(conversations(), min_size=1, max_size=3),
        options=options_of_an_engine,
        cuts=st.lists(st.integers(1, 2 * SPLIT), max_size=2),
        threads=st.sampled_from([1, 2, 3]),
    )
    def check(together, options, cuts, threads):
        before = torch.get_num_threads()
        torch.set_num_threads(threads)
        try:
            engine = engine_of(folder, name, dtype, seen, **options)
            sessions = [engine.open_session() for _ in together]
            answers = [[] for _ in together]
            for i in range(max(map(len, together))):
                requests = []
                for session, turns, own in zip(sessions, together, answers):
                    if i < len(turns):
                        rest = in_pieces(session, turns[i][0], cuts if i == 0 else [c % 60 for c in cuts])
                        requests.append((own, skv.Request(session, rest, turns[i][1])))
                for (own, _), turn in zip(requests, engine.generate([r for _, r in requests])):
                    own.append(turn.tokens)
                    drafted.append(turn.stats.drafted)
            assert answers == [from_scratch(cold, turns) for turns in together]
            assert not seen.different
        finally:
            torch.set_num_threads(before)

    check()
    assert seen.compared > 150 and sum(drafted) > 50


@pytest.fixture
def two_threads():
    """Attention splits a long context where there are more threads than rows."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def two_ways(folder, dtype, **options):
    """One conversation past the first split, from the cache and from nothing; what was met twice and what differed."""
    seen = Seen()
    turns = [
        (tokens_of(1, 3 * SPLIT), skv.SamplingParams(max_tokens=12)),
        (tokens_of(2, 20), skv.SamplingParams(max_tokens=12)),
    ]
    session = engine_of(folder, "llama3", dtype, seen, max_batch_tokens=300, **options).open_session()
    for tokens, params in turns:
        session.generate(tokens, params)
    from_scratch(engine_of(folder, "llama3", dtype, seen, prefix_cache=False, speculation=None, **options), turns)
    return seen


def test_attention_that_splits_by_the_batch_would_be_noticed(folder, two_threads):
    """In float32; rounding to bfloat16 hides what a split changes in all but one of some hundred rows."""
    for dtype in DTYPES:
        seen = two_ways(folder, dtype)
        assert seen.compared > 10 and not seen.different
    assert two_ways(folder, torch.float32, deterministic=False).different


def test_linears_of_torch_would_be_noticed(folder, monkeypatch):
    """In float32; oneDNN's bfloat16 happens to sum in one order for these shapes."""
    assert not two_ways(folder, torch.float32).different
    monkeypatch.setattr(decoder.ops, "pack_linear_weight", lambda weight: weight)
    monkeypatch.setattr(decoder.ops, "row_linear", lambda x, weight, bias, out: out.copy_(F.linear(x, weight, bias)))
    assert two_ways(folder, torch.float32).different


def test_it_is_the_default_on_the_cpu(folder):
    engine = skv.Engine.from_pretrained(save("llama3", folder, SHAPE), num_blocks=8)
    assert engine.deterministic and engine._loop.num_splits == -1
    engine = skv.Engine.from_pretrained(save("llama3", folder, SHAPE), num_blocks=8, deterministic=False)
    assert not engine.deterministic and engine._loop.num_splits == 0


def test_scores_are_those_of_the_loop(folder):
    """score() computes beside the cache, in one piece: the same bits as the last step of a turn in chunks."""
    seen = Seen()
    engine = engine_of(folder, "qwen3", torch.bfloat16, seen, max_batch_tokens=100)
    prompt = tokens_of(5, SPLIT + 300)
    engine.complete(prompt, skv.SamplingParams(max_tokens=1))
    (logits,) = seen.rows.values()
    assert torch.equal(engine.score(prompt), logits.float())
