"""Attention where several sequences share leading blocks: the shared span is read once for all of their rows.

The rows of a group attend to the shared blocks as if they were one sequence's, and to what follows on their own; the
two are merged by their log-sum-exps. That is two calls of delta_prefill and one of merge_states, all on the device.
"""

import torch
from torch import Tensor

# A model of an H200, to be replaced by measurements: what two more launches and the merge cost beside the rows' bytes.
BYTES_PER_SECOND = 4.3e12
SECONDS_PER_CALL = 12e-6
RIDGE_ROWS = 184  # of a KV head, above which keys and values are not what a call waits for


def grouping_pays(
    new_tokens: list[int], shared_tokens: int, num_heads: int, num_kv_heads: int, head_dim: int, cell_bytes: int = 2
) -> bool:
    """Whether a group of sequences with that many new tokens each should read `shared_tokens` together.

    Without groups a span is read once for each sequence, by rows too few to keep the tensor cores busy; with them once,
    and every row's result is written and read twice more.
    """
    few = [n for n in new_tokens if n * (num_heads // num_kv_heads) < RIDGE_ROWS]
    saved = max(len(few) - 1, 0) * shared_tokens * 2 * num_kv_heads * head_dim * cell_bytes
    added = sum(new_tokens) * num_heads * (head_dim * 2 + 4) * 4
    return saved - added > SECONDS_PER_CALL * BYTES_PER_SECOND


def delta_prefill_grouped(
    query: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    cu_seqlens_q: Tensor,
    seqused_k: Tensor,
    block_table: Tensor,
    max_seqlen_q: int,
    cu_groups: Tensor,
    shared_blocks: Tensor,
    softmax_scale: float | None = None,
    causal: bool = True,
    softcap: float = 0.0,
    tree_mask: Tensor | None = None,
    sinks: Tensor | None = None,
    k_scale: Tensor | None = None,
    v_scale: Tensor | None = None,
    num_splits: int = 0,
    max_group_seqlen_q: int | None = None,
    out: Tensor | None = None,
    lse: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """delta_prefill of a batch in which neighbouring sequences share leading blocks; returns (out, lse).

    cu_groups: int32 [num_groups + 1], group g is the sequences cu_groups[g] .. cu_groups[g + 1] - 1, every sequence in
    one; shared_blocks: int32 [num_groups], how many leading entries of their block tables are the same, 0 for a
    sequence of its own. What a group shares is committed for each of them: shared_blocks * block_size is at most
    seqused_k minus the new tokens. Scales [batch, num_kv_heads] are the same within a group.
    max_group_seqlen_q: an upper bound of the new tokens of a group, total_q by default.
    Everything else, errors included, as in delta_prefill, but no window; rows past cu_seqlens_q[batch] may change.
    num_splits = -1: a row's bits depend on its query, its KV and how much of it is shared.
    Source: cascade inference (FlashInfer, 2024); Hydragen (Juravsky et al., 2024).
    """
    from . import ops

    if cu_groups.dim() != 1 or shared_blocks.shape != (max(cu_groups.numel() - 1, 0),):
        raise ValueError(
            f"delta_prefill_grouped: cu_groups has shape {list(cu_groups.shape)} and shared_blocks "
            f"{list(shared_blocks.shape)}, expected [num_groups + 1] and [num_groups]"
        )
    first = cu_groups[:-1].long()
    sizes = cu_groups.diff().long()
    shared = shared_blocks.repeat_interleave(sizes, output_size=seqused_k.numel())
    block_size, width = k_cache.size(1), block_table.size(1)
    _check_shares(cu_seqlens_q, seqused_k, shared * block_size)
    common = dict(softmax_scale=softmax_scale, softcap=softcap, num_splits=num_splits, return_lse=True)

    # Entries of the own span move to the front; behind the table's end there is nothing.
    columns = torch.arange(width, device=block_table.device) + shared[:, None]
    own_table = torch.where(columns < width, block_table.gather(1, columns.clamp(max=max(width - 1, 0))), -1)
    out, lse = ops.delta_prefill(
        query, k_cache, v_cache, cu_seqlens_q, seqused_k - shared * block_size, own_table, max_seqlen_q, causal=causal,
        tree_mask=tree_mask, sinks=sinks, k_scale=k_scale, v_scale=v_scale, out=out, lse=lse, **common,
    )  # fmt: skip

    # A group is one sequence whose rows all see the whole of what it shares. Rows of no sequence keep -inf.
    shared_out = torch.zeros_like(out, memory_format=torch.contiguous_format)
    shared_lse = torch.full_like(lse, -torch.inf, memory_format=torch.contiguous_format)
    ops.delta_prefill(
        query, k_cache, v_cache, cu_seqlens_q[cu_groups.long()], shared_blocks * block_size, block_table[first],
        query.size(0) if max_group_seqlen_q is None else max_group_seqlen_q, causal=False,
        k_scale=_of_groups(k_scale, first), v_scale=_of_groups(v_scale, first), out=shared_out, lse=shared_lse,
        **common,
    )  # fmt: skip
    return ops.merge_states(out, lse, shared_out, shared_lse, out=out, lse=lse)


def _of_groups(scale: Tensor | None, first: Tensor) -> Tensor | None:
    return scale[first] if scale is not None and scale.dim() == 2 else scale


def _check_shares(cu_seqlens_q: Tensor, seqused_k: Tensor, shared: Tensor) -> None:
    """On the CPU, where looking costs nothing: a row must not see what lies after it."""
    if seqused_k.device.type != "cpu":
        return
    committed = seqused_k - cu_seqlens_q.diff()
    if bool(((shared < 0) | (shared > committed.clamp(min=0))).any()):
        raise IndexError("delta_prefill_grouped: shared_blocks covers tokens that a sequence has not committed")
