"""verify_drafts: what is drawn, which drafts are kept, and that neither changes what plain sampling would give."""

import dataclasses
import math
import random

import pytest
import reference_sampling
import torch
from backends import FLOATS
from cases import Frozen, cumulative, pack_bits, words

NAMES = ("parents", "temperature", "top_k", "top_p", "min_p", "seeds", "positions", "token_bitmask")
DTYPES = {
    "parents": torch.int32, "temperature": torch.float32, "top_k": torch.int32, "top_p": torch.float32,
    "min_p": torch.float32, "seeds": torch.int64, "positions": torch.int64, "token_bitmask": torch.int32,
}  # fmt: skip


@dataclasses.dataclass
class Result:
    tokens: torch.Tensor
    num_tokens: torch.Tensor
    rows: torch.Tensor
    logprobs: torch.Tensor

    def of(self, b):
        return self.tokens[b, : int(self.num_tokens[b])].tolist()


def run(backend, logits, draft_tokens, cu_rows, max_rows=None, want=("rows", "logprobs"), **options):
    """One call into wider buffers of garbage; options may be lists. Checks the padding and that inputs are kept."""
    device, batch = backend.device, len(cu_rows) - 1
    given = {
        name: (torch.tensor(value, dtype=DTYPES[name]) if isinstance(value, list) else value).to(device)
        for name, value in options.items()
        if value is not None
    }
    logits = logits.to(device)
    draft_tokens, cu_rows = (torch.as_tensor(t, dtype=torch.int32).to(device) for t in (draft_tokens, cu_rows))
    counts = (cu_rows[1:] - cu_rows[:-1]).tolist()
    max_rows = max([*counts, 1]) if max_rows is None else max_rows
    wide = [torch.full((batch, max_rows + 3), -77, dtype=torch.int32, device=device) for _ in range(2)]
    wide_logprobs = torch.full((batch, max_rows + 3), 77.0, device=device)
    tokens, rows, logprobs = (t[:, 1 : 1 + max_rows] for t in (*wide, wide_logprobs))
    num_tokens = torch.full((batch,), -77, dtype=torch.int32, device=device)
    before = Frozen(logits=logits, draft_tokens=draft_tokens, cu_rows=cu_rows, **given)
    backend.ops.verify_drafts(
        tokens, num_tokens, rows if "rows" in want else None, logits, draft_tokens, cu_rows,
        *(given.get(name) for name in NAMES), logprobs if "logprobs" in want else None,
    )  # fmt: skip
    before.check()
    for t, fill in ((wide[0], -77), (wide[1], -77), (wide_logprobs, 77.0)):
        assert (t[:, 0] == fill).all() and (t[:, 1 + max_rows :] == fill).all(), "outside the outputs"
    for b in range(batch):
        count = int(num_tokens[b])
        assert 0 <= count <= counts[b]
        assert (tokens[b, count:] == -1).all()
        assert "rows" not in want or (rows[b, count:] == -1).all()
        assert "logprobs" not in want or logprobs[b, count:].isnan().all()
    return Result(tokens, num_tokens, rows, logprobs)


def check(backend, logits, draft_tokens, cu_rows, **options):
    """Compares with the oracle; returns (result, how many sequences were too close to call in float32)."""
    result = run(backend, logits, draft_tokens, cu_rows, **options)
    inputs = {
        name: torch.tensor(v, dtype=DTYPES[name]) if isinstance(v, list) else v.cpu()
        for name, v in options.items()
        if v is not None and name in NAMES
    }
    cpu = [torch.as_tensor(t).cpu() for t in (draft_tokens, cu_rows)]
    walks = reference_sampling.verify_drafts(logits.cpu(), *cpu, **inputs)
    ambiguous = 0
    for b, walk in enumerate(walks):
        if walk.ambiguous and result.of(b) != walk.tokens:
            ambiguous += 1
            continue
        count = len(walk.tokens)
        assert result.of(b) == walk.tokens, f"sequence {b}"
        assert result.rows[b, :count].tolist() == walk.rows, f"sequence {b}"
        got, want = result.logprobs[b, :count].double().cpu(), torch.tensor(walk.logprobs, dtype=torch.float64)
        torch.testing.assert_close(got, want, rtol=2e-6, atol=2e-6)
    return result, ambiguous


