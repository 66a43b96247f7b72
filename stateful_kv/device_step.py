"""Steps that the device takes by itself: lookup, layout, forward pass, verification and commit, no host in between.

The batch's state lies on the device (BatchState). `device_step` advances it by one step and reads nothing back; on a
GPU it is one replay of a CUDA graph, on the CPU the same function runs as it is. The host (DeviceLoop) is one step
behind: while a step runs it takes over the results of the one before, lets requests join and leave, reserves blocks
ahead of need and launches the next. Whatever calls for more than that (a long delta, a full pool, drafts from other
conversations) waits until all results are at hand and is one step of generate.Loop.
"""

import collections
import time
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from . import ops
from .generate import Batch, KVCache, forward
from .models import Decoder
from .runtime import Runtime
from .sampling import PromptLookup

MAX_STOPS = 16  # stop tokens of a request that the device knows
RESULT_HEADER = 4  # numbers before the tokens in a row of results: ops.commit_step
FREE_ROW = 9  # `finished` of a row that is nobody's


class BatchState:
    """What the device knows of each of max_seqs conversations; shapes and meaning as in ops.plan_step."""

    def __init__(self, runtime: Runtime, device: torch.device, block_size: int, max_length: int, num_drafts: int):
        self.device, self.block_size = device, block_size
        seqs, max_blocks = runtime.buffers["block_table"].shape

        def int32(*shape: int) -> Tensor:
            return torch.zeros(shape, dtype=torch.int32, device=device)

        self.history = int32(seqs, max_length)
        self.progress = int32(3, seqs)  # what steps move on
        self.lengths, self.computed, self.finished = self.progress
        self.limits = int32(4, seqs)  # what the host sets
        self.draft_limits, self.max_lengths, self.num_slots, self.top_k = self.limits
        self.filters = torch.zeros(3, seqs, device=device)
        self.temperature, self.top_p, self.min_p = self.filters
        self.seeds = torch.zeros(seqs, dtype=torch.int64, device=device)
        self.stop_tokens = int32(seqs, MAX_STOPS)
        self.block_table = torch.full((seqs, max_blocks), -1, dtype=torch.int32, device=device)
        self.drafts, self.num_drafts = int32(seqs, num_drafts), int32(seqs)
        self.tokens, self.num_tokens = int32(seqs, 1 + num_drafts), int32(seqs)
        self.results = int32(RING, seqs, RESULT_HEADER + 1 + num_drafts)
        self.step = torch.zeros(1, dtype=torch.int64, device=device)
        self.reset()

    def reset(self) -> None:
        """Nobody's rows, no step taken."""
        self.requests = np.zeros(self.progress.size(1), np.int64)  # whose rows the device holds
        self._sent = np.full(self.limits.shape, -1, np.int32)
        self.progress[:2].zero_()
        self.finished.fill_(FREE_ROW)
        self.step.zero_()

    def update(self, runtime: Runtime, planned: dict[str, np.ndarray]) -> None:
        """Brings over what plan_ahead decided: requests that joined or left, blocks and limits. A session that comes
        back to the row it had finds there what it has said and its blocks, but for what changed since."""
        requests = planned["ahead_request"]
        joined = np.flatnonzero(planned["ahead_joins"])
        changed = self.requests != requests
        changed[joined] = True
        if changed.any():
            is_there = requests != 0
            rows = [changed, planned["ahead_length"] * is_there, planned["ahead_computed"] * is_there]
            new = self._send(np.stack([*rows, np.where(is_there, 0, FREE_ROW)]).astype(np.int32))
            self.progress.copy_(torch.where(new[0] != 0, new[1:], self.progress))
        if len(joined):
            self._join(runtime, planned, joined)
        names = ("ahead_drafts", "ahead_max_length", "ahead_slots", "top_k")
        limits = np.stack([planned[name] for name in names])
        if not np.array_equal(limits, self._sent):
            self.limits.copy_(self._send(limits), non_blocking=True)
            self._sent = limits
        self._send_blocks(planned)
        self.requests = requests.copy()

    def _join(self, runtime: Runtime, planned: dict[str, np.ndarray], joined: np.ndarray) -> None:
        for row in joined.tolist():
            request, start = int(planned["ahead_request"][row]), int(planned["ahead_history"][row])
            tokens = runtime.known_tokens(request, start)
            self.history[row, start : start + len(tokens)].copy_(self._send(tokens), non_blocking=True)
            stops = np.full(MAX_STOPS, -1, np.int32)
            known = runtime.stop_tokens(request)
            stops[: len(known)] = known
            self.stop_tokens[row].copy_(self._send(stops), non_blocking=True)
        filters = np.stack([planned[name] for name in ("temperature", "top_p", "min_p")])
        self.filters.copy_(self._send(filters), non_blocking=True)
        self.seeds.copy_(self._send(planned["seeds"].copy()), non_blocking=True)

    def _send_blocks(self, planned: dict[str, np.ndarray]) -> None:
        begins, ends = planned["table_begin"], planned["table_end"]
        rows = np.flatnonzero((begins < ends) & (planned["ahead_request"] != 0))
        if not len(rows):
            return
        width, table = self.block_table.size(1), planned["block_table"]
        places = np.concatenate([row * width + np.arange(begins[row], ends[row]) for row in rows.tolist()])
        new = self._send(np.stack([places, table.reshape(-1)[places]]).astype(np.int64))
        self.block_table.view(-1).scatter_(0, new[0], new[1].int())

    def _send(self, array: np.ndarray) -> Tensor:
        """On the device, without waiting for it. The array is not written again."""
        host = torch.from_numpy(array)
        return host.pin_memory().to(self.device, non_blocking=True) if self.device.type == "cuda" else host


