"""Every op refuses every malformed argument: the promised exception, a message that says what and why, nothing written.

Whatever can be derived from a valid call is derived (dtypes, ranks, sizes, strides, overlap, devices); the rest is
listed by hand.
"""

import math
import re

import pytest
import torch
from cases import Frozen
from op_calls import (
    BLOCK,
    BLOCKS,
    CALLS,
    DIM,
    KV_HEADS,
    NAN,
    OUTPUTS,
    all_tensors,
    int32,
    int64,
    on_device,
    replace,
    rows,
)
from op_refusals import assert_refused, tensors_of, valid

import stateful_kv as skv


@pytest.mark.each_isa
@pytest.mark.parametrize("op", CALLS)
def test_the_valid_calls_are_valid(backend, op):
    """By the raw op and by the wrapper, which returns the very outputs it was given."""
    kwargs = valid(backend, op)
    before = Frozen(**{k: v for k, v in all_tensors(kwargs).items() if k.split("[")[0] not in OUTPUTS[op]})
    assert getattr(backend.ops, op)(**kwargs) is None
    before.check()
    if backend.name == "simt":
        return
    result = getattr(skv.ops, op)(**kwargs)
    results = result if isinstance(result, tuple) else (result,)
    given = {v.data_ptr() for v in all_tensors(kwargs).values()}
    assert all(r is None or r.data_ptr() in given for r in results)


WRONG_DTYPE = {"positions": torch.float32, "slot_mapping": torch.int32, "src_slots": torch.int32}
WRONG_DTYPE |= {"dst_slots": torch.int32, "seeds": torch.int32}


@pytest.mark.parametrize("op, name", tensors_of())
def test_wrong_dtype(backend, op, name):
    kwargs = valid(backend, op)
    t = all_tensors(kwargs)[name]
    wrong = torch.float64 if t.is_floating_point() else torch.int64 if t.dtype == torch.int32 else torch.int32
    wrong = torch.float32 if name == "positions" else wrong
    words = (name.split("[")[0], str(wrong).removeprefix("torch."))
    if name == "positions" and op == "verify_drafts":
        wrong, words = torch.int32, ("positions", "int32")
    assert_refused(backend, op, replace(kwargs, name, t.to(wrong)), TypeError, *words)


def test_wrong_floating_dtypes_beside_each_other(backend):
    """Each is a dtype the op knows; together they make no sense."""
    kwargs = on_device(CALLS["append_kv"](torch.bfloat16), backend.device)
    assert_refused(backend, "append_kv", kwargs | {"key": kwargs["key"].half()}, TypeError, "float16", "bfloat16")
    assert_refused(backend, "append_kv", kwargs | {"value": kwargs["value"].half()}, TypeError, "value")
    assert_refused(backend, "append_kv", kwargs | {"v_cache": kwargs["v_cache"].half()}, TypeError, "v_cache")
    kwargs = on_device(CALLS["delta_prefill"](torch.bfloat16), backend.device)
    assert_refused(backend, "delta_prefill", kwargs | {"query": kwargs["query"].half()}, TypeError)
    assert_refused(backend, "delta_prefill", kwargs | {"out": kwargs["out"].half()}, TypeError, "out")
    kwargs = valid(backend, "rope_append_kv")
    for name in ("query", "query_out", "q_norm_weight", "k_norm_weight"):
        assert_refused(backend, "rope_append_kv", kwargs | {name: kwargs[name].half()}, TypeError, "float16")
    kwargs = valid(backend, "merge_states")
    for name in ("out", "out_a", "out_b"):
        assert_refused(backend, "merge_states", kwargs | {name: kwargs[name].half()}, TypeError)


def needs(op, name):
    """Whether an argument must be a tensor."""
    base = name.split("[")[0]
    (argument,) = (a for a in getattr(torch.ops.stateful_kv, op).default._schema.arguments if a.name == base)
    return not str(argument.type).startswith("Optional")


