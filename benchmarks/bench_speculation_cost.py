"""What speculation costs where it gains nothing: free text of little repetition, with drafts and without, turn by turn.

Three engines over one model of random weights take each turn one after the other, in turn who is first: no speculation,
chains of fixed length, lengths by measured cost. Ratios to no speculation of the same turn, and of all turns together;
processes of their own, as in the proof, differ by more than this on a machine with neighbours.

    python benchmarks/bench_speculation_cost.py [--workload free_text] [--repetitions 3] [--json FILE]
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
from benchmarks.proof import models
from benchmarks.workloads import files
from benchmarks.workloads.play import requests_of

WAYS = {
    "no speculation": None,
    "fixed length": skv.PromptLookup(adaptive=False),
    "length by cost": skv.PromptLookup(),
}


def play(engines: dict, workload, first: int) -> list[dict[str, float]]:
    """Seconds of every step of the workload, of each engine; engine number `first` begins."""
    sessions, seconds = {way: {} for way in engines}, []
    for number, step in enumerate(workload.steps):
        begin = (first + number) % len(engines)
        took = {}
        for way in [*list(engines)[begin:], *list(engines)[:begin]]:
            requests = requests_of(engines[way], sessions[way], step)
            start = time.perf_counter()
            engines[way].generate(requests)
            took[way] = time.perf_counter() - start
        seconds.append(took)
    for of_way in sessions.values():
        for session in of_way.values():
            session.close()
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workload", default="free_text", choices=["free_text", "six_turns", "burst"])
    parser.add_argument("--model", default="110M")
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--json", type=pathlib.Path)
    args = parser.parse_args()
    checkpoint, dtype = models.checkpoint(args.model), getattr(torch, args.dtype)
    workload = files.make(args.workload, checkpoint)
    engines = {
        way: skv.Engine.from_pretrained(checkpoint, dtype=dtype, num_blocks=1024, speculation=speculation)
        for way, speculation in WAYS.items()
    }
    turns = [took for i in range(args.repetitions) for took in play(engines, workload, i)]
    rows = []
    for way in WAYS:
        ratios = [took[way] / took["no speculation"] for took in turns]
        total = sum(took[way] for took in turns)
        rows.append({
            "drafts": way, "turns": len(turns), "s": total, "median ratio": statistics.median(ratios),
            "ratio of all": total / sum(took["no speculation"] for took in turns),
        })  # fmt: skip
    print_table(rows)
    if args.json:
        settings = {k: v for k, v in vars(args).items() if k != "json"}
        write_json(args.json, "bench_speculation_cost", dict(settings=settings, rows=rows))


if __name__ == "__main__":
    main()
