"""The contestants of the proof take the same turns: same tokens, and each computes what its way promises."""

import pathlib
import sys
import types

import fake_llama_cpp
import numpy as np
import pytest

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))
from benchmarks.proof import models

PEERS = pathlib.Path(__file__).resolve().parents[1] / "benchmarks" / "peers"


@pytest.fixture(scope="module", autouse=True)
def adapters():
    """Adapters import each other as the scripts they are."""
    sys.path.insert(0, str(PEERS))
    yield
    sys.path.remove(str(PEERS))


def turn(agent, delta, answer=12, fork_of=None):
    return dict(agent=agent, delta=delta, answer=answer, fork_of=fork_of)


def workload():
    """Two agents with a common prefix, a burst of both, a fork of the first, and all three once more."""
    common, rng = list(range(5, 60)), np.random.default_rng(0)
    more = [rng.integers(5, 90, n).tolist() for n in (20, 30, 15, 25, 18, 21, 9)]
    steps = [
        [turn(0, common + more[0])],
        [turn(1, common + more[1])],
        [turn(0, more[2]), turn(1, more[3])],
        [turn(2, more[4], fork_of=0)],
        [turn(0, more[5]), turn(2, more[6])],
    ]
    return dict(steps=steps)


def lengths(work) -> list[int]:
    """Length of each turn's whole prompt."""
    held, out = {}, []
    for t in (t for step in work["steps"] for t in step):
        begin = held[t["fork_of"]] if t["fork_of"] is not None else held.get(t["agent"], 0)
        out.append(begin + len(t["delta"]))
        held[t["agent"]] = out[-1] + t["answer"]
    return out


def cell(**more) -> dict:
    facts = dict(dtype="float32", threads=1, clock="wall", agents=3, max_context=200, pool_tokens=None, total=600)
    return {**facts, **more}


def run(contestant, given, work=None) -> list[dict]:
    from contestant import Run

    contestant.start()
    return Run(contestant, given, work or workload()).go()


# ---- ours ----


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder, models.FOLDER = models.FOLDER, tmp_path_factory.mktemp("models")
    yield str(models.checkpoint("tiny"))
    models.FOLDER = folder


@pytest.fixture(scope="module")
def ours(checkpoint):
    from with_stateful_kv import PARTS, StatefulKV

    made = {}
    for variant in (*PARTS, "fast+no_speculation", "cascade+fast+no_speculation"):
        made[variant] = run(StatefulKV(cell(checkpoint=checkpoint, variant=variant)), {})
    return made


def test_every_variant_of_ours_answers_the_same(ours):
    """`fast` may split attention otherwise: it is float32 and tiny here, near-ties do not occur with this seed."""
    want = [row["tokens"] for row in ours["no_reuse"]]
    for variant, rows in ours.items():
        assert [row["tokens"] for row in rows] == want, variant


def test_variants_compute_what_they_promise(ours):
    prompts = lengths(workload())
    computed = {variant: [row["computed"] for row in rows] for variant, rows in ours.items()}
    assert computed["no_reuse"] == prompts
    deltas = [row["delta"] for row in ours["whole"]]
    # A session feeds its delta and the last token of its own answer, whose KV was not written yet.
    assert computed["whole"][2:4] == [d + 1 for d in deltas[2:4]]
    # With the tree, agent 0 finds that token written at last: its fork fed it, and published it.
    found = [0, 0, 0, 1, 0]
    assert computed["no_tree"][2:] == [n + f for n, f in zip(computed["whole"][2:], found)]
    assert computed["no_tree"][1] == deltas[1] and computed["whole"][1] == deltas[1] - 55  # the common prefix
    assert computed["complete"][2] < prompts[2] - 55
    assert sum(row["drafted"] for row in ours["no_speculation"]) == 0 < sum(row["drafted"] for row in ours["fixed"])


def test_times_are_in_order_and_a_burst_shares_its_beginning(ours):
    for row in ours["whole"]:
        assert 0 < row["ttft_s"] <= row["turn_s"]


def test_steps_are_counted_from_the_start_and_those_with_shared_prefixes_apart(checkpoint, monkeypatch):
    from with_stateful_kv import StatefulKV

    from stateful_kv import prefix_groups

    monkeypatch.setattr(prefix_groups, "grouping_pays", lambda new, *a: True)
    counts = {}
    for variant in ("fast+no_speculation", "cascade+fast+no_speculation"):
        contestant = StatefulKV(cell(checkpoint=checkpoint, variant=variant))
        answers = [[row["tokens"] for row in run(contestant, {})] for _ in range(2)]
        counts[variant] = (contestant.counts(), answers)
    (plain, expected), (cascade, found) = counts.values()
    assert plain == dict(steps=5 * 12, grouped_steps=0)
    # Those of both bursts; agent 1, who waits in the second, lies between the two that share.
    assert cascade == dict(steps=5 * 12, grouped_steps=24) and found == expected


def test_an_unknown_variant_is_refused(checkpoint):
    from with_stateful_kv import StatefulKV

    with pytest.raises(ValueError, match="no_wheels"):
        StatefulKV(cell(checkpoint=checkpoint, variant="no_wheels"))


def test_starting_again_finds_nothing_in_the_cache(checkpoint):
    from with_stateful_kv import StatefulKV

    contestant = StatefulKV(cell(checkpoint=checkpoint, variant="whole"))
    first, second = (run(contestant, {}) for _ in range(2))
    assert [row["computed"] for row in first] == [row["computed"] for row in second]


