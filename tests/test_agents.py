"""The embedded model's world, conversations, tokens and training; its checkpoints are tested in
test_embedded.py."""

import json
import random
from types import SimpleNamespace

import pytest

from stateful_kv.__main__ import main
from stateful_kv.demo.agents import chat, crew, network, train
from stateful_kv.demo.agents.episodes import HELD_OUT, ROLES, Mix, episode
from stateful_kv.demo.agents.tasks import TASKS, Talk, run_task
from stateful_kv.demo.agents.world import ALL_TOOLS, HAND_OFFS, SCHEMAS, World
from stateful_kv.demo.calls import Call, parse_call
from stateful_kv.demo.text import ChatText

ALL_TASKS = [(agent, task) for agent, tasks in TASKS.items() for task in tasks]


@pytest.fixture(scope="module")
def tokenizer_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    chat.train_tokenizer((episode(seed, Mix(share_of_all=0.05)) for seed in range(300)), path)
    return path


@pytest.fixture(scope="module")
def text(tokenizer_file):
    return ChatText(tokenizer_file)


def test_an_episode_is_a_function_of_its_seed():
    for seed in (0, 7, HELD_OUT):
        assert chat.render(episode(seed)) == chat.render(episode(seed))
    assert len({chat.render(episode(seed)) for seed in range(40)}) == 40


def test_every_call_is_valid_and_every_value_stands_in_the_conversation():
    tools = set()
    for seed in range(150):
        said = ""
        for message in episode(seed).messages:
            if message.call:
                tools.add(message.call.name)
                assert parse_call(message.text, SCHEMAS) == message.call
                for value in message.call.arguments.values():
                    assert str(value) in said, (seed, message.text)
            said += message.text + "\n"
    assert tools == set(SCHEMAS)


def test_the_prompt_holds_every_tool_that_is_called():
    for seed in range(60):
        conversation = episode(seed, Mix(share_of_all=0.0, most_others=1))
        names = {tool["name"] for tool in conversation.tools}
        assert {message.call.name for message in conversation.messages if message.call} <= names
        assert len(names) < len(ALL_TOOLS)


@pytest.mark.parametrize("task", [task for _, task in ALL_TASKS], ids=[task.__name__ for _, task in ALL_TASKS])
def test_every_task_can_be_done_and_ends_with_an_answer(task):
    failed = 0
    for seed in range(20):
        talk = Talk(random.Random(seed), World(seed))
        run_task(talk, task)
        assert [m.role for m in talk.messages[:2]] == ["user", "assistant"]
        assert talk.messages[-1].role == "assistant" and talk.messages[-1].call is None
        failed += talk.messages[-1].text.startswith("That did not work")
    assert failed <= 5


def test_a_text_that_stands_in_two_files_is_found_in_both():
    talk = Talk(random.Random(0), World(3))
    talk.world.files |= {"a/b.py": "def twice(x):", "a/c.py": "twice(1)"}
    lines = talk.call("find_text", text="twice").splitlines()
    assert [json.loads(line)["path"] for line in lines] == ["a/b.py", "a/c.py"]
    assert talk.call("find_text", text="def twice(")["path"] == "a/b.py"


def test_calls_change_their_own_world_only():
    first, second = World(3), World(3)
    order, row = next(iter(first.orders.items()))
    refund = Call("refund_order", {"order": order, "amount": row["amount"]})
    result = json.loads(first.execute(refund))
    assert (result["order"], first.orders[order]["amount"]) == (order, 0)
    assert "only 0 of order" in json.loads(first.execute(refund))["error"]
    assert second.orders[order]["amount"] == result["amount"] > 0
    assert "there is no service" in first.execute(Call("restart_service", {"service": "none"}))
    for name in HAND_OFFS:
        with pytest.raises(ValueError, match="by whoever runs"):
            first.execute(Call(name, {"agent": "coding"}))
    with pytest.raises(ValueError, match="no tool"):
        first.execute(Call("__init__", {"seed": 1}))


def failures(world, path):
    return json.loads(world.run_tests(path))["failed"]