@pytest.mark.parametrize("op, name", tensors_of())
def test_no_tensor_at_all(backend, op, name):
    """None where a tensor is needed, which torch hands on; a list or a number, which it turns away in its own words."""
    kwargs = valid(backend, op)
    if needs(op, name) and "[" not in name and name not in OUTPUTS[op]:
        assert_refused(backend, op, kwargs | {name: None}, TypeError, f"{name} is None")
    if backend.name == "simt":
        return
    for wrong, words in (([1.0], r"\[1\.0\]"), (3, "3"), ("x", "'x'")):
        with pytest.raises(TypeError, match=rf"^{op}: {re.escape(name)} is {words}, expected a tensor$"):
            getattr(skv.ops, op)(**replace(kwargs, name, wrong))


def test_scalars_of_another_type():
    kwargs = CALLS["propose_drafts"]()
    for name, wrong, error, words in (
        ("max_ngram", 2.5, TypeError, "2.5, expected an int"),
        ("max_ngram", None, TypeError, "None, expected an int"),
        ("min_ngram", 1 << 70, ValueError, f"{1 << 70}, expected a number of 64 bits"),
        ("latest", "no", TypeError, "'no', expected a bool"),
    ):
        with pytest.raises(error, match=f"^propose_drafts: {name} is {words}$"):
            skv.ops.propose_drafts(**kwargs | {name: wrong})
    del kwargs["drafts"]
    for wrong, error in ((-1, ValueError), (None, TypeError), (1.5, TypeError)):
        with pytest.raises(error, match=f"^propose_drafts: max_drafts is {wrong}, expected"):
            skv.ops.propose_drafts(**kwargs, max_drafts=wrong)
    with pytest.raises(TypeError, match=r"^rms_norm: epsilon is 'small', expected a float$"):
        skv.ops.rms_norm(**CALLS["rms_norm"]() | {"epsilon": "small"})
    with pytest.raises(TypeError, match=r"^copy_blocks: k_caches is None, expected a list of tensors$"):
        skv.ops.copy_blocks(**CALLS["copy_blocks"]() | {"k_caches": None})


@pytest.mark.parametrize("op, outputs, name", [
    ("rope_append_kv", ("query_out",), "query"), ("merge_states", ("out",), "out_a"),
    ("merge_states", ("lse",), "lse_a"), ("verify_drafts", ("tokens", "num_tokens"), "logits"),
    ("verify_drafts", ("num_tokens",), "cu_rows"), ("propose_drafts", ("drafts", "num_drafts"), "history"),
    ("delta_prefill", ("out", "lse"), "query"), ("schedule_delta_prefill", ("schedule",), "seqused_k"),
    ("rms_norm", ("out",), "input"), ("silu_and_mul", ("out",), "input"), ("row_linear", ("out",), "x"),
    ("row_linear", ("out",), "weight"), ("pack_linear_weight", ("packed",), "weight"),
])  # fmt: skip
def test_what_missing_outputs_are_made_from(op, outputs, name):
    """The wrapper looks at it before the op can."""
    kwargs = {k: v for k, v in CALLS[op]().items() if k not in outputs}
    for wrong in (None, [1.0]):
        with pytest.raises(TypeError, match=f"^{op}: {name} is (None|\\[1.0\\]), expected a tensor$"):
            getattr(skv.ops, op)(**kwargs | {name: wrong})
    with pytest.raises((ValueError, TypeError), match=f"^{op}: "):
        getattr(skv.ops, op)(**kwargs | {name: torch.tensor(1, dtype=kwargs[name].dtype)})


@pytest.mark.parametrize("op, name", tensors_of())
def test_wrong_rank(backend, op, name):
    kwargs = valid(backend, op)
    t = all_tensors(kwargs)[name]
    shape = str(list(t[None].shape))
    assert_refused(backend, op, replace(kwargs, name, t[None]), ValueError, name.split("[")[0], shape)
    if t.dim() > 1 or "scale" not in name:  # a scale may be a scalar
        assert_refused(backend, op, replace(kwargs, name, t[0].clone()), ValueError, name.split("[")[0])


