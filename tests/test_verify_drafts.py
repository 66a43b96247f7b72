"""verify_drafts: which drafts are kept, along chains and trees, and what is told of them."""

import math
import random

import pytest
import torch
from backends import FLOATS
from cases import cumulative, pack_bits, words
from verify_cases import check, peaked, run, sampling

# ---- greedy ---------------------------------------------------------------------------------------------------------


@pytest.mark.each_isa
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("vocab", [1, 2, 7, 31, 32, 33, 1000, 32003])
def test_greedy_accepts_the_right_prefix(backend, dtype, vocab):
    """Sequences that accept 0 to 5 of their 5 drafts, one without drafts and one without rows."""
    counts = [6, 6, 6, 6, 6, 6, 1, 0]
    total = sum(counts)
    logits = torch.randn(total, vocab).to(dtype)
    drafts = torch.full((total,), -1)
    for b in range(6):
        for i in range(5):
            right = int(logits[6 * b + i].argmax())
            drafts[6 * b + i + 1] = right if i < b else (right + 1) % max(vocab, 2)
    result, _ = check(backend, logits, drafts, cumulative(counts))
    assert result.num_tokens.tolist() == [1, 2, 3, 4, 5, 6, 1, 0]
    noise = {"seeds": [0] * 8, "positions": [0] * 8} if backend.device == "cuda" else {}  # cannot be looked at there
    again = run(backend, logits, drafts, cumulative(counts), temperature=[0.0] * 8, **noise)
    assert torch.equal(again.tokens, result.tokens), "temperature 0 is greedy, without seeds"


@pytest.mark.each_isa
@pytest.mark.parametrize("vocab", [5, 40, 4099])
def test_greedy_ties_nan_and_infinities(backend, vocab):
    low, high = 2, vocab - 1
    rows = torch.full((6, vocab), -1.0)
    rows[0, [low, high]] = 3.0  # the first of a tie
    rows[1, 0], rows[1, high] = math.nan, 2.0  # NaN never wins
    rows[2] = -math.inf
    rows[2, high] = -1e30  # anything beats -inf
    rows[3, [low, 1]] = math.inf
    rows[4] = -math.inf
    rows[4, 1:3] = math.nan
    rows[4, high] = -3e38
    rows[5] = 0.0  # all equal
    for dtype in (torch.float32, torch.bfloat16):
        result = run(backend, rows.to(dtype), [-1] * 6, list(range(7)), want=("rows",))
        assert result.tokens[:, 0].tolist() == [low, high, high, 1, high, 0]


def test_negative_zero_ties_with_zero(backend):
    rows = torch.tensor([[-1.0, -0.0, 0.0, -2.0], [-1.0, 0.0, -0.0, -2.0]])
    assert run(backend, rows, [-1, -1], [0, 1, 2]).tokens.tolist() == [[1], [1]]


