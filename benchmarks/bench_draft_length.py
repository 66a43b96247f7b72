"""Draft lengths chosen by cost and acceptance, against none and all: tokens per second over batch and acceptance.

The device is simulated, so that acceptance can be set: a step takes what its rows cost by the committed measurements of
a model of 112M parameters (its linears from bench_row_linear, the rest of a step from bench_decode), and each draft is
right with the given probability. The runtime and its controller are the real ones. "none" and "all" are exact
expectations; the controller's rate is the mean over many steps, after those in which it learns what rows cost.

    python benchmarks/bench_draft_length.py [--json FILE]
"""

import argparse
import json
import pathlib
import sys

import numpy as np
from common import ROOT, print_table, write_json

sys.path.insert(0, str(ROOT / "tests"))
from draft_simulation import Simulation

NUM_DRAFTS = 8
WARM_UP, STEPS = 60, 1000  # of one simulation, whose conversations then are full
SEQ_STEPS = 24_000  # of each cell


def measured_cost(results: pathlib.Path, dtype: str) -> dict[int, float]:
    """Rows -> seconds of a step, at the numbers of rows that were measured."""
    linears = json.loads((results / f"bench_row_linear_{dtype}.json").read_text())["models"]
    steps = json.loads((results / "bench_decode.json").read_text())["steps"]
    rows = [step["rows"] for step in steps]
    slope, base = np.polyfit(rows, [step["rest ms"] for step in steps], 1)
    return {r["rows"]: (r["ms"] + base + slope * r["rows"]) / 1e3 for r in linears if r["model"] == "110M"}


def measure(num_seqs: int, acceptance: float, cost) -> dict:
    tokens = sum(acceptance**i for i in range(NUM_DRAFTS + 1))
    none, full = num_seqs / cost(num_seqs), num_seqs * tokens / cost(num_seqs * (NUM_DRAFTS + 1))
    seconds = given = 0.0
    steps = min(STEPS, SEQ_STEPS // num_seqs)
    for seed in range(max(1, SEQ_STEPS // (num_seqs * steps))):
        simulation = Simulation(num_seqs, NUM_DRAFTS, cost, lambda i: acceptance, seed)
        simulation.tokens_per_second(WARM_UP, True)
        for _ in range(steps):
            more = simulation.runtime_step(True)
            seconds, given = seconds + more[0], given + more[1]
    chosen = given / seconds
    return {
        "sequences": num_seqs,
        "acceptance": acceptance,
        "none tokens/s": none,
        "all tokens/s": full,
        "chosen tokens/s": chosen,
        "chosen / none": chosen / none,
        "chosen / the better": chosen / max(none, full),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 4, 16, 64])
    parser.add_argument("--acceptance", type=float, nargs="+", default=[0.0, 0.2, 0.4, 0.6, 0.8, 0.95])
    parser.add_argument("--dtype", default="bfloat16", choices=["bfloat16", "float32"])
    parser.add_argument("--json", type=pathlib.Path)
    args = parser.parse_args()
    table = measured_cost(ROOT / "benchmarks" / "results" / "cpu", args.dtype)

    def cost(rows: int) -> float:
        return float(np.interp(rows, list(table), list(table.values())))

    rows = [measure(n, p, cost) for n in args.batch for p in args.acceptance]
    print_table(rows)
    print(f"least against the better of none and all: {min(r['chosen / the better'] for r in rows):.3f}")
    if args.json:
        settings = {k: v for k, v in vars(args).items() if k != "json"}
        costs = [{"rows": n, "step ms": 1e3 * s} for n, s in table.items()]
        write_json(args.json, "bench_draft_length", dict(settings=settings, costs=costs, rows=rows))


if __name__ == "__main__":
    main()
