"""delta_prefill against the float64 oracle: windows, soft caps, sinks, draft trees, merged parts."""

import dataclasses
import math

import pytest
import reference
import torch
from attention_cases import check, make_attention, run, skip_unless, tree_options
from cases import fill, pack_bits, random_tree, same_bits, words

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


def lost_rows(n):
    """Of every three rows one whose mask has no bit at all."""
    _, rows = random_tree(n)
    return None, [[False] * n if i % 3 == 1 else row for i, row in enumerate(rows)]


@pytest.mark.parametrize("window_left", [0, 1, 23, 127, 128])
def test_a_tree_with_a_window_and_rows_that_see_no_new_token(backend, window_left):
    """Their position is the last committed one: they see a key more than a root does, here also at the end of a tile
    that nobody else sees."""
    skip_unless(backend)
    new, lengths = [12, 20, 5], [130 + 12, 256 + 20, 128 + 5]
    case = make_attention(backend, new, lengths, window_left=window_left, **tree_options(new, 20, lost_rows))
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


def test_tree_mask_words_follow_max_seqlen_q(backend):
    """More words than the batch needs: their bits are not looked at beyond a sequence's own tokens."""
    skip_unless(backend)
    new = [3, 2]
    _, rows = random_tree(3)
    _, more = random_tree(2)
    mask = pack_bits([*rows, *more], words(100))
    check(backend, make_attention(backend, new, [30, 9], spare=97, tree_mask=mask))
