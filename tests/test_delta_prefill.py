"""delta_prefill against the float64 oracle: dtypes, pool layouts, sizes, ragged batches, random combinations."""

import dataclasses
import math
import random

import pytest
import torch
from attention_cases import LOW, check, fp8_scales, make_attention, run, skip_unless, tree_options
from backends import FLOATS, FP8
from cases import LAYOUTS, fill, random_tree, same_bits

# ---- dtypes, layouts, sizes -----------------------------------------------------------------------------------------


@pytest.mark.each_isa
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_every_layout_and_dtype(backend, layout, dtype):
    skip_unless(backend, dtype)
    case = make_attention(backend, [1, 5, 20], [33, 5, 70], dtype=dtype, layout=layout)
    check(backend, case)


@pytest.mark.each_isa
@pytest.mark.parametrize("shape", ["none", "scalar", "head", "batch_head"])
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_fp8_cache_with_every_scale_shape(backend, dtype, shape):
    skip_unless(backend, dtype)
    scales = {} if shape == "none" else fp8_scales(shape, 3, 2)
    case = make_attention(backend, [1, 7, 18], [40, 7, 65], dtype=dtype, cache_dtype=FP8, layout="blocks_2", **scales)
    check(backend, case)


def test_one_fp8_scale_alone(backend):
    for name, value in fp8_scales("head", 1, 2).items():
        case = make_attention(backend, [3], [20], cache_dtype=FP8, **{name: value})
        check(backend, case)


@pytest.mark.each_isa
@pytest.mark.parametrize("head_dim", [8, 16, 24, 40, 48, 64, 72, 80, 96, 112, 128, 160, 192, 256, 2056])
def test_head_dims(backend, head_dim):
    skip_unless(backend, head_dim=head_dim)
    for dtype in LOW:
        case = make_attention(backend, [1, 4, 17], [50, 19, 17], head_dim=head_dim, dtype=dtype)
        check(backend, case)


@pytest.mark.parametrize("block_size", [1, 2, 3, 5, 8, 16, 17, 32, 64, 100, 128, 255, 256])
def test_block_sizes_at_their_boundaries(backend, block_size):
    skip_unless(backend, block_size=block_size)
    lengths = sorted({1, max(block_size - 1, 1), block_size, block_size + 1, 2 * block_size})
    new = [min(n, length) for n, length in zip([1, 3, 1, 2, 5], lengths)]
    check(backend, make_attention(backend, new, lengths, block_size=block_size, layout="hnd"))


@pytest.mark.each_isa
@pytest.mark.parametrize("heads, kv_heads", [(1, 1), (4, 4), (2, 1), (8, 1), (7, 1), (6, 2), (12, 4), (32, 2), (28, 4)])
def test_head_ratios(backend, heads, kv_heads):
    skip_unless(backend)
    check(backend, make_attention(backend, [1, 3, 17], [30, 3, 40], heads=heads, kv_heads=kv_heads))


# ---- ragged shapes --------------------------------------------------------------------------------------------------

SHAPES = {
    "one_token": ([1], [1]),
    "decode": ([1, 1, 1, 1], [1, 16, 17, 257]),
    "empty_batch": ([], []),
    "nothing_new": ([0, 0], [5, 20]),
    "empty_sequences_between": ([0, 3, 0, 0, 2, 0], [7, 9, 0, 16, 2, 0]),
    "whole_prompts": ([16, 17, 64, 65], [16, 17, 64, 65]),
    "q_longer_than_k": ([5, 20, 1], [2, 3, 0]),
    "no_keys": ([4, 1], [0, 0]),
    "long_and_short": ([1, 130], [515, 130]),
    "many_rows_short_keys": ([200], [200]),
    "many_tiny": ([1] * 40, list(range(1, 41))),
}


@pytest.mark.each_isa
@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("shape", SHAPES)
def test_ragged_shapes(backend, shape, causal):
    skip_unless(backend)
    new, lengths = SHAPES[shape]
    out, lse = check(backend, make_attention(backend, new, lengths, causal=causal))
    for b, (n, length) in enumerate(zip(new, lengths)):
        start = sum(new[:b])
        blind = max(n - length, 0) if causal else (n if length == 0 else 0)
        assert (out[start : start + blind] == 0).all()
        assert (lse[:, start : start + blind] == -math.inf).all()


def test_rows_past_the_last_sequence_are_left_alone(backend):
    """A batch padded for a captured graph: sequences without tokens, rows of NaN past cu_seqlens_q[batch]."""
    skip_unless(backend)
    check(backend, make_attention(backend, [2, 1, 0, 0], [18, 5, 0, 0], padding_rows=5, spare=11))
    check(backend, make_attention(backend, [], [], padding_rows=3))


def test_unused_table_entries_are_not_read(backend):
    skip_unless(backend)
    for pad in (-1, 1 << 30, -(1 << 31)):
        check(backend, make_attention(backend, [1, 9], [31, 100], pad=pad, extra_columns=3))


def test_a_strided_block_table(backend):
    skip_unless(backend)
    case = make_attention(backend, [2, 6], [33, 80], extra_columns=2)
    wide = torch.full((4, case.block_table.size(1) + 5), -7, dtype=torch.int32, device=case.block_table.device)
    view = wide[::2, : case.block_table.size(1)]
    view.copy_(case.block_table)
    check(backend, dataclasses.replace(case, block_table=view))


def test_shared_blocks(backend):
    """Five agents on one prefix: their tables name the same blocks."""
    skip_unless(backend)
    check(backend, make_attention(backend, [1, 2, 3, 4, 5], [49, 60, 100, 53, 55], shared_blocks=3))


