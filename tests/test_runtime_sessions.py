"""Sessions step by step: what is shared, copied, reused, recomputed and refused."""

import time

import numpy as np
import pytest
from runtime_model import FakeDevice, answer

rt = pytest.importorskip("stateful_kv.runtime")


class World:
    """A runtime with a fake device; checks every invariant after every turn."""

    def __init__(self, num_blocks=64, block_size=4, **options):
        self.rt = rt.Runtime(num_blocks, block_size, **options)
        self.device = FakeDevice(self.rt, num_blocks, block_size)

    def turn(self, session, delta, max_tokens=3, **params):
        """Takes a turn, compares the answer with the model's, returns the statistics."""
        prompt = self.rt.tokens(session).tolist() + list(delta)
        tokens, reason, stats = self.device.generate(session, delta, max_tokens, **params)
        assert (tokens, reason) == answer(prompt, max_tokens, params.get("stop_token_ids", ()))
        assert self.rt.tokens(session).tolist() == prompt + tokens
        self.rt.check()
        return stats


def test_a_turn_feeds_its_delta_and_the_one_unwritten_token():
    world = World(num_drafts=0)
    session = world.rt.open()
    stats = world.turn(session, range(1, 7), max_tokens=3)
    assert stats == {
        "prompt_tokens": 6, "delta_tokens": 6, "reused_tokens": 0, "recomputed_tokens": 0,
        "fed_tokens": 8, "drafted": 0, "accepted": 0, "drafted_spans": 0, "accepted_spans": 0,
        "drafted_relatives": 0, "accepted_relatives": 0, "drafted_branches": 0, "accepted_branches": 0,
        "preemptions": 0,
    }  # fmt: skip
    assert world.rt.resident(session) == 8
    for _ in range(5):
        held = world.rt.length(session)
        stats = world.turn(session, [1, 2, 3], max_tokens=2)
        assert stats["reused_tokens"] == held - 1 and stats["fed_tokens"] == 3 + 2
    assert world.device.copies == 0  # the only user of a tail block writes on in it


def test_busy_seconds_are_those_inside_the_runtime():
    world = World()
    assert world.rt.busy_seconds == 0.0
    begin = time.perf_counter()
    world.turn(world.rt.open(), range(1, 200), max_tokens=3)
    busy = world.rt.busy_seconds
    assert 0.0 < busy < time.perf_counter() - begin
    with pytest.raises(ValueError):
        world.rt.submit(99, np.zeros(3, np.int32), 1)
    assert world.rt.busy_seconds > busy


def test_fork_copies_one_block_when_it_writes_and_the_sibling_keeps_its_bytes():
    world = World(num_drafts=0)
    parent = world.rt.open()
    world.turn(parent, range(1, 7), max_tokens=4)
    before = world.device.tokens.copy(), world.device.hashes.copy()
    used = world.rt.stats()["evictable"]
    child = world.rt.fork(parent)
    assert world.rt.stats()["evictable"] == used
    resident = world.rt.resident(parent)
    world.turn(child, [5], max_tokens=2)
    assert world.device.copies == 1
    changed = np.flatnonzero((world.device.tokens != before[0]) | (world.device.hashes != before[1])) // 4
    tables = [world.rt.resident(parent), resident]
    assert tables[0] == tables[1] and len(set(changed.tolist())) <= 2
    world.turn(parent, [6], max_tokens=2)
    grandchild = world.rt.fork(child)
    world.rt.close(child)
    world.turn(grandchild, [5, 5, 5], max_tokens=6)


def test_rollback_and_append_is_a_fresh_session():
    world = World(block_size=5)
    session = world.rt.open()
    world.turn(session, [1, 2, 3, 4, 5, 6, 0, 1], max_tokens=9)
    for length in (13, 10, 9, 3, 0):
        prefix = world.rt.tokens(session).tolist()[:length]
        world.rt.rollback(session, length)
        assert world.rt.length(session) == world.rt.resident(session) == length
        stats = world.turn(session, [6, 6], max_tokens=1)
        assert stats["reused_tokens"] == length and stats["recomputed_tokens"] == 0
        assert world.rt.tokens(session).tolist()[:-1] == prefix + [6, 6]
    with pytest.raises(ValueError, match="rollback: length is 99"):
        world.rt.rollback(session, 99)


