"""commit_step against plain Python, and rounds of it with plan_step: a device's state is what lists say."""

import random

import pytest
import step_reference
import torch
from cases import Frozen
from op_calls import int32, int64
from test_plan_step import run as plan
from test_plan_step import sequence

WIDTH, MAX_ROWS = 120, 6


def run(backend, sequences, fed, verified, step=3, ring=2):
    """fed: (rows, logit rows) of each; verified: their tokens. Returns the states after it, and the results."""
    batch, device = len(sequences), backend.device
    history = torch.full((batch, WIDTH + 2), 5555, dtype=torch.int32)[:, :WIDTH]
    tokens = torch.full((batch, MAX_ROWS + 1), -1, dtype=torch.int32)[:, :MAX_ROWS]
    stops = torch.full((batch, 4), -1, dtype=torch.int32)[:, :3]
    for b, s in enumerate(sequences):
        history[b, : len(s["history"])] = int32(*s["history"])
        tokens[b, : len(verified[b])] = int32(*verified[b])
        stops[b, : len(s["stops"])] = int32(*s["stops"])
    bounds = [int32(*(sum(f[i] for f in fed[:b]) for b in range(batch + 1))) for i in (0, 1)]
    state = {
        "history": history, "lengths": int32(*(len(s["history"]) for s in sequences)),
        "computed": int32(*(s["computed"] for s in sequences)), "finished": int32(*(s["finished"] for s in sequences)),
        "results": torch.full((ring, batch, 4 + MAX_ROWS), -5, dtype=torch.int32), "step": int64(step),
    }  # fmt: skip
    given = {
        "tokens": tokens, "num_tokens": int32(*map(len, verified)), "cu_seqlens_q": bounds[0], "cu_rows": bounds[1],
        "max_lengths": int32(*(s["max_length"] for s in sequences)), "stop_tokens": stops,
    }  # fmt: skip
    state, given = ({name: t.to(device) for name, t in d.items()} for d in (state, given))
    before = Frozen(**given)
    backend.ops.commit_step(**state, **given)
    before.check()
    got = {name: t.tolist() for name, t in state.items()}
    after = []
    for b, s in enumerate(sequences):
        length = got["lengths"][b]
        assert set(got["history"][b][length:]) <= {5555}
        after.append(
            s | {"history": got["history"][b][:length], "computed": got["computed"][b], "finished": got["finished"][b]}
        )
    assert got["step"] == [step + 1]
    assert all(all(set(row) <= {-5} for row in entry) for i, entry in enumerate(got["results"]) if i != step % ring)
    return after, got["results"][step % ring]


def check(backend, sequences, fed, verified, **options):
    after, results = run(backend, sequences, fed, verified, **options)
    want = [step_reference.commit(s, *f, v) for s, f, v in zip(sequences, fed, verified)]
    assert after == want
    for entry, state, (rows, logits), tokens in zip(results, want, fed, verified):
        assert entry == [rows, logits, len(tokens), state["finished"], *tokens, *[-1] * (MAX_ROWS - len(tokens))]
    return after


@pytest.mark.each_isa
@pytest.mark.parametrize("seed", range(12))
def test_random_batches(backend, seed):
    r, sequences, fed, verified = random.Random(seed), [], [], []
    for _ in range(r.choice([1, 3, 40])):
        history = [r.randrange(9) for _ in range(r.choice([1, 2, 50]))]
        pending = r.choice([0, 1, 1, 2, 4])
        s = sequence(history, max(0, len(history) - pending), stops=tuple(r.sample(range(9), r.choice([0, 1, 3]))))
        s["max_length"] = len(history) + r.randrange(1, 7)
        pending = len(history) - min(s["computed"], len(history) - 1)
        rows, logits = r.choice([(0, 0), (max(1, pending - 1), 0), (pending, 1), (1, 1)])
        if pending == 1:
            rows = logits = r.choice([0, 1, 4, MAX_ROWS])
        elif logits:
            rows = pending
        sequences.append(s)
        fed.append((rows, logits))
        verified.append([r.randrange(9) for _ in range(r.randint(min(1, logits), logits))])
    check(backend, sequences, fed, verified, step=r.randrange(5), ring=r.choice([1, 2, 3]))


@pytest.mark.each_isa
def test_ends_of_an_answer(backend):
    """A stop token ends it and is kept; the longest length ends it; what was verified beyond is forgotten."""
    base = sequence([1, 2, 3], 2, stops=(8, 9), max_length=6)
    cases = {(4, 5): 0, (4, 9, 5): 1, (8,): 1, (4, 5, 6, 7): 2, (4, 5, 9, 7): 1, (): 3}
    batch = [dict(base) for _ in cases]
    after = check(backend, batch, [(len(v) or 2, len(v) or 2) for v in cases], [list(v) for v in cases])
    assert [s["finished"] for s in after] == list(cases.values())
    assert [s["history"][3:] for s in after] == [[4, 5], [4, 9], [8], [4, 5, 6], [4, 5, 9], []]
    assert [s["computed"] for s in after] == [4, 5, 3, 6, 6, 2]


def test_more_sequences_than_threads(backend):
    batch = [sequence([b], 0, max_length=3 + b % 2) for b in range(600)]
    check(backend, batch, [(1 + b % 3, 1 + b % 3) for b in range(600)], [[7] * (1 + b % 3) for b in range(600)])


def test_empty(backend):
    run(backend, [], [], [])


@pytest.mark.each_isa
@pytest.mark.parametrize("seed", range(4))
def test_rounds(backend, seed):
    """Whole turns of plan and commit: tokens come out in order whatever the limits, and all KV is written once."""
    r = random.Random(seed)
    answers = [[r.randrange(100, 900) for _ in range(30)] for _ in range(5)]
    prompts = [[r.randrange(100) for _ in range(r.choice([1, 3, 12]))] for _ in answers]
    batch = [sequence(p, 0, max_length=len(p) + 30 - r.randrange(9), blocks=list(range(20))) for p in prompts]
    for s in batch:
        s["num_slots"] = 80
    written = [[] for _ in batch]
    for step in range(200):
        for s, prompt, answer in zip(batch, prompts, answers):
            at = len(s["history"]) - len(prompt)
            s["drafts"] = [t if r.random() < 0.7 else 1 for t in answer[at : at + r.randrange(6)]]
        out = plan(backend, batch, 11, 8, max_rows=4)
        fed, verified = [], []
        for b, s in enumerate(batch):
            begin, end = out["cu_seqlens_q"][b : b + 2]
            logits = out["cu_rows"][b + 1] - out["cu_rows"][b]
            at, tokens = len(s["history"]) - len(prompts[b]), []
            for i in range(logits):
                tokens.append(answers[b][at + i])
                if i + 1 < logits and out["draft_tokens"][out["cu_rows"][b] + i + 1] != tokens[-1]:
                    break
            fed.append((end - begin, logits))
            verified.append(tokens)
            written[b] += [slot for slot in out["slot_mapping"][begin:end] if slot >= 0]
        batch = check(backend, batch, fed, verified, step=step)
        if all(s["finished"] for s in batch):
            break
    for s, prompt, answer, slots in zip(batch, prompts, answers, written):
        assert s["finished"] == 2 and s["history"] == (prompt + answer)[: s["max_length"]]
        assert set(range(s["computed"])) <= set(slots) and s["computed"] >= len(s["history"]) - 1
