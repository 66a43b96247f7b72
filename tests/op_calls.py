"""One small valid call of every op, by argument name: what the tests of errors and of registration start from."""

import math

import torch

HEADS, KV_HEADS, DIM, BLOCK, BLOCKS, BATCH, VOCAB, LAYERS = 4, 2, 64, 16, 6, 3, 64, 2


def cache(dtype=torch.bfloat16):
    return torch.randn(BLOCKS, BLOCK, KV_HEADS, DIM).to(dtype)


def rows(count, heads, dtype=torch.bfloat16):
    return torch.randn(count, heads, DIM).to(dtype)


def int32(*values):
    return torch.tensor(values, dtype=torch.int32)


def int64(*values):
    return torch.tensor(values, dtype=torch.int64)


def fp8_scales():
    return {"k_scale": torch.rand(KV_HEADS) + 0.5, "v_scale": torch.rand(KV_HEADS) + 0.5}


FP8 = torch.float8_e4m3fn


def append_kv(cache_dtype=FP8):
    return dict(
        k_cache=cache(cache_dtype), v_cache=cache(cache_dtype), key=rows(5, KV_HEADS), value=rows(5, KV_HEADS),
        slot_mapping=int64(3, -1, 17, 40, 95), **(fp8_scales() if cache_dtype == FP8 else {}),
    )  # fmt: skip


def rope_append_kv(cache_dtype=FP8):
    return dict(
        query_out=rows(5, HEADS), query=rows(5, HEADS), positions=int64(0, 3, 9, 20, 2),
        cos_sin_cache=torch.randn(32, DIM), interleaved=False, q_norm_weight=torch.rand(DIM).bfloat16(),
        k_norm_weight=torch.rand(DIM).bfloat16(), norm_eps=1e-6, **append_kv(cache_dtype),
    )  # fmt: skip


def delta_prefill(cache_dtype=FP8):
    return dict(
        out=rows(6, HEADS), lse=torch.zeros(HEADS, 6), query=rows(6, HEADS), k_cache=cache(cache_dtype),
        v_cache=cache(cache_dtype), cu_seqlens_q=int32(0, 1, 4, 6), seqused_k=int32(20, 31, 2),
        block_table=int32(0, 1, 2, 3, 4, -1).view(3, 2), max_seqlen_q=3, softmax_scale=DIM**-0.5, causal=True,
        window_left=-1, softcap=0.0, tree_mask=int32(1, 1, 3, 5, 1, 3).view(6, 1), sinks=torch.randn(HEADS),
        num_splits=0, **(fp8_scales() if cache_dtype == FP8 else {}),
    )  # fmt: skip


def schedule_delta_prefill():
    return dict(
        schedule=torch.zeros(4096, dtype=torch.int32), cu_seqlens_q=int32(0, 1, 4, 6), seqused_k=int32(20, 31, 2),
        num_heads=HEADS, num_kv_heads=KV_HEADS, head_dim=DIM, max_seqlen_q=3, num_splits=0, causal=True,
        window_left=-1,
    )  # fmt: skip


def merge_states():
    return dict(
        out=rows(6, HEADS), lse=torch.zeros(HEADS, 6), out_a=rows(6, HEADS), lse_a=torch.randn(HEADS, 6),
        out_b=rows(6, HEADS), lse_b=torch.randn(HEADS, 6),
    )  # fmt: skip


def copy_blocks():
    return dict(
        k_caches=[cache() for _ in range(LAYERS)], v_caches=[cache() for _ in range(LAYERS)],
        src_blocks=int32(0, 1), dst_blocks=int32(4, 5), num_tokens=int32(16, 3),
    )  # fmt: skip


def compact_kv():
    return dict(
        k_caches=[cache() for _ in range(LAYERS)], v_caches=[cache() for _ in range(LAYERS)],
        src_slots=int64(5, 9, 40), dst_slots=int64(4, 5, 33), cu_moves=int32(0, 2, 2, 3),
    )  # fmt: skip


