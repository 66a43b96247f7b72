"""Are the answers those of greedy decoding? Each token of each answer against a float32 reference given the same text.

Contestants continue with what they answered, so two of them may talk about different things once one token differs.
What can be judged is each token by itself: the reference (transformers, float32, the same weights) reads the whole
conversation, and where its most likely token is another one, that is a difference, with its place and the gap between
the two logits.

Turns of all contestants are read in one order, that of their tokens, so what any two conversations share (a system
prompt, a fork's beginning, everything until two contestants first differ) is read once.
"""

import hashlib
import json
import pathlib
import random
from array import array
from dataclasses import dataclass

from benchmarks.workloads import files

from . import models

PLACES = 12  # differences that are written out
PIECE = 2048  # tokens that the reference reads at a time


@dataclass(frozen=True)
class Judged:
    """An answer, tokens[begin:], behind all that its agent's conversation held before."""

    step: int
    agent: int
    begin: int
    tokens: list[int]

    @property
    def key(self) -> str:
        return hashlib.sha256(array("q", [self.begin, *self.tokens]).tobytes()).hexdigest()


def turns(workload: dict, rows: list[dict], script: list[list[int]] | None) -> list[Judged]:
    """The answers that `rows` hold, in the order they were given; those of turns left out are the script's."""
    given = {(row["step"], row["agent"]): row["tokens"] for row in rows}
    talks: dict[int, list[int]] = {}
    found, number, last = [], 0, max(row["step"] for row in rows)
    for index, step in enumerate(workload["steps"][: last + 1]):
        before = dict(talks)  # a fork begins as its parent was before the step
        for t in step:
            agent, parent = t["agent"], t["agent"] if t["fork_of"] is None else t["fork_of"]
            context = before.get(parent, []) + t["delta"]
            is_given = (index, agent) in given
            talks[agent] = context + (given[index, agent] if is_given else script[number])
            if is_given:
                found.append(Judged(index, agent, len(context), talks[agent]))
            number += 1
    return found


def sample(judged: list[Judged], limit: int | None, seed: int = 0) -> list[Judged]:
    """At most `limit` turns, the same for the same turns: whole conversations, which cost hardly more to judge than
    their last turn, and some turns of one more."""
    if limit is None or limit >= len(judged):
        return judged
    rng, chosen = random.Random(seed), set()
    agents = sorted({t.agent for t in judged})
    rng.shuffle(agents)
    for agent in agents:
        own, room = [i for i, t in enumerate(judged) if t.agent == agent], limit - len(chosen)
        chosen.update(own if len(own) <= room else rng.sample(own, room))
    return [t for i, t in enumerate(judged) if i in chosen]


class Reference:
    def __init__(self, checkpoint: pathlib.Path):
        import torch
        import transformers

        self.torch, self.transformers = torch, transformers
        self.model = transformers.LlamaForCausalLM.from_pretrained(
            checkpoint, dtype=torch.float32, attn_implementation="sdpa"
        ).eval()
        self.cache, self.held = transformers.DynamicCache(config=self.model.config), []
        self.num_read = 0  # tokens that entered the model

    def differences(self, tokens: list[int], begin: int) -> list[tuple[int, float]]:
        """Where a token of the answer tokens[begin:] is not the most likely one: place in it, gap of the logits."""
        torch = self.torch
        self._keep(tokens[: begin - 1])
        with torch.inference_mode():
            while len(self.held) < begin - 1:
                self._read(tokens[len(self.held) : min(len(self.held) + PIECE, begin - 1)], 1)
            logits = self._read(tokens[begin - 1 : -1], len(tokens) - begin)
            chosen = torch.tensor(tokens[begin:])
            gaps = logits.max(-1).values - logits.gather(1, chosen[:, None])[:, 0]
        return [(i, float(gaps[i])) for i in (gaps > 0).nonzero()[:, 0].tolist()]

    def _keep(self, tokens: list[int]) -> None:
        """Forgets what was read beyond the beginning that it shares with `tokens`."""
        pairs = enumerate(zip(self.held, tokens))
        shared = next((i for i, (a, b) in pairs if a != b), min(len(self.held), len(tokens)))
        if shared == 0:
            self.cache = self.transformers.DynamicCache(config=self.model.config)
        elif shared < len(self.held):
            self.cache.crop(shared - len(self.held))
        self.held = self.held[:shared]

    def _read(self, tokens: list[int], num_logits: int):
        ids = self.torch.tensor([tokens])
        out = self.model(input_ids=ids, past_key_values=self.cache, use_cache=True, logits_to_keep=num_logits)
        self.held = self.held + tokens
        self.num_read += len(tokens)
        return out.logits[0]


def name_of(group: pathlib.Path, cell: dict) -> str:
    """The workload of a folder of cells."""
    return group.name.split("_" + cell["cell"]["model"])[0]


def verdict(judged: list[Judged], num_turns: int, known: dict[str, list]) -> dict:
    """How many of the tokens judged differ, by how much at most, and where the first of them stand."""
    places = [
        dict(turn=t.step, agent=t.agent, token=token, gap=gap)
        for t in sorted(judged, key=lambda t: (t.step, t.agent))
        for token, gap in known[t.key]
    ]
    return dict(
        turns=len(judged),
        of_turns=num_turns,
        tokens=sum(len(t.tokens) - t.begin for t in judged),
        differ=len(places),
        largest_gap=max((p["gap"] for p in places), default=0.0),
        at=places[:PLACES],
    )


def judge(group: pathlib.Path, checkpoint: pathlib.Path, limit: int | None = None, on_line=print) -> dict[str, dict]:
    """Verdicts of every contestant's first repetition in a folder of cells, of at most `limit` turns each; what the
    reference said of a turn is kept beside the cells. repetitions_differ: others with answers that are not the first's.
    """
    store = group / "verdicts.json"
    known = json.loads(store.read_text()) if store.exists() else {}
    asked, verdicts = {}, {}
    for path in sorted(group.glob("*.0.json")):
        cell = json.loads(path.read_text())
        workload = json.loads(files.ensure(name_of(group, cell), checkpoint=checkpoint).read_text())
        all_turns = turns(workload, cell["rows"], cell.get("script"))
        asked[path.name.removesuffix(".0.json")] = (sample(all_turns, limit), len(all_turns))
    new = {t.key: t for judged, _ in asked.values() for t in judged if t.key not in known}
    reference = Reference(checkpoint) if new else None
    for number, (key, t) in enumerate(sorted(new.items(), key=lambda item: item[1].tokens)):
        on_line(f"judging turn {number + 1} of {len(new)}: {len(t.tokens)} tokens")
        known[key] = reference.differences(t.tokens, t.begin)
        store.write_text(json.dumps(known))
    for name, (judged, num_turns) in asked.items():
        verdicts[name] = verdict(judged, num_turns, known) | dict(repetitions_differ=_repetitions_differ(group, name))
    return verdicts


def _repetitions_differ(group: pathlib.Path, name: str) -> int:
    cells = [json.loads(path.read_text()) for path in sorted(group.glob(f"{name}.*.json"))]
    answers = [{(row["step"], row["agent"]): row["tokens"] for row in cell["rows"]} for cell in cells]
    return sum(other != answers[0] for other in answers)


def all_verdicts(group: pathlib.Path, model: str, limit: int | None = None) -> dict[str, dict]:
    return judge(group, models.checkpoint(model), limit)
