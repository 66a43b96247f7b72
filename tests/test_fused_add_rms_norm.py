"""fused_add_rms_norm: the same bits as an addition followed by rms_norm."""

import random

import pytest
import reference
import torch
import torch.nn.functional as F
from backends import FLOATS
from cases import Frozen, assert_close, same_bits
from row_cases import HIDDEN, place, threads

EPSILON = 1e-6


def inputs(backend, rows, hidden, dtype):
    parts = torch.randn(rows, hidden), torch.randn(rows, hidden) * 3, torch.randn(hidden)
    return [t.to(dtype).to(backend.device) for t in parts]


@pytest.mark.each_isa
@pytest.mark.parametrize("hidden", HIDDEN)
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_against_its_two_steps(backend, dtype, hidden):
    x, residual, weight = inputs(backend, 7, hidden, dtype)
    total = residual + x
    separate = torch.empty_like(total)
    backend.ops.rms_norm(separate, total, weight, EPSILON)
    before = Frozen(weight=weight)
    backend.ops.fused_add_rms_norm(x, residual, weight, EPSILON)
    before.check()
    assert same_bits(residual, total) and same_bits(x, separate)
    exact = reference.rms_norm(total.cpu().double(), weight.cpu().double(), EPSILON)
    assert_close(x, exact, F.rms_norm(total, (hidden,), weight, EPSILON))


@pytest.mark.each_isa
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_a_row_does_not_depend_on_its_call(backend, dtype):
    for hidden in (40, 70, 768):
        x, residual, weight = inputs(backend, 200, hidden, dtype)
        want, want_sum = x.clone(), residual.clone()
        for i in range(200):
            backend.ops.fused_add_rms_norm(want[i : i + 1], want_sum[i : i + 1], weight, EPSILON)
        for _ in range(12):
            chosen = torch.randint(0, 200, (random.choice((1, 2, 5, 17, 64, 200)),), device=backend.device)
            a, b = (place(t[chosen], dtype, backend.device) for t in (x, residual))
            with threads(random.choice((1, 2, 3))):
                backend.ops.fused_add_rms_norm(a, b, weight, EPSILON)
            assert same_bits(a.contiguous(), want[chosen]) and same_bits(b.contiguous(), want_sum[chosen])


def test_columns_of_one_buffer_and_empty_calls(backend):
    x, residual, weight = inputs(backend, 5, 48, torch.bfloat16)
    both = torch.cat([x, residual], 1)
    backend.ops.fused_add_rms_norm(x, residual, weight, EPSILON)
    backend.ops.fused_add_rms_norm(both[:, :48], both[:, 48:], weight, EPSILON)
    assert same_bits(both, torch.cat([x, residual], 1))
    for rows, hidden in ((0, 40), (3, 0)):
        backend.ops.fused_add_rms_norm(*inputs(backend, rows, hidden, torch.bfloat16), EPSILON)


def test_an_input_that_is_the_residual_is_refused(backend):
    memory = torch.randn(6, 40, device=backend.device)
    before, weight = Frozen(memory=memory), torch.ones(40, device=backend.device)
    for x, residual in ((memory, memory), (memory[:5], memory[1:])):
        with pytest.raises(RuntimeError, match=r"\[ValueError\] fused_add_rms_norm: residual overlaps input"):
            backend.ops.fused_add_rms_norm(x, residual, weight, EPSILON)
    before.check()
