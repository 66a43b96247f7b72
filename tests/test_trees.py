"""Trees of drafts through the engine: answers and caches are those without any, whatever shares the batch.

A session's spans make trees at will without a token more in its context: the answer that a plain engine gives, and
beside it decoys that soon part from it. The latest place that knows the tail is then a decoy, the chain, and
the true continuation is a branch.
"""

import numpy as np
import pytest
import torch
from checkpoints import VOCAB, save

import stateful_kv as skv
from stateful_kv import generate, prefix_groups

LENGTH = 60
PARAMS = {
    "greedy": skv.SamplingParams(max_tokens=LENGTH),
    "sampled": skv.SamplingParams(max_tokens=LENGTH, temperature=0.8, top_k=50, top_p=0.95, seed=5),
}
TREES = skv.PromptLookup(num_drafts=12, branches=4, adaptive=False)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("trees")


def engine_of(folder, name="llama3", speculation=TREES, **options):
    options = {"num_blocks": 160, "block_size": 8, "deterministic": False, **options}
    return skv.Engine.from_pretrained(save(name, folder), speculation=speculation, **options)


def text(seed, n):
    return np.random.default_rng(seed).integers(0, VOCAB, n).tolist()


def decoys(answer, seed=0):
    """Spans: the answer, then from every place of it four tokens or five that are right and six that are not."""
    rng = np.random.default_rng(seed)
    places = range(4, len(answer))
    return [answer] + [answer[i - 4 : i + (i % 4 == 0)] + rng.integers(0, VOCAB, 6).tolist() for i in places]


def plain_answers(folder, name, prompts, params):
    """Of each prompt by itself, without drafts, from nothing."""
    engine = engine_of(folder, name, speculation=None, prefix_cache=False)
    return [engine.complete(prompt, params).tokens for prompt in prompts]


def taught(engine, prompt, answer, params):
    """An engine counts what branches are worth: after this turn, it knows."""
    with engine.open_session(draft_spans=decoys(answer)) as session:
        assert session.generate(prompt, params).tokens == answer


@pytest.mark.parametrize("params", PARAMS.values(), ids=PARAMS)
@pytest.mark.parametrize("name", ["llama3", "qwen3", "qwen2-window", "mistral"])
def test_answers_are_those_without_drafts(folder, name, params):
    """Also where windows (24 tokens) begin to hide the context."""
    prompt = text(1, 40)
    (answer,) = plain_answers(folder, name, [prompt], params)
    engine = engine_of(folder, name)
    taught(engine, prompt, answer, params)
    steps = engine.stats()["steps"]
    session = engine.open_session(draft_spans=decoys(answer))
    turn = session.generate(prompt, params)
    assert turn.tokens == answer
    stats, total = turn.stats, engine.stats()
    assert total["tree_steps"] > 5 and stats.accepted_branches > LENGTH // 3 and total["steps"] - steps < LENGTH // 2
    assert stats.accepted_branches <= stats.drafted_branches and stats.accepted_branches <= stats.accepted
    engine._loop.runtime.check()


