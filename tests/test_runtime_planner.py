"""The planner: batches, chunks, rows, memory pressure, failures, and the buffers of a step."""

import gc
import threading
import weakref

import numpy as np
import pytest
from runtime_model import FakeDevice, answer

rt = pytest.importorskip("stateful_kv.runtime")


def world(num_blocks=64, block_size=4, **options):
    runtime = rt.Runtime(num_blocks, block_size, **options)
    return runtime, FakeDevice(runtime, num_blocks, block_size)


def run_all(runtime, device, expected):
    """Steps until nothing is left; compares every answer. Returns statistics by request."""
    got = {request: [] for request in expected}
    stats = {}
    while (events := device.step()) is not None:
        runtime.check()
        for request, new, reason in events:
            got[request] += new
            if reason:
                stats[request] = runtime.stats_of(request)
    assert got == expected
    return stats


def test_decoding_goes_first_and_prompts_come_in_chunks():
    runtime, device = world(max_batch_tokens=10, max_seqs=4, num_drafts=0)
    first, second = runtime.open(), runtime.open()
    expected = {runtime.submit(first, [1, 2, 3], 6): answer([1, 2, 3], 6)[0]}
    device.step()
    prompt = [4, 5] * 12
    expected[runtime.submit(second, prompt, 2)] = answer(prompt, 2)[0]
    sizes = []
    while (info := runtime.plan()) is not None:
        sizes.append((info.num_tokens, info.num_seqs, info.num_logit_rows))
        device.run(info)
        runtime.commit()
    assert sizes == [(10, 2, 1), (10, 2, 1), (7, 2, 2), (2, 2, 2), (1, 1, 1)]


def test_a_request_keeps_its_row_and_a_row_its_table():
    runtime, device = world(num_blocks=100, max_batch_tokens=64, max_seqs=3, num_drafts=0)
    table = runtime.buffers["block_table"]
    sessions = [runtime.open() for _ in range(3)]
    lengths = [2, 12, 5]
    for i, session in enumerate(sessions):
        runtime.submit(session, [i + 1] * 9, lengths[i])
    device.step()
    rows = table[:, :2].copy()
    seen_empty = False
    while (info := runtime.plan()) is not None:
        assert (table[:, :2] == rows).all()
        begin, end = runtime.buffers["table_begin"], runtime.buffers["table_end"]
        assert (end - begin <= 1).all()  # one step adds at most one block to each
        lengths = np.diff(runtime.buffers["cu_seqlens_q"])
        seen_empty |= info.num_seqs == 3 and 0 in lengths[:2]
        device.run(info)
        runtime.commit()
    request = runtime.submit(sessions[1], [3], 1)  # back in its former row: only what is new is written
    info = runtime.plan()
    assert info.num_seqs == 2 and runtime.buffers["table_end"][1] - runtime.buffers["table_begin"][1] <= 1
    runtime.cancel_step()
    runtime.abort(request)


def test_bound_arrays_replace_the_buffers():
    runtime, _ = world(max_seqs=2, max_batch_tokens=16)
    own = {name: np.full_like(array, 77) for name, array in runtime.buffers.items()}
    runtime.bind(own)
    assert (own["slot_mapping"] == -1).all() and (own["block_table"] == -1).all() and (own["token_ids"] == 0).all()
    assert all(runtime.buffers[name].ctypes.data == own[name].ctypes.data for name in own)
    device = FakeDevice(runtime, 64, 4)
    session = runtime.open()
    assert device.generate(session, [1, 2, 3], 4)[0] == answer([1, 2, 3], 4)[0]
    runtime.bind({"block_table": np.zeros_like(own["block_table"])})  # a new table is filled from the start
    device.buffers = runtime.buffers
    device.generate(session, [1], 4)
    runtime.check()
    with pytest.raises(ValueError, match="no buffer 'nothing'"):
        runtime.bind({"nothing": np.zeros(3)})
    for wrong in (np.zeros(16, np.int64), np.zeros(15, np.int32), np.zeros(32, np.int32)[::2]):
        with pytest.raises(ValueError, match=r"token_ids must be a writable C-contiguous int32 array of shape \(16\)"):
            runtime.bind({"token_ids": wrong})
    with pytest.raises(ValueError, match="token_ids is not aligned to the 4 bytes"):
        runtime.bind({"token_ids": np.zeros(65, np.uint8)[1:].view(np.int32)})
    with pytest.raises(TypeError, match="numpy"):
        runtime.bind({"token_ids": [0] * 16})
    with pytest.raises(TypeError, match="a key of arrays has type int, expected str"):
        runtime.bind({5: own["token_ids"]})


