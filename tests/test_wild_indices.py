"""Indices that the host does not look at: whatever they say, nothing is read or written out of bounds.

On CUDA and its emulation an index out of range is skipped. Each case makes some indices of a valid call wild, calls
the op (the emulator's AddressSanitizer build watches every access) and compares what must not have changed: outputs
that no valid index names, and those of sequences whose own indices are as they were.
"""

import random

import pytest
import torch
from op_calls import BLOCK, BLOCKS, CALLS, HEADS, OUTPUTS, int32, int64, on_device, rows

INT32 = [-(1 << 31), (1 << 31) - 1, -2, 1 << 20, -(1 << 20)]
INT64 = [*INT32, -(1 << 63), (1 << 63) - 1, 1 << 32, -(1 << 32), 1 << 62]
SLOTS = BLOCKS * BLOCK
SEEDS = range(6)


@pytest.fixture
def unchecked(backend):
    if backend.checks_indices:
        pytest.skip("indices are checked: see test_op_errors.py")
    return backend


def call(backend, op, kwargs):
    kwargs = on_device(kwargs, backend.device)
    getattr(backend.ops, op)(**kwargs)
    return kwargs


def spoil(t, rng, wild, count):
    """Writes `count` wild values somewhere into t; returns the places of the flat tensor."""
    places = rng.sample(range(t.numel()), count)
    for i in places:
        t.view(-1)[i] = rng.choice(wild)
    return places


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("op", ["append_kv", "rope_append_kv"])
def test_slots_and_positions(unchecked, op, seed):
    rng = random.Random(seed)
    kwargs = CALLS[op](torch.bfloat16)
    kwargs["slot_mapping"] = int64(3, 8, 17, 40, 95)
    before = {name: kwargs[name].clone() for name in ("k_cache", "v_cache")}
    spoiled = spoil(kwargs["slot_mapping"], rng, [*INT64, SLOTS], 2)
    if op == "rope_append_kv":
        spoiled += spoil(kwargs["positions"], rng, [*INT64, 32], 1)
    done = call(unchecked, op, kwargs)
    for name, cache in before.items():
        got = done[name].cpu().flatten(0, 1)
        want = cache.flatten(0, 1)
        good = [int(kwargs["slot_mapping"][i]) for i in range(5) if i not in spoiled]
        others = [s for s in range(SLOTS) if s not in good]
        assert torch.equal(got[others], want[others])
        assert all(not torch.equal(got[s], want[s]) for s in good)


@pytest.mark.parametrize("seed", SEEDS)
def test_blocks_to_copy(unchecked, seed):
    rng = random.Random(seed)
    kwargs = CALLS["copy_blocks"]()
    kwargs |= {"src_blocks": int32(0, 1, 2), "dst_blocks": int32(3, 4, 5), "num_tokens": int32(16, 3, 0)}
    before = [c.clone() for c in (*kwargs["k_caches"], *kwargs["v_caches"])]
    name = rng.choice(["src_blocks", "dst_blocks", "num_tokens"])
    (bad,) = spoil(kwargs[name], rng, [*INT32, BLOCKS] if name != "num_tokens" else INT32, 1)
    done = call(unchecked, "copy_blocks", kwargs)
    for got, was in zip((*done["k_caches"], *done["v_caches"]), before):
        want = was.clone()
        for i in range(3):
            count = max(0, min(int(kwargs["num_tokens"][i]), BLOCK))
            if i != bad or name == "num_tokens":
                want[3 + i, :count] = was[i, :count]
        assert torch.equal(got.cpu(), want)


@pytest.mark.parametrize("seed", range(12))
def test_moves(unchecked, seed):
    rng = random.Random(seed)
    kwargs = CALLS["compact_kv"]()
    kwargs |= {"src_slots": int64(5, 9, 40, 41), "dst_slots": int64(4, 5, 33, 34), "cu_moves": int32(0, 2, 3, 4)}
    before = [c.clone() for c in (*kwargs["k_caches"], *kwargs["v_caches"])]
    name = rng.choice(["src_slots", "dst_slots", "cu_moves"])
    (bad,) = spoil(kwargs[name], rng, INT32 if name == "cu_moves" else [*INT64, SLOTS], 1)
    sequence = [0, 0, 1, 2]
    skipped = [i for i in range(4) if (sequence[i] in (bad - 1, bad) if name == "cu_moves" else i == bad)]
    done = call(unchecked, "compact_kv", kwargs)
    for got, was in zip((*done["k_caches"], *done["v_caches"]), before):
        want = was.clone().flatten(0, 1)
        for i in range(4):
            if i not in skipped:
                want[int(kwargs["dst_slots"][i])] = want[int(kwargs["src_slots"][i])]
        assert torch.equal(got.cpu().flatten(0, 1), want)


