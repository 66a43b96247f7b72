"""append_kv and rope_append_kv against the plain torch composition, which gathers, rotates and indexes.

python benchmarks/bench_append_kv.py [--json FILE]
"""

import argparse

import torch
from common import interleaved, print_table, write_json

import stateful_kv as skv

HEADS, KV_HEADS, DIM, BLOCK = 32, 8, 128, 16
FP8 = torch.float8_e4m3fn


def rotate_half(x: torch.Tensor) -> torch.Tensor:
    first, second = x.chunk(2, -1)
    return torch.cat((-second, first), -1)


def rms_norm(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    wide = x.float()
    return weight * (wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + 1e-6)).to(x.dtype)


def store(cache: torch.Tensor, rows: torch.Tensor, slots: torch.Tensor, scale: torch.Tensor | None) -> None:
    if scale is not None:
        rows = (rows.float() / scale).clamp(-448, 448).to(FP8)
        cache, rows = cache.view(torch.uint8), rows.view(torch.uint8)
    cache.view(-1, KV_HEADS, DIM)[slots] = rows


def measure(op: str, tokens: int, dtype: torch.dtype, cache_dtype: torch.dtype) -> dict:
    torch.manual_seed(0)
    num_blocks = tokens // BLOCK + 64
    k_cache, v_cache = torch.zeros(2, num_blocks, BLOCK, KV_HEADS, DIM).to(cache_dtype)
    fused = torch.randn(tokens, (HEADS + 2 * KV_HEADS) * DIM).to(dtype)
    parts = fused.split([HEADS * DIM, KV_HEADS * DIM, KV_HEADS * DIM], -1)
    query, key, value = (t.unflatten(-1, (-1, DIM)) for t in parts)
    slots = torch.randperm(num_blocks * BLOCK)[:tokens].sort().values
    scale = torch.tensor(0.05) if cache_dtype == FP8 else None
    if op == "append_kv":

        def ours():
            skv.ops.append_kv(k_cache, v_cache, key, value, slots, scale, scale)

        def plain():
            store(k_cache, key, slots, scale)
            store(v_cache, value, slots, scale)

    else:
        positions = torch.arange(tokens)
        angles = torch.outer(torch.arange(tokens), 1e6 ** (-torch.arange(0, DIM, 2) / DIM))
        cos_sin = torch.cat((angles.cos(), angles.sin()), -1)
        q_weight, k_weight = torch.ones(2, DIM, dtype=dtype)
        out = torch.empty(tokens, HEADS, DIM, dtype=dtype)

        def ours():
            skv.ops.rope_append_kv(
                k_cache, v_cache, query, key, value, positions, cos_sin, slots, q_norm_weight=q_weight,
                k_norm_weight=k_weight, k_scale=scale, v_scale=scale, query_out=out,
            )  # fmt: skip

        def plain():
            cos, sin = cos_sin[positions].to(dtype)[:, None].chunk(2, -1)
            cos, sin = torch.cat((cos, cos), -1), torch.cat((sin, sin), -1)
            q, k = rms_norm(query, q_weight), rms_norm(key, k_weight)
            out.copy_(q * cos + rotate_half(q) * sin)
            store(k_cache, k * cos + rotate_half(k) * sin, slots, scale)
            store(v_cache, value, slots, scale)

    times = interleaved({"ours": ours, "torch": plain})
    return {
        "op": op, "tokens": tokens, "dtype": str(dtype)[6:], "cache": str(cache_dtype)[6:],
        "us": times["ours"] * 1e6, "torch_us": times["torch"] * 1e6, "speedup": times["torch"] / times["ours"],
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json")
    args = parser.parse_args()
    rows = [
        measure(op, tokens, dtype, cache)
        for op in ("append_kv", "rope_append_kv")
        for tokens in (1, 16, 512, 4096)
        for dtype, cache in (
            (torch.float32, torch.float32),
            (torch.bfloat16, torch.bfloat16),
            (torch.float16, torch.float16),
            (torch.bfloat16, FP8),
        )
    ]
    print_table(rows)
    if args.json:
        write_json(args.json, "bench_append_kv", {"heads": HEADS, "kv_heads": KV_HEADS, "head_dim": DIM, "rows": rows})


if __name__ == "__main__":
    main()