def test_a_runtime_bound_to_its_own_buffers_goes_with_its_last_reference():
    runtime = rt.Runtime(8, 4)
    views = runtime.buffers
    runtime.bind({name: view[:] for name, view in views.items()})
    other = np.zeros_like(views["seeds"])
    runtime.bind({"seeds": other})
    runtime.bind(views)
    assert runtime.buffers["seeds"].ctypes.data == views["seeds"].ctypes.data
    gone, arrays = weakref.ref(runtime), weakref.ref(other)
    del runtime, other
    assert gone() is not None and arrays() is None  # the views are still there
    del views
    assert gone() is None


def test_binding_between_two_steps_of_a_running_request_changes_nothing():
    runtime, device = world(max_seqs=2, max_batch_tokens=16, num_drafts=2)
    expected = {}
    for prompt in ([1, 2, 3, 4, 5], [6] * 9):
        expected[runtime.submit(runtime.open(), prompt, 12)] = answer(prompt, 12)[0]
    got = {request: [] for request in expected}
    for step in range(100):
        if step % 2:
            runtime.bind({name: np.full_like(runtime.buffers[name], 77) for name in ("block_table", "logit_rows")})
            device.buffers = runtime.buffers
        runtime.check()
        events = device.step()
        if events is None:
            break
        for request, new, _ in events:
            got[request] += new
    assert got == expected


def test_views_outlive_the_arrays_they_were_made_of():
    runtime, _ = world(max_seqs=2, max_batch_tokens=1 << 16)
    original = runtime.buffers["positions"]
    owned = [np.zeros(1 << 16, np.int64) for _ in range(3)]
    freed = [weakref.ref(array) for array in owned]
    views = []
    while owned:
        runtime.bind({"positions": owned.pop()})
        views.append(runtime.buffers["positions"])
        views[-1][:] = len(views)
    gc.collect()
    assert (original == 0).all() and [view[-1] for view in views] == [1, 2, 3]
    assert all(ref() is not None for ref in freed)
    views.clear()
    gc.collect()
    assert [ref() is None for ref in freed] == [False, True, True]  # only the one that is bound


def test_memory_pressure_preempts_the_newest_and_loses_nothing():
    runtime, device = world(num_blocks=12, block_size=4, max_seqs=4, max_batch_tokens=32, num_drafts=0)
    expected = {}
    for i in range(4):
        prompt = [i + 1] * 6
        expected[runtime.submit(runtime.open(), prompt, 30)] = answer(prompt, 30)[0]
    stats = run_all(runtime, device, expected)
    preempted = [stats[request]["preemptions"] for request in sorted(expected)]
    assert preempted[0] == 0 and sum(preempted) > 0
    assert all(stats[r]["recomputed_tokens"] > 0 for r in expected if stats[r]["preemptions"] > 1)
    assert runtime.stats()["preemptions"] == sum(preempted)


def test_priority_decides_who_is_preempted_and_who_is_admitted():
    runtime, device = world(num_blocks=12, block_size=4, max_seqs=2, max_batch_tokens=32, num_drafts=0)
    expected, order = {}, []
    for priority in (0, 0, 1):
        prompt = [priority + 1, len(order)] * 4
        order.append(runtime.submit(runtime.open(), prompt, 25, priority=priority))
        expected[order[-1]] = answer(prompt, 25)[0]
    stats = run_all(runtime, device, expected)
    assert stats[order[2]]["preemptions"] == 0
    assert stats[order[0]]["preemptions"] + stats[order[1]]["preemptions"] > 0


