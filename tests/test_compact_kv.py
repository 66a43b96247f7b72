"""compact_kv: moves behave as if done one after the other, bitwise, in every layer, and nothing else changes."""

import pytest
import reference
import torch
from backends import FLOATS, FP8
from cases import LAYOUTS, Frozen, as_bits, cumulative, same_bits
from test_copy_blocks import make_layers


def check(backend, k_caches, v_caches, storages, moves):
    """moves: per sequence a list of (source slot, destination slot)."""
    flat = [m for sequence in moves for m in sequence]
    src, dst = (torch.tensor([m[i] for m in flat], dtype=torch.int64) for i in range(2))
    expected = []
    for storage in storages:
        expected.append(storage.cpu().clone())
        for cache in (*k_caches, *v_caches):
            if cache.untyped_storage().data_ptr() == storage.untyped_storage().data_ptr():
                view = expected[-1].as_strided(cache.size(), cache.stride(), cache.storage_offset())
                as_bits(view).copy_(as_bits(reference.compact_kv(view, src, dst)))
    src, dst = src.to(backend.device), dst.to(backend.device)
    cu_moves = cumulative([len(m) for m in moves], backend.device)
    before = Frozen(src=src, dst=dst, cu_moves=cu_moves)
    backend.ops.compact_kv(k_caches, v_caches, src, dst, cu_moves)
    before.check()
    assert all(same_bits(s.cpu(), e) for s, e in zip(storages, expected))


def accepted_path(table, block_size, prefix, kept):
    """The moves after verification: draft `kept[i]` (its index among the new tokens) goes to place prefix + i."""

    def slot(t):
        return table[t // block_size] * block_size + t % block_size

    return [(slot(prefix + j), slot(prefix + i)) for i, j in enumerate(kept)]


@pytest.mark.each_isa
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", [*FLOATS, FP8], ids=str)
def test_layouts_and_dtypes(backend, layout, dtype):
    pools = make_layers(backend, 3, layout, 9, 16, 3, 64, dtype)
    moves = [
        accepted_path([4, 1, 8], 16, 13, [0, 2, 3, 5, 9]),
        [],
        accepted_path([0, 7], 16, 3, [1, 4]),
        accepted_path([2, 3], 16, 15, [0]),
    ]
    check(backend, *pools, moves)


@pytest.mark.each_isa
def test_chains_of_overlapping_moves(backend):
    """Each destination is an earlier source: only the order tells the right answer."""
    for layout in ("nhd", "hnd"):
        pools = make_layers(backend, 2, layout, 12, 16, 2, 64, torch.bfloat16)
        table = [9, 3, 11, 0]
        check(backend, *pools, [accepted_path(table, 16, 5, list(range(1, 50)))])
        check(backend, *pools, [accepted_path(table, 16, 0, [0, 1, 2, 3, 5, 6, 7, 20, 21, 63])])


@pytest.mark.parametrize("block_size", [1, 2, 3, 5, 16, 17, 64, 256])
def test_block_sizes(backend, block_size):
    if not backend.supports("compact_kv", block_size=block_size):
        pytest.skip("not promised on this backend")
    num_blocks = 40 // block_size + 3
    pools = make_layers(backend, 2, "hnd", num_blocks, block_size, 2, 16, torch.float16)
    table = torch.randperm(num_blocks).tolist()
    check(backend, *pools, [accepted_path(table, block_size, block_size - 1, [1, 2, 5, 8, 13, 21, 34])])


@pytest.mark.parametrize("num_layers", [1, 33, 80, 200])
def test_layer_counts(backend, num_layers):
    pools = make_layers(backend, num_layers, "nhd", 4, 4, 1, 8, torch.bfloat16)
    check(backend, *pools, [accepted_path([2, 0], 4, 1, [1, 3]), accepted_path([3, 1], 4, 2, [2, 5])])


def test_nothing_to_do(backend):
    pools = make_layers(backend, 2, "blocks_2", 4, 16, 2, 64, torch.bfloat16)
    for moves in ([], [[]], [[], [], []], [[(5, 5), (9, 9)]]):
        check(backend, *pools, moves)


def test_negative_slots_are_skipped(backend):
    pools = make_layers(backend, 2, "nhd", 4, 16, 2, 64, torch.bfloat16)
    check(backend, *pools, [[(-1, 3), (7, 4), (9, -1), (-5, -5)], [(40, 33), (-1, -1)]])


def test_padding_after_the_last_sequence_is_left_alone(backend):
    """Entries past cu_moves[batch] are padding of a captured batch."""
    k, v, _ = make_layers(backend, 1, "nhd", 4, 16, 2, 64, torch.bfloat16)
    want = [reference.compact_kv(c.cpu(), torch.tensor([7]), torch.tensor([4])) for c in (*k, *v)]
    src, dst = (torch.tensor(x, device=backend.device) for x in ([7, 20, 21], [4, 10, 11]))
    backend.ops.compact_kv(k, v, src, dst, cumulative([1, 0], backend.device))
    assert all(same_bits(c.cpu(), w) for c, w in zip((*k, *v), want))


def test_many_sequences(backend):
    pools = make_layers(backend, 3, "interleaved", 64, 16, 2, 64, FP8)
    order = torch.randperm(64).tolist()
    moves = [accepted_path(order[2 * b : 2 * b + 2], 16, b % 16, [0, 2, 3, 7, 11][: b % 6]) for b in range(32)]
    check(backend, *pools, moves)
