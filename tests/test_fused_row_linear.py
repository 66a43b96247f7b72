"""fused_row_linear: the bits of rms_norm, row_linear, silu_and_mul and an addition, one after another."""

import itertools
import random

import pytest
import reference
import torch
import torch.nn.functional as F
from backends import FLOATS
from cases import Frozen, assert_close, nan_storage, same_bits

EPSILON = 1e-5
FLAGS = list(itertools.product((False, True), repeat=3))  # norm, silu_and_mul, add
HALVES = [torch.float16, torch.bfloat16]


def inputs(backend, rows, n, k, dtype, bias=True):
    parts = torch.randn(rows, k), torch.randn(n, k), torch.randn(n) if bias else None, torch.rand(k) + 0.5
    return [t.to(dtype).to(backend.device) if t is not None else None for t in parts]


def separate(backend, x, weight, bias, norm_weight, silu_and_mul, add, out):
    """What the op stands for."""
    if norm_weight is not None:
        normed = torch.empty(x.shape, dtype=x.dtype, device=x.device)
        backend.ops.rms_norm(normed, x, norm_weight, EPSILON)
        x = normed
    result = x.new_empty(len(x), len(weight))
    backend.ops.row_linear(result, x, weight, bias)
    if silu_and_mul:
        product, result = result, x.new_empty(len(x), len(weight) // 2)
        backend.ops.silu_and_mul(result, product)
    return out + result if add else result


def fused(backend, x, weight, bias, norm_weight, silu_and_mul, add, out):
    backend.ops.fused_row_linear(out, x, weight, bias, norm_weight, EPSILON, silu_and_mul, add)
    return out


def out_like(rows, n, dtype, device):
    """Finite values to add to, within memory of NaN."""
    out = nan_storage((rows, n), dtype, device)
    out.copy_(torch.randn(rows, n).to(dtype))
    return out


def check(backend, rows, n, k, dtype, flags, bias=True, place=lambda t: t):
    norm, silu_and_mul, add = flags
    x, weight, bias, norm_weight = inputs(backend, rows, n, k, dtype, bias)
    norm_weight = norm_weight if norm else None
    out = out_like(rows, n // 2 if silu_and_mul else n, dtype, backend.device)
    want = separate(backend, x, weight, bias, norm_weight, silu_and_mul, add, out.clone())
    x, weight = place(x), place(weight)
    before = Frozen(x=x, weight=weight, bias=bias, norm_weight=norm_weight)
    fused(backend, x, weight, bias, norm_weight, silu_and_mul, add, out)
    before.check()
    assert same_bits(out.contiguous(), want), f"{rows} rows of {n} x {k}, {flags}"


@pytest.mark.each_isa
@pytest.mark.parametrize("flags", FLAGS, ids=str)
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_against_its_steps(backend, dtype, flags):
    for n, k in ((64, 128), (2, 64), (50, 71), (36, 0)):
        check(backend, 5, n, k, dtype, flags, bias=k != 64)


# Of k: a chunk and less, several, a box past one, more pieces than rms_norm has threads for. Of n: a unit that is not
# full, halves that are no multiple of a warp's columns, several units a CTA.
@pytest.mark.parametrize("flags", FLAGS, ids=str)
@pytest.mark.parametrize("n, k", [(8, 64), (70, 320), (530, 256), (130, 832), (16, 4160)])
def test_every_number_of_few_rows(backend, n, k, flags):
    dtype = random.choice(HALVES)
    counts = (1, random.randint(2, 7), 8, 9) if backend.emulated else (1, 2, 3, 4, 5, 6, 7, 8, 9, 16, 17, 32, 33, 100)
    for rows in counts:
        check(backend, rows, n, k, dtype, flags, bias=rows % 2 == 0)


@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_any_stride_and_alignment(backend, dtype):
    def shifted(offset, gap):
        def place(t):
            memory = torch.full((t.size(0), offset + t.size(1) + gap), float("nan"), dtype=dtype, device=t.device)
            memory[:, offset : offset + t.size(1)] = t
            return memory[:, offset : offset + t.size(1)]

        return place

    for offset, gap, flags in itertools.product((0, 8, 3), (0, 8, 5), ((True, True, False), (True, False, True))):
        check(backend, 3, 44, 192, dtype, flags, place=shifted(offset, gap))


def test_one_column(backend):
    for rows, dtype, add in itertools.product((1, 8), HALVES, (False, True)):
        check(backend, rows, 1, 64, dtype, (True, False, add))


def test_rows_that_do_not_fit_beside_the_ring(backend):
    """Wide rows: fewer stages, then none."""
    for rows, k in ((8, 2048), (8, 8192), (8, 9856), (4, 20480)) if not backend.emulated else ((8, 8832), (8, 8896)):
        check(backend, rows, 8, k, torch.bfloat16, (True, False, True))


def test_a_packed_weight(backend):
    x, weight, bias, norm_weight = inputs(backend, 4, 64, 128, torch.bfloat16)
    packed = weight.new_empty(64, 64, 2)
    backend.ops.pack_linear_weight(packed, weight)
    out = x.new_empty(4, 32)
    want = separate(backend, x, weight, bias, norm_weight, True, False, out)
    assert same_bits(fused(backend, x, packed, bias, norm_weight, True, False, out), want)


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_against_float64(backend, dtype):
    x, weight, bias, norm_weight = inputs(backend, 8, 96, 192, dtype)
    weight *= 192**-0.5
    residual = torch.randn(8, 48).to(dtype).to(backend.device)
    exact = reference.rms_norm(x.cpu().double(), norm_weight.cpu().double(), EPSILON)
    exact = reference.silu_and_mul(reference.row_linear(exact, weight.cpu(), bias.cpu())) + residual.cpu().double()
    normed, plain = F.rms_norm(x, (192,), norm_weight, EPSILON), []
    for order in (torch.arange(192), torch.arange(192).flip(0), torch.randperm(192)):
        gate, up = F.linear(normed[:, order], weight[:, order], bias).chunk(2, -1)
        plain.append(residual + F.silu(gate) * up)
    assert_close(fused(backend, x, weight, bias, norm_weight, True, True, residual), exact, plain)


def test_a_row_beside_nan_is_as_without(backend):
    x, weight, bias, norm_weight = inputs(backend, 8, 40, 128, torch.bfloat16)
    want = separate(backend, x, weight, bias, norm_weight, True, False, None)
    poisoned = x.clone()
    poisoned[1::2] = float("nan")
    got = fused(backend, poisoned, weight, bias, norm_weight, True, False, x.new_empty(8, 20))
    assert same_bits(got[::2], want[::2]) and got[1::2].isnan().all()


def test_writes_out_and_nothing_else(backend):
    for flags in FLAGS:
        n = 36
        x, weight, bias, norm_weight = inputs(backend, 5, n, 64, torch.bfloat16)
        columns = n // 2 if flags[1] else n
        memory = nan_storage((7, columns + 9), torch.bfloat16, backend.device)
        around, out = Frozen(memory=memory), memory[1:6, 4 : 4 + columns]
        inside = out.clone()
        out.zero_()
        assert not fused(backend, x, weight, bias, norm_weight if flags[0] else None, *flags[1:], out).isnan().any()
        out.copy_(inside)
        around.check()


def test_empty_calls(backend):
    for rows, n in ((0, 8), (3, 0)):
        x, weight, bias, norm_weight = inputs(backend, rows, n, 64, torch.bfloat16)
        assert fused(backend, x, weight, bias, norm_weight, True, True, x.new_empty(rows, n // 2)).numel() == 0


def test_what_is_refused_beyond_row_linear(backend):
    x, weight, _, norm_weight = inputs(backend, 3, 10, 64, torch.bfloat16)
    out, wide = x.new_zeros(3, 10), torch.zeros(3, 10, device=backend.device)
    before = Frozen(out=out, wide=wide)
    for call, text in (
        (lambda: fused(backend, x, weight, None, norm_weight, False, False, wide), "out has dtype float32"),
        (lambda: fused(backend, x, weight[:9], None, None, True, False, out[:, :4]), "9 rows, expected an even number"),
        (lambda: fused(backend, x, weight, None, None, True, False, out), r"expected \[rows, n / 2\]"),
        (lambda: fused(backend, x, weight, None, norm_weight[:63], False, False, out), "norm_weight has shape"),
        (lambda: fused(backend, x, weight, None, norm_weight.float(), False, False, out), "norm_weight has dtype"),
        (lambda: fused(backend, x, weight, None, None, False, True, x[:, :10]), "out overlaps x"),
    ):
        with pytest.raises(RuntimeError, match="fused_row_linear: .*" + text):
            call()
    before.check()
