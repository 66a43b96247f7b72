"""Bitwise promises of delta_prefill: num_splits = -1, repeated calls, and schedules made beforehand."""

import dataclasses
import itertools
import os
import random

import pytest
import reference
import torch
from attention_cases import check, make_attention, one_sequence, run, skip_unless
from backends import FP8
from cases import LAYOUTS, Frozen, cumulative, fill, same_bits

import stateful_kv as skv

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


LONG = [
    {"heads": 4, "kv_heads": 1},
    {"heads": 4, "kv_heads": 1, "dtype": torch.float16, "window_left": 1300},
    {"heads": 4, "kv_heads": 1, "cache_dtype": FP8, "v_scale": torch.tensor(0.7), "sinks": torch.randn(4)},
    {"heads": 2, "kv_heads": 2, "head_dim": 192},
]


@pytest.mark.parametrize("variant", range(len(LONG)))
def test_num_splits_minus_1_does_not_see_how_many_rows_a_call_has(backend, variant):
    """Contexts of several splits, calls of 1 to 160 rows a KV head: what a kernel does by rows shows in no bit."""
    skip_unless(backend, LONG[variant].get("dtype", torch.bfloat16))
    new, lengths = [1, 40, 4], [2100, 2090, 1024]
    case = make_attention(backend, new, lengths, **LONG[variant])
    out, lse = check(backend, case, -1)
    for b, cuts in ((0, [0, 1]), (1, [0, 1, 5, 21, 40]), (1, [0, 40]), (1, [0, 33, 40]), (2, [0, 3, 4])):
        for start, stop in itertools.pairwise(cuts):
            rows = slice(sum(new[:b]) + start, sum(new[:b]) + stop)
            for batch in (1, 3):  # beside others there is less reason to split
                part = one_sequence(case, b, start, stop)
                tokens = stop - start
                part.query = torch.cat([part.query] * batch)
                part.cu_seqlens_q = cumulative([tokens] * batch, backend.device)
                part.seqused_k = part.seqused_k.repeat(batch)
                part.block_table = part.block_table.repeat(batch, 1)
                got_out, got_lse = run(backend, part, -1)
                for i in range(batch):
                    here = slice(i * tokens, (i + 1) * tokens)
                    want = out[rows], lse[:, rows]
                    assert_rows(
                        (got_out[here], got_lse[:, here]), want, f"rows {start} to {stop} of {b}, {batch} times"
                    )


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
    for block_size in (4, 32, 256):  # of 4, by hand where others come by TMA
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


def test_no_worker_takes_a_second_item_that_keeps_the_others_waiting(backend):
    """Sequences that do not fill a CUDA kernel's workers are cut into as many items as there are workers, or fewer."""
    skip_unless(backend)
    if backend.name == "cpu":
        pytest.skip("its threads take the next item when they are done with one")
    multiprocessors = (
        int(os.environ.get("SIMT_MULTIPROCESSORS", 4))
        if backend.emulated
        else torch.cuda.get_device_properties(0).multi_processor_count
    )
    workers, kv_heads = 2 * multiprocessors, 2
    for batch in range(1, workers // kv_heads + 1):
        cu_seqlens_q = torch.arange(batch + 1, dtype=torch.int32, device=backend.device)
        seqused_k = torch.full((batch,), 512 * workers, dtype=torch.int32, device=backend.device)
        schedule = torch.zeros(skv.ops.schedule_size(batch), dtype=torch.int32, device=backend.device)
        backend.ops.schedule_delta_prefill(schedule, cu_seqlens_q, seqused_k, 8, kv_heads, 128, 1, 0)
        assert workers // 2 < int(schedule[2]) <= workers, f"{batch} sequences"


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