def sampling(batch, temperature=1.0, **others):
    options = {"temperature": [temperature] * batch, "seeds": list(range(batch)), "positions": [5] * batch}
    return options | {k: [v] * batch for k, v in others.items()}


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


# ---- sampling settings ----------------------------------------------------------------------------------------------


@pytest.mark.each_isa
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("vocab", [2, 33, 1000, 20000])
@pytest.mark.parametrize(
    "settings",
    [
        {}, {"temperature": 0.3}, {"temperature": 5.0}, {"top_k": 1}, {"top_k": 7}, {"top_k": 100000}, {"top_k": -1},
        {"top_p": 0.05}, {"top_p": 0.9}, {"top_p": 1.0}, {"top_p": 1.5}, {"min_p": 0.2}, {"min_p": -1.0},
        {"min_p": 1.0}, {"temperature": 0.8, "top_k": 20, "top_p": 0.8, "min_p": 0.05},
    ],
    ids=str,
)  # fmt: skip
def test_settings(backend, dtype, vocab, settings):
    batch = 24 if vocab <= 1000 else 3
    if backend.emulated and vocab > 100:
        batch = 2
    logits = (torch.randn(batch, vocab) * 3).to(dtype)
    _, ambiguous = check(backend, logits, [-1] * batch, list(range(batch + 1)), **sampling(batch, **settings))
    assert ambiguous <= 1


def support(backend, row, draws=400, **settings):
    """The set of tokens ever drawn."""
    logits = torch.tensor([row] * draws)
    result = run(backend, logits, [-1] * draws, list(range(draws + 1)), **sampling(draws, **settings))
    return set(result.tokens.flatten().tolist())


@pytest.mark.each_isa
def test_top_k_keeps_every_tie_of_the_kth(backend):
    row = [1.0, 2.0, 1.0, 0.0, 1.0, -5.0]
    assert support(backend, row, top_k=1) == {1}
    assert support(backend, row, top_k=2) == {0, 1, 2, 4}
    assert support(backend, row, top_k=4) == {0, 1, 2, 4}
    assert support(backend, row, top_k=5) == {0, 1, 2, 3, 4}
    assert support(backend, [0.0] * 4 + [-math.inf, math.nan], top_k=5) == {0, 1, 2, 3}


@pytest.mark.each_isa
def test_top_p_takes_the_crossing_token_and_lower_ids_first(backend):
    row = [math.log(p) for p in (0.1, 0.4, 0.1, 0.3, 0.1)]
    for top_p, want in ((0.0, {1}), (0.2, {1}), (0.39, {1}), (0.41, {1, 3}), (0.69, {1, 3}), (0.75, {0, 1, 3}),
                        (0.85, {0, 1, 2, 3}), (0.95, {0, 1, 2, 3, 4}), (1.0, {0, 1, 2, 3, 4})):  # fmt: skip
        assert support(backend, row, top_p=top_p) == want, f"top_p {top_p}"
    assert support(backend, [0.0] * 10, top_p=0.25) == {0, 1, 2}, "equal probabilities: the lowest ids"


@pytest.mark.each_isa
def test_top_p_follows_temperature_and_top_k(backend):
    row = [math.log(p) for p in (0.5, 0.2, 0.15, 0.15)]
    assert support(backend, row, top_p=0.6) == {0, 1}
    assert support(backend, row, top_p=0.6, temperature=0.25) == {0}
    assert support(backend, row, top_p=0.72, top_k=2) == {0, 1}, "0.5 of the remaining 0.7 does not reach 0.72"
    assert support(backend, row, top_p=0.71, top_k=2) == {0}


@pytest.mark.each_isa
def test_min_p_is_relative_to_the_largest(backend):
    row = [math.log(p) for p in (0.5, 0.2, 0.15, 0.1, 0.05)]
    assert support(backend, row, min_p=0.45) == {0}
    assert support(backend, row, min_p=0.35) == {0, 1}
    assert support(backend, row, min_p=0.25) == {0, 1, 2}
    assert support(backend, row, min_p=0.15, temperature=0.5) == {0, 1}
    assert support(backend, row, min_p=1.0) == {0}
    assert support(backend, [2.0, 2.0, 1.9], min_p=1.0) == {0, 1}


