"""Outputs that overlap themselves or what is read are refused; views of one buffer that share nothing are not."""

import math
import random

import pytest
import torch
from op_calls import DIM, OUTPUTS, all_tensors, replace, rows
from op_refusals import assert_refused, tensors_of, valid


@pytest.mark.parametrize("op, name", [(op, n) for op, n in tensors_of() if n.split("[")[0] in OUTPUTS[op]])
def test_outputs_that_overlap_themselves(backend, op, name):
    kwargs = valid(backend, op)
    t = all_tensors(kwargs)[name]
    for d in range(t.dim()):
        if (t.dim() > 1 and d == t.dim() - 1) or t.size(d) == 1:
            continue  # its stride is wrong already, or there is nothing to overlap
        one = t.narrow(d, 0, 1).clone()
        assert_refused(backend, op, replace(kwargs, name, one.expand(t.shape)), ValueError, name.split("[")[0])


def test_rows_that_overlap_by_half_are_refused(backend):
    """Strides that step less than a row: out, and a cache."""
    kwargs = valid(backend, "delta_prefill")
    out = kwargs["out"]
    base = torch.zeros(out.numel(), dtype=out.dtype, device=out.device)
    half = base.as_strided(out.shape, (out.stride(0), out.stride(1) // 2, 1))
    assert_refused(backend, "delta_prefill", kwargs | {"out": half}, ValueError, "out")
    kwargs = valid(backend, "append_kv")
    k = kwargs["k_cache"]
    base = torch.zeros(k.numel(), device=k.device).to(k.dtype)
    assert_refused(
        backend, "append_kv", kwargs | {"k_cache": base.as_strided(k.shape, (DIM, 128, 64, 1))}, ValueError, "k_cache"
    )


def test_overlapping_outputs_and_inputs(backend):
    """query_out may be query, out may be out_a; shifted by a row they are refused."""
    kwargs = valid(backend, "rope_append_kv")
    storage = rows(6, 4).to(backend.device)
    assert_refused(
        backend, "rope_append_kv", kwargs | {"query_out": storage[:5], "query": storage[1:]}, ValueError, "query_out"
    )
    kwargs = valid(backend, "merge_states")
    storage = rows(7, 4).to(backend.device)
    assert_refused(backend, "merge_states", kwargs | {"out": storage[1:], "out_a": storage[:6]}, ValueError, "out")
    for out in ("out", "lse"):  # that overlaps itself as well as an input
        shape = kwargs[out].shape
        memory = torch.zeros(2 * math.prod(shape), device=backend.device).to(kwargs[out].dtype)
        strides = (0, *kwargs[out].stride()[1:])
        views = {out: memory.as_strided(shape, strides), out + "_a": memory.as_strided(shape, strides, 1)}
        assert_refused(backend, "merge_states", kwargs | views, ValueError, f"{out} has elements that share memory")


def overlapping(out, other):
    """Both as they were, but for the last element of the one, which is the first of the other."""
    memory = torch.zeros(out.numel() + other.numel(), device=out.device).to(out.dtype)
    to, from_ = memory[: out.numel()].view(out.shape), memory[out.numel() - 1 : -1].view(other.shape)
    to.copy_(out)
    from_.copy_(other)
    return to, from_


@pytest.mark.parametrize("op, out, name", [
    ("rms_norm", "out", "weight"), ("fused_add_rms_norm", "input", "weight"),
    ("fused_add_rms_norm", "residual", "weight"), ("fused_add_rms_norm", "residual", "input"),
    ("silu_and_mul", "out", "input"), ("row_linear", "out", "x"), ("row_linear", "out", "weight"),
    ("row_linear", "out", "bias"), ("fused_row_linear", "out", "x"), ("fused_row_linear", "out", "weight"),
    ("fused_row_linear", "out", "bias"), ("fused_row_linear", "out", "norm_weight"),
    ("pack_linear_weight", "packed", "weight"), ("rope_append_kv", "query_out", "key"),
    ("rope_append_kv", "query_out", "value"), ("delta_prefill", "out", "query"),
])  # fmt: skip
def test_outputs_share_nothing_with_what_is_read(backend, op, out, name):
    kwargs = valid(backend, op)
    kwargs[out], kwargs[name] = overlapping(kwargs[out], kwargs[name])
    assert_refused(backend, op, kwargs, ValueError, out, "overlaps", name)


def bytes_of(t):
    """Every element's place in memory."""
    at = t.storage_offset() + sum(
        torch.arange(n).view(-1, *[1] * (t.dim() - 1 - d)) * t.stride(d) for d, n in enumerate(t.shape)
    )
    return set(at.flatten().tolist())


@pytest.mark.parametrize("seed", range(4))
def test_views_of_one_buffer_overlap_or_do_not(backend, seed):
    """Rows, heads and columns of one memory in every order and at random: refused where an element is in both."""
    rng, refused, taken = random.Random(seed), 0, 0
    memory = torch.zeros(400, device=backend.device)

    def view(shape):
        order, step, strides = rng.sample(range(2), 2), shape[2] + rng.choice((0, 0, 1, 4)), [0, 0, 1]
        for d in order:
            strides[d] = step
            step = step * shape[d] + rng.choice((0, 0, 2, 8))
        return memory.as_strided(shape, strides, rng.randrange(120))

    for _ in range(150):
        shape = tuple(rng.randint(1, 4) for _ in range(3))
        out, out_a = view(shape), view(shape)
        if rng.random() < 0.3:  # two columns of one buffer
            out_a = memory.as_strided(shape, out.stride(), rng.randrange(120))
        kwargs = dict(out=out, out_a=out_a, out_b=torch.zeros(shape, device=backend.device))
        kwargs |= {n: torch.zeros(shape[1::-1], device=backend.device) for n in ("lse", "lse_a", "lse_b")}
        moving = [d for d in range(3) if shape[d] > 1]
        same = out.data_ptr() == out_a.data_ptr() and all(out.stride(d) == out_a.stride(d) for d in moving)
        if same or not bytes_of(out) & bytes_of(out_a):
            backend.ops.merge_states(**kwargs)
            taken += 1
        else:
            assert_refused(backend, "merge_states", kwargs, ValueError, "out overlaps out_a")
            refused += 1
    assert refused > 20 and taken > 20
