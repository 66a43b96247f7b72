"""What the runtime refuses: arguments and options, by call, name, value and expectation."""

import numpy as np
import pytest

rt = pytest.importorskip("stateful_kv.runtime")


def test_bad_arguments_are_refused_by_name():
    for options in (
        {"num_blocks": 0}, {"block_size": 0}, {"max_seqs": 0}, {"max_batch_tokens": 3, "max_seqs": 4},
        {"num_drafts": -1}, {"min_ngram": 0}, {"max_blocks_per_seq": -1}, {"policy": "fifo"},
    ):  # fmt: skip
        with pytest.raises(ValueError, match=next(iter(options)).split("_")[0]):
            rt.Runtime(**{"num_blocks": 4, **options})
    with pytest.raises(TypeError, match="Runtime: num_blocks has type float, expected int"):
        rt.Runtime(4.0)
    with pytest.raises(ValueError, match=f"Runtime: num_blocks is {2**31}, expected"):
        rt.Runtime(2**31)
    runtime = rt.Runtime(4)
    session = runtime.open()
    with pytest.raises(ValueError, match="max_tokens is 0"):
        runtime.submit(session, [1], 0)
    with pytest.raises(ValueError, match="empty"):
        runtime.submit(session, [], 1)
    with pytest.raises(ValueError, match="temperature"):
        runtime.submit(session, [1], 1, temperature=-1.0)
    with pytest.raises(TypeError, match="dtype float64"):
        runtime.submit(session, [1.5], 1)
    for bad, what in (
        ("12", "type str"), (5, "type int"), ({1}, "type set"), (["a"], "dtype <U1"), ([[1.5]], "dtype float64"),
    ):  # fmt: skip
        with pytest.raises(TypeError, match=f"submit: tokens has {what}, expected"):
            runtime.submit(session, bad, 1)
        with pytest.raises(TypeError, match=f"match: tokens has {what}, expected"):
            runtime.match("", bad)
    for call in (runtime.open, lambda namespace: runtime.match(namespace, [1])):
        with pytest.raises(TypeError, match=r"(open|match): namespace has type int, expected str or bytes"):
            call(5)
    for name in ("fork", "length", "resident", "is_running", "request_of", "close", "tokens"):
        with pytest.raises(TypeError, match=f"{name}: session has type float, expected int"):
            getattr(runtime, name)(1.0)
        with pytest.raises(ValueError, match=f"{name}: session is -1, expected 0 to {2**64 - 1}"):
            getattr(runtime, name)(-1)
    for name in ("abort", "stats_of", "known_tokens", "stop_tokens"):
        with pytest.raises(TypeError, match=f"{name}: request_id has type str, expected int"):
            getattr(runtime, name)("1")
    with pytest.raises(TypeError, match="rollback: length has type float, expected int"):
        runtime.rollback(session, 1.0)
    with pytest.raises(TypeError, match="evict: num_blocks has type NoneType, expected int"):
        runtime.evict(None)
    with pytest.raises(TypeError, match="set_spans: spans has type int, expected"):
        runtime.set_spans(session, 5)
    with pytest.raises(TypeError, match="plan_ahead: max_stops has type float, expected int"):
        runtime.plan_ahead(1, 2.0)
    with pytest.raises(TypeError, match="commit_ahead: request_ids has dtype float64, expected int64"):
        runtime.commit_ahead(np.zeros(64), np.zeros((64, 13), np.int32))
    for name, bad in (("max_tokens", 2**80), ("priority", 2**80), ("seed", 2**63), ("top_k", -(2**31) - 1)):
        with pytest.raises(ValueError, match=f"submit: {name} is {bad}, expected"):
            runtime.submit(session, [1], **{"max_tokens": 1, name: bad})
    for name in ("temperature", "top_p", "min_p"):
        with pytest.raises(TypeError, match=f"submit: {name} has type str, expected float"):
            runtime.submit(session, [1], 1, **{name: "1"})
    for bad, shown in ((2**32 + 7, "4294967303"), (-1, "-1")):
        with pytest.raises(ValueError, match=rf"submit: tokens\[1\] is {shown}, expected"):
            runtime.submit(session, [1, bad], 1)
        with pytest.raises(ValueError, match=rf"submit: stop_token_ids\[0\] is {shown}, expected"):
            runtime.submit(session, [1], 1, stop_token_ids=[bad])
    with pytest.raises(ValueError, match=r"tokens\[0\] is -3"):
        runtime.submit(session, np.array([-3], np.int32), 1)
    for bad, dtype in ((2**32 - 1, np.uint32), (2**63, np.uint64), (2**31, np.int64)):
        with pytest.raises(ValueError, match=rf"tokens\[1\] is {bad}"):
            runtime.submit(session, np.array([1, bad], dtype), 1)
    for dtype in (np.int8, np.uint16, np.int64, np.uint64, ">i4"):
        runtime.finish(runtime.submit(session, np.array([1, 2, 100], dtype), 1), 0)
    assert runtime.tokens(session).tolist() == [1, 2, 100] * 5
    assert runtime.plan() is None


@pytest.mark.parametrize(
    "options, message",
    [
        ({"block_size": 2**62}, "block_size is 4611686018427387904, expected 1 to 2147483647"),
        ({"max_batch_tokens": 2**31}, "max_batch_tokens is 2147483648, expected 1 to 2147483647"),
        ({"max_seqs": 2**62}, "max_seqs is 4611686018427387904, expected 1 to max_batch_tokens, 2048"),
        (
            {"max_blocks_per_seq": 2**60},
            "max_blocks_per_seq is 1152921504606846976, expected 0 to 134217727 of",
        ),
        ({"max_blocks_per_seq": 2**27}, "max_blocks_per_seq is 134217728, expected 0 to 134217727"),
        ({"num_drafts": 2**31 - 1}, "num_drafts is 2147483647, expected 0 to 2147483646"),
        (
            {"max_seqs": 2**30, "max_batch_tokens": 2**30, "num_drafts": 2**31 - 2},
            "max_seqs is 1073741824, expected at most 536870912 rows of 2147483647",
        ),
    ],
)
def test_options_whose_sizes_overflow_are_refused_by_name(options, message):
    with pytest.raises(ValueError, match=f"Runtime: {message}"):
        rt.Runtime(4, **options)


def test_a_sequence_has_no_more_blocks_than_positions_have_numbers():
    runtime = rt.Runtime(4, block_size=2**30)
    assert runtime.buffers["block_table"].shape == (64, 1)
    with pytest.raises(ValueError, match="do not fit into max_blocks_per_seq 1 blocks of 1073741824"):
        runtime.submit(runtime.open(), [1], 2**30 + 1)
