"""row_linear on the layers of a 110M and a 1B model, against torch's linear, plain and with oneDNN's packed weights.

One to sixteen rows read every weight once: GB/s, beside torch's sum over as many bytes, timed in turns with them; the
layers repeat until they exceed the cache. From 64 rows on arithmetic counts: GFLOP/s. The roof of a call is the longer
of reading its weights at the bandwidth (median of those sums) and multiplying at the highest rate that any contestant
reached in the run.

    python benchmarks/bench_row_linear.py [--dtype bfloat16] [--rows 1 2 4 8 16 64 256 2048] [--json FILE]
"""

import argparse
import statistics

import torch
import torch.nn.functional as F
from common import interleaved, last_level_cache, print_table, write_json

from stateful_kv import ops

# (n, k, how many of them): qkv, output, gate and up, down, head.
MODELS = {
    "110M": [(1280, 768, 12), (768, 768, 12), (4096, 768, 12), (768, 2048, 12), (32000, 768, 1)],
    "1B": [(3072, 2048, 16), (2048, 2048, 16), (16384, 2048, 16), (2048, 8192, 16), (32000, 2048, 1)],
}
FEW_ROWS = 32  # up to here a call is bound by memory
EXCEEDS_CACHE = max(128 << 20, 2 * last_level_cache())


def onednn_packed(weights: list[torch.Tensor], rows: int) -> list[torch.Tensor] | None:
    """The weights as oneDNN wants them for that many rows; None where this processor lacks what it needs for the dtype
    (bfloat16: AVX-512)."""
    try:
        return [torch.ops.mkldnn._reorder_linear_weight(w, rows) for w in weights]
    except RuntimeError as error:
        if "needs the cpu support" not in str(error):
            raise
        return None


class Layer:
    """Copies of one shape, more than the caches hold, packed for every contestant."""

    def __init__(self, n: int, k: int, dtype: torch.dtype):
        self.nbytes = n * k * dtype.itemsize
        self.weights = [torch.randn(n, k).to(dtype) for _ in range(-(-EXCEEDS_CACHE // self.nbytes))]
        self.packed = [ops.pack_linear_weight(w) for w in self.weights]
        self.reordered = {}

    def contestants(self, x: torch.Tensor, copies: int) -> dict:
        rows, n = x.size(0), self.weights[0].size(0)
        out = torch.empty(rows, n, dtype=x.dtype)
        if rows not in self.reordered:
            self.reordered = {rows: onednn_packed(self.weights[:copies], rows)}
        onednn = self.reordered[rows]

        def ours():
            for w in self.packed[:copies]:
                torch.ops.stateful_kv.row_linear(out, x, w)

        def plain():
            for w in self.weights[:copies]:
                F.linear(x, w)

        def reordered():
            for w in onednn:
                torch.ops.mkldnn._linear_pointwise(x, w, None, "none", [], "")

        found = {"row_linear": ours, "torch": plain, "torch, oneDNN packed": reordered}
        if onednn is None:
            del found["torch, oneDNN packed"]
        return found


def measure(dtype: torch.dtype, row_counts: list[int]) -> tuple[list[dict], float]:
    """Seconds per call of every contestant, one entry per model, shape and number of rows; bytes per second."""
    found, reads = [], []
    memory = torch.ones(2 * EXCEEDS_CACHE // 8, dtype=torch.int64)
    for model, shapes in MODELS.items():
        for n, k, count in shapes:
            layer = Layer(n, k, dtype)
            for rows in row_counts:
                few = rows <= FEW_ROWS
                copies = len(layer.weights) if few else 1
                contestants = layer.contestants(torch.randn(rows, k).to(dtype), copies)
                times = interleaved(contestants | ({"read": memory.sum} if few else {}), budget_s=0.2, least=5)
                if few:
                    reads.append(memory.nbytes / times.pop("read"))
                seconds = {name: t / copies for name, t in times.items()}
                found.append(dict(model=model, n=n, k=k, count=count, rows=rows, bytes=layer.nbytes, seconds=seconds))
    return found, statistics.median(reads)


def line(what: dict, rows: int, nbytes: int, seconds: dict, bandwidth: float, flops: float, itemsize: int) -> dict:
    work = 2 * rows * nbytes / itemsize
    ours = seconds["row_linear"]
    others = {name: t for name, t in seconds.items() if name != "row_linear"}
    return {
        **what,
        "rows": rows,
        "ms": ours * 1e3,
        "GB/s": nbytes / ours / 1e9,
        "share of bandwidth": nbytes / ours / bandwidth,
        "GFLOP/s": work / ours / 1e9,
        "share of roof": max(nbytes / bandwidth, work / flops) / ours,
        **{f"{name} ms": t * 1e3 for name, t in others.items()},
        "ours / torch": ours / others["torch"],
        "ours / best other": ours / min(others.values()),
    }


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--dtype", default="bfloat16", choices=["bfloat16", "float32"])
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 2, 4, 8, 16, 64, 256, 2048])
    parser.add_argument("--json")
    args = parser.parse_args()
    dtype = getattr(torch, args.dtype)
    torch.manual_seed(0)
    with torch.inference_mode():
        found, bandwidth = measure(dtype, args.rows)
    rate = [2 * f["rows"] * f["n"] * f["k"] / t for f in found for t in f["seconds"].values()]
    flops = max(rate)
    common = dict(bandwidth=bandwidth, flops=flops, itemsize=dtype.itemsize)
    layers = [
        line({"model": f["model"], "n": f["n"], "k": f["k"]}, f["rows"], f["bytes"], f["seconds"], **common)
        for f in found
    ]
    models = []
    for model in MODELS:
        for rows in args.rows:
            mine = [f for f in found if f["model"] == model and f["rows"] == rows]
            nbytes = sum(f["bytes"] * f["count"] for f in mine)
            seconds = {c: sum(f["seconds"][c] * f["count"] for f in mine) for c in mine[0]["seconds"]}
            models.append(line({"model": model}, rows, nbytes, seconds, **common))
            one = next(m["ms"] for m in models if m["model"] == model)
            models[-1]["to the first"] = models[-1]["ms"] / one
    print_table(layers)
    print(f"\nAll linears of a model, {args.dtype}; {bandwidth / 1e9:.1f} GB/s, {flops / 1e9:.0f} GFLOP/s:")
    print_table(models)
    if args.json:
        roof = {"GB/s": bandwidth / 1e9, "GFLOP/s": flops / 1e9, "sum of MB": 2 * EXCEEDS_CACHE >> 20}
        write_json(
            args.json, "bench_row_linear", {"dtype": args.dtype, "roof": roof, "models": models, "layers": layers}
        )


if __name__ == "__main__":
    main()
