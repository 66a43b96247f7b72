"""delta_prefill: memory bandwidth of one-token decode, and deltas against torch SDPA on contiguous KV.

Decode: GB/s of KV read, for one sequence and for eight of 4k tokens, as a share of what the fastest of several readers
of large arrays reaches, taken in turns with it, for splits as the library chooses and as an engine that is
deterministic asks for them (num_splits = -1). Before each call a large array is read, so KV comes from memory, then a
sequence of a few other tokens is attended to: in a decode loop, too, the same code ran a layer ago. Deltas: medians of
interleaved calls; torch gets contiguous KV and its faster form (enable_gqa or KV heads expanded beforehand) without any
mask, which is less work than the causal answer asks for, and once more with the mask that makes its answer right. A
ratio above 1 means delta_prefill is faster.

    python benchmarks/bench_delta_prefill.py [--quick] [--json FILE] [--only decode|deltas]
"""

import argparse
import math

import torch
from common import interleaved, print_table, readers, write_json

from stateful_kv import ops

CONTEXTS = (1024, 4096, 16384)
DELTAS = (1, 8, 16, 64, 128, 512, 2048)


def make_call(
    new: int, length: int, heads: int, kv_heads: int, dim: int, dtype: torch.dtype, block_size: int, batch: int = 1,
    cache_dtype: torch.dtype | None = None,
):  # fmt: skip
    """`batch` sequences on permuted blocks: (the call, query, the first one's contiguous keys and values
    [1, kv_heads, length, dim])."""
    num_blocks = math.ceil(length / block_size)
    table = torch.randperm(batch * num_blocks, dtype=torch.int32).view(batch, num_blocks)
    k_cache, v_cache = (
        torch.randn(batch * num_blocks, block_size, kv_heads, dim).to(cache_dtype or dtype) for _ in range(2)
    )
    query = torch.randn(batch * new, heads, dim).to(dtype)
    out = torch.empty_like(query)
    cu_seqlens_q = torch.arange(batch + 1, dtype=torch.int32) * new
    seqused_k = torch.full((batch,), length, dtype=torch.int32)

    def run(num_splits=0):
        ops.delta_prefill(query, k_cache, v_cache, cu_seqlens_q, seqused_k, table, new, num_splits=num_splits, out=out)

    keys, values = (
        c[table[0].long()].flatten(0, 1)[:length].transpose(0, 1)[None].contiguous() for c in (k_cache, v_cache)
    )
    return run, query, keys, values


def bench_decode(contexts, megabytes: int = 512) -> dict:
    """Medians; each cell beside the fastest reader, since neighbours of the machine change what memory gives."""
    read = readers(megabytes)
    rates = {name: megabytes * 2**20 / seconds / 1e9 for name, seconds in interleaved(read, budget_s=3).items()}
    fastest = max(rates, key=rates.get)
    rows = []
    for dtype in (torch.bfloat16, torch.float32, torch.float16, torch.float8_e4m3fn):
        query_dtype = torch.bfloat16 if dtype.itemsize == 1 else dtype
        few, *_ = make_call(1, 64, 8, 2, 64, query_dtype, 16, cache_dtype=dtype)
        for heads, kv_heads, dim in ((32, 8, 128), (16, 2, 64), (8, 8, 128)):
            for batch, context in (*((1, context) for context in contexts), (8, 4096)):
                for block_size in (16, 128):
                    run, *_ = make_call(1, context, heads, kv_heads, dim, query_dtype, block_size, batch, dtype)
                    calls = {"ours": run, "invariant": lambda run=run: run(-1), "read": read[fastest]}
                    median = interleaved(calls, budget_s=0.3, before=lambda few=few: (read[fastest](), few()))
                    gigabytes = 2 * batch * context * kv_heads * dim * dtype.itemsize / 1e9
                    rate, invariant = gigabytes / median["ours"], gigabytes / median["invariant"]
                    bandwidth = megabytes * 2**20 / median["read"] / 1e9
                    rows.append({
                        "dtype": str(dtype)[6:], "heads": heads, "kv_heads": kv_heads, "head_dim": dim,
                        "batch": batch, "context": context, "block_size": block_size,
                        "us": median["ours"] * 1e6, "GB/s": rate, "read_GB/s": bandwidth, "share": rate / bandwidth,
                        "invariant_us": median["invariant"] * 1e6, "invariant_share": invariant / bandwidth,
                    })  # fmt: skip
    return {"readers_GB/s": rates, "reader": fastest, "decode": rows}


def bench_deltas(contexts, deltas, dims, block_sizes, heads=8, kv_heads=2) -> list[dict]:
    sdpa = torch.nn.functional.scaled_dot_product_attention
    rows = []
    for dtype in (torch.float32, torch.bfloat16):
        for dim in dims:
            for context in contexts:
                for new in deltas:
                    length = context + new
                    calls = {}
                    for block_size in block_sizes:
                        calls[f"ours_{block_size}"], query, keys, values = make_call(
                            new, length, heads, kv_heads, dim, dtype, block_size
                        )
                    calls["invariant"] = lambda run=calls[f"ours_{block_sizes[0]}"]: run(-1)
                    q = query.transpose(0, 1)[None].contiguous()
                    wide = [t.repeat_interleave(heads // kv_heads, 1) for t in (keys, values)]
                    mask = torch.full((new, length), -math.inf).triu(context + 1).to(dtype)
                    calls["gqa"] = lambda q=q, k=keys, v=values: sdpa(q, k, v, enable_gqa=True)
                    calls["expanded"] = lambda q=q, k=wide[0], v=wide[1]: sdpa(q, k, v)
                    calls["masked"] = lambda q=q, k=keys, v=values, m=mask: sdpa(q, k, v, attn_mask=m, enable_gqa=True)
                    median = interleaved(calls, budget_s=0.1, least=3)
                    torch_s = min(median["gqa"], median["expanded"])
                    row = {"dtype": str(dtype)[6:], "head_dim": dim, "context": context, "delta": new}
                    for block_size in block_sizes:
                        row[f"ms_{block_size}"] = median[f"ours_{block_size}"] * 1e3
                    row["invariant_ms"] = median["invariant"] * 1e3
                    row |= {"torch_ms": torch_s * 1e3, "torch_masked_ms": median["masked"] * 1e3}
                    slowest = max(median[f"ours_{block_size}"] for block_size in block_sizes)
                    row["invariant_ratio"] = torch_s / median["invariant"]
                    row |= {"ratio": torch_s / slowest, "ratio_masked": median["masked"] / slowest}
                    row["GFLOP/s"] = 4 * heads * dim * (new * context + new * (new + 1) / 2) / slowest / 1e9
                    rows.append(row)
    return rows


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a few cells")
    parser.add_argument("--only", choices=("decode", "deltas"))
    parser.add_argument("--json", metavar="FILE")
    args = parser.parse_args()
    torch.manual_seed(0)
    results = {}
    if args.only != "deltas":
        results |= bench_decode((16384,) if args.quick else CONTEXTS)
        print(f"GB/s read by {torch.get_num_threads()} threads: {results['readers_GB/s']}")
        print_table(results["decode"])
    if args.only != "decode":
        quick = args.quick
        results["deltas"] = bench_deltas(
            (1024, 4096) if quick else CONTEXTS, (1, 64, 512) if quick else DELTAS, (64, 128), (16, 128)
        )
        print_table(results["deltas"])
    if args.json:
        write_json(args.json, "delta_prefill", results)


if __name__ == "__main__":
    main()