# What may have another size without being wrong, or is wrong only by its contents: (argument, dimension, change).
FREE = {
    "append_kv": {("slot_mapping", 0, -1)},
    "rope_append_kv": {("slot_mapping", 0, -1), ("positions", 0, 1), ("cos_sin_cache", 0, 1), ("cos_sin_cache", 0, -1)},
    "delta_prefill": {("block_table", 1, 1), ("block_table", 1, -1)},
    "schedule_delta_prefill": {("schedule", 0, 1), ("schedule", 0, -1)},
    "copy_blocks": set(),
    "compact_kv": {("cu_moves", 0, 1), ("cu_moves", 0, -1)},
    "verify_drafts": {("logits", 1, -1)},
    "pack_linear_weight": {("weight", 1, -1)},  # 23 elements are 12 pairs too
    "propose_drafts": {("drafts", 1, 1), ("drafts", 1, -1), ("history", 1, 1), ("history", 1, -1)},
    "plan_step": {(name, 1, by) for name in ("history", "drafts", "block_table") for by in (1, -1)},
    "commit_step": {("history", 1, 1), ("history", 1, -1), ("results", 0, 1), ("results", 0, -1)}
    | {("stop_tokens", 1, 1), ("stop_tokens", 1, -1)},
}


@pytest.mark.parametrize("change", [1, -1])
@pytest.mark.parametrize("op, name", tensors_of())
def test_wrong_sizes(backend, op, name, change):
    """Any one dimension one longer or one shorter contradicts the other arguments."""
    kwargs = valid(backend, op)
    t = all_tensors(kwargs)[name]
    for d in range(t.dim()):
        if (name, d, change) in FREE.get(op, ()):
            continue
        shape = list(t.shape)
        shape[d] += change
        wrong = torch.zeros(shape, dtype=torch.float32, device=t.device).to(t.dtype)
        assert_refused(backend, op, replace(kwargs, name, wrong), (ValueError, NotImplementedError))


MATRICES = [(op, name) for op, name in tensors_of("tree_mask") if all_tensors(CALLS[op]())[name].dim() > 1]


@pytest.mark.parametrize("op, name", MATRICES)
def test_strided_last_dimension(backend, op, name):
    kwargs = valid(backend, op)
    t = all_tensors(kwargs)[name]
    strided = torch.zeros(*t.shape, 2, dtype=torch.float32, device=t.device).to(t.dtype)[..., 0]
    assert_refused(backend, op, replace(kwargs, name, strided), ValueError, name.split("[")[0])


@pytest.mark.parametrize("op, name", tensors_of())
def test_another_device(backend, op, name):
    """A meta tensor among real ones: never a call that does nothing and says nothing."""
    kwargs = valid(backend, op)
    meta = replace(kwargs, name, all_tensors(kwargs)[name].to("meta"))
    before = Frozen(**all_tensors(kwargs))
    with pytest.raises((RuntimeError, NotImplementedError, ValueError)):
        getattr(backend.ops, op)(**meta)
    before.check()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("op", CALLS)
def test_another_real_device(op):
    from backends import Cuda

    kwargs = valid(Cuda(), op)
    for name, t in all_tensors(kwargs).items():
        assert_refused(Cuda(), op, replace(kwargs, name, t.cpu()), ValueError, "cpu", "cuda")


SCALARS = [
    ("rope_append_kv", "norm_eps", (-1.0, NAN)),
    ("rms_norm", "epsilon", (-1.0, NAN)),
    ("fused_add_rms_norm", "epsilon", (-1.0, NAN)),
    ("fused_row_linear", "epsilon", (-1.0, NAN)),
    ("delta_prefill", "max_seqlen_q", (-1,)),
    ("delta_prefill", "softmax_scale", (NAN, math.inf)),
    ("delta_prefill", "window_left", (-2,)),
    ("delta_prefill", "softcap", (-1.0, NAN, math.inf)),
    ("delta_prefill", "num_splits", (-2, 1 << 40)),
    ("schedule_delta_prefill", "num_heads", (0, -4, 3)),
    ("schedule_delta_prefill", "num_kv_heads", (0, -1)),
    ("schedule_delta_prefill", "max_seqlen_q", (-1,)),
    ("schedule_delta_prefill", "num_splits", (-2,)),
    ("schedule_delta_prefill", "window_left", (-2,)),
    ("propose_drafts", "max_ngram", (0, -1)),
    ("propose_drafts", "min_ngram", (0, -1, 4)),
    ("plan_step", "block_size", (0, -1, 1 << 31)),
    ("plan_step", "max_rows", (0, -1, 1 << 31)),
]


