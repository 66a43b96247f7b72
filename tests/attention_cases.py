"""Ragged, paged attention batches for the delta_prefill tests, and the check of one call against the oracle."""

import dataclasses
import math

import pytest
import reference
import torch
from cases import (
    Frozen,
    assert_close,
    blocks_needed,
    cumulative,
    fill,
    fused_rows,
    make_block_table,
    make_pool,
    nan_storage,
    pack_bits,
    same_bits,
    words,
)

LOW = (torch.float16, torch.bfloat16)


def skip_unless(backend, dtype=torch.bfloat16, **shape):
    if not backend.supports("delta_prefill", dtype, **shape):
        pytest.skip("not promised on this backend")


@dataclasses.dataclass
class Attention:
    """The tensors of one call. Every cache slot that no sequence uses holds NaN."""

    query: torch.Tensor
    k_cache: torch.Tensor
    v_cache: torch.Tensor
    cu_seqlens_q: torch.Tensor
    seqused_k: torch.Tensor
    block_table: torch.Tensor
    max_seqlen_q: int
    softmax_scale: float
    options: dict = dataclasses.field(default_factory=dict)

    @property
    def tensors(self):
        return {k: v for k, v in {**vars(self), **self.options}.items() if isinstance(v, torch.Tensor)}


def make_attention(
    backend, new, lengths, heads=4, kv_heads=2, head_dim=64, block_size=16, dtype=torch.bfloat16, cache_dtype=None,
    layout="nhd", shared_blocks=0, padding_rows=0, extra_columns=1, pad=-1, spare=0, **options,
):  # fmt: skip
    """Sequence b has lengths[b] tokens in the cache, of which the last new[b] are queried (q may be longer than k)."""
    if backend.emulated:
        skip_unless(backend, dtype, head_dim=head_dim)
    cache_dtype = cache_dtype or dtype
    num_blocks = blocks_needed(lengths, block_size, shared_blocks)
    k_cache, v_cache, _ = make_pool(layout, num_blocks, block_size, kv_heads, head_dim, cache_dtype)
    table = make_block_table(lengths, block_size, num_blocks, shared_blocks, extra_columns, pad)
    for b, length in enumerate(lengths):
        for slot in reference.sequence_slots(table[b], length, block_size):
            for cache in (k_cache, v_cache):
                rows = torch.randn(kv_heads, head_dim)
                fill(cache[slot // block_size, slot % block_size], rows)
    total = sum(new) + padding_rows
    query, _ = fused_rows(total, (heads, 2 * kv_heads), head_dim, dtype)
    query[sum(new) :] = math.nan
    k_cache, v_cache = (to_device(c, backend.device) for c in (k_cache, v_cache))
    move = {k: v.to(backend.device) if isinstance(v, torch.Tensor) else v for k, v in options.items()}
    return Attention(
        to_device(query, backend.device), k_cache, v_cache, cumulative(new, backend.device),
        torch.tensor(lengths, dtype=torch.int32, device=backend.device), table.to(backend.device),
        max([*new, 0]) + spare, head_dim**-0.5, move,
    )  # fmt: skip


def to_device(view, device):
    """The same view on another device, strides and surrounding memory included."""
    if device == "cpu":
        return view
    size = view.untyped_storage().nbytes() // view.element_size()
    whole = view.as_strided((size,), (1,), 0).to(device)
    return whole.as_strided(view.size(), view.stride(), view.storage_offset())


def fp8_scales(shape, batch, kv_heads):
    size = {"scalar": (), "head": (kv_heads,), "batch_head": (batch, kv_heads)}[shape]
    return {"k_scale": torch.rand(size) + 0.2, "v_scale": torch.rand(size) * 2 + 0.1}


def run(backend, case, num_splits=0, schedule=None, want_lse=True):
    """(out, lse) of one call into NaN-filled buffers, after checking that nothing else changed."""
    total, heads, dim = case.query.shape
    device = case.query.device
    storage = nan_storage((total, heads + 1, dim), case.query.dtype, device)
    out = storage[:, :heads]
    lse = torch.full((heads, total), math.nan, device=device) if want_lse else None
    before = Frozen(**case.tensors, schedule=schedule)
    backend.ops.delta_prefill(
        out, lse, case.query, case.k_cache, case.v_cache, case.cu_seqlens_q, case.seqused_k, case.block_table,
        case.max_seqlen_q, case.softmax_scale, num_splits=num_splits, schedule=schedule, **case.options,
    )  # fmt: skip
    before.check()
    assert same_bits(storage[:, heads:], nan_storage((total, 1, dim), case.query.dtype, device))
    return out, lse


def check(backend, case, num_splits=0, schedule=None):
    """Runs one call and compares it with the oracle; returns (out, lse)."""
    out, lse = run(backend, case, num_splits, schedule)
    inputs = {k: v.cpu() for k, v in case.tensors.items()}
    inputs |= {k: v for k, v in case.options.items() if k not in inputs}
    inputs["softmax_scale"] = case.softmax_scale
    exact_out, exact_lse = reference.delta_prefill(**inputs)
    rows = int(case.cu_seqlens_q[-1])

    def compare(*orders):
        plain = [reference.delta_prefill(**inputs, dtype=case.query.dtype, shuffle=order) for order in orders]
        assert_close(out[:rows], exact_out[:rows], [p[:rows] for p, _ in plain], "out")
        assert_close(lse[:, :rows].T, exact_lse[:, :rows].T, [p[:, :rows].T for _, p in plain], "lse")

    try:
        compare(None)
    except AssertionError:
        if case.query.dtype != torch.float32:
            raise
        compare(None, *(torch.Generator().manual_seed(i) for i in range(2)))
    assert same_bits(out[rows:], nan_storage(tuple(out[rows:].shape), out.dtype, out.device)), "padding rows"
    assert lse[:, rows:].isnan().all(), "padding rows of lse"
    return out, lse


def tree_options(new, max_seqlen_q, parents_of, padding_rows=0):
    """tree_mask of a batch: parents_of(n) gives (parents, ancestor bits) of a sequence's n new tokens."""
    rows = [row for n in new if n for row in parents_of(n)[1]]
    return {"tree_mask": pack_bits(rows + [[]] * padding_rows, words(max_seqlen_q))}


def one_sequence(case, b, start=0, stop=None):
    """The call that queries only new tokens start..stop of sequence b, with the cache as it was then."""
    first, last = int(case.cu_seqlens_q[b]), int(case.cu_seqlens_q[b + 1])
    stop = last - first if stop is None else stop
    length = int(case.seqused_k[b]) - (last - first - stop)
    return dataclasses.replace(
        case,
        query=case.query[first + start : first + stop],
        cu_seqlens_q=case.cu_seqlens_q.new_tensor([0, stop - start]),
        seqused_k=case.seqused_k.new_tensor([length]),
        block_table=case.block_table[b : b + 1],
        max_seqlen_q=stop - start,
    )
