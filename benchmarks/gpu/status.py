"""Which kernel was last seen right, and timed, on which GPU: python -m benchmarks.gpu.status [--check]

Writes the tables of benchmarks/results/README.md from the results under benchmarks/results/. Of gpu_check.py: a kernel
counts as seen right where every test of its op passed on the GPU, as timed where the bench part has a figure for its
op, if there was such a kernel then; the table says whether its code is still the same. Of the whole attention table:
which cells are measured (attention_cells.py).
"""

import argparse
import json
import pathlib
import sys

from . import attention_cells
from .kernels import ROOT, digests, kernels

RESULTS = ROOT / "benchmarks" / "results"
CALLED_BY = {"schedule_delta_prefill": "delta_prefill", "pack_linear_weight": "row_linear"}  # tested with another op


def results(folder: pathlib.Path) -> list[dict]:
    """What gpu_check.py wrote on real GPUs."""
    found = [json.loads(p.read_text()) for p in sorted(folder.glob("*/gpu_check.json"))]
    return [result for result in found if not result["emulated"]]


def seen(result: dict, part: str, kernel: str, digest: str) -> str:
    entry = result["parts"][part]
    changed = "" if entry["kernels"][kernel] == digest else ", changed since"
    return f"{result['machine']['gpu']}, commit `{entry['commit']}`, {entry['date']}{changed}"


def newest(found: list[dict], part: str, kernel: str) -> list[dict]:
    """The results with this part that know this kernel, the newest first."""
    known = [r for r in found if kernel in r["parts"].get(part, {}).get("kernels", {})]
    return sorted(known, key=lambda r: r["parts"][part]["date"], reverse=True)


def seen_right(op: str, kernel: str, digest: str, found: list[dict]) -> str:
    op = CALLED_BY.get(op, op)
    for result in newest(found, "ops", kernel):
        steps = [s for s in result["parts"]["ops"]["steps"] if s["name"] == op]
        if steps and all(s["status"] == "ok" for s in steps):
            return seen(result, "ops", kernel, digest)
    return "not yet"


def seen_timed(op: str, kernel: str, digest: str, found: list[dict]) -> str:
    for result in newest(found, "bench", kernel):
        rows = [row for step in result["parts"]["bench"]["steps"] for row in step.get("rows", [])]
        if any(row["op"] == op and "ours" in row["us"] for row in rows):
            return seen(result, "bench", kernel, digest)
    return "not yet"


def table(folder: pathlib.Path = RESULTS) -> str:
    """A line for each op, or for its kernels with a different history."""
    lines = ["| op | CUDA kernels | right on a GPU | timed on a GPU |", "|---|---|---|---|"]
    found, digest = results(folder), digests()
    for op, names in kernels().items():
        alike: dict[tuple[str, str], list[str]] = {}
        for name in names:
            history = seen_right(op, name, digest[name], found), seen_timed(op, name, digest[name], found)
            alike.setdefault(history, []).append(f"`{name}`")
        for (right, timed), listed in (alike or {("not yet", "not yet"): ["none yet"]}).items():
            lines.append(f"| {op} | {', '.join(listed)} | {right} | {timed} |")
    return "\n".join(lines)


def main(check: bool) -> int:
    path = RESULTS / "README.md"
    text = path.read_text()
    new = text
    for name, content in (("kernels", table()), ("attention", attention_cells.lists(RESULTS))):
        begin, end = f"<!-- {name} -->", f"<!-- /{name} -->"
        head, rest = new.split(begin)
        new = f"{head}{begin}\n{content}\n{end}{rest.split(end)[1]}"
    if check:
        print("up to date" if new == text else "out of date: run `python -m benchmarks.gpu.status`")
        return int(new != text)
    path.write_text(new)
    return 0


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="only say whether the tables are up to date")
    sys.exit(main(parser.parse_args().check))