@pytest.mark.parametrize("op, name, values", SCALARS, ids=lambda v: str(v))
def test_scalars_out_of_range(backend, op, name, values):
    for value in values:
        assert_refused(backend, op, valid(backend, op) | {name: value}, ValueError, name)


def test_head_dim_of_a_schedule(backend):
    for head_dim in (0, -8, 12):
        kwargs = valid(backend, "schedule_delta_prefill") | {"head_dim": head_dim}
        assert_refused(backend, "schedule_delta_prefill", kwargs, (ValueError, NotImplementedError), "head_dim")


# ---- pairs of arguments ---------------------------------------------------------------------------------------------


def test_scales_beside_a_cache_that_is_not_fp8(backend):
    scale = torch.ones(KV_HEADS, device=backend.device)
    for op in ("append_kv", "rope_append_kv", "delta_prefill"):
        kwargs = on_device(CALLS[op](torch.bfloat16), backend.device)
        for name in ("k_scale", "v_scale"):
            assert_refused(backend, op, kwargs | {name: scale}, ValueError, name, "float8_e4m3fn")


def test_a_batch_of_scales_is_for_attention_only(backend):
    scale = torch.ones(3, KV_HEADS, device=backend.device)
    for op in ("append_kv", "rope_append_kv"):
        assert_refused(backend, op, valid(backend, op) | {"k_scale": scale}, ValueError, "k_scale", "[3, 2]")
    wrong = torch.ones(2, KV_HEADS, device=backend.device)
    assert_refused(
        backend, "delta_prefill", valid(backend, "delta_prefill") | {"k_scale": wrong}, ValueError, "k_scale"
    )


def test_query_heads_that_are_no_multiple(backend):
    for heads in (1, 3, 5):
        wide = rows(6, heads).to(backend.device)
        kwargs = valid(backend, "delta_prefill") | {"query": wide, "out": wide.clone()}
        kwargs |= {"lse": torch.zeros(heads, 6, device=backend.device), "sinks": None}
        assert_refused(backend, "delta_prefill", kwargs, ValueError, str(heads), str(KV_HEADS))
        wide = rows(5, heads).to(backend.device)
        kwargs = valid(backend, "rope_append_kv") | {"query": wide, "query_out": wide.clone()}
        assert_refused(backend, "rope_append_kv", kwargs, ValueError, str(heads))


@pytest.mark.parametrize("value", [1e39, 1e-50, float("nan")])
def test_scalars_that_float32_cannot_hold(backend, value):
    kwargs = valid(backend, "delta_prefill")
    assert_refused(backend, "delta_prefill", kwargs | {"softcap": value}, ValueError, "softcap")
    if value != 1e-50:
        assert_refused(backend, "delta_prefill", kwargs | {"softmax_scale": value}, ValueError, "softmax_scale")


def test_an_empty_tensor_may_have_any_strides(backend):
    empty = torch.zeros(1, device=backend.device).expand(0, 40)
    assert skv.ops.rms_norm(empty, torch.ones(40, device=backend.device), 1e-6).shape == (0, 40)


def test_tree_mask_narrower_than_max_seqlen_q(backend):
    kwargs = valid(backend, "delta_prefill") | {"max_seqlen_q": 33}
    assert_refused(backend, "delta_prefill", kwargs, ValueError, "tree_mask")


def test_a_schedule_of_another_size(backend):
    small = torch.zeros(1, dtype=torch.int32, device=backend.device)
    kwargs = valid(backend, "delta_prefill") | {"schedule": small}
    assert_refused(backend, "delta_prefill", kwargs, ValueError, "schedule")
    kwargs = valid(backend, "schedule_delta_prefill") | {"schedule": small}
    assert_refused(backend, "schedule_delta_prefill", kwargs, ValueError, "schedule")


