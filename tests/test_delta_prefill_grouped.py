"""delta_prefill_grouped: sequences that share leading blocks, against delta_prefill and the oracle of each sequence."""

import dataclasses

import pytest
import reference
import torch
from attention_cases import check, fp8_scales, make_attention, run, tree_options
from backends import FLOATS, FP8
from cases import assert_close, random_tree

import stateful_kv as skv
from stateful_kv.prefix_groups import COSTS, grouping_pays

# Groups of sequences: new tokens and tokens in the cache of each, leading blocks that they share.
GROUPS = {
    "one_group": [([1, 3, 2], [70, 90, 67], 4)],
    "lone": [([4], [40], 0), ([1], [33], 0)],
    "mixed": [([1, 1, 5], [100, 101, 130], 5), ([7], [20], 0), ([2, 2], [40, 52], 2), ([1], [17], 1)],
    "nothing_of_its_own_but_new": [([3, 3], [67, 67], 4)],
    "many_rows": [([40, 30], [200, 120], 5), ([1], [300], 0)],
    "nothing_new_in_one": [([0, 4], [64, 70], 4)],
}


def skip_unless(backend):
    if backend.name == "simt":
        pytest.skip("the wrappers call the real library")


def make(backend, groups, **options):
    new = [n for group in groups for n in group[0]]
    lengths = [n for group in groups for n in group[1]]
    case = make_attention(backend, new, lengths, **options)
    cu_groups, b = [0], 0
    for of_group, _, shared in groups:
        for i in range(1, len(of_group)):
            case.block_table[b + i, :shared] = case.block_table[b, :shared]
        b += len(of_group)
        cu_groups.append(b)
    where = case.query.device
    shares = torch.tensor([g[2] for g in groups], dtype=torch.int32, device=where)
    return case, torch.tensor(cu_groups, dtype=torch.int32, device=where), shares


def grouped(case, cu_groups, shared_blocks, **more):
    return skv.ops.delta_prefill_grouped(
        case.query, case.k_cache, case.v_cache, case.cu_seqlens_q, case.seqused_k, case.block_table,
        case.max_seqlen_q, cu_groups, shared_blocks, case.softmax_scale, **case.options, **more,
    )  # fmt: skip


def check_grouped(case, cu_groups, shared_blocks, **more):
    out, lse = grouped(case, cu_groups, shared_blocks, **more)
    inputs = {k: v.cpu() for k, v in case.tensors.items()}
    inputs |= {k: v for k, v in case.options.items() if k not in inputs} | {"softmax_scale": case.softmax_scale}
    exact_out, exact_lse = reference.delta_prefill(**inputs)
    plain_out, plain_lse = reference.delta_prefill(**inputs, dtype=case.query.dtype)
    rows = int(case.cu_seqlens_q[-1])
    assert_close(out[:rows], exact_out[:rows], plain_out[:rows], "out")
    assert_close(lse[:, :rows].T, exact_lse[:, :rows].T, plain_lse[:, :rows].T, "lse")


@pytest.mark.parametrize("name", GROUPS)
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_groups_are_what_their_sequences_are(backend, dtype, name):
    skip_unless(backend)
    if not backend.supports("delta_prefill", dtype):
        pytest.skip("not promised on this backend")
    for splits in (0, -1, 3):
        check_grouped(*make(backend, GROUPS[name], dtype=dtype), num_splits=splits)


def test_sinks_caps_and_trees(backend):
    """A sink counts once, a tree's mask starts after what is shared."""
    skip_unless(backend)
    new = [n for group in GROUPS["mixed"] for n in group[0]]
    options = {"sinks": torch.tensor([-3.0, 0.0, 2.5, 6.0]), "softcap": 12.0}
    check_grouped(*make(backend, GROUPS["mixed"], **options))
    check_grouped(*make(backend, GROUPS["mixed"], **options, **tree_options(new, max(new), random_tree)))


@pytest.mark.parametrize("shape", ["scalar", "head", "batch_head"])
def test_fp8_scales(backend, shape):
    skip_unless(backend)
    scales = fp8_scales(shape, 7, 2)
    if shape == "batch_head":  # those of a group are one
        for scale in scales.values():
            scale[1:3], scale[5] = scale[0], scale[4]
    check_grouped(*make(backend, GROUPS["mixed"], cache_dtype=FP8, **scales))


def test_rows_of_no_sequence_do_no_harm(backend):
    skip_unless(backend)
    check_grouped(*make(backend, GROUPS["mixed"], padding_rows=5), max_group_seqlen_q=8)


def test_more_shared_than_committed_is_refused(backend):
    skip_unless(backend)
    case, cu_groups, shared = make(backend, GROUPS["one_group"])
    if not backend.checks_indices:
        pytest.skip("its content is on the device")
    with pytest.raises(IndexError, match="not committed"):
        grouped(case, cu_groups, shared + 1)
    with pytest.raises(ValueError, match="shared_blocks"):
        grouped(case, cu_groups, shared[:0])


WRONG_GROUPS = {  # of four sequences, 5, 2 and 3 blocks of which are shared by the first two and by the others
    "starts_late": ([1, 2, 4], [5, 2], "cu_groups goes from 1 to 4"),
    "ends_early": ([0, 2, 3], [5, 2], "cu_groups goes from 0 to 3"),
    "falls": ([0, 3, 2, 4], [0, 0, 0], r"cu_groups\[2\] is 2"),
    "empty_group": ([0, 2, 2, 4], [0, 0, 0], r"cu_groups\[2\] is 2"),
    "negative": ([0, 2, 4], [-1, 2], r"shared_blocks\[0\] is -1"),
    "wide": ([0, 2, 4], [5, 1 << 30], r"shared_blocks\[1\] is 1073741824"),
    "far": ([0, 1 << 30, 4], [0, 0], r"cu_groups\[1\] is 1073741824"),
}


