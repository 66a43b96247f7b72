"""The loop: match, copy-on-write, delta prefill, draft, verify, commit.

One step serves every running session at once, as one ragged batch of rows:

  plan     the runtime (C++) matches prefixes, drafts from what each conversation already says, allocates blocks and
           fills token ids, positions, slots, tables and copies of the whole batch
  copy     shared tail blocks that somebody is about to write into, all layers in one launch
  forward  embedding, then per layer: norm, QKV, rotary embedding + append to the cache, attention of the new rows over
           the paged KV, output projection and MLP; logits of the rows that decide something
  verify   draws one token per row and keeps each sequence's longest agreeing draft; where drafts were a tree, KV of
           accepted branches is moved to where a chain would have left it
  commit   the runtime appends what was accepted, notices stops, publishes finished turns to the radix tree

Nothing here depends on the length of a conversation: rows are the delta's, the cache holds the rest.
"""

import time
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from . import ops
from .models import Decoder
from .models.decoder import Buffers, DecoderConfig
from .prefix_groups import COSTS, Spans, groups_that_pay
from .runtime import Runtime

if TYPE_CHECKING:
    from .device_step import DeviceLoop


class KVCache:
    """The block pool's memory: per layer k_cache and v_cache [num_blocks, block_size, num_kv_heads, head_dim].

    Stored head-major within a block, [layers, 2, num_blocks, num_kv_heads, block_size, head_dim], and handed out as
    permuted views: one head's tokens of a block are contiguous, which is how attention reads them.
    """

    def __init__(self, model: Decoder, num_blocks: int, block_size: int):
        c = model.config
        shape = (c.num_layers, 2, num_blocks, c.num_kv_heads, block_size, c.head_dim)
        self.storage = torch.empty(shape, device=model.device, dtype=model.dtype)
        self.keys = [layer[0].transpose(1, 2) for layer in self.storage]
        self.values = [layer[1].transpose(1, 2) for layer in self.storage]

    @staticmethod
    def bytes_per_block(model: Decoder, block_size: int) -> int:
        c = model.config
        return c.num_layers * 2 * c.num_kv_heads * block_size * c.head_dim * model.dtype.itemsize


class Batch:
    """One step's rows on the model's device (shapes: runtime.Runtime.buffers; `rows` = tokens fed to the model)."""

    token_ids: Tensor  # int32 [rows]
    positions: Tensor  # int64 [rows]
    slot_mapping: Tensor  # int64 [rows], negative = already in the cache
    cu_seqlens_q: Tensor  # int32 [batch + 1]
    seqused_k: Tensor  # int32 [batch]
    block_table: Tensor  # int32 [batch, max_blocks]
    max_seqlen_q: int
    logit_rows: Tensor  # int64 [logit rows] of those rows: the last ones of each sequence, which decide something
    cu_logit_rows: Tensor  # int32 [batch + 1]
    max_logit_rows: int
    tree_mask: Tensor | None = None  # int32 [rows, words], where some sequence's rows are a tree
    groups: tuple[Tensor, Tensor, int] | None = None  # as prefix_groups.groups_that_pay returns them

    def __init__(self, **fields):
        self.__dict__.update(fields)


class Attention:
    """A step's attention: what follows from the batch alone is made by the first layer that needs it."""

    def __init__(self, config: DecoderConfig, batch: Batch, num_splits: int, has_schedule: bool):
        self.batch, self.has_schedule = batch, has_schedule
        self.shapes = (config.num_heads, config.num_kv_heads, config.head_dim)
        self.options = {"softmax_scale": config.head_dim**-0.5, "num_splits": num_splits}
        self._schedules: dict[tuple[int, int], Tensor] = {}  # work lists, which most layers share
        self._spans: dict[int, Spans] = {}  # where sequences share leading blocks

    def __call__(
        self, window_left: int, query: Tensor, k_cache: Tensor, v_cache: Tensor, rows: tuple[Tensor, int], out: Tensor
    ) -> None:
        """rows: cu_seqlens_q and max_seqlen_q of the query."""
        cu_seqlens_q, max_seqlen_q = rows
        if self.batch.groups is not None and window_left < 0:
            spans = self._spans.get(len(query))
            if spans is None:
                spans = self._spans[len(query)] = self._spans_of(k_cache.size(1), cu_seqlens_q, max_seqlen_q)
                if self.has_schedule:
                    spans.make_schedules(*self.shapes, self.options["num_splits"])
            # Trees are among new tokens, none of which is in a shared block.
            spans.attend(query, k_cache, v_cache, out, tree_mask=self.batch.tree_mask, **self.options)
            return
        which = (len(query), window_left)
        if self.has_schedule and which not in self._schedules:
            self._schedules[which] = ops.schedule_delta_prefill(
                cu_seqlens_q, self.batch.seqused_k, *self.shapes, max_seqlen_q,
                num_splits=self.options["num_splits"], window_left=window_left,
            )  # fmt: skip
        ops.delta_prefill(
            query, k_cache, v_cache, cu_seqlens_q, self.batch.seqused_k, self.batch.block_table, max_seqlen_q,
            window_left=window_left, tree_mask=self.batch.tree_mask, schedule=self._schedules.get(which), out=out,
            **self.options,
        )  # fmt: skip

    def _spans_of(self, block_size: int, cu_seqlens_q: Tensor, max_seqlen_q: int) -> Spans:
        cu_groups, shared_blocks, most = self.batch.groups
        return Spans(
            cu_seqlens_q, self.batch.seqused_k, self.batch.block_table, max_seqlen_q, cu_groups, shared_blocks,
            block_size, most,
        )  # fmt: skip