class StepShape(NamedTuple):
    """What a graph is captured for."""

    max_tokens: int  # rows, padding included
    max_logit_rows: int  # equal: every row has logits
    max_rows: int  # of one sequence
    is_sampled: bool


class StepRows:
    """The rows of one step, which plan_step lays out anew each time; in the memory that a graph knows."""

    def __init__(self, shape: StepShape, seqs: int, device: torch.device):
        def zeros(size: int, dtype: torch.dtype = torch.int32) -> Tensor:
            return torch.zeros(size, dtype=dtype, device=device)

        self.shape = shape
        self.graph: torch.cuda.CUDAGraph | None = None
        self.token_ids = zeros(shape.max_tokens)
        self.positions = zeros(shape.max_tokens, torch.int64)
        self.slot_mapping = zeros(shape.max_tokens, torch.int64)
        self.cu_seqlens_q, self.seqused_k = zeros(seqs + 1), zeros(seqs)
        self.logit_rows = zeros(shape.max_logit_rows, torch.int64)
        self.draft_tokens = zeros(shape.max_logit_rows)
        self.cu_rows = zeros(seqs + 1)
        self.sample_positions = zeros(seqs, torch.int64)


def device_step(
    model: Decoder, cache: KVCache, state: BatchState, rows: StepRows, lookup: PromptLookup, num_splits: int = 0
) -> None:
    """One step of every conversation in `state`, in place. Nothing is read back and nothing waits: all that depends on
    what the device holds is decided there."""
    s, shape = state, rows.shape
    if s.drafts.size(1):
        ops.propose_drafts(
            s.history, s.lengths, lookup.max_ngram, lookup.min_ngram, lookup.latest, s.num_drafts, s.drafts
        )
    ops.plan_step(
        s.history, s.lengths, s.computed, s.finished, s.drafts, s.num_drafts, s.draft_limits, s.max_lengths,
        s.num_slots, s.block_table, s.block_size, shape.max_rows, rows.token_ids, rows.positions, rows.slot_mapping,
        rows.cu_seqlens_q, rows.seqused_k, rows.logit_rows, rows.draft_tokens, rows.cu_rows, rows.sample_positions,
    )  # fmt: skip
    batch = Batch(
        token_ids=rows.token_ids,
        positions=rows.positions,
        slot_mapping=rows.slot_mapping,
        cu_seqlens_q=rows.cu_seqlens_q,
        seqused_k=rows.seqused_k,
        block_table=s.block_table,
        max_seqlen_q=shape.max_rows,
        logit_rows=rows.logit_rows,
        cu_logit_rows=rows.cu_rows,
        max_logit_rows=min(shape.max_rows, s.tokens.size(1)),
    )
    logits = model.logits(forward(model, cache, batch, num_splits))
    sampling = {}
    if shape.is_sampled:
        sampling = {name: getattr(s, name) for name in ("temperature", "top_k", "top_p", "min_p", "seeds")}
        sampling["positions"] = rows.sample_positions
    ops.verify_drafts(logits, rows.draft_tokens, rows.cu_rows, **sampling, tokens=s.tokens, num_tokens=s.num_tokens)
    ops.commit_step(
        s.history, s.lengths, s.computed, s.finished, s.results, s.step, s.tokens, s.num_tokens, rows.cu_seqlens_q,
        rows.cu_rows, s.max_lengths, s.stop_tokens,
    )  # fmt: skip


LAG = 1  # steps that the host is behind
RING = LAG + 1  # steps whose results are kept: under way, and being read


class Launched(NamedTuple):
    """A step under way."""

    requests: np.ndarray  # of its rows
    entry: int  # of the ring
    seconds: float  # that it took, where it is done already; 0: not measured
    began: torch.cuda.Event | None  # of a step to be timed on a GPU
    is_done: torch.cuda.Event | None  # and its results copied; None: already

    def took(self) -> float:
        """Seconds of the step alone, once it is done; what the host did meanwhile (a caller's pause) is not in it."""
        return self.seconds if self.began is None else self.began.elapsed_time(self.is_done) / 1e3


