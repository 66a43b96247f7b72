"""delta_prefill against the float64 oracle, over every option, dtype, pool layout and hard shape."""

import dataclasses
import itertools
import math
import random

import pytest
import reference
import torch
from attention_cases import check, fp8_scales, make_attention, one_sequence, run, tree_options
from backends import FLOATS, FP8
from cases import LAYOUTS, Frozen, cumulative, fill, pack_bits, random_tree, same_bits, words

LOW = (torch.float16, torch.bfloat16)


def skip_unless(backend, dtype=torch.bfloat16, **shape):
    if not backend.supports("delta_prefill", dtype, **shape):
        pytest.skip("not promised on this backend")


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
@pytest.mark.parametrize("head_dim", [8, 16, 24, 40, 48, 64, 72, 80, 96, 112, 128, 160, 192, 256])
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
    for dtype in (torch.bfloat16, FP8):
        base = torch.empty(3 * stride, dtype=dtype)
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


# ---- masks, windows, caps, sinks ------------------------------------------------------------------------------------


@pytest.mark.each_isa
@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("window_left", [0, 1, 15, 16, 17, 63, 1000])
def test_windows(backend, window_left, causal):
    skip_unless(backend)
    case = make_attention(backend, [1, 6, 40, 9], [130, 6, 97, 4], window_left=window_left, causal=causal)
    for splits in (0, 3):
        check(backend, case, splits)


