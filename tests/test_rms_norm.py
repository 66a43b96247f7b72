"""rms_norm: exact to rounding, and a row's bits depend on that row and the weight alone."""

import random

import pytest
import reference
import torch
import torch.nn.functional as F
from backends import FLOATS
from cases import Frozen, assert_close, nan_storage, same_bits
from row_cases import HIDDEN, another_call, threads

EPSILON = 1e-5


def norm(backend, x, weight, out=None, epsilon=EPSILON):
    out = torch.empty_like(x) if out is None else out
    backend.ops.rms_norm(out, x, weight, epsilon)
    return out


def inputs(backend, rows, hidden, dtype):
    return torch.randn(rows, hidden).to(dtype).to(backend.device), torch.randn(hidden).to(dtype).to(backend.device)


@pytest.mark.each_isa
@pytest.mark.parametrize("hidden", HIDDEN)
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_against_float64(backend, dtype, hidden):
    x, weight = inputs(backend, 7, hidden, dtype)
    before = Frozen(x=x, weight=weight)
    out = norm(backend, x, weight, nan_storage((7, hidden), dtype, backend.device))
    before.check()
    exact = reference.rms_norm(x.cpu().double(), weight.cpu().double(), EPSILON)
    assert_close(out, exact, F.rms_norm(x, (hidden,), weight, EPSILON))
    assert same_bits(norm(backend, x, weight, x), out), "in place"


@pytest.mark.each_isa
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_a_row_does_not_depend_on_its_call(backend, dtype):
    for hidden in (40, 70, 768, 1023):
        x, weight = inputs(backend, 30 if backend.emulated else 300, hidden, dtype)
        want = torch.cat([norm(backend, row[None], weight) for row in x])
        for _ in range(4 if backend.emulated else 12):
            with threads(random.choice((1, 2, 3))):
                chosen, keep, placed, out = another_call(backend, x, hidden, dtype)
                norm(backend, placed, weight, out)
            assert same_bits(out[keep], want[chosen[keep]]), f"{len(placed)} rows of {hidden}"
            assert out[~keep].isnan().all()


@pytest.mark.each_isa
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_writes_out_and_nothing_else(backend, dtype):
    for hidden in (1, 16, 45):
        x, weight = inputs(backend, 5, hidden, dtype)
        memory = nan_storage((7, hidden + 9), dtype, backend.device)
        around, out = Frozen(memory=memory), memory[1:6, 4 : 4 + hidden]
        inside = out.clone()
        assert not norm(backend, x, weight, out).isnan().any()
        out.copy_(inside)
        around.check()


def test_rows_of_zeros_and_empty_calls(backend):
    x, weight = inputs(backend, 3, 40, torch.float32)
    assert torch.equal(norm(backend, torch.zeros_like(x), weight), torch.zeros_like(x))
    for rows, hidden in ((0, 40), (3, 0), (0, 0)):
        x, weight = inputs(backend, rows, hidden, torch.bfloat16)
        assert norm(backend, x, weight).shape == (rows, hidden)
    x, weight = inputs(backend, 1, 40, torch.bfloat16)
    out = norm(backend, x.expand(9, -1), weight, torch.empty(9, 40, dtype=x.dtype, device=backend.device))
    assert same_bits(out, norm(backend, x, weight).expand(9, -1).contiguous())


def test_shifted_in_place_is_refused(backend):
    memory = torch.randn(6, 40, device=backend.device)
    before = Frozen(memory=memory)
    with pytest.raises(RuntimeError, match=r"\[ValueError\] rms_norm: out overlaps input"):
        norm(backend, memory[:5], memory[0].clone(), memory[1:])
    before.check()
