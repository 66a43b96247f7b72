"""FlashInfer's interfaces over the ops of stateful_kv, for callers that hold CSR page tables.

The names, arguments and layouts are FlashInfer's: a page table is (indptr int32 [batch + 1], indices int32,
last_page_len int32 [batch]), a cache one tensor [pages, 2, ...] or a tuple (k, v), each page NHD [page_size, kv_heads,
head_dim] or HND [kv_heads, page_size, head_dim], and log-sum-exps are base 2, [total_q, num_heads]. Caches are passed
on as views, never copied. On a GPU nothing reads device memory from the host, so all of it can be captured in a graph.
Arguments of FlashInfer's that ask for nothing more than what happens here anyway are taken with exactly those values;
with any other they raise NotImplementedError.

    FlashInfer                                stateful_kv
    kv_indptr, kv_indices, kv_last_page_len   block_table, seqused_k (csr_to_block_table)
    qo_indptr                                 cu_seqlens_q
    page, page_size                           block, block_size
    batch_indices, positions                  slot_mapping (csr_to_slot_mapping)
    sm_scale, logits_soft_cap                 softmax_scale, softcap
    lse (base 2, [total_q, heads])            lse (natural, [heads, total_q])
"""

import math
import sys
from typing import Any

import torch
from torch import Tensor

from .. import ops
from ..arguments import real, shown

Cache = Tensor | tuple[Tensor, Tensor]
_LN2 = math.log(2.0)
_LARGEST = sys.float_info.max
_INTEGERS = (torch.int8, torch.uint8, torch.int16, torch.int32, torch.int64)

# What FlashInfer's callers may pass, and the values that change nothing here; (): any, as only speed hangs on it or, of
# rope_scale and rope_theta, as pos_encoding_mode "NONE" looks at neither.
_INIT = {"use_cuda_graph": (False,), "backend": ("auto", "fa2", "fa3"), "jit_args": (None,)}
_INIT_PREFILL = _INIT | dict.fromkeys(
    ("qo_indptr_buf", "paged_kv_indptr_buf", "paged_kv_indices_buf", "paged_kv_last_page_len_buf", "custom_mask_buf",
     "mask_indptr_buf", "jit_kwargs"), (None,)
)  # fmt: skip
_INIT_DECODE = _INIT | {"use_tensor_cores": ()} | dict.fromkeys(
    ("paged_kv_indptr_buffer", "paged_kv_indices_buffer", "paged_kv_last_page_len_buffer"), (None,)
)  # fmt: skip
_PLAN = {
    "pos_encoding_mode": ("NONE",), "rope_scale": (), "rope_theta": (), "non_blocking": (), "seq_lens": (None,),
    "block_tables": (None,), "fixed_split_size": (None,), "disable_split_kv": (False,),
}  # fmt: skip
_PLAN_PREFILL = _PLAN | {"use_fp16_qk_reduction": (False,), "token_pos_in_items_len": (0,)} | dict.fromkeys(
    ("custom_mask", "packed_custom_mask", "prefix_len_ptr", "token_pos_in_items_ptr", "max_item_len_ptr", "seq_lens_q",
     "max_token_per_sequence", "max_sequence_kv"), (None,)
)  # fmt: skip
_PLAN_DECODE = _PLAN | {"q_len_per_req": (1,), "window_right": (0,)}
_RUN = {"lse": (None,), "enable_pdl": (), "kv_cache_sf": (None,), "skip_softmax_threshold_scale_factor": (None,)}
_RUN_DECODE = _RUN | {"q_len_per_req": (None, 1)}


def _require(ok: bool, message: str, error: type[Exception] = ValueError) -> None:
    if not ok:
        raise error(message)


def _require_no_op(call: str, given: dict[str, Any], taken: dict[str, tuple]) -> None:
    for name, value in given.items():
        _require(name in taken, f"{call}: got an unexpected argument {name!r}", TypeError)
        same = not taken[name] or any(type(value) is type(x) and value == x for x in taken[name])
        expected = " or ".join(map(repr, taken[name]))
        _require(same, f"{call}: {name} is {shown(value)}, expected {expected}", NotImplementedError)


def _data_type(call: str, name: str, value: Any) -> torch.dtype | None:
    """FlashInfer takes dtypes also by their names."""
    dtype = getattr(torch, value, None) if isinstance(value, str) else value
    ok = value is None or isinstance(dtype, torch.dtype)
    _require(ok, f"{call}: {name} is {shown(value)}, expected a torch.dtype, its name or None", TypeError)
    return dtype