@pytest.mark.parametrize("op", ["copy_blocks", "compact_kv"])
def test_layers_that_differ(backend, op):
    kwargs = valid(backend, op)
    first = kwargs["k_caches"][0]
    assert_refused(backend, op, kwargs | {"k_caches": []}, ValueError, "k_caches")
    assert_refused(backend, op, kwargs | {"v_caches": kwargs["v_caches"][:1]}, ValueError, "v_caches")
    assert_refused(backend, op, replace(kwargs, "k_caches[1]", first.half()), TypeError, "k_caches[1]", "float16")
    padded = torch.zeros(BLOCKS, BLOCK, KV_HEADS, DIM + 8, device=first.device).to(first.dtype)[..., :DIM]
    assert_refused(backend, op, replace(kwargs, "v_caches[1]", padded), ValueError, "v_caches[1]", "stride")


# ---- what the library does not do -----------------------------------------------------------------------------------


@pytest.mark.parametrize("op", ["append_kv", "rope_append_kv", "delta_prefill"])
def test_unsupported_things_are_refused_by_name(backend, op):
    kwargs = valid(backend, op)
    short = torch.zeros(BLOCKS, BLOCK, KV_HEADS, DIM // 2, device=backend.device).to(kwargs["v_cache"].dtype)
    assert_refused(backend, op, kwargs | {"v_cache": short}, NotImplementedError, "separate value head size")
    for dim in (12, 4, 65544):
        k = torch.zeros(2, 2, 1, dim, device=backend.device).to(kwargs["k_cache"].dtype)
        assert_refused(
            backend, op, kwargs | {"k_cache": k, "v_cache": k.clone()}, NotImplementedError, "head_dim", str(dim)
        )
    k = torch.zeros(BLOCKS, 257, KV_HEADS, DIM, device=backend.device).to(kwargs["k_cache"].dtype)
    assert_refused(backend, op, kwargs | {"k_cache": k, "v_cache": k.clone()}, ValueError, "block_size", "257")
    fp8e5 = kwargs["k_cache"].view(torch.float8_e5m2)
    assert_refused(backend, op, kwargs | {"k_cache": fp8e5, "v_cache": fp8e5.clone()}, TypeError, "k_cache")
    int8 = kwargs["k_cache"].view(torch.int8)
    assert_refused(backend, op, kwargs | {"k_cache": int8, "v_cache": int8.clone()}, TypeError, "int8")


@pytest.mark.parametrize("dtype", [torch.int32, torch.int8, torch.uint8, torch.float8_e4m3fn, torch.float8_e5m2])
@pytest.mark.parametrize("op", ["row_linear", "fused_row_linear", "pack_linear_weight"])
def test_quantised_weights_are_refused_by_name(backend, op, dtype):
    kwargs = valid(backend, op)
    weight = torch.zeros(kwargs["weight"].shape, device=backend.device).to(dtype)
    name = str(dtype).removeprefix("torch.")
    assert_refused(backend, op, kwargs | {"weight": weight}, NotImplementedError, name, "quantised weights")


# ---- indices (on CUDA they are skipped) -----------------------------------------------------------------------------

SLOTS = BLOCKS * BLOCK
INDICES = [
    ("append_kv", {"slot_mapping": int64(0, 1, SLOTS, 3, 4)}, "slot_mapping[2]"),
    ("append_kv", {"slot_mapping": int64(0, 1, 2, 3, 1 << 62)}, "slot_mapping[4]"),
    ("rope_append_kv", {"slot_mapping": int64(SLOTS, 1, 2, 3, 4)}, "slot_mapping[0]"),
    ("rope_append_kv", {"positions": int64(0, 1, 32, 3, 4)}, "positions[2]"),
    ("rope_append_kv", {"positions": int64(0, -1, 2, 3, 4)}, "positions[1]"),
    ("delta_prefill", {"block_table": int32(0, BLOCKS, 2, 3, 4, -1).view(3, 2)}, "block_table"),
    ("delta_prefill", {"cu_seqlens_q": int32(0, 1, 4, 7)}, "cu_seqlens_q[3]"),
    ("delta_prefill", {"cu_seqlens_q": int32(0, 3, 2, 6)}, "cu_seqlens_q[2]"),
    ("delta_prefill", {"cu_seqlens_q": int32(-1, 1, 4, 6)}, "cu_seqlens_q[0]"),
    ("delta_prefill", {"cu_seqlens_q": int32(0, 0, 0, 6)}, "cu_seqlens_q[3]"),
    ("delta_prefill", {"seqused_k": int32(20, 33, 2)}, "seqused_k[1]"),
    ("delta_prefill", {"seqused_k": int32(20, -1, 2)}, "seqused_k[1]"),
    ("schedule_delta_prefill", {"cu_seqlens_q": int32(0, 3, 2, 6)}, "cu_seqlens_q[2]"),
    ("schedule_delta_prefill", {"seqused_k": int32(20, -1, 2)}, "seqused_k[1]"),
    ("copy_blocks", {"src_blocks": int32(0, BLOCKS)}, "src_blocks[1]"),
    ("copy_blocks", {"dst_blocks": int32(BLOCKS, 5)}, "dst_blocks[0]"),
    ("copy_blocks", {"dst_blocks": int32(4, 4)}, "dst_blocks[1]"),
    ("copy_blocks", {"dst_blocks": int32(1, 5)}, "dst_blocks[0]"),
    ("copy_blocks", {"num_tokens": int32(16, 17)}, "num_tokens[1]"),
    ("copy_blocks", {"num_tokens": int32(-1, 3)}, "num_tokens[0]"),
    ("compact_kv", {"src_slots": int64(5, SLOTS, 40)}, "src_slots[1]"),
    ("compact_kv", {"dst_slots": int64(4, 5, SLOTS)}, "dst_slots[2]"),
    ("compact_kv", {"cu_moves": int32(0, 2, 1, 3)}, "cu_moves[2]"),
    ("compact_kv", {"cu_moves": int32(0, 2, 2, 4)}, "cu_moves[3]"),
    ("compact_kv", {"cu_moves": int32(-1, 2, 2, 3)}, "cu_moves[0]"),
    ("verify_drafts", {"cu_rows": int32(0, 3, 2, 6)}, "cu_rows[2]"),
    ("verify_drafts", {"cu_rows": int32(0, 3, 4, 7)}, "cu_rows[3]"),
    ("verify_drafts", {"parents": int32(0, 0, 0, -1, -1, 0)}, "parents[0]"),
    ("verify_drafts", {"parents": int32(-1, 0, 2, -1, -1, 0)}, "parents[2]"),
    ("verify_drafts", {"parents": int32(-1, -1, 0, -1, -1, 0)}, "parents[1]"),
    ("verify_drafts", {"parents": None, "cu_rows": int32(0, 4, 4, 6)}, "cu_rows[1]"),
    ("propose_drafts", {"history_lens": int32(20, 21, 7)}, "history_lens[1]"),
    ("propose_drafts", {"history_lens": int32(20, 0, -1)}, "history_lens[2]"),
    ("plan_step", {"lengths": int32(20, 41, 2)}, "lengths[1]"),
    ("plan_step", {"computed": int32(19, 28, 3)}, "computed[2]"),
    ("plan_step", {"computed": int32(-1, 28, 2)}, "computed[0]"),
    ("plan_step", {"max_lengths": int32(41, 40, 9)}, "max_lengths[0]"),
    ("plan_step", {"num_slots": int32(32, 33, 16)}, "num_slots[1]"),
    ("plan_step", {"num_drafts": int32(4, 4, 5)}, "num_drafts[2]"),
    ("plan_step", {"block_table": int32(0, -1, 2, 3, 4, -1).view(3, 2)}, "block_table[1]"),
    ("commit_step", {"lengths": int32(20, 41, 2)}, "lengths[1]"),
    ("commit_step", {"lengths": int32(20, 31, 0), "computed": int32(19, 28, 0)}, "lengths[2]"),
    ("commit_step", {"computed": int32(21, 28, 2)}, "computed[0]"),
    ("commit_step", {"max_lengths": int32(40, 41, 3)}, "max_lengths[1]"),
    ("commit_step", {"cu_seqlens_q": int32(0, 4, 3, 8)}, "cu_seqlens_q[2]"),
    ("commit_step", {"cu_seqlens_q": int32(0, 4, 16, 18)}, "cu_seqlens_q[2]"),  # 12 of 11 tokens to feed
    ("commit_step", {"cu_seqlens_q": int32(0, 5, 7, 9)}, "cu_seqlens_q[1]"),  # a row too many for its logits
    ("commit_step", {"cu_rows": int32(0, 4, 3, 6)}, "cu_rows[2]"),
    ("commit_step", {"cu_rows": int32(0, 5, 5, 6)}, "cu_rows[1]"),
    ("commit_step", {"num_tokens": int32(5, 0, 2)}, "num_tokens[0]"),
    ("commit_step", {"step": int64(-1)}, "step[0]"),
]


@pytest.mark.each_isa
@pytest.mark.parametrize("op, change, where", INDICES, ids=lambda v: v if isinstance(v, str) else "")
def test_indices_out_of_range(backend, op, change, where):
    kwargs = valid(backend, op) | on_device(change, backend.device)
    if op == "delta_prefill" and "block_table" not in change:
        kwargs["tree_mask"] = None
    if backend.checks_indices:
        assert_refused(backend, op, kwargs, IndexError, where)
    else:  # skipped, and never out of bounds; what stands where is test_wild_indices.py's
        inputs = Frozen(**{k: t for k, t in all_tensors(kwargs).items() if k.split("[")[0] not in OUTPUTS[op]})
        assert getattr(backend.ops, op)(**kwargs) is None
        inputs.check()


@pytest.mark.parametrize("op, change, where", [
    ("delta_prefill", {"query": rows(0, 4), "out": rows(0, 4), "lse": torch.zeros(4, 0)}, "cu_seqlens_q[1]"),
    ("delta_prefill", {"cu_seqlens_q": int32(-5), "seqused_k": int32(), "block_table": int32().view(0, 2)}, "cu_s"),
    ("verify_drafts", {"cu_rows": int32(9), "tokens": int32().view(0, 3), "num_tokens": int32()}, "cu_rows[0]"),
    ("compact_kv", {"cu_moves": int32(9)}, "cu_moves[0]"),
], ids=["no_rows", "no_sequences", "nothing_to_verify", "no_moves"])  # fmt: skip
def test_indices_of_calls_with_nothing_to_do(backend, op, change, where):
    kwargs = valid(backend, op) | on_device(change, backend.device)
    if op == "verify_drafts":
        kwargs |= {k: None for k in kwargs if k not in (*change, "logits", "draft_tokens")}
    if op == "delta_prefill":
        kwargs["tree_mask"] = None
    if backend.checks_indices:
        assert_refused(backend, op, kwargs, IndexError, where)
    else:
        assert getattr(backend.ops, op)(**kwargs) is None


def test_out_of_range_slots_are_skipped_where_they_are_not_checked(backend):
    if backend.checks_indices:
        pytest.skip("checked")
    kwargs = on_device(CALLS["append_kv"](torch.bfloat16), backend.device)
    kwargs["slot_mapping"] = int64(0, SLOTS, 1 << 40, -1, 5).to(backend.device)
    want = kwargs["k_cache"].clone()
    want[0, 0], want[0, 5] = kwargs["key"][0], kwargs["key"][4]
    backend.ops.append_kv(**kwargs)
    assert torch.equal(kwargs["k_cache"], want)


def test_sampling_without_seeds(backend):
    for name in ("seeds", "positions"):
        assert_refused(backend, "verify_drafts", valid(backend, "verify_drafts") | {name: None}, ValueError, name)
