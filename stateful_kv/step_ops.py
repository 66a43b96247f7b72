"""Wrappers of the ops that lay out and commit a step on the device: stateful_kv.ops.plan_step and commit_step."""

from torch import Tensor

from .native import call as _call
from .native import op as _op


def plan_step(
    history: Tensor,
    lengths: Tensor,
    computed: Tensor,
    finished: Tensor,
    drafts: Tensor,
    num_drafts: Tensor,
    draft_limits: Tensor,
    max_lengths: Tensor,
    num_slots: Tensor,
    block_table: Tensor,
    block_size: int,
    max_rows: int,
    token_ids: Tensor,
    positions: Tensor,
    slot_mapping: Tensor,
    cu_seqlens_q: Tensor,
    seqused_k: Tensor,
    logit_rows: Tensor,
    draft_tokens: Tensor,
    cu_rows: Tensor,
    sample_positions: Tensor,
) -> tuple[Tensor, ...]:
    """Lays out one step of a batch whose state lies on the device, for the model's ops and verify_drafts.

    State, int32, an entry a sequence: history [batch, max_history] tokens, known up to lengths [batch]; computed
    [batch], how many leading ones have their KV in the cache; finished [batch], 0 = running; drafts [batch, max_drafts]
    and num_drafts [batch] (propose_drafts); draft_limits [batch], the most to feed; max_lengths [batch], where the
    answer ends; num_slots [batch], positions that block_table [batch, max_blocks] has blocks of block_size for.
    A running sequence with several tokens to feed gets a row for each, max_rows a step, and a logit row once all are
    fed; one with its last token alone gets that and its drafts, as many as its limits, its answer and its slots allow,
    all with logits. A token whose KV is in the cache is fed where it is the last one, and has slot -1. A sequence
    without a slot for its next token waits. Rows are granted in order: one to each sequence, then drafts while there
    are logit rows, then what each wants beyond its first row while there are rows.
    Mutated: token_ids int32, positions, slot_mapping int64 [max_tokens]; cu_seqlens_q int32 [batch + 1], seqused_k
    int32 [batch]; logit_rows int64, draft_tokens int32 [max_logit_rows], cu_rows int32 [batch + 1], sample_positions
    int64 [batch]: as the ops that take them want them. Past the rows used: token, position and index 0, slot -1.
    Returns the mutated ones. No row of it depends on anything read by the host.
    Raises ValueError, TypeError for malformed arguments, IndexError (CPU) for lengths, computed, max_lengths,
    num_slots or num_drafts out of range or a missing block, all before anything is written.
    """
    out = (
        token_ids, positions, slot_mapping, cu_seqlens_q, seqused_k, logit_rows, draft_tokens, cu_rows,
        sample_positions,
    )  # fmt: skip
    _call(
        _op.plan_step.default, *out, history, lengths, computed, finished, drafts, num_drafts, draft_limits,
        max_lengths, num_slots, block_table, block_size, max_rows,
    )  # fmt: skip
    return out


def commit_step(
    history: Tensor,
    lengths: Tensor,
    computed: Tensor,
    finished: Tensor,
    results: Tensor,
    step: Tensor,
    tokens: Tensor,
    num_tokens: Tensor,
    cu_seqlens_q: Tensor,
    cu_rows: Tensor,
    max_lengths: Tensor,
    stop_tokens: Tensor,
) -> Tensor:
    """Takes the verified tokens of a step that plan_step laid out over into the batch's state.

    history, lengths, computed, finished: as in plan_step, mutated: tokens are appended up to a stop token (finished 1)
    or max_lengths (2), `computed` counts the KV that belongs to what was kept. A sequence for which no token could be
    drawn is finished with 3.
    tokens int32 [batch, max_rows], num_tokens int32 [batch]: of verify_drafts; cu_seqlens_q, cu_rows: of plan_step.
    stop_tokens: int32 [batch, max_stops], negative = none.
    results: int32 [ring, batch, 4 + max_rows], mutated: entry step % ring becomes rows fed, of them logit rows, number
    of tokens verified (those behind a stop included), finished afterwards, then the tokens, padded with -1.
    step: int64 [1], how many steps were committed before, mutated.
    Returns results. Raises ValueError, TypeError for malformed arguments, IndexError (CPU) for counts or lengths out of
    range, before anything is written.
    """
    _call(
        _op.commit_step.default, history, lengths, computed, finished, results, step, tokens, num_tokens,
        cu_seqlens_q, cu_rows, max_lengths, stop_tokens,
    )  # fmt: skip
    return results
