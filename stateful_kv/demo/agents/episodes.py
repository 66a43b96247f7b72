"""Conversations: system prompt with tools, the agent's role, then tasks; hand-offs and forks of sub-agents among them.

`episode(seed)` is a pure function of its seed. Seeds below HELD_OUT are for training, those from there on are never
trained on.
"""

from __future__ import annotations

import json
import random
from dataclasses import dataclass
from typing import Any

from ..calls import Call
from .tasks import TASKS, Message, Talk, run_task
from .world import ALL_TOOLS, SUB_AGENTS, World

HELD_OUT = 1 << 40
SYSTEM = "You are one of several agents that work with tools."
ROLES = {
    "support": "You are the support agent. You look after customers, orders and tickets.",
    "operations": "You are the operations agent. You look after services, their settings and alerts.",
    "coding": "You are the coding agent. You look after source files and tests.",
    "analyst": "You are the analyst. You answer questions on orders, services and files.",
    "orchestrator": "You are the orchestrator. You hand every task to its agent, then collect the reports.",
}
DONE = "All tasks are done."


@dataclass(frozen=True)
class Mix:
    """What episodes are like: tasks of a conversation, how often the prompt holds all tools or none, else how many more
    than the called ones, how often the orchestrator has its part in it."""

    max_tasks: int = 4
    share_of_all: float = 0.2
    share_of_none: float = 0.0
    most_others: int = 4
    share_handed: float = 0.3


@dataclass
class Conversation:
    """The tools of the first system message and all messages, that one first."""

    tools: list[dict[str, Any]]
    messages: list[Message]


def started(agent: str) -> str:
    """The result of a delegate call."""
    return json.dumps({"agent": agent, "state": "started"})


def collected(agent: str, report: str) -> str:
    """The result of a collect call."""
    return json.dumps({"agent": agent, "report": report})


def requests_text(tasks: dict[str, str]) -> str:
    """The user's message to the orchestrator."""
    return "\n".join(["Please see to this:", *(f"- {agent}: {task}" for agent, task in tasks.items())])


def _pick_tools(rng: random.Random, messages: list[Message], mix: Mix) -> list[dict[str, Any]]:
    """All tools in their order, none, or the called ones and some others, shuffled."""
    draw = rng.random()
    if draw < mix.share_of_all:
        return ALL_TOOLS
    if draw > 1 - mix.share_of_none:
        return []
    called = {message.call.name for message in messages if message.call}
    tools = [tool for tool in ALL_TOOLS if tool["name"] in called]
    others = [tool for tool in ALL_TOOLS if tool["name"] not in called]
    tools += rng.sample(others, min(len(others), rng.randrange(mix.most_others + 1)))
    rng.shuffle(tools)
    return tools


def _worked(rng: random.Random, world: World, agent: str, num_tasks: int) -> list[Message]:
    talk = Talk(rng, world)
    for _ in range(num_tasks):
        kind = rng.choice(SUB_AGENTS) if agent == "analyst" else agent
        run_task(talk, rng.choice(TASKS[kind]))
    return talk.messages


def _single(rng: random.Random, mix: Mix) -> Conversation:
    """One agent of its own with a few tasks."""
    agent = rng.choice((*SUB_AGENTS, *SUB_AGENTS, "analyst"))
    work = _worked(rng, World(rng.getrandbits(48)), agent, rng.randrange(1, mix.max_tasks + 1))
    messages = [Message("system", SYSTEM), Message("system", ROLES[agent]), *work]
    return Conversation(_pick_tools(rng, messages, mix), messages)


def _handed(rng: random.Random, mix: Mix) -> Conversation:
    """The orchestrator's conversation to its end, or a sub-agent's: the orchestrator's up to where it was forked."""
    world = World(rng.getrandbits(48))
    agents = rng.sample(SUB_AGENTS, rng.randrange(2, 4))
    work = {agent: _worked(rng, world, agent, 1) for agent in agents}
    tasks = {agent: messages[0].text for agent, messages in work.items()}
    messages = [Message("system", SYSTEM), Message("system", ROLES["orchestrator"])]
    messages.append(Message("user", requests_text(tasks)))
    forked = rng.choice((None, *agents))
    for agent, task in tasks.items():
        messages.append(Message.of_call(Call("delegate", {"agent": agent, "task": task})))
        if agent == forked:
            messages += [Message("system", ROLES[agent]), *work[agent]]
            messages += _worked(rng, world, agent, rng.randrange(mix.max_tasks))
            return Conversation(_pick_tools(rng, messages, mix), messages)
        messages.append(Message("tool", started(agent)))
    for agent in agents:
        messages.append(Message.of_call(Call("collect", {"agent": agent})))
        messages.append(Message("tool", collected(agent, work[agent][-1].text)))
    messages.append(Message("assistant", DONE))
    return Conversation(_pick_tools(rng, messages, mix), messages)


def episode(seed: int, mix: Mix = Mix()) -> Conversation:
    """The conversation of one seed."""
    rng = random.Random(f"episode {seed}")
    return _handed(rng, mix) if rng.random() < mix.share_handed else _single(rng, mix)