def test_tests_pass_when_the_constants_are_what_they_expect():
    world = World(5)
    failing = [path for path in world.files if path.startswith("tests/") and failures(world, path)]
    assert len(failing) == 3
    talk = Talk(random.Random(0), world)
    while any(failures(world, path) for path in failing):
        run_task(talk, TASKS["coding"][-1])
    assert all(json.loads(world.run_tests(path)) == {"passed": 2, "failed": 0} for path in failing)
    edit = {"path": failing[0], "old": "nowhere", "new": ""}
    assert "occurs 0 times" in json.loads(world.execute(Call("edit_file", edit)))["error"]


def test_identifiers_and_numbers_are_tokens_of_one_character(text):
    for sample in ("order 4K7P2.", '{"order": "4K7P2", "amount": 8637}'):
        pieces = [text.tokenizer.decode([token]) for token in text.body(sample)]
        assert "".join(pieces) == sample
        assert all(len(piece.strip()) == 1 for piece in pieces if any(c.isdigit() for c in piece))


def test_a_conversation_is_encoded_with_its_values_marked(text):
    conversation = next(
        c for c in map(episode, range(99)) if any(m.call and len(m.call.arguments) > 1 for m in c.messages)
    )
    ids, weights = chat.encode(conversation, text)
    assert text.tokenizer.decode(ids, skip_special_tokens=False) == chat.render(conversation)
    marked = text.tokenizer.decode([token for token, weight in zip(ids, weights) if weight > 1])
    for message in conversation.messages:
        for value in message.call.arguments.values() if message.call else ():
            assert str(value) in marked


def test_the_template_gives_what_render_gives(tmp_path, tokenizer_file, text):
    transformers = pytest.importorskip("transformers")
    (tmp_path / "tokenizer.json").write_bytes(tokenizer_file.read_bytes())
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(chat.tokenizer_config(4096)))
    tokenizer = transformers.AutoTokenizer.from_pretrained(str(tmp_path))
    for seed in range(12):
        conversation = episode(seed)
        messages, tools = chat.template_messages(conversation), conversation.tools
        assert tokenizer.apply_chat_template(messages, tools=tools, tokenize=False) == chat.render(conversation)
        functions = [{"type": "function", "function": tool} for tool in tools]
        ids = tokenizer.apply_chat_template(messages, tools=functions, return_dict=False)
        assert ids == chat.encode(conversation, text)[0]
    ends = tokenizer.apply_chat_template([{"role": "user", "content": "x"}], tokenize=False, add_generation_prompt=True)
    assert ends == "<|im_start|>user\nx<|im_end|>\n<|im_start|>assistant\n"


def test_the_beginning_copies(text):
    """Before any step the model continues what it has seen before: random tokens, said twice."""
    torch = pytest.importorskip("torch")
    vocab = text.tokenizer.get_vocab_size()
    model = network.Network(network.Shape(vocab))
    model.begin(text.tokenizer, 0)
    once = torch.randint(10, vocab, (1, 80), generator=torch.Generator().manual_seed(0))
    ids = torch.cat([once, once], 1)
    with torch.no_grad():
        best = model(ids, torch.arange(160)[None]).argmax(-1)
    assert (best[80:159] == ids[0, 81:]).float().mean() > 0.6


def test_training_goes_on_where_it_stopped(tmp_path):
    from safetensors.torch import load_file

    def run(name, steps):
        argv = ["train", "--out", str(tmp_path / name), "--tokens", "4096", "--batch", "1024", "--threads", "1"]
        assert main([*argv, "--steps", str(steps), "--check-episodes", "2"]) == 0
        return json.loads((tmp_path / name / "training.json").read_text())

    assert run("a", 1)["step"] == 1
    done = run("a", 1)
    assert (done["step"], done["tokens"], len(done["log"])) == (2, 2048, 2)
    assert run("b", 2)["log"][-1]["loss"] == pytest.approx(done["log"][-1]["loss"], rel=1e-3)
    one, two = (load_file(tmp_path / name / "model.safetensors") for name in "ab")
    assert all((one[key] == two[key]).float().mean() > 0.99 for key in one)
    config = json.loads((tmp_path / "a" / "config.json").read_text())
    assert tuple(one["model.embed_tokens.weight"].shape) == (config["vocab_size"], config["hidden_size"])


