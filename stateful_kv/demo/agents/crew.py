"""The demo's agents with the embedded model: it decides what is called, the tools do it, until there is an answer.

In every round all agents that can go on are one ragged batch of the engine, as with the scripted agents of driver.py.
An answer with a call is executed and its result is the next delta; an answer without one ends the user's request. A
call that is not valid gets an error as its result. `delegate` forks the orchestrator's session into a sub-agent's,
`collect` waits for that agent's first answer; users go on talking to the sub-agents afterwards.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from ..calls import OPEN, Call, CallError, parse_call
from ..driver import RoundRecord, TurnRecord, run_round
from ..text import ChatText
from . import chat, tasks
from .episodes import ROLES, SYSTEM, collected, requests_text, started
from .tasks import TASKS, Talk, Task
from .world import ALL_TOOLS, HAND_OFFS, SCHEMAS, SUB_AGENTS, World

ORCHESTRATOR, ANALYST = "orchestrator", "analyst"
MAX_CALLS, MAX_INVALID = 10, 3  # of one request; an agent that needs more has lost its way
_ANALYST_TASKS: tuple[Task, ...] = (
    tasks.order_who, tasks.metric_value, tasks.find_function, tasks.order_status, tasks.alert_look, tasks.find_and_open,
)  # fmt: skip
_WORLD_SIZE = 12
_RESERVE = 512  # tokens of a context kept free for a result or request that is still to come


@dataclass
class Plan:
    """What users will ask in one run, and the calls that would be right, per agent and request."""

    requests: dict[str, list[str]]
    calls: dict[str, list[list[Call]]]


def make_plan(seed: int, follow_ups: int = 2) -> Plan:
    """Every sub-agent gets one task through the orchestrator and `follow_ups` more, the analyst questions."""
    rng = random.Random(f"plan {seed}")
    world = World(seed, _WORLD_SIZE)
    plan = Plan({}, {})

    def add(agent: str, task: Task) -> None:
        talk = Talk(rng, world)
        tasks.run_task(talk, task)
        plan.requests.setdefault(agent, []).append(talk.messages[0].text)
        plan.calls.setdefault(agent, []).append([m.call for m in talk.messages if m.call])

    first = {"support": tasks.ticket_refund, "coding": tasks.fix_tests, "operations": tasks.alert_handle}
    for agent in SUB_AGENTS:
        add(agent, first[agent])
        for task in rng.sample([task for task in TASKS[agent] if task is not first[agent]], follow_ups):
            add(agent, task)
    for task in _ANALYST_TASKS:
        add(ANALYST, task)
    handed = {agent: plan.requests[agent].pop(0) for agent in SUB_AGENTS}
    plan.requests[ORCHESTRATOR] = [requests_text(handed)]
    delegated = [Call("delegate", {"agent": agent, "task": task}) for agent, task in handed.items()]
    plan.calls[ORCHESTRATOR] = [[*delegated, *(Call("collect", {"agent": agent}) for agent in handed)]]
    return plan


@dataclass
class Agent:
    name: str
    session: Any
    delta: list[int]
    requests: list[str]  # what users will still ask
    asked: list[str]
    answers: list[str] = field(default_factory=list)
    calls: list[list[Call]] = field(default_factory=lambda: [[]])
    turn_idx: int = 0
    invalid: int = 0
    waits_for: str | None = None
    done: bool = False


class LiveCrew:
    """All agents of one run on one engine."""

    def __init__(self, engine: Any, text: ChatText, plan: Plan, params: Any, max_turns: int, seed: int):
        self.engine, self.text, self.plan, self.params, self.max_turns = engine, text, plan, params, max_turns
        self.world = World(seed, _WORLD_SIZE)
        self.agents: dict[str, Agent] = {}
        self.forks = 0

    def run(self, on_round: Callable[[RoundRecord], None]) -> list[RoundRecord]:
        rounds: list[RoundRecord] = []
        self._open(ORCHESTRATOR)
        while any(not agent.done for agent in self.agents.values()):
            running = [agent for agent in self.agents.values() if self._ready(agent)]
            if not running:
                break  # everyone waits for an agent that waits itself
            batch = [(agent.name, agent.turn_idx, agent.session, agent.delta) for agent in running]
            record = run_round(self.engine, batch, self.params, len(rounds))
            for agent, turn in zip(running, record.turns):
                self._finish_turn(agent, turn)
            rounds.append(record)
            on_round(record)
            if len(rounds) == 1:
                self._open(ANALYST)
        return rounds

    def close(self) -> None:
        for agent in self.agents.values():
            agent.session.close()

    def right_requests(self) -> tuple[int, int]:
        """How many requests were done with exactly the planned calls, and how many there were."""
        pairs = [
            (made, planned)
            for name, agent in self.agents.items()
            for made, planned in zip(agent.calls, self.plan.calls[name])
        ]
        return sum(made == planned for made, planned in pairs), len(pairs)

    def _open(self, name: str) -> None:
        """A session of its own: shared system prompt with all tools, the agent's role, the user's first request."""
        text, requests = self.text, list(self.plan.requests[name])
        first = requests.pop(0)
        delta = [*text.bos, *text.message("system", SYSTEM + chat.tools_text(ALL_TOOLS))]
        delta += text.message("system", ROLES[name]) + text.message("user", first) + text.begin_message("assistant")
        self.agents[name] = Agent(name, self.engine.open_session(), delta, requests, [first])

    def _fork(self, parent: Agent, answer: list[int], name: str, task: str) -> None:
        """A sub-agent: the parent's session so far, its delegating answer, then a role and the task."""
        text = self.text
        delta = answer + text.message("system", ROLES[name]) + text.message("user", task)
        delta += text.begin_message("assistant")
        self.agents[name] = Agent(name, parent.session.fork(), delta, list(self.plan.requests[name]), [task])
        self.forks += 1

    def _ready(self, agent: Agent) -> bool:
        """Whether the agent has a turn to do; gives a waiting one the report it waits for as soon as there is one."""
        if agent.waits_for is not None and not agent.done:
            other = self.agents[agent.waits_for]
            if not other.answers and not other.done:
                return False
            report = other.answers[0] if other.answers else ""
            agent.delta += self.text.message("tool", collected(other.name, report))
            agent.delta += self.text.begin_message("assistant")
            agent.waits_for = None
        return not agent.done

    def _finish_turn(self, agent: Agent, turn: TurnRecord) -> None:
        """Executes the turn's call, or takes its answer, and prepares the agent's next delta."""
        said, text = self.text.decode(turn.tokens), self.text
        agent.delta = text.finish_answer(turn.tokens)
        agent.turn_idx += 1
        if OPEN in said:
            self._finish_call(agent, turn, said)
        else:
            turn.call_from = "none"
            self._finish_request(agent, said)
        room = self.engine.max_length - len(agent.session) - len(agent.delta) - _RESERVE
        agent.done = agent.done or agent.turn_idx >= self.max_turns or room < self.params.max_tokens
        if not agent.done and agent.waits_for is None:
            agent.delta += text.begin_message("assistant")

    def _finish_call(self, agent: Agent, turn: TurnRecord, said: str) -> None:
        turn.call_from = "model"
        answer = list(agent.delta)
        try:
            turn.call = parse_call(said, SCHEMAS)
            agent.calls[-1].append(turn.call)
            turn.result = self._execute(agent, turn.call, answer)
        except CallError as error:
            agent.invalid += 1
            turn.result = json.dumps({"error": str(error)[:200]})
        if agent.waits_for is None:
            agent.delta += self.text.message("tool", turn.result)
        if len(agent.calls[-1]) >= MAX_CALLS or agent.invalid >= MAX_INVALID:
            self._finish_request(agent, "")

    def _execute(self, agent: Agent, call: Call, answer: list[int]) -> str:
        """The result's text; empty for a collect call, whose result comes later."""
        if call.name not in HAND_OFFS:
            return self.world.execute(call)
        name = call.arguments["agent"]
        if agent.name != ORCHESTRATOR:
            raise CallError("only the orchestrator hands work on")
        if call.name == "collect":
            if name not in self.agents:
                raise CallError(f"{name} has no task")
            agent.waits_for = name
            return ""
        if name in self.agents:
            raise CallError(f"{name} has a task already")
        self._fork(agent, answer, name, call.arguments["task"])
        return started(name)

    def _finish_request(self, agent: Agent, said: str) -> None:
        agent.answers.append(said)
        agent.invalid = 0
        if not agent.requests:
            agent.done = True
            return
        request = agent.requests.pop(0)
        agent.asked.append(request)
        agent.calls.append([])
        agent.delta += self.text.message("user", request)

    def answers_text(self) -> str:
        """What was asked and answered, one agent after the other."""
        lines = []
        for agent in self.agents.values():
            for asked, answer in zip(agent.asked, agent.answers):
                lines.append(f"{agent.name}: {' '.join(asked.split())}\n  -> {answer or 'no answer'}")
        return "\n".join(lines)
