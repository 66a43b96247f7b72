"""The demo: tools, strict calls, transcripts, tokens, figures, and the command from end to end."""

import json
from types import SimpleNamespace

import pytest

from stateful_kv.__main__ import main
from stateful_kv.demo import checkpoint, report
from stateful_kv.demo import main as demo_main
from stateful_kv.demo.agents import evaluate, train
from stateful_kv.demo.calls import Call, CallError, parse_call
from stateful_kv.demo.driver import Crew, RoundRecord, TurnRecord
from stateful_kv.demo.text import END, ChatText
from stateful_kv.demo.tools import HAND_OFFS, SCHEMAS, SUB_AGENTS, World
from stateful_kv.demo.transcripts import ANALYST, FOLDER, ORCHESTRATOR, load_transcripts, shared_prompt
from stateful_kv.demo.workspace import EvalError, Evaluator, Workspace

GOOD = '<tool_call>{"name": "get_order", "arguments": {"order": "O-7311"}}</tool_call>'


def error_of(result: str) -> str | None:
    value = json.loads(result) if result.startswith("{") else {}
    return value.get("error")


def test_a_call_is_found_in_the_text_around_it():
    assert parse_call("I look.\n" + GOOD + "\n", SCHEMAS) == Call("get_order", {"order": "O-7311"})


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("no call", "expected one of each"),
        (GOOD + GOOD, "expected one of each"),
        (GOOD.removesuffix("</tool_call>"), "expected one of each"),
        ("</tool_call>{}<tool_call>", "stands before"),
        ("<tool_call>{'name': 1}</tool_call>", "not JSON"),
        ("<tool_call>" + "[" * 100_000 + "</tool_call>", "not JSON"),
        ("<tool_call>[]</tool_call>", "exactly the keys"),
        (GOOD.replace('"name"', '"tool"'), "exactly the keys"),
        (GOOD.replace("}}", '}, "id": 1}'), "exactly the keys"),
        (GOOD.replace("get_order", "drop_order"), "no tool"),
        (GOOD.replace('"get_order"', "7"), "no tool"),
        (GOOD.replace('{"order": "O-7311"}', '"O-7311"'), "expected object"),
        (GOOD.replace('"O-7311"', "7311"), "expected string"),
        (GOOD.replace("O-7311", "T-7311"), "does not match"),
        (GOOD.replace("O-7311", "O-7311\\n"), "does not match"),
        (GOOD.replace('"order": "O-7311"', ""), "missing ['order']"),
        (GOOD.replace('"O-7311"', '"O-7311", "fast": true'), "unknown ['fast']"),
        (GOOD.replace('"O-7311"', '"O-7311", "order": "O-7318"'), "given twice"),
        (Call("list_tickets", {"status": "lost"}).text(), "is not one of"),
        (Call("refund_order", {"order": "O-1", "cents": True, "reason": ""}).text(), "expected integer"),
        (Call("refund_order", {"order": "O-1", "cents": 1.5, "reason": ""}).text(), "expected integer"),
        (Call("refund_order", {"order": "O-1", "cents": float("nan"), "reason": ""}).text(), "not JSON"),
        (Call("refund_order", {"order": "O-1", "cents": 0, "reason": ""}).text(), "below 1"),
        (Call("query_metric", {"metric": "error_rate", "start": 0, "end": 1441, "how": "max"}).text(), "above 1440"),
    ],
)
def test_anything_else_is_no_call(text, reason):
    with pytest.raises(CallError) as error:
        parse_call(text, SCHEMAS)
    assert reason in str(error.value)


def test_every_tool_of_the_schemas_exists_and_no_other():
    world = World()
    for name in set(SCHEMAS) - set(HAND_OFFS):
        assert any(callable(getattr(owner, name, None)) for owner in (world, world.desk, world.workspace)), name
    with pytest.raises(ValueError, match="no tool"):
        world.execute(Call("__init__", {}))
    with pytest.raises(ValueError, match="by the driver"):
        world.execute(Call("delegate", {"agent": "support", "task": ""}))


def test_tools_change_their_own_world_only():
    first, second = World(), World()
    refund = Call("refund_order", {"order": "O-7311", "cents": 1000, "reason": "r"})
    assert json.loads(first.execute(refund)) == {"refund": "R-91", "order": "O-7311", "cents": 1000, "fee_left": 500}
    assert "only 500 cents" in error_of(first.execute(refund))
    assert json.loads(second.execute(refund))["fee_left"] == 500
    assert "no order O-1" in error_of(first.execute(Call("get_order", {"order": "O-1"})))


