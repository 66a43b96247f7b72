"""Are the answers those of greedy decoding? Each token of each answer against a float32 reference given the same text.

Contestants continue with what they answered, so two of them may talk about different things once one token differs.
What can be judged is each token by itself: the reference (transformers, float32, the same weights) reads the whole
conversation, and where its most likely token is another one, that is a difference, with its place and the gap between
the two logits. Conversations that several contestants share are read once.
"""

import hashlib
import json
import pathlib

from benchmarks.workloads import files

from . import models

PLACES = 12  # differences that are written out


def spans(workload: dict, rows: list[dict], script: list[list[int]] | None) -> list[tuple[list[int], list]]:
    """Per agent its conversation and [(begin, end, turn)] of the answers that `rows` hold; others are the script's."""
    given = {(row["step"], row["agent"]): row["tokens"] for row in rows}
    talks: dict[int, tuple[list[int], list]] = {}
    number, last = 0, max(row["step"] for row in rows)
    for index, step in enumerate(workload["steps"][: last + 1]):
        before = {agent: list(tokens) for agent, (tokens, _) in talks.items()}
        for t in step:
            if t["agent"] not in talks:
                talks[t["agent"]] = (list(before[t["fork_of"]]) if t["fork_of"] is not None else [], [])
            tokens, answers = talks[t["agent"]]
            tokens += t["delta"]
            key = (index, t["agent"])
            answer = given[key] if key in given else script[number]
            if key in given:
                answers.append((len(tokens), len(tokens) + len(answer), index))
            tokens += answer
            number += 1
    return list(talks.values())


class Reference:
    def __init__(self, checkpoint: pathlib.Path):
        import torch
        import transformers

        self.torch, self.transformers = torch, transformers
        self.model = transformers.LlamaForCausalLM.from_pretrained(
            checkpoint, dtype=torch.float32, attn_implementation="sdpa"
        ).eval()

    def differences(self, tokens: list[int], answers: list) -> list[dict]:
        """Where an answer's token is not the most likely one: turn, place in the answer, gap of the logits."""
        torch, found = self.torch, []
        cache, fed = self.transformers.DynamicCache(config=self.model.config), 0
        with torch.inference_mode():
            for begin, end, turn in answers:
                while fed < begin - 1:  # long deltas in pieces
                    piece = tokens[fed : min(fed + 2048, begin - 1)]
                    self.model(input_ids=torch.tensor([piece]), past_key_values=cache, use_cache=True, logits_to_keep=1)
                    fed += len(piece)
                ids = torch.tensor([tokens[fed : end - 1]])
                kept = end - begin
                logits = self.model(input_ids=ids, past_key_values=cache, use_cache=True, logits_to_keep=kept).logits[0]
                fed = end - 1
                chosen = torch.tensor(tokens[begin:end])
                gaps = logits.max(-1).values - logits.gather(1, chosen[:, None])[:, 0]
                for i in (gaps > 0).nonzero()[:, 0].tolist():
                    found.append(dict(turn=turn, token=i, gap=float(gaps[i])))
        return found


def name_of(group: pathlib.Path, cell: dict) -> str:
    """The workload of a folder of cells."""
    return group.name.split("_" + cell["cell"]["model"])[0]


def judge(group: pathlib.Path, checkpoint: pathlib.Path, on_line=print) -> dict[str, dict]:
    """Verdicts of every contestant's first repetition in a folder of cells; kept beside them, each asked once."""
    store = group / "verdicts.json"
    known = json.loads(store.read_text()) if store.exists() else {}
    reference, verdicts = None, {}
    for path in sorted(group.glob("*.0.json")):
        cell = json.loads(path.read_text())
        name = path.name.removesuffix(".0.json")
        workload = json.loads(files.ensure(name_of(group, cell), checkpoint=checkpoint).read_text())
        places, tokens = [], 0
        for talk, answers in spans(workload, cell["rows"], cell.get("script")):
            key = hashlib.sha256(json.dumps([talk, answers]).encode()).hexdigest()
            if key not in known:
                reference = reference or Reference(checkpoint)
                on_line(f"judging {name}: {len(talk)} tokens")
                known[key] = reference.differences(talk, answers)
                store.write_text(json.dumps(known))
            places += known[key]
            tokens += sum(end - begin for begin, end, _ in answers)
        gaps = [p["gap"] for p in places]
        verdicts[name] = dict(tokens=tokens, differ=len(places), largest_gap=max(gaps, default=0.0), at=places[:PLACES])
    return verdicts


def all_verdicts(group: pathlib.Path, model: str) -> dict[str, dict]:
    return judge(group, models.checkpoint(model))