def test_blocks_beyond_the_length_hold_nan(backend):
    """The table may name blocks that are allocated but not filled yet; their NaN influences nothing."""
    skip_unless(backend)
    case = make_attention(backend, [1, 4], [17, 32], extra_columns=2)
    used = set(case.block_table[case.block_table >= 0].tolist())
    free = [i for i in range(case.k_cache.size(0)) if i not in used]
    case.block_table[case.block_table < 0] = free[0]
    for splits in (0, 1, 3, -1):
        check(backend, case, splits)


def test_negative_block_ids_are_skipped(backend):
    """A hole in the table: its keys do not exist."""
    skip_unless(backend)
    case = make_attention(backend, [1, 20, 2], [200, 150, 30])
    case.block_table[0, 3:6] = -1
    case.block_table[1, 0] = -5
    case.block_table[2, :2] = -1
    for splits in (0, 1, 3, -1):
        check(backend, case, splits)


def test_infinite_and_huge_scores(backend):
    """Scores far outside exp's range: the running maximum has to carry them."""
    skip_unless(backend)
    case = make_attention(backend, [4, 1], [40, 90], dtype=torch.bfloat16)
    case.query[:3] *= 300
    for splits in (1, 3, -1):
        check(backend, case, splits)


def test_offsets_past_32_bits(backend):
    """Block strides of 2^31 elements over memory that is only touched where it is used."""
    if backend.device == "cuda":
        pytest.skip("device memory is not allocated lazily")
    skip_unless(backend)
    stride = (1 << 31) + 64
    memory = torch.empty(3 * stride, dtype=torch.bfloat16)
    for dtype in (torch.bfloat16, FP8):
        base = memory.view(dtype)
        k_cache, v_cache = (base[i * 8192 :].as_strided((3, 16, 2, 64), (stride, 128, 64, 1)) for i in range(2))
        case = make_attention(backend, [3], [40], cache_dtype=dtype)
        for old, new in zip(case.block_table[0, :3].tolist(), (2, 0, 1)):
            fill(k_cache[new], case.k_cache[old])
            fill(v_cache[new], case.v_cache[old])
        case.block_table[0, :3] = torch.tensor([2, 0, 1])
        case.k_cache, case.v_cache = k_cache, v_cache
        check(backend, case)


def test_without_lse(backend):
    skip_unless(backend)
    case = make_attention(backend, [2, 5], [20, 50])
    assert same_bits(run(backend, case)[0], run(backend, case, want_lse=False)[0])


def test_strided_and_unaligned_query(backend):
    skip_unless(backend)
    case = make_attention(backend, [2, 5], [20, 50])
    total, heads, dim = case.query.shape
    head_major = case.query.transpose(0, 1).contiguous().transpose(0, 1)
    unaligned = torch.randn(total, heads, dim + 3, device=case.query.device).to(case.query.dtype)[..., 3:]
    for query in (head_major, unaligned):
        check(backend, dataclasses.replace(case, query=query))


# ---- everything with everything -------------------------------------------------------------------------------------


def random_case(backend, rng):
    pick = rng.choice
    batch, block_size = rng.randint(1, 5), pick([1, 4, 16, 16, 32, 64] if not backend.emulated else [16, 16, 32, 64])
    kv_heads, group = pick([1, 2, 3]), pick([1, 2, 4, 7])
    dtype = pick(FLOATS if backend.name == "cpu" else LOW)
    cache_dtype = pick([dtype, dtype, FP8])
    new = [pick([0, 1, 1, 2, 7, 16, 17, rng.randint(1, 80)]) for _ in range(batch)]
    lengths = [max(n + pick([0, 0, 1, 15, 16, 17, rng.randint(0, 300), -3]), 0) for n in new]
    options = {"causal": pick([True, True, False]), "window_left": pick([-1, -1, 0, 5, 64, 200])}
    options["softcap"] = pick([0.0, 0.0, 15.0])
    if rng.random() < 0.3:
        options["sinks"] = torch.randn(kv_heads * group) * 3
    if cache_dtype == FP8 and rng.random() < 0.8:
        options |= fp8_scales(pick(["scalar", "head", "batch_head"]), batch, kv_heads)
    spare, padding_rows = pick([0, 0, 3, 40]), pick([0, 3])
    if rng.random() < 0.25:
        lengths = [max(length, n) for n, length in zip(new, lengths)]
        options |= tree_options(new, max(new) + spare, random_tree, padding_rows)
        options |= {"causal": True, "window_left": pick([-1, 100, 128])}
    return make_attention(
        backend, new, lengths, heads=kv_heads * group, kv_heads=kv_heads,
        head_dim=pick([8, 40, 64, 96, 128] if backend.name == "cpu" else [64, 96, 128]), block_size=block_size,
        dtype=dtype, cache_dtype=cache_dtype, layout=pick(LAYOUTS), padding_rows=padding_rows, spare=spare,
        extra_columns=pick([0, 1, 5]), shared_blocks=0, **options,
    )  # fmt: skip


@pytest.mark.parametrize("seed", range(160))
def test_random_combinations(backend, seed):
    if backend.emulated and seed >= 80:
        pytest.skip("the emulation is slow")
    rng = random.Random(seed)
    torch.manual_seed(seed)
    check(backend, random_case(backend, rng), rng.choice([0, 0, 1, 3, -1]))


@pytest.mark.each_isa
@pytest.mark.parametrize("num_splits", [0, 1, 2, 3, 7, 64, -1])
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_splits(backend, num_splits, dtype):
    """More splits than keys, too; each is the whole answer."""
    skip_unless(backend, dtype)
    new, lengths = [1, 3, 18, 1, 2], [1025, 40, 300, 2, 0]
    check(backend, make_attention(backend, new, lengths, heads=8, dtype=dtype), num_splits)