@pytest.mark.parametrize("name", WRONG_GROUPS)
def test_wrong_groups_are_refused_and_lead_nowhere(backend, name):
    """IndexError on the CPU; on a device, where nobody looks, some answer and no access out of bounds."""
    skip_unless(backend)
    bounds, shares, words = WRONG_GROUPS[name]
    case, *_ = make(backend, [([1, 1], [100, 101], 5), ([2, 2], [40, 52], 2)])
    indices = (torch.tensor(x, dtype=torch.int32, device=backend.device) for x in (bounds, shares))
    out, lse = torch.full_like(case.query, 7), torch.full(case.query.shape[1::-1], 7.0, device=backend.device)
    if not backend.checks_indices:
        grouped(case, *indices, out=out, lse=lse)
        return
    with pytest.raises(IndexError, match=f"^delta_prefill_grouped: {words}"):
        grouped(case, *indices, out=out, lse=lse)
    assert (out == 7).all() and (lse == 7).all()


def test_a_bad_block_of_what_is_shared_leaves_the_outputs_alone(backend):
    skip_unless(backend)
    if not backend.checks_indices:
        pytest.skip("its content is on the device")
    case, cu_groups, shared = make(backend, GROUPS["mixed"])
    out, lse = torch.full_like(case.query, 7), torch.full(case.query.shape[1::-1], 7.0)
    for column in (0, 4, 5):  # in what the first group shares, and behind it
        table = case.block_table.clone()
        table[0, column] = len(case.k_cache)
        with pytest.raises(IndexError, match="block_table"):
            grouped(dataclasses.replace(case, block_table=table), cu_groups, shared, out=out, lse=lse)
        assert (out == 7).all() and (lse == 7).all()


def test_malformed_arguments_of_groups_are_named(backend):
    skip_unless(backend)
    case, cu_groups, shared = make(backend, GROUPS["mixed"])
    scale = torch.ones(1, 2, device=backend.device)
    good = dict(
        query=case.query, k_cache=case.k_cache, v_cache=case.v_cache, cu_seqlens_q=case.cu_seqlens_q,
        seqused_k=case.seqused_k, block_table=case.block_table, max_seqlen_q=case.max_seqlen_q, cu_groups=cu_groups,
        shared_blocks=shared, out=torch.full_like(case.query, 7),
    )  # fmt: skip
    for error, name, wrong in (
        (TypeError, "cu_groups", cu_groups.long()), (TypeError, "shared_blocks", None),
        (ValueError, "cu_groups", cu_groups[:0]), (ValueError, "cu_groups", cu_groups[None]),
        (TypeError, "seqused_k", case.seqused_k.long()), (ValueError, "cu_seqlens_q", case.cu_seqlens_q[1:]),
        (ValueError, "block_table", case.block_table[1:]), (TypeError, "block_table", case.block_table.long()),
        (ValueError, "query", case.query[0]), (ValueError, "k_cache", case.k_cache[0]), (TypeError, "query", None),
        (ValueError, "out", good["out"][1:]), (TypeError, "out", good["out"].double()),
        (ValueError, "lse", torch.zeros(1, 1, device=backend.device)), (ValueError, "k_scale", scale),
    ):  # fmt: skip
        with pytest.raises(error, match=rf"^delta_prefill(_grouped)?: {name} "):
            skv.ops.delta_prefill_grouped(**good | {name: wrong})
        assert (good["out"] == 7).all()
    one = torch.arange(len(case.seqused_k) + 2, dtype=torch.int32, device=backend.device)
    with pytest.raises(ValueError, match="cu_groups has 8 groups of 7 sequences"):
        skv.ops.delta_prefill_grouped(**good | {"cu_groups": one, "shared_blocks": one[1:]})


def test_lone_sequences_are_as_without_groups(backend):
    skip_unless(backend)
    case, cu_groups, shared = make(backend, GROUPS["lone"])
    check(backend, case)
    out, lse = run(backend, case)
    got_out, got_lse = grouped(case, cu_groups, shared)
    torch.testing.assert_close(got_out, out)
    torch.testing.assert_close(got_lse, lse)


def test_grouping_pays_where_much_is_read_by_few_rows():
    shape = {"num_heads": 32, "num_kv_heads": 8, "head_dim": 128}
    assert grouping_pays([1] * 32, 4096, **shape)
    assert grouping_pays([8] * 64, 16384, **shape)
    assert not grouping_pays([1], 100000, **shape)  # nobody to share with
    assert not grouping_pays([1, 1], 2048, **shape)  # 8 MB saved do not pay for the launches
    assert not grouping_pays([1] * 8, 64, **shape)
    assert not grouping_pays([2048] * 8, 4096, **shape)  # waits for the tensor cores, not for memory
    assert not grouping_pays([40] * 2, 4096, **shape)
    cpu = shape | {"costs": COSTS["cpu"]}
    assert grouping_pays([1, 1], 2048, **cpu)
    assert not grouping_pays([4] * 8, 4096, **cpu)  # sixteen rows of a KV head keep its multipliers busy
