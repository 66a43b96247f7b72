"""append_kv: keys and values land bitwise in their slots, and nothing else changes."""

import pytest
import reference
import torch
from backends import FLOATS, FP8
from cases import LAYOUTS, Frozen, as_bits, fused_rows, make_pool, nan_storage, same_bits

SCALES = {"none": None, "scalar": (), "head": "heads"}


def make_slots(num_tokens, num_slots, skip=0.3):
    slots = torch.randperm(num_slots)[:num_tokens].to(torch.int64)
    slots[torch.rand(num_tokens) < skip] = -1
    return slots


def assert_appends(backend, k_cache, v_cache, storages, key, value, slots, k_scale=None, v_scale=None):
    expected = [s.clone() for s in storages]
    want_k, want_v = reference.append_kv(
        *(t.cpu() for t in (k_cache, v_cache, key, value, slots)),
        *(s if s is None else s.cpu() for s in (k_scale, v_scale)),
    )
    before = Frozen(key=key, value=value, slots=slots, k_scale=k_scale, v_scale=v_scale)
    outside = [s.clone() for s in storages]
    backend.ops.append_kv(k_cache, v_cache, key, value, slots, k_scale, v_scale)
    before.check()
    assert same_values(k_cache.cpu(), want_k)
    assert same_values(v_cache.cpu(), want_v)
    # Outside the views: put the old bits back into the views; the storage must then be what it was.
    as_bits(k_cache).copy_(as_bits(view_like(outside, k_cache, storages)))
    as_bits(v_cache).copy_(as_bits(view_like(outside, v_cache, storages)))
    assert all(same_bits(s, e) for s, e in zip(storages, expected))


def same_values(a, b):
    """Equal bits; but which NaN an fp8 cache holds is the hardware's choice."""
    if a.dtype != FP8:
        return same_bits(a, b)
    return same_bits(
        *(torch.where(t.float().isnan(), torch.tensor(0x7F, dtype=torch.uint8), as_bits(t)) for t in (a, b))
    )


def view_like(copies, view, storages):
    """The view of the copy that corresponds to `view` of its storage."""
    for copy, storage in zip(copies, storages):
        if storage.untyped_storage().data_ptr() == view.untyped_storage().data_ptr():
            return copy.as_strided(view.size(), view.stride(), view.storage_offset())
    raise AssertionError("not a view of these storages")


@pytest.mark.each_isa
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", [*FLOATS, FP8], ids=str)
def test_every_layout_and_dtype(backend, layout, dtype):
    if not backend.supports("append_kv", dtype):
        pytest.skip("not promised on this backend")
    k, v, storages = make_pool(layout, 7, 16, 3, 64, dtype, backend.device)
    _, key, value = fused_rows(37, (6, 3, 3), 64, torch.bfloat16 if dtype == FP8 else dtype, backend.device)
    assert_appends(backend, k, v, storages, key, value, make_slots(37, 7 * 16).to(backend.device))


@pytest.mark.parametrize("row_dtype", FLOATS, ids=str)
@pytest.mark.parametrize("shape", SCALES)
def test_fp8_scales(backend, row_dtype, shape):
    k, v, storages = make_pool("blocks_2", 4, 16, 5, 64, FP8, backend.device)
    size = (5,) if SCALES[shape] == "heads" else SCALES[shape]
    scales = [None if size is None else (torch.rand(size) * 3 + 0.01).to(backend.device) for _ in range(2)]
    key, value = fused_rows(30, (5, 5), 64, row_dtype, backend.device)
    assert_appends(backend, k, v, storages, key, value, make_slots(30, 64).to(backend.device), *scales)


@pytest.mark.each_isa
def test_fp8_stores_saturate_round_and_keep_nan(backend):
    """Every float16 value, so every rounding of e4m3, its subnormals, ties, both infinities and NaN."""
    values = torch.arange(-(1 << 15), 1 << 15, dtype=torch.int32).to(torch.int16).view(torch.float16)
    rows = values.view(256, 4, 64).to(backend.device)
    k, v, storages = make_pool("nhd", 16, 16, 4, 64, FP8, backend.device)
    slots = torch.randperm(256).to(backend.device)
    assert_appends(backend, k, v, storages, rows, rows.flip(0), slots)
    backend.ops.append_kv(k, v, rows, rows, slots)
    stored = k.view(256, 4, 64)[slots].float()
    assert torch.equal(stored.isnan(), rows.isnan())
    assert stored[~stored.isnan()].abs().max() == 448


