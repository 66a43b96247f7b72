"""A checkpoint that `train` writes: its files, transformers as the oracle of its answers, evaluation, the demo on it.

Two of them: the one that the package ships, and the training's beginning, before the first step, which says nothing
sensible: everything has to go on with that too.
"""

import json
from types import SimpleNamespace

import pytest
import torch

import stateful_kv as skv
from stateful_kv.__main__ import main
from stateful_kv.demo import report
from stateful_kv.demo.agents import chat, evaluate
from stateful_kv.demo.agents.episodes import HELD_OUT, Mix, episode
from stateful_kv.demo.agents.network import Network, Shape, save_checkpoint
from stateful_kv.demo.agents.world import SCHEMAS
from stateful_kv.demo.calls import parse_call
from stateful_kv.demo.checkpoint import EMBEDDED
from stateful_kv.demo.driver import TurnRecord
from stateful_kv.demo.text import ChatText


@pytest.fixture(scope="module")
def beginning(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    chat.train_tokenizer((episode(seed, Mix(share_of_all=0.05)) for seed in range(300)), folder / "tokenizer.json")
    tokenizer = ChatText(folder / "tokenizer.json").tokenizer
    network = Network(Shape(tokenizer.get_vocab_size()))
    network.begin(tokenizer, 0)
    save_checkpoint(network, folder, folder / "tokenizer.json")
    (folder / "training.json").write_text("{}")
    return folder


@pytest.fixture(scope="module", params=["shipped", "beginning"])
def directory(request, beginning):
    return EMBEDDED if request.param == "shipped" else beginning


@pytest.fixture(scope="module")
def text(directory):
    return ChatText.from_checkpoint(directory)


def test_the_files_are_small_and_fit_each_other(directory, text):
    assert sum(path.stat().st_size for path in directory.iterdir()) <= 20e6
    config = json.loads((directory / "config.json").read_text())
    assert config["vocab_size"] == text.tokenizer.get_vocab_size()
    assert (config["head_dim"], config["max_position_embeddings"]) == (64, 4096)
    assert config["num_key_value_heads"] >= 2
    assert text.stop_token_ids == (config["eos_token_id"],) == (text.tokenizer.token_to_id("<|im_end|>"),)


def prompts_of(conversation, text):
    """The tokens before every answer of a conversation."""
    ids = []
    for message, body in chat.texts(conversation):
        if message.role == "assistant":
            yield ids + text.begin_message("assistant")
        ids = ids + text.message(message.role, body)


def test_transformers_gives_the_same_answers(directory, text):
    transformers = pytest.importorskip("transformers")
    oracle = transformers.AutoModelForCausalLM.from_pretrained(str(directory), dtype=torch.float32).eval()
    engine = skv.Engine.from_pretrained(directory, dtype=torch.float32, num_blocks=1024)
    params = skv.SamplingParams(max_tokens=48, stop_token_ids=text.stop_token_ids)
    conversation = episode(HELD_OUT + 3, Mix(share_of_all=0.0))
    prompts = list(prompts_of(conversation, text))
    assert len(prompts) >= 2
    for prompt in prompts[:4]:
        turn = engine.complete(prompt, params)
        with torch.no_grad():
            ids = torch.tensor([prompt])
            expected = oracle.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=48, do_sample=False)
            logits = oracle(ids).logits[0, -1]
        assert turn.tokens == expected[0, len(prompt) :].tolist()
        torch.testing.assert_close(engine.score(prompt), logits, atol=2e-3, rtol=1e-3)


def test_beyond_the_trained_context_is_refused(directory, text):
    engine = skv.Engine.from_pretrained(directory, num_blocks=300)
    assert engine.max_length == 4096
    with pytest.raises(ValueError, match="4096 positions"):
        engine.open_session().generate([text.stop_token_ids[0]] * 4096)


def test_a_perfect_and_a_silent_model_are_scored_as_such(text):
    for perfect in (True, False):
        scores = evaluate.Scores()
        for message, body in chat.texts(episode(HELD_OUT + 1)):
            if message.role == "assistant":
                tokens = text.body(body) if perfect else text.body("Hello.")
                stats = SimpleNamespace(
                    prompt_tokens=100, reused_tokens=90, recomputed_tokens=0, fed_tokens=len(tokens) + 9,
                    accepted=0, drafted=0,
                )  # fmt: skip
                turn = SimpleNamespace(tokens=tokens, stats=stats)
                scores.add(message, text.decode(tokens), turn, 100)
        figures = scores.figures()
        for name in ("valid", "right tool", "exact", "text exact"):
            assert figures[name] == float(perfect)
        assert figures["tokens per step, calls"] == 1.0
        assert bool(scores.errors) is not perfect


