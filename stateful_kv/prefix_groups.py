"""Attention where several sequences share leading blocks: the shared span is read once for all of their rows.

The rows of a group attend to the shared blocks as if they were one sequence's, and to what follows on their own; the
two are merged by their log-sum-exps. That is two calls of delta_prefill and one of merge_states, all on the device.
"""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from . import ops


class Costs(NamedTuple):
    """What decides whether a group pays, of one device."""

    bytes_per_second: float  # of KV
    seconds_per_call: float  # of two more calls and the merge, beside the rows' bytes
    ridge_rows: int  # of a KV head, above which keys and values are not what a call waits for


# Models, to be replaced by measurements: of an H200, and of two cores of a server.
COSTS = {"cuda": Costs(4.3e12, 12e-6, 184), "cpu": Costs(2e10, 1e-4, 16)}


def grouping_pays(
    new_tokens: list[int],
    shared_tokens: int,
    num_heads: int,
    num_kv_heads: int,
    head_dim: int,
    cell_bytes: int = 2,
    costs: Costs = COSTS["cuda"],
) -> bool:
    """Whether a group of sequences with that many new tokens each should read `shared_tokens` together.

    Without groups a span is read once for each sequence, by rows too few to keep the multipliers busy; with them once,
    and every row's result is written and read twice more.
    """
    few = [n for n in new_tokens if n * (num_heads // num_kv_heads) < costs.ridge_rows]
    saved = max(len(few) - 1, 0) * shared_tokens * 2 * num_kv_heads * head_dim * cell_bytes
    added = sum(new_tokens) * num_heads * (head_dim * 2 + 4) * 4
    return saved - added > costs.seconds_per_call * costs.bytes_per_second


class Group(NamedTuple):
    """Sequences begin .. end - 1 of a batch, whose block tables begin with the same shared_blocks blocks."""

    begin: int
    end: int
    shared_blocks: int


def _leading_blocks(block_table: np.ndarray, rows: np.ndarray, most: np.ndarray) -> np.ndarray:
    """How many leading blocks each of those rows of a table has in common with the next one, up to `most` of them
    [rows - 1]. The time goes with what is shared, not with how long the conversations are."""
    leading, looked_at, width = np.zeros_like(most), 0, 16
    pairs = np.flatnonzero(most > 0)  # that agree in all that was looked at
    while len(pairs):
        ahead = slice(looked_at, looked_at + width)
        same = block_table[rows[pairs], ahead] == block_table[rows[pairs + 1], ahead]
        agree = np.where(same.all(1), same.shape[1], same.argmin(1))
        leading[pairs] = np.minimum(looked_at + agree, most[pairs])
        looked_at, width = looked_at + width, 2 * width
        pairs = pairs[(agree == same.shape[1]) & (most[pairs] > looked_at)]
    return leading


def neighbours_that_share(
    block_table: np.ndarray, committed: np.ndarray, block_size: int, rows: np.ndarray | None = None
) -> list[Group]:
    """Every sequence of a batch in one group, in order, so that most blocks are saved; of its own: shared_blocks 0.

    block_table: int32 [rows, max_blocks]; committed: per sequence, its tokens in the cache without the new ones; rows:
    where its row of the table is, None = in order.
    """
    batch = len(committed)
    rows = np.arange(batch) if rows is None else rows
    leading = _leading_blocks(block_table, rows, np.minimum(committed[1:], committed[:-1]) // block_size).tolist()
    # The most blocks that groups of the first `end` sequences save, and where the last of these groups begins.
    saved, begins = [0], [0]
    for end in range(1, batch + 1):
        best, begin, shared = saved[end - 1], end - 1, None
        for first in range(end - 2, -1, -1):
            shared = leading[first] if shared is None else min(shared, leading[first])
            if shared == 0:
                break
            if saved[first] + (end - first - 1) * shared > best:
                best, begin = saved[first] + (end - first - 1) * shared, first
        saved.append(best)
        begins.append(begin)
    groups, end = [], batch
    while end > 0:
        begin = begins[end]
        groups.append(Group(begin, end, min(leading[begin : end - 1], default=0)))
        end = begin
    return groups[::-1]


def groups_that_pay(
    block_table: np.ndarray,
    new_tokens: np.ndarray,
    seqused_k: np.ndarray,
    block_size: int,
    shapes: tuple[int, int, int],
    cell_bytes: int,
    costs: Costs = COSTS["cuda"],
) -> tuple[list[int], list[int], int] | None:
    """What delta_prefill_grouped is to be told of a batch: cu_groups, shared_blocks and the most new tokens of a group;
    None where nothing that neighbours share is worth it. shapes: query heads, KV heads, head_dim."""
    active = np.flatnonzero(new_tokens)  # a session that waits keeps its row, and parts nobody
    cu_groups, shared_blocks, most = [0], [], int(new_tokens.max(initial=1))

    def alone_until(sequence: int) -> None:
        shared_blocks.extend([0] * (sequence - cu_groups[-1]))
        cu_groups.extend(range(cu_groups[-1] + 1, sequence + 1))

    for begin, end, shared in neighbours_that_share(block_table, (seqused_k - new_tokens)[active], block_size, active):
        new = new_tokens[active[begin:end]].tolist()
        if shared and grouping_pays(new, shared * block_size, *shapes, cell_bytes, costs):
            alone_until(int(active[begin]))
            cu_groups.append(int(active[end - 1]) + 1)
            shared_blocks.append(shared)
            most = max(most, sum(new))
    if not any(shared_blocks):
        return None
    alone_until(len(new_tokens))
    return cu_groups, shared_blocks, most


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
    seqused_k minus the new tokens. A sequence without new tokens needs neither, unless it is the first of its group.
    Scales [batch, num_kv_heads] are the same within a group.
    max_group_seqlen_q: an upper bound of the new tokens of a group, total_q by default.
    Everything else, errors included, as in delta_prefill, but no window; rows past cu_seqlens_q[batch] may change.
    num_splits = -1: a row's bits depend on its query, its KV and how much of it is shared.
    Source: cascade inference (FlashInfer, 2024); Hydragen (Juravsky et al., 2024).
    """
    _check_batch(query, k_cache, cu_seqlens_q, seqused_k, block_table, cu_groups, shared_blocks)
    if out is not None:
        _expect("out", out, query.dtype, query, "the shape of query", *query.shape)
    if lse is not None:
        _expect("lse", lse, torch.float32, query, "[num_heads, total_q]", *query.shape[1::-1])
    spans = Spans(
        cu_seqlens_q, seqused_k, block_table, max_seqlen_q, cu_groups, shared_blocks, k_cache.size(1),
        query.size(0) if max_group_seqlen_q is None else max_group_seqlen_q,
    )  # fmt: skip
    return spans.attend(
        query, k_cache, v_cache, out, lse, is_full=False, softmax_scale=softmax_scale, causal=causal, softcap=softcap,
        tree_mask=tree_mask, sinks=sinks, k_scale=k_scale, v_scale=v_scale, num_splits=num_splits,
    )  # fmt: skip


def _expect(name: str, t: Tensor, dtype: torch.dtype | None, like: Tensor, words: str, *sizes: int) -> None:
    """sizes: -1 = any."""
    op = "delta_prefill_grouped"
    ops.require_tensor(op, name, t)
    if dtype is not None and t.dtype != dtype:
        raise TypeError(f"{op}: {name} has dtype {t.dtype}, expected {dtype}".replace("torch.", ""))
    if t.dim() != len(sizes) or any(size not in (-1, got) for size, got in zip(sizes, t.shape, strict=True)):
        raise ValueError(f"{op}: {name} has shape {list(t.shape)}, expected {words}")
    if t.device != like.device:
        raise ValueError(f"{op}: {name} is on device {t.device}, expected {like.device}, the device of query")


def _check_batch(
    query: Tensor,
    k_cache: Tensor,
    cu_seqlens_q: Tensor,
    seqused_k: Tensor,
    block_table: Tensor,
    cu_groups: Tensor,
    shared_blocks: Tensor,
) -> None:
    _expect("query", query, None, query, "[total_q, num_heads, head_dim]", -1, -1, -1)
    _expect("k_cache", k_cache, None, query, "[num_blocks, block_size, num_kv_heads, head_dim]", -1, -1, -1, -1)
    _expect("seqused_k", seqused_k, torch.int32, query, "[batch]", -1)
    batch = len(seqused_k)
    _expect("cu_seqlens_q", cu_seqlens_q, torch.int32, query, f"[batch + 1] = [{batch + 1}]", batch + 1)
    _expect("block_table", block_table, torch.int32, query, f"[batch, max_blocks] = [{batch}, *]", batch, -1)
    _expect("shared_blocks", shared_blocks, torch.int32, query, "[num_groups]", -1)
    groups = len(shared_blocks)
    _expect("cu_groups", cu_groups, torch.int32, query, f"[{groups + 1}], one more than shared_blocks", groups + 1)
    if groups > batch or (groups == 0) != (batch == 0):
        raise ValueError(
            f"delta_prefill_grouped: cu_groups has {groups} groups of {batch} sequences, expected 1 to batch"
        )


class Spans:
    """What follows from the indices of a batch in groups, made once for all layers of a step: whose keys are shared."""

    def __init__(
        self,
        cu_seqlens_q: Tensor,
        seqused_k: Tensor,
        block_table: Tensor,
        max_seqlen_q: int,
        cu_groups: Tensor,
        shared_blocks: Tensor,
        block_size: int,
        max_group_seqlen_q: int,
    ):
        """As delta_prefill_grouped; block_size: of the caches."""
        batch, width = block_table.shape
        _check_shares(cu_seqlens_q, seqused_k, cu_groups, shared_blocks, width, block_size)
        # On a device nobody has looked at the indices: wrong ones must not lead out of the tensors.
        cu_groups = cu_groups.clamp(0, batch)
        self.first = cu_groups[:-1].clamp(max=batch - 1).long()
        sequences = torch.arange(batch, dtype=cu_groups.dtype, device=cu_groups.device)
        group = torch.searchsorted(cu_groups[1:], sequences, right=True)
        shared_blocks = shared_blocks.clamp(0, width)
        shared = shared_blocks[group.clamp(max=len(shared_blocks) - 1)] * (cu_seqlens_q.diff() > 0)
        # Entries of the own span move to the front; behind the table's end there is nothing.
        columns = torch.arange(width, device=block_table.device) + shared[:, None]
        table = torch.where(columns < width, block_table.gather(1, columns.clamp(max=max(width - 1, 0))), -1)
        self.own = (cu_seqlens_q, seqused_k - shared * block_size, table, max_seqlen_q)
        # A group is one sequence whose rows all see the whole of what it shares.
        self.shared = (
            cu_seqlens_q[cu_groups.long()], shared_blocks * block_size, block_table[self.first], max_group_seqlen_q
        )  # fmt: skip
        self.schedules: tuple[Tensor | None, Tensor | None] = (None, None)

    def make_schedules(self, num_heads: int, num_kv_heads: int, head_dim: int, num_splits: int) -> None:
        """Work lists of both spans, for causal calls without a window."""
        self.schedules = tuple(
            ops.schedule_delta_prefill(cu, used, num_heads, num_kv_heads, head_dim, most, num_splits, causal=causal)
            for (cu, used, _, most), causal in ((self.own, True), (self.shared, False))
        )

    def attend(
        self,
        query: Tensor,
        k_cache: Tensor,
        v_cache: Tensor,
        out: Tensor | None = None,
        lse: Tensor | None = None,
        *,
        is_full: bool = True,
        causal: bool = True,
        tree_mask: Tensor | None = None,
        sinks: Tensor | None = None,
        k_scale: Tensor | None = None,
        v_scale: Tensor | None = None,
        **common,
    ) -> tuple[Tensor, Tensor]:
        """delta_prefill_grouped's (out, lse). is_full: every row is of some sequence."""
        cu_seqlens_q, own_used, own_table, max_seqlen_q = self.own
        own_out, own_lse = ops.delta_prefill(
            query, k_cache, v_cache, cu_seqlens_q, own_used, own_table, max_seqlen_q, causal=causal,
            tree_mask=tree_mask, sinks=sinks, k_scale=k_scale, v_scale=v_scale, out=out if is_full else None,
            lse=lse if is_full else None, return_lse=True, schedule=self.schedules[0], **common,
        )  # fmt: skip
        shared_out, shared_lse = (
            torch.empty_like(t, memory_format=torch.contiguous_format) for t in (own_out, own_lse)
        )
        if not is_full:  # rows of no sequence have seen nothing
            shared_out.zero_()
            shared_lse.fill_(-torch.inf)
        cu_shared, shared_used, shared_table, max_shared = self.shared
        ops.delta_prefill(
            query, k_cache, v_cache, cu_shared, shared_used, shared_table, max_shared, causal=False,
            k_scale=_of_groups(k_scale, self.first), v_scale=_of_groups(v_scale, self.first), out=shared_out,
            lse=shared_lse, return_lse=True, schedule=self.schedules[1], **common,
        )  # fmt: skip
        out, lse = own_out if out is None else out, own_lse if lse is None else lse
        return ops.merge_states(own_out, own_lse, shared_out, shared_lse, out=out, lse=lse)


def _of_groups(scale: Tensor | None, first: Tensor) -> Tensor | None:
    return scale[first] if scale is not None and scale.dim() == 2 else scale


def _check_shares(
    cu_seqlens_q: Tensor, seqused_k: Tensor, cu_groups: Tensor, shared_blocks: Tensor, width: int, block_size: int
) -> None:
    """On the CPU, where looking costs nothing: a row must not see what lies after it."""
    if seqused_k.device.type != "cpu":
        return
    op, bounds, shares = "delta_prefill_grouped", cu_groups.tolist(), shared_blocks.tolist()
    new, used = cu_seqlens_q.diff().tolist(), seqused_k.tolist()
    if bounds[0] != 0 or bounds[-1] != len(used):
        raise IndexError(f"{op}: cu_groups goes from {bounds[0]} to {bounds[-1]}, expected 0 to batch = {len(used)}")
    for g, (begin, end, shared) in enumerate(zip(bounds[:-1], bounds[1:], shares, strict=True)):
        if not begin < end <= len(used):
            raise IndexError(f"{op}: cu_groups[{g + 1}] is {end}, expected {begin + 1} to batch = {len(used)}")
        if not 0 <= shared <= width:
            raise IndexError(f"{op}: shared_blocks[{g}] is {shared}, expected 0 to max_blocks = {width}")
        for b in range(begin, end):
            if new[b] > 0 and shared * block_size > max(used[b] - new[b], 0):
                raise IndexError(
                    f"{op}: shared_blocks[{g}] is {shared}, which covers tokens that sequence {b} has not committed; "
                    f"expected at most {max(used[b] - new[b], 0) // block_size}"
                )
