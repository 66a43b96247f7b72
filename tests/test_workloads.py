"""The workloads of the proof: the same tokens from the same seed, and what each of them promises."""

import json
import pathlib
import sys

import pytest

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))
from benchmarks.workloads import embedded, files
from benchmarks.workloads.generate import WORKLOADS, Turn, Workload, repetition

LONG = "thirty_five_turns_long"


@pytest.fixture(scope="module")
def workloads():
    return {name: make() for name, make in WORKLOADS.items() if name != LONG}


def conversations(workload: Workload, answer: int = 0) -> dict[int, list[int]]:
    """What each agent holds at the end when every answer is the same token."""
    held: dict[int, list[int]] = {}
    for turn in workload.turns:
        if turn.fork_of is not None:
            held[turn.agent] = list(held[turn.fork_of])
        held.setdefault(turn.agent, []).extend(turn.delta + [answer] * turn.answer)
    return held


def shared(a: list[int], b: list[int]) -> int:
    return next((i for i, (x, y) in enumerate(zip(a, b)) if x != y), min(len(a), len(b)))


def test_the_same_seed_gives_the_same_bytes_and_another_one_others(tmp_path, workloads):
    for name in workloads:
        a = files.write(WORKLOADS[name](), tmp_path / "a").read_bytes()
        assert a == files.write(WORKLOADS[name](), tmp_path / "b").read_bytes()
        assert a != files.write(WORKLOADS[name](seed=4711), tmp_path / "c").read_bytes()


def test_a_stale_file_is_written_again(tmp_path):
    path = files.ensure("six_turns", tmp_path)
    good = path.read_bytes()
    path.write_text("{}")
    assert files.ensure("six_turns", tmp_path).read_bytes() == good


@pytest.mark.parametrize(
    ("name", "turns", "agents", "low", "high"),
    [
        ("six_turns", 6, 1, 3000, 4000),
        ("thirty_five_turns", 35, 1, 13_000, 15_000),
        ("three_agents", 15, 3, 2000, 3500),
        ("burst", 24, 8, 2000, 3000),
        ("fan_out", 15, 7, 2000, 3500),
        ("free_text", 8, 1, 2000, 4000),
        ("pressure", 30, 6, 2000, 3000),
    ],
)
def test_turns_agents_and_lengths(workloads, name, turns, agents, low, high):
    workload = workloads[name]
    assert (workload.num_turns, workload.agents) == (turns, agents)
    assert low <= workload.max_context <= high
    lengths = {agent: len(tokens) for agent, tokens in conversations(workload).items()}
    assert lengths == workload.lengths() and sum(lengths.values()) == workload.total


def test_the_long_one_reaches_100k():
    workload = WORKLOADS[LONG]()
    assert workload.num_turns == 35 and 98_000 <= workload.max_context <= 104_000


def test_agents_share_what_they_should(workloads):
    for name, least in (("three_agents", 1200), ("burst", 1500)):
        first, *others = conversations(workloads[name]).values()
        assert all(least <= shared(first, other) < least + 300 for other in others), name
    held = conversations(workloads["fan_out"])
    at_fork = sum(len(t.delta) + t.answer for t in workloads["fan_out"].turns[:2])
    assert all(shared(held[1], held[agent]) >= at_fork for agent in range(2, 7))
    assert all(held[agent][:at_fork] == held[0][:at_fork] for agent in range(1, 7))


def test_every_agent_of_three_uses_each_of_five_tools_and_they_take_turns(workloads):
    steps = workloads["three_agents"].steps
    assert [turn.agent for step in steps for turn in step] == [0, 1, 2] * 5
    assert [len(step) for step in workloads["burst"].steps] == [8, 8, 8]


def test_the_pool_is_smaller_than_the_conversations_and_holds_any_one_of_them(workloads):
    w = workloads["pressure"]
    assert 2 * w.max_context < w.pool_tokens < w.total / 2


def test_tool_text_repeats_and_free_text_does_not(workloads):
    prose = [t for turn in workloads["free_text"].turns for t in turn.delta]
    assert repetition(prose) < 0.05
    for name in ("six_turns", "thirty_five_turns", "burst", "pressure"):
        deltas = [t for turn in workloads[name].turns[:12] for t in turn.delta]
        assert repetition(deltas) > 0.35, name


def test_repetition_counts_what_a_lookup_could_know():
    assert repetition([1, 2, 3, 4, 5, 6, 7, 8]) == 0.0
    assert repetition([1, 2, 3, 9] * 2) == pytest.approx(1 / 5)  # of five tokens with three before them the last
    assert repetition([5] * 23) == pytest.approx(19 / 20)


def test_tokens_fit_every_model_and_json_holds_all(workloads):
    for workload in workloads.values():
        assert all(0 <= t < 2560 for turn in workload.turns for t in turn.delta)
        again = json.loads(json.dumps(workload.as_json()))
        assert [[Turn(**turn) for turn in step] for step in again["steps"]] == workload.steps


# ---- the embedded model's ----


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A directory that has a tokenizer and a stop token: all that these workloads read of a model."""
    folder = tmp_path_factory.mktemp("checkpoint")
    tokenizer = pathlib.Path(embedded.__file__).parents[2] / "stateful_kv" / "demo" / "tokenizer.json"
    (folder / "tokenizer.json").write_bytes(tokenizer.read_bytes())
    (folder / "config.json").write_text('{"eos_token_id": 1}')
    return folder


@pytest.mark.parametrize("name", embedded.TURNS)
def test_the_embedded_models_conversations_fit_its_context(checkpoint, name):
    workload = files.make(name, checkpoint)
    assert workload.num_turns == embedded.TURNS[name] and workload.agents == 1
    assert workload.max_context <= 4096 and workload == files.make(name, checkpoint)


def test_deltas_and_reference_answers_are_the_rendered_conversation(checkpoint):
    """Messages folded into turns, with the reference answers put in, are the tokens of the conversation as trained."""
    import random

    from stateful_kv.demo.agents import chat
    from stateful_kv.demo.text import ChatText

    text = ChatText.from_checkpoint(checkpoint)
    conversation = embedded._conversation(random.Random(5), "support", 6)
    whole, _ = chat.encode(conversation, text)
    turns, at = embedded._turns(conversation, text, 6), 0
    for turn in turns:
        assert whole[at : at + len(turn.delta)] == turn.delta
        at += len(turn.delta) + turn.answer
        assert whole[at - 1] == text.stop_token_ids[0]


def test_embedded_workloads_need_a_tokenizer(tmp_path):
    with pytest.raises(ValueError, match="tokenizer"):
        files.make("embedded_six_turns", tmp_path)
