"""What is measured of the whole attention table, and where a peer is faster: the lists of benchmarks/results/README.md.

Reads <GPU>/table_*.json below the results, and the cells that <GPU>/gpu_check.json has timed; `python -m
benchmarks.gpu.status` writes the lists.
"""

import json
import pathlib

from .attention_cases import TABLES, table_cases


def key(shape: dict) -> str:
    return json.dumps(shape, sort_keys=True)


def rows_in(path: pathlib.Path) -> list[dict]:
    """Cells of attention that a file holds: one of bench.py's, or gpu_check.py's."""
    data = json.loads(path.read_text())
    if "parts" not in data:
        return data["rows"]
    steps = data["parts"].get("bench", {}).get("steps", [])
    return [] if data["emulated"] else [row for step in steps if step["name"] == "attention" for row in step["rows"]]


def rows_of(folder: pathlib.Path, name: str) -> dict[str, tuple[str, dict]]:
    """{cell: (GPU's folder, its row)} of one table, rows with a time of ours only."""
    found = {}
    for path in sorted(folder.glob("*/gpu_check.json")) + sorted(folder.glob(f"*/{name}.json")):
        for row in rows_in(path):
            if "ours" in row.get("us", {}):
                found[key(row["shape"])] = (path.parent.name, row)
    return found


def spelled(values: list) -> str:
    return ", ".join(map(str, sorted(set(values))))


def lists(folder: pathlib.Path) -> str:
    """A line for each table, then one for each measured cell in which a peer is faster."""
    columns = ["query / KV heads", "head_dim", "cache", "deltas", "contexts", "batches", "blocks", "cells", "measured"]
    columns.append("at or above every peer")
    lines = [f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
    slower = []
    for name, (heads, dim, dtype) in TABLES.items():
        cases = table_cases(name, False)
        rows = rows_of(folder, name)
        measured = [rows[key(case.shape)] for case in cases if key(case.shape) in rows]
        behind = [(gpu, row) for gpu, row in measured if row.get("ratio", 2) < 1]
        slower += [(name, gpu, row) for gpu, row in behind]
        shapes = [case.shape for case in cases]
        line = [f"{heads} / 8", str(dim), str(dtype)[6:]]
        line += [spelled([s[k] for s in shapes]) for k in ("delta", "context", "batch")]
        line += [spelled([s.get("block", 16) for s in shapes]), str(len(cases))]
        if measured:
            compared = sum("ratio" in row for _, row in measured)
            line += [str(len(measured)), f"{compared - len(behind)} of {compared}" if compared else "no peer ran"]
        else:
            line += ["not measured"] * 2
        lines.append(f"| {' | '.join(line)} |")
    for name, gpu, row in slower:
        shape = ", ".join(f"{k} {v}" for k, v in row["shape"].items())
        lines.append(f"\n{gpu}, `{name}`, {shape}: {row['best_peer']} takes {row['ratio']:.2f} of our time.")
    return "\n".join(lines)
