"""This project as a contestant: whole, and with each mechanism switched off in turn.

Variants: `whole`; `no_speculation`; `no_tree` (agents share no prefixes; each keeps its own); `no_reuse` (every turn
computes its whole context); `complete` (a stateless client: whole prompts, prefixes found in the tree); `fixed`
(drafts of one length); `fast` (deterministic=False); `cascade` (prefixes that agents share read once a step, which
excludes deterministic and is off on a CPU by default); `turns` (eviction for agents that take turns).
"`fast+no_speculation`" combines them.
"""

import sys

from contestant import Answer, Contestant, Turn, serve

PARTS = ("whole", "no_speculation", "no_tree", "no_reuse", "complete", "fixed", "fast", "cascade", "turns")


class StatefulKV(Contestant):
    def __init__(self, cell: dict):
        import torch

        import stateful_kv as skv

        torch.set_num_threads(cell["threads"])
        parts = set(cell["variant"].split("+"))
        if unknown := parts - set(PARTS):
            raise ValueError(f"variant: {unknown} is none of {PARTS}")
        self.skv, self.version = skv, f"stateful_kv, torch {torch.__version__}"
        self.reuse, self.keeps = "no_reuse" not in parts, not parts & {"no_reuse", "complete"}
        self.block_size = 16
        # All conversations and their tails, unless the workload bounds the pool.
        tokens = cell["pool_tokens"] or cell["total"] + 512 + 64 * cell["agents"]
        options = dict(
            num_blocks=tokens // self.block_size,
            prefix_cache=not parts & {"no_tree", "no_reuse"},
            speculation=None if "no_speculation" in parts else skv.PromptLookup(adaptive="fixed" not in parts),
            eviction="turns" if "turns" in parts else "lru",
            deterministic=False if "fast" in parts else None,
            cascade="cascade" in parts or None,
        )
        self.engine = skv.Engine.from_pretrained(cell["checkpoint"], dtype=getattr(torch, cell["dtype"]), **options)
        self.sessions: dict = {}

    def start(self) -> None:
        for session in self.sessions.values():
            session.close()
        self.sessions = {}
        runtime = self.engine._loop.runtime
        runtime.evict(runtime.stats()["num_blocks"])  # or the warm-up's prefix would be found
        self.before = self.engine.stats()

    def counts(self) -> dict[str, int]:
        now = self.engine.stats()
        return {name: now[name] - self.before[name] for name in ("steps", "grouped_steps")}

    def _session(self, turn: Turn):
        """The agent's session and what is new to it."""
        if not self.keeps:
            old = self.sessions.pop(turn.agent, None)
            if old is not None:
                old.close()
            self.sessions[turn.agent] = self.engine.open_session()
            return self.sessions[turn.agent], turn.context
        if turn.agent not in self.sessions:
            parent = self.sessions.get(turn.fork_of)
            self.sessions[turn.agent] = parent.fork() if parent else self.engine.open_session()
        return self.sessions[turn.agent], turn.context[-turn.num_new :]

    def take(self, turns: list[Turn]) -> list[Answer]:
        begin, numbers = self.clock(), {}
        for number, turn in enumerate(turns):
            session, delta = self._session(turn)
            params = self.skv.SamplingParams(max_tokens=turn.answer)
            numbers[self.engine.submit(self.skv.Request(session, delta, params))] = number
        first: dict[int, float] = {}
        answers: dict[int, Answer] = {}
        while len(answers) < len(turns):
            for event in self.engine.step():
                now = self.clock() - begin
                number = numbers[event.request_id]
                first.setdefault(number, now)
                if event.turn is not None:
                    s = event.turn.stats
                    computed = s.prompt_tokens - s.reused_tokens
                    answers[number] = Answer(event.turn.tokens, first[number], now, computed, s.drafted, s.accepted)
        return [answers[number] for number in range(len(turns))]


if __name__ == "__main__":
    sys.exit(serve(StatefulKV))
