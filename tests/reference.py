"""One oracle per op: plain torch, slow and readable, float64 unless a test asks for the op's own dtype.

An oracle takes the op's inputs by the op's names and returns what the op must write; it never mutates an argument.
`dtype` is the dtype it computes in: float64 gives the truth, the op's dtype gives the "same computation in plain torch"
that the tolerance of every test is measured by.
"""

import math

import torch

FP8_MAX = 448.0


def gather_slots(cache, slots):
    """Rows [len(slots), num_kv_heads, head_dim] of a paged cache, whatever its strides."""
    block_size = cache.size(1)
    rows = [cache[max(s, 0) // block_size, max(s, 0) % block_size] for s in slots]
    return torch.stack(rows) if rows else cache.new_empty((0, *cache.shape[2:]))


def sequence_slots(block_table_row, length, block_size):
    """The slot of every token; -1 in a block whose id is negative (no such keys)."""
    blocks = block_table_row.tolist()
    return [max(blocks[t // block_size] * block_size + t % block_size, -1) for t in range(length)]


def to_fp8(x, scale=None):
    """value / scale, saturating, NaN stays NaN."""
    x = x.float()
    if scale is not None:
        scale = scale.float()
        x = x / (scale if scale.dim() == 0 else scale[None, :, None])
    return torch.where(x.isnan(), x, x.clamp(-FP8_MAX, FP8_MAX)).to(torch.float8_e4m3fn)


def append_kv(k_cache, v_cache, key, value, slot_mapping, k_scale=None, v_scale=None):
    """The two caches after the append, as new tensors."""
    caches = []
    for cache, rows, scale in ((k_cache, key, k_scale), (v_cache, value, v_scale)):
        fp8 = cache.dtype == torch.float8_e4m3fn
        cache = cache.clone()
        stored = bits(to_fp8(rows, scale)) if fp8 else bits(rows)
        for t, slot in enumerate(slot_mapping.tolist()):
            if slot >= 0:
                bits(cache)[slot // cache.size(1), slot % cache.size(1)] = stored[t]
        caches.append(cache)
    return tuple(caches)


def bits(t):
    """The same memory as integers, for comparisons and copies that must not care about NaN."""
    return t.view({1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[t.element_size()])


def rms_norm(x, weight, eps):
    return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + eps) * weight


def rope(x, positions, cos_sin_cache, interleaved):
    """Rotates the first rotary_dim elements of [tokens, heads, head_dim]."""
    half = cos_sin_cache.size(1) // 2
    cos_sin = cos_sin_cache.to(x.dtype)[positions.long()]
    cos, sin = cos_sin[:, None, :half], cos_sin[:, None, half:]
    first = x[..., 0 : 2 * half : 2] if interleaved else x[..., :half]
    second = x[..., 1 : 2 * half : 2] if interleaved else x[..., half : 2 * half]
    a, b = first * cos - second * sin, second * cos + first * sin
    rotated = torch.stack((a, b), -1).flatten(-2) if interleaved else torch.cat((a, b), -1)
    return torch.cat((rotated, x[..., 2 * half :]), -1)


def rope_rows(x, positions, cos_sin_cache, interleaved=False, norm_weight=None, norm_eps=1e-6, dtype=torch.float64):
    """What rope_append_kv makes of query or key rows, before they are stored."""
    x = x[: positions.size(0)].to(dtype)
    if norm_weight is not None:
        x = rms_norm(x, norm_weight.to(dtype), norm_eps)
    return rope(x, positions, cos_sin_cache, interleaved)


def tree_bits(tree_mask, row, count):
    words = [int(w) & 0xFFFFFFFF for w in tree_mask[row]]
    return [bool(words[j // 32] >> (j % 32) & 1) for j in range(count)]


def visible(length, n, i, causal=True, window_left=-1, tree_row=None):
    """bool [length]: the keys that new token i of n may see in a sequence of `length` tokens."""
    prefix = length - n
    see = torch.ones(length, dtype=torch.bool)
    p = prefix + i if tree_row is None else prefix + sum(tree_row) - 1
    if tree_row is not None:
        for j in range(max(prefix, 0), length):
            see[j] = tree_row[j - prefix]
    elif causal:
        see[max(p + 1, 0) :] = False
    if window_left >= 0:
        see[: max(p - window_left, 0)] = False
    return see


def attend(q, k, v, see, softmax_scale, softcap=0.0, sinks=None, shuffle=None):
    """q [heads, dim] over k, v [keys, heads, dim]: (out [heads, dim], lse [heads]) in q's dtype.

    shuffle: a generator of the order in which dims and keys are summed; without one they are as they lie.
    """
    k, v = k[see], v[see]
    if shuffle is not None:
        dims, keys = (torch.randperm(n, generator=shuffle) for n in (q.size(1), k.size(0)))
        q, k, v = q[:, dims], k[keys][..., dims], v[keys]
    scores = torch.einsum("hd,khd->hk", q, k) * softmax_scale
    if softcap > 0:
        scores = softcap * torch.tanh(scores / softcap)
    if sinks is not None:
        scores = torch.cat((scores, sinks.to(q.dtype)[:, None]), -1)
    if scores.size(1) == 0:
        return torch.zeros_like(q), torch.full((q.size(0),), -math.inf, dtype=q.dtype)
    weights = torch.softmax(scores, -1)[:, : k.size(0)]
    return torch.einsum("hk,khd->hd", weights, v), torch.logsumexp(scores, -1)


def dequantised(rows, scale, batch_idx, dtype):
    rows = rows.to(dtype)
    if scale is None:
        return rows
    scale = scale[batch_idx] if scale.dim() == 2 else scale
    return rows * (scale.to(dtype) if scale.dim() == 0 else scale.to(dtype)[None, :, None])


def delta_prefill(
    query, k_cache, v_cache, cu_seqlens_q, seqused_k, block_table, softmax_scale, causal=True, window_left=-1,
    softcap=0.0, tree_mask=None, sinks=None, k_scale=None, v_scale=None, dtype=torch.float64, shuffle=None,
):  # fmt: skip
    """(out [total_q, heads, dim], lse [heads, total_q]) in `dtype`; rows of no sequence are NaN (not to be written)."""
    out = torch.full(query.shape, math.nan, dtype=dtype)
    lse = torch.full((query.size(1), query.size(0)), math.nan, dtype=dtype)
    group = query.size(1) // k_cache.size(2)
    for b in range(seqused_k.size(0)):
        start, end = int(cu_seqlens_q[b]), int(cu_seqlens_q[b + 1])
        length = int(seqused_k[b])
        if start == end:
            continue
        slots = sequence_slots(block_table[b], length, k_cache.size(1))
        k = dequantised(gather_slots(k_cache, slots), k_scale, b, dtype).repeat_interleave(group, 1)
        v = dequantised(gather_slots(v_cache, slots), v_scale, b, dtype).repeat_interleave(group, 1)
        for i in range(end - start):
            tree_row = None if tree_mask is None else tree_bits(tree_mask, start + i, end - start)
            see = visible(length, end - start, i, causal, window_left, tree_row) & (torch.tensor(slots) >= 0)
            row = query[start + i].to(dtype)
            out[start + i], lse[:, start + i] = attend(row, k, v, see, softmax_scale, softcap, sinks, shuffle)
    return out, lse


def merge_states(out_a, lse_a, out_b, lse_b, dtype=torch.float64):
    out_a, lse_a, out_b, lse_b = (t.to(dtype) for t in (out_a, lse_a, out_b, lse_b))
    lse = torch.logaddexp(lse_a, lse_b)
    seen = lse != -math.inf
    weight_a = torch.where(seen, torch.sigmoid(lse_a - lse_b), 0.0).T[..., None]  # exact for huge lse as well
    weight_b = torch.where(seen, torch.sigmoid(lse_b - lse_a), 0.0).T[..., None]
    return out_a * weight_a + out_b * weight_b, lse


def copy_blocks(cache, src_blocks, dst_blocks, num_tokens=None):
    """One cache after the copies, as a new tensor."""
    result = cache.clone()
    for i, (src, dst) in enumerate(zip(src_blocks.tolist(), dst_blocks.tolist())):
        if src >= 0 and dst >= 0:
            count = cache.size(1) if num_tokens is None else int(num_tokens[i])
            bits(result)[dst, :count] = bits(cache)[src, :count]
    return result


def compact_kv(cache, src_slots, dst_slots):
    """One cache after the moves, done one after the other."""
    result, block_size = cache.clone(), cache.size(1)
    memory = bits(result)
    for src, dst in zip(src_slots.tolist(), dst_slots.tolist()):
        if src >= 0 and dst >= 0:
            memory[dst // block_size, dst % block_size] = memory[src // block_size, src % block_size].clone()
    return result


def propose_drafts(history, max_ngram, max_drafts, min_ngram=1, latest=True):
    """The drafts (a list of at most max_drafts tokens) of one history (a list)."""
    length = len(history)
    for n in range(min(max_ngram, length - 1), min_ngram - 1, -1):
        suffix = history[length - n :]
        starts = [s for s in range(length - n) if history[s : s + n] == suffix]
        if starts:
            after = (starts[-1] if latest else starts[0]) + n
            return history[after : after + max_drafts]
    return []


def silu_and_mul(x):
    gate, up = x.chunk(2, -1)
    return gate / (1 + (-gate).exp()) * up


def row_linear(x, weight, bias=None, dtype=torch.float64):
    y = x.to(dtype) @ weight.to(dtype).T
    return y if bias is None else y + bias.to(dtype)


def pack_linear_weight(weight, panel=32):
    """Panels of 32 rows of the weight, each [pairs along k, rows, pair]; an odd k ends with a zero."""
    n, k = weight.shape
    pair = 2 if weight.dtype == torch.bfloat16 else 1
    padded = torch.nn.functional.pad(weight, (0, -k % pair))
    parts = [p.reshape(p.size(0), -1, pair).transpose(0, 1).flatten() for p in padded.split(panel)]
    return torch.cat([weight.new_empty(0), *parts]).view(n, -(-k // pair), pair)


def pack_linear_weight_cuda(weight):
    """16-bit weights of whole blocks as [n / 8, k / 32, 8, 32]; others row-major, an odd k ends with a zero."""
    n, k = weight.shape
    pair = 2 if weight.dtype == torch.bfloat16 else 1
    if weight.element_size() == 2 and n % 8 == 0 and k % 32 == 0:
        weight = weight.reshape(n // 8, 8, k // 32, 32).transpose(1, 2).reshape(n, k)
    return torch.nn.functional.pad(weight, (0, -k % pair)).view(n, -(-k // pair), pair)