def test_one_request_may_fill_the_whole_pool():
    runtime, device = world(num_blocks=8, block_size=4, num_drafts=3)
    session = runtime.open()
    for cached in range(3):
        device.generate(runtime.open(), [cached] * 5, 9)
    tokens, _, _ = device.generate(session, [1, 2, 3], 30)  # 3 + 30 - 1 tokens = 8 blocks
    assert tokens == answer([1, 2, 3], 30)[0]
    runtime.rollback(session, 5)
    with pytest.raises(rt.OutOfBlocks) as caught:
        runtime.submit(session, [1, 2, 3], 26)
    error = caught.value
    assert (error.needed, error.free + error.evictable, error.pinned) == (9, 8, 0) and "9 needed" in str(error)
    assert runtime.length(session) == 5 and not runtime.is_running(session)
    runtime.submit(session, [1, 2, 3], 25)


def test_a_path_full_of_forks_still_finishes_alone():
    """Every fork inside a block leaves one more overridden block on the path; a turn that needs the whole pool must
    give them up."""
    runtime, device = world(num_blocks=10, block_size=4, num_drafts=0)
    session = runtime.open()
    device.generate(session, [1, 2, 3, 4, 5], 2)
    siblings = []
    for i in range(4):
        siblings.append(runtime.fork(session))
        device.generate(session, [i, 1], 1)
    prompt = runtime.tokens(session).tolist()
    remaining = 10 * 4 - len(prompt) + 1
    tokens, _, stats = device.generate(session, [], remaining)
    assert tokens == answer(prompt, remaining)[0] and stats["recomputed_tokens"] > 0
    runtime.check()
    for sibling in siblings:
        expected = answer(runtime.tokens(sibling).tolist() + [2], 4)[0]
        assert device.generate(sibling, [2], 4)[0] == expected


def test_too_long_for_the_table_is_refused_by_name():
    runtime, _ = world(num_blocks=64, block_size=4, max_blocks_per_seq=4)
    session = runtime.open()
    with pytest.raises(ValueError, match="max_blocks_per_seq 4 blocks of 4"):
        runtime.submit(session, [1] * 10, 8)
    runtime.submit(session, [1] * 10, 7)


@pytest.mark.parametrize("ran", [False, True])
def test_a_failed_forward_pass_changes_nothing(ran):
    """Also when it had already written into the cache, at a copied tail, with drafts."""
    runtime, device = world(num_drafts=3)
    parent = runtime.open()
    device.generate(parent, [1, 2, 3, 4, 5, 6] * 3, 9)
    child = runtime.fork(parent)
    expected = {}
    for session, delta in ((parent, [5, 5, 5]), (child, [6])):
        prompt = runtime.tokens(session).tolist() + delta
        expected[runtime.submit(session, delta, 9)] = answer(prompt, 9)[0]
    got = {request: [] for request in expected}
    while (info := runtime.plan()) is not None:
        before = runtime.stats()
        if ran:
            device.run(info)
        runtime.cancel_step()
        runtime.check()
        again = runtime.plan()
        assert (again.num_tokens, again.num_copies) == (info.num_tokens, info.num_copies)
        assert runtime.stats()["free"] == before["free"]
        device.run(again)
        for request, new, _ in runtime.commit():
            got[request] += new
    assert got == expected and device.copies >= 1