@pytest.mark.each_isa
def test_settings_differ_between_sequences(backend):
    logits = torch.randn(40, 50) * 2
    rng = random.Random(3)
    options = {
        "temperature": [rng.choice([0.0, 0.5, 1.0, 2.0]) for _ in range(40)],
        "top_k": [rng.choice([0, 1, 5, 60]) for _ in range(40)],
        "top_p": [rng.choice([1.0, 0.5, 0.9]) for _ in range(40)],
        "min_p": [rng.choice([0.0, 0.1]) for _ in range(40)],
        "seeds": [rng.randrange(-(1 << 63), 1 << 63) for _ in range(40)],
        "positions": [rng.choice([0, 1, 1 << 20, (1 << 40) + 3]) for _ in range(40)],
    }
    _, ambiguous = check(backend, logits, [-1] * 40, list(range(41)), **options)
    assert ambiguous <= 1


@pytest.mark.each_isa
def test_nan_and_infinite_logits_under_sampling(backend):
    row = [math.nan, 1.0, -math.inf, 1.2, math.nan, 0.5]
    assert support(backend, row) == {1, 3, 5}
    assert support(backend, row, top_p=0.99, min_p=0.01, top_k=6) == {1, 3, 5}


def test_nothing_allowed_is_still_a_token(backend):
    """A row without any possible token must not read or write out of bounds, nor hang."""
    logits = torch.full((2, 9), -math.inf)
    for options in ({}, sampling(2), sampling(2, top_k=3, top_p=0.5, min_p=0.1)):
        tokens = run(backend, logits, [-1, -1], [0, 1, 2], want=("rows",), **options).tokens
        assert ((tokens >= 0) & (tokens < 9)).all()


def test_a_row_that_forbids_every_token_draws_none(backend):
    """The walk ends there: only the drafts accepted before it are counted."""
    logits = peaked([5, 6, 7])
    for closed, want in ((0, []), (1, [5]), (2, [5, 6])):
        mask = torch.full((3, 1), -1, dtype=torch.int32)
        mask[closed] = 0
        for options in ({}, sampling(1, 0.1), sampling(1, 0.1, top_k=2, top_p=0.9, min_p=0.1)):
            result = run(backend, logits, [-1, 5, 6], [0, 3], token_bitmask=mask, **options)
            assert result.of(0) == want


def test_extreme_temperatures(backend):
    logits = torch.randn(16, 100)
    cold = run(backend, logits, [-1] * 16, list(range(17)), **sampling(16, 1e-6)).tokens
    assert cold.flatten().tolist() == logits.argmax(-1).tolist()
    hot = run(backend, logits, [-1] * 16, list(range(17)), **sampling(16, 1e8)).tokens
    assert len(set(hot.flatten().tolist())) > 8


# ---- noise ----------------------------------------------------------------------------------------------------------


@pytest.mark.each_isa
def test_noise_is_the_documented_function(backend):
    """Flat logits: the draw is the argmax of the noise itself, for every seed and position."""
    rng = random.Random(1)
    seeds = [0, 1, -1, (1 << 63) - 1, -(1 << 63), *(rng.randrange(-(1 << 63), 1 << 63) for _ in range(59))]
    positions = [0, 1, (1 << 32) - 1, 1 << 32, *(rng.randrange(1 << 20) for _ in range(60))]
    result = run(
        backend,
        torch.zeros(64, 257),
        [-1] * 64,
        list(range(65)),
        temperature=[1.0] * 64,
        seeds=seeds,
        positions=positions,
    )
    noise = [reference_sampling.gumbel(s, p, 257) for s, p in zip(seeds, positions)]
    assert result.tokens.flatten().tolist() == [int(n.argmax()) for n in noise]


