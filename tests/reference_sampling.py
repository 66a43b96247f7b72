"""The oracle of verify_drafts in float64, with the exact counter-based noise of csrc/core/philox.h in numpy."""

import dataclasses
import math

import numpy as np


def philox4x32(counter, key, rounds=10):
    """Philox4x32-10 (Salmon et al., 2011): counter [..., 4], key [..., 2], both uint32 -> uint32 [..., 4]."""
    c = [counter[..., i].astype(np.uint64) for i in range(4)]
    k = [key[..., i].astype(np.uint64) for i in range(2)]
    low = np.uint64(0xFFFFFFFF)
    for _ in range(rounds):
        p0, p1 = c[0] * np.uint64(0xD2511F53), c[2] * np.uint64(0xCD9E8D57)
        c = [(p1 >> np.uint64(32)) ^ c[1] ^ k[0], p1 & low, (p0 >> np.uint64(32)) ^ c[3] ^ k[1], p0 & low]
        k = [(k[0] + np.uint64(0x9E3779B9)) & low, (k[1] + np.uint64(0xBB67AE85)) & low]
    return np.stack(c, -1).astype(np.uint32)


def gumbel(seed, position, vocab):
    """The noise of one draw, one value per token id."""
    seed, position = np.uint64(seed % (1 << 64)), np.uint64(position % (1 << 64))
    low, shift = np.uint64(0xFFFFFFFF), np.uint64(32)
    ids = np.arange(vocab)
    counter = np.zeros((vocab, 4), dtype=np.uint64)
    counter[:, 0], counter[:, 1], counter[:, 2] = ids // 4, position & low, position >> shift
    key = np.broadcast_to(np.array([seed & low, seed >> shift]), (vocab, 2))
    words = philox4x32(counter, key)[ids, ids % 4]
    uniform = (words + 0.5) / 2.0**32
    return -np.log(-np.log1p(uniform - 1))


@dataclasses.dataclass
class Draw:
    token: int
    ambiguous: bool  # a float32 kernel may round to another token


def first_max(values):
    return int(np.argmax(values))  # the first on ties


def processed(logits, allowed=None, temperature=0.0, top_k=0, top_p=1.0, min_p=0.0):
    """(scores in float64 with -inf for every dropped token, whether a cut lies within rounding)."""
    raw = np.where(np.isnan(logits), -math.inf, logits).astype(np.float64)
    if allowed is not None:
        raw = np.where(allowed, raw, -math.inf)
    if temperature <= 0 or np.all(raw == -math.inf):
        return raw, False
    scores, close = raw / np.float64(np.float32(temperature)), False
    if 0 < top_k < len(raw):
        scores = np.where(raw >= np.sort(raw)[-top_k], scores, -math.inf)
    probabilities = np.exp(scores - scores.max())
    probabilities /= probabilities.sum()
    if top_p < 1:
        order = np.lexsort((np.arange(len(raw)), -probabilities))
        reached = np.cumsum(probabilities[order])
        count = min(int(np.searchsorted(reached, top_p)) + 1, len(raw))
        close |= bool(np.any(np.abs(reached[max(count - 2, 0) : count] - top_p) < 1e-5))
        dropped = order[count:]
        scores = scores.copy()
        scores[dropped] = -math.inf
    if min_p > 0:
        ratio = probabilities / probabilities.max()
        close |= bool(np.any(np.abs(ratio - min_p) < 1e-5 * min_p))
        scores = np.where(ratio >= min_p, scores, -math.inf)
    return scores, close


def draw(logits, seed=0, position=0, **settings):
    scores, close = processed(logits, **settings)
    if settings.get("temperature", 0.0) <= 0 or np.all(scores == -math.inf):
        return Draw(first_max(scores), False)
    perturbed = scores + gumbel(seed, position, len(scores))
    best = first_max(perturbed)
    ordered = np.sort(perturbed)
    gap = ordered[-1] - ordered[-2] if len(ordered) > 1 else math.inf
    # Rounding in float32: of the scores, and of the noise where log(u) of a u next to 1 is inexact.
    return Draw(best, close or gap < 2e-5 * max(1.0, abs(float(scores[scores > -math.inf].max()))))


def log_softmax(logits):
    x = np.where(np.isnan(logits), -math.inf, logits).astype(np.float64)
    top = x.max()
    if not np.isfinite(top):  # no token is possible, or infinity is
        return np.full(len(x), math.nan)
    return x - top - np.log(np.exp(x - top).sum())


def unpack_bitmask(words, vocab):
    bits = (words.astype(np.uint32)[:, None] >> np.arange(32, dtype=np.uint32)) & 1
    return bits.reshape(-1)[:vocab].astype(bool)


@dataclasses.dataclass
class Walk:
    tokens: list
    rows: list
    logprobs: list
    ambiguous: bool


def verify_drafts(
    logits, draft_tokens, cu_rows, parents=None, temperature=None, top_k=None, top_p=None, min_p=None, seeds=None,
    positions=None, token_bitmask=None,
):  # fmt: skip
    """One Walk per sequence. Arguments are CPU tensors (or None), named as the op's."""
    logits, vocab, walks = logits.float().numpy(), logits.size(1), []

    def at(values, b, default):
        return default if values is None else values[b].item()

    for b in range(len(cu_rows) - 1):
        first, last = int(cu_rows[b]), int(cu_rows[b + 1])
        if first == last:
            walks.append(Walk([], [], [], False))
            continue
        parent = list(range(-1, last - first - 1)) if parents is None else parents[first:last].tolist()
        settings = {
            "temperature": at(temperature, b, 0.0),
            "top_k": at(top_k, b, 0),
            "top_p": at(top_p, b, 1.0),
            "min_p": at(min_p, b, 0.0),
        }
        walk, row, depth = Walk([], [], [], False), 0, 0
        while row is not None:
            allowed = None
            if token_bitmask is not None:
                allowed = unpack_bitmask(token_bitmask[first + row].numpy(), vocab)
            if allowed is not None and not allowed.any():  # no token at all: the walk ends before it
                break
            drawn = draw(logits[first + row], at(seeds, b, 0), at(positions, b, 0) + depth, allowed=allowed, **settings)
            walk.ambiguous |= drawn.ambiguous
            walk.tokens.append(drawn.token)
            walk.rows.append(row)
            walk.logprobs.append(log_softmax(logits[first + row])[drawn.token])
            children = [
                i for i in range(1, last - first) if parent[i] == row and int(draft_tokens[first + i]) == drawn.token
            ]
            row, depth = (children[0] if children else None), depth + 1
        walks.append(walk)
    return walks
