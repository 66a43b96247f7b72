"""Shared prefixes in the loop: which sequences of a batch are grouped, and that no answer shows it."""

import itertools
import random

import numpy as np
import pytest
from checkpoints import VOCAB, save

import stateful_kv as skv
from stateful_kv import prefix_groups
from stateful_kv.prefix_groups import groups_that_pay, neighbours_that_share

BLOCK = 4
SHAPES = (32, 8, 128)


def shared_by(table, committed, begin, end):
    """Leading blocks that are the same in every row, and whole in each."""
    most = min(int(committed[b]) // BLOCK for b in range(begin, end))
    return next((i for i in range(most) if len({int(t) for t in table[begin:end, i]}) > 1), most)


@pytest.mark.parametrize("seed", range(30))
def test_groups_cover_the_batch_and_share_what_they_say(seed):
    rng = random.Random(seed)
    batch, width = rng.randint(0, 9), rng.choice((1, 5, 12, 40, 130))
    table = np.full((batch, width), -1, np.int32)
    committed = np.array([rng.randint(0, width * BLOCK) for _ in range(batch)], np.int32)
    for b in range(batch):
        same = rng.randint(0, width) if b and rng.random() < 0.7 else 0
        for i in range(-(-int(committed[b]) // BLOCK)):
            table[b, i] = table[b - 1, i] if i < same else 1000 * b + i
    groups = neighbours_that_share(table, committed, BLOCK)
    assert [g.begin for g in groups] == [0, *(g.end for g in groups)][: len(groups)]
    assert [g.end for g in groups][-1:] == ([batch] if batch else [])
    for begin, end, shared in groups:
        assert begin < end and shared == (shared_by(table, committed, begin, end) if end - begin > 1 else 0)
        assert (end - begin > 1) == (shared > 0)
    saved = sum((g.end - g.begin - 1) * g.shared_blocks for g in groups)
    cuts = [[0, *cut, batch] for n in range(batch) for cut in itertools.combinations(range(1, batch), n)]
    of = {
        (a, b): (b - a - 1) * shared_by(table, committed, a, b) for a in range(batch) for b in range(a + 1, batch + 1)
    }
    assert saved == max((sum(of[pair] for pair in itertools.pairwise(cut)) for cut in cuts), default=0)


def test_a_group_is_as_large_as_it_saves_most():
    table = np.array([[1, 2, 3, 4], [1, 2, 3, 5], [1, 6, 7, 8], [9, 1, 1, 1], [9, 1, 1, 2], [9, 1, 1, 3]], np.int32)
    committed = np.full(6, 4 * BLOCK, np.int32)
    assert neighbours_that_share(table, committed, BLOCK) == [(0, 2, 3), (2, 3, 0), (3, 6, 3)]
    committed[1] = 2 * BLOCK + 1  # its third block is not whole
    assert neighbours_that_share(table, committed, BLOCK)[0] == (0, 2, 2)


def test_only_what_pays_is_grouped():
    table = np.concatenate([np.arange(2048)[None].repeat(8, 0), 5000 + np.arange(4 * 2048).reshape(4, -1)]).astype(
        np.int32
    )
    new, used = np.ones(12, np.int64), np.full(12, 2048 * 16, np.int32)
    assert groups_that_pay(table, new, used, 16, SHAPES, 2) == ([0, 8, 9, 10, 11, 12], [2047, 0, 0, 0, 0], 8)
    assert groups_that_pay(table, new, np.minimum(used, 64), 16, SHAPES, 2) is None
    assert groups_that_pay(table[8:], new[8:], used[8:], 16, SHAPES, 2) is None


def test_sequences_that_wait_part_no_group():
    """A session between two turns keeps its row of the batch, with no new tokens and nothing in its table."""
    table = np.arange(2048, dtype=np.int32)[None].repeat(8, 0)
    new, used = np.ones(8, np.int64), np.full(8, 2048 * 16, np.int32)
    for waiting, cu_groups in (
        ([2, 3], [0, 8]),
        ([0, 5], [0, 1, 8]),
        ([1, 6, 7], [0, 6, 7, 8]),
        ([0, 7], [0, 1, 7, 8]),
    ):
        t, n, u = table.copy(), new.copy(), used.copy()
        t[waiting], n[waiting], u[waiting] = -1, 0, 0
        shared = [2047 if end - begin > 1 else 0 for begin, end in itertools.pairwise(cu_groups)]
        assert groups_that_pay(t, n, u, 16, SHAPES, 2) == (cu_groups, shared, 8 - len(waiting))
    assert groups_that_pay(table, np.zeros(8, np.int64), used, 16, SHAPES, 2) is None


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return {name: save(name, tmp_path_factory.mktemp("groups")) for name in ("llama3", "qwen2-window")}


def answers(engine):
    """Agents with one system prompt, drafts, deltas of several tokens, and one that shares nothing."""
    system = np.random.default_rng(0).integers(0, VOCAB, 67).tolist()
    sampled = skv.SamplingParams(max_tokens=7, temperature=0.9, seed=5)
    root = engine.open_session()
    root.generate(system, skv.SamplingParams(max_tokens=1))
    agents = [root.fork() for _ in range(4)] + [engine.open_session()]
    tokens = []
    for turn in range(2):
        requests = [
            skv.Request(a, [i, turn, 3, i, turn, 3][: 2 + i], skv.SamplingParams(max_tokens=12) if i % 2 else sampled)
            for i, a in enumerate(agents)
        ]
        tokens += [t.tokens for t in engine.generate(requests)]
    some = [skv.Request(a, [7, 8], skv.SamplingParams(max_tokens=5)) for a in agents[::2]]  # the others wait
    return tokens + [t.tokens for t in engine.generate(some)]


@pytest.mark.parametrize("has_schedule", [False, True])
@pytest.mark.parametrize("name", ["llama3", "qwen2-window"])
def test_answers_are_the_same_with_shared_spans_read_once(checkpoint, name, has_schedule, monkeypatch):
    calls = []
    attend = prefix_groups.Spans.attend
    monkeypatch.setattr(
        prefix_groups.Spans, "attend", lambda self, *a, **k: (calls.append(self), attend(self, *a, **k))[1]
    )
    monkeypatch.setattr(prefix_groups, "grouping_pays", lambda new, *a: True)
    forward = skv.generate.forward
    monkeypatch.setattr(skv.generate, "forward", lambda *a: forward(*a, has_schedule=has_schedule))
    options = {"num_blocks": 128, "block_size": 8, "deterministic": False}
    plain = skv.Engine.from_pretrained(checkpoint[name], **options)
    expected = answers(plain)
    assert not calls and not plain.stats()["grouped_steps"]
    engine = skv.Engine.from_pretrained(checkpoint[name], cascade=True, **options)
    assert answers(engine) == expected
    layers = sum(layer.window_left < 0 for layer in engine.model.layers)
    grouped = engine.stats()["grouped_steps"]
    assert grouped > 5 and len(calls) == layers * grouped
    assert len({s.schedules[0] is None for s in calls}) == 1 and (calls[0].schedules[0] is None) is not has_schedule


def test_an_engine_whose_bits_must_not_depend_on_sharing_does_not_share(checkpoint):
    engine = skv.Engine.from_pretrained(checkpoint["llama3"], num_blocks=64, deterministic=True)
    assert not engine._loop.shares_spans
    with pytest.raises(ValueError, match="cascade is True, expected False or None where deterministic is True"):
        skv.Engine.from_pretrained(checkpoint["llama3"], num_blocks=64, deterministic=True, cascade=True)
    engine = skv.Engine.from_pretrained(checkpoint["llama3"], num_blocks=64, cascade=True)
    assert engine._loop.shares_spans and not engine.deterministic
