"""propose_drafts against brute force: what followed the last n tokens when they occurred before."""

import random

import pytest
import reference
import torch
from cases import Frozen


def check(backend, histories, max_ngram, max_drafts, min_ngram=1, latest=True, extra=0, poison=True):
    longest = max([len(h) for h in histories], default=0) + extra
    # What lies past a history repeats it, so that reading on would find matches and drafts.
    rows = [(h + (h or [0]) * (longest // max(len(h), 1) + 1))[:longest] for h in histories]
    wide = torch.full((len(histories), longest + 3), -99, dtype=torch.int32)
    for b, row in enumerate(rows):
        wide[b, :longest] = torch.tensor(row, dtype=torch.int32)
    history = wide.to(backend.device)[:, :longest]
    lens = torch.tensor([len(h) for h in histories], dtype=torch.int32, device=backend.device)
    storage = torch.full((len(histories), max_drafts + 2), -77, dtype=torch.int32, device=backend.device)
    drafts = storage[:, 1 : 1 + max_drafts]
    num_drafts = torch.full((len(histories),), -77, dtype=torch.int32, device=backend.device)
    before = Frozen(history=history, lens=lens)
    backend.ops.propose_drafts(drafts, num_drafts, history, lens, max_ngram, min_ngram, latest)
    before.check()
    assert (storage[:, 0] == -77).all() and (storage[:, -1] == -77).all()
    for b, h in enumerate(histories):
        want = reference.propose_drafts(h, max_ngram, max_drafts, min_ngram, latest)
        count = int(num_drafts[b])
        assert drafts[b, :count].tolist() == want, f"history {h}, n {min_ngram} to {max_ngram}, latest {latest}"
        assert (drafts[b, count:] == -1).all()


@pytest.mark.each_isa
@pytest.mark.parametrize("latest", [True, False])
@pytest.mark.parametrize("seed", range(12))
def test_random_histories(backend, seed, latest):
    """Alphabets from one letter (every occurrence overlaps) to many (none occurs)."""
    rng = random.Random(seed)
    histories = [
        [rng.randrange(rng.choice([1, 2, 2, 3, 5, 50])) for _ in range(rng.choice([0, 1, 2, 3, 8, 33, 100]))]
        for _ in range(24)
    ]
    min_ngram = rng.choice([1, 1, 2, 3])
    check(
        backend,
        histories,
        min_ngram + rng.randrange(5),
        rng.choice([1, 2, 5, 8, 64]),
        min_ngram,
        latest,
        rng.randrange(9),
    )


@pytest.mark.each_isa
def test_by_hand(backend):
    a = [1, 2, 3, 9, 1, 2, 3, 8, 1, 2, 3]
    for latest, want in ((True, [8, 1, 2]), (False, [9, 1, 2])):
        drafts, count = torch.zeros(1, 3, dtype=torch.int32), torch.zeros(1, dtype=torch.int32)
        drafts, count = drafts.to(backend.device), count.to(backend.device)
        history = torch.tensor([a], dtype=torch.int32, device=backend.device)
        lens = torch.tensor([len(a)], dtype=torch.int32, device=backend.device)
        backend.ops.propose_drafts(drafts, count, history, lens, 3, 1, latest)
        assert drafts.tolist() == [want] and count.tolist() == [3]


def test_overlapping_occurrences(backend):
    """The occurrence may overlap the suffix itself: aaaa proposes a."""
    for latest in (True, False):
        check(backend, [[7] * n for n in range(12)], 4, 5, latest=latest)
        check(backend, [[1, 2] * n for n in range(10)], 5, 8, latest=latest)


def test_longest_match_wins_over_a_later_short_one(backend):
    check(backend, [[1, 2, 3, 4, 5, 3, 6, 1, 2, 3], [4, 4, 1, 4, 2, 4]], 3, 2)
    check(backend, [[1, 2, 3, 4, 5, 3, 6, 1, 2, 3]], 3, 2, min_ngram=3)


def test_min_ngram_forbids_short_matches(backend):
    check(backend, [[1, 2, 1], [1, 2, 3, 1, 2], [5, 5]], 4, 4, min_ngram=2)


def test_empty(backend):
    check(backend, [], 3, 4, extra=5)
    check(backend, [[], [1], [], [2, 2]], 3, 4, extra=5)
    check(backend, [[1, 1, 1]], 3, 0)


def test_ngram_longer_than_history(backend):
    check(backend, [[1, 1], [1, 2, 1, 2, 1, 2]], 100, 8)


@pytest.mark.each_isa
@pytest.mark.parametrize("latest", [True, False])
def test_long_histories(backend, latest):
    rng = random.Random(5)
    unique = list(range(100, 8100))
    early = unique[:50] + unique + unique[10:14]
    noisy = [rng.randrange(20) for _ in range(5000)]
    check(backend, [early, noisy, unique], 4, 16, latest=latest)
