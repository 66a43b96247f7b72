"""silu_and_mul: exact to rounding for every magnitude, each row by itself."""

import math
import random

import pytest
import reference
import torch
import torch.nn.functional as F
from backends import FLOATS
from cases import Frozen, assert_close, nan_storage, same_bits
from row_cases import HIDDEN, another_call, threads


def silu_and_mul(backend, x, out=None):
    out = x.new_empty(x.size(0), x.size(1) // 2) if out is None else out
    backend.ops.silu_and_mul(out, x)
    return out


def plain(x):
    gate, up = x.chunk(2, -1)
    return F.silu(gate) * up


@pytest.mark.each_isa
@pytest.mark.parametrize("size", HIDDEN)
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_against_float64(backend, dtype, size):
    x = (torch.randn(7, 2 * size) * 4).to(dtype).to(backend.device)
    before = Frozen(x=x)
    out = silu_and_mul(backend, x, nan_storage((7, size), dtype, backend.device))
    before.check()
    assert_close(out, reference.silu_and_mul(x.cpu().double()), plain(x))


@pytest.mark.each_isa
def test_every_magnitude(backend):
    """One gate per row, so that small results are not judged beside large ones."""
    gates = [s * 10.0**e for e in range(-30, 30, 3) for s in (1, -1)] + [0.0, 20.0, -20.0, 60.0, -60.0, 85.0, -85.0]
    x = torch.tensor([[g, 1.5] for g in gates], device=backend.device)
    exact = reference.silu_and_mul(x.cpu().double()).nan_to_num()
    assert_close(silu_and_mul(backend, x), exact, plain(x))
    special = torch.tensor([[math.inf, 1.0], [math.nan, 1.0], [1.0, math.nan], [1.0, -math.inf]], device=backend.device)
    got = silu_and_mul(backend, special).flatten().tolist()
    assert got[0] == math.inf and math.isnan(got[1]) and math.isnan(got[2]) and got[3] == -math.inf


@pytest.mark.each_isa
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_a_row_does_not_depend_on_its_call(backend, dtype):
    for size in (40, 70, 1023):
        x = torch.randn(30 if backend.emulated else 200, 2 * size).to(dtype).to(backend.device)
        want = torch.cat([silu_and_mul(backend, row[None]) for row in x])
        for _ in range(4 if backend.emulated else 12):
            with threads(random.choice((1, 2, 3))):
                chosen, keep, placed, out = another_call(backend, x, size, dtype)
                silu_and_mul(backend, placed, out)
            assert same_bits(out[keep], want[chosen[keep]]), f"{len(placed)} rows of {size}"
            assert out[~keep].isnan().all()


def test_writes_out_and_nothing_else(backend):
    for size in (1, 16, 45):
        x = torch.randn(5, 2 * size, device=backend.device).bfloat16()
        memory = nan_storage((7, size + 9), torch.bfloat16, backend.device)
        around, out = Frozen(memory=memory), memory[1:6, 4 : 4 + size]
        inside = out.clone()
        assert not silu_and_mul(backend, x, out).isnan().any()
        out.copy_(inside)
        around.check()


def test_empty_calls_and_overlap(backend):
    for rows, size in ((0, 40), (3, 0)):
        x = torch.randn(rows, 2 * size, device=backend.device)
        assert silu_and_mul(backend, x).shape == (rows, size)
    memory = torch.randn(6, 120, device=backend.device)
    want = silu_and_mul(backend, memory[:, :80].clone())
    assert same_bits(silu_and_mul(backend, memory[:, :80], memory[:, 80:]).contiguous(), want)
    before = Frozen(memory=memory)
    for out in (memory[:, :40], memory[:, 50:90]):
        with pytest.raises(RuntimeError, match=r"\[ValueError\] silu_and_mul: out overlaps input"):
            silu_and_mul(backend, memory[:, :80], out)
    before.check()