def test_results_that_contradict_the_step_are_refused_before_anything_is_taken():
    runtime, _ = world(num_drafts=3)
    session = runtime.open()
    request = runtime.submit(session, [1, 2, 1, 2, 1], 9)
    with pytest.raises(ValueError, match="no step"):
        runtime.commit()
    runtime.plan()
    for call in (runtime.plan, lambda: runtime.abort(request), lambda: runtime.finish(request, 0)):
        with pytest.raises(ValueError, match="planned"):
            call()
    with pytest.raises(ValueError, match=r"out_num_tokens\[0\] is 0, expected 1 to 1"):
        runtime.commit()
    runtime.buffers["out_num_tokens"][0] = 2
    with pytest.raises(ValueError, match="expected 1 to 1"):
        runtime.commit()
    runtime.buffers["out_num_tokens"][0] = 1
    runtime.buffers["out_tokens"][0, 0] = 2
    assert runtime.commit() == [(request, [2], None)]
    info = runtime.plan()
    assert info.num_logit_rows > 1  # "1 2" came before, so its continuation is drafted
    runtime.buffers["out_num_tokens"][0] = 2
    runtime.buffers["out_tokens"][0, :2] = [6, 6]
    with pytest.raises(ValueError, match="not the draft"):
        runtime.commit()
    runtime.cancel_step()
    runtime.check()


def test_cancelling_twice_or_without_a_step_does_nothing():
    runtime, device = world()
    runtime.cancel_step()
    request = runtime.submit(runtime.open(), [1, 2, 3], 5)
    runtime.cancel_step()
    assert not runtime.is_step_planned
    runtime.plan()
    assert runtime.is_step_planned
    runtime.cancel_step()
    runtime.cancel_step()
    assert not runtime.is_step_planned
    runtime.check()
    runtime.plan()
    device.buffers["out_num_tokens"][0] = 1
    runtime.commit()
    assert not runtime.is_step_planned
    runtime.abort(request)


def test_what_a_step_does_not_use_is_neutral_in_every_buffer():
    runtime, device = world(num_blocks=200, max_seqs=4, num_drafts=3)
    neutral = {name: array.flat[-1] for name, array in runtime.buffers.items()}
    parents = [runtime.open() for _ in range(3)]
    sampling = dict(temperature=0.5, top_k=3, top_p=0.5, min_p=0.2, seed=9)
    for length, parent in zip((30, 12, 5), parents):
        device.generate(parent, [1, 2, 3] * 3, length, **sampling)
    for length, parent in zip((30, 12, 5), parents):
        runtime.submit(runtime.fork(parent), [1, 2], length, **sampling)
    most = {}
    while (info := runtime.plan()) is not None:
        b = runtime.buffers
        extents = {"logit_rows": info.num_logit_rows, "draft_tokens": info.num_logit_rows}
        extents.update(dict.fromkeys(("copy_src", "copy_dst", "copy_num_tokens"), info.num_copies))
        extents.update(dict.fromkeys(("token_ids", "positions", "slot_mapping"), info.num_tokens))
        for name, used in extents.items():
            assert (b[name][used:] == neutral[name]).all(), name
            most[name] = max(most.get(name, 0), used)
        idle = np.diff(b["cu_rows"]) == 0
        for name in ("temperature", "top_k", "top_p", "min_p", "seeds", "sample_positions"):
            assert (b[name][idle] == neutral[name]).all() and (b[name][~idle] != neutral[name]).all(), name
        device.run(info)
        runtime.commit()
    assert all(most[name] > extents[name] for name in extents)  # so that something had to be reset