def test_stages_get_longer_and_seeds_do_not_meet(text):
    lengths = [train.stage_at(progress, 0).length for progress in (0.0, 0.4)]
    assert lengths == [512, 1024]
    assert 4096 in {train.stage_at(0.9, step).length for step in range(200)}
    rows = [train.Data(text, rank, 2).batch(step, train.STAGES[0], 512, "cpu")[0] for rank in (0, 1) for step in (0, 1)]
    assert len({tuple(row[0].tolist()) for row in rows}) == 4


def test_a_plan_needs_every_agent():
    plan = crew.make_plan(0)
    assert plan.requests == crew.make_plan(0).requests != crew.make_plan(1).requests
    for agent, requests in plan.requests.items():
        planned = plan.calls[agent]
        assert len(planned) == len(requests) + (agent in ("support", "coding", "operations"))
        assert all(planned)


class PlayedSession:
    """A conversation whose answers are played to it."""

    def __init__(self, tokens=()):
        self.tokens = list(tokens)

    def __len__(self):
        return len(self.tokens)

    def fork(self):
        return PlayedSession(self.tokens)


class PlayedEngine:
    """What the crew needs of an engine; `answer(prompt)` gives the answer's text."""

    max_length = 100_000

    def __init__(self, text, answer):
        self.text, self.answer = text, answer

    def open_session(self):
        return PlayedSession()

    def stats(self):
        return {"rows_fed": 0}

    def generate(self, requests):
        turns = []
        for request in requests:
            prompt = request.session.tokens + list(request.tokens)
            said = self.answer(self.text.tokenizer.decode(prompt, skip_special_tokens=False))
            tokens = self.text.body(said) + list(self.text.stop_token_ids)
            request.session.tokens = prompt + tokens
            turns.append(SimpleNamespace(tokens=tokens, finish_reason="stop", stats=None))
        return turns


def play(text, answer):
    plan = crew.make_plan(0)
    engine = PlayedEngine(text, lambda prompt: answer(plan, prompt))
    live = crew.LiveCrew(engine, text, plan, SimpleNamespace(max_tokens=160), 99, 0)
    rounds = live.run(lambda record: None)
    return plan, live, [turn for record in rounds for turn in record.turns]


def planned_answer(plan, prompt):
    """The plan's next call of whoever the prompt belongs to, or an answer when there is none left."""
    agent = next(name for name, role in ROLES.items() if role in prompt.split("<|im_start|>system\n")[-1])
    own = prompt.split("<|im_start|>system\n")[-1].split("<|im_start|>user\n")
    calls, made = plan.calls[agent][len(own) - 2], own[-1].count("<tool_call>")
    return calls[made].text() if made < len(calls) else f"{agent} is done."


def test_a_model_that_makes_the_planned_calls_gets_everything_done(text):
    plan, live, turns = play(text, planned_answer)
    count = sum(map(len, plan.calls.values()))
    assert live.right_requests() == (count, count) and live.forks == 3
    assert not any('"error"' in turn.result for turn in turns)
    orchestrator = text.decode(live.agents["orchestrator"].session.tokens)
    assert '{"agent": "support", "report": "support is done."}' in orchestrator
    assert live.agents["coding"].asked[0] in orchestrator and "-> orchestrator is done." in live.answers_text()


def test_a_model_that_calls_nonsense_gets_errors_and_comes_to_an_end(text):
    nonsense = '<tool_call>{"name": "drop_order", "arguments": {}}</tool_call>'
    _, live, turns = play(text, lambda plan, prompt: nonsense)
    assert all("there is no tool" in json.loads(turn.result)["error"] for turn in turns)
    assert set(live.agents) == {"orchestrator", "analyst"} and live.right_requests()[0] == 0
    collect = Call("collect", {"agent": "coding"}).text()
    _, live, turns = play(text, lambda plan, prompt: collect)
    errors = {json.loads(turn.result)["error"] for turn in turns}
    assert errors == {"coding has no task", "only the orchestrator hands work on"}
