"""Workloads for a model that calls tools: its own conversations and tokens, within the context it was trained on.

Users' messages and tools' results are scripted, from a held-out world; an answer is as long as the reference answer
with its stop token, so a model that knows its trade writes exactly that. What random weights cannot show is judged
here: how often a draft is right.
"""

import pathlib
import random

from stateful_kv.demo.agents import chat
from stateful_kv.demo.agents.episodes import ROLES, SYSTEM, Conversation
from stateful_kv.demo.agents.tasks import TASKS, Message, Talk, run_task
from stateful_kv.demo.agents.world import ALL_TOOLS, World
from stateful_kv.demo.text import ChatText

from .generate import Turn, Workload

MAX_CONTEXT = 4096
TURNS = {"embedded_six_turns": 6, "embedded_thirty_five_turns": 35}


def _conversation(rng: random.Random, agent: str, answers: int) -> Conversation:
    """Tasks of one agent, one after the other, until it has answered often enough; its prompt lists the tools used."""
    talk = Talk(rng, World(rng.getrandbits(48)))
    while sum(message.role == "assistant" for message in talk.messages) < answers:
        run_task(talk, rng.choice(TASKS[agent]))
    called = {message.call.name for message in talk.messages if message.call}
    tools = [tool for tool in ALL_TOOLS if tool["name"] in called]
    return Conversation(tools, [Message("system", SYSTEM), Message("system", ROLES[agent]), *talk.messages])


def _turns(conversation: Conversation, text: ChatText, answers: int) -> list[Turn]:
    turns: list[Turn] = []
    delta: list[int] = []
    for message, body in chat.texts(conversation):
        if message.role == "assistant" and len(turns) < answers:
            turns.append(Turn(0, delta + text.begin_message("assistant"), len(text.body(body)) + 1))
            delta = text.end_message()[1:]  # the stop token itself is the answer's last
        else:
            delta = delta + text.message(message.role, body)
    return turns


def embedded(name: str, checkpoint: pathlib.Path, seed: int = 1) -> Workload:
    """The first of a hundred seeded conversations that fits the context."""
    text, answers = ChatText.from_checkpoint(checkpoint), TURNS[name]
    for attempt in range(100):
        rng = random.Random(f"proof {name} {seed} {attempt}")
        steps = [[turn] for turn in _turns(_conversation(rng, "support", answers), text, answers)]
        workload = Workload(name, f"a support agent of the embedded model, {answers} turns", seed, steps)
        if workload.max_context <= MAX_CONTEXT:
            return workload
    raise ValueError(f"{name}: no conversation of {answers} turns fits {MAX_CONTEXT} tokens of this tokenizer")
