"""row_linear: as exact as torch's own linear, and a row's bits depend on that row and the weights alone."""

import concurrent.futures
import io
import random

import pytest
import reference
import torch
import torch.nn.functional as F
from backends import FLOATS
from cases import Frozen, assert_close, nan_storage, same_bits

import stateful_kv as skv

# n, k: whole panels and chunks, one more, one less, and less than any of them.
SHAPES = [(1, 1), (3, 0), (31, 33), (32, 512), (33, 511), (70, 513), (96, 1025), (64, 2048), (17, 8191), (200, 256)]


def inputs(rows, n, k, dtype, device, bias=True):
    x = torch.randn(rows, k).to(dtype)
    weight = torch.randn(n, k).to(dtype)
    return [t.to(device) if t is not None else None for t in (x, weight, torch.randn(n).to(dtype) if bias else None)]


def linear(backend, x, weight, bias=None, out=None):
    out = x.new_empty(x.size(0), weight.size(0)) if out is None else out
    backend.ops.row_linear(out, x, weight, bias)
    return out


def pack(backend, weight):
    pair = 2 if weight.dtype == torch.bfloat16 else 1
    packed = weight.new_empty(weight.size(0), -(-weight.size(1) // pair), pair)
    backend.ops.pack_linear_weight(packed, weight)
    return packed


@pytest.fixture(autouse=True)
def threads_as_before():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.each_isa
@pytest.mark.parametrize("n, k", SHAPES)
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_against_float64(backend, dtype, n, k):
    if backend.emulated and dtype == torch.float32 and n * k > 40000:
        pytest.skip("slow when emulated")
    for with_bias in (True,) if backend.emulated and n * k > 20000 else (False, True):
        x, weight, bias = inputs(40, n, k, dtype, backend.device, with_bias)
        packed = pack(backend, weight)
        before = Frozen(x=x, weight=weight, packed=packed, bias=bias)
        got = torch.cat([linear(backend, part, packed, bias) for part in x.split([1, 2, 13, 24])])
        assert_close(got, reference.row_linear(x, weight, bias), F.linear(x, weight, bias))
        assert same_bits(linear(backend, x, weight, bias), got), "plain and packed weights"
        wide = linear(backend, x, packed, bias, out=torch.empty(40, n, device=backend.device))
        assert same_bits(wide.to(dtype), got), "one rounding"
        before.check()


@pytest.mark.each_isa
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_a_row_does_not_depend_on_its_call(backend, dtype):
    """Any number of rows, anywhere in the call, beside any others (NaN too), at any stride, alignment and threads."""
    if backend.emulated:
        pytest.skip("slow when emulated; test_every_number_of_rows is for that")
    for n, k in ((70, 700), (256, 1024)):
        x, weight, bias = inputs(700, n, k, dtype, backend.device)
        packed = pack(backend, weight)
        torch.set_num_threads(1)
        want = torch.cat([linear(backend, row[None], packed, bias) for row in x])
        for trial in range(60):
            torch.set_num_threads(random.choice((1, 2, 3)))
            rows = trial + 1 if trial < 40 else random.randint(1, 700)
            chosen = torch.randint(0, 700, (rows,), device=backend.device)
            offset, gap, out_offset, out_gap = (random.randint(0, 40) for _ in range(4))
            placed = torch.full((rows, offset + k + gap), float("nan"), dtype=dtype, device=backend.device)
            placed = placed[:, offset : offset + k]
            placed.copy_(x[chosen])
            poisoned = torch.rand(rows, device=backend.device) < 0.1
            placed[poisoned] = float("nan")
            out = nan_storage((rows, out_offset + n + out_gap), dtype, backend.device)[:, out_offset : out_offset + n]
            linear(backend, placed, random.choice((packed, weight)), bias, out)
            keep = ~poisoned
            assert same_bits(out[keep], want[chosen[keep]]), f"{rows} rows of {n} x {k}"
            assert out[poisoned].isnan().all()


BORDERS = [*range(1, 19), *(size + i for size in (32, 48, 64, 80, 96, 128, 192, 256) for i in (-1, 0, 1)), 300]


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_every_number_of_rows(backend, dtype):
    """Rows across the borders of every tile that a GPU takes them in, from anywhere, packed and plain, at any stride.

    What a GPU adds to the emulator: whether its mma sums alike in every row and column of a tile."""
    n, k, most = (40, 160, 300) if backend.emulated else (136, 1600, 300)
    if backend.emulated and dtype == torch.float32:
        n, k, most = 20, 40, 100
    x, weight, bias = inputs(most, n, k, dtype, backend.device)
    packed = pack(backend, weight)
    want = torch.cat([linear(backend, row[None], packed, bias) for row in x])
    for rows in range(1, most + 1) if not backend.emulated else [rows for rows in BORDERS if rows <= most]:
        first, offset = random.randint(0, most - rows), random.choice((0, 0, 8, 3))
        placed = torch.full((rows, offset + k + 8), float("nan"), dtype=dtype, device=backend.device)
        placed = placed[:, offset : offset + k]
        placed.copy_(x[first : first + rows])
        got = linear(backend, placed, random.choice((packed, weight)), bias)
        assert same_bits(got, want[first : first + rows]), f"{rows} rows from {first}, {offset} elements off"


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_more_rows_than_a_grid_walks_together(backend, dtype):
    """Thousands of rows: tiles of rows are taken in groups that share the weights they read."""
    x, weight, _ = inputs(2200, 136, 24, dtype, backend.device, bias=False)
    got = linear(backend, x, weight)
    assert_close(got, reference.row_linear(x, weight), F.linear(x, weight))
    for row in (0, 1023, 1024, 2047, 2048, 2199):
        assert same_bits(linear(backend, x[row : row + 1], weight), got[row : row + 1])


@pytest.mark.each_isa
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_rows_that_are_packed_in_several_parts(backend, dtype):
    """Long rows: one, or a few, of the CPU's batches of rows fit into the memory that packed ones get."""
    if backend.emulated:
        pytest.skip("slow when emulated")
    for rows, n, k in ((350, 40, 30000), (500, 70, 8000)):
        x, weight, _ = inputs(rows, n, k, dtype, backend.device, bias=False)
        packed = pack(backend, weight)
        got = linear(backend, x, packed)
        for row in range(0, rows, 23):
            assert same_bits(linear(backend, x[row : row + 1], packed), got[row : row + 1])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_layers_of_a_model(backend, dtype):
    """Shapes of a 110M model: one row, a verified draft and a prefill agree bit by bit."""
    if backend.emulated:
        pytest.skip("slow when emulated")
    for n, k in ((1280, 768), (4096, 768), (768, 2048)):
        x, weight, _ = inputs(300, n, k, dtype, backend.device, bias=False)
        packed = pack(backend, weight)
        prefill = linear(backend, x, packed)
        assert_close(prefill, reference.row_linear(x, weight), F.linear(x, weight))
        for begin, end in ((0, 1), (7, 16), (299, 300), (100, 164), (3, 292)):
            assert same_bits(linear(backend, x[begin:end], packed), prefill[begin:end])


@pytest.mark.each_isa
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_infinities_and_nan_stay_where_they_belong(backend, dtype):
    x, weight, bias = inputs(30, 45, 77, dtype, backend.device)
    x[3, 5], x[20, 76], weight[44, 0], weight[7, 76], bias[9] = (float(v) for v in ("nan", "inf", "inf", "-inf", "nan"))
    exact = reference.row_linear(x, weight, bias)
    for w in (pack(backend, weight), weight):
        assert_close(linear(backend, x, w, bias), exact, F.linear(x, weight, bias))


@pytest.mark.each_isa
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_writes_out_and_nothing_else(backend, dtype):
    for n in (1, 31, 32, 45):
        x, weight, bias = inputs(9, n, 50, dtype, backend.device)
        for out_dtype in {dtype, torch.float32}:
            memory = nan_storage((11, n + 9), out_dtype, backend.device)
            around = Frozen(memory=memory)
            out = memory[1:10, 4 : 4 + n]
            inside = out.clone()
            got = linear(backend, x, pack(backend, weight), bias, out).clone()
            assert not got.isnan().any()
            out.copy_(inside)  # a copy keeps NaN bits of one dtype
            around.check()


@pytest.mark.each_isa
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_packed_layout(backend, dtype):
    """As documented, of any strides, holding as many elements as the weight, and the same after a round trip."""
    for n, k in SHAPES:
        if backend.emulated and dtype == torch.float32 and n * k > 40000:
            continue  # slow
        weight = torch.randn(n, k + 5).to(dtype).to(backend.device)[:, 2 : 2 + k]
        packed = pack(backend, weight)
        layout = reference.pack_linear_weight if backend.name == "cpu" else reference.pack_linear_weight_cuda
        assert same_bits(packed, layout(weight))
        assert packed.numel() == n * (k + k % 2 if dtype == torch.bfloat16 else k)
        file = io.BytesIO()
        torch.save(packed, file)
        file.seek(0)
        x = torch.randn(4, k).to(dtype).to(backend.device)
        want = linear(backend, x, weight)
        for copy in (torch.load(file), packed.clone(), packed.to(backend.device, copy=True)):
            assert same_bits(linear(backend, x, copy), want)


def test_empty_calls(backend):
    for rows, n, k in ((0, 8, 8), (4, 0, 8), (0, 0, 0)):
        x, weight, bias = inputs(rows, n, k, torch.bfloat16, backend.device)
        for w in (weight, pack(backend, weight)):
            assert linear(backend, x, w, bias).shape == (rows, n)
    for dtype in FLOATS:
        x, weight, bias = inputs(70, 40, 0, dtype, backend.device)
        assert torch.equal(linear(backend, x, pack(backend, weight), bias), bias.expand(70, -1))
        assert torch.equal(linear(backend, x, weight), x.new_zeros(70, 40))


def test_expanded_x_and_strided_plain_weights(backend):
    x, weight, _ = inputs(1, 50, 60, torch.bfloat16, backend.device)
    want = linear(backend, x, weight)
    assert same_bits(linear(backend, x.expand(20, -1), weight), want.expand(20, -1).contiguous())
    wide = torch.randn(50, 99, device=backend.device).bfloat16()
    wide[:, 33:93] = weight
    assert same_bits(linear(backend, x, wide[:, 33:93]), want)


def test_offsets_past_32_bits(backend):
    """Row strides of a few GiB: only the touched pages of this allocation become real memory."""
    if backend.device == "cuda":
        pytest.skip("device memory is not allocated lazily")
    stride = (1 << 31) + 64
    x = torch.empty(stride + 4096, dtype=torch.bfloat16).as_strided((2, 48), (stride, 1))
    x.copy_(torch.randn(2, 48))
    weight = torch.empty(stride + 4096, dtype=torch.bfloat16).as_strided((2, 48), (stride, 1))
    weight.copy_(torch.randn(2, 48))
    out = torch.empty(stride + 4096, dtype=torch.bfloat16).as_strided((2, 2), (stride, 1))
    linear(backend, x, weight, out=out)
    assert same_bits(out.contiguous(), linear(backend, x.contiguous(), weight.contiguous()))


def test_calls_from_several_threads_at_once(backend):
    if backend.emulated:
        pytest.skip("the emulator runs one launch at a time")
    cases = []
    for rows, n, k in ((300, 96, 700), (1, 640, 512), (17, 33, 1500), (64, 64, 64)):
        x, weight, bias = inputs(rows, n, k, torch.bfloat16, backend.device)
        cases.append((x, pack(backend, weight), bias, linear(backend, x, weight, bias)))

    def work(i):
        x, packed, bias, want = cases[i % len(cases)]
        return all(same_bits(linear(backend, x, packed, bias), want) for _ in range(20))

    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        assert all(pool.map(work, range(16)))


def test_out_in_the_memory_of_x(backend):
    """Columns of one buffer are fine, a shared element is not."""
    buffer = torch.randn(6, 100).to(backend.device)
    weight = torch.randn(60, 40).to(backend.device)
    want = linear(backend, buffer[:, :40].clone(), weight)
    assert same_bits(linear(backend, buffer[:, :40], weight, out=buffer[:, 40:]).contiguous(), want)
    for out in (buffer[:, 39:99], buffer[:, 20:80]):
        before = Frozen(buffer=buffer)
        with pytest.raises(RuntimeError, match=r"\[ValueError\] row_linear: out overlaps x"):
            linear(backend, buffer[:, :40], weight, out=out)
        before.check()


def test_refused_weights(backend):
    x, weight, _ = inputs(2, 64, 48, torch.bfloat16, backend.device)
    packed = pack(backend, weight)
    for wrong, error in (
        (weight.to(torch.float8_e4m3fn), NotImplementedError),
        (torch.ones_like(weight, dtype=torch.int8), NotImplementedError),
        (weight.float(), TypeError),
        (weight.T, ValueError),
        (packed[:, :-1], ValueError),
        (packed.transpose(0, 1), ValueError),
    ):
        with pytest.raises(error, match=r"^row_linear: weight .*expected"):
            skv.ops.row_linear(x, wrong)
    # Packed for bfloat16 and converted: pairs along k, which float32 does not have.
    with pytest.raises(ValueError, match=r"^row_linear: weight has shape \[64, 24, 2\], expected"):
        skv.ops.row_linear(x.float(), packed.float())
    with pytest.raises(NotImplementedError, match=r"^pack_linear_weight: weight .*quantised"):
        skv.ops.pack_linear_weight(weight.to(torch.float8_e4m3fn))


def test_wrappers(backend):
    if backend.name == "simt":
        pytest.skip("the wrappers call the real library")
    x, weight, bias = inputs(5, 45, 33, torch.bfloat16, backend.device)
    packed = skv.ops.pack_linear_weight(weight)
    out = x.new_empty(5, 45)
    assert skv.ops.row_linear(x, packed, bias, out) is out
    assert same_bits(skv.ops.row_linear(x, packed, bias), out) and same_bits(linear(backend, x, weight, bias), out)
    assert skv.ops.pack_linear_weight(weight, packed) is packed