def forward(
    model: Decoder, cache: KVCache, batch: Batch, num_splits: int = 0, has_schedule: bool | None = None
) -> Tensor:
    """Feeds the batch's rows through the layers; appends their KV in place.

    num_splits: as in ops.delta_prefill; -1 makes every row's bits independent of the batch it comes in. has_schedule:
    whether attention's work list is made once for all layers, which saves a launch a layer; None = on CUDA. Returns the
    hidden states past the final norm of the rows that decide something, [logit rows, hidden]: once the last layer's KV
    is written no other row is needed, and it is not computed, but in a step with trees, where it costs little: a mask
    of the last rows only would be another one.
    """
    c = model.config
    attend = Attention(c, batch, num_splits, model.device.type == "cuda" if has_schedule is None else has_schedule)
    rows = batch.cu_seqlens_q, batch.max_seqlen_q
    residual, b = model.embed(batch.token_ids)
    with ops.overlapping_launches():
        for layer, k_cache, v_cache in zip(model.layers, cache.keys, cache.values):
            layer.before_attention(b, residual)
            ops.rope_append_kv(
                k_cache, v_cache, b.query, b.key, b.value, batch.positions, model.cos_sin, batch.slot_mapping,
                q_norm_weight=layer.q_norm, k_norm_weight=layer.k_norm, norm_eps=layer.eps, query_out=b.query,
            )  # fmt: skip
            query = b.query
            is_narrow = layer is model.layers[-1] and len(batch.logit_rows) < len(residual) and batch.tree_mask is None
            if is_narrow:  # the last ones of each sequence
                query, residual = (t.index_select(0, batch.logit_rows) for t in (query, residual))
                rows = batch.cu_logit_rows, batch.max_logit_rows
                b = Buffers(c, len(residual), residual)
            attend(layer.window_left, query, k_cache, v_cache, rows, b.attention)
            layer.after_attention(b, residual)
    return b.normed if len(b.normed) == len(batch.logit_rows) else b.normed.index_select(0, batch.logit_rows)