def test_metrics_follow_the_setting():
    world = World()
    query = Call("query_metric", {"metric": "fee_cents", "start": 560, "end": 600, "how": "max"})
    assert json.loads(world.execute(query))["max"] == 420 + 7 * 8 + 780
    world.execute(Call("change_setting", {"service": "billing", "key": "late_fees", "value": "off"}))
    assert json.loads(world.execute(query))["max"] == 0
    assert error_of(world.execute(Call("change_setting", {"service": "billing", "key": "release", "value": "1"})))


def test_the_test_runner_evaluates_what_the_files_say():
    workspace = Workspace()
    before = workspace.run_tests("tests/test_fees.py")
    assert "FAILED late_fee(3, 0) == 450 (got 1500)" in before and before.endswith("0 passed, 3 failed")
    workspace.edit_file("billing/fees.py", "max(days, 10)", "min(days, 10)")
    assert workspace.run_tests("tests/test_fees.py") == "3 passed, 0 failed"
    workspace.edit_file("billing/fees.py", "100 if plus else 150", "100")
    assert workspace.run_tests("tests/test_fees.py").endswith("1 passed, 2 failed")


@pytest.mark.parametrize(
    "body",
    [
        "__import__('os')", "open('x')", "(1).real", "[1]", "2 ** 9", "f(x)", "1 // 0", "'a' * 9", "min(3)", "1.5",
        "x < 2 < 3", "9999999999 * 9999999999", "f(x - 1) if x else f(x + 1)", "unknown", "f()",
    ],
)  # fmt: skip
def test_code_outside_the_corner_of_python_is_refused(body):
    evaluator = Evaluator()
    tests = evaluator.define(f"def f(x):\n    return {body}\n\nassert f(1) == 1\n")
    with pytest.raises(EvalError):
        evaluator.value(tests[0].test, {})


def test_an_evaluation_ends_however_wide_the_calls_are():
    lines = ["def f0(x):\n    return x\n"]
    lines += [f"def f{i}(x):\n    return max({', '.join([f'f{i - 1}(x)'] * 20)})\n" for i in range(1, 12)]
    evaluator = Evaluator()
    tests = evaluator.define("\n".join([*lines, "assert f11(1) == 1"]))
    with pytest.raises(EvalError, match="too deep or too long"):
        evaluator.value(tests[0].test, {})


@pytest.mark.parametrize("source", ["while 1: pass", "import os", "def f(x):\n    x = 1\n    return x", "f(", "\0"])
def test_statements_are_refused(source):
    with pytest.raises(EvalError):
        Evaluator().define(source)


def test_every_stored_call_is_valid_and_executes():
    transcripts = load_transcripts()
    assert set(transcripts) == {ORCHESTRATOR, ANALYST, *SUB_AGENTS}
    world, handed = World(), []
    for transcript in transcripts.values():
        assert 6 <= len(transcript.turns) <= 8
        for turn in transcript.turns:
            assert parse_call(turn.text(), SCHEMAS) == turn.call
            if turn.call.name in HAND_OFFS:
                handed.append((turn.call.name, turn.call.arguments["agent"]))
            else:
                assert error_of(world.execute(turn.call)) is None, turn
        assert transcript.turns[-1].call.name == "report"
    # The orchestrator hands work to everyone once and waits for everyone.
    assert sorted(handed) == sorted((name, agent) for name in HAND_OFFS for agent in SUB_AGENTS)
    assert sum(path.stat().st_size for path in FOLDER.iterdir()) < 200_000


def test_the_shared_prompt_is_as_long_as_agents_prompts_are():
    assert 700 <= len(ChatText().body(shared_prompt())) <= 1300


def test_the_random_checkpoint_depends_on_its_seed_only(tmp_path):
    from safetensors.torch import load_file

    files = []
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        (tmp_path / name).mkdir()
        checkpoint.write_random_checkpoint(tmp_path / name, seed)
        files.append((tmp_path / name / "model.safetensors").read_bytes())
    assert files[0] == files[1] != files[2]
    config = json.loads((tmp_path / "a" / "config.json").read_text())
    embedding = load_file(tmp_path / "a" / "model.safetensors")["model.embed_tokens.weight"]
    assert tuple(embedding.shape) == (config["vocab_size"], config["hidden_size"])


class PlayedSession:
    """A conversation whose answers are played to it; forks and rollbacks are those of a list."""

    def __init__(self, engine, tokens=()):
        self.engine, self.tokens = engine, list(tokens)

    def fork(self):
        return PlayedSession(self.engine, self.tokens)

    def rollback(self, length):
        del self.tokens[length:]


class PlayedEngine:
    """What the driver needs of an engine; `answer(prompt)` gives the answer's tokens."""

    def __init__(self, answer):
        self.answer = answer

    def open_session(self):
        return PlayedSession(self)

    def stats(self):
        return {"rows_fed": 0}

    def generate(self, requests):
        turns = []
        for request in requests:
            prompt = request.session.tokens + list(request.tokens)
            tokens = self.answer(prompt)
            request.session.tokens = prompt + tokens
            turns.append(SimpleNamespace(tokens=tokens, finish_reason="length", stats=None))
        return turns


