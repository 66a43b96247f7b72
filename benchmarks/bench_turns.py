"""Turn times of one growing conversation: ours and transformers, same random weights and tokens, in one run.

Contestants: ours with and without speculation; transformers with its cache kept by hand (a plain greedy loop, nothing
of generate()'s overhead); transformers recomputing the whole prompt every turn. Interleaved turn by turn, so that a
slow moment of the machine meets all of them.

    python benchmarks/bench_turns.py [--dtype bfloat16|float32] [--turns 12] [--answer 32] [--json FILE]
"""

import argparse
import pathlib
import statistics
import tempfile
import time

import torch
import transformers
from common import print_table, write_json
from traces import conversation

import stateful_kv as skv

# 112M parameters; head_dim 64, as small models have it.
SHAPE = dict(
    vocab_size=24000,
    hidden_size=768,
    intermediate_size=2048,
    num_hidden_layers=12,
    num_attention_heads=12,
    num_key_value_heads=4,
    max_position_embeddings=32768,
    initializer_range=0.05,
    tie_word_embeddings=False,
)


def make_checkpoint(folder: pathlib.Path) -> pathlib.Path:
    torch.manual_seed(7)
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**SHAPE)).to(torch.bfloat16)
    model.save_pretrained(folder)
    return folder


class Ours:
    """turn(delta, n) -> (tokens, seconds to the first token, seconds in all)."""

    def __init__(self, checkpoint, dtype, **options):
        self.engine = skv.Engine.from_pretrained(checkpoint, dtype=dtype, num_blocks=2048, **options)
        self.session = self.engine.open_session()

    def turn(self, delta, n):
        begin = time.perf_counter()
        turn = self.session.generate(delta, skv.SamplingParams(max_tokens=n))
        return turn.tokens, turn.stats.ttft_s, time.perf_counter() - begin


class Transformers:
    def __init__(self, checkpoint, dtype, keep_cache: bool):
        self.model = transformers.LlamaForCausalLM.from_pretrained(
            checkpoint, dtype=dtype, attn_implementation="sdpa"
        ).eval()
        self.keep_cache, self.cache, self.conversation, self.fed = keep_cache, None, [], 0

    @torch.inference_mode()
    def turn(self, delta, n):
        begin = time.perf_counter()
        self.conversation += delta
        if not self.keep_cache or self.cache is None:
            self.cache, self.fed = transformers.DynamicCache(config=self.model.config), 0
        tokens = []
        while len(tokens) < n:
            ids = torch.tensor([self.conversation[self.fed :]])
            self.fed = len(self.conversation)
            logits = self.model(input_ids=ids, past_key_values=self.cache, use_cache=True, logits_to_keep=1).logits
            tokens.append(int(logits[0, -1].argmax()))
            self.conversation.append(tokens[-1])
            if len(tokens) == 1:
                first = time.perf_counter() - begin
        return tokens, first, time.perf_counter() - begin


def run(args, checkpoint: pathlib.Path) -> dict:
    dtype = getattr(torch, args.dtype)
    contestants = {
        "ours": Ours(checkpoint, dtype),
        "ours, no speculation": Ours(checkpoint, dtype, speculation=None),
        "transformers, cache kept": Transformers(checkpoint, dtype, True),
    }
    if not args.no_recompute:
        contestants["transformers, recomputing"] = Transformers(checkpoint, dtype, False)
    warm = conversation(99, 1, 60, 60)[0][:64]
    for contestant in contestants.values():  # kernels chosen, pages touched; then a fresh conversation
        contestant.turn(warm, 4)
        if isinstance(contestant, Ours):
            contestant.session = contestant.engine.open_session()
        else:
            contestant.cache, contestant.conversation = None, []
    rows = {name: [] for name in contestants}
    context = 0
    for i, delta in enumerate(conversation(args.seed, args.turns, 150, 300)):
        context += len(delta)
        for name, contestant in contestants.items():
            if name == "transformers, recomputing" and 0 < i < 5:  # compared from the sixth turn on
                kept = rows["transformers, cache kept"][i]["tokens"]
                contestant.conversation += delta + kept
                rows[name].append(None)
                continue
            tokens, first, total = contestant.turn(delta, args.answer)
            rows[name].append(dict(context=context, delta=len(delta), tokens=tokens, ttft_s=first, turn_s=total))
        context += args.answer
        print(
            f"turn {i + 1}: " + ", ".join(f"{n} {r[-1]['turn_s']:.3f} s" for n, r in rows.items() if r[-1]), flush=True
        )
    return rows


def summary(rows: dict, answer: int) -> list[dict]:
    base = [r["turn_s"] for r in rows["transformers, cache kept"][1:]]
    reference = [r["tokens"] for r in rows["transformers, cache kept"]]
    table = []
    for name, records in rows.items():
        late = [(r["turn_s"], b["turn_s"]) for r, b in zip(records[5:], rows["ours"][5:]) if r]
        timed = [r for r in records[1:] if r]
        seconds = sorted(r["turn_s"] for r in timed)
        ratios = sorted(r["turn_s"] / b for r, b in zip(records[1:], base) if r)
        table.append(
            {
                "contestant": name,
                "median turn ms": 1e3 * statistics.median(seconds),
                "median ttft ms": 1e3 * statistics.median(r["ttft_s"] for r in timed),
                "ms per token": 1e3 * statistics.median((r["turn_s"] - r["ttft_s"]) / (answer - 1) for r in timed),
                "ratio to cache kept, median": statistics.median(ratios),
                "p90": ratios[min(len(ratios) - 1, int(0.9 * len(ratios)))],
                "ratio to ours from turn 6": statistics.median(a / b for a, b in late),
                "equal answers": sum(bool(r) and r["tokens"] == t for r, t in zip(records, reference)),
            }
        )
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dtype", default="bfloat16", choices=["bfloat16", "float32"])
    parser.add_argument("--turns", type=int, default=12)
    parser.add_argument("--answer", type=int, default=32, help="tokens of every answer")
    parser.add_argument("--seed", type=int, default=6)
    parser.add_argument("--no-recompute", action="store_true")
    parser.add_argument("--json", type=pathlib.Path)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        rows = run(args, make_checkpoint(pathlib.Path(folder)))
    table = summary(rows, args.answer)
    print_table(table)
    if args.json:
        settings = {k: v for k, v in vars(args).items() if k != "json"}
        write_json(args.json, "bench_turns", dict(settings=settings, shape=SHAPE, summary=table, turns=rows))


if __name__ == "__main__":
    main()
