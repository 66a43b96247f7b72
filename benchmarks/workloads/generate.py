"""The workloads: who takes which turn when, with which tokens in and how many out.

A workload is steps; the turns of a step are taken at the same time, steps one after the other. A turn appends `delta`
to its agent's conversation and draws exactly `answer` tokens, whatever they are (no stop token ends an answer), so
every contestant gets the same work. An agent whose first turn says `fork_of` begins with everything that agent holds
by then. Conversations continue with what the contestant itself answered.
"""

import random
from collections.abc import Callable
from dataclasses import asdict, dataclass

from stateful_kv.demo.text import ChatText

from .text import TOOLS, Project, prose, system_prompt

CODING = ["read_file", "search", "run_tests", "edit_file", "list_files"]
FIVE = ["read_file", "search", "run_tests", "edit_file", "query"]
_JOBS = ["You look after the code of the shop.", "You answer questions on orders.", "You build the web application."]


@dataclass(frozen=True)
class Turn:
    agent: int
    delta: list[int]
    answer: int
    fork_of: int | None = None


@dataclass(frozen=True)
class Workload:
    """pool_tokens: what a contestant with a cache of bounded size may keep, None = all it needs."""

    name: str
    title: str
    seed: int
    steps: list[list[Turn]]
    pool_tokens: int | None = None

    def as_json(self) -> dict:
        facts = dict(num_turns=self.num_turns, agents=self.agents, max_context=self.max_context, total=self.total)
        return {**asdict(self), **facts}

    @property
    def turns(self) -> list[Turn]:
        return [turn for step in self.steps for turn in step]

    @property
    def num_turns(self) -> int:
        return len(self.turns)

    @property
    def agents(self) -> int:
        return len({turn.agent for turn in self.turns})

    def lengths(self) -> dict[int, int]:
        """Tokens of every agent's conversation at the end."""
        lengths: dict[int, int] = {}
        for turn in self.turns:
            begin = lengths[turn.fork_of] if turn.fork_of is not None else lengths.get(turn.agent, 0)
            lengths[turn.agent] = begin + len(turn.delta) + turn.answer
        return lengths

    @property
    def max_context(self) -> int:
        return max(self.lengths().values())

    @property
    def total(self) -> int:
        """Tokens of all conversations together, shared prefixes counted each time."""
        return sum(self.lengths().values())


class Writer:
    """Messages as tokens, cut to the lengths a workload promises."""

    def __init__(self, seed: int):
        self.rng, self.text = random.Random(seed), ChatText()
        self.project = Project(self.rng)

    def system(self, job: str, tools: list[str], length: int) -> list[int]:
        """A system message of exactly `length` tokens."""
        head, tail = self.text.begin_message("system"), self.text.end_message()
        rules = 8
        while len(body := self.text.body(system_prompt(job, tools, rules))) < length - len(head) - len(tail):
            rules += 8
        return head + body[: length - len(head) - len(tail)] + tail

    def _message(self, role: str, more: Callable[[], str], length: int, is_first: bool) -> list[int]:
        head = [] if is_first else self.text.end_message()  # ends the answer before
        head += self.text.begin_message(role)
        tail = self.text.end_message() + self.text.begin_message("assistant")
        body: list[int] = []
        while len(body) < length - len(head) - len(tail):
            body += self.text.body(more() + "\n")
        return head + body[: length - len(head) - len(tail)] + tail

    def result(self, tool: str, low: int, high: int, is_first: bool = False) -> list[int]:
        """A tool's result of `low` to `high` tokens, ending where the assistant begins to write."""
        return self._message("tool", lambda: self.project.use(tool), self.rng.randrange(low, high + 1), is_first)

    def user(self, length: int, is_first: bool = False) -> list[int]:
        def wish() -> str:
            path, name = self.rng.choice(list(self.project.files)), self.rng.choice(self.project.functions)
            return f"Please look at {name} in {path}: it is wrong for limit {self.rng.randrange(900)}."

        return self._message("user", wish, length, is_first)

    def prose(self, length: int, is_first: bool = False) -> list[int]:
        return self._message("user", lambda: prose(self.rng, 60), length, is_first)


def six_turns(seed: int = 6) -> Workload:
    w = Writer(seed)
    deltas = [w.system(_JOBS[0], CODING, 1500) + w.user(200, is_first=True)]
    deltas += [w.result(tool, 150, 300) for tool in ("run_tests", "search", "read_file", "edit_file", "run_tests")]
    return Workload("six_turns", "debugging, six turns", seed, [[Turn(0, delta, 64)] for delta in deltas])


