"""copy_blocks and compact_kv over all layers against indexing layer by layer in torch, and the memory bandwidth used.

python benchmarks/bench_copy_blocks.py [--json FILE]
"""

import argparse

import torch
from common import interleaved, print_table, write_json

import stateful_kv as skv

LAYERS, BLOCK, KV_HEADS, DIM = 32, 16, 8, 128


def pools(num_blocks: int, layout: str) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    shape = (num_blocks, BLOCK, KV_HEADS, DIM) if layout == "nhd" else (num_blocks, KV_HEADS, BLOCK, DIM)
    caches = [torch.zeros(shape, dtype=torch.bfloat16) for _ in range(2 * LAYERS)]
    if layout == "hnd":
        caches = [c.transpose(1, 2) for c in caches]
    return caches[:LAYERS], caches[LAYERS:]


def measure_copy(copies: int, layout: str) -> dict:
    torch.manual_seed(0)
    keys, values = pools(2 * copies + 64, layout)
    order = torch.randperm(2 * copies + 64)
    src, dst = order[:copies].int(), order[copies : 2 * copies].int()
    src_long, dst_long = src.long(), dst.long()

    def plain():
        for cache in (*keys, *values):
            cache[dst_long] = cache[src_long]

    times = interleaved({"ours": lambda: skv.ops.copy_blocks(keys, values, src, dst), "torch": plain})
    moved = 2 * copies * 2 * LAYERS * BLOCK * KV_HEADS * DIM * 2
    return row("copy_blocks", copies, layout, times, moved)


def measure_compact(sequences: int, layout: str) -> dict:
    """Four accepted tokens a sequence, moved together from scattered rows of a tree."""
    torch.manual_seed(0)
    keys, values = pools(2 * sequences, layout)
    first = torch.arange(sequences) * 2 * BLOCK
    src = (first[:, None] + torch.tensor([2, 5, 9, 14])).flatten()
    dst = (first[:, None] + torch.tensor([1, 2, 3, 4])).flatten()
    cu_moves = torch.arange(sequences + 1, dtype=torch.int32) * 4
    src_at, dst_at = ((s // BLOCK, s % BLOCK) for s in (src, dst))

    def plain():
        for cache in (*keys, *values):
            cache[dst_at] = cache[src_at]

    times = interleaved({"ours": lambda: skv.ops.compact_kv(keys, values, src, dst, cu_moves), "torch": plain})
    moved = 2 * src.numel() * 2 * LAYERS * KV_HEADS * DIM * 2
    return row("compact_kv", src.numel(), layout, times, moved)


def row(op: str, items: int, layout: str, times: dict[str, float], moved: int) -> dict:
    return {
        "op": op, "items": items, "layout": layout, "us": times["ours"] * 1e6, "torch_us": times["torch"] * 1e6,
        "speedup": times["torch"] / times["ours"], "GB_per_s": moved / times["ours"] / 1e9,
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json")
    args = parser.parse_args()
    rows = [measure_copy(copies, layout) for copies in (1, 8, 64) for layout in ("nhd", "hnd")]
    rows += [measure_compact(sequences, layout) for sequences in (1, 64) for layout in ("nhd", "hnd")]
    # What one copy of the largest case could reach: torch's own contiguous copy of as many bytes.
    a, b = torch.zeros(2, 64 * 2 * LAYERS * BLOCK * KV_HEADS * DIM, dtype=torch.bfloat16)
    bandwidth = 2 * a.nbytes / interleaved({"copy": lambda: b.copy_(a)})["copy"] / 1e9
    print_table(rows)
    print(f"contiguous copy: {bandwidth:.1f} GB/s")
    if args.json:
        facts = {"layers": LAYERS, "block_size": BLOCK, "kv_heads": KV_HEADS, "head_dim": DIM, "dtype": "bfloat16"}
        write_json(args.json, "bench_copy_blocks", {**facts, "contiguous_copy_GB_per_s": bandwidth, "rows": rows})


if __name__ == "__main__":
    main()
