"""verify_drafts under sampling: what is drawn, and that drafts do not change what plain sampling would give."""

import math
import random

import pytest
import reference_sampling
import torch
from backends import FLOATS
from cases import cumulative
from verify_cases import check, peaked, run, sampling

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
    for top_p in (-1.5, -100.0, -math.inf):  # as 0: one is always kept
        assert support(backend, row, top_p=top_p) == {1} and support(backend, [0.0] * 10, top_p=top_p) == {0}
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


def test_drafts_do_not_change_greedy_output(backend):
    table = torch.randn(30, 30)
    # On a device seeds have to be there wherever temperatures are, for nobody can look at these.
    greedy = {"temperature": [0.0], "seeds": [7]}
    want = plain_sampling(backend, table, [3], 20, dict(greedy))
    rng = random.Random(2)
    got, _ = speculate(backend, table, [3], 20, dict(greedy), lambda b, d: [rng.randrange(30) for _ in range(3)])
    assert torch.equal(got, want)