def _web_app(name: str, title: str, seed: int, low: int, high: int) -> Workload:
    w = Writer(seed)
    tools = ["list_files", "read_file", "edit_file", "build", "run_tests", "search"]
    deltas = [w.system(_JOBS[2], list(TOOLS), 2000) + w.user(300, is_first=True)]
    deltas += [w.result(tools[i % 6] if i % 5 else "read_file", low, high) for i in range(34)]
    return Workload(name, title, seed, [[Turn(0, delta, 48)] for delta in deltas])


def thirty_five_turns(seed: int = 35) -> Workload:
    return _web_app("thirty_five_turns", "building a web application, thirty-five turns", seed, 200, 400)


def thirty_five_turns_long(seed: int = 36) -> Workload:
    return _web_app("thirty_five_turns_long", "the same with long results, to 100k tokens", seed, 2650, 3060)


def three_agents(seed: int = 3) -> Workload:
    """Three agents, five tools, each used once by each of them, taking turns."""
    w = Writer(seed)
    system = w.system(_JOBS[1], FIVE, 1200)
    steps = []
    for turn in range(5):
        for agent in range(3):
            tool = FIVE[(turn + 2 * agent) % 5]
            head = system + w.user(80, is_first=True) if turn == 0 else []
            steps.append([Turn(agent, head + w.result(tool, 150, 300, is_first=False), 48)])
    return Workload("three_agents", "three agents, five tools, five turns, interleaved", seed, steps)


def burst(seed: int = 8) -> Workload:
    """Eight agents that share a system prompt ask at the same moment, three times."""
    w = Writer(seed)
    system = w.system(_JOBS[0], CODING, 1500)
    steps = []
    for turn in range(3):
        deltas = [w.user(150, True) if turn == 0 else w.result(CODING[(turn + a) % 5], 150, 300) for a in range(8)]
        steps.append([Turn(a, (system if turn == 0 else []) + delta, 48) for a, delta in enumerate(deltas)])
    return Workload("burst", "eight agents at once, three times", seed, steps)


def fan_out(seed: int = 5) -> Workload:
    """An orchestrator forks six sub-agents, each works two turns beside the others, then their reports come back."""
    w = Writer(seed)
    steps = [[Turn(0, w.system(_JOBS[0], CODING, 1500) + w.user(300, is_first=True), 64)]]
    steps.append([Turn(0, w.result("list_files", 200, 300), 64)])
    steps.append([Turn(1 + i, w.user(100), 48, fork_of=0) for i in range(6)])
    steps.append([Turn(1 + i, w.result(CODING[i % 5], 150, 300), 48) for i in range(6)])
    steps.append([Turn(0, w.result("query", 300, 400), 64)])
    return Workload("fan_out", "six sub-agents forked from an orchestrator", seed, steps)


def free_text(seed: int = 7) -> Workload:
    """Prose that repeats little: the hard case for speculation."""
    w = Writer(seed)
    return Workload(
        "free_text", "free text, eight turns", seed, [[Turn(0, w.prose(200, i == 0), 128)] for i in range(8)]
    )


def pressure(seed: int = 9) -> Workload:
    """Six agents take turns in a pool that holds about two of their conversations."""
    w = Writer(seed)
    systems = [w.system(job, FIVE, 900) for job in _JOBS]
    steps = []
    for turn in range(5):
        for agent in range(6):
            head = systems[agent % 3] + w.user(80, is_first=True) if turn == 0 else []
            steps.append([Turn(agent, head + w.result(FIVE[(turn + agent) % 5], 200, 300), 48)])
    return Workload("pressure", "six agents in a pool for two and a half", seed, steps, pool_tokens=6144)


WORKLOADS: dict[str, Callable[..., Workload]] = {
    make.__name__: make
    for make in (
        six_turns,
        thirty_five_turns,
        thirty_five_turns_long,
        three_agents,
        burst,
        fan_out,
        free_text,
        pressure,
    )
}


def repetition(tokens: list[int], begin: int = 0, n: int = 3) -> float:
    """Share of tokens from `begin` on that follow their n predecessors as something did before: what prompt lookup of
    n-grams could have known."""
    seen: dict[tuple[int, ...], set[int]] = {}
    known = 0
    for i in range(n, len(tokens)):
        key = tuple(tokens[i - n : i])
        followers = seen.setdefault(key, set())
        known += i >= begin and tokens[i] in followers
        followers.add(tokens[i])
    return known / max(1, len(tokens) - max(begin, n))
