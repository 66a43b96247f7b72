"""FlashInfer's interfaces over the ops of stateful_kv, for callers that hold CSR page tables.

The names, arguments and layouts are FlashInfer's: a page table is (indptr int32 [batch + 1], indices int32,
last_page_len int32 [batch]), a cache one tensor [pages, 2, ...] or a tuple (k, v), each page NHD [page_size, kv_heads,
head_dim] or HND [kv_heads, page_size, head_dim], and log-sum-exps are base 2, [total_q, num_heads]. Caches are passed
on as views, never copied. On a GPU nothing reads device memory from the host, so all of it can be captured in a graph.

    FlashInfer                                stateful_kv
    kv_indptr, kv_indices, kv_last_page_len   block_table, seqused_k (csr_to_block_table)
    qo_indptr                                 cu_seqlens_q
    page, page_size                           block, block_size
    batch_indices, positions                  slot_mapping (csr_to_slot_mapping)
    sm_scale, logits_soft_cap                 softmax_scale, softcap
    lse (base 2, [total_q, heads])            lse (natural, [heads, total_q])
"""

import math

import torch
from torch import Tensor

from .. import ops

Cache = Tensor | tuple[Tensor, Tensor]
_LN2 = math.log(2.0)


def _require(ok: bool, message: str, error: type[Exception] = ValueError) -> None:
    if not ok:
        raise error(message)


def _require_csr(op: str, indptr: Tensor, indices: Tensor) -> None:
    for name, t in (("indptr", indptr), ("indices", indices)):
        _require(
            t.ndim == 1 and t.dtype == torch.int32,
            f"{op}: {name} is {t.dtype} of shape {list(t.shape)}, expected int32 of one dimension",
        )
    _require(len(indptr) >= 1, f"{op}: indptr is empty, expected batch + 1 offsets")


def csr_to_block_table(
    indptr: Tensor, indices: Tensor, last_page_len: Tensor, page_size: int, max_pages: int | None = None
) -> tuple[Tensor, Tensor]:
    """A CSR page table as (block_table int32 [batch, max_pages], seqused_k int32 [batch]), on the tables' device.

    indptr: int32 [batch + 1], where each sequence's pages begin in indices. last_page_len: int32 [batch], tokens in the
    last page of each, 1 to page_size; of a sequence without pages it means nothing. max_pages: columns of the result,
    at least the most pages of a sequence; what lies behind is cut off. None: exactly that on the CPU, len(indices) on a
    GPU, where looking would wait for it. Unused entries are -1.
    Raises ValueError for shapes, dtypes or a page_size below 1.
    """
    op = "csr_to_block_table"
    _require_csr(op, indptr, indices)
    batch = len(indptr) - 1
    _require(
        last_page_len.shape == (batch,),
        f"{op}: last_page_len has shape {list(last_page_len.shape)}, expected [{batch}]",
    )
    _require(page_size >= 1, f"{op}: page_size is {page_size}, expected at least 1")
    num_pages = indptr[1:] - indptr[:-1]
    if max_pages is None:
        max_pages = len(indices) if indices.is_cuda else int(num_pages.max()) if batch else 0
    _require(max_pages >= 0, f"{op}: max_pages is {max_pages}, expected at least 0")
    columns = torch.arange(max_pages, device=indptr.device, dtype=torch.int32)
    if len(indices) == 0:
        table = indices.new_full((batch, max_pages), -1)
    else:
        at = (indptr[:-1, None] + columns).clamp(0, len(indices) - 1)
        table = indices[at.long()].masked_fill(columns >= num_pages[:, None], -1)
    seqused_k = ((num_pages - 1) * page_size + last_page_len).masked_fill(num_pages <= 0, 0)
    return table, seqused_k.to(torch.int32)


def csr_to_slot_mapping(
    batch_indices: Tensor, positions: Tensor, indptr: Tensor, indices: Tensor, page_size: int
) -> Tensor:
    """Slots (int64 [num_tokens], page * page_size + offset) of tokens at positions of their sequences.

    batch_indices, positions: integers [num_tokens]. A token outside of its sequence's pages raises IndexError on the
    CPU and is skipped (slot -1) on a GPU.
    """
    op = "csr_to_slot_mapping"
    _require_csr(op, indptr, indices)
    _require(
        batch_indices.ndim == 1 and batch_indices.shape == positions.shape,
        f"{op}: batch_indices has shape {list(batch_indices.shape)}, positions {list(positions.shape)}, expected one",
    )
    _require(page_size >= 1, f"{op}: page_size is {page_size}, expected at least 1")
    batch = len(indptr) - 1
    if batch == 0 or len(indices) == 0:
        inside = torch.zeros_like(positions, dtype=torch.bool)
        slots = torch.full_like(positions, -1, dtype=torch.int64)
    else:
        b, p = batch_indices.long(), positions.long()
        sequence = b.clamp(0, batch - 1)
        page = indptr.long()[sequence] + p // page_size
        inside = (b == sequence) & (p >= 0) & (page < indptr.long()[sequence + 1])
        at = indices.long()[page.clamp(0, len(indices) - 1)]
        slots = (at * page_size + p % page_size).masked_fill(~inside, -1)
    if not slots.is_cuda and not bool(inside.all()):
        i = int((~inside).nonzero()[0])
        raise IndexError(
            f"{op}: token {i} is at position {int(positions[i])} of sequence {int(batch_indices[i])}, expected a "
            "position within the pages of one of the sequences"
        )
    return slots