def verify_drafts():
    return dict(
        tokens=torch.zeros(BATCH, 3, dtype=torch.int32), num_tokens=int32(0, 0, 0),
        rows=torch.zeros(BATCH, 3, dtype=torch.int32), logits=torch.randn(6, VOCAB),
        draft_tokens=int32(-1, 5, 6, -1, -1, 3), cu_rows=int32(0, 3, 4, 6), parents=int32(-1, 0, 0, -1, -1, 0),
        temperature=torch.tensor([0.7, 0.0, 1.0]), top_k=int32(5, 0, 0), top_p=torch.tensor([0.9, 1.0, 0.5]),
        min_p=torch.tensor([0.0, 0.1, 0.0]), seeds=int64(1, 2, 3), positions=int64(7, 8, 9),
        token_bitmask=torch.full((6, VOCAB // 32), -1, dtype=torch.int32), logprobs=torch.zeros(BATCH, 3),
    )  # fmt: skip


def propose_drafts():
    return dict(
        drafts=torch.zeros(BATCH, 4, dtype=torch.int32), num_drafts=int32(0, 0, 0),
        history=torch.randint(0, 3, (BATCH, 20), dtype=torch.int32), history_lens=int32(20, 0, 7), max_ngram=3,
        min_ngram=1, latest=True,
    )  # fmt: skip


def plan_step():
    zeros64, zeros32 = (lambda n, t=t: torch.zeros(n, dtype=t) for t in (torch.int64, torch.int32))
    return dict(
        token_ids=zeros32(9), positions=zeros64(9), slot_mapping=zeros64(9), cu_seqlens_q=zeros32(BATCH + 1),
        seqused_k=zeros32(BATCH), logit_rows=zeros64(6), draft_tokens=zeros32(6), cu_rows=zeros32(BATCH + 1),
        sample_positions=zeros64(BATCH), history=torch.randint(0, VOCAB, (BATCH, 40), dtype=torch.int32),
        lengths=int32(20, 31, 2), computed=int32(19, 28, 2), finished=int32(0, 0, 0),
        drafts=torch.randint(0, VOCAB, (BATCH, 4), dtype=torch.int32), num_drafts=int32(4, 4, 1),
        draft_limits=int32(3, 4, 4), max_lengths=int32(40, 40, 9), num_slots=int32(32, 32, 16),
        block_table=int32(0, 1, 2, 3, 4, -1).view(BATCH, 2), block_size=BLOCK, max_rows=5,
    )  # fmt: skip


def commit_step():
    return dict(
        history=torch.randint(0, VOCAB, (BATCH, 40), dtype=torch.int32), lengths=int32(20, 31, 2),
        computed=int32(19, 20, 2), finished=int32(0, 0, 0), results=torch.zeros(2, BATCH, 4 + 5, dtype=torch.int32),
        step=int64(3), tokens=torch.randint(0, VOCAB, (BATCH, 5), dtype=torch.int32), num_tokens=int32(3, 0, 2),
        cu_seqlens_q=int32(0, 4, 6, 8), cu_rows=int32(0, 4, 4, 6), max_lengths=int32(40, 40, 3),
        stop_tokens=int32(7, -1, 8, 9, -1, -1).view(BATCH, 2),
    )  # fmt: skip


def rms_norm(dtype=torch.bfloat16):
    return dict(
        out=torch.zeros(5, 40, dtype=dtype), input=torch.randn(5, 40).to(dtype), weight=torch.rand(40).to(dtype),
        epsilon=1e-6,
    )  # fmt: skip


def fused_add_rms_norm(dtype=torch.bfloat16):
    return dict(
        input=torch.randn(5, 40).to(dtype), residual=torch.randn(5, 40).to(dtype), weight=torch.rand(40).to(dtype),
        epsilon=1e-6,
    )  # fmt: skip


def silu_and_mul(dtype=torch.bfloat16):
    return dict(out=torch.zeros(5, 40, dtype=dtype), input=torch.randn(5, 80).to(dtype))


def row_linear(dtype=torch.bfloat16):
    return dict(
        out=torch.zeros(5, 40, dtype=dtype), x=torch.randn(5, 24).to(dtype), weight=torch.randn(40, 24).to(dtype),
        bias=torch.randn(40).to(dtype),
    )  # fmt: skip


def fused_row_linear(dtype=torch.bfloat16):
    return dict(
        out=torch.randn(5, 40).to(dtype), x=torch.randn(5, 64).to(dtype), weight=torch.randn(80, 64).to(dtype),
        bias=torch.randn(80).to(dtype), norm_weight=torch.rand(64).to(dtype), epsilon=1e-6, silu_and_mul=True,
        add=True,
    )  # fmt: skip


def pack_linear_weight(dtype=torch.bfloat16):
    return dict(packed=torch.zeros(40, 12, 2, dtype=dtype), weight=torch.randn(40, 24).to(dtype))


CALLS = {
    f.__name__: f
    for f in (
        append_kv, rope_append_kv, delta_prefill, schedule_delta_prefill, merge_states, copy_blocks, compact_kv,
        verify_drafts, propose_drafts, plan_step, commit_step, rms_norm, fused_add_rms_norm, silu_and_mul,
        row_linear, fused_row_linear, pack_linear_weight,
    )
}  # fmt: skip
OUTPUTS = {
    "append_kv": ("k_cache", "v_cache"),
    "rope_append_kv": ("query_out", "k_cache", "v_cache"),
    "delta_prefill": ("out", "lse"),
    "schedule_delta_prefill": ("schedule",),
    "merge_states": ("out", "lse"),
    "copy_blocks": ("k_caches", "v_caches"),
    "compact_kv": ("k_caches", "v_caches"),
    "verify_drafts": ("tokens", "num_tokens", "rows", "logprobs"),
    "propose_drafts": ("drafts", "num_drafts"),
    "plan_step": (
        "token_ids",
        "positions",
        "slot_mapping",
        "cu_seqlens_q",
        "seqused_k",
        "logit_rows",
        "draft_tokens",
        "cu_rows",
        "sample_positions",
    ),
    "commit_step": ("history", "lengths", "computed", "finished", "results", "step"),
    "rms_norm": ("out",),
    "fused_add_rms_norm": ("input", "residual"),
    "silu_and_mul": ("out",),
    "row_linear": ("out",),
    "fused_row_linear": ("out",),
    "pack_linear_weight": ("packed",),
}


def on_device(kwargs, device):
    def move(v):
        if isinstance(v, list):
            return [move(x) for x in v]
        return v.to(device) if isinstance(v, torch.Tensor) else v

    return {k: move(v) for k, v in kwargs.items()}


def all_tensors(kwargs):
    """Every tensor of a call by name, those of lists as name[i]."""
    found = {}
    for name, value in kwargs.items():
        if isinstance(value, torch.Tensor):
            found[name] = value
        elif isinstance(value, list):
            found |= {f"{name}[{i}]": t for i, t in enumerate(value)}
    return found


def replace(kwargs, name, value):
    """kwargs with the tensor `name` (as all_tensors names it) replaced."""
    if "[" not in name:
        return kwargs | {name: value}
    base, idx = name[:-1].split("[")
    changed = list(kwargs[base])
    changed[int(idx)] = value
    return kwargs | {base: changed}


INF, NAN = math.inf, math.nan
