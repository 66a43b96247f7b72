"""propose_drafts against the usual torch composition: unfold the history into n-grams, compare, take the last match.

python benchmarks/bench_propose_drafts.py [--json FILE]
"""

import argparse

import torch
from common import interleaved, print_table, write_json

import stateful_kv as skv

MAX_NGRAM, DRAFTS = 4, 8


def plain(histories: list[torch.Tensor]) -> list[torch.Tensor]:
    drafts = []
    for history in histories:
        found = history[:0]
        for n in range(MAX_NGRAM, 0, -1):
            matches = (history.unfold(0, n, 1)[:-1] == history[-n:]).all(-1).nonzero()
            if len(matches):
                start = int(matches[-1]) + n
                found = history[start : start + DRAFTS]
                break
        drafts.append(found)
    return drafts


def measure(batch: int, length: int, kind: str) -> dict:
    torch.manual_seed(0)
    history = torch.randint(32000 if kind == "no match" else 200, (batch, length), dtype=torch.int32)
    if kind == "no match":
        history[:, -1] = 32001
    lens = torch.full((batch,), length, dtype=torch.int32)
    drafts = torch.empty(batch, DRAFTS, dtype=torch.int32)
    counts = torch.empty(batch, dtype=torch.int32)
    histories = list(history)
    times = interleaved(
        {
            "ours": lambda: skv.ops.propose_drafts(history, lens, MAX_NGRAM, drafts=drafts, num_drafts=counts),
            "torch": lambda: plain(histories),
        }
    )
    want = [t.tolist() for t in plain(histories)]
    assert [d[:c].tolist() for d, c in zip(drafts, counts)] == want
    return {
        "batch": batch, "length": length, "history": kind, "us": times["ours"] * 1e6,
        "torch_us": times["torch"] * 1e6, "speedup": times["torch"] / times["ours"],
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json")
    args = parser.parse_args()
    rows = [
        measure(batch, length, kind)
        for batch, length in ((1, 1000), (1, 100_000), (64, 32_000))
        for kind in ("no match", "short matches")
    ]
    print_table(rows)
    if args.json:
        write_json(args.json, "bench_propose_drafts", {"max_ngram": MAX_NGRAM, "max_drafts": DRAFTS, "rows": rows})


if __name__ == "__main__":
    main()
