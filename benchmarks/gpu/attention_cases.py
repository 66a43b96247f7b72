"""delta_prefill and its schedule: deltas of all sizes over all contexts, against torch's SDPA and FlashInfer.

32 query heads, 8 KV heads, head_dim 128, blocks of 16 in random order, bf16 or fp8 cache. SDPA gets contiguous KV and
a causal mask aligned to the bottom right; FlashInfer the same paged cache, its plan made outside the measured time.
"""

import torch
import torch.nn.functional as F

from .cases import BLOCK, DIM, FP8, HEADS, KV_HEADS, Case, int32, noise, pool
from .target import Target

DELTAS = (1, 2, 4, 8, 16, 32, 64, 128, 512, 2048)
CONTEXTS = (1024, 4096, 16384, 65536, 131072)
BATCHES = (1, 8, 64)
MOST_FLOPS = 3e13  # of one call: larger cells would take the time of all others


def attention_cases(tiny: bool) -> list[Case]:
    if tiny:
        return [attention_case(2, 3, 40, d) for d in (torch.bfloat16, FP8)] + [schedule_case(2)]
    cells = [(b, d, c) for b in BATCHES for c in CONTEXTS for d in DELTAS if d <= c]
    cases = [attention_case(*cell, torch.bfloat16) for cell in cells]
    cases += [attention_case(b, d, 16384, FP8) for b in (1, 64) for d in (1, 16, 512)]
    return [c for c in cases if c.flops <= MOST_FLOPS] + [schedule_case(b) for b in (1, 64)]


def attention_case(batch: int, delta: int, context: int, cache_dtype: torch.dtype) -> Case:
    """batch sequences of `context` tokens, the last `delta` of which are queried."""
    blocks_each = -(-context // BLOCK)

    def build(target: Target):
        num_blocks = batch * blocks_each
        k_cache, v_cache = (pool(target, num_blocks, cache_dtype) for _ in range(2))
        for cache in (k_cache, v_cache):
            if cache_dtype == FP8:
                cache.view(torch.uint8).random_(0, 120)
            else:
                cache.normal_()
        table = torch.randperm(num_blocks, device=target.device).int().view(batch, blocks_each)
        query = noise(target, batch * delta, HEADS, DIM)
        out = torch.empty_like(query)
        cu_seqlens_q = torch.arange(batch + 1, dtype=torch.int32, device=target.device) * delta
        seqused_k = int32(target, [context] * batch)
        scale = torch.tensor(0.05, device=target.device) if cache_dtype == FP8 else None
        schedule = torch.empty(schedule_entries(batch, delta), dtype=torch.int32, device=target.device)
        target.ops.schedule_delta_prefill(schedule, cu_seqlens_q, seqused_k, HEADS, KV_HEADS, DIM, delta)

        def ours():
            target.ops.delta_prefill(
                out, None, query, k_cache, v_cache, cu_seqlens_q, seqused_k, table, delta, DIM**-0.5,
                k_scale=scale, v_scale=scale, schedule=schedule,
            )  # fmt: skip

        calls = {"ours": ours}
        if cache_dtype != FP8:
            calls["torch SDPA"] = sdpa(target, query, batch, delta, context)
            if not target.emulated:
                for backend in ("fa2", "fa3"):
                    calls[f"flashinfer {backend}"] = flashinfer_call(
                        backend, query, k_cache, v_cache, table, batch, delta, context
                    )
        return calls

    keys = batch * context * KV_HEADS * DIM * cache_dtype.itemsize
    rows = batch * delta * HEADS * DIM * 2
    seen = context - (delta - 1) / 2  # keys that a row sees, on average
    shape = {"batch": batch, "delta": delta, "context": context, "cache": str(cache_dtype)[6:]}
    flops = int(4 * batch * delta * seen * HEADS * DIM)
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


def sdpa(target: Target, query, batch, delta, context):
    """Contiguous KV of its own; made at the first call, so that what is not timed takes no memory."""
    made = []

    def run():
        if not made:
            keys, values = (noise(target, batch, KV_HEADS, context, DIM) for _ in range(2))
            q = query.view(batch, delta, HEADS, DIM).transpose(1, 2).contiguous()
            made.extend((q, keys, values))
        q, keys, values = made
        if delta == 1:
            return F.scaled_dot_product_attention(q, keys, values, enable_gqa=True)
        from torch.nn.attention.bias import causal_lower_right

        mask = causal_lower_right(delta, context)
        return F.scaled_dot_product_attention(q, keys, values, attn_mask=mask, enable_gqa=True)

    return run


def flashinfer_call(backend, query, k_cache, v_cache, table, batch, delta, context):
    planned = []

    def run():
        if not planned:
            import flashinfer

            workspace = torch.empty(256 << 20, dtype=torch.uint8, device=query.device)
            wrapper = flashinfer.BatchPrefillWithPagedKVCacheWrapper(workspace, "NHD", backend=backend)
            steps = torch.arange(batch + 1, dtype=torch.int32)
            last = torch.full((batch,), (context - 1) % BLOCK + 1, dtype=torch.int32)
            wrapper.plan(
                steps * delta, steps * table.size(1), table.flatten(), last, HEADS, KV_HEADS, DIM, BLOCK,
                causal=True, q_data_type=query.dtype, kv_data_type=k_cache.dtype,
            )  # fmt: skip
            planned.append(wrapper)
        return planned[0].run(query, (k_cache, v_cache))

    return run