class HostBuffers:
    """The arrays that a step's plan fills on the host, and their counterparts on the model's device.

    On the CPU they are the same memory. Elsewhere the runtime writes page-locked memory, and copies are contiguous on
    both sides: only such copies run beside the host, others go through pageable memory and wait for the device.
    """

    def __init__(self, runtime: Runtime, device: torch.device):
        self.device = device
        self._views: dict[tuple, tuple[Tensor, Tensor, Tensor]] = {}  # slicing costs more than looking up the slice
        self.host = self.on_device = {name: torch.from_numpy(array) for name, array in runtime.buffers.items()}
        if device.type != "cpu":
            self.host = {name: self._page_locked(t) for name, t in self.host.items()}
            runtime.bind({name: t.numpy() for name, t in self.host.items()})
            self.on_device = {name: self._allocated(t) for name, t in self.host.items()}
            self._staged = {n: self._page_locked(torch.empty_like(t)) for n, t in self.host.items() if t.dim() > 1}

    @staticmethod
    def _page_locked(t: Tensor) -> Tensor:
        return t.pin_memory()

    def _allocated(self, t: Tensor) -> Tensor:
        return torch.empty(t.shape, dtype=t.dtype, device=self.device)

    @property
    def is_shared(self) -> bool:
        return self.host is self.on_device

    def take(self, name: str, *size: int) -> Tensor:
        """The first rows (and columns) of a buffer, on the model's device."""
        views = self._views.get((name, *size))
        if views is None:
            if len(self._views) > 10000:
                self._views.clear()
            views = self._views[(name, *size)] = self._views_of(name, size)
        host, staged, device = views
        if device is host:
            return host
        if staged is not host:
            staged.copy_(host)
        return device.copy_(staged, non_blocking=True)

    def _views_of(self, name: str, size: tuple[int, ...]) -> tuple[Tensor, Tensor, Tensor]:
        """What the runtime filled, what is copied from (the same where it is contiguous), and where to."""
        host = self.host[name][tuple(map(slice, size))]
        if self.is_shared:
            return host, host, host
        packed = [t.view(-1)[: host.numel()].view(size) for t in (self._staged.get(name, host), self.on_device[name])]
        return host, host if host.is_contiguous() else packed[0], packed[1]

    def sent(self, values: list[int]) -> Tensor:
        """int32 values that are no buffer of the runtime, on the model's device."""
        t = torch.tensor(values, dtype=torch.int32)
        return t if self.is_shared else self._page_locked(t).to(self.device, non_blocking=True)

    def synchronize(self) -> None:
        """Waits until the device has read and written all of a step: the next plan overwrites what it reads."""
        if self.device.type == "cuda":
            torch.cuda.current_stream(self.device).synchronize()