class DeviceLoop:
    """Launches steps of the device and takes their results over, one step behind.

    planned: the runtime's buffers. max_chunk: tokens of a delta that may join as rows of a step; longer ones are left
    to generate.Loop. is_timed: whether the runtime is told how long steps take, to choose draft lengths by.
    """

    def __init__(
        self,
        model: Decoder,
        cache: KVCache,
        runtime: Runtime,
        planned: dict[str, np.ndarray],
        lookup: PromptLookup,
        num_drafts: int,
        max_length: int,
        block_size: int,
        num_splits: int = 0,
        max_chunk: int = 32,
        is_timed: bool = False,
    ):
        self.model, self.cache, self.runtime, self.lookup = model, cache, runtime, lookup
        self.num_splits, self.num_drafts = num_splits, num_drafts
        self.max_chunk = max(max_chunk, 1 + num_drafts)
        self.is_timed = is_timed
        self.rows_fed = self.steps = self.blocks_copied = 0
        self.planned = planned  # the runtime's buffers
        self.state = BatchState(runtime, model.device, block_size, max_length, num_drafts)
        self.results = torch.zeros_like(self.state.results, device="cpu")
        if model.device.type == "cuda":
            self.results = self.results.pin_memory()
        self._launched: collections.deque[Launched] = collections.deque()
        self._rows: dict[StepShape, StepRows] = {}
        self._graph_pool = None
        self._entry = 0  # of the next step in the ring

    def advance(self) -> list[tuple[int, list[int], str | None]] | None:
        """Launches a step and returns the events of the one before; None: this step is for generate.Loop.

        After an error the device's state is given up: the runtime's is that of the results taken so far.
        """
        try:
            info = self.runtime.plan_ahead(self.max_chunk, MAX_STOPS)
            if info is None:
                return self._take_all() if self._launched else None
            if info.num_rows == 0:
                return self._take()
            self._launch(info)
            return self._take() if len(self._launched) > LAG else []
        except BaseException:
            self.reset()
            raise

    def reset(self) -> None:
        """Forgets steps under way: whatever they did lies behind what the runtime counts as computed."""
        self._launched.clear()
        self._entry = 0
        self.runtime.forget_ahead()
        self.state.reset()

    def _launch(self, info) -> None:
        if info.num_copies:
            names = ("copy_src", "copy_dst", "copy_num_tokens")
            copies = [self.state._send(self.planned[name][: info.num_copies].copy()) for name in names]
            ops.copy_blocks(self.cache.keys, self.cache.values, *copies)
            self.blocks_copied += info.num_copies
        self.state.update(self.runtime, self.planned)
        rows, is_on_gpu = self._rows_for(self.shape_of(info)), self.model.device.type == "cuda"
        began = is_done = None
        if is_on_gpu and self.is_timed and rows.graph is not None:  # capturing is not what steps take
            began = torch.cuda.Event(enable_timing=True)
            began.record()
        begin = time.perf_counter()
        self._run(rows)
        entry = self._entry
        self._entry = (entry + 1) % RING
        self.results[entry].copy_(self.state.results[entry], non_blocking=True)
        if is_on_gpu:
            is_done = torch.cuda.Event(enable_timing=began is not None)
            is_done.record()
        self.steps += 1
        seconds = 0.0 if is_on_gpu else time.perf_counter() - begin
        self._launched.append(Launched(self.state.requests, entry, seconds, began, is_done))

    def shape_of(self, info) -> StepShape:
        """The smallest captured shape that holds the step."""
        max_tokens = padded(info.num_rows)
        if info.num_logit_rows == info.num_rows:
            return StepShape(max_tokens, max_tokens, 1 + self.num_drafts, info.any_sampled)
        return StepShape(max_tokens, min(padded(info.num_logit_rows), max_tokens - 1), self.max_chunk, info.any_sampled)

    def _rows_for(self, shape: StepShape) -> StepRows:
        rows = self._rows.get(shape)
        if rows is None:
            rows = self._rows[shape] = StepRows(shape, self.state.lengths.size(0), self.model.device)
        return rows

    def _run(self, rows: StepRows) -> None:
        """The step, replayed where it has been captured. Its first run, which is not, loads what it needs."""
        arguments = (self.model, self.cache, self.state, rows, self.lookup, self.num_splits)
        if rows.graph is not None:
            rows.graph.replay()
            return
        device_step(*arguments)
        if self.model.device.type == "cuda":
            self._graph_pool = self._graph_pool or torch.cuda.graph_pool_handle()
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, pool=self._graph_pool):
                device_step(*arguments)
            rows.graph = graph

    def _take(self) -> list[tuple[int, list[int], str | None]]:
        """The events of the oldest step under way, once it is done."""
        step = self._launched[0]
        if step.is_done is not None:
            step.is_done.synchronize()
        results = self.results[step.entry].numpy()
        events = self.runtime.commit_ahead(step.requests, results, step.took() if self.is_timed else 0.0)
        self.rows_fed += int(results[:, 0].sum())
        self._launched.popleft()
        return events

    def _take_all(self) -> list[tuple[int, list[int], str | None]]:
        events = []
        while self._launched:
            events += self._take()
        return events


def padded(rows: int) -> int:
    """Sizes that steps are captured for: powers of two up to 8, then four to each doubling."""
    step = 1 << max(0, (rows - 1).bit_length() - 3)
    return -(-rows // step) * step if rows > 8 else 1 << (rows - 1).bit_length()