def test_keys_outside_the_window_may_be_gone(backend):
    """With a window, keys before it may hold NaN (their blocks were given back)."""
    skip_unless(backend)
    case = make_attention(backend, [2], [100], window_left=20)
    for slot in reference.sequence_slots(case.block_table[0], 100 - 2 - 20, 16):
        fill(case.k_cache[slot // 16, slot % 16], torch.full((2, 64), math.nan))
        fill(case.v_cache[slot // 16, slot % 16], torch.full((2, 64), math.nan))
    for splits in (0, 1, 3, -1):
        check(backend, case, splits)


@pytest.mark.each_isa
@pytest.mark.parametrize("softcap", [0.5, 20.0, 50.0])
def test_softcap(backend, softcap):
    skip_unless(backend)
    case = make_attention(backend, [1, 6], [60, 30], softcap=softcap)
    case.query.mul_(10)
    check(backend, case)


@pytest.mark.each_isa
def test_sinks(backend):
    skip_unless(backend)
    sinks = torch.tensor([-3.0, 0.0, 2.5, 30.0])
    for splits in (0, 1, 3, -1):
        check(backend, make_attention(backend, [1, 6, 2], [60, 30, 2], sinks=sinks), splits)
    check(backend, make_attention(backend, [3], [40], sinks=torch.full((4,), -math.inf)))


@pytest.mark.each_isa
@pytest.mark.parametrize("size", [1, 2, 8, 31, 32, 33, 64, 70])
def test_trees(backend, size):
    skip_unless(backend)
    new, lengths = [size, 1, min(size, 5)], [size + 21, 40, min(size, 5)]
    for spare in (0, 40):
        case = make_attention(backend, new, lengths, spare=spare, **tree_options(new, size + spare, random_tree))
        check(backend, case)
        check(backend, case, -1)


@pytest.mark.each_isa
def test_rows_that_see_only_their_sink(backend):
    """Nothing but the sink: out is 0 and lse the sink, which merging with another part relies on."""
    skip_unless(backend)
    sinks = torch.tensor([-3.0, 0.0, 2.5, 30.0])
    for splits in (0, 1, 3, -1):
        case = make_attention(backend, [4, 1], [2, 0], sinks=sinks)
        out, lse = check(backend, case, splits)
        assert (out[[0, 1, 4]] == 0).all()
        torch.testing.assert_close(lse[:, [0, 1, 4]].cpu(), sinks[:, None].expand(4, 3))


def test_one_part_of_the_keys_and_the_other_merge_into_the_whole(backend):
    """Attention over a shared prefix and over the rest, the sink given to one of them."""
    skip_unless(backend)
    sinks = torch.tensor([-1.0, 0.5, 2.0, 0.0])
    whole = make_attention(backend, [6], [96], dtype=torch.float16, sinks=sinks)
    want = run(backend, whole)
    prefix = dataclasses.replace(
        whole,
        seqused_k=whole.seqused_k - 32,
        options={"causal": False},
        block_table=whole.block_table[:, :4].contiguous(),
    )
    suffix = dataclasses.replace(
        whole, seqused_k=whole.seqused_k - 64, block_table=whole.block_table[:, 4:].contiguous()
    )
    parts = run(backend, prefix), run(backend, suffix)
    out, lse = torch.empty_like(want[0].contiguous()), torch.empty_like(want[1])
    backend.ops.merge_states(out, lse, *parts[0], *parts[1])
    torch.testing.assert_close(out, want[0], rtol=4e-3, atol=2e-3)
    torch.testing.assert_close(lse, want[1], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("window_left", [0, 3, 10, 80, 100])
def test_a_tree_with_a_window(backend, window_left):
    """p counts ancestors: siblings at the same depth have the same window."""
    skip_unless(backend)
    new, lengths = [12, 20], [130, 300]
    case = make_attention(backend, new, lengths, window_left=window_left, **tree_options(new, 20, random_tree))
    for splits in (0, 3, -1):
        check(backend, case, splits)


def chain(n):
    return None, [[j <= i for j in range(n)] for i in range(n)]


@pytest.mark.parametrize("num_splits", [1, -1])
def test_a_chain_as_a_tree_is_causal_attention(backend, num_splits):
    skip_unless(backend)
    new, lengths = [5, 1, 40], [77, 20, 50]
    plain = make_attention(backend, new, lengths)
    tree = dataclasses.replace(
        plain, options={"tree_mask": tree_options(new, 40, chain)["tree_mask"].to(backend.device)}
    )
    out_plain, lse_plain = run(backend, plain, num_splits)
    out_tree, lse_tree = run(backend, tree, num_splits)
    if num_splits == -1:
        assert same_bits(out_plain, out_tree) and same_bits(lse_plain, lse_tree)
    torch.testing.assert_close(out_plain, out_tree)
    torch.testing.assert_close(lse_plain, lse_tree)


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


# ---- bitwise promises -----------------------------------------------------------------------------------------------

INVARIANT = [
    {},
    {"dtype": torch.float16, "head_dim": 128, "heads": 6, "kv_heads": 1},
    {"cache_dtype": FP8, "k_scale": torch.tensor(0.3), "v_scale": torch.tensor(0.7)},
    {"window_left": 100},
    {"softcap": 10.0, "sinks": torch.tensor([0.1, -1.0, 2.0, 0.0])},
    {"dtype": torch.float32},
    {"block_size": 64, "head_dim": 96, "layout": "interleaved"},
]


def assert_rows(got, want, what):
    (out, lse), (want_out, want_lse) = got, want
    assert same_bits(out, want_out), f"{what}: out differs"
    assert same_bits(lse.contiguous(), want_lse.contiguous()), f"{what}: lse differs"


@pytest.mark.each_isa
@pytest.mark.parametrize("variant", range(len(INVARIANT)))
def test_num_splits_minus_1_is_batch_invariant(backend, variant):
    """A row has the same bits in a batch, alone, in any cut into chunks, under any max_seqlen_q and thread count."""
    settings = INVARIANT[variant]
    skip_unless(backend, settings.get("dtype", torch.bfloat16))
    new, lengths = [1, 37, 5, 18, 1], [700, 50, 300, 18, 16]
    case = make_attention(backend, new, lengths, **settings)
    out, lse = run(backend, case, -1)
    for b in range(len(new)):
        first = sum(new[:b])
        for cuts in ([0, new[b]], list(range(new[b] + 1)), sorted({0, new[b] // 3, new[b] // 2, new[b]})):
            if len(cuts) > 20:
                cuts = cuts[:8] + cuts[-8:]
            for start, stop in itertools.pairwise(cuts):
                part = one_sequence(case, b, start, stop)
                part.max_seqlen_q += random.Random(start).choice([0, 1, 100])
                want = out[first + start : first + stop], lse[:, first + start : first + stop]
                assert_rows(run(backend, part, -1), want, f"sequence {b}, rows {start} to {stop}")
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        assert_rows(run(backend, case, -1), (out, lse), "one thread")
    finally:
        torch.set_num_threads(threads)


def test_num_splits_minus_1_does_not_see_where_blocks_lie(backend):
    """The same keys in other blocks, another memory layout and another order of sequences: the same bits."""
    skip_unless(backend)
    new, lengths = [3, 20, 1], [260, 90, 33]
    case = make_attention(backend, new, lengths, layout="nhd")
    out, lse = run(backend, case, -1)
    for layout in LAYOUTS:
        other = make_attention(backend, new, lengths, layout=layout)
        for b, length in enumerate(lengths):
            old, now = (reference.sequence_slots(c.block_table[b], length, 16) for c in (case, other))
            for s, t in zip(old, now):
                fill(other.k_cache[t // 16, t % 16], case.k_cache[s // 16, s % 16])
                fill(other.v_cache[t // 16, t % 16], case.v_cache[s // 16, s % 16])
        other.query = case.query
        assert_rows(run(backend, other, -1), (out, lse), layout)
    order = [2, 0, 1]
    parts = [case.query[int(case.cu_seqlens_q[b]) : int(case.cu_seqlens_q[b + 1])] for b in order]
    moved = dataclasses.replace(
        case,
        query=torch.cat(parts),
        cu_seqlens_q=cumulative([new[b] for b in order], backend.device),
        seqused_k=case.seqused_k[order],
        block_table=case.block_table[order],
    )
    out_moved, lse_moved = run(backend, moved, -1)
    start = 0
    for b in order:
        rows = slice(sum(new[:b]), sum(new[: b + 1]))
        here = slice(start, start + new[b])
        assert_rows((out_moved[here], lse_moved[:, here]), (out[rows], lse[:, rows]), f"sequence {b}")
        start += new[b]


def test_num_splits_minus_1_does_not_see_the_block_size(backend):
    skip_unless(backend)
    new, lengths = [3, 20, 1], [260, 90, 33]
    case = make_attention(backend, new, lengths, block_size=16)
    want = run(backend, case, -1)
    for block_size in (32, 256):
        other = make_attention(backend, new, lengths, block_size=block_size)
        for b, length in enumerate(lengths):
            old = reference.sequence_slots(case.block_table[b], length, 16)
            now = reference.sequence_slots(other.block_table[b], length, block_size)
            for s, t in zip(old, now):
                fill(other.k_cache[t // block_size, t % block_size], case.k_cache[s // 16, s % 16])
                fill(other.v_cache[t // block_size, t % block_size], case.v_cache[s // 16, s % 16])
        other.query = case.query
        assert_rows(run(backend, other, -1), want, f"block_size {block_size}")


def test_a_call_repeats_itself(backend):
    skip_unless(backend)
    case = make_attention(backend, [1, 30, 4], [900, 40, 300])
    for splits in (0, 1, 3, -1):
        assert_rows(run(backend, case, splits), run(backend, case, splits), f"num_splits {splits}")


def test_tree_mask_words_follow_max_seqlen_q(backend):
    """More words than the batch needs: their bits are not looked at beyond a sequence's own tokens."""
    skip_unless(backend)
    new = [3, 2]
    _, rows = random_tree(3)
    _, more = random_tree(2)
    mask = pack_bits([*rows, *more], words(100))
    check(backend, make_attention(backend, new, [30, 9], spare=97, tree_mask=mask))


# ---- the schedule ---------------------------------------------------------------------------------------------------


def make_schedule(backend, case, num_splits, slack=0):
    import stateful_kv as skv

    batch, (total, heads, dim) = case.seqused_k.size(0), case.query.shape
    kv_heads = case.k_cache.size(2)
    size = skv.ops.schedule_size(batch, total, heads, kv_heads, dim, case.max_seqlen_q, num_splits)
    schedule = torch.full((size + slack,), -123456789, dtype=torch.int32, device=backend.device)
    shape = {k: v for k, v in case.options.items() if k in ("causal", "window_left")}
    before = Frozen(cu_seqlens_q=case.cu_seqlens_q, seqused_k=case.seqused_k)
    backend.ops.schedule_delta_prefill(
        schedule, case.cu_seqlens_q, case.seqused_k, heads, kv_heads, dim, case.max_seqlen_q, num_splits, **shape
    )
    before.check()
    return schedule


@pytest.mark.each_isa
@pytest.mark.parametrize("num_splits", [0, 1, 3, -1])
@pytest.mark.parametrize("options", [{}, {"window_left": 70}, {"causal": False}], ids=str)
def test_a_schedule_changes_no_bit(backend, num_splits, options):
    """One schedule serves layers of different keys; entries past its size are not needed."""
    skip_unless(backend)
    new, lengths = [1, 40, 0, 5, 2], [1300, 300, 7, 5, 129]
    schedule = None
    for layer, layout in enumerate(("nhd", "blocks_2")):
        case = make_attention(backend, new, lengths, heads=8, layout=layout, padding_rows=layer, **options)
        if schedule is None:
            schedule = make_schedule(backend, case, num_splits, slack=5)
        want = run(backend, case, num_splits)
        assert_rows(run(backend, case, num_splits, schedule), want, f"layer {layer}")
        check(backend, case, num_splits, schedule)


def test_a_schedule_of_an_empty_batch(backend):
    skip_unless(backend)
    for new, lengths in (([], []), ([0, 0], [5, 0])):
        case = make_attention(backend, new, lengths, padding_rows=2)
        check(backend, case, 0, make_schedule(backend, case, 0))


def test_a_schedule_of_another_call_is_refused(backend):
    """Work lists that do not fit would leave rows unwritten."""
    if not backend.checks_indices:
        pytest.skip("its content is on the device")
    case = make_attention(backend, [1, 4], [200, 30])
    schedule = make_schedule(backend, case, 1, slack=100)
    other = make_attention(backend, [1, 4, 1], [200, 30, 4])
    for kwargs in ({"case": case, "num_splits": -1}, {"case": other, "num_splits": 1}):
        with pytest.raises(RuntimeError, match="schedule"):
            run(backend, **kwargs, schedule=schedule)
    schedule.zero_()
    with pytest.raises(RuntimeError, match="schedule"):
        run(backend, case, 1, schedule)


def test_the_wrapper_makes_schedules_and_outputs(backend):
    import stateful_kv as skv

    if backend.name == "simt":
        pytest.skip("the wrappers call the real library")
    skip_unless(backend)
    case = make_attention(backend, [1, 20], [500, 60])
    out, lse = run(backend, case)
    tensors = (case.query, case.k_cache, case.v_cache, case.cu_seqlens_q, case.seqused_k, case.block_table)
    schedule = skv.ops.schedule_delta_prefill(case.cu_seqlens_q, case.seqused_k, 4, 2, 64, case.max_seqlen_q)
    assert same_bits(skv.ops.delta_prefill(*tensors, case.max_seqlen_q), out)
    got = skv.ops.delta_prefill(*tensors, case.max_seqlen_q, schedule=schedule, return_lse=True)
    assert_rows(got, (out, lse), "wrapper")
    mine = torch.empty_like(out)
    assert skv.ops.delta_prefill(*tensors, case.max_seqlen_q, out=mine) is mine