def split_cache(op: str, cache: Cache, kv_layout: str) -> tuple[Tensor, Tensor]:
    """A FlashInfer cache as k_cache, v_cache [blocks, block_size, kv_heads, head_dim]: views."""
    _require(kv_layout in ("NHD", "HND"), f"{op}: kv_layout is {kv_layout!r}, expected 'NHD' or 'HND'")
    if isinstance(cache, Tensor):
        _require(
            cache.ndim == 5 and cache.shape[1] == 2,
            f"{op}: paged_kv_cache has shape {list(cache.shape)}, expected [pages, 2, ...] or a tuple (k, v)",
        )
        cache = (cache[:, 0], cache[:, 1])
    k, v = cache
    return (k, v) if kv_layout == "NHD" else (k.transpose(1, 2), v.transpose(1, 2))


def append_paged_kv_cache(
    append_key: Tensor,
    append_value: Tensor,
    batch_indices: Tensor,
    positions: Tensor,
    paged_kv_cache: Cache,
    kv_indices: Tensor,
    kv_indptr: Tensor,
    kv_last_page_len: Tensor,
    kv_layout: str = "NHD",
) -> None:
    """Writes keys and values [num_tokens, kv_heads, head_dim] at (batch_indices, positions) of the cache, in place.

    kv_last_page_len is FlashInfer's and not needed here. Errors: those of csr_to_slot_mapping and ops.append_kv.
    """
    k_cache, v_cache = split_cache("append_paged_kv_cache", paged_kv_cache, kv_layout)
    slots = csr_to_slot_mapping(batch_indices, positions, kv_indptr, kv_indices, k_cache.shape[1])
    ops.append_kv(k_cache, v_cache, append_key, append_value, slots)


def merge_state(v_a: Tensor, s_a: Tensor, v_b: Tensor, s_b: Tensor) -> tuple[Tensor, Tensor]:
    """Combines attention over two disjoint sets of keys: v [seq_len, heads, head_dim], s float32 [seq_len, heads], base
    2."""
    out, lse = ops.merge_states(v_a, _natural(s_a), v_b, _natural(s_b))
    return out, _base_2(lse)


def chain_speculative_sampling(
    draft_token_ids: Tensor, target_logits: Tensor, temperature: Tensor | None = None, **sampling: Tensor
) -> tuple[Tensor, Tensor]:
    """Verifies one chain of drafts per sequence: (tokens int32 [batch, n + 1], padded with -1; counts int32 [batch]).

    draft_token_ids: int32 [batch, n]. target_logits: [batch, n + 1, vocab]; row i predicts what follows i drafts.
    temperature and sampling (top_k, top_p, min_p, seeds, positions): as in ops.verify_drafts, greedy by default. Unlike
    FlashInfer's, drafts need no probabilities: a draft counts exactly where the target's own draw agrees, so the output
    is that of plain sampling, token for token. Probabilities serve as logits by their logarithm.
    """
    op = "chain_speculative_sampling"
    batch, n = draft_token_ids.shape
    _require(
        target_logits.ndim == 3 and target_logits.shape[:2] == (batch, n + 1),
        f"{op}: target_logits has shape {list(target_logits.shape)}, expected [{batch}, {n + 1}, vocab]",
    )
    fed = torch.cat([draft_token_ids.new_full((batch, 1), -1), draft_token_ids], 1).to(torch.int32)
    cu_rows = torch.arange(batch + 1, device=fed.device, dtype=torch.int32) * (n + 1)
    tokens = fed.new_empty(batch, n + 1)
    counts = fed.new_empty(batch)
    ops.verify_drafts(
        target_logits.reshape(batch * (n + 1), -1), fed.flatten(), cu_rows, temperature=temperature,
        tokens=tokens, num_tokens=counts, **sampling,
    )  # fmt: skip
    return tokens, counts