def test_noise_depends_on_nothing_else(backend):
    """A draw is the same alone, in a batch, at another place of it, and with other rows around it."""
    logits = torch.randn(30, 500)
    options = sampling(30, 0.9, top_p=0.95)
    whole = run(backend, logits, [-1] * 30, list(range(31)), **options).tokens
    for b in (0, 7, 29):
        alone = {k: v[b : b + 1] for k, v in options.items()}
        assert run(backend, logits[b : b + 1], [-1], [0, 1], **alone).tokens.item() == whole[b, 0]
    flipped = {k: v[::-1] for k, v in options.items()}
    back = run(backend, logits.flip(0), [-1] * 30, list(range(31)), **flipped).tokens
    assert torch.equal(back.flip(0), whole)


def chi_square(counts, probabilities):
    expected = torch.tensor(probabilities, dtype=torch.float64) * counts.sum()
    return float(((counts - expected) ** 2 / expected).sum())


@pytest.mark.parametrize("vary", ["seeds", "positions"])
@pytest.mark.parametrize(
    "settings, kept",
    [({}, 8), ({"temperature": 2.0}, 8), ({"top_k": 4}, 4), ({"top_p": 0.87}, 5), ({"min_p": 0.24}, 3)],
)
def test_the_distribution_is_the_targets(backend, vary, settings, kept):
    """Consecutive seeds, or consecutive positions, draw independent tokens of the processed distribution."""
    probabilities = [0.4, 0.02, 0.25, 0.03, 0.1, 0.06, 0.05, 0.09]
    draws = 2000 if backend.emulated else 20000
    options = sampling(
        draws, settings.get("temperature", 1.0), **{k: v for k, v in settings.items() if k != "temperature"}
    )
    options["seeds"] = list(range(draws)) if vary == "seeds" else [7] * draws
    options["positions"] = [3] * draws if vary == "seeds" else list(range(draws))
    logits = torch.tensor([[math.log(p) for p in probabilities]] * draws)
    drawn = run(backend, logits, [-1] * draws, list(range(draws + 1)), **options).tokens.flatten().cpu()
    scores, _ = reference_sampling.processed(logits[0].numpy(), **{"temperature": 1.0, **settings})
    target = torch.softmax(torch.tensor(scores), -1)
    assert int((target > 0).sum()) == kept
    counts = torch.bincount(drawn, minlength=8)
    assert (counts[target == 0] == 0).all()
    seen = target > 0
    limit = {3: 18.5, 4: 21.2, 5: 23.6, 8: 29.9}[kept]  # quantile 0.9999 of chi-square with kept - 1 degrees
    assert chi_square(counts[seen].double(), target[seen].tolist()) < limit
    pairs = torch.bincount(drawn[:-1] * 8 + drawn[1:], minlength=64).double()[torch.outer(seen, seen).flatten()]
    joint = torch.outer(target, target).flatten()[torch.outer(seen, seen).flatten()]
    freedom = kept * kept - 1
    assert chi_square(pairs, joint.tolist()) < freedom + 5 * math.sqrt(2 * freedom)


