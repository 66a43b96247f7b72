"""merge_states: attention over two disjoint key sets becomes attention over both."""

import math

import pytest
import reference
import torch
from backends import FLOATS
from cases import Frozen, assert_close, nan_storage, same_bits


def parts(backend, total_q, heads, dim, dtype):
    out_a, out_b = (torch.randn(total_q, heads, dim).to(dtype).to(backend.device) for _ in range(2))
    lse_a, lse_b = (torch.randn(heads, total_q).mul(4).to(backend.device) for _ in range(2))
    return out_a, lse_a, out_b, lse_b


def check(backend, out_a, lse_a, out_b, lse_b, out=None, lse=None):
    exact_out, exact_lse = reference.merge_states(*(t.cpu() for t in (out_a, lse_a, out_b, lse_b)))
    plain_out, _ = reference.merge_states(*(t.cpu() for t in (out_a, lse_a, out_b, lse_b)), dtype=out_a.dtype)
    _, plain_lse = reference.merge_states(*(t.cpu() for t in (out_a, lse_a, out_b, lse_b)), dtype=torch.float32)
    outputs = [t for t in (out, lse) if t is not None]
    inputs = {"out_a": out_a, "lse_a": lse_a, "out_b": out_b, "lse_b": lse_b}
    before = Frozen(**{k: v for k, v in inputs.items() if not any(v is o for o in outputs)})
    out = nan_storage(tuple(out_a.shape), out_a.dtype, out_a.device) if out is None else out
    lse = nan_storage(tuple(lse_a.shape), torch.float32, out_a.device) if lse is None else lse
    backend.ops.merge_states(out, lse, out_a, lse_a, out_b, lse_b)
    before.check()
    assert_close(out, exact_out, plain_out, "out")
    assert_close(lse.T, exact_lse.T, plain_lse.T, "lse")


@pytest.mark.each_isa
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("dim", [8, 40, 64, 80, 128, 256])
def test_dtypes_and_dims(backend, dtype, dim):
    check(backend, *parts(backend, 33, 3, dim, dtype))


@pytest.mark.parametrize("total_q", [0, 1, 2, 65, 1000])
@pytest.mark.parametrize("heads", [1, 7, 32])
def test_sizes(backend, total_q, heads):
    check(backend, *parts(backend, total_q, heads, 64, torch.bfloat16))


@pytest.mark.each_isa
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_parts_that_saw_nothing(backend, dtype):
    out_a, lse_a, out_b, lse_b = parts(backend, 40, 4, 64, dtype)
    for lse, out, rows in ((lse_a, out_a, slice(0, 20)), (lse_b, out_b, slice(10, 30))):
        lse[:, rows] = -math.inf
        out[rows] = 0
    check(backend, out_a, lse_a, out_b, lse_b)
    out, lse = torch.full_like(out_a, math.nan), torch.full_like(lse_a, math.nan)
    backend.ops.merge_states(out, lse, out_a, lse_a, out_b, lse_b)
    assert (out[10:20] == 0).all() and (lse[:, 10:20] == -math.inf).all()
    assert same_bits(out[:10], out_b[:10]) and same_bits(out[20:30], out_a[20:30]), "the other part as it is"


@pytest.mark.each_isa
def test_far_apart_and_huge_lse(backend):
    out_a, lse_a, out_b, lse_b = parts(backend, 6, 2, 64, torch.float32)
    lse_a[:] = torch.tensor([1e4, -1e4, 300.0, -300.0, 1e30, 88.8])
    lse_b[:] = torch.tensor([-1e4, 1e4, 300.0, -299.0, 1e30, 90.0])
    check(backend, out_a, lse_a, out_b, lse_b)


@pytest.mark.parametrize("alias", ["a", "b"])
def test_in_place(backend, alias):
    out_a, lse_a, out_b, lse_b = parts(backend, 33, 3, 64, torch.bfloat16)
    out, lse = (out_a, lse_a) if alias == "a" else (out_b, lse_b)
    check(backend, out_a, lse_a, out_b, lse_b, out, lse)


def test_strides(backend):
    """Slices of wider buffers on every side, and head-major outputs."""
    wide = [torch.randn(21, 5, 72, device=backend.device).to(torch.float16) for _ in range(2)]
    lses = [torch.randn(8, 40, device=backend.device) for _ in range(2)]
    storage = nan_storage((4, 21, 64), torch.float16, backend.device)
    lse_storage = nan_storage((8, 40), torch.float32, backend.device)
    check(
        backend, wide[0][:, 1:, 8:], lses[0][::2, 3:24], wide[1][:, :4, :64], lses[1][4:, :21],
        storage.transpose(0, 1), lse_storage[1:5, 2:23],
    )  # fmt: skip
    kept = lse_storage.clone()
    kept[1:5, 2:23] = math.nan
    assert kept.isnan().all()


def test_three_parts_in_any_order_are_one_softmax(backend):
    """Attention over three sets of keys, merged pairwise, is attention over their union."""
    scores = torch.randn(3, 5, 2, 30).double() * 3  # [part, row, head, key]
    values = torch.randn(3, 30, 2, 64).double()
    outs = [torch.einsum("rhk,khd->rhd", s.softmax(-1), v).float().to(backend.device) for s, v in zip(scores, values)]
    lses = [s.logsumexp(-1).T.float().contiguous().to(backend.device) for s in scores]
    whole = torch.cat(tuple(scores), -1).softmax(-1)
    want = torch.einsum("rhk,khd->rhd", whole, torch.cat(tuple(values)))
    for order in ((0, 1, 2), (2, 0, 1)):
        out, lse = outs[order[0]].clone(), lses[order[0]].clone()
        for i in order[1:]:
            backend.ops.merge_states(out, lse, out, lse, outs[i], lses[i])
        torch.testing.assert_close(out.cpu().double(), want, rtol=1e-5, atol=1e-5)