@pytest.mark.parametrize("block_size", [1, 2, 3, 5, 8, 16, 17, 32, 64, 100, 128, 255, 256])
def test_block_sizes_and_boundaries(backend, block_size):
    if not backend.supports("append_kv", torch.bfloat16, block_size=block_size):
        pytest.skip("not promised on this backend")
    k, v, storages = make_pool("hnd", 3, block_size, 2, 16, torch.bfloat16, backend.device)
    key, value = fused_rows(4, (2, 2), 16, torch.bfloat16, backend.device)
    slots = torch.tensor(sorted({0, block_size - 1, block_size, 3 * block_size - 1}), device=backend.device)
    assert_appends(backend, k, v, storages, key, value, slots)


@pytest.mark.each_isa
@pytest.mark.parametrize("head_dim", [8, 16, 24, 40, 64, 80, 96, 112, 128, 192, 256, 2056])
def test_head_dims(backend, head_dim):
    if not backend.supports("append_kv", torch.float16, head_dim=head_dim):
        pytest.skip("not promised on this backend")
    for layout in ("nhd", "padded"):
        k, v, storages = make_pool(layout, 2, 16, 2, head_dim, torch.float16, backend.device)
        key, value = fused_rows(9, (2, 2), head_dim, torch.float16, backend.device)
        assert_appends(backend, k, v, storages, key, value, make_slots(9, 32).to(backend.device))


@pytest.mark.parametrize("heads", [1, 2, 7, 32])
def test_strided_keys(backend, heads):
    """Keys in head-major order, and misaligned."""
    k, v, storages = make_pool("nhd", 4, 16, heads, 64, torch.bfloat16, backend.device)
    key = torch.randn(heads, 21, 64, device=backend.device).to(torch.bfloat16).transpose(0, 1)
    value = torch.randn(21, heads, 67, device=backend.device).to(torch.bfloat16)[..., 3:]
    assert_appends(backend, k, v, storages, key, value, make_slots(21, 64).to(backend.device))


@pytest.mark.each_isa
@pytest.mark.parametrize("num_tokens", [0, 1, 2, 5])
def test_few_tokens_and_longer_keys(backend, num_tokens):
    """num_tokens is slot_mapping.size(0); the rows of key past it are padding, NaN here."""
    k, v, storages = make_pool("nhd", 2, 16, 2, 64, torch.float32, backend.device)
    key, value = fused_rows(5, (2, 2), 64, torch.float32, backend.device)
    key[num_tokens:] = float("nan")
    assert_appends(backend, k, v, storages, key, value, make_slots(num_tokens, 32, skip=0).to(backend.device))


def test_all_slots_negative_and_empty_pool(backend):
    k, v, storages = make_pool("nhd", 2, 16, 2, 64, torch.float16, backend.device)
    key, value = fused_rows(3, (2, 2), 64, torch.float16, backend.device)
    assert_appends(backend, k, v, storages, key, value, torch.tensor([-1, -5, -(1 << 40)], device=backend.device))
    k, v, storages = make_pool("nhd", 0, 16, 2, 64, torch.float16, backend.device)
    assert_appends(backend, k, v, storages, key, value, torch.tensor([-1, -1, -1], device=backend.device))


def test_nan_payloads_are_copied_bitwise(backend):
    k, v, storages = make_pool("nhd", 2, 16, 1, 64, torch.float32, backend.device)
    rows = (
        torch.randint(-(1 << 31), (1 << 31) - 1, (32, 1, 64), dtype=torch.int32).view(torch.float32).to(backend.device)
    )
    assert_appends(backend, k, v, storages, rows, rows.flip(0), torch.arange(32, device=backend.device))


def test_offsets_past_32_bits(backend):
    """Block strides of a few GiB: only the touched pages of this allocation become real memory."""
    if backend.device == "cuda":
        pytest.skip("device memory is not allocated lazily")
    stride = (1 << 31) + 64
    huge = torch.empty(3 * stride, dtype=FP8)
    views = [huge[i * 4096 :].as_strided((3, 16, 2, 64), (stride, 128, 64, 1)) for i in range(2)]
    key, value = fused_rows(6, (2, 2), 64, torch.float32)
    slots = torch.tensor([0, 15, 16, 31, 32, 47])
    backend.ops.append_kv(*views, key, value, slots)
    for view, rows in zip(views, (key, value)):
        assert same_bits(reference.gather_slots(view, slots.tolist()), reference.to_fp8(rows))


def test_wrapper_is_the_op():
    import stateful_kv as skv

    k, v, _ = make_pool("nhd", 2, 16, 2, 64, torch.float32)
    key, value = fused_rows(3, (2, 2), 64, torch.float32)
    assert skv.ops.append_kv(k, v, key, value, torch.tensor([3, 20, -1])) is None
    assert same_bits(k[0, 3], key[0]) and same_bits(v[1, 4], value[1])
    assert same_bits(k[0, 0], nan_storage((2, 64), torch.float32))
