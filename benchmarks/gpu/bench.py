"""Times the kernels of one group: python -m benchmarks.gpu.bench GROUP --json FILE [--dry-run] [--budget SECONDS].

Writes after every case what is known so far, so that a run that is stopped keeps its figures. Ours and torch come
first for all cases, FlashInfer, which may compile for minutes, last.
"""

import argparse
import functools
import importlib.util
import json
import pathlib
import sys
import time

import torch

from .attention_cases import TABLES, attention_cases, table_cases
from .cases import (
    append_cases,
    compact_cases,
    copy_cases,
    dense_cases,
    linear_cases,
    merge_cases,
    propose_cases,
    verify_cases,
)
from .step_cases import step_cases
from .target import Target

GROUPS = {
    "append": append_cases,
    "copy": copy_cases,
    "compact": compact_cases,
    "merge": merge_cases,
    "verify": verify_cases,
    "propose": propose_cases,
    "step": step_cases,
    "dense": dense_cases,
    "linear": linear_cases,
    "attention": attention_cases,
}
LONG_GROUPS = {name: functools.partial(table_cases, name) for name in TABLES}  # by name only, not a part of gpu_check


def first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200]


def row_of(case, limits: dict) -> dict:
    floor = max(case.num_bytes / limits["copy_bytes_per_s"], case.flops / limits["matmul_flop_per_s"])
    return {"op": case.op, "shape": case.shape, "bytes": case.num_bytes, "flops": case.flops, "floor_us": floor * 1e6}


def time_contestants(target: Target, case, row: dict, wanted) -> None:
    """Adds {contestant: microseconds} to row["us"] and what went wrong to row["errors"]."""
    us, errors = row.setdefault("us", {}), row.setdefault("errors", {})
    try:
        count = target.num_sets(case.held_bytes or case.num_bytes)
        sets = [case.build(target) for _ in range(count)]
        row["buffer_sets"] = count
    except Exception as error:
        errors["ours"] = first_line(error)
        return
    for name in filter(wanted, sets[0]):
        try:
            us[name] = target.seconds([calls[name] for calls in sets]) * 1e6
        except Exception as error:
            errors[name] = first_line(error)
            if not target.emulated:
                torch.cuda.empty_cache()


def finish(row: dict) -> None:
    """What the table shows: rates, share of the measured limit, ratio to the best peer."""
    us = row["us"]
    if "ours" not in us:
        return
    row["GB/s"] = row["bytes"] / us["ours"] / 1e3
    row["TFLOP/s"] = row["flops"] / us["ours"] / 1e6
    row["share"] = row["floor_us"] / us["ours"]
    peers = {name: t for name, t in us.items() if not name.startswith("ours")}
    if peers:
        row["best_peer"] = min(peers, key=peers.get)
        row["ratio"] = peers[row["best_peer"]] / us["ours"]


def run(group: str, emulated: bool, path: pathlib.Path, budget_s: float) -> int:
    target, end = Target(emulated), time.monotonic() + budget_s
    limits = target.limits()
    cases = [case for case in (GROUPS | LONG_GROUPS)[group](emulated) if target.fits(case.held_bytes or case.num_bytes)]
    rows = [row_of(case, limits) for case in cases]

    def save(done: bool) -> None:
        measured = [row for row in rows if "us" in row]
        path.write_text(json.dumps({"limits": limits, "rows": measured, "complete": done}, indent=1) + "\n")

    passes = [lambda name: not name.startswith("flashinfer")]
    if not emulated and importlib.util.find_spec("flashinfer"):
        passes.append(lambda name: name.startswith("flashinfer"))
    out_of_time = False
    for wanted in passes:
        for case, row in zip(cases, rows):
            if time.monotonic() > end:
                out_of_time = True
                break
            time_contestants(target, case, row, wanted)
            finish(row)
            save(False)
    save(not out_of_time)
    if out_of_time:
        print(f"{group}: out of time after {budget_s:.0f} s")
    broken = [row for row in rows if "ours" in row.get("errors", {})]
    for row in broken:
        print(f"{row['op']} {row['shape']}: {row['errors']['ours']}")
    missing = [row for row in broken if "no CUDA kernel" in row["errors"]["ours"]]
    return 1 if len(missing) < len(broken) or out_of_time else 0


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("group", choices=[*GROUPS, *LONG_GROUPS])
    parser.add_argument("--json", type=pathlib.Path, required=True)
    parser.add_argument("--budget", type=float, default=120)
    parser.add_argument("--dry-run", action="store_true")
    args = parser.parse_args()
    sys.exit(run(args.group, args.dry_run, args.json, args.budget))