@pytest.mark.each_isa
@pytest.mark.parametrize("vocab", [31, 32, 33, 100, 32003])
def test_bitmask(backend, vocab):
    logits = torch.randn(12, vocab)
    allowed = torch.rand(12, vocab) < 0.3
    allowed[:, vocab // 2] = True
    mask = pack_bits(allowed.tolist(), words(vocab))
    drafts = torch.where(allowed, logits, -math.inf).argmax(-1).roll(1)
    for options in ({}, sampling(3), sampling(3, 0.7, top_k=5, top_p=0.9)):
        result, _ = check(backend, logits, drafts, [0, 4, 8, 12], token_bitmask=mask, **options)
        for b in range(3):
            for token, row in zip(result.of(b), result.rows[b].tolist()):
                assert allowed[4 * b + row, token]


def test_bits_past_the_vocabulary_do_not_matter(backend):
    logits = torch.randn(2, 37)
    masks = [pack_bits([[True] * 37 + [tail] * 27] * 2, 2) for tail in (False, True)]
    a, b = (run(backend, logits, [-1, -1], [0, 1, 2], token_bitmask=m).tokens for m in masks)
    assert torch.equal(a, b) and a.flatten().tolist() == logits.argmax(-1).tolist()


# ---- the walk -------------------------------------------------------------------------------------------------------


@pytest.mark.each_isa
def test_walk_through_a_tree(backend):
    """Row 0 draws 5: children 1 (4) and 2 (5); row 2 draws 6: children 3 (6); row 3 draws 7: no child."""
    logits = peaked([5, 1, 6, 7, 8, 9])
    drafts, parents = [3, 4, 5, 6, 7, 7], [-1, 0, 0, 2, 1, 2]
    for options in ({}, sampling(1, 0.1)):
        result = run(backend, logits, drafts, [0, 6], parents=parents, **options)
        assert result.of(0) == [5, 6, 7]
        assert result.rows[0, :3].tolist() == [0, 2, 3]


@pytest.mark.each_isa
def test_the_lowest_of_equal_children_is_taken(backend):
    logits = peaked([5, 6, 7, 8, 9])
    result = run(backend, logits, [0, 5, 5, 6, 7], [0, 5], parents=[-1, 0, 0, 1, 2])
    assert result.rows[0, :3].tolist() == [0, 1, 3] and result.of(0) == [5, 6, 8]
    result = run(backend, logits, [0, 5, 5, 6, 7], [0, 5], parents=[-1, 0, 0, 2, 2])
    assert result.rows[0, :2].tolist() == [0, 1] and result.of(0) == [5, 6], "its sibling's children are not its own"


def test_row_0_is_never_judged(backend):
    logits = peaked([5, 6])
    for first in (-1, 5, 6, 1 << 30):
        assert run(backend, logits, [first, 5], [0, 2]).of(0) == [5, 6]


def test_padding_drafts_match_nothing(backend):
    logits = peaked([0, 9, 3])
    assert run(backend, logits, [0, -1, -1], [0, 3]).of(0) == [0]
    assert run(backend, logits, [0, 1 << 30, -(1 << 31)], [0, 3]).of(0) == [0]


@pytest.mark.each_isa
@pytest.mark.parametrize("seed", range(10))
def test_random_trees(backend, seed):
    """Few token ids, so that drafts are often right and often repeat."""
    rng, counts = random.Random(seed), []
    drafts, parents = [], []
    for _ in range(20):
        n = rng.choice([0, 1, 2, 9, 33])
        counts.append(n)
        for i in range(n):
            parents.append(-1 if i == 0 else rng.randrange(max(0, i - 6), i))
            drafts.append(rng.randrange(3))
    torch.manual_seed(seed)
    logits = torch.randn(sum(counts), 3)
    for options in ({}, sampling(20, 1.3)):
        _, ambiguous = check(backend, logits, drafts, cumulative(counts), parents=parents, **options)
        assert ambiguous <= 1


def test_max_rows_may_exceed_the_rows(backend):
    result = run(backend, peaked([5, 6]), [0, 5], [0, 2], max_rows=7)
    assert result.tokens.tolist() == [[5, 6, -1, -1, -1, -1, -1]]


def test_empty_batches_and_sequences(backend):
    run(backend, torch.zeros(0, 5), [], [0])
    run(backend, torch.zeros(0, 5), [], [0, 0, 0], **sampling(2))
    run(backend, torch.zeros(4, 5), [-1] * 4, [0, 0, 0])
    assert run(backend, peaked([1, 2, 3]), [-1] * 3, [0, 0, 1, 1, 2]).num_tokens.tolist() == [0, 1, 0, 1]


def test_logits_in_a_wider_buffer(backend):
    """A padded vocabulary: the logits are a slice, its neighbours are larger."""
    wide = torch.full((8, 70), 100.0)
    wide[:, 3:53] = torch.randn(8, 50)
    for dtype in FLOATS:
        storage = wide.to(dtype).to(backend.device)
        _, ambiguous = check(backend, storage[:, 3:53], [-1] * 8, list(range(9)), **sampling(8))
        assert ambiguous <= 1
        check(backend, storage[::2, 3:53], [-1] * 4, list(range(5)))


def test_optional_outputs(backend):
    logits, options = torch.randn(6, 40), sampling(2)
    whole = run(backend, logits, [1] * 6, [0, 3, 6], **options)
    for want in ((), ("rows",), ("logprobs",)):
        some = run(backend, logits, [1] * 6, [0, 3, 6], want=want, **options)
        assert torch.equal(some.tokens, whole.tokens) and torch.equal(some.num_tokens, whole.num_tokens)


# ---- logprobs -------------------------------------------------------------------------------------------------------


@pytest.mark.each_isa
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_logprobs_are_of_the_unprocessed_logits(backend, dtype):
    logits = (torch.randn(20, 3000) * 4).to(dtype)
    mask = pack_bits((torch.rand(20, 3000) < 0.5).tolist(), words(3000))
    options = sampling(20, 0.5, top_k=50, top_p=0.9, min_p=0.01)
    result, ambiguous = check(backend, logits, [-1] * 20, list(range(21)), token_bitmask=mask, **options)
    want = torch.log_softmax(logits.double(), -1).gather(1, result.tokens.cpu().long())
    torch.testing.assert_close(result.logprobs.cpu().double(), want, rtol=2e-6, atol=2e-6)
    assert ambiguous <= 1


def test_logprobs_of_huge_and_nan_logits(backend):
    logits = torch.tensor([[1e30, -1e30, 0.0], [88.0, 90.0, math.nan], [-1e4, -1e4, -math.inf]])
    result = run(backend, logits, [-1] * 3, [0, 1, 2, 3])
    want = [0.0, -math.log1p(math.exp(-2.0)), -math.log(2.0)]
    torch.testing.assert_close(result.logprobs.flatten().cpu(), torch.tensor(want), rtol=2e-6, atol=2e-6)


# ---- what others shipped --------------------------------------------------------------------------------------------


@pytest.mark.each_isa
def test_a_draft_of_probability_zero_is_never_accepted(backend):
    """Also not where a uniform of exactly 0 would compare as accepted."""
    draws, vocab = 200 if backend.emulated else 2000, 4
    logits = torch.zeros(2 * draws, vocab)
    logits[:, 2] = -math.inf
    drafts = torch.full((2 * draws,), 2)
    result = run(backend, logits, drafts, list(range(0, 2 * draws + 1, 2)), **sampling(draws))
    assert (result.num_tokens == 1).all() and (result.tokens != 2).all()
    logits = torch.tensor([[5.0, 4.0, 3.0, 4.9]] * (2 * draws))
    result = run(backend, logits, drafts, list(range(0, 2 * draws + 1, 2)), **sampling(draws, top_k=2))
    assert (result.tokens[:, 0] != 2).all() and (result.tokens[:, 0] != 1).all()


def test_temperature_is_part_of_the_target(backend):
    """A draft is judged by the scaled distribution: cold sampling accepts the argmax, hot sampling often not."""
    draws = 300
    logits, drafts = torch.tensor([[2.0, 1.0, 0.0]] * (2 * draws)), torch.zeros(2 * draws, dtype=torch.int64)
    cu_rows = list(range(0, 2 * draws + 1, 2))
    accepted = {
        t: int((run(backend, logits, drafts, cu_rows, **sampling(draws, t)).num_tokens == 2).sum()) / draws
        for t in (0.05, 1.0, 20.0)
    }
    assert accepted[0.05] == 1.0
    assert 0.55 < accepted[1.0] < 0.78  # softmax gives 0.665
    assert 0.25 < accepted[20.0] < 0.47  # 0.350


def test_logits_are_not_changed_in_place(backend):
    """All processing at once, twice over the same logits: the same answer (run() compares the bits, too)."""
    logits = torch.randn(9, 64)
    options = sampling(3, 0.6, top_k=9, top_p=0.8, min_p=0.05)
    mask = pack_bits([[i % 3 != 0 for i in range(64)]] * 9, 2)
    a, b = (run(backend, logits, [1] * 9, [0, 3, 6, 9], token_bitmask=mask, **options) for _ in range(2))
    assert torch.equal(a.tokens, b.tokens) and torch.equal(a.rows, b.rows)