class Loop:
    """Runs steps of a runtime's plan on a model. The runtime fills the step's buffers, the device reads them."""

    def __init__(self, model: Decoder, cache: KVCache, runtime: Runtime, num_splits: int = 0):
        self.model, self.cache, self.runtime, self.num_splits = model, cache, runtime, num_splits
        self.shares_spans = False  # whether prefixes that neighbours of a batch share are read once for all of them
        self.grouped_steps = 0
        self.is_timed = False  # whether the runtime is told how long steps take, to choose draft lengths by
        self.rows_fed = 0  # counted where rows enter the model
        self.steps = 0
        self.blocks_copied = 0
        self.tree_steps = 0
        self.device_loop: DeviceLoop | None = None  # takes the steps it can; see device_step.py
        self._buffers = HostBuffers(runtime, model.device)

    @property
    def planned(self) -> dict[str, np.ndarray]:
        """What the runtime's plans fill."""
        return {name: t.numpy() for name, t in self._buffers.host.items()}

    @torch.inference_mode()
    def step(self) -> list[tuple[int, list[int], str | None]] | None:
        """One step of every running request. Returns the runtime's events (request, new tokens, finish reason), or
        None when nothing is runnable. When the forward pass fails or is interrupted, nothing is committed."""
        if self.device_loop is not None and (events := self.device_loop.advance()) is not None:
            return events
        try:
            plan = self.runtime.plan()
            if plan is None:
                return None
            begin = time.perf_counter()
            self._run(plan)
            return self.runtime.commit(time.perf_counter() - begin if self.is_timed else 0.0)
        except BaseException:
            try:
                self._buffers.synchronize()
            finally:
                self.runtime.cancel_step()  # nothing happens if the step was committed or never planned
            raise

    def _run(self, plan) -> None:
        if plan.num_copies:
            ops.copy_blocks(
                self.cache.keys,
                self.cache.values,
                self._buffers.take("copy_src", plan.num_copies),
                self._buffers.take("copy_dst", plan.num_copies),
                self._buffers.take("copy_num_tokens", plan.num_copies),
            )
            self.blocks_copied += plan.num_copies
        batch = Batch(
            token_ids=self._buffers.take("token_ids", plan.num_tokens),
            positions=self._buffers.take("positions", plan.num_tokens),
            slot_mapping=self._buffers.take("slot_mapping", plan.num_tokens),
            cu_seqlens_q=self._buffers.take("cu_seqlens_q", plan.num_seqs + 1),
            seqused_k=self._buffers.take("seqused_k", plan.num_seqs),
            block_table=self._buffers.take("block_table", plan.num_seqs, max(1, plan.num_blocks_used_in_table)),
            max_seqlen_q=plan.max_seqlen_q,
            logit_rows=self._buffers.take("logit_rows", plan.num_logit_rows),
            cu_logit_rows=self._buffers.take("cu_rows", plan.num_seqs + 1),
            max_logit_rows=plan.max_rows_per_seq,
            groups=self._groups(plan) if self.shares_spans else None,
        )
        if plan.has_trees:
            batch.tree_mask = self._buffers.take("tree_mask", plan.num_tokens, -(-plan.max_seqlen_q // 32))
            self.tree_steps += 1
        self.grouped_steps += batch.groups is not None
        self.rows_fed += plan.num_tokens
        self.steps += 1
        normed = forward(self.model, self.cache, batch, self.num_splits)
        if plan.num_logit_rows:
            self._verify(plan, batch, normed)
        self._buffers.synchronize()
        if plan.has_trees:
            self._move(plan)

    def _move(self, plan) -> None:
        """KV of accepted branches goes where its position is. The host has read the rows walked; whatever reads the KV
        comes later in the stream."""
        num_moves = self.runtime.plan_moves()
        if num_moves:
            src, dst = (self._buffers.take(name, num_moves) for name in ("move_src", "move_dst"))
            cu_moves = self._buffers.take("cu_moves", plan.num_seqs + 1)
            ops.compact_kv(self.cache.keys, self.cache.values, src, dst, cu_moves)

    def _groups(self, plan) -> tuple[Tensor, Tensor, int] | None:
        """Neighbours of the batch whose shared prefix is worth a call of its own, on the model's device."""
        host, c = self._buffers.host, self.model.config
        new_tokens = host["cu_seqlens_q"][: plan.num_seqs + 1].numpy().astype("int64")
        new_tokens = new_tokens[1:] - new_tokens[:-1]
        found = groups_that_pay(
            host["block_table"][: plan.num_seqs].numpy(), new_tokens, host["seqused_k"][: plan.num_seqs].numpy(),
            self.cache.keys[0].size(1), (c.num_heads, c.num_kv_heads, c.head_dim), self.model.dtype.itemsize,
            COSTS[self.model.device.type],
        )  # fmt: skip
        if found is None:
            return None
        ends, shared, most = found
        return self._buffers.sent(ends), self._buffers.sent(shared), most

    def _verify(self, plan, batch: Batch, normed: Tensor) -> None:
        logits = self.model.logits(normed)
        sampling = {}
        if plan.any_sampled:
            names = ("temperature", "top_k", "top_p", "min_p", "seeds")
            sampling = {name: self._buffers.take(name, plan.num_seqs) for name in names}
            sampling["positions"] = self._buffers.take("sample_positions", plan.num_seqs)
        names = ("out_tokens", "out_num_tokens", "out_rows") if plan.has_trees else ("out_tokens", "out_num_tokens")
        outputs = [self._buffers.on_device[name][: plan.num_seqs] for name in names]
        ops.verify_drafts(
            logits,
            self._buffers.take("draft_tokens", plan.num_logit_rows),
            batch.cu_logit_rows,
            parents=self._buffers.take("parents", plan.num_logit_rows) if plan.has_trees else None,
            **sampling,
            tokens=outputs[0],
            num_tokens=outputs[1],
            rows=outputs[2] if plan.has_trees else None,
        )
        if not self._buffers.is_shared:
            for name, output in zip(names, outputs):
                self._buffers.host[name][: plan.num_seqs].copy_(output, non_blocking=True)


@torch.inference_mode()
def score(model: Decoder, tokens: list[int], block_size: int = 16, num_splits: int = 0) -> Tensor:
    """float32 logits [vocab] of what follows `tokens`, computed from nothing in a cache of its own: a reference."""
    n = len(tokens)
    num_blocks = -(-n // block_size)
    batch = Batch(
        token_ids=torch.tensor(tokens, dtype=torch.int32, device=model.device),
        positions=torch.arange(n, device=model.device),
        slot_mapping=torch.arange(n, device=model.device),
        cu_seqlens_q=torch.tensor([0, n], dtype=torch.int32, device=model.device),
        seqused_k=torch.tensor([n], dtype=torch.int32, device=model.device),
        block_table=torch.arange(num_blocks, dtype=torch.int32, device=model.device)[None],
        max_seqlen_q=n,
        logit_rows=torch.tensor([n - 1], device=model.device),
        cu_logit_rows=torch.tensor([0, 1], dtype=torch.int32, device=model.device),
        max_logit_rows=1,
    )
    normed = forward(model, KVCache(model, num_blocks, block_size), batch, num_splits)
    return model.logits(normed)[0].float()