def play(answer, max_turns=99):
    crew = Crew(PlayedEngine(answer), ChatText(), load_transcripts(), None, max_turns)
    turns = report.all_turns(crew.run(lambda record: None))
    conversations = {name: crew.text.decode(agent.session.tokens + agent.delta) for name, agent in crew.agents.items()}
    return turns, conversations


def script_of(conversation):
    """The transcript's answer to a conversation: which agent it is, and which turn, stand in the text."""
    agent = conversation.split("<|system|>\n")[-1]
    transcript = next(t for t in load_transcripts().values() if agent.startswith(t.role))
    return transcript.turns[agent.count("<|assistant|>") - 1]


def test_without_calls_by_the_model_the_transcripts_stand():
    turns, conversations = play(lambda prompt: [100, 101, 102])
    scripts = load_transcripts()
    assert all(turn.call_from == "transcript" for turn in turns)
    for name, transcript in scripts.items():
        assert [turn.call for turn in turns if turn.agent == name] == [turn.call for turn in transcript.turns]
        own = conversations[name].split(transcript.role)[1]
        assert own.count("<|assistant|>") == own.count("<|tool|>") == len(transcript.turns)
        assert [text.split(END)[0].strip() for text in own.split("<|assistant|>")[1:]] == [
            turn.text() for turn in transcript.turns
        ]
    # A sub-agent's past is the orchestrator's, up to the answer that handed the work on; its report comes back.
    fork = conversations["support"].split(scripts["support"].role)[0]
    assert conversations[ORCHESTRATOR].startswith(fork.removesuffix("<|system|>\n"))
    for name in SUB_AGENTS:
        assert scripts[name].turns[-1].call.arguments["text"] in conversations[ORCHESTRATOR]


def test_calls_of_the_model_are_executed_and_its_text_stays():
    text = ChatText()
    end = list(text.stop_token_ids)
    _, expected = play(lambda prompt: [100, 101, 102])
    turns, conversations = play(lambda prompt: text.body(script_of(text.decode(prompt)).text()) + end)
    assert all(turn.call_from == "model" for turn in turns)
    assert conversations == expected


def test_a_model_may_call_otherwise_but_not_hand_work_on_otherwise():
    text = ChatText()
    orders = Call("get_order", {"order": "O-1"}).text()
    wrong = Call("delegate", {"agent": "coding", "task": "other"}).text()
    turns, conversations = play(lambda prompt: text.body(orders), max_turns=2)
    by_model = [(turn.agent, turn.turn_idx) for turn in turns if turn.call_from == "model"]
    assert (ORCHESTRATOR, 0) in by_model and (ORCHESTRATOR, 1) not in by_model
    assert '{"error": "there is no order O-1"}' in conversations[ORCHESTRATOR]
    assert f"{orders}{END}\n<|tool|>" in conversations[ORCHESTRATOR]
    turns, conversations = play(lambda prompt: text.body(wrong), max_turns=2)
    assert not any(turn.call_from == "model" for turn in turns)
    assert set(conversations) == {ORCHESTRATOR, ANALYST, "support"}


def turn_of(tokens, fed=10, drafted=0, accepted=0):
    """The second turn of an agent whose prompt is 100 tokens."""
    stats = SimpleNamespace(
        prompt_tokens=100, reused_tokens=90, delta_tokens=10, recomputed_tokens=0, fed_tokens=fed, drafted=drafted,
        accepted=accepted, ttft_s=0.01, prefill_s=0.01, decode_s=0.02,
    )  # fmt: skip
    return TurnRecord(0, "agent", 1, list(range(100)), list(tokens), "length", stats)


PoolStats = SimpleNamespace(block_size=16, stats=dict)


class Scorer:
    """Stands for the baseline's engine: the same logits whatever the tokens are."""

    def score(self, tokens):
        import torch

        self.tokens = tokens
        return torch.tensor([0.0, 1.0, 1.0005, 0.5])


@pytest.mark.parametrize(
    ("ours", "theirs", "gap", "explained"),
    [
        ([7, 1, 9], [7, 2, 8], 0.0005, True),
        ([7, 3, 9], [7, 2, 8], 0.5005, False),
        ([7, 1], [7, 1, 3], float("inf"), False),
    ],
)
def test_a_difference_is_explained_by_a_small_gap_only(ours, theirs, gap, explained):
    scorer = Scorer()
    rounds = [RoundRecord(20, 0.1, [turn_of([5, 5]), turn_of(ours)])]
    baseline = [RoundRecord(20, 0.1, [turn_of([5, 5]), turn_of(theirs)])]
    (difference,) = report.compare(rounds, baseline, scorer, 1e-3)
    assert difference.explained is explained
    assert difference.gap == pytest.approx(gap, abs=1e-6)
    if gap < 1:
        assert scorer.tokens == [*range(100), 7]
    failures = report.summarise(rounds, baseline, [difference], PoolStats, 0, 1e-3)["failures"]
    assert len(failures) == (0 if explained else 1), failures


