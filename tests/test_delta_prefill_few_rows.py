"""delta_prefill at the edges of its form for few rows, which on the CPU reads keys and values in memory order."""

import math
import random

import pytest
import reference
import torch
from attention_cases import LOW, check, fp8_scales, make_attention, one_sequence, run, skip_unless, tree_options
from backends import FLOATS, FP8
from cases import LAYOUTS, fill, random_tree, same_bits


@pytest.mark.each_isa
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("group", [1, 3, 4, 8])
def test_row_counts_around_the_limit(backend, group, dtype):
    """1 to 18 rows of a KV head, over lengths that are no multiple of anything."""
    skip_unless(backend, dtype)
    for tokens in range(1, max(18 // group, 2) + 1):
        new, lengths = [tokens] * 4, [151, 61, 17 + tokens, 333]
        check(backend, make_attention(backend, new, lengths, heads=2 * group, dtype=dtype))


@pytest.mark.each_isa
@pytest.mark.parametrize("head_dim", [64, 80, 96, 128, 192, 256])
@pytest.mark.parametrize("kv_heads", [1, 2, 8])
def test_head_dims_and_heads(backend, head_dim, kv_heads):
    skip_unless(backend, head_dim=head_dim)
    for group in (1, 2, 4):
        case = make_attention(backend, [1, 2], [300, 37], heads=kv_heads * group, kv_heads=kv_heads, head_dim=head_dim)
        check(backend, case)


@pytest.mark.each_isa
@pytest.mark.parametrize("head_dim", [64, 96, 128])
def test_one_split_of_a_long_context(backend, head_dim):
    """Whoever brings keys through a ring of places comes past each of them several times."""
    skip_unless(backend, head_dim=head_dim)
    check(backend, make_attention(backend, [1, 2], [1210, 790], heads=4, kv_heads=1, head_dim=head_dim), 1)


@pytest.mark.each_isa
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("cache", ["same", "fp8"])
def test_layouts_and_fp8(backend, layout, cache):
    for dtype in (torch.float16, torch.bfloat16) if backend.name != "cpu" else FLOATS:
        skip_unless(backend, dtype)
        options = fp8_scales("batch_head", 2, 3) | {"cache_dtype": FP8} if cache == "fp8" else {}
        case = make_attention(backend, [1, 3], [140, 77], heads=6, kv_heads=3, dtype=dtype, layout=layout, **options)
        check(backend, case)


@pytest.mark.parametrize("block_size", [1, 2, 7, 16, 100, 128, 256])
def test_lengths_around_tiles_and_blocks(backend, block_size):
    skip_unless(backend, block_size=block_size)
    lengths = sorted({*(max(edge + d, 1) for edge in (0, 16, 128, 256, block_size) for d in (-1, 0, 1)), 300})
    check(backend, make_attention(backend, [1] * len(lengths), lengths, block_size=block_size))


@pytest.mark.each_isa
@pytest.mark.parametrize("options", [{}, {"window_left": 40}, {"window_left": 0}, {"softcap": 8.0}, {"causal": False}])
def test_nan_beside_the_keys_does_not_leak(backend, options):
    """The rest of the last block, blocks allocated but not filled, and keys that left the window hold NaN."""
    skip_unless(backend)
    for dtype in LOW if backend.name != "cpu" else FLOATS:
        for new in (1, 2, 3):
            lengths = [1, 15, 17, 130, 257]
            case = make_attention(backend, [new] * 5, lengths, dtype=dtype, extra_columns=2, **options)
            used = set(case.block_table[case.block_table >= 0].tolist())
            case.block_table[case.block_table < 0] = min(set(range(case.k_cache.size(0))) - used)
            for table, length in zip(case.block_table, lengths):
                gone = max(length - new - options.get("window_left", length), 0)
                for slot in reference.sequence_slots(table, gone, 16):
                    for cache in (case.k_cache, case.v_cache):
                        fill(cache[slot // 16, slot % 16], torch.full((2, 64), math.nan))
            for splits in (0, 3):
                check(backend, case, splits)


@pytest.mark.each_isa
@pytest.mark.parametrize("seed", range(12))
def test_everything_with_few_rows(backend, seed):
    """Holes in the table, trees, sinks, soft caps and windows at once."""
    rng = random.Random(seed)
    dtype = rng.choice(LOW if backend.name != "cpu" else FLOATS)
    skip_unless(backend, dtype)
    new = [rng.randint(1, 4) for _ in range(3)]
    lengths = [n + rng.randint(0, 400) for n in new]
    options = {"softcap": rng.choice([0.0, 15.0]), "window_left": rng.choice([-1, 100])}
    if rng.random() < 0.5:
        options["sinks"] = torch.randn(4)
    if rng.random() < 0.5:
        options |= tree_options(new, 4, random_tree)
    case = make_attention(
        backend, new, lengths, head_dim=rng.choice([64, 128]), dtype=dtype, layout=rng.choice(LAYOUTS),
        spare=4 - max(new), **options,
    )  # fmt: skip
    if lengths[0] > 100:
        case.block_table[0, rng.randrange(lengths[0] // 16 - 1)] = -1
    check(backend, case, rng.choice([0, 1, 3]))


@pytest.mark.each_isa
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_exact_splits_do_not_see_the_number_of_threads(backend, dtype):
    """num_splits = 2 names the parts; who computes them changes no bit."""
    skip_unless(backend, dtype)
    if backend.name != "cpu":
        pytest.skip("threads are the CPU's")
    case = make_attention(backend, [1, 2, 1], [900, 60, 300], heads=8, kv_heads=4, dtype=dtype)
    threads, got = torch.get_num_threads(), []
    try:
        for count in (1, 2, 4):
            torch.set_num_threads(count)
            got.append(run(backend, case, 2))
    finally:
        torch.set_num_threads(threads)
    for out, lse in got[1:]:
        assert same_bits(out, got[0][0])
        assert same_bits(lse, got[0][1])


FORMS = [
    {"heads": 1, "kv_heads": 1, "head_dim": 256, "dtype": torch.float32},
    {"heads": 2, "kv_heads": 2, "head_dim": 128, "window_left": 700},
    {"heads": 3, "kv_heads": 1, "head_dim": 80},
    {"heads": 4, "kv_heads": 2, "head_dim": 192, "dtype": torch.float16, "layout": "interleaved"},
    {"heads": 5, "kv_heads": 1, "cache_dtype": FP8, "softcap": 20.0},
]


@pytest.mark.each_isa
@pytest.mark.parametrize("settings", FORMS, ids=str)
def test_few_and_many_rows_have_the_same_bits(backend, settings):
    """num_splits = -1: 40 tokens in one call are packed, a few of them take the other form."""
    if backend.name != "cpu":
        pytest.skip("the forms are the CPU's")
    case = make_attention(backend, [40], [1170], **settings)
    case.block_table[0, 69] = -1
    out, lse = check(backend, case, -1)
    for start, stop in ((0, 1), (1, 3), (3, 6), (6, 10), (10, 15), (15, 40)):
        got_out, got_lse = run(backend, one_sequence(case, 0, start, stop), -1)
        assert same_bits(got_out, out[start:stop])
        assert same_bits(got_lse.contiguous(), lse[:, start:stop].contiguous())