class BatchPrefillWithPagedKVCacheWrapper:
    """plan() once per step with the page tables, run() once per layer: delta_prefill with its schedule made once.

    workspace buffers are FlashInfer's and not needed. num_splits: as in ops.delta_prefill; -1 makes a row's bits
    independent of the batch.
    """

    def __init__(self, float_workspace_buffer: Tensor | None = None, kv_layout: str = "NHD", num_splits: int = 0):
        _require(kv_layout in ("NHD", "HND"), f"kv_layout is {kv_layout!r}, expected 'NHD' or 'HND'")
        self.kv_layout, self.num_splits = kv_layout, num_splits
        self._planned = False

    def plan(
        self,
        qo_indptr: Tensor,
        paged_kv_indptr: Tensor,
        paged_kv_indices: Tensor,
        paged_kv_last_page_len: Tensor,
        num_qo_heads: int,
        num_kv_heads: int,
        head_dim_qk: int,
        page_size: int,
        *,
        causal: bool = False,
        sm_scale: float | None = None,
        window_left: int = -1,
        logits_soft_cap: float | None = None,
        max_seqlen_q: int | None = None,
        max_pages: int | None = None,
    ) -> None:
        """qo_indptr: int32 [batch + 1], rows of each sequence in q. max_seqlen_q: an upper bound of them; None: looked
        up on the CPU, the number of rows of run()'s q on a GPU. max_pages: as in csr_to_block_table."""
        self.block_table, self.seqused_k = csr_to_block_table(
            paged_kv_indptr, paged_kv_indices, paged_kv_last_page_len, page_size, max_pages
        )
        _require(
            qo_indptr.shape == paged_kv_indptr.shape,
            f"plan: qo_indptr has shape {list(qo_indptr.shape)}, expected {list(paged_kv_indptr.shape)}",
        )
        self.cu_seqlens_q = qo_indptr
        if max_seqlen_q is None and not qo_indptr.is_cuda:
            max_seqlen_q = int((qo_indptr[1:] - qo_indptr[:-1]).max()) if len(qo_indptr) > 1 else 0
        self.max_seqlen_q = max_seqlen_q
        self.options = {
            "causal": causal,
            "window_left": window_left,
            "softcap": logits_soft_cap or 0.0,
            "softmax_scale": head_dim_qk**-0.5 if sm_scale is None else sm_scale,
            "num_splits": self.num_splits,
        }
        self.shape = (num_qo_heads, num_kv_heads, head_dim_qk, page_size)
        self.schedule = None  # made by each run(), where the longest row count is not known here
        if max_seqlen_q is not None:
            self.schedule = ops.schedule_delta_prefill(
                qo_indptr, self.seqused_k, num_qo_heads, num_kv_heads, head_dim_qk, max_seqlen_q,
                self.num_splits, causal, window_left,
            )  # fmt: skip
        self._planned = True

    def run(
        self,
        q: Tensor,
        paged_kv_cache: Cache,
        *,
        k_scale: Tensor | None = None,
        v_scale: Tensor | None = None,
        out: Tensor | None = None,
        return_lse: bool = False,
        sinks: Tensor | None = None,
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Attention of q [total_q, qo_heads, head_dim] over the planned pages; with return_lse also the base-2
        log-sum-exp, float32 [total_q, qo_heads]. Everything else as in ops.delta_prefill."""
        _require(self._planned, "run: plan() was not called", RuntimeError)
        k_cache, v_cache = split_cache("run", paged_kv_cache, self.kv_layout)
        came = (q.shape[1], k_cache.shape[2], q.shape[2], k_cache.shape[1])
        _require(
            came == self.shape,
            f"run: heads, kv heads, head_dim and page_size are {came}, expected {self.shape} as planned",
        )
        result = ops.delta_prefill(
            q, k_cache, v_cache, self.cu_seqlens_q, self.seqused_k, self.block_table,
            q.shape[0] if self.max_seqlen_q is None else self.max_seqlen_q,
            k_scale=k_scale, v_scale=v_scale, sinks=sinks, schedule=self.schedule, out=out, return_lse=return_lse,
            **self.options,
        )  # fmt: skip
        return (result[0], _base_2(result[1])) if return_lse else result


class BatchDecodeWithPagedKVCacheWrapper(BatchPrefillWithPagedKVCacheWrapper):
    """The same with one row per sequence."""

    def plan(self, indptr: Tensor, indices: Tensor, last_page_len: Tensor, *shape: int, **options) -> None:
        """indptr, indices, last_page_len: the CSR page table; shape: num_qo_heads, num_kv_heads, head_dim, page_size;
        options: as of the prefill wrapper."""
        rows = torch.arange(len(indptr), device=indptr.device, dtype=torch.int32)
        super().plan(rows, indptr, indices, last_page_len, *shape, max_seqlen_q=1, **options)


def _base_2(lse: Tensor) -> Tensor:
    return (lse / _LN2).t().contiguous()


def _natural(s: Tensor) -> Tensor:
    return (s * _LN2).t().contiguous()