@pytest.mark.parametrize(("fed", "rows", "failures"), [(18, 18, 0), (19, 19, 1), (18, 17, 1), (19, 18, 2)])
def test_too_many_rows_or_uncounted_ones_fail_the_run(fed, rows, failures):
    # Three tokens out with one of two drafts accepted: one decoding step and two drafts, the rest is prompt.
    turn = turn_of([1, 2, 3], fed=fed, drafted=2, accepted=1)
    assert report.prompt_rows(turn) == fed - 3
    rounds = [RoundRecord(rows, 0.1, [turn])]
    summary = report.summarise(rounds, rounds, [], PoolStats, 0, 1e-3)
    assert len(summary["failures"]) == failures, summary["failures"]


@pytest.mark.parametrize(
    "argv",
    [
        [], ["run"], ["demo", "x"], ["demo", "--turns", "0"], ["demo", "--dtype", "int8"], ["demo", "--device", "tpu"],
        ["demo", "--model", "no/such/folder"], ["demo", "--json", "no/such/folder/figures.json"],
        ["demo", "--device", "cpu:7x"], ["demo", "--device", "cuda:99"], ["demo", "--seed", "9" * 23],
        ["demo", "--seed", str(2**63)], ["demo", "--max-tokens", str(2**31)], ["demo", "--max-tokens", "9" * 5000],
        ["demo", "--scripted", "--model", str(checkpoint.EMBEDDED)],
        ["evaluate", "--model", "no/such/folder"], ["evaluate", "--json", "no/such/folder/figures.json"],
        ["evaluate", "--episodes", "0"], ["evaluate", "--episodes", "-1"], ["evaluate", "--errors", "-5"],
        ["evaluate", "--device", "tpu"], ["train"], ["train", "--out", __file__], ["train", "--out", f"{__file__}/x"],
        *(
            ["train", "--out", "never_made", *words.split()]
            for words in (
                "--minutes 0", "--minutes -1", "--minutes nan", "--minutes inf", "--tokens 0", "--tokens nan",
                "--steps 0", "--threads 0", "--threads -1", "--check-every 0", "--check-episodes 0", "--batch 0",
                "--batch -5", "--device cuda:99", "--device foo", "--seed 99999999999999999999999",
            )
        ),
    ],
    ids=lambda argv: " ".join(argv)[:60],
)  # fmt: skip
def test_wrong_arguments_are_refused(argv, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    for command in (demo_main, evaluate, train):  # each is refused before it runs
        monkeypatch.setattr(command, "main", lambda args: 0)
    with pytest.raises(SystemExit) as exit_info:
        main(argv)
    assert exit_info.value.code == 2
    assert "usage" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("command", ["demo", "evaluate"])
def test_a_bad_checkpoint_ends_in_a_line_and_no_traceback(command, tmp_path):
    for name in ("config.json", "tokenizer.json"):
        (tmp_path / name).write_text("[]" if name == "config.json" else (checkpoint.EMBEDDED / name).read_text())
    with pytest.raises(SystemExit) as exit_info:
        main([command, "--model", str(tmp_path)])
    assert str(exit_info.value.code).startswith(f"stateful-kv: {tmp_path / 'config.json'}: ")


def test_two_turns_from_end_to_end(tmp_path, capsys):
    path = tmp_path / "figures.json"
    assert main(["demo", "--scripted", "--turns", "2", "--max-tokens", "12", "--json", str(path)]) == 0
    captured = capsys.readouterr()
    figures = json.loads(path.read_text())
    summary, turns = figures["summary"], figures["turns"]
    assert {turn["agent"] for turn in turns} == {ORCHESTRATOR, ANALYST, "support"}
    assert sorted(turn["turn"] for turn in turns) == [1, 1, 1, 2, 2, 2]
    assert summary["failures"] == [] and summary["forks"] == 1
    assert 0 < summary["fed_share_from_turn_2"] <= 0.15
    for turn in turns:
        # The first turn starts from nothing; a fork and the analyst from what the orchestrator left behind.
        from_nothing = turn["agent"] == ORCHESTRATOR and turn["turn"] == 1
        assert (turn["reused_tokens"] > 1000) is not from_nothing
        assert turn["baseline"]["rows_fed"] >= turn["prompt_tokens"]
        assert turn["call"]["name"] in SCHEMAS
    assert "fed from turn 2" in captured.out and "round 3" in captured.err