def _require_csr(op: str, indptr: Tensor, indices: Tensor) -> None:
    for name, t in (("indptr", indptr), ("indices", indices)):
        _require(
            t.ndim == 1 and t.dtype == torch.int32,
            f"{op}: {name} is {t.dtype} of shape {list(t.shape)}, expected int32 of one dimension",
        )
    _require(len(indptr) >= 1, f"{op}: indptr is empty, expected batch + 1 offsets")
    _require_offsets(op, indptr, indices)


def _require_offsets(op: str, indptr: Tensor, indices: Tensor) -> None:
    """On a GPU looking would wait for it: there, what lies outside of indices is no page."""
    if not indptr.is_cpu:
        return
    low = 0
    for i, offset in enumerate(indptr.tolist()):
        if not low <= offset <= len(indices):
            expected = f"{low} to {len(indices)}, the length of indices"
            raise IndexError(f"{op}: indptr[{i}] is {offset}, expected {expected}")
        low = offset


def _require_last_page_len(op: str, indptr: Tensor, last_page_len: Tensor, page_size: int) -> None:
    _require(
        last_page_len.dtype in _INTEGERS,
        f"{op}: last_page_len is {last_page_len.dtype}, expected int32",
    )
    if not (indptr.is_cpu and last_page_len.is_cpu):
        return
    wrong = (indptr[1:] > indptr[:-1]) & ((last_page_len < 1) | (last_page_len > page_size))
    if bool(wrong.any()):
        i = int(wrong.nonzero()[0])
        raise IndexError(f"{op}: last_page_len[{i}] is {int(last_page_len[i])}, expected 1 to {page_size}")


def csr_to_block_table(
    indptr: Tensor, indices: Tensor, last_page_len: Tensor, page_size: int, max_pages: int | None = None
) -> tuple[Tensor, Tensor]:
    """A CSR page table as (block_table int32 [batch, max_pages], seqused_k int32 [batch]), on the tables' device.

    indptr: int32 [batch + 1], where each sequence's pages begin in indices. last_page_len: int32 [batch], tokens in the
    last page of each, 1 to page_size; of a sequence without pages it means nothing. max_pages: columns of the result,
    at least the most pages of a sequence; what lies behind is cut off. None: exactly that on the CPU, len(indices) on a
    GPU, where looking would wait for it. Unused entries are -1.
    Raises ValueError for shapes, dtypes or a page_size below 1, on the CPU IndexError for offsets that fall or leave
    indices and for a last_page_len out of range; on a GPU what lies outside of indices is -1.
    """
    op = "csr_to_block_table"
    _require_csr(op, indptr, indices)
    batch = len(indptr) - 1
    _require(
        last_page_len.shape == (batch,),
        f"{op}: last_page_len has shape {list(last_page_len.shape)}, expected [{batch}]",
    )
    _require(page_size >= 1, f"{op}: page_size is {page_size}, expected at least 1")
    _require_last_page_len(op, indptr, last_page_len, page_size)
    num_pages = indptr[1:] - indptr[:-1]
    if max_pages is None:
        max_pages = len(indices) if indices.is_cuda else int(num_pages.max()) if batch else 0
    _require(max_pages >= 0, f"{op}: max_pages is {max_pages}, expected at least 0")
    columns = torch.arange(max_pages, device=indptr.device, dtype=torch.int32)
    if len(indices) == 0:
        table = indices.new_full((batch, max_pages), -1)
    else:
        wanted = indptr[:-1, None].long() + columns
        at = wanted.clamp(0, len(indices) - 1)
        table = indices[at].masked_fill((columns >= num_pages[:, None]) | (at != wanted), -1)
    seqused_k = ((num_pages - 1) * page_size + last_page_len).masked_fill(num_pages <= 0, 0)
    return table, seqused_k.to(torch.int32)