def resident_kv(engine):
    """K and V of what the session that just ran has in the cache, by position."""
    row = int(np.diff(engine._loop.planned["cu_rows"]).argmax())
    table = torch.from_numpy(engine._loop.planned["block_table"][row].astype("int64"))
    length = 40 + LENGTH - 1
    positions = torch.arange(length)
    slots = table[positions // 8] * 8 + positions % 8
    caches = (*engine._loop.cache.keys, *engine._loop.cache.values)
    return torch.stack([cache[slots // 8, slots % 8] for cache in caches])


@pytest.mark.parametrize("name", ["llama3", "mistral"])
def test_the_cache_holds_what_it_would_without_drafts(folder, name):
    """Every layer's keys and values after a turn full of trees, and a second session that finds them in the radix
    tree."""
    params, prompt = PARAMS["greedy"], text(2, 40)
    (answer,) = plain_answers(folder, name, [prompt], params)
    plain, engine = engine_of(folder, name, speculation=None), engine_of(folder, name)
    taught(engine, prompt, answer, params)
    engine._loop.runtime.evict(160)
    assert engine.complete([3], skv.SamplingParams(max_tokens=1)).tokens
    trees = engine.stats()["tree_steps"]
    session = engine.open_session(draft_spans=decoys(answer))
    session.generate(prompt, params)
    assert engine.stats()["tree_steps"] > trees + 5
    plain.open_session().generate(prompt, params)
    torch.testing.assert_close(resident_kv(engine), resident_kv(plain), rtol=1e-4, atol=1e-4)
    follow = prompt + answer + text(3, 5)
    turn = engine.open_session().generate(follow, params)
    assert turn.stats.reused_tokens == len(prompt) + len(answer) - 1
    assert turn.tokens == plain_answers(folder, name, [follow], params)[0]


@pytest.mark.parametrize("num_blocks", [160, 42], ids=["room", "pressure"])
def test_trees_chains_deltas_and_single_tokens_in_one_batch(folder, num_blocks):
    """Sessions with decoys, with the plain answer as span (chains) and with nothing, joining one after the other, with
    short deltas and ones that are longer than a mask is wide; in a pool that is too small for all of them too."""
    kinds = ["tree", "chain", "none", "tree", "none", "tree", "chain", "none"]
    lengths = [40, 5, 12, 90, 3, 33, 20, 100]
    prompts = [text(10 + i, n) for i, n in enumerate(lengths)]
    params = [list(PARAMS.values())[i % 3 == 1] for i in range(len(kinds))]
    answers = [plain_answers(folder, "llama3", [p], q)[0] for p, q in zip(prompts, params)]
    engine = engine_of(folder, num_blocks=num_blocks, max_seqs=4)
    taught(engine, prompts[0], answers[0], params[0])
    seen = set()
    run = engine._loop._run

    def watched(plan):
        rows = np.diff(engine._loop.planned["cu_seqlens_q"][: plan.num_seqs + 1])
        seen.add((bool(plan.has_trees), plan.num_tokens > plan.num_logit_rows, bool(rows.max() > 64)))
        run(plan)

    engine._loop._run = watched
    spans = {"tree": decoys, "chain": lambda answer: [answer], "none": lambda answer: []}
    got, ids, waiting = {}, {}, list(range(len(kinds)))
    for step in range(400):
        if waiting and step % 3 == 0:
            i = waiting.pop(0)
            session = engine.open_session(draft_spans=spans[kinds[i]](answers[i]))
            ids[engine.submit(skv.Request(session, prompts[i], params[i]))] = i
        for event in engine.step():
            got.setdefault(ids[event.request_id], []).extend(event.tokens)
        engine._loop.runtime.check()
        if not waiting and not engine._turns.running:
            break
    assert [got[i] for i in range(len(kinds))] == answers
    assert (True, True, False) in seen  # a tree beside a delta
    assert (False, True, True) in seen and not any(trees and is_long for trees, _, is_long in seen)


@pytest.mark.parametrize("name", ["llama3", "qwen2-window"])
def test_trees_share_prefixes_that_are_read_once(folder, monkeypatch, name):
    """Beside one that has no tree. What neighbours share is committed, where a tree's mask hides nothing."""
    params, prompt = PARAMS["greedy"], text(8, 64)
    prompts = [prompt + text(9 + i, 3) for i in range(3)]
    answers = plain_answers(folder, name, prompts, params)
    engine = engine_of(folder, name)
    taught(engine, prompts[0], answers[0], params)
    masks, attend = [], prefix_groups.Spans.attend

    def seen(self, *args, **kwargs):
        masks.append(kwargs["tree_mask"])
        return attend(self, *args, **kwargs)

    monkeypatch.setattr(prefix_groups.Spans, "attend", seen)
    monkeypatch.setattr(prefix_groups, "grouping_pays", lambda new, *a: True)
    engine._loop.shares_spans = True
    engine.complete(prompt, skv.SamplingParams(max_tokens=1))
    spans = [decoys(answers[0]), decoys(answers[1]), []]
    sessions = [engine.open_session(draft_spans=s) for s in spans]
    turns = engine.generate([skv.Request(s, p, params) for s, p in zip(sessions, prompts)])
    assert [turn.tokens for turn in turns] == answers
    assert sum(mask is not None for mask in masks) > 5 and any(mask is None for mask in masks)


def test_fork_and_rollback_after_tree_steps(folder):
    params, prompt = PARAMS["greedy"], text(4, 40)
    (answer,) = plain_answers(folder, "llama3", [prompt], params)
    engine = engine_of(folder)
    taught(engine, prompt, answer, params)
    session = engine.open_session(draft_spans=decoys(answer))
    session.generate(prompt, params)
    child = session.fork()
    for length in (90, 71, 57, 43):
        child.rollback(length)
        more = text(length, 3)
        expected = plain_answers(folder, "llama3", [(prompt + answer)[:length] + more], params)[0]
        assert child.generate(more, params).tokens == expected
        child.rollback(length)
    more = text(5, 4)
    assert session.generate(more, params).tokens == plain_answers(folder, "llama3", [prompt + answer + more], params)[0]
    engine._loop.runtime.check()


@pytest.mark.parametrize("when", ["before", "after"])
def test_an_interrupted_move_leaves_the_session_as_it_was(folder, monkeypatch, when):
    params, prompt = PARAMS["greedy"], text(6, 40)
    (answer,) = plain_answers(folder, "llama3", [prompt], params)
    engine = engine_of(folder)
    taught(engine, prompt, answer, params)
    session = engine.open_session(draft_spans=decoys(answer))
    real, calls = generate.ops.compact_kv, []

    def interrupted(*args):
        calls.append(1)
        if len(calls) != 3:
            return real(*args)
        if when == "after":
            real(*args)
        raise KeyboardInterrupt

    monkeypatch.setattr(generate.ops, "compact_kv", interrupted)
    with pytest.raises(KeyboardInterrupt):
        session.generate(prompt, params)
    assert len(session) == 0 and not engine._turns.running
    engine._loop.runtime.check()
    assert session.generate(prompt, params).tokens == answer
    assert len(calls) > 4


def test_early_end_of_a_stream_amid_trees(folder):
    params, prompt = PARAMS["greedy"], text(7, 40)
    (answer,) = plain_answers(folder, "llama3", [prompt], params)
    engine = engine_of(folder)
    taught(engine, prompt, answer, params)
    session = engine.open_session(draft_spans=decoys(answer))
    stream = session.stream(prompt, params)
    kept = [next(stream) for _ in range(37)]
    stream.close()
    assert session.tokens == prompt + kept == prompt + answer[:37]
    assert session.generate([], params).tokens[:20] == answer[37:57]


def test_what_trees_exclude_is_refused(folder):
    engine = engine_of(folder, deterministic=None)
    assert not engine.deterministic and engine_of(folder, deterministic=None, speculation=None).deterministic
    with pytest.raises(ValueError, match=r"deterministic is True and PromptLookup\.branches 4"):
        engine_of(folder, deterministic=True)
    with pytest.raises(ValueError, match=r"device_loop is True and PromptLookup\.branches 4"):
        engine_of(folder, device_loop=True)
    with pytest.raises(ValueError, match="num_drafts is 30 with branches, expected at most the 23"):
        engine_of(folder, "mistral", speculation=skv.PromptLookup(num_drafts=30, branches=1))
    for wrong, message in ((dict(branches=17), "expected 0 to 16"), (dict(branches=1, num_drafts=64), "at most 63")):
        with pytest.raises(ValueError, match=message):
            skv.PromptLookup(**wrong)