@pytest.mark.parametrize("num_splits", [-1, 0, 3])
@pytest.mark.parametrize("seed", SEEDS)
def test_attention(unchecked, num_splits, seed):
    """Of four sequences one or two have lengths or blocks out of range; the others' bits are those of a clean call."""
    rng = random.Random(seed)
    kwargs = CALLS["delta_prefill"](torch.bfloat16)
    kwargs |= {
        "query": rows(8, HEADS), "out": rows(8, HEADS), "lse": torch.zeros(HEADS, 8), "num_splits": num_splits,
        "cu_seqlens_q": int32(0, 1, 4, 6, 8), "seqused_k": int32(20, 31, 2, 30), "tree_mask": None,
        "block_table": int32(0, 1, 2, 3, 4, -1, 5, 0).view(4, 2), "max_seqlen_q": 3,
        "window_left": rng.choice([-1, 4, (1 << 31) - 1]), "causal": rng.random() < 0.7,
    }  # fmt: skip
    clean = call(unchecked, "delta_prefill", kwargs | {n: kwargs[n].clone() for n in ("out", "lse")})
    name = rng.choice(["cu_seqlens_q", "seqused_k", "block_table"])
    wild = {"cu_seqlens_q": [*INT32, 9], "seqused_k": [*INT32, 33], "block_table": [*INT32, BLOCKS]}[name]
    before = kwargs["out"].clone()
    (bad,) = spoil(kwargs[name], rng, wild, 1)
    touched = {"cu_seqlens_q": [bad - 1, bad], "seqused_k": [bad], "block_table": [bad // 2]}[name]
    done = call(unchecked, "delta_prefill", kwargs)
    begins = [0, 1, 4, 6, 8]
    for b in range(4):
        part = slice(begins[b], begins[b + 1])
        if b in touched:
            if name == "cu_seqlens_q":  # keys that the block table does not hold are hidden, the rest is answered
                assert torch.equal(done["out"][part].cpu(), before[part])
        elif num_splits != 0:  # the library's choice of splits takes in the whole batch
            assert torch.equal(done["out"][part], clean["out"][part])
            assert torch.equal(done["lse"][:, part], clean["lse"][:, part])
        else:
            torch.testing.assert_close(done["out"][part].float(), clean["out"][part].float(), rtol=0.02, atol=0.02)


@pytest.mark.parametrize("has_schedule", [False, True])
@pytest.mark.parametrize("window", [-1, 2300])
@pytest.mark.parametrize("length", [3500, 4096, 6000, 1 << 20, (1 << 31) - 1])
def test_a_length_beyond_its_table_takes_nothing_from_others(unchecked, length, window, has_schedule):
    """What is split into parts goes by lengths, the memory for parts by the table: the other's bits stay."""
    kwargs = CALLS["delta_prefill"](torch.bfloat16)
    kwargs |= {
        "query": rows(2, HEADS), "lse": torch.zeros(HEADS, 2), "out": rows(2, HEADS), "num_splits": -1,
        "cu_seqlens_q": int32(0, 1, 2), "tree_mask": None, "max_seqlen_q": 1, "window_left": window,
        "block_table": torch.randint(BLOCKS, (2, 160), dtype=torch.int32),  # 2560 keys
    }  # fmt: skip
    done = []
    for wild in (2560, length):
        kwargs["seqused_k"] = int32(wild, 2560)
        if has_schedule:
            made = CALLS["schedule_delta_prefill"]() | {n: kwargs[n] for n in ("cu_seqlens_q", "seqused_k")}
            made |= {"max_seqlen_q": 1, "num_splits": -1, "window_left": window}
            kwargs["schedule"] = call(unchecked, "schedule_delta_prefill", made)["schedule"]
        fresh = {n: torch.full_like(kwargs[n], float("nan")) for n in ("out", "lse")}
        done.append(call(unchecked, "delta_prefill", kwargs | fresh))
    clean, other = done
    assert torch.isfinite(clean["out"].float()).all()
    assert torch.equal(other["out"][1], clean["out"][1]) and torch.equal(other["lse"][:, 1], clean["lse"][:, 1])


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("num_splits", [-1, 0, 1])
def test_a_window_wider_than_any_context_hides_nothing(backend, causal, num_splits):
    """Also where more tokens are new than there are keys, so that positions are negative."""
    kwargs = CALLS["delta_prefill"](torch.bfloat16) | {
        "causal": causal, "num_splits": num_splits, "tree_mask": None, "seqused_k": int32(20, 1, 1),
    }  # fmt: skip
    a = call(backend, "delta_prefill", kwargs | {n: kwargs[n].clone() for n in ("out", "lse")})
    b = call(backend, "delta_prefill", kwargs | {"window_left": (1 << 31) - 1})
    assert torch.equal(a["out"], b["out"]) and torch.equal(a["lse"], b["lse"])


@pytest.mark.parametrize("seed", SEEDS)
def test_schedules(unchecked, seed):
    rng = random.Random(seed)
    kwargs = CALLS["schedule_delta_prefill"]()
    name = rng.choice(["cu_seqlens_q", "seqused_k"])
    spoil(kwargs[name], rng, INT32, rng.choice([1, 2, 3]))
    call(unchecked, "schedule_delta_prefill", kwargs | {"num_splits": rng.choice([-1, 0, 1, (1 << 31) - 1])})


@pytest.mark.parametrize("seed", range(12))
def test_rows_to_verify(unchecked, seed):
    """Other sequences are answered as in a clean call; the spoiled ones have no rows, or walk where they can."""
    rng = random.Random(seed)
    kwargs = CALLS["verify_drafts"]()
    clean = call(unchecked, "verify_drafts", kwargs | {n: kwargs[n].clone() for n in ("tokens", "num_tokens")})
    name = rng.choice(["cu_rows", "parents", "draft_tokens", "positions"])
    (bad,) = spoil(kwargs[name], rng, INT64 if name == "positions" else [*INT32, 3, 7], 1)
    sequence = [0, 0, 0, 1, 2, 2]
    touched = {"cu_rows": [bad - 1, bad], "positions": [bad]}.get(name) or [sequence[bad]]
    wild = name == "cu_rows" and int(kwargs["cu_rows"][bad]) in (3, 7)  # may take the rows of others
    done = call(unchecked, "verify_drafts", kwargs)
    for b in range(3):
        if b in touched:
            assert wild or 0 <= int(done["num_tokens"][b]) <= 3
            if name == "cu_rows" and not wild:
                assert int(done["num_tokens"][b]) == 0 and (done["tokens"][b] == -1).all()
        elif not wild:
            assert torch.equal(done["tokens"][b], clean["tokens"][b])


def test_parents_in_circles(unchecked):
    for parents in ((-1, 2, 1), (1, 2, 0), (0, 0, 0), (2, 1, 1)):
        kwargs = CALLS["verify_drafts"]() | {"parents": int32(*parents, -1, -1, 0)}
        done = call(unchecked, "verify_drafts", kwargs)
        assert all(0 <= n <= 3 for n in done["num_tokens"].tolist())


@pytest.mark.parametrize("seed", SEEDS)
def test_histories(unchecked, seed):
    rng = random.Random(seed)
    kwargs = CALLS["propose_drafts"]()
    clean = call(unchecked, "propose_drafts", kwargs | {n: kwargs[n].clone() for n in ("drafts", "num_drafts")})
    (bad,) = spoil(kwargs["history_lens"], rng, [*INT32, 21], 1)
    done = call(unchecked, "propose_drafts", kwargs)
    for b in range(3):
        assert 0 <= int(done["num_drafts"][b]) <= 4
        if b != bad:
            assert torch.equal(done["drafts"][b], clean["drafts"][b])


@pytest.mark.parametrize("seed", range(12))
def test_steps_to_plan(unchecked, seed):
    """The rows of other sequences are those of a clean call, if not at the same place."""
    rng = random.Random(seed)
    kwargs = CALLS["plan_step"]()
    sizes = {"token_ids": 24, "positions": 24, "slot_mapping": 24, "logit_rows": 20, "draft_tokens": 20}
    kwargs |= {name: torch.zeros(n, dtype=kwargs[name].dtype) for name, n in sizes.items()}
    outputs = OUTPUTS["plan_step"]
    clean = call(unchecked, "plan_step", kwargs | {n: kwargs[n].clone() for n in outputs})
    names = ("lengths", "computed", "num_drafts", "draft_limits", "max_lengths", "num_slots", "block_table")
    name = rng.choice(names)
    (bad,) = spoil(kwargs[name], rng, INT32, 1)
    done = call(unchecked, "plan_step", kwargs)

    def rows_of(out, b):
        begin, end = out["cu_seqlens_q"][b : b + 2].tolist()
        return [out[n][begin:end].tolist() for n in ("token_ids", "positions", "slot_mapping")]

    for b in range(3):
        if b != (bad // 2 if name == "block_table" else bad):
            assert rows_of(done, b) == rows_of(clean, b)
    assert all(0 <= n <= 24 for n in done["cu_seqlens_q"].tolist())


@pytest.mark.parametrize("seed", range(12))
def test_steps_to_commit(unchecked, seed):
    rng = random.Random(seed)
    kwargs = CALLS["commit_step"]()
    outputs = OUTPUTS["commit_step"]
    clean = call(unchecked, "commit_step", kwargs | {n: kwargs[n].clone() for n in outputs})
    name = rng.choice(["lengths", "computed", "num_tokens", "cu_seqlens_q", "cu_rows", "max_lengths", "step"])
    (bad,) = spoil(kwargs[name], rng, INT64 if name == "step" else INT32, 1)
    done = call(unchecked, "commit_step", kwargs)
    touched = {"cu_seqlens_q": (bad - 1, bad), "cu_rows": (bad - 1, bad), "step": ()}.get(name, (bad,))
    for b in range(3):
        if b not in touched:
            for n in ("history", "lengths", "computed", "finished"):
                assert torch.equal(done[n][b], clean[n][b])