def csr_to_slot_mapping(
    batch_indices: Tensor, positions: Tensor, indptr: Tensor, indices: Tensor, page_size: int
) -> Tensor:
    """Slots (int64 [num_tokens], page * page_size + offset) of tokens at positions of their sequences.

    batch_indices, positions: integers [num_tokens]. A token outside of its sequence's pages raises IndexError on the
    CPU and is skipped (slot -1) on a GPU; offsets as in csr_to_block_table.
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
        at = page.clamp(0, len(indices) - 1)
        inside = (b == sequence) & (p >= 0) & (page < indptr.long()[sequence + 1]) & (at == page)
        slots = (indices.long()[at] * page_size + p % page_size).masked_fill(~inside, -1)
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
    independent of the batch. A plan() that raises leaves the one before as it was.
    """

    _taken_by_init, _taken_by_plan, _taken_by_run = _INIT_PREFILL, _PLAN_PREFILL, _RUN

    def __init__(
        self,
        float_workspace_buffer: Tensor | None = None,
        kv_layout: str = "NHD",
        use_cuda_graph: bool = False,
        *,
        num_splits: int = 0,
        **others: Any,
    ):
        name = type(self).__name__
        _require(kv_layout in ("NHD", "HND"), f"{name}: kv_layout is {kv_layout!r}, expected 'NHD' or 'HND'")
        _require_no_op(name, {"use_cuda_graph": use_cuda_graph, **others}, self._taken_by_init)
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
        head_dim_vo: int | None = None,
        *,
        causal: bool = False,
        sm_scale: float | None = None,
        window_left: int = -1,
        logits_soft_cap: float | None = None,
        q_data_type: torch.dtype | str | None = None,
        kv_data_type: torch.dtype | str | None = None,
        o_data_type: torch.dtype | str | None = None,
        max_seqlen_q: int | None = None,
        max_pages: int | None = None,
        **others: Any,
    ) -> None:
        """qo_indptr: int32 [batch + 1], rows of each sequence in q. max_seqlen_q: an upper bound of them; None: looked
        up on the CPU, the number of rows of run()'s q on a GPU. max_pages: as in csr_to_block_table. q_data_type,
        kv_data_type, o_data_type: what run() has to be given, None: anything; o_data_type is that of q."""
        _require_no_op("plan", others, self._taken_by_plan)
        _require(
            head_dim_vo in (None, head_dim_qk),
            f"plan: head_dim_vo is {shown(head_dim_vo)}, expected head_dim_qk, {head_dim_qk}",
            NotImplementedError,
        )
        data_types = {
            name: _data_type("plan", name, value)
            for name, value in (
                ("q_data_type", q_data_type), ("kv_data_type", kv_data_type), ("o_data_type", o_data_type)
            )
        }  # fmt: skip
        block_table, seqused_k = csr_to_block_table(
            paged_kv_indptr, paged_kv_indices, paged_kv_last_page_len, page_size, max_pages
        )
        _require(
            qo_indptr.shape == paged_kv_indptr.shape,
            f"plan: qo_indptr has shape {list(qo_indptr.shape)}, expected {list(paged_kv_indptr.shape)}",
        )
        if max_seqlen_q is None and not qo_indptr.is_cuda:
            max_seqlen_q = int((qo_indptr[1:] - qo_indptr[:-1]).max()) if len(qo_indptr) > 1 else 0
        options = {
            "causal": causal,
            "window_left": window_left,
            "softcap": logits_soft_cap or 0.0,
            "softmax_scale": head_dim_qk**-0.5 if sm_scale is None else sm_scale,
            "num_splits": self.num_splits,
        }
        schedule = None  # made by each run(), where the longest row count is not known here
        if max_seqlen_q is not None:
            schedule = ops.schedule_delta_prefill(
                qo_indptr, seqused_k, num_qo_heads, num_kv_heads, head_dim_qk, max_seqlen_q,
                self.num_splits, causal, window_left,
            )  # fmt: skip
        # All at once: what raises above leaves the plan before this one.
        self.block_table, self.seqused_k, self.cu_seqlens_q = block_table, seqused_k, qo_indptr
        self.max_seqlen_q, self.options, self.schedule, self.data_types = max_seqlen_q, options, schedule, data_types
        self.shape = (num_qo_heads, num_kv_heads, head_dim_qk, page_size)
        self._planned = True

    def run(
        self,
        q: Tensor,
        paged_kv_cache: Cache,
        *,
        q_scale: float | None = None,
        k_scale: float | Tensor | None = None,
        v_scale: float | Tensor | None = None,
        out: Tensor | None = None,
        return_lse: bool = False,
        window_left: int | None = None,
        sinks: Tensor | None = None,
        **others: Any,
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Attention of q [total_q, qo_heads, head_dim] over the planned pages; with return_lse also the base-2
        log-sum-exp, float32 [total_q, qo_heads]. q_scale, k_scale, v_scale: numbers that what is stored has to be
        multiplied by, of fp8 caches also tensors as in ops.delta_prefill. Everything else as there."""
        _require(self._planned, "run: plan() was not called", RuntimeError)
        _require_no_op("run", others, self._taken_by_run)
        planned = self.options["window_left"]
        _require(
            window_left in (None, planned),
            f"run: window_left is {shown(window_left)}, expected {planned} as planned",
            NotImplementedError,
        )
        k_cache, v_cache = split_cache("run", paged_kv_cache, self.kv_layout)
        came = (q.shape[1], k_cache.shape[2], q.shape[2], k_cache.shape[1])
        _require(
            came == self.shape,
            f"run: heads, kv heads, head_dim and page_size are {came}, expected {self.shape} as planned",
        )
        for name, expected in self.data_types.items():
            what, dtype = ("paged_kv_cache", k_cache.dtype) if name == "kv_data_type" else ("q", q.dtype)
            _require(expected in (None, dtype), f"run: {what} is {dtype}, expected {expected}, the planned {name}")
        options, scaled = dict(self.options), None
        if q_scale is not None:
            options["softmax_scale"] *= _scale("q_scale", q_scale)
        if not isinstance(k_scale, Tensor | None):
            options["softmax_scale"] *= _scale("k_scale", k_scale)
            k_scale = None
        if not isinstance(v_scale, Tensor | None):
            scaled, v_scale = _scale("v_scale", v_scale), None
        if k_cache.dtype == torch.float8_e4m3fn:  # FlashInfer's default of both is 1
            one = torch.ones((), dtype=torch.float32, device=q.device)
            k_scale, v_scale = (one if scale is None else scale for scale in (k_scale, v_scale))
        result = ops.delta_prefill(
            q, k_cache, v_cache, self.cu_seqlens_q, self.seqused_k, self.block_table,
            q.shape[0] if self.max_seqlen_q is None else self.max_seqlen_q,
            k_scale=k_scale, v_scale=v_scale, sinks=sinks, schedule=self.schedule, out=out, return_lse=return_lse,
            **options,
        )  # fmt: skip
        out, lse = result if return_lse else (result, None)
        if scaled is not None and scaled != 1.0:
            out *= scaled
        return (out, _base_2(lse)) if return_lse else out


class BatchDecodeWithPagedKVCacheWrapper(BatchPrefillWithPagedKVCacheWrapper):
    """The same with one row per sequence."""

    _taken_by_init, _taken_by_plan, _taken_by_run = _INIT_DECODE, _PLAN_DECODE, _RUN_DECODE

    def __init__(
        self,
        float_workspace_buffer: Tensor | None = None,
        kv_layout: str = "NHD",
        use_cuda_graph: bool = False,
        use_tensor_cores: bool = False,
        *,
        num_splits: int = 0,
        **others: Any,
    ):
        super().__init__(float_workspace_buffer, kv_layout, use_cuda_graph, num_splits=num_splits, **others)

    def plan(
        self,
        indptr: Tensor,
        indices: Tensor,
        last_page_len: Tensor,
        num_qo_heads: int,
        num_kv_heads: int,
        head_dim: int,
        page_size: int,
        *,
        data_type: torch.dtype | str | None = None,
        **options: Any,
    ) -> None:
        """indptr, indices, last_page_len: the CSR page table; data_type: of q and of the cache; options: as of the
        prefill wrapper."""
        rows = torch.arange(len(indptr), device=indptr.device, dtype=torch.int32)
        if data_type is not None:
            data_type = _data_type("plan", "data_type", data_type)
            options = {"q_data_type": data_type, "kv_data_type": data_type, **options}
        super().plan(
            rows, indptr, indices, last_page_len, num_qo_heads, num_kv_heads, head_dim, page_size, max_seqlen_q=1,
            **options,
        )  # fmt: skip


def _scale(name: str, value: Any) -> float:
    return real("run", name, value, -_LARGEST, _LARGEST, "a finite number")


def _base_2(lse: Tensor) -> Tensor:
    return (lse / _LN2).t().contiguous()


def _natural(s: Tensor) -> Tensor:
    return (s * _LN2).t().contiguous()
