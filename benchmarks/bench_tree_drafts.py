"""Trees of drafts against chains on the embedded model, whose calls repeat what a conversation says in other places.

The same greedy workloads with no speculation, with chains and with trees (PromptLookup's branches), interleaved; steps
with logits of a turn, tokens of each, what branches brought, seconds of all turns, medians of the repetitions. Answers
are compared with those of no speculation.

    python benchmarks/bench_tree_drafts.py [--branches 2 4 8] [--repetitions 3] [--json FILE]
"""

import argparse
import pathlib
import statistics
import sys
import time

import torch
from common import ROOT, print_table, write_json

import stateful_kv as skv

sys.path.insert(0, str(ROOT))
from benchmarks.workloads import files
from benchmarks.workloads.play import requests_of

CHECKPOINT = ROOT / "stateful_kv" / "demo" / "model"
WORKLOADS = ("embedded_six_turns", "embedded_thirty_five_turns")


def play(workload, speculation, dtype) -> dict:
    """Every turn of the workload in a new engine: what was answered, and what it took."""
    engine = skv.Engine.from_pretrained(CHECKPOINT, dtype=dtype, num_blocks=4096, speculation=speculation)
    sessions, answers, stats, seconds = {}, [], [], 0.0
    for step in workload.steps:
        requests = requests_of(engine, sessions, step)
        begin = time.perf_counter()
        turns = engine.generate(requests)
        seconds += time.perf_counter() - begin
        answers += [turn.tokens for turn in turns]
        stats += [turn.stats for turn in turns]
    counted = engine.stats()
    total = {name: sum(getattr(s, name) for s in stats) for name in ("drafted", "accepted")}
    total |= {name: sum(getattr(s, name) for s in stats) for name in ("drafted_branches", "accepted_branches")}
    tokens = sum(map(len, answers))
    steps = counted["steps"]
    return dict(answers=answers, seconds=seconds, steps=steps, trees=counted["tree_steps"], tokens=tokens, **total)


def measure(name: str, branches: list[int], repetitions: int, dtype) -> list[dict]:
    workload = files.make(name, CHECKPOINT)
    ways = {"no speculation": None, "chain": skv.PromptLookup(adaptive=False)}
    ways |= {f"tree, {n} branches": skv.PromptLookup(branches=n, adaptive=False) for n in branches}
    runs = {way: [] for way in ways}
    for _ in range(repetitions):
        for way, speculation in ways.items():
            runs[way].append(play(workload, speculation, dtype))
    reference, rows = runs["no speculation"][0]["answers"], []
    for way, of_way in runs.items():
        first = of_way[0]
        seconds = statistics.median(run["seconds"] for run in of_way)
        rows.append({
            "workload": name, "drafts": way, "steps": first["steps"], "with trees": first["trees"],
            "tokens a step": first["tokens"] / first["steps"],
            "drafted": first["drafted"], "accepted": first["accepted"],
            "of branches": first["drafted_branches"], "accepted of them": first["accepted_branches"],
            "s": seconds, "to the chain": seconds / statistics.median(run["seconds"] for run in runs["chain"]),
            "answers equal": sum(a == b for a, b in zip(first["answers"], reference)), "answers": len(reference),
        })  # fmt: skip
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--branches", type=int, nargs="+", default=[2, 4, 8])
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--workloads", nargs="+", default=WORKLOADS)
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--json", type=pathlib.Path)
    args = parser.parse_args()
    dtype = getattr(torch, args.dtype)
    rows = [row for name in args.workloads for row in measure(name, args.branches, args.repetitions, dtype)]
    print_table(rows)
    if args.json:
        settings = dict(repetitions=args.repetitions, dtype=args.dtype)
        write_json(args.json, "bench_tree_drafts", dict(settings=settings, rows=rows))


if __name__ == "__main__":
    main()
