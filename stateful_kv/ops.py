"""Typed wrappers of torch.ops.stateful_kv, one per op: they allocate missing outputs and raise Python's own errors.

Conventions of all ops (csrc/torch/schemas.cpp is the table of contents): outputs are mutated, last dimensions are
contiguous, every other stride is free; counts, tokens and tables are int32, slots int64.
"""

import contextlib
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from .arguments import shown
from .linear_ops import fused_row_linear, pack_linear_weight, row_linear  # noqa: F401
from .native import call as _call
from .native import op as _op
from .native import require_size, require_tensor
from .step_ops import commit_step, plan_step  # noqa: F401


def append_kv(
    k_cache: Tensor,
    v_cache: Tensor,
    key: Tensor,
    value: Tensor,
    slot_mapping: Tensor,
    k_scale: Tensor | None = None,
    v_scale: Tensor | None = None,
) -> None:
    """Writes the keys and values of new tokens into their cache slots, in place.

    k_cache, v_cache: [num_blocks, block_size, num_kv_heads, head_dim], any strides, mutated.
    key, value: [>= num_tokens, num_kv_heads, head_dim] of the cache's dtype, or float32/float16/bfloat16 beside an
    fp8 (e4m3fn) cache, where stored = value / scale, saturating.
    slot_mapping: int64 [num_tokens], slot = block * block_size + offset; negative = skip. Of a slot named
    twice the last token wins on the CPU, one of them on CUDA.
    k_scale, v_scale: float32 [] or [num_kv_heads], fp8 caches only.
    Raises ValueError, TypeError, NotImplementedError for malformed arguments, IndexError (CPU) for a slot out of
    range, before anything is written. Source: paged KV cache of PagedAttention (Kwon et al., 2023).
    """
    _call(_op.append_kv.default, k_cache, v_cache, key, value, slot_mapping, k_scale, v_scale)


def rope_append_kv(
    k_cache: Tensor,
    v_cache: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    positions: Tensor,
    cos_sin_cache: Tensor,
    slot_mapping: Tensor,
    interleaved: bool = False,
    q_norm_weight: Tensor | None = None,
    k_norm_weight: Tensor | None = None,
    norm_eps: float = 1e-6,
    k_scale: Tensor | None = None,
    v_scale: Tensor | None = None,
    query_out: Tensor | None = None,
) -> Tensor:
    """Normalises (optional) and rotates queries and keys, and writes keys and values into their cache slots.

    k_cache, v_cache, key, value, slot_mapping, k_scale, v_scale: as in append_kv; the caches are mutated.
    query, query_out: [>= num_tokens, num_heads, head_dim] of key's dtype; num_heads is a multiple of num_kv_heads.
    query_out is mutated and returned; it may be query itself, any other overlap with query, key or value is refused;
    new memory by default.
    positions: int64 or int32 [>= num_tokens], token i is rotated by row positions[i] of cos_sin_cache.
    cos_sin_cache: [max_position, rotary_dim] of float32 or query's dtype, cosines first, then sines; rotary_dim is
    even and may be less than head_dim: what is past it is not rotated. interleaved: pairs (2i, 2i + 1) as in GPT-J
    instead of (i, i + rotary_dim / 2) as in GPT-NeoX and Llama.
    q_norm_weight, k_norm_weight: [head_dim] of query's dtype, RMSNorm of every head before the rotation (Qwen3), with
    norm_eps inside the root.
    Every one of the num_tokens = slot_mapping.size(0) rows of query is rotated, also where a negative slot skips the
    cache; rows past them are left alone. Arithmetic is float32, with one rounding at the end; a norm is rounded
    before its weight is applied, as in transformers; an fp8 cache quantises the rounded key.
    Raises as append_kv; IndexError (CPU) also for a position of any of the num_tokens rows outside cos_sin_cache.
    Source: RoFormer (Su et al., 2021); RMSNorm (Zhang and Sennrich, 2019).
    """
    if query_out is None:
        query = require_tensor("rope_append_kv", "query", query)
        query_out = torch.empty(query.shape, dtype=query.dtype, device=query.device)
    _call(
        _op.rope_append_kv.default, query_out, k_cache, v_cache, query, key, value, positions, cos_sin_cache,
        slot_mapping, interleaved, q_norm_weight, k_norm_weight, norm_eps, k_scale, v_scale,
    )  # fmt: skip
    return query_out