def test_a_call_from_another_thread_is_refused_while_the_runtime_works():
    runtime = rt.Runtime(300, 8192, max_batch_tokens=64)
    session = runtime.open()
    runtime.submit(session, np.arange(2_000_000, dtype=np.int32) % 1000, 8)
    runtime.plan()
    runtime.cancel_step()
    calls = (
        runtime.stats, runtime.check, runtime.plan, runtime.commit, runtime.cancel_step, runtime.index_drafts,
        lambda: runtime.is_step_planned, lambda: runtime.buffers, lambda: runtime.tokens(session),
        lambda: runtime.length(session), lambda: runtime.resident(session), lambda: runtime.is_running(session),
        lambda: runtime.submit(session, [1], 1), lambda: runtime.fork(session), lambda: runtime.close(session),
        lambda: runtime.rollback(session, 0), lambda: runtime.abort(1), lambda: runtime.finish(1, 0), runtime.open,
        lambda: runtime.stats_of(1), lambda: runtime.evict(1), lambda: runtime.match("", [1]),
        lambda: runtime.bind({}),
    )  # fmt: skip
    refused = 0
    worker = threading.Thread(target=runtime.index_drafts)
    worker.start()
    while worker.is_alive() and not refused:
        try:
            runtime.is_running(session)
        except RuntimeError:
            for call in calls:
                with pytest.raises(RuntimeError, match=r"plan_ahead, commit_ahead .* one thread owns a runtime"):
                    call()
                refused += 1
    worker.join()
    assert refused == len(calls)
    assert runtime.is_running(session)
    runtime.abort(1)
    runtime.check()


def test_a_zero_draw_and_sampling_parameters_reach_their_row():
    runtime, device = world(max_seqs=3, num_drafts=0)
    greedy, sampled = runtime.open(), runtime.open()
    runtime.submit(greedy, [1, 2, 3], 2)
    info = runtime.plan()
    assert not info.any_sampled
    device.run(info)
    runtime.commit()
    runtime.submit(sampled, [4, 5], 1, temperature=0.5, top_k=3, top_p=0.9, min_p=0.1, seed=-5)
    info = runtime.plan()
    b = runtime.buffers
    assert info.any_sampled and info.num_seqs == 2
    assert b["temperature"].tolist() == [0.0, 0.5, 0.0] and b["top_k"].tolist() == [0, 3, 0]
    assert b["top_p"].tolist() == [1.0, np.float32(0.9), 1.0] and b["min_p"][1] == np.float32(0.1)
    assert b["seeds"][1] == -5 and b["sample_positions"][:2].tolist() == [4, 2]


def reused_share(policy, order, num_sessions, num_blocks):
    """Share of prompt tokens found in the cache when sessions of one shared prompt take turns in this order."""
    runtime, device = world(num_blocks=num_blocks, block_size=4, num_drafts=0, policy=policy)
    sessions = [runtime.open() for _ in range(num_sessions)]
    reused = prompts = 0
    for session in order:
        first = runtime.length(sessions[session]) == 0
        delta = [i % 5 for i in range(20)] * first + [session % 7, session // 7, 3]
        _, _, stats = device.generate(sessions[session], delta, 2)
        reused, prompts = reused + stats["reused_tokens"], prompts + stats["prompt_tokens"]
        runtime.check()
    return reused / prompts


def test_going_round_the_policy_turns_keeps_more_than_lru():
    order = [session for _ in range(8) for session in range(12)]
    lru, turns = (reused_share(policy, order, 12, 60) for policy in ("lru", "turns"))
    assert turns > lru + 0.1
    one_after_the_other = [session for session in range(12) for _ in range(8)]
    assert reused_share("turns", one_after_the_other, 12, 60) == reused_share("lru", one_after_the_other, 12, 60) > 0.8


def test_the_policy_turns_gives_up_closed_sessions_first():
    runtime, device = world(num_blocks=12, block_size=4, num_drafts=0, policy="turns")
    kept, closed = runtime.open(), runtime.open()
    device.generate(kept, [1] * 8, 1)
    device.generate(closed, [2] * 8, 1)
    runtime.close(closed)
    assert runtime.evict(2) == 2 and runtime.match("", [2] * 8) == 0 and runtime.resident(kept) == 8


def test_a_step_that_is_kept_stays_what_it_was():
    runtime = rt.Runtime(16)
    runtime.submit(runtime.open(), [1, 2, 3], 3)
    kept = runtime.plan()
    for _ in range(2):
        runtime.buffers["out_num_tokens"][0] = 1
        runtime.commit()
        step = runtime.plan()
        assert (kept.num_tokens, step.num_tokens) == (3, 1)
