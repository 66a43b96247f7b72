"""Where something else is faster than this project, collected from every result file: it stands first in what is
published. A peer's time to ours, so below 1 it is faster."""

import argparse
import json
import pathlib
import sys
from collections.abc import Iterator
from dataclasses import dataclass

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))
from benchmarks.proof import tables
from benchmarks.proof.contestants import CONTESTANTS
from benchmarks.workloads.files import NAMES

RESULTS = pathlib.Path(__file__).resolve().parent / "results"
CPU_FOLDERS = ("cpu", "cpu_amx")


@dataclass(frozen=True)
class Loss:
    """Cells of one kind in which something else is faster. least: the smallest of its times to ours."""

    what: str
    beside: str
    source: str
    cells: int
    of: int
    least: float
    each: tuple[str, ...] = ()


def load(name: str) -> dict:
    return json.loads((RESULTS / f"{name}.json").read_text())


def proofs(folder: str) -> Iterator[tuple[str, dict]]:
    """Result files of the proof, in the order of the workloads."""
    found = [(f"{folder}/{path.stem}", load(f"{folder}/{path.stem}")) for path in (RESULTS / folder).glob("proof_*")]
    yield from sorted(
        (f for f in found if "workload" in f[1]),
        key=lambda f: (NAMES.index(f[1]["workload"]), f[1]["settings"]["dtype"]),
    )


def _loss(what: str, beside: str, source: str, ratios: list[tuple[float, str]]) -> list[Loss]:
    """ratios: of every cell the peer's time to ours, and which cell it is."""
    lost = sorted((ratio, cell) for ratio, cell in ratios if ratio < 1.0)
    if not lost:
        return []
    each = tuple(f"{cell}: {ratio:.2f}" for ratio, cell in lost)
    return [Loss(what, beside, source, len(lost), len(ratios), lost[0][0], each)]


def _workloads() -> list[Loss]:
    found = []
    for folder in CPU_FOLDERS:
        for source, result in proofs(folder):
            comparisons = tables.comparisons(result)
            for name in dict.fromkeys(c.peer for c in comparisons):
                ratios = [(c.ratio, f"{tables.WHAT[c.what]}, to {c.ours_title}") for c in comparisons if c.peer == name]
                title = CONTESTANTS[name].title + tables.condition(result, name)
                what = f"{result['title']}, {result['settings']['model']}, {result['settings']['dtype']}"
                found += _loss(what, title, source, ratios)
    return found


def _attention() -> list[Loss]:
    found = []
    for folder in CPU_FOLDERS:
        source = f"{folder}/bench_delta_prefill"
        rows = load(source)["deltas"]
        for key, beside in (
            ("ratio_masked", "torch SDPA with the mask that makes its answer right"),
            ("ratio", "torch SDPA without any mask, which is less work and another answer"),
        ):
            cells = [
                (r[key], f"{r['dtype']}, head_dim {r['head_dim']}, {r['delta']} on {r['context']:,}") for r in rows
            ]
            found += _loss("`delta_prefill` on a CPU", beside, source, cells)
    return found


def _linears() -> list[Loss]:
    found = []
    for dtype in ("bfloat16", "float32"):
        source = f"cpu/bench_row_linear_{dtype}"
        cells = [(1 / r["ours / best other"], f"{r['model']}, {r['rows']} rows") for r in load(source)["models"]]
        found += _loss(f"`row_linear` on a CPU, {dtype}", "the better of torch and oneDNN packed", source, cells)
    return found


def _small_ops() -> list[Loss]:
    found = []
    for op in ("append_kv", "copy_blocks", "merge_states", "verify_drafts", "propose_drafts"):
        source = f"cpu/bench_{op}"
        cells = [
            (r["speedup"], ", ".join(f"{k} {v}" for k, v in r.items() if not isinstance(v, float)))
            for r in load(source)["rows"]
        ]
        found += _loss(f"`{op}` on a CPU", "torch", source, cells)
    return found


def _prefix_caches() -> list[Loss]:
    result, cells = load("cpu/bench_runtime"), {}
    for ours in result["tree"]:
        for peer in result["peers"]:
            if (peer["tokens"], peer["shape"]) != (ours["tokens"], ours["shape"]):
                continue
            for key in ("match us", "insert 300 us"):
                if peer[key] is not None:
                    cell = f"{key.removesuffix(' us')}, {ours['tokens']:,} tokens, {ours['shape']}"
                    cells.setdefault(peer["engine"], []).append((peer[key] / ours[key], cell))
    return [loss for engine, each in cells.items() for loss in _loss("prefix cache", engine, "cpu/bench_runtime", each)]


def _engines() -> list[Loss]:
    found = []
    for folder in CPU_FOLDERS:
        for dtype in ("bfloat16", "float32"):
            source = f"{folder}/bench_turns_{dtype}"
            rows = [r for r in load(source)["summary"] if not r["contestant"].startswith("ours")]
            ours = next(r for r in load(source)["summary"] if r["contestant"] == "ours")
            for r in rows:
                ratio = r["median turn ms"] / ours["median turn ms"]
                found += _loss(f"a growing conversation, {dtype}", r["contestant"], source, [(ratio, "median turn")])
    decode = load("cpu/bench_decode")
    for r in decode["decode"]:
        cells = [(1 / r["ours / it"], "ms per token")]
        found += _loss("decoding on a CPU", r["contestant"], "cpu/bench_decode", cells)
    cells = [
        (1 / r["ours / vllm"], f"{r['what']}, {r['agents']}")
        for r in load("cpu/vllm_plugin")["pieces"]["speed"]["found"]["table"]
    ]
    return found + _loss("vLLM with our attention", "vLLM with its own", "cpu/vllm_plugin", cells)


def _gpu() -> list[Loss]:
    found = []
    for path in sorted(RESULTS.glob("*/gpu_check.json")):
        result = json.loads(path.read_text())
        source = f"{path.parent.name}/gpu_check"
        if result["emulated"]:
            continue
        cells: dict[tuple[str, str], list] = {}
        for step in result["parts"]["bench"]["steps"]:
            for row in step.get("rows", []):
                if "ratio" in row:
                    shape = ", ".join(f"{k} {v}" for k, v in row["shape"].items())
                    cells.setdefault((row["op"], row["best_peer"]), []).append((row["ratio"], shape))
        for (op, peer), each in cells.items():
            found += _loss(f"`{op}` on {result['machine']['gpu']}", peer, source, each)
    return found


def all_of_them() -> list[Loss]:
    return [*_workloads(), *_gpu(), *_attention(), *_linears(), *_small_ops(), *_prefix_caches(), *_engines()]


def rows(losses: list[Loss]) -> list[list[str]]:
    """Below the heads HEADS."""
    return [[x.what, x.beside, f"{x.cells} of {x.of}", f"{x.least:.2f}", f"`{x.source}.json`"] for x in losses]


HEADS = ["what", "what is faster", "in how many cells", "its time to ours, at the least", "file"]


if __name__ == "__main__":
    argparse.ArgumentParser(description=__doc__).parse_args()
    print(*(" | ".join(row) for row in [HEADS, *rows(all_of_them())]), sep="\n")
