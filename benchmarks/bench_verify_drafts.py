"""verify_drafts against the usual torch composition: float32 logits, sort for top_k and top_p, softmax, a draw.

    python benchmarks/bench_verify_drafts.py [--vocab 131072] [--json FILE]

Both judge chains whose drafts are all accepted, so that every row is needed. "peaked" logits resemble a language
model's (a few likely tokens over a normal bulk), "flat" ones are standard normal: the worst case of every cut.
"""

import argparse

import torch
from common import interleaved, print_table, write_json

import stateful_kv as skv

SETTINGS = {
    "greedy": {},
    "temperature": {"temperature": 0.8},
    "min_p": {"temperature": 0.8, "min_p": 0.05},
    "top_k 50": {"temperature": 0.8, "top_k": 50},
    "top_p 0.95": {"temperature": 0.8, "top_p": 0.95},
    "top_k 50, top_p 0.95": {"temperature": 0.8, "top_k": 50, "top_p": 0.95},
}


def plain_draw(logits: torch.Tensor, noise: torch.Generator, temperature=0.0, top_k=0, top_p=1.0, min_p=0.0):
    if temperature == 0:
        return logits.argmax(-1)
    scores = logits.float() / temperature
    if top_k > 0 and top_p >= 1:
        scores.masked_fill_(scores < scores.topk(top_k).values[:, -1:], -torch.inf)
    elif top_p < 1:
        ordered, order = scores.sort(-1, descending=True)
        if top_k > 0:
            ordered[:, top_k:] = -torch.inf
        probabilities = ordered.softmax(-1)
        ordered[probabilities.cumsum(-1) - probabilities >= top_p] = -torch.inf
        scores = torch.empty_like(scores).scatter_(-1, order, ordered)
    probabilities = scores.softmax(-1)
    if min_p > 0:
        probabilities[probabilities < min_p * probabilities.amax(-1, keepdim=True)] = 0
    return (probabilities / torch.empty_like(probabilities).exponential_(generator=noise)).argmax(-1)


def make_logits(rows: int, vocab: int, shape: str) -> torch.Tensor:
    logits = torch.randn(rows, vocab)
    if shape == "peaked":
        logits.mul_(2).scatter_(1, torch.randint(vocab, (rows, 20)), 8 + 4 * torch.rand(rows, 20))
    return logits


def measure(name: str, shape: str, batch: int, rows: int, vocab: int, dtype: torch.dtype) -> dict:
    torch.manual_seed(0)
    logits = make_logits(batch * rows, vocab, shape).to(dtype)
    cu_rows = torch.arange(batch + 1, dtype=torch.int32) * rows
    columns = {"top_k": torch.int32}
    options = {k: torch.full((batch,), v, dtype=columns.get(k, torch.float32)) for k, v in SETTINGS[name].items()}
    if options:
        options |= {"seeds": torch.arange(batch), "positions": torch.full((batch,), 100)}
    drafts = torch.full((batch * rows,), -1, dtype=torch.int32)
    for _ in range(rows):  # each round accepts one draft more
        tokens = skv.ops.verify_drafts(logits, drafts, cu_rows, max_rows=rows, **options).tokens
        drafts.view(batch, rows)[:, 1:] = tokens[:, :-1]
    outputs = {
        "tokens": torch.empty(batch, rows, dtype=torch.int32),
        "num_tokens": torch.empty(batch, dtype=torch.int32),
    }
    skv.ops.verify_drafts(logits, drafts, cu_rows, **options, **outputs)
    assert (outputs["num_tokens"] == rows).all()
    noise = torch.Generator().manual_seed(0)

    def plain():
        drawn = plain_draw(logits, noise, **SETTINGS[name]).view(batch, rows)
        equal = drawn[:, :-1] == drafts.view(batch, rows)[:, 1:]
        return drawn, equal.cumprod(-1).sum(-1) + 1

    times = interleaved(
        {"ours": lambda: skv.ops.verify_drafts(logits, drafts, cu_rows, **options, **outputs), "torch": plain}
    )
    return {
        "settings": name, "logits": shape, "batch": batch, "rows": rows, "dtype": str(dtype)[6:],
        "us_per_row": times["ours"] * 1e6 / (batch * rows), "torch_us_per_row": times["torch"] * 1e6 / (batch * rows),
        "speedup": times["torch"] / times["ours"],
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--vocab", type=int, default=131072)
    parser.add_argument("--json")
    args = parser.parse_args()
    rows = [
        measure(name, shape, batch, 5, args.vocab, dtype)
        for name in SETTINGS
        for shape in ("peaked", "flat")
        for batch, dtype in ((1, torch.bfloat16), (8, torch.bfloat16), (8, torch.float32))
    ]
    print_table(rows)
    if args.json:
        write_json(args.json, "bench_verify_drafts", {"vocab": args.vocab, "rows": rows})


if __name__ == "__main__":
    main()
