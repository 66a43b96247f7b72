"""delta_prefill with fp8 caches and more than a few rows, where on sm_90 tiles are widened and queries rescaled."""

import dataclasses
import math

import pytest
import reference
import torch
from attention_cases import LOW, check, fp8_scales, make_attention, run, skip_unless, tree_options
from backends import FLOATS, FP8
from cases import fill, random_tree, same_bits

NEW, LENGTHS = [40, 3, 9], [300, 20, 140]  # 80 rows of a KV head: two groups of 64; 18 rows: one


def fp8_case(backend, new=NEW, lengths=LENGTHS, scales="batch_head", **options):
    return make_attention(backend, new, lengths, cache_dtype=FP8, **fp8_scales(scales, len(new), 2), **options)


OPTIONS = {
    "window": {"window_left": 70},
    "all_keys": {"causal": False},
    "cap_and_sinks": {"softcap": 8.0, "sinks": torch.tensor([-3.0, 0.0, 2.5, 6.0])},
    "tree_and_cap": {"softcap": 8.0},
}


@pytest.mark.parametrize("name", OPTIONS)
@pytest.mark.parametrize("dtype", LOW, ids=str)
def test_masks_caps_and_sinks(backend, dtype, name):
    skip_unless(backend, dtype)
    options = OPTIONS[name] | (tree_options(NEW, 40, random_tree) if "tree" in name else {})
    case = fp8_case(backend, dtype=dtype, **options)
    if "window_left" in options:  # what has left every window of the first sequence
        for slot in reference.sequence_slots(case.block_table[0], LENGTHS[0] - NEW[0] - options["window_left"], 16):
            for cache in (case.k_cache, case.v_cache):
                fill(cache[slot // 16, slot % 16], torch.full((2, 64), math.nan))
    for splits in (0, 3, -1):
        check(backend, case, splits)


def test_parts_that_a_worker_keeps(backend):
    """num_splits = -1, more sequences than workers: each worker folds the parts of whole sequences in memory of its
    own, which no other worker's may touch."""
    skip_unless(backend, head_dim=128)
    case = make_attention(backend, [1] * 6, [2100] * 6, 4, 1, 128, cache_dtype=FP8, **fp8_scales("scalar", 6, 1))
    if not backend.emulated:  # of an emulated device there are four workers
        many = {name: getattr(case, name).repeat_interleave(50, 0) for name in ("query", "seqused_k", "block_table")}
        cu_seqlens_q = torch.arange(301, dtype=torch.int32, device=case.query.device)
        case = dataclasses.replace(case, **many, cu_seqlens_q=cu_seqlens_q)
    check(backend, case, -1)


@pytest.mark.parametrize("k_scale", [1.0, 2.0**-18])
def test_rows_of_every_size(backend, k_scale):
    """bf16 reaches far beyond f16, up and down, from row to row and within a row."""
    skip_unless(backend)
    case = make_attention(backend, [20], [150], cache_dtype=FP8, k_scale=torch.tensor(k_scale))
    for i in range(20):
        case.query[i] *= 2.0 ** (4 * (i - 14))
    case.query[14, :, ::2] *= 2.0**-30
    case.query[15] = 0
    for splits in (1, -1):
        check(backend, case, splits)


@pytest.mark.parametrize("softcap", [0.0, 5.0])
def test_a_negative_scale(backend, softcap):
    skip_unless(backend)
    case = fp8_case(backend, [20], [150], softcap=softcap)
    case.query *= torch.logspace(-3, 3, 20, base=2, device=case.query.device).bfloat16()[:, None, None]
    check(backend, dataclasses.replace(case, softmax_scale=-0.1), 0)


@pytest.mark.parametrize("which", ["k_cache", "v_cache"])
def test_nan_of_a_key_that_is_seen_is_not_lost(backend, which):
    skip_unless(backend)
    case = fp8_case(backend, [20], [150])
    cell = getattr(case, which)[int(case.block_table[0, 7]), 7, 1]  # key 119, which all rows see
    fill(cell[5:6], torch.tensor([math.nan]))
    out, _ = check(backend, case)
    assert out[:, :2].isfinite().all() and out[:, 2:, 5].isnan().all()


@pytest.mark.parametrize("head_dim", [96, 128, 192, 256])
def test_every_head_dim(backend, head_dim):
    skip_unless(backend, head_dim=head_dim)
    for new, lengths in (([40], [290]), ([1, 9], [70, 133])):
        check(backend, fp8_case(backend, new, lengths, head_dim=head_dim))


@pytest.mark.parametrize("dtype", LOW, ids=str)
def test_by_hand_and_by_tma_the_same_bits(backend, dtype):
    """num_splits = -1: blocks of four tokens and rows that are not aligned, as others."""
    skip_unless(backend, dtype)
    case = fp8_case(backend, dtype=dtype, scales="head")
    want = check(backend, case, -1)
    for block_size, layout in ((4, "nhd"), (16, "padded"), (128, "hnd")):
        other = fp8_case(backend, block_size=block_size, layout=layout, dtype=dtype)
        for b, length in enumerate(LENGTHS):
            old = reference.sequence_slots(case.block_table[b], length, 16)
            now = reference.sequence_slots(other.block_table[b], length, block_size)
            for s, t in zip(old, now):
                fill(other.k_cache[t // block_size, t % block_size], case.k_cache[s // 16, s % 16])
                fill(other.v_cache[t // block_size, t % block_size], case.v_cache[s // 16, s % 16])
        got = run(backend, dataclasses.replace(other, query=case.query, options=case.options), -1)
        assert all(same_bits(a.contiguous(), b.contiguous()) for a, b in zip(got, want)), f"{block_size}, {layout}"


@pytest.mark.each_isa
@pytest.mark.parametrize("heads", [2, 40])
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_every_number_of_e4m3(backend, dtype, heads):
    """A sequence of one key returns its value: all 256 bit patterns, by few rows and by many."""
    if backend.name != "cpu":
        pytest.skip("of the conversions in csrc/cpu, one per instruction set")
    case = make_attention(backend, [1] * 4, [1] * 4, heads=heads, kv_heads=1, dtype=dtype, cache_dtype=FP8)
    codes = torch.arange(256, dtype=torch.uint8).view(FP8).view(4, 64)
    for table, values in zip(case.block_table, codes):
        case.v_cache[int(table[0]), 0, 0] = values.to(backend.device)
    out, _ = run(backend, case)
    want = codes.to(dtype)[:, None].expand_as(out)
    assert torch.equal(out.cpu().nan_to_num(nan=1e4), want.nan_to_num(nan=1e4))