def test_a_tail_block_that_a_shorter_fork_still_needs_is_copied():
    world = World(block_size=8, num_drafts=0)
    parent = world.rt.open()
    world.turn(parent, [1, 2, 3, 4, 5, 6, 0, 1, 2, 3, 4, 5], max_tokens=3)
    fork = world.rt.fork(parent)
    world.rt.rollback(fork, 11)  # cuts the parent's node inside its last block: both halves refer to it
    world.turn(parent, [6])
    assert world.device.copies == 1
    world.turn(fork, [6])
    assert world.device.copies == 2


def test_an_empty_delta_feeds_the_last_token_without_writing():
    world = World(num_drafts=0)
    session = world.rt.open()
    world.turn(session, [1, 2, 3, 4, 5, 6], max_tokens=4)
    world.rt.rollback(session, 7)
    assert world.rt.resident(session) == 7
    request = world.rt.submit(session, [], 1)
    info = world.rt.plan()
    assert info.num_tokens == 1 and info.num_copies == 0
    assert world.rt.buffers["slot_mapping"][0] == -1 and world.rt.buffers["positions"][0] == 6
    world.rt.cancel_step()
    world.rt.abort(request)
    assert world.turn(session, [], max_tokens=5)["fed_tokens"] == 5


def test_an_evicted_session_recomputes_what_is_missing():
    world = World(num_drafts=0)
    session = world.rt.open()
    world.turn(session, range(1, 15), max_tokens=2)
    assert world.rt.evict(2) == 2
    assert world.rt.resident(session) == 8
    stats = world.turn(session, [1], max_tokens=1)
    assert (stats["reused_tokens"], stats["recomputed_tokens"], stats["fed_tokens"]) == (8, 7, 9)
    assert world.rt.evict(1000) and world.rt.resident(session) == 0
    stats = world.turn(session, [], max_tokens=1)
    assert (stats["reused_tokens"], stats["recomputed_tokens"]) == (0, 17)


def test_sessions_with_one_prompt_share_its_blocks():
    world = World(num_blocks=40)
    prompt = [i % 7 for i in range(30)]
    first, second, third = (world.rt.open() for _ in range(3))
    world.turn(first, prompt)
    stats = world.turn(second, prompt)
    assert stats["reused_tokens"] == 30
    assert world.turn(third, prompt[:17] + [6, 6])["reused_tokens"] == 17
    apart = world.rt.open("tenant")
    assert world.turn(apart, prompt)["reused_tokens"] == 0
    assert world.rt.match("", prompt) == 30 and world.rt.match("nobody", prompt) == 0
    assert world.rt.match("tenant", prompt + [5] * 9) >= 30


def test_requests_that_arrive_together_compute_a_shared_prompt_once():
    world = World(num_blocks=200, block_size=4, num_drafts=0)
    prompt = [i % 5 for i in range(60)]
    requests = [world.rt.submit(world.rt.open(), prompt + [i, i], 2) for i in range(5)]
    done = {}
    while len(done) < 5:
        for request, _, reason in world.device.step():
            if reason:
                done[request] = world.rt.stats_of(request)
        world.rt.check()
    assert done[requests[0]]["reused_tokens"] == 0
    assert all(done[r]["reused_tokens"] >= 60 for r in requests[1:])
    assert world.device.fed == 62 + 4 * 2 + 5


def test_two_running_sessions_that_compute_the_same_end_up_sharing():
    world = World(num_blocks=60, block_size=4, max_batch_tokens=64, num_drafts=0, prefix_cache=True)
    a, b = world.rt.open(), world.rt.open()
    world.turn(a, [1, 2, 3], max_tokens=1)
    world.turn(b, [1, 2, 4], max_tokens=1)
    world.rt.rollback(a, 2)
    world.rt.rollback(b, 2)
    for session in (a, b):
        world.rt.submit(session, [3, 3, 3, 3, 3, 3], 6)
    while world.device.step() is not None:
        world.rt.check()
    assert world.rt.tokens(a).tolist() == world.rt.tokens(b).tolist()
    before = world.rt.stats()["evictable"]
    world.rt.close(b)
    assert world.rt.stats()["evictable"] == before
    assert world.rt.match("", world.rt.tokens(a)) == world.rt.length(a) - 1