def test_steps_are_the_engines_own():
    """Of turns that run alone, also those that end on an accepted draft, and those that draft from the first row on."""
    text = ChatText.from_checkpoint(EMBEDDED)
    engine = skv.Engine.from_pretrained(
        EMBEDDED, dtype=torch.float32, num_blocks=1024, max_batch_tokens=4096, speculation=evaluate.SPECULATION
    )
    params = skv.SamplingParams(max_tokens=evaluate.MAX_TOKENS, stop_token_ids=text.stop_token_ids)
    scores, tokens, steps, short, from_one_row = evaluate.Scores(), 0, 0, 0, 0
    for seed in (0, 1, 2):
        walk = evaluate._Walk(engine, text, episode(HELD_OUT + seed, Mix()))
        while walk.message is not None:
            length, message = len(walk.session) + len(walk.delta), walk.message
            for _ in range(2):  # the second time all but the last token of the prompt is there
                before = engine.stats()["steps"]
                (turn,) = engine.generate([skv.Request(walk.session, walk.delta, params)])
                taken = engine.stats()["steps"] - before
                record = TurnRecord(0, "", 0, [0] * turn.stats.prompt_tokens, turn.tokens, "", turn.stats)
                assert report.decode_steps(turn) == taken - 1
                assert report.prompt_rows(record) == turn.stats.prompt_tokens - turn.stats.reused_tokens
                scores.add(message, text.decode(turn.tokens), turn, length)
                one_row = turn.stats.prompt_tokens - turn.stats.reused_tokens == 1
                tokens, steps = tokens + len(turn.tokens) - (not one_row), steps + taken - (not one_row)
                from_one_row += one_row and turn.stats.drafted > 0
                short += len(turn.tokens) - turn.stats.accepted < taken
                walk.session.rollback(length - 1)
                walk.delta = walk.delta[-1:]
            walk.session.generate(walk.delta, skv.SamplingParams(max_tokens=1))
            walk.take(length)
        walk.session.close()
    assert short > 0 and from_one_row > 0
    counted = [sum(scores.counts[f"{kind} {what}"] for kind in ("call", "text")) for what in ("tokens", "steps")]
    assert counted == [tokens, steps]


def test_steps_of_preempted_turns_do_not_count_what_is_fed_again():
    text = ChatText.from_checkpoint(EMBEDDED)
    engine = skv.Engine.from_pretrained(EMBEDDED, dtype=torch.float32, num_blocks=12, speculation=None)
    params = skv.SamplingParams(max_tokens=60)
    requests = [
        skv.Request(engine.open_session(), text.body(f"{name} " * 20), params) for name in ("one", "two", "six")
    ]
    turns = engine.generate(requests)
    assert engine.stats()["preemptions"] > 0 and sum(turn.stats.recomputed_tokens for turn in turns) > 0
    assert [report.decode_steps(turn) for turn in turns] == [len(turn.tokens) - 1 for turn in turns]


def test_the_evaluation_command_writes_its_figures(tmp_path, capsys):
    path = tmp_path / "figures.json"
    assert main(["evaluate", "--model", str(EMBEDDED), "--episodes", "2", "--errors", "1", "--json", str(path)]) == 0
    figures = json.loads(path.read_text())["figures"]
    assert set(figures) == set(evaluate.MIXES) and figures["usual"]["calls"] > 0
    assert "right tool" in capsys.readouterr().out


def test_the_demo_goes_on_whatever_the_model_says(beginning, tmp_path, capsys):
    path = tmp_path / "figures.json"
    argv = ["demo", "--model", str(beginning), "--turns", "3", "--max-tokens", "24", "--json", str(path)]
    assert main(argv) == 0
    figures = json.loads(path.read_text())
    summary, turns = figures["summary"], figures["turns"]
    assert summary["failures"] == [] and summary["requests"] >= 1
    assert 0 < summary["fed_share_from_turn_2"] <= 0.15
    assert {turn["agent"] for turn in turns} >= {"orchestrator", "analyst"}
    for turn in turns:
        if turn["call"]:
            assert parse_call(f"<tool_call>{json.dumps(turn['call'])}</tool_call>", SCHEMAS)
    assert "requests         0 of" in capsys.readouterr().out


def test_the_shipped_model_calls_tools_as_it_should():
    """What README says of all held-out conversations, on the first of them; few calls, so a little room."""
    figures, _ = evaluate.run(EMBEDDED, 16, "float32")
    for part in figures.values():
        assert part["valid"] >= 0.98 and part["right tool"] >= 0.95 and part["exact"] >= 0.75
        assert part["tokens per step, calls"] >= 2.5


def test_the_demo_is_its_own(tmp_path):
    path = tmp_path / "figures.json"
    assert main(["demo", "--turns", "5", "--json", str(path)]) == 0
    figures = json.loads(path.read_text())
    summary, turns = figures["summary"], figures["turns"]
    assert figures["options"]["model"] == "embedded" and summary["failures"] == [] and summary["forks"] == 3
    assert 0 < summary["fed_share_from_turn_2"] <= 0.15
    assert summary["turns_equal"] == summary["turns"] == len(turns)
    called = [turn for turn in turns if turn["call"]]
    assert len(called) >= 0.5 * len(turns)
