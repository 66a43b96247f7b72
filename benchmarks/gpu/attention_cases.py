"""delta_prefill and its schedule: deltas of all sizes over all contexts, against torch's SDPA and FlashInfer.

Blocks lie in random order. SDPA gets contiguous KV and a causal mask aligned to the bottom right; FlashInfer the same
paged cache, its plan made outside the measured time. The group `attention` has 32 query heads, 8 KV heads, head_dim
128 and blocks of 16; the groups `table_*` are the whole table, one for each model and dtype of the cache, for hours
rather than minutes. `python -m benchmarks.gpu.plot_attention FILE.json` draws them.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F

from .cases import BLOCK, DIM, FP8, HEADS, KV_HEADS, Case, int32, noise, pool
from .target import Target

DELTAS = (1, 2, 4, 8, 16, 32, 64, 128, 512, 2048)
CONTEXTS = (1024, 4096, 16384, 65536, 131072)
BATCHES = (1, 8, 64)
MOST_FLOPS = 3e13  # of one call: larger cells would take the time of all others


class Model(NamedTuple):
    heads: int = HEADS
    kv_heads: int = KV_HEADS
    head_dim: int = DIM
    block: int = BLOCK


USUAL = Model()
SLICE_DELTAS, SLICE_CONTEXTS = (1, 8, 64, 512), (4096, 65536)  # of head_dims other than 128
TABLES = {
    f"table_{heads}_{dim}_{str(dtype)[6:].split('_')[0]}": (heads, dim, dtype)
    for heads, dim in ((32, 128), (64, 128), (32, 64), (32, 192), (32, 256))
    for dtype in (torch.bfloat16, FP8)
}


def table_cases(name: str, tiny: bool) -> list[Case]:
    """Every cell of one model and cache dtype, blocks of 16 and of 128."""
    heads, dim, dtype = TABLES[name]
    models = [Model(heads, KV_HEADS, dim, block) for block in (16, 128)]
    if tiny:
        return [attention_case(2, 3, 40, dtype, model) for model in models]
    deltas, contexts = (DELTAS, CONTEXTS) if dim == 128 else (SLICE_DELTAS, SLICE_CONTEXTS)
    cells = [(b, d, c) for b in BATCHES for c in contexts for d in deltas if d <= c]
    return [attention_case(*cell, dtype, model) for model in models for cell in cells]


def attention_cases(tiny: bool) -> list[Case]:
    if tiny:
        return [attention_case(2, 3, 40, d) for d in (torch.bfloat16, FP8)] + [schedule_case(2)]
    cells = [(b, d, c) for b in BATCHES for c in CONTEXTS for d in DELTAS if d <= c]
    cases = [attention_case(*cell, torch.bfloat16) for cell in cells]
    cases += [attention_case(b, d, 16384, FP8) for b in (1, 64) for d in (1, 16, 512)]
    return [c for c in cases if c.flops <= MOST_FLOPS] + [schedule_case(b) for b in (1, 64)]


def attention_case(batch: int, delta: int, context: int, cache_dtype: torch.dtype, model: Model = USUAL) -> Case:
    """batch sequences of `context` tokens, the last `delta` of which are queried."""
    heads, kv_heads, dim, block = model
    blocks_each = -(-context // block)

    def build(target: Target):
        num_blocks = batch * blocks_each
        k_cache, v_cache = (pool(target, num_blocks, cache_dtype, kv_heads, dim, block) for _ in range(2))
        for cache in (k_cache, v_cache):
            if cache_dtype == FP8:
                cache.view(torch.uint8).random_(0, 120)
            else:
                cache.normal_()
        table = torch.randperm(num_blocks, device=target.device).int().view(batch, blocks_each)
        query = noise(target, batch * delta, heads, dim)
        out = torch.empty_like(query)
        cu_seqlens_q = torch.arange(batch + 1, dtype=torch.int32, device=target.device) * delta
        seqused_k = int32(target, [context] * batch)
        scale = torch.tensor(0.05, device=target.device) if cache_dtype == FP8 else None
        schedule = torch.empty(schedule_entries(batch, delta), dtype=torch.int32, device=target.device)
        target.ops.schedule_delta_prefill(schedule, cu_seqlens_q, seqused_k, heads, kv_heads, dim, delta)

        def ours():
            target.ops.delta_prefill(
                out, None, query, k_cache, v_cache, cu_seqlens_q, seqused_k, table, delta, dim**-0.5,
                k_scale=scale, v_scale=scale, schedule=schedule,
            )  # fmt: skip

        calls = {"ours": ours}
        if cache_dtype != FP8:
            calls["torch SDPA"] = sdpa(target, query, batch, delta, context, model)
            if not target.emulated:
                for backend in ("fa2", "fa3"):
                    calls[f"flashinfer {backend}"] = flashinfer_call(
                        backend, query, k_cache, v_cache, table, batch, delta, context, model
                    )
        return calls

    keys = batch * context * kv_heads * dim * cache_dtype.itemsize
    rows = batch * delta * heads * dim * 2
    seen = context - (delta - 1) / 2  # keys that a row sees, on average
    shape = {"batch": batch, "delta": delta, "context": context, "cache": str(cache_dtype)[6:]}
    if model != USUAL:
        shape |= {"heads": f"{heads}/{kv_heads}", "head_dim": dim, "block": block}
    flops = int(4 * batch * delta * seen * heads * dim)
    return Case("delta_prefill", shape, 2 * keys + 2 * rows, build, flops, held_bytes=4 * keys + 2 * rows)


def schedule_entries(batch: int, delta: int) -> int:
    from stateful_kv.ops import schedule_size

    return schedule_size(batch, batch * delta, HEADS, KV_HEADS, DIM, delta, 0)


def schedule_case(batch: int) -> Case:
    def build(target: Target):
        schedule = torch.empty(schedule_entries(batch, 8), dtype=torch.int32, device=target.device)
        cu_seqlens_q = torch.arange(batch + 1, dtype=torch.int32, device=target.device) * 8
        seqused_k = int32(target, [4096 + 100 * b for b in range(batch)])
        return {
            "ours": lambda: target.ops.schedule_delta_prefill(
                schedule, cu_seqlens_q, seqused_k, HEADS, KV_HEADS, DIM, 8
            )
        }

    return Case("schedule_delta_prefill", {"batch": batch}, batch * 16, build)


def sdpa(target: Target, query, batch, delta, context, model: Model):
    """Contiguous KV of its own; made at the first call, so that what is not timed takes no memory."""
    made = []

    def run():
        if not made:
            keys, values = (noise(target, batch, model.kv_heads, context, model.head_dim) for _ in range(2))
            q = query.view(batch, delta, model.heads, model.head_dim).transpose(1, 2).contiguous()
            made.extend((q, keys, values))
        q, keys, values = made
        if delta == 1:
            return F.scaled_dot_product_attention(q, keys, values, enable_gqa=True)
        from torch.nn.attention.bias import causal_lower_right

        mask = causal_lower_right(delta, context)
        return F.scaled_dot_product_attention(q, keys, values, attn_mask=mask, enable_gqa=True)

    return run


def flashinfer_call(backend, query, k_cache, v_cache, table, batch, delta, context, model: Model):
    planned = []

    def run():
        if not planned:
            import flashinfer

            workspace = torch.empty(256 << 20, dtype=torch.uint8, device=query.device)
            wrapper = flashinfer.BatchPrefillWithPagedKVCacheWrapper(workspace, "NHD", backend=backend)
            steps = torch.arange(batch + 1, dtype=torch.int32)
            last = torch.full((batch,), (context - 1) % model.block + 1, dtype=torch.int32)
            wrapper.plan(
                steps * delta, steps * table.size(1), table.flatten(), last, *model,
                causal=True, q_data_type=query.dtype, kv_data_type=k_cache.dtype,
            )  # fmt: skip
            planned.append(wrapper)
        return planned[0].run(query, (k_cache, v_cache))

    return run
