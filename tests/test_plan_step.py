"""plan_step against plain Python: who gets which rows, and what is in them."""

import random

import pytest
import step_reference
import torch
from cases import Frozen
from op_calls import int32

OUTPUTS = {
    "token_ids": (torch.int32, "tokens"),
    "positions": (torch.int64, "tokens"),
    "slot_mapping": (torch.int64, "tokens"),
    "cu_seqlens_q": (torch.int32, "bounds"),
    "seqused_k": (torch.int32, "batch"),
    "logit_rows": (torch.int64, "logits"),
    "draft_tokens": (torch.int32, "logits"),
    "cu_rows": (torch.int32, "bounds"),
    "sample_positions": (torch.int64, "batch"),
}


def sequence(history, computed, block_size=4, num_slots=None, **changes):
    blocks = [7 * i % 101 for i in range(-(-(len(history) + 20) // block_size))]
    slots = len(blocks) * block_size if num_slots is None else num_slots
    s = {"history": history, "computed": computed, "finished": 0, "drafts": [], "draft_limit": 99, "max_length": 99}
    return s | {"num_slots": slots, "blocks": blocks, "stops": (), "max_rows": 5} | changes


def run(backend, sequences, max_tokens, max_logit_rows, block_size=4, max_rows=5, max_drafts=6):
    """The op's outputs; rows of its matrices lie apart, and what lies behind a history or its drafts is wrong."""
    batch, width = len(sequences), 120
    device = backend.device
    history = torch.full((batch, width + 3), 5555, dtype=torch.int32)[:, :width]
    drafts = torch.full((batch, max_drafts + 2), 7777, dtype=torch.int32)[:, :max_drafts]
    table = torch.full((batch, 40), -1, dtype=torch.int32)[:, 1:38]
    for b, s in enumerate(sequences):
        history[b, : len(s["history"])] = int32(*s["history"])
        drafts[b, : len(s["drafts"])] = int32(*s["drafts"])
        table[b, : len(s["blocks"])] = int32(*s["blocks"])
    state = {
        "history": history, "lengths": int32(*(len(s["history"]) for s in sequences)),
        "computed": int32(*(s["computed"] for s in sequences)), "finished": int32(*(s["finished"] for s in sequences)),
        "drafts": drafts, "num_drafts": int32(*(len(s["drafts"]) for s in sequences)),
        "draft_limits": int32(*(s["draft_limit"] for s in sequences)),
        "max_lengths": int32(*(s["max_length"] for s in sequences)),
        "num_slots": int32(*(s["num_slots"] for s in sequences)), "block_table": table,
    }  # fmt: skip
    state = {name: t.to(device) for name, t in state.items()}
    sizes = {"tokens": max_tokens, "logits": max_logit_rows, "batch": batch, "bounds": batch + 1}
    out = {n: torch.full((sizes[size],), -9, dtype=dtype, device=device) for n, (dtype, size) in OUTPUTS.items()}
    before = Frozen(**state)
    backend.ops.plan_step(**out, **state, block_size=block_size, max_rows=max_rows)
    before.check()
    return {name: t.tolist() for name, t in out.items()}


def check(backend, sequences, max_tokens, max_logit_rows, block_size=4, max_rows=5):
    for s in sequences:
        s["max_rows"] = max_rows
    got = run(backend, sequences, max_tokens, max_logit_rows, block_size, max_rows)
    planned = step_reference.plan(sequences, max_tokens, max_logit_rows, block_size)
    want = {name: [] for name in OUTPUTS}
    for s, (positions, tokens, slots, logits) in zip(sequences, planned):
        want["cu_seqlens_q"].append(len(want["token_ids"]))
        want["cu_rows"].append(len(want["logit_rows"]))
        want["token_ids"] += tokens
        want["positions"] += positions
        want["slot_mapping"] += slots
        want["seqused_k"].append(positions[-1] + 1 if positions else 0)
        want["sample_positions"].append(len(s["history"]) if logits else 0)
        end = len(want["token_ids"])
        want["logit_rows"] += range(end - logits, end)
        want["draft_tokens"] += tokens[len(tokens) - logits :]
    want["cu_seqlens_q"].append(len(want["token_ids"]))
    want["cu_rows"].append(len(want["logit_rows"]))
    for name, filler, size in (
        ("token_ids", 0, max_tokens), ("positions", 0, max_tokens), ("slot_mapping", -1, max_tokens),
        ("logit_rows", 0, max_logit_rows), ("draft_tokens", 0, max_logit_rows),
    ):  # fmt: skip
        assert len(want[name]) <= size
        want[name] += [filler] * (size - len(want[name]))
    assert got == want
    return got


@pytest.mark.each_isa
@pytest.mark.parametrize("seed", range(16))
def test_random_batches(backend, seed):
    """Decoding, ingesting, waiting and finished sequences, with rows for all or for few."""
    r = random.Random(seed)
    block_size, sequences = r.choice([1, 4, 16]), []
    for _ in range(r.choice([1, 2, 7, 40])):
        history = [r.randrange(1000) for _ in range(r.choice([0, 1, 2, 9, 60]))]
        left = r.choice([0, 1, 1, 1, 3, 7])
        s = sequence(
            history, max(0, len(history) - left), block_size if len(history) < 20 else 16,
            finished=r.choice([0, 0, 0, 1, 2]), drafts=[r.randrange(1000) for _ in range(r.choice([0, 3, 6]))],
            draft_limit=r.choice([0, 2, 99]), max_length=len(history) + r.choice([1, 2, 20]),
        )  # fmt: skip
        s["blocks"] = [r.randrange(100) for _ in range(-(-(len(history) + 8) // block_size))][:37]
        s["num_slots"] = max(0, min(len(history) + r.choice([-9, -1, 0, 1, 3, 8]), len(s["blocks"]) * block_size))
        if len(s["blocks"]) * block_size >= len(history):
            sequences.append(s)
    most = sum(8 for _ in sequences)
    max_tokens, max_logit_rows = r.choice([1, 5, most]), r.choice([1, 5, most])
    check(backend, sequences, max_tokens, max_logit_rows, block_size, r.choice([1, 3, 8]))


@pytest.mark.each_isa
def test_by_hand(backend):
    """A sequence with drafts, one that ingests three tokens, one that feeds a cached token again, an empty one."""
    one = sequence([10, 11, 12], 2, drafts=[20, 21], blocks=[5, 6])
    two = sequence([30, 31, 32, 33, 34], 2, drafts=[40], blocks=[8, 9])
    three = sequence([50, 51], 2, blocks=[3])
    got = check(backend, [one, two, three, sequence([], 0)], 9, 8)
    assert got["token_ids"] == [12, 20, 21, 32, 33, 34, 51, 0, 0]
    assert got["slot_mapping"] == [22, 23, 24, 34, 35, 36, -1, -1, -1]
    assert got["cu_seqlens_q"] == [0, 3, 6, 7, 7] and got["seqused_k"] == [5, 5, 2, 0]
    assert got["logit_rows"] == [0, 1, 2, 5, 6, 0, 0, 0] and got["cu_rows"] == [0, 3, 4, 5, 5]
    assert got["draft_tokens"] == [12, 20, 21, 34, 51, 0, 0, 0] and got["sample_positions"] == [3, 5, 2, 0]


def test_rows_run_short(backend):
    """First a row for each, then drafts, then the rest, in the order of sequences."""
    batch = [sequence([1, 2, 3], 2, drafts=[7, 8, 9]) for _ in range(3)] + [sequence([1, 2, 3, 4], 0)]
    for max_tokens in range(1, 15):
        for max_logit_rows in (1, 3, 4, 5, 8, 14):
            check(backend, batch, max_tokens, max_logit_rows)


def test_more_sequences_than_threads(backend):
    batch = [sequence([b % 50, 1], b % 3, drafts=[3] * (b % 4), finished=b % 7 == 0) for b in range(1200)]
    check(backend, batch, 2100, 1500)
    check(backend, batch, 700, 650)


def test_empty(backend):
    check(backend, [], 3, 2)
    check(backend, [sequence([], 0), sequence([1], 1, finished=1)], 3, 2)
