"""One small call of every op, for compute-sanitizer to watch: python -m benchmarks.gpu.small_calls [--dry-run] [OP...]

The calls are those of tests/op_calls.py, with a plain and, where the op takes one, an fp8 cache, attention also with
several splits and without a split, row_linear with the rows of every tiling, fused_row_linear also without its norm.
Results are only waited for: whether they
are right is for the op tests.
"""

import argparse
import inspect
import sys

import torch

from .target import ROOT, Target

sys.path.insert(0, str(ROOT / "tests"))
from op_calls import CALLS, on_device

SPLITS = (0, 1, 4, -1)
ROWS = (5, 40, 200)


def calls_of(op: str) -> list[dict]:
    """Arguments of the op's calls, on the CPU."""
    make = CALLS[op]
    calls = [make()]
    if inspect.signature(make).parameters:
        calls.append(make(torch.bfloat16))
    if op == "delta_prefill":
        calls = [call | {"num_splits": n} for call in calls for n in SPLITS]
    if op == "row_linear":
        x = calls[0]["x"]
        some = [x.repeat(-(-n // len(x)), 1)[:n] for n in ROWS]
        calls = [
            call | {"x": x.to(call["x"]), "out": x.new_zeros(len(x), 40).to(call["x"])} for x in some for call in calls
        ]
    if op == "fused_row_linear":
        adds = {"norm_weight": None, "silu_and_mul": False}
        calls += [call | adds | {"out": call["bias"].repeat(len(call["x"]), 1)} for call in calls]
    return calls


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("ops", nargs="*")
    parser.add_argument("--dry-run", action="store_true")
    args = parser.parse_args()
    target = Target(args.dry_run)
    wrong = 0
    for op in args.ops or CALLS:
        torch.manual_seed(0)
        try:
            calls = calls_of(op)
            for call in calls:
                getattr(target.ops, op)(**on_device(call, target.device))
            if not args.dry_run:
                torch.cuda.synchronize()
            print(f"ok {op}: {len(calls)} calls")
        except Exception as error:
            known = "no CUDA kernel" in str(error)
            wrong += not known
            print(f"{'skipped' if known else 'WRONG'} {op}: {str(error).splitlines()[0]}")
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main())
