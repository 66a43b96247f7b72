"""Block pool and radix tree against brute force; eviction order; namespaces."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

rt = pytest.importorskip("stateful_kv.runtime")

prompts = st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=24), max_size=14)


def common(a, b):
    n = 0
    while n < min(len(a), len(b)) and a[n] == b[n]:
        n += 1
    return n


@settings(max_examples=200, deadline=None)
@given(prompts, prompts, st.sampled_from([1, 2, 3, 5, 16]))
def test_match_is_the_longest_common_prefix(stored, asked, block_size):
    tree = rt.RadixTree(2000, block_size)
    for i, tokens in enumerate(stored):
        expected = max((common(tokens, other) for other in stored[:i]), default=0)
        assert tree.insert(tokens) == len(tokens) - expected
        tree.check()
    for tokens in asked + stored:
        expected = max((common(tokens, other) for other in stored), default=0)
        nodes, free = tree.num_nodes, tree.num_free
        assert tree.match_length(tokens) == expected
        assert (tree.num_nodes, tree.num_free) == (nodes, free)
        length, table = tree.match(tokens)
        assert length == expected and len(table) == -(-length // block_size) == len(set(table.tolist()))
        assert tree.num_free == free  # splitting shares blocks, it takes none
        tree.check()
    assert tree.match_length(asked[0] if asked else [1], "other") == 0
    assert tree.evict(10_000) == 2000 - free if asked + stored else True
    assert tree.num_free == 2000 and tree.num_nodes == 0


@settings(max_examples=100, deadline=None)
@given(prompts, st.integers(4, 14), st.sampled_from([1, 2, 4]))
def test_a_full_pool_evicts_and_stays_sound(stored, num_blocks, block_size):
    tree = rt.RadixTree(num_blocks, block_size)
    for tokens in stored:
        if -(-len(tokens) // block_size) > num_blocks:
            before = tree.num_free + tree.num_evictable
            with pytest.raises(rt.OutOfBlocks):
                tree.insert(tokens)
            assert tree.num_free + tree.num_evictable == before == num_blocks
        else:
            try:
                tree.insert(tokens)
            except rt.OutOfBlocks as error:  # its own cached prefix is in use and may hold a block twice
                assert error.needed > error.free + error.evictable
            else:
                assert tree.match_length(tokens) == len(tokens)
        tree.check()


def test_eviction_trims_the_least_recently_used_leaf_from_its_tail():
    tree = rt.RadixTree(100, 4)
    a, b = [1] * 4 + [2] * 10, [1] * 4 + [3] * 9
    tree.insert(a)
    tree.insert(b)
    tree.insert(a)  # used again: b is the oldest leaf now
    assert tree.evict(1) == 1
    assert (tree.match_length(a), tree.match_length(b)) == (14, 12)
    assert tree.evict(2) == 2
    assert (tree.match_length(a), tree.match_length(b)) == (14, 4)
    assert tree.evict(3) == 3
    assert (tree.match_length(a), tree.match_length(b)) == (4, 4)
    assert tree.evict(5) == 1 and tree.num_nodes == 0


def test_eviction_inside_a_block_keeps_what_a_sibling_needs():
    tree = rt.RadixTree(100, 4)
    tree.insert([1, 2, 3, 4, 5, 6])
    tree.insert([1, 2, 3, 4, 5, 9, 9, 9, 9])  # splits inside block 1; the second branch has its own copy of it
    used = 100 - tree.num_free
    assert used == 4
    tree.insert([1, 2, 3, 4, 5, 9, 9, 9, 9])
    assert tree.evict(1) == 1  # the first branch's tail shares its block with the split node, so a block of b goes
    assert tree.match_length([1, 2, 3, 4, 5, 6]) == 5
    tree.check()


def test_an_insert_that_fails_changes_nothing():
    tree = rt.RadixTree(8, 4)
    a, b = [1] * 8, [2] * 12
    tree.insert(a)
    tree.insert(b)
    for tokens, namespace, counts in (
        ([1] * 6 + [9] * 30, "", (8, 3, 3, 2)),  # parts from a inside its second block, which it has to copy
        ([2] * 12 + [9] * 24, "", (6, 3, 2, 3)),
        ([9] * 33, "", (9, 3, 5, 0)),
        ([1] * 33, "other", (9, 3, 5, 0)),
    ):
        with pytest.raises(rt.OutOfBlocks) as caught:
            tree.insert(tokens, namespace)
        error = caught.value
        assert (error.needed, error.free, error.evictable, error.pinned) == counts
        assert (tree.num_free, tree.num_evictable, tree.num_nodes) == (3, 5, 2)
        assert (tree.match_length(a), tree.match_length(b)) == (8, 12)
        tree.check()
    assert tree.evict(1) == 1 and tree.match_length(a) == 4  # still the one used longest ago


def test_many_children_and_their_removal():
    tree = rt.RadixTree(200, 2)
    for token in range(60):
        tree.insert([5, token, 1])
    assert all(tree.match_length([5, token, 1, 1]) == 3 for token in range(60))
    tree.check()
    assert tree.evict(70) == 70
    tree.check()
    assert tree.evict(1000) == 50 and tree.num_free == 200 and tree.num_nodes == 0


def test_namespaces_are_apart_and_bytes_are_names_too():
    tree = rt.RadixTree(20, 4)
    assert tree.insert([1, 2, 3], "a") == 3
    assert tree.insert([1, 2, 3], b"\x00\xff") == 3
    assert tree.insert([1, 2, 3], b"a") == 0
    assert tree.match_length([1, 2, 3]) == 0


def test_arguments_of_a_wrong_type_are_refused_by_name():
    with pytest.raises(TypeError, match=r"BlockPool\.alloc: n has type float, expected int"):
        rt.BlockPool(3).alloc(1.0)
    with pytest.raises(TypeError, match=r"RadixTree: block_size has type str, expected int"):
        rt.RadixTree(4, "4")
    with pytest.raises(TypeError, match=r"RadixTree\.match: namespace has type int, expected str or bytes"):
        rt.RadixTree(4, 4).match([1], 5)


def test_pool():
    pool = rt.BlockPool(3)
    assert pool.alloc(4) is None and pool.num_free == 3
    blocks = pool.alloc(2)
    assert blocks.dtype == np.int32 and len(set(blocks.tolist())) == 2 and pool.num_free == 1
    pool.ref(blocks[0])
    assert not pool.unref(blocks[0]) and pool.unref(blocks[0]) and pool.num_free == 2
    with pytest.raises(RuntimeError, match="free"):
        pool.unref(blocks[0])
    with pytest.raises(ValueError, match="outside"):
        pool.ref_count(3)
    with pytest.raises(ValueError, match="num_blocks"):
        rt.BlockPool(0)
    for block_size in (0, 2**62):
        with pytest.raises(ValueError, match=f"RadixTree: block_size is {block_size}, expected 1 to 2147483647"):
            rt.RadixTree(3, block_size)
