"""Workloads on an engine in this process, for benchmarks that need no other engine beside it."""

import stateful_kv as skv

from .generate import Turn


def requests_of(engine: skv.Engine, sessions: dict[int, skv.Session], step: list[Turn]) -> list[skv.Request]:
    """Greedy requests of a step's turns; sessions of agents that have none yet are opened or forked."""
    requests = []
    for turn in step:
        if turn.agent not in sessions:
            parent = sessions.get(turn.fork_of)
            sessions[turn.agent] = parent.fork() if parent else engine.open_session()
        params = skv.SamplingParams(max_tokens=turn.answer, temperature=0.0)
        requests.append(skv.Request(sessions[turn.agent], turn.delta, params))
    return requests
