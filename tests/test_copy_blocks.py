"""copy_blocks: whole or partly filled blocks are copied bitwise in every layer, and nothing else changes."""

import pytest
import reference
import torch
from backends import FLOATS, FP8
from cases import LAYOUTS, Frozen, as_bits, make_pool, same_bits


def make_layers(backend, num_layers, layout, num_blocks, block_size, heads, dim, dtype):
    """Pools full of random bits (NaN included), and all memory behind them."""
    pools = [make_pool(layout, num_blocks, block_size, heads, dim, dtype, backend.device) for _ in range(num_layers)]
    storages = [s for _, _, pool in pools for s in pool]
    for s in storages:
        s.view(torch.uint8).random_(0, 256)
    return [k for k, _, _ in pools], [v for _, v, _ in pools], storages


def check(backend, k_caches, v_caches, storages, src, dst, num_tokens=None):
    src, dst = (torch.tensor(x, dtype=torch.int32) for x in (src, dst))
    counts = None if num_tokens is None else torch.tensor(num_tokens, dtype=torch.int32)
    expected = []
    for storage in storages:
        expected.append(storage.cpu().clone())
        for cache in (*k_caches, *v_caches):
            if cache.untyped_storage().data_ptr() == storage.untyped_storage().data_ptr():
                view = expected[-1].as_strided(cache.size(), cache.stride(), cache.storage_offset())
                as_bits(view).copy_(as_bits(reference.copy_blocks(view, src, dst, counts)))
    on_device = [None if t is None else t.to(backend.device) for t in (src, dst, counts)]
    before = Frozen(src=on_device[0], dst=on_device[1], counts=on_device[2])
    backend.ops.copy_blocks(k_caches, v_caches, *on_device)
    before.check()
    assert all(same_bits(s.cpu(), e) for s, e in zip(storages, expected))


@pytest.mark.each_isa
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", [*FLOATS, FP8], ids=str)
def test_layouts_and_dtypes(backend, layout, dtype):
    for counts in (None, [16, 3, 0, 1]):
        pools = make_layers(backend, 3, layout, 9, 16, 3, 64, dtype)
        check(backend, *pools, [0, 3, 0, 8], [1, 2, 7, 5], counts)


@pytest.mark.parametrize("block_size", [1, 2, 3, 5, 8, 16, 17, 32, 64, 100, 128, 255, 256])
def test_block_sizes_and_fill_marks(backend, block_size):
    if not backend.supports("copy_blocks", block_size=block_size):
        pytest.skip("not promised on this backend")
    counts = [block_size, block_size - 1, min(1, block_size), 0]
    for layout in ("hnd", "nhd"):
        check(
            backend,
            *make_layers(backend, 2, layout, 8, block_size, 2, 16, torch.float16),
            [0] * 4,
            [1, 2, 3, 4],
            counts,
        )


@pytest.mark.parametrize("num_layers", [1, 2, 33, 80, 200])
def test_layer_counts(backend, num_layers):
    """More layers than one launch's parameters could hold."""
    check(backend, *make_layers(backend, num_layers, "nhd", 4, 4, 1, 8, torch.bfloat16), [1, 1], [3, 0], [2, 4])


@pytest.mark.each_isa
@pytest.mark.parametrize("head_dim", [8, 24, 40, 72, 80, 96, 256])
def test_head_dims(backend, head_dim):
    if not backend.supports("copy_blocks", head_dim=head_dim):
        pytest.skip("not promised on this backend")
    for layout in ("nhd", "padded", "interleaved"):
        check(backend, *make_layers(backend, 1, layout, 4, 16, 3, head_dim, FP8), [0, 1], [2, 3], [16, 7])


def test_nothing_to_do(backend):
    pools = make_layers(backend, 2, "blocks_2", 4, 16, 2, 64, torch.bfloat16)
    check(backend, *pools, [], [])
    check(backend, *pools, [], [], [])
    check(backend, *pools, [-1, 2, -7], [1, -1, -7])
    check(backend, *pools, [-1, 2, -7], [1, -1, -7], [16, 16, 16])


def test_padded_entries_between_real_ones(backend):
    pools = make_layers(backend, 2, "hnd", 6, 16, 2, 64, torch.bfloat16)
    check(backend, *pools, [-1, 0, 0, 2], [3, -1, 4, 5], [16, 16, 5, 16])


def test_many_copies(backend):
    src = list(range(0, 150)) * 2
    check(backend, *make_layers(backend, 2, "2_blocks", 450, 4, 2, 8, FP8), src, list(range(150, 450)))


def test_offsets_past_32_bits(backend):
    if backend.device == "cuda":
        pytest.skip("device memory is not allocated lazily")
    stride = (1 << 31) + 64
    huge = torch.empty(3 * stride, dtype=FP8)
    k, v = (huge[i * 4096 :].as_strided((3, 16, 2, 64), (stride, 128, 64, 1)) for i in range(2))
    for cache in (k, v):
        for block in (0, 1):
            as_bits(cache[block]).random_(0, 256)
    kept = [c[:2].clone() for c in (k, v)]
    src, dst = torch.tensor([1], dtype=torch.int32), torch.tensor([2], dtype=torch.int32)
    backend.ops.copy_blocks([k], [v], src, dst)
    for cache, before in zip((k, v), kept):
        assert same_bits(cache[2], before[1]) and same_bits(cache[:2], before)