def merge_states(
    out_a: Tensor,
    lse_a: Tensor,
    out_b: Tensor,
    lse_b: Tensor,
    out: Tensor | None = None,
    lse: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Combines attention over two disjoint sets of keys into attention over their union; returns (out, lse).

    out_a, out_b, out: [total_q, num_heads, head_dim] of one dtype (float32, float16, bfloat16); out is mutated.
    lse_a, lse_b, lse: float32 [num_heads, total_q], natural logarithm; lse is mutated. A state with lse -inf saw
    nothing and has no influence, whatever its out holds; two of them give 0 and -inf.
    out may be out_a or out_b, lse may be lse_a or lse_b; any other overlap is refused.
    Raises ValueError, TypeError for malformed arguments before anything is written.
    Source: online softmax (Milakov and Gimelshein, 2018), as in FlashAttention's split-KV combine.
    """
    if out is None:
        out = torch.empty_like(require_tensor("merge_states", "out_a", out_a), memory_format=torch.contiguous_format)
    if lse is None:
        lse = torch.empty_like(require_tensor("merge_states", "lse_a", lse_a), memory_format=torch.contiguous_format)
    _call(_op.merge_states.default, out, lse, out_a, lse_a, out_b, lse_b)
    return out, lse


def _layers(op_name: str, k_caches: Sequence[Tensor], v_caches: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
    for name, caches in (("k_caches", k_caches), ("v_caches", v_caches)):
        if not isinstance(caches, Iterable):
            raise TypeError(f"{op_name}: {name} is {shown(caches)}, expected a list of tensors")
    return list(k_caches), list(v_caches)


def copy_blocks(
    k_caches: Sequence[Tensor],
    v_caches: Sequence[Tensor],
    src_blocks: Tensor,
    dst_blocks: Tensor,
    num_tokens: Tensor | None = None,
) -> None:
    """Copies block src_blocks[i] to dst_blocks[i] in K and V of every layer, in place, in one launch per 128 layers.

    k_caches, v_caches: one [num_blocks, block_size, num_kv_heads, head_dim] per layer, all of one shape, dtype and
    set of strides (any); mutated.
    src_blocks, dst_blocks: int32 [num_copies]; a pair with a negative id is skipped. Destinations are distinct and
    none is a source.
    num_tokens: int32 [num_copies], 0 to block_size: only the first that many tokens of the block; None = all.
    Raises ValueError, TypeError, NotImplementedError for malformed arguments; IndexError (CPU) for an id or count out
    of range, a destination named twice or named as a source; all before anything is written.
    Source: copy-on-write of PagedAttention (Kwon et al., 2023).
    """
    k_caches, v_caches = _layers("copy_blocks", k_caches, v_caches)
    _call(_op.copy_blocks.default, k_caches, v_caches, src_blocks, dst_blocks, num_tokens)


def compact_kv(
    k_caches: Sequence[Tensor],
    v_caches: Sequence[Tensor],
    src_slots: Tensor,
    dst_slots: Tensor,
    cu_moves: Tensor,
) -> None:
    """Moves the KV of accepted draft tokens together, in K and V of every layer, in place, one launch per 128 layers.

    k_caches, v_caches: as in copy_blocks; mutated.
    src_slots, dst_slots: int64 [num_moves], slot = block * block_size + offset; a negative one skips the move.
    cu_moves: int32 [batch + 1]; sequence b owns moves cu_moves[b] to cu_moves[b + 1]. They are listed in position
    order with no destination after its source, and act as if done one after the other. No sequence's slots are
    another's.
    Raises ValueError, TypeError, NotImplementedError for malformed arguments, IndexError (CPU) for a slot out of range
    or cu_moves that fall or pass num_moves, before anything is written.
    """
    k_caches, v_caches = _layers("compact_kv", k_caches, v_caches)
    _call(_op.compact_kv.default, k_caches, v_caches, src_slots, dst_slots, cu_moves)


def rms_norm(input: Tensor, weight: Tensor, epsilon: float, out: Tensor | None = None) -> Tensor:
    """input / sqrt(mean(input^2) + epsilon) * weight, row by row, in float32 and rounded once.

    input, out: [rows, hidden], float32, float16 or bfloat16, any row stride. weight: [hidden] of the same dtype.
    out is mutated and returned; it may be input itself, any other overlap is refused; new memory by default.
    A row's bits depend on that row and the weight alone: neither on other rows, nor on strides, alignment or threads.
    Raises ValueError, TypeError for malformed arguments, before anything is written.
    Source: RMSNorm (Zhang and Sennrich, 2019); name and meaning as in vLLM.
    """
    if out is None:
        out = torch.empty_like(require_tensor("rms_norm", "input", input), memory_format=torch.contiguous_format)
    _call(_op.rms_norm.default, out, input, weight, epsilon)
    return out


def fused_add_rms_norm(input: Tensor, residual: Tensor, weight: Tensor, epsilon: float) -> tuple[Tensor, Tensor]:
    """residual += input, then input = rms_norm(residual); both in place, in one pass. Returns (input, residual).

    input, residual: [rows, hidden] as in rms_norm, mutated, not overlapping. The sum is rounded to their dtype and the
    norm is that of the rounded sum: the same bits as residual.add_(input) followed by rms_norm.
    Raises as rms_norm. Source: as rms_norm.
    """
    _call(_op.fused_add_rms_norm.default, input, residual, weight, epsilon)
    return input, residual


def silu_and_mul(input: Tensor, out: Tensor | None = None) -> Tensor:
    """silu(gate) * up of the rows (gate, up) that a fused projection leaves, in float32 and rounded once.

    input: [rows, 2 * size], float32, float16 or bfloat16, any row stride. out: [rows, size] of the same dtype, mutated
    and returned, not overlapping input; new memory by default. silu(x) = x / (1 + exp(-x)).
    Raises ValueError, TypeError for malformed arguments, before anything is written.
    Source: SwiGLU (Shazeer, 2020); name and meaning as in vLLM.
    """
    if out is None:
        input = require_tensor("silu_and_mul", "input", input)
        out = input.new_empty((*input.shape[:-1], input.shape[-1] // 2 if input.dim() else 0))
    _call(_op.silu_and_mul.default, out, input)
    return out


class Verified(NamedTuple):
    """What verify_drafts writes; rows and logprobs are None where they were not asked for."""

    tokens: Tensor
    num_tokens: Tensor
    rows: Tensor | None
    logprobs: Tensor | None


def verify_drafts(
    logits: Tensor,
    draft_tokens: Tensor,
    cu_rows: Tensor,
    parents: Tensor | None = None,
    temperature: Tensor | None = None,
    top_k: Tensor | None = None,
    top_p: Tensor | None = None,
    min_p: Tensor | None = None,
    seeds: Tensor | None = None,
    positions: Tensor | None = None,
    token_bitmask: Tensor | None = None,
    tokens: Tensor | None = None,
    num_tokens: Tensor | None = None,
    rows: Tensor | None = None,
    logprobs: Tensor | None = None,
    max_rows: int | None = None,
) -> Verified:
    """Draws one token per row from its own processed distribution and keeps the drafts that equal the draws.

    logits: float32, float16 or bfloat16 [total_rows, vocab]; a row predicts what follows it. draft_tokens: int32
    [total_rows]. cu_rows: int32 [batch + 1], sequence b owns rows cu_rows[b] to cu_rows[b + 1]. Its row 0 is the last
    committed token (its draft_tokens entry is not judged), each further row a draft that was fed to the model.
    parents: int32 [total_rows], index within the sequence of each row's parent, -1 for row 0; parents come first;
    None = each row follows the one before.
    temperature, top_p, min_p: float32 [batch]; top_k: int32 [batch]. No temperature, or one not above 0: the first
    argmax. Else logits / temperature, then top_k (<= 0: off) keeps every logit not below the k-th, top_p (>= 1: off)
    the smallest set of what is left that reaches it (ties: lowest ids; the crossing token included), min_p (<= 0: off)
    what is not below min_p times the largest probability. NaN counts as -inf; a row with an infinite logit draws it.
    token_bitmask: int32 [total_rows, ceil(vocab / 32)], a cleared bit forbids the token.
    seeds, positions: int64 [batch], required where a temperature is above 0 (on CUDA: beside any temperature);
    positions[b] = absolute index of the token that row 0 predicts. The noise is a function of seed, absolute position
    and token id alone (recipe: csrc/core/philox.h), so given identical logits the output is the same with any drafts
    or none.
    tokens: int32 [batch, max_rows], mutated: accepted drafts, then the first drawn token that no child carries.
    num_tokens: int32 [batch], mutated. rows: int32 [batch, max_rows], mutated where given: index within the sequence of
    every row walked. logprobs: float32 [batch, max_rows], mutated where given: log-probability of each token under the
    unprocessed logits. Unused entries are -1 and NaN. A row that forbids every token ends the walk without a token of
    its own: num_tokens then counts only the drafts accepted before it, 0 if it is row 0.
    Missing tokens and num_tokens are allocated, [batch, max_rows] with total_rows for a missing max_rows, and returned.
    Raises ValueError, TypeError for malformed arguments; IndexError (CPU) for cu_rows that fall or pass total_rows,
    a parent that does not come first, a path longer than max_rows; all before anything is written.
    Source: verification by sampling from the target with shared noise (Gumbel-max coupling, Maddison et al., 2014;
    speculative decoding, Leviathan et al., 2023; token trees, Miao et al., 2024).
    """
    if tokens is None or num_tokens is None:
        logits = require_tensor("verify_drafts", "logits", logits)
        batch = max(require_tensor("verify_drafts", "cu_rows", cu_rows).numel() - 1, 0)
        if tokens is None:
            width = (
                logits.shape[:1].numel() if max_rows is None else require_size("verify_drafts", "max_rows", max_rows)
            )
            tokens = torch.empty((batch, width), dtype=torch.int32, device=logits.device)
        if num_tokens is None:
            num_tokens = torch.empty(batch, dtype=torch.int32, device=logits.device)
    _call(
        _op.verify_drafts.default, tokens, num_tokens, rows, logits, draft_tokens, cu_rows, parents, temperature,
        top_k, top_p, min_p, seeds, positions, token_bitmask, logprobs,
    )  # fmt: skip
    return Verified(tokens, num_tokens, rows, logprobs)


def propose_drafts(
    history: Tensor,
    history_lens: Tensor,
    max_ngram: int,
    min_ngram: int = 1,
    latest: bool = True,
    num_drafts: Tensor | None = None,
    drafts: Tensor | None = None,
    max_drafts: int = 8,
) -> tuple[Tensor, Tensor]:
    """Prompt lookup: proposes what followed an earlier occurrence of each history's last tokens.

    history: int32 [batch, max_history]; history_lens: int32 [batch], 0 to max_history.
    For n from max_ngram down to min_ngram: where the last n tokens occur earlier (the two may overlap), the tokens
    after that occurrence (the latest, or the earliest with latest=False), never past history_lens[b].
    drafts: int32 [batch, max_drafts], mutated, padded with -1; num_drafts: int32 [batch], mutated. Missing ones are
    allocated; returns (drafts, num_drafts).
    Raises ValueError, TypeError for malformed arguments, IndexError (CPU) for a length out of range, before anything
    is written. Source: prompt lookup decoding (Saxena, 2023).
    """
    if drafts is None or num_drafts is None:
        batch, device = require_tensor("propose_drafts", "history", history).shape[:1].numel(), history.device
        if drafts is None:
            width = require_size("propose_drafts", "max_drafts", max_drafts)
            drafts = torch.empty((batch, width), dtype=torch.int32, device=device)
        num_drafts = torch.empty(batch, dtype=torch.int32, device=device) if num_drafts is None else num_drafts
    _call(_op.propose_drafts.default, drafts, num_drafts, history, history_lens, max_ngram, min_ngram, latest)
    return drafts, num_drafts


def delta_prefill(
    query: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    cu_seqlens_q: Tensor,
    seqused_k: Tensor,
    block_table: Tensor,
    max_seqlen_q: int,
    softmax_scale: float | None = None,
    causal: bool = True,
    window_left: int = -1,
    softcap: float = 0.0,
    tree_mask: Tensor | None = None,
    sinks: Tensor | None = None,
    k_scale: Tensor | None = None,
    v_scale: Tensor | None = None,
    num_splits: int = 0,
    schedule: Tensor | None = None,
    out: Tensor | None = None,
    lse: Tensor | None = None,
    return_lse: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """Attention of each sequence's new tokens over its whole paged KV, the new tokens' own included.

    query, out: [total_q, num_heads, head_dim] float32, float16 or bfloat16, not overlapping; rows past
    cu_seqlens_q[batch] stay as they are.
    k_cache, v_cache: [num_blocks, block_size, num_kv_heads, head_dim], any strides, of query's dtype or fp8 (e4m3fn)
    with k_scale, v_scale float32 [], [num_kv_heads] or [batch, num_kv_heads]; num_heads is a multiple of num_kv_heads.
    cu_seqlens_q: int32 [batch + 1]; seqused_k: int32 [batch], tokens in the cache including the new ones;
    block_table: int32 [batch, max_blocks], negative = these keys do not exist; max_seqlen_q: an upper bound.
    softmax_scale: default head_dim ** -0.5. causal: new token i of n sees keys 0 .. p, p = seqused_k - n + i.
    window_left: w >= 0 hides keys below p - w, causal or not. softcap: c > 0 makes c * tanh(s / c) of scaled logits.
    tree_mask: int32 [total_q, ceil(max_seqlen_q / 32)], bit j of row i = new token i sees new token j; replaces causal
    among the new tokens, and p is seqused_k - n + number of bits - 1.
    sinks: float32 [num_heads], an extra logit per head.
    lse: float32 [num_heads, total_q], natural logarithm, sink included.
    num_splits: 0 = chosen, n = that many splits along KV, -1 = batch-invariant (a row's bits depend on its query and KV
    alone, as long as what other rows of the call see is finite). schedule: from schedule_delta_prefill for the same
    arguments; None = made inside, same bits.
    Returns out, or (out, lse) with return_lse or lse given. A row that sees nothing gives out 0, lse -inf (the sink,
    where sinks are given).
    Raises ValueError, TypeError, NotImplementedError for malformed arguments, IndexError (CPU) for cu_seqlens_q,
    seqused_k or used block ids out of range, before anything is written.
    Source: FlashAttention-2 (Dao, 2023), split along KV as Flash-Decoding; PagedAttention (Kwon et al., 2023).
    """
    query = require_tensor("delta_prefill", "query", query)
    if out is None:
        out = torch.empty(query.shape, dtype=query.dtype, device=query.device)
    if lse is None and return_lse:
        lse = torch.empty(query.shape[1::-1], dtype=torch.float32, device=query.device)
    if softmax_scale is None:
        softmax_scale = max(query.shape[-1:].numel(), 1) ** -0.5
    _call(
        _op.delta_prefill.default, out, lse, query, k_cache, v_cache, cu_seqlens_q, seqused_k, block_table,
        max_seqlen_q, softmax_scale, causal, window_left, softcap, tree_mask, sinks, k_scale, v_scale, num_splits,
        schedule,
    )  # fmt: skip
    return out if lse is None else (out, lse)


def schedule_size(
    batch: int,
    total_q: int = 0,
    num_heads: int = 0,
    num_kv_heads: int = 0,
    head_dim: int = 0,
    max_seqlen_q: int = 0,
    num_splits: int = 0,
) -> int:
    """Entries of the int32 schedule that schedule_delta_prefill fills for up to `batch` sequences of these shapes.

    Enough on every device; CUDA fills all of them, the CPU fewer.
    """
    return 3 * (8 + 4 * batch) + 512


def schedule_delta_prefill(
    cu_seqlens_q: Tensor,
    seqused_k: Tensor,
    num_heads: int,
    num_kv_heads: int,
    head_dim: int,
    max_seqlen_q: int,
    num_splits: int = 0,
    causal: bool = True,
    window_left: int = -1,
    schedule: Tensor | None = None,
) -> Tensor:
    """Makes the work list of delta_prefill once per step, on the device, for every layer to reuse.

    cu_seqlens_q: int32 [batch + 1]; seqused_k: int32 [batch]; the rest as delta_prefill will be called with.
    schedule: int32 [>= schedule_size(batch, ...)], filled and returned; its content is the library's own.
    Raises ValueError, TypeError for malformed arguments, IndexError (CPU) for lengths out of range.
    Source: the work lists of Flash-Decoding and Stream-K (Osama et al., 2023).
    """
    if schedule is None:
        batch = require_tensor("schedule_delta_prefill", "seqused_k", seqused_k).shape[:1].numel()
        size = schedule_size(batch, batch * max_seqlen_q, num_heads, num_kv_heads, head_dim, max_seqlen_q, num_splits)
        schedule = torch.empty(size, dtype=torch.int32, device=seqused_k.device)
    _call(
        _op.schedule_delta_prefill.default, schedule, cu_seqlens_q, seqused_k, num_heads, num_kv_heads, head_dim,
        max_seqlen_q, num_splits, causal, window_left,
    )  # fmt: skip
    return schedule


@contextlib.contextmanager
def overlapping_launches(enabled: bool = True) -> Iterator[None]:
    """Lets a CUDA kernel of this thread begin while the one ahead of it still runs, on GPUs of sm_90 (Hopper).

    A kernel then does what it can without waiting (fetches weights into shared memory, keys and values of earlier
    tokens) and waits for all kernels ahead before it reads what they wrote or writes anything. rms_norm,
    fused_add_rms_norm, silu_and_mul, rope_append_kv, delta_prefill, row_linear and fused_row_linear of few rows take
    part; every other kernel of the stream keeps its place. Results are the same.

    It holds for a loop of layers on one stream. Inside, no taking-part op, nor any kernel directly ahead of one, may
    write what an op reads as weights (of norms or linears), positions, cos_sin_cache, slot_mapping, block_table,
    lengths, masks or scales, nor KV of other tokens than delta_prefill's query is of; schedule_delta_prefill may stand
    directly ahead of delta_prefill, called by the same thread. Calls that share a schedule come one after another.
    Graphs captured inside keep it. Elsewhere, and on the CPU, it does nothing. Not inside of torch.compile.
    Source: programmatic dependent launch, PDL (CUDA C++ Programming Guide).
    """
    before = _op.overlap_launches(enabled)
    try:
        yield
    finally:
        _op.overlap_launches(before)


from .prefix_groups import delta_prefill_grouped  # noqa: E402, F401  made of the ops above
