"""The incremental draft index means what propose_drafts means, at any time, in every fork."""

import resource
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

rt = pytest.importorskip("stateful_kv.runtime")

VISITS = 32  # places that occurrences() looks at


def brute_force(history, k, max_ngram, min_ngram, latest):
    """propose_drafts, word for word."""
    for n in range(min(max_ngram, len(history)), min_ngram - 1, -1):
        tail = history[-n:]
        starts = [i for i in range(len(history) - n) if history[i : i + n] == tail]
        if starts:
            begin = (starts[-1] if latest else starts[0]) + n
            return history[begin : begin + k]
    return []


def occurrences(history, max_ngram, min_ngram):
    """Where it went on: behind the longest earlier tails first, then the latest."""
    places = []
    for n in range(min(max_ngram, len(history)), min_ngram - 1, -1):
        ends = [i + n for i in range(len(history) - n) if history[i : i + n] == history[-n:]]
        places += [end for end in reversed(ends) if end not in places]
    return places


operations = st.lists(
    st.one_of(
        st.tuples(st.just("extend"), st.lists(st.integers(0, 3), max_size=30)),
        st.tuples(st.just("truncate"), st.floats(0, 1)),
        st.tuples(st.just("fork"), st.none()),
        st.tuples(st.just("switch"), st.integers(0, 20)),
        st.tuples(st.just("drop"), st.none()),
    ),
    max_size=40,
)


@settings(max_examples=300, deadline=None)
@given(operations, st.integers(1, 3), st.integers(0, 3))
def test_any_history_in_any_fork(ops, min_ngram, more):
    max_ngram = min_ngram + more
    texts = [(rt.DraftIndex(max_ngram, min_ngram), [])]
    current = 0
    for name, argument in ops:
        index, history = texts[current]
        if name == "extend":
            index.extend(np.array(argument, np.int32))
            history += argument
        elif name == "truncate":
            del history[int(argument * len(history)) :]
            index.truncate(len(history))
        elif name == "fork":
            texts.append((index.fork(), list(history)))
        elif name == "switch":
            current = argument % len(texts)
        elif len(texts) > 1:
            texts.pop(current)
            current = 0
        for index, history in texts:
            assert len(index) == len(history)
            for latest in (True, False):
                assert index.propose(5, latest).tolist() == brute_force(history, 5, max_ngram, min_ngram, latest)
            for shortest in (1, max_ngram):
                places = index.occurrences(shortest).tolist()
                expected = occurrences(history, max_ngram, max(min_ngram, shortest))
                assert places == expected[: len(places)] and len(places) <= VISITS
                if (more + 1) * len(history) <= VISITS:  # no walk is that long
                    assert len(places) == len(expected)


def test_long_history_with_growing_tables():
    rng = np.random.default_rng(0)
    history = rng.integers(0, 300, 5000).astype(np.int32)
    history[3000:3400] = history[100:500]
    index = rt.DraftIndex(4, 2)
    for begin in range(0, 5000, 701):
        index.extend(history[begin : begin + 701])
        known = history[: begin + 701].tolist()
        assert index.propose(8).tolist() == brute_force(known, 8, 4, 2, True)
    index.truncate(3300)
    assert index.propose(8).tolist() == history[400:408].tolist()


def best_seconds(index):
    times = []
    for _ in range(30):
        begin = time.perf_counter()
        index.propose(4)
        times.append(time.perf_counter() - begin)
    return min(times)


def test_a_fork_rolled_back_far_does_not_walk_its_parents_future():
    parent = rt.DraftIndex(1, 1)
    parent.extend(np.arange(400_000, dtype=np.int32) % 2)
    fresh = rt.DraftIndex(1, 1)
    fresh.extend(np.arange(1001, dtype=np.int32) % 2)
    fork = parent.fork()
    fork.truncate(1001)
    for index in (fork, fresh):
        index.extend([1])
        assert index.propose(4).tolist() == [0, 1]
    assert best_seconds(fork) < 10 * best_seconds(fresh)
    assert len(parent) == 400_000 and parent.propose(4).tolist() == [0, 1]


def test_few_of_many_occurrences_are_looked_at():
    index = rt.DraftIndex(2, 1)
    index.extend(np.arange(100_001, dtype=np.int32) % 2)
    assert index.occurrences().tolist() == list(range(99_999, 99_999 - 2 * VISITS, -2))


def test_overlap_and_the_end_of_history():
    index = rt.DraftIndex(3, 1)
    index.extend([7, 7, 7])
    assert index.propose(4).tolist() == [7]  # only what is there: the latest earlier "7 7" is followed by one token
    assert index.propose(4, latest=False).tolist() == [7]
    assert index.propose(0).tolist() == []
    index.extend([1, 2])
    assert index.propose(4).tolist() == []


def test_bad_arguments_are_refused():
    for max_ngram, min_ngram in ((2, 3), (3, 0), (1000, 1)):
        with pytest.raises(ValueError, match="ngram"):
            rt.DraftIndex(max_ngram, min_ngram)
    index = rt.DraftIndex()
    with pytest.raises(TypeError, match="dtype"):
        index.extend(np.ones(3))
    for bad, shown in ((2**32 + 7, "4294967303"), (-1, "-1")):
        with pytest.raises(ValueError, match=rf"DraftIndex.extend: tokens\[2\] is {shown}, expected"):
            index.extend([1, 2, bad])
    assert len(index) == 0
    with pytest.raises(ValueError, match="dimension"):
        index.extend(np.ones((2, 2), np.int32))
    with pytest.raises(ValueError, match="truncate"):
        index.truncate(1)
    for call in (index.propose, index.truncate, index.occurrences, rt.DraftIndex):
        with pytest.raises(TypeError, match="has type float, expected int"):
            call(1.0)


def test_a_proposal_takes_no_more_memory_than_there_is_to_propose():
    index = rt.DraftIndex()
    index.extend([1, 2, 3, 1])
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert index.propose(1 << 28).tolist() == [2, 3, 1]  # a gigabyte, had it room for as many
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 1 << 17
    assert index.propose(1 << 60).tolist() == [2, 3, 1] and index.propose(-1).tolist() == []
