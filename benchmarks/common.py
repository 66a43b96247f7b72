"""What all benchmarks share: medians after warm-up, interleaved contestants, the machine's facts, tables, JSON."""

import datetime
import json
import os
import pathlib
import platform
import statistics
import subprocess
import time
from collections.abc import Callable

import torch

from stateful_kv import ops

ROOT = pathlib.Path(__file__).resolve().parent.parent


def commit() -> str:
    """The commit measured, with "+" when tracked files differ from it."""
    git = ["git", "-C", str(ROOT)]
    try:
        head = subprocess.check_output([*git, "rev-parse", "--short=12", "HEAD"], text=True).strip()
        dirty = subprocess.check_output([*git, "status", "--porcelain", "--untracked-files=no"], text=True).strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return head + ("+" if dirty else "")


def processor() -> str:
    for line in pathlib.Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.processor()


def machine() -> dict:
    """Where a figure was measured."""
    facts = {
        "date": datetime.date.today().isoformat(),
        "commit": commit(),
        "processor": processor(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "python": platform.python_version(),
    }
    if torch.cuda.is_available():
        facts["gpu"] = torch.cuda.get_device_name()
    return facts


def run_linears(model, buffers) -> None:
    """All matrix products of a step with the rows of `buffers`, and nothing else."""
    b = buffers
    for layer in model.layers:
        layer.qkv_linear(b.normed, b.qkv)
        layer.o_linear(b.attention_rows, b.normed)
        layer.gate_up_linear(b.normed, b.gate_up)
        layer.down_linear(b.activated, b.normed)
    model.logits(b.normed)


def interleaved(
    contestants: dict[str, Callable[[], object]],
    budget_s: float = 0.4,
    least: int = 5,
    before: Callable[[], object] = lambda: None,
) -> dict[str, float]:
    """Median seconds of each contestant, called in turns so that a slow moment of the machine meets all of them.

    before: called before each of them, and not timed.
    """
    for run in contestants.values():
        run()
    begin = time.perf_counter()
    for run in contestants.values():
        before()
        run()
    once = time.perf_counter() - begin
    times = {name: [] for name in contestants}
    for _ in range(max(least, min(200, int(budget_s * len(contestants) / max(once, 1e-9))))):
        for name, run in contestants.items():
            before()
            begin = time.perf_counter()
            run()
            times[name].append(time.perf_counter() - begin)
    return {name: statistics.median(t) for name, t in times.items()}


def last_level_cache() -> int:
    """Bytes of the largest cache that this machine shows, 0 where it shows none."""
    sizes = [p.read_text().strip() for p in pathlib.Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size")]
    return max((int(size[:-1]) * {"K": 1 << 10, "M": 1 << 20}[size[-1]] for size in sizes), default=0)


def readers(megabytes: int = 512) -> dict[str, Callable[[], object]]:
    """Calls that each read `megabytes` of memory with all threads and do little else.

    torch's sum and maximum, and row_linear of one row, whose loop over packed weights only loads and multiplies.
    """
    data = torch.ones(megabytes * (1 << 20) // 4)
    k = 4096
    weight = ops.pack_linear_weight(torch.zeros(data.nbytes // 2 // k, k, dtype=torch.bfloat16))
    x = torch.ones(1, k, dtype=torch.bfloat16)
    out = ops.row_linear(x, weight)
    return {"sum": data.sum, "max": data.max, "row_linear": lambda: ops.row_linear(x, weight, out=out)}


def print_table(rows: list[dict]) -> None:
    """Rows of the same keys, aligned; floats with four significant digits."""
    if not rows:
        return
    text = [[f"{v:.4g}" if isinstance(v, float) else str(v) for v in row.values()] for row in rows]
    heads = list(rows[0])
    widths = [max(len(head), *(len(line[i]) for line in text)) for i, head in enumerate(heads)]
    print("  ".join(head.rjust(w) for head, w in zip(heads, widths)))
    for line in text:
        print("  ".join(cell.rjust(w) for cell, w in zip(line, widths)))


def write_json(path: str | os.PathLike, benchmark: str, results: dict) -> None:
    """A result file: which benchmark, on what machine, at which commit, and what it measured."""
    path = pathlib.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"benchmark": benchmark, "machine": machine(), **results}, indent=1) + "\n")
    print(f"wrote {path}")
