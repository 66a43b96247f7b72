"""Every logits row an engine computes, by the very tokens it follows, compared bit by bit.

A Tap keeps, beside an engine's cache, which token each slot holds, as the steps write and copy them; a logits row is
then filed under its whole prefix. Taps of one `Seen` must agree on every prefix that two of them come across: cold or
from the cache, fed at once or in chunks, as a draft that was rejected, in any batch.
"""

import numpy as np
import torch
from cases import same_bits


class Seen:
    """prefix -> logits of what follows it; how many rows were met again, and the prefixes that then differed."""

    def __init__(self):
        self.rows: dict[bytes, torch.Tensor] = {}
        self.compared = 0
        self.different: list[int] = []  # lengths of prefixes

    def file(self, prefix: bytes, logits: torch.Tensor) -> None:
        known = self.rows.setdefault(prefix, logits)
        if known is not logits:
            self.compared += 1
            if not same_bits(known, logits):
                self.different.append(len(prefix) // 4)


class Tap:
    def __init__(self, engine, seen: Seen):
        self.loop, self.seen, self.block_size = engine._loop, seen, engine.block_size
        self.token_in = np.full(self.loop.cache.storage.size(2) * self.block_size, -1, np.int32)
        self._run, self._logits = self.loop._run, engine.model.logits
        self.loop._run, engine.model.logits = self.run, self.logits

    def logits(self, normed):
        self.last = self._logits(normed)
        return self.last

    def run(self, plan):
        b, size = self.loop.runtime.buffers, self.block_size
        for i in range(plan.num_copies):
            src, dst, count = (int(b[name][i]) for name in ("copy_src", "copy_dst", "copy_num_tokens"))
            self.token_in[dst * size : dst * size + count] = self.token_in[src * size : src * size + count]
        fed, slots = b["token_ids"][: plan.num_tokens], b["slot_mapping"][: plan.num_tokens]
        self.token_in[slots[slots >= 0]] = fed[slots >= 0]
        rows = []  # (prefix, row of the logits)
        for s in range(plan.num_seqs):
            length, first, end = int(b["seqused_k"][s]), int(b["cu_rows"][s]), int(b["cu_rows"][s + 1])
            at = np.arange(length)
            prefix = self.token_in[b["block_table"][s][at // size] * size + at % size]
            assert (prefix >= 0).all()
            rows += [(prefix[: length - (end - 1 - row)].tobytes(), row) for row in range(first, end)]
        self._run(plan)
        for prefix, row in rows:
            self.seen.file(prefix, self.last[row].clone())