def test_without_prefix_cache_sessions_keep_to_themselves_and_close_frees():
    world = World(prefix_cache=False)
    prompt = [1, 2, 3, 4, 5, 6]
    first, second = world.rt.open(), world.rt.open()
    world.turn(first, prompt)
    assert world.turn(second, prompt)["reused_tokens"] == 0
    fork = world.rt.fork(first)
    held = world.rt.length(first)
    world.rt.close(first)
    assert world.turn(fork, [1])["reused_tokens"] == held - 1
    world.rt.close(second)
    world.rt.close(fork)
    stats = world.rt.stats()
    assert stats["free"] == stats["num_blocks"] and stats["nodes"] == stats["namespaces"] == 0


def test_drafts_hit_and_change_nothing():
    text = [1, 2, 3, 4, 5, 6] * 6
    fed = {}
    for num_drafts in (0, 4):
        world = World(num_drafts=num_drafts)
        session = world.rt.open()
        for _ in range(4):
            stats = world.turn(session, text[:9], max_tokens=12)
            assert stats["accepted"] <= stats["drafted"]
            fed[num_drafts] = fed.get(num_drafts, 0) + stats["fed_tokens"] - stats["drafted"]
        if num_drafts:
            assert stats["drafted"] > 0
    assert fed[4] < fed[0]


def test_drafts_of_a_request_can_be_limited_but_not_raised():
    world = World(num_drafts=4)
    session = world.rt.open()
    assert world.turn(session, [1, 2, 3] * 5, max_tokens=12, num_drafts=0)["drafted"] == 0
    with pytest.raises(ValueError, match="num_drafts is 5"):
        world.rt.submit(session, [1], 4, num_drafts=5)


def test_stop_tokens_end_a_turn_and_belong_to_the_session():
    world = World(num_drafts=6)
    prompt = [1, 2, 3, 4, 5]
    full, _ = answer(prompt, 30)
    for stop in sorted(set(full)):
        session = world.rt.open()
        world.turn(session, prompt, max_tokens=30, stop_token_ids=[stop])
        assert world.rt.tokens(session)[-1] == stop
        world.turn(session, [3, 3], max_tokens=5)


def test_finish_keeps_exactly_what_was_asked_for():
    world = World()
    for keep in range(4):
        session = world.rt.open()
        request = world.rt.submit(session, [1, 2, 3, 4, 5], 20)
        generated = []
        while len(generated) < 4:
            for _, new, _ in world.device.step():
                generated += new
        assert world.rt.length(session) == 0  # nothing of the turn counts before it ends
        with pytest.raises(ValueError, match="num_keep"):
            world.rt.finish(request, 21)
        world.rt.finish(request, keep)
        world.rt.check()
        assert world.rt.tokens(session).tolist() == [1, 2, 3, 4, 5] + generated[:keep]
        assert world.rt.resident(session) >= 4 + keep
        world.turn(session, [2])


def test_abort_at_any_time_leaves_the_session_as_it_was():
    for num_steps in range(6):
        world = World(max_batch_tokens=8, max_seqs=4, num_drafts=2)
        session = world.rt.open()
        world.turn(session, [1, 2, 3, 4, 5], max_tokens=4)
        before = world.rt.tokens(session).tolist()
        request = world.rt.submit(session, [6] * 21, 8)
        for _ in range(num_steps):
            world.device.step()
        world.rt.abort(request)
        world.rt.check()
        assert world.rt.tokens(session).tolist() == before and not world.rt.is_running(session)
        assert world.rt.plan() is None
        world.turn(session, [6] * 3, max_tokens=4)