def test_wide_vocabularies_are_uniform(backend):
    """Noise of different token ids is independent: flat logits give every stretch of ids its share."""
    vocab, draws = (4096, 200) if backend.emulated else (32768, 4000)
    logits = torch.zeros(1, vocab).expand(draws, vocab)
    drawn = run(backend, logits, [-1] * draws, list(range(draws + 1)), **sampling(draws)).tokens.flatten().cpu()
    for buckets in (drawn * 16 // vocab, drawn % 16):
        counts = torch.bincount(buckets, minlength=16).double()
        assert chi_square(counts, [1 / 16] * 16) < 44.3  # quantile 0.9999 with 15 degrees


# ---- losslessness ---------------------------------------------------------------------------------------------------


def plain_sampling(backend, table, start, length, options):
    """One token a call, the bigram `table` as the model: [batch, length]."""
    batch, current, out = len(start), torch.tensor(start), []
    for i in range(length):
        options["positions"] = [10 + i] * batch
        current = (
            run(backend, table[current], [-1] * batch, list(range(batch + 1)), **options).tokens[:, 0].long().cpu()
        )
        out.append(current)
    return torch.stack(out, 1)


def speculate(backend, table, start, length, options, draft):
    """The same model with drafts: draft(b, tokens so far) proposes tokens. Returns ([batch, length], rounds)."""
    done, rounds = [[s] for s in start], 0
    while min(len(d) for d in done) <= length:
        rounds += 1
        proposals = [draft(b, d) for b, d in enumerate(done)]
        fed = [[d[-1], *p] for d, p in zip(done, proposals)]
        flat = [t for f in fed for t in f]
        options["positions"] = [10 + len(d) - 1 for d in done]
        judged = [t for f in fed for t in (-1, *f[1:])]
        result = run(backend, table[torch.tensor(flat)], judged, cumulative([len(f) for f in fed]), **options)
        for b, d in enumerate(done):
            d.extend(result.of(b))
    return torch.tensor([d[1 : length + 1] for d in done]), rounds


@pytest.mark.each_isa
@pytest.mark.parametrize("temperature", [0.0, 0.7])
def test_any_drafts_give_the_tokens_of_plain_sampling(backend, temperature):
    """200 seeds: right drafts, wrong drafts, none, all of them at once: token for token the same."""
    batch, vocab, length = (20, 24, 6) if backend.emulated else (200, 60, 12)
    table = torch.randn(vocab, vocab) * 2
    start = [b % vocab for b in range(batch)]
    options = sampling(batch, temperature, top_p=0.95, top_k=40)
    want = plain_sampling(backend, table, start, length, options)
    rng = random.Random(0)

    def right(b, tokens):
        return want[b, len(tokens) - 1 :][:4].tolist()

    def wrong(b, tokens):
        return [rng.randrange(vocab) for _ in range(5)]

    def mixed(b, tokens):
        good = right(b, tokens)
        return [t if rng.random() < 0.8 else rng.randrange(vocab) for t in good][: rng.randrange(5)]

    for draft in (right, wrong, mixed, lambda b, tokens: []):
        got, rounds = speculate(backend, table, start, length, options, draft)
        assert torch.equal(got, want)
        if draft is right:
            assert rounds == -(-length // 5) + (length % 5 == 0), "right drafts are all accepted"


def test_trees_give_the_tokens_of_plain_sampling(backend):
    """Tree drafts through the bigram model: rows at one depth share the noise of their position."""
    batch, vocab, length = (10, 16, 5) if backend.emulated else (200, 40, 10)
    table = torch.randn(vocab, vocab) * 2
    start = [b % vocab for b in range(batch)]
    options = sampling(batch, 0.8, min_p=0.02)
    want = plain_sampling(backend, table, start, length, options)
    rng = random.Random(1)
    done = [[s] for s in start]
    longest = 0
    while min(len(d) for d in done) <= length:
        fed, parents, counts = [], [], []
        for b, d in enumerate(done):
            truth = want[b, len(d) - 1 :].tolist()
            n = rng.randrange(1, 9)
            tokens, parent, depth = [d[-1]], [-1], [0]
            for _ in range(1, n):
                p = rng.randrange(len(tokens))
                good = depth[p] < len(truth) and rng.random() < 0.6
                tokens.append(truth[depth[p]] if good else rng.randrange(vocab))
                parent.append(p)
                depth.append(depth[p] + 1)
            fed, parents, counts = fed + tokens, parents + parent, counts + [n]
        options["positions"] = [10 + len(d) - 1 for d in done]
        logits = table[torch.tensor(fed)]
        result, _ = check(backend, logits, fed, cumulative(counts), parents=parents, **options)
        for b, d in enumerate(done):
            d.extend(result.of(b))
        longest = max(longest, int(result.num_tokens.max()))
    assert torch.equal(torch.tensor([d[1 : length + 1] for d in done]), want)
    assert longest >= 3


# ---- the walk -------------------------------------------------------------------------------------------------------


def peaked(rows, vocab=10):
    logits = torch.zeros(len(rows), vocab)
    logits[torch.arange(len(rows)), torch.tensor(rows)] = 9.0
    return logits


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
    draws, vocab = 2000, 4
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


def test_drafts_do_not_change_greedy_output(backend):
    table = torch.randn(30, 30)
    want = plain_sampling(backend, table, [3], 20, {"temperature": [0.0]})
    rng = random.Random(2)
    got, _ = speculate(
        backend, table, [3], 20, {"temperature": [0.0]}, lambda b, d: [rng.randrange(30) for _ in range(3)]
    )
    assert torch.equal(got, want)
