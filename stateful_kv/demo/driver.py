"""Runs the agents: in every round all agents that can go on are one ragged batch of the engine.

A turn is: the agent's delta goes in, at most `max_tokens` come out. A valid call in the answer is executed and its
result is the next delta. An answer without one is rolled back, the transcript's call is executed instead, and the
transcript's text stands at the beginning of the next delta: as if the model had written it.

The orchestrator's `delegate` starts a sub-agent as a fork of its own session, so the two share everything said so
far; its `collect` waits until that agent has finished. The analyst opens a session of its own one round later and
finds the shared system prompt in the prefix cache.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import stateful_kv as skv

from .calls import Call, CallError, parse_call
from .text import ChatText
from .tools import HAND_OFFS, SCHEMAS, World
from .transcripts import ANALYST, ORCHESTRATOR, ScriptTurn, Transcript, shared_prompt


@dataclass
class TurnRecord:
    """One turn of one agent: its full prompt, its answer with the engine's `turn.stats`, the call that followed."""

    round_idx: int
    agent: str
    turn_idx: int
    prompt: list[int]
    tokens: list[int]
    finish_reason: str
    stats: Any
    call_from: str = ""
    call: Call | None = None
    result: str = ""


@dataclass
class RoundRecord:
    """What the engine's own counters say about one round; rows are counted where they enter the model."""

    rows: int
    wall_s: float
    turns: list[TurnRecord]


@dataclass
class Agent:
    transcript: Transcript
    session: Any
    delta: list[int]
    turn_idx: int = 0
    waits_for: str | None = None
    report: str = ""
    done: bool = False


def run_round(engine: Any, named: list[tuple[str, int, Any, list[int]]], params: Any, round_idx: int) -> RoundRecord:
    """One batch of (agent, turn index, session, delta); the sessions take their deltas and answers."""
    prompts = [[*session.tokens, *delta] for _, _, session, delta in named]
    rows, begin = engine.stats()["rows_fed"], time.perf_counter()
    turns = engine.generate([skv.Request(session, delta, params) for _, _, session, delta in named])
    wall_s = time.perf_counter() - begin
    records = [
        TurnRecord(round_idx, agent, turn_idx, prompt, list(turn.tokens), turn.finish_reason, turn.stats)
        for (agent, turn_idx, _, _), prompt, turn in zip(named, prompts, turns)
    ]
    return RoundRecord(engine.stats()["rows_fed"] - rows, wall_s, records)


class Crew:
    """All agents of one run on one engine."""

    def __init__(self, engine: Any, text: ChatText, transcripts: dict[str, Transcript], params: Any, max_turns: int):
        self.engine, self.text, self.transcripts, self.params = engine, text, transcripts, params
        self.max_turns = max_turns
        self.world = World()
        self.agents: dict[str, Agent] = {}
        self.forks = 0

    def run(self, on_round: Callable[[RoundRecord], None]) -> list[RoundRecord]:
        rounds: list[RoundRecord] = []
        self._open(ORCHESTRATOR)
        while any(not agent.done for agent in self.agents.values()):
            running = [agent for agent in self.agents.values() if self._ready(agent)]
            batch = [(agent.transcript.agent, agent.turn_idx, agent.session, agent.delta) for agent in running]
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

    def _open(self, name: str) -> None:
        """A session of its own: shared system prompt, the agent's role, the user's first message."""
        script, text = self.transcripts[name], self.text
        delta = [*text.bos, *text.message("system", shared_prompt()), *text.message("system", script.role)]
        delta += text.message("user", script.turns[0].user or "") + text.begin_message("assistant")
        self.agents[name] = Agent(script, self.engine.open_session(), delta)

    def _fork(self, parent: Agent, answer: list[int], name: str, task: str) -> None:
        """A sub-agent: the parent's session so far, its delegating answer, then a role and the task."""
        script, text = self.transcripts[name], self.text
        delta = answer + text.message("system", script.role) + text.message("user", task)
        self.agents[name] = Agent(script, parent.session.fork(), delta + text.begin_message("assistant"))
        self.forks += 1

    def _ready(self, agent: Agent) -> bool:
        """Whether the agent has a turn to do; gives a waiting one the report it waits for as soon as there is one."""
        if agent.waits_for is not None:
            other = self.agents.get(agent.waits_for)
            if other is not None and not other.done:
                return False
            self._answer_collect(agent, other.report if other else "")
        return not agent.done

    def _answer_collect(self, agent: Agent, report: str) -> None:
        result = json.dumps({"agent": agent.waits_for, "report": report})
        agent.delta += self.text.message("tool", result)
        agent.waits_for = None
        self._begin_next(agent)

    def _begin_next(self, agent: Agent) -> None:
        user = agent.transcript.turns[agent.turn_idx].user
        if user:
            agent.delta += self.text.message("user", user)
        agent.delta += self.text.begin_message("assistant")

    def _model_call(self, turn: TurnRecord, script: ScriptTurn) -> Call | None:
        """The call in the model's answer, if it is valid and may be executed here."""
        try:
            call = parse_call(self.text.decode(turn.tokens), SCHEMAS)
        except CallError:
            return None
        # Who hands work to whom is the transcript's plan; a model's own call has to fit it to be executed.
        mine, planned = ((c.name, c.arguments.get("agent")) for c in (call, script.call))
        return None if mine != planned and {mine[0], planned[0]} & set(HAND_OFFS) else call

    def _finish_turn(self, agent: Agent, turn: TurnRecord) -> None:
        """Executes the turn's call and prepares the agent's next delta."""
        script, text = agent.transcript.turns[agent.turn_idx], self.text
        call = self._model_call(turn, script)
        turn.call_from, turn.call = ("model", call) if call else ("transcript", script.call)
        if call:
            answer = text.finish_answer(turn.tokens)
        else:
            agent.session.rollback(len(turn.prompt))
            answer = text.body(script.text()) + text.end_message()
        agent.turn_idx += 1
        agent.done = agent.turn_idx == min(len(agent.transcript.turns), self.max_turns)
        agent.delta = answer
        name, arguments = turn.call.name, turn.call.arguments
        if name == "report":
            agent.report = arguments["text"]
        if name == "collect":
            if not agent.done:
                agent.waits_for = arguments["agent"]
            return
        if name == "delegate":
            self._fork(agent, list(answer), arguments["agent"], arguments["task"])
            turn.result = json.dumps({"agent": arguments["agent"], "state": "started"})
        else:
            turn.result = self.world.execute(turn.call)
        agent.delta += text.message("tool", turn.result)
        if not agent.done:
            self._begin_next(agent)


def run_baseline(engine: Any, rounds: list[RoundRecord], params: Any, on_round: Callable[[RoundRecord], None]):
    """The same rounds with everything recomputed: every turn is a fresh session that is fed its full prompt."""
    result = []
    for idx, recorded in enumerate(rounds):
        sessions = [engine.open_session() for _ in recorded.turns]
        batch = [(turn.agent, turn.turn_idx, session, turn.prompt) for turn, session in zip(recorded.turns, sessions)]
        record = run_round(engine, batch, params, idx)
        for session in sessions:
            session.close()
        result.append(record)
        on_round(record)
    return result