@pytest.mark.parametrize("order", ["oldest first", "newest first", "a turn after each"])
def test_a_conversation_forgets_the_branches_that_are_gone(order):
    """A fork kept per turn costs a node per turn, and after it is closed nothing."""
    world = World(num_blocks=900, block_size=4, num_drafts=0)
    session = world.rt.open()
    forks = []
    for i in range(60):
        world.turn(session, [i % 7, 1, i % 5, 2, 3], max_tokens=1 + i % 3)
        forks.append(world.rt.fork(session))
    used = world.rt.stats()
    assert used["nodes"] >= 59
    for fork in forks if order == "oldest first" else reversed(forks):
        world.rt.close(fork)
        if order == "a turn after each":
            world.turn(session, [2], max_tokens=1)
    reused = world.turn(session, [1], max_tokens=1)
    assert reused["reused_tokens"] == reused["prompt_tokens"] - 2 and reused["recomputed_tokens"] == 0
    stats = world.rt.stats()
    assert stats["nodes"] <= 8
    # Blocks that only a closed fork's tail needed are free again: the conversation takes what its tokens take.
    assert stats["evictable"] <= -(-world.rt.resident(session) // 4) + stats["nodes"] < used["evictable"]
    for length in (150, 77, 30, 3):
        world.rt.rollback(session, length)
        world.turn(session, [6], max_tokens=2)


def test_statistics_of_aborted_requests_go_and_of_finished_ones_do_not_pile_up():
    runtime = rt.Runtime(8, 4)
    session = runtime.open()
    aborted = runtime.submit(session, [1], 1)
    assert runtime.stats_of(aborted)["delta_tokens"] == 1
    runtime.abort(aborted)
    with pytest.raises(rt.StaleHandle, match="statistics"):
        runtime.stats_of(aborted)
    finished = []
    for _ in range(5000):
        finished.append(runtime.submit(session, [1], 1))
        runtime.finish(finished[-1], 0)
        runtime.rollback(session, 0)
    assert runtime.stats_of(finished[-4096])["delta_tokens"] == 1
    with pytest.raises(rt.StaleHandle, match="statistics"):
        runtime.stats_of(finished[-4097])


def test_statistics_are_kept_by_when_a_request_finished():
    runtime = rt.Runtime(16, 4)
    slow = runtime.submit(runtime.open(), [1], 1)
    session = runtime.open()
    for _ in range(4096):
        runtime.finish(runtime.submit(session, [1], 1), 0)
        runtime.rollback(session, 0)
    runtime.finish(slow, 0)
    assert runtime.stats_of(slow)["delta_tokens"] == 1


def test_a_copy_that_the_device_was_told_to_make_is_taken_back_with_its_own_step():
    """The results taken in between are those of the step before it, which copied nothing."""
    runtime = rt.Runtime(num_blocks=16, block_size=16, max_seqs=2, num_drafts=0)
    b = runtime.buffers
    prompt = [1, 2, 3, 4, 5]
    runtime.submit(runtime.open(), prompt, max_tokens=1)
    assert runtime.plan().num_tokens == 5
    b["out_tokens"][0, 0], b["out_num_tokens"][0] = 7, 1
    runtime.commit()
    runtime.submit(runtime.open(), prompt, max_tokens=8)  # all of it cached, in a block that the other one has too
    assert runtime.plan_ahead(8, 4).num_copies == 0
    first = b["ahead_request"].copy()
    assert runtime.plan_ahead(8, 4).num_copies == 1
    source, copy = int(b["copy_src"][0]), int(b["copy_dst"][0])
    results = np.zeros((2, 4 + b["out_tokens"].shape[1]), np.int32)
    row = int(np.flatnonzero(first)[0])
    results[row, :5] = [1, 1, 1, 0, 9]
    assert [tokens for _, tokens, _ in runtime.commit_ahead(first, results)] == [[9]]
    runtime.forget_ahead()
    assert runtime.plan().num_copies == 1
    assert (int(b["copy_src"][0]), int(b["block_table"][row, 0])) == (source, int(b["copy_dst"][0])) and copy != source


def test_stale_handles_are_refused():
    runtime = rt.Runtime(8, 4)
    session = runtime.open()
    runtime.close(session)
    again = runtime.open()
    assert again != session
    for call in (runtime.length, runtime.fork, runtime.close, runtime.tokens, runtime.resident, runtime.is_running):
        with pytest.raises(rt.StaleHandle, match="closed"):
            call(session)
    with pytest.raises(ValueError, match="closed"):
        runtime.submit(session, [1], 1)
    with pytest.raises(rt.StaleHandle, match="never submitted"):
        runtime.abort(17)
    with pytest.raises(rt.StaleHandle, match="statistics"):
        runtime.stats_of(17)


def test_a_busy_session_is_refused():
    runtime = rt.Runtime(8, 4)
    session = runtime.open()
    runtime.submit(session, [1], 1)
    for call in (
        lambda: runtime.submit(session, [1], 1),
        lambda: runtime.fork(session),
        lambda: runtime.rollback(session, 0),
        lambda: runtime.close(session),
    ):
        with pytest.raises(ValueError, match="busy"):
            call()