# ---- llama.cpp's bookkeeping, on a model that is a sum ----


@pytest.fixture
def llama(monkeypatch, tmp_path):
    lib = fake_llama_cpp.make()
    monkeypatch.setitem(sys.modules, "llama_cpp", lib)
    speculative = types.SimpleNamespace(LlamaPromptLookupDecoding=fake_llama_cpp.Proposer)
    monkeypatch.setitem(sys.modules, "llama_cpp.llama_speculative", speculative)
    import with_llama_cpp

    monkeypatch.setattr(with_llama_cpp, "gguf_of", lambda checkpoint, kind: tmp_path / kind)
    monkeypatch.setattr(np.ctypeslib, "as_array", lambda row, shape: row)
    monkeypatch.setattr(with_llama_cpp, "BATCH", 16)
    return lambda variant, **more: with_llama_cpp.LlamaCpp(cell(checkpoint="", variant=variant, **more))


def test_converted_weights_are_kept_away_from_the_checkpoint(monkeypatch, tmp_path):
    import with_llama_cpp

    made = []
    writer = types.SimpleNamespace(write_gguf=lambda checkpoint, out, kind: (made.append(kind), out.write_bytes(b"w")))
    monkeypatch.setitem(sys.modules, "llama_cpp_decode", writer)
    monkeypatch.setattr(with_llama_cpp, "CONVERTED", tmp_path / "gguf")
    folder = tmp_path / "checkpoint"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(b"1")
    first = with_llama_cpp.gguf_of(folder, "f32")
    assert with_llama_cpp.gguf_of(folder, "f32") == first and with_llama_cpp.gguf_of(folder, "bf16") != first
    (folder / "model.safetensors").write_bytes(b"2")
    assert with_llama_cpp.gguf_of(folder, "f32") != first and made == ["f32", "bf16", "f32"]
    assert {p.name for p in folder.iterdir()} == {"config.json", "model.safetensors"}


def expected() -> list[list[int]]:
    held, answers = {}, []
    for t in (t for step in workload()["steps"] for t in step):
        talk = list(held[t["fork_of"]]) if t["fork_of"] is not None else held.get(t["agent"], [])
        talk = talk + t["delta"]
        begin = len(talk)
        for _ in range(t["answer"]):
            talk.append(fake_llama_cpp.following(talk))
        held[t["agent"]] = talk
        answers.append(talk[begin:])
    return answers


@pytest.mark.parametrize("variant", ["recomputing", "prefix", "lookup", "prefix+plain_attention"])
@pytest.mark.parametrize("pool_tokens", [None, 600], ids=["all fit", "one fits"])
def test_llama_ways_answer_the_same(llama, variant, pool_tokens):
    rows = run(llama(variant, pool_tokens=pool_tokens), {})
    assert [row["tokens"] for row in rows] == expected()


def test_llama_ways_compute_what_they_promise(llama):
    prompts = lengths(workload())
    rows = {variant: run(llama(variant), {}) for variant in ("recomputing", "prefix", "lookup")}
    assert [row["computed"] for row in rows["recomputing"]] == prompts
    deltas = [row["delta"] for row in rows["prefix"]]
    computed = [row["computed"] for row in rows["prefix"]]
    assert computed[1] == deltas[1] - 55 and computed[2:4] == [d + 1 for d in deltas[2:4]]
    assert computed[4] == deltas[4] + 1  # the fork begins with a copy of its parent's sequence
    assert sum(row["accepted"] for row in rows["lookup"]) > 0
    assert all(row["accepted"] <= row["drafted"] for row in rows["lookup"])


# ---- the run itself ----


class Echo:
    """Answers with the agent's number and remembers what it was given."""

    def __init__(self):
        self.seen = []

    def start(self):
        self.seen.clear()

    def take(self, turns):
        from contestant import Answer

        self.seen.append([(t.agent, list(t.context), t.num_new) for t in turns])
        return [Answer([t.agent] * t.answer, 0.1, 0.2, len(t.context)) for t in turns]


def test_conversations_hold_deltas_and_answers_and_forks_begin_with_their_parents():
    echo = Echo()
    run(echo, {})
    work = workload()["steps"]
    assert echo.seen[0] == [(0, work[0][0]["delta"], 75)]
    first = work[0][0]["delta"] + [0] * 12 + work[2][0]["delta"]
    assert echo.seen[2][0] == (0, first, 15)
    assert echo.seen[3] == [(2, first + [0] * 12 + work[3][0]["delta"], 18)]


def test_turns_left_out_take_the_scripts_answers():
    echo, work = Echo(), workload()
    script = [[50 + i] * t["answer"] for i, t in enumerate(t for step in work["steps"] for t in step)]
    rows = run(echo, dict(every=3, script=script), work)
    assert [row["step"] for row in rows] == [0, 3, 4, 4]  # every third step, and the last one
    assert echo.seen[1][0][1][75 : 75 + 12] == [0] * 12  # its own answer
    assert echo.seen[1][0][1][75 + 12 + 15 :][:12] == [52] * 12  # the script's


def test_a_contestant_that_answers_too_little_is_caught():
    work = workload()

    class Short(Echo):
        def take(self, turns):
            answers = super().take(turns)
            answers[0].tokens.pop()
            return answers

    with pytest.raises(AssertionError, match="11 tokens came, 12 were asked for"):
        run(Short(), {}, work)
