"""Which kernel was last seen right, and timed, on which GPU: python -m benchmarks.gpu.status [--check]

Writes the tables of benchmarks/results/README.md from the results under benchmarks/results/. Of gpu_check.py: a kernel
counts as seen right where every test of its op passed on the GPU, as timed where the bench part has a figure for it.
Of the whole attention table: which cells are measured (attention_cells.py).
"""

import json
import pathlib
import re
import sys

from . import attention_cells

ROOT = pathlib.Path(__file__).resolve().parents[2]
RESULTS = ROOT / "benchmarks" / "results"
CALLED_BY = {"schedule_delta_prefill": "delta_prefill", "pack_linear_weight": "row_linear"}  # tested with another op


def registered_ops() -> list[str]:
    """The ops of csrc/torch/schemas.cpp, in its order."""
    return re.findall(r'"(\w+)\(Tensor\(a!\)', (ROOT / "csrc" / "torch" / "schemas.cpp").read_text())


def kernels() -> dict[str, list[str]]:
    """{op: names of its __global__ functions}; a kernel belongs to the op with the longest name within its own, or
    within that of its file."""
    ops = registered_ops()
    found: dict[str, list[str]] = {op: [] for op in ops}
    for path in sorted((ROOT / "csrc" / "cuda").glob("*.cu*")):
        for name in re.findall(
            r"__global__[^;{]*?\b(\w+)\(", re.sub(r"__launch_bounds__\([^)]*\)", "", path.read_text())
        ):
            owner = max((op for op in ops if op in name), key=len, default=None)
            owner = owner or max((op for op in ops if op in path.stem), key=len, default=None)
            if owner is None:
                raise ValueError(f"{path.name}: {name} carries the name of no op, and neither does its file")
            if name not in found[owner]:
                found[owner].append(name)
    return found


def results(folder: pathlib.Path) -> list[dict]:
    """What gpu_check.py wrote on real GPUs."""
    found = [json.loads(p.read_text()) for p in sorted(folder.glob("*/gpu_check.json"))]
    return [result for result in found if not result["emulated"]]


def seen(result: dict, part: str) -> str:
    entry = result["parts"][part]
    return f"{result['machine']['gpu']}, commit `{entry['commit']}`, {entry['date']}"


def seen_right(op: str, found: list[dict]) -> str:
    op = CALLED_BY.get(op, op)
    for result in sorted(found, key=lambda r: r["parts"].get("ops", {}).get("date", ""), reverse=True):
        steps = [s for s in result["parts"].get("ops", {}).get("steps", []) if s["name"] == op]
        if steps and all(s["status"] == "ok" for s in steps):
            return seen(result, "ops")
    return "not yet"


def seen_timed(op: str, found: list[dict]) -> str:
    for result in sorted(found, key=lambda r: r["parts"].get("bench", {}).get("date", ""), reverse=True):
        steps = result["parts"].get("bench", {}).get("steps", [])
        if any(row["op"] == op and "ours" in row["us"] for step in steps for row in step.get("rows", [])):
            return seen(result, "bench")
    return "not yet"


def table(folder: pathlib.Path = RESULTS) -> str:
    lines = ["| op | CUDA kernels | right on a GPU | timed on a GPU |", "|---|---|---|---|"]
    found = results(folder)
    for op, names in kernels().items():
        listed = ", ".join(f"`{name}`" for name in names) or "none yet"
        lines.append(f"| {op} | {listed} | {seen_right(op, found)} | {seen_timed(op, found)} |")
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
    sys.exit(main("--check" in sys.argv))
