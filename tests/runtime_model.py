"""A fake device and a fake model for tests of the runtime.

The device is one array of KV slots. What a step writes into a slot is the token and a hash of the whole prefix up to
it, so KV that belongs to any other prefix, was overwritten, never copied or never written is noticed at the next step
that reads it. The model draws a token from the prefix hash, so every answer can be recomputed from tokens alone.
"""

import numpy as np

MASK = (1 << 64) - 1
VOCAB = 7


def chain(prefix_hash, token):
    """Hash of a prefix with one more token."""
    return ((prefix_hash ^ (int(token) + 1)) * 0x9E3779B97F4A7C15 + 0xD1B54A32D192ED03) & MASK


def draw(prefix_hash, last, before_last):
    """The model: mostly a function of the last two tokens, so drafts hit; sometimes of everything before."""
    if (prefix_hash >> 33) % 4 == 0:
        return (prefix_hash >> 40) % VOCAB
    return (3 * int(last) + 5 * int(before_last) + 1) % VOCAB


def answer(prompt, max_tokens, stop_token_ids=()):
    """What the model says after `prompt`, and why it ends."""
    tokens = [int(t) for t in prompt]
    prefix_hash = 0
    for token in tokens:
        prefix_hash = chain(prefix_hash, token)
    out = []
    while True:
        token = draw(prefix_hash, tokens[-1], tokens[-2] if len(tokens) > 1 else 0)
        out.append(token)
        tokens.append(token)
        prefix_hash = chain(prefix_hash, token)
        if token in stop_token_ids:
            return out, "stop"
        if len(out) == max_tokens:
            return out, "length"


class FakeDevice:
    """Executes planned steps of one runtime; `fed` counts rows, `copies` executed block copies, `trees` steps
    with trees, `moved` rows moved after them."""

    def __init__(self, runtime, num_blocks, block_size):
        self.runtime = runtime
        self.buffers = runtime.buffers
        self.block_size = block_size
        self.tokens = np.full(num_blocks * block_size, -7, np.int64)
        self.hashes = np.zeros(num_blocks * block_size, np.uint64)
        self.fed = 0
        self.copies = 0
        self.trees = 0  # steps with some
        self.moved = 0

    def run(self, info):
        """One forward pass with verification: reads the step's buffers, leaves out_tokens and out_num_tokens, and of a
        step with trees out_rows."""
        self.check_shape(info)
        self.copy_blocks(info)
        self.parents = self.parents_of(info)
        written = self.append(info)
        assert len(set(written)) == len(written), "two rows write the same slot"
        for row in range(info.num_seqs):
            self.verify(row)
        self.fed += info.num_tokens

    def parents_of(self, info):
        """Of every row the index within its sequence of the one before it, from the masks, which must agree with what
        verification is told: rows see their ancestors and themselves."""
        b, parents = self.buffers, []
        for row in range(info.num_seqs):
            begin, end = b["cu_seqlens_q"][row], b["cu_seqlens_q"][row + 1]
            if not info.has_trees:
                parents += range(-1, end - begin - 1)
                continue
            assert info.max_seqlen_q <= 64
            masks = [
                sum(int(np.uint32(w)) << (32 * k) for k, w in enumerate(words)) for words in b["tree_mask"][begin:end]
            ]
            for i, mask in enumerate(masks):
                parent = (mask ^ (1 << i)).bit_length() - 1
                assert mask == (1 << i) | (masks[parent] if parent >= 0 else 0)
                assert (parent < 0) == (i == 0) and parent < i
                parents.append(parent)
            first, last = b["cu_rows"][row], b["cu_rows"][row + 1]
            told = b["parents"][first:last].tolist()
            if last - first <= 1:  # none: a part of a delta
                assert told == [-1] * (last - first)
            else:
                assert told == parents[begin:end]
        return parents

    def move(self, num_moves):
        """Of a step with trees: KV of accepted rows goes where its position is."""
        b = self.buffers
        assert b["cu_moves"][-1] == num_moves and (np.diff(b["cu_moves"]) >= 0).all()
        for src, dst in zip(b["move_src"][:num_moves].tolist(), b["move_dst"][:num_moves].tolist()):
            self.tokens[dst], self.hashes[dst] = self.tokens[src], self.hashes[src]
        self.moved += num_moves

    def commit(self, info, *seconds):
        """What follows run()."""
        if info.has_trees:
            self.move(self.runtime.plan_moves())
            self.trees += 1
        return self.runtime.commit(*seconds)

    def check_shape(self, info):
        b = self.buffers
        max_seqs = len(b["seqused_k"])
        lengths = np.diff(b["cu_seqlens_q"])
        assert (lengths >= 0).all() and b["cu_seqlens_q"][max_seqs] == info.num_tokens
        assert lengths.max() == info.max_seqlen_q and (lengths[info.num_seqs :] == 0).all()
        rows = np.diff(b["cu_rows"])
        assert (rows >= 0).all() and rows.max(initial=0) == info.max_rows_per_seq
        assert b["cu_rows"][max_seqs] == info.num_logit_rows <= len(b["logit_rows"])
        assert (b["seqused_k"][lengths == 0] == 0).all()
        assert info.max_seqlen_k == b["seqused_k"].max()
        assert (b["slot_mapping"][info.num_tokens :] == -1).all()
        assert (b["copy_src"][info.num_copies :] == -1).all() and (b["copy_dst"][info.num_copies :] == -1).all()

    def copy_blocks(self, info):
        b, size = self.buffers, self.block_size
        sources, targets = b["copy_src"][: info.num_copies], b["copy_dst"][: info.num_copies]
        assert len(set(targets)) == len(targets) and not set(targets) & set(sources)
        for src, dst, n in zip(sources, targets, b["copy_num_tokens"]):
            assert 0 < n < size
            self.tokens[dst * size : (dst + 1) * size] = -7  # only the filled tokens are there afterwards
            self.tokens[dst * size : dst * size + n] = self.tokens[src * size : src * size + n]
            self.hashes[dst * size : dst * size + n] = self.hashes[src * size : src * size + n]
            self.copies += 1

    def slot(self, row, position):
        block = self.buffers["block_table"][row, position // self.block_size]
        return block * self.block_size + position % self.block_size

    def prefix_hash(self, row, length):
        """Walks the cached prefix of a row and insists that every slot holds exactly that prefix."""
        prefix_hash = 0
        for position in range(length):
            slot = self.slot(row, position)
            prefix_hash = chain(prefix_hash, self.tokens[slot])
            assert self.hashes[slot] == prefix_hash, f"row {row}: position {position} holds another prefix's KV"
        return prefix_hash

    def append(self, info):
        b = self.buffers
        written = []
        for row in range(info.num_seqs):
            begin, end = b["cu_seqlens_q"][row], b["cu_seqlens_q"][row + 1]
            start = b["seqused_k"][row] - (end - begin)
            before = self.prefix_hash(row, start)
            hashes, positions = [], []
            for i in range(begin, end):
                parent = self.parents[i]
                positions.append(start if parent < 0 else positions[parent] + 1)
                slot = self.slot(row, start + i - begin)
                prefix_hash = chain(before if parent < 0 else hashes[parent], b["token_ids"][i])
                hashes.append(prefix_hash)
                assert b["positions"][i] == positions[-1]
                if b["slot_mapping"][i] < 0:
                    assert self.tokens[slot] == b["token_ids"][i] and self.hashes[slot] == prefix_hash
                    continue
                assert b["slot_mapping"][i] == slot
                self.tokens[slot], self.hashes[slot] = b["token_ids"][i], prefix_hash
                written.append(slot)
        return written

    def verify(self, row):
        b = self.buffers
        first, last = b["cu_rows"][row], b["cu_rows"][row + 1]
        out, walked, begin = [], [], b["cu_seqlens_q"][row]
        row_of_first = b["logit_rows"][first] - begin if first < last else 0
        i = first
        while i is not None and i < last:
            token_row = b["logit_rows"][i]
            position = int(b["positions"][token_row])
            assert b["draft_tokens"][i] == b["token_ids"][token_row]
            if i == first:
                assert b["sample_positions"][row] == position + 1
            slot = self.slot(row, int(b["seqused_k"][row]) - (b["cu_seqlens_q"][row + 1] - token_row))
            parent = self.parents[token_row]
            before_last = 0
            if position > 0:
                before_last = (
                    self.tokens[self.slot(row, position - 1)] if parent < 0 else b["token_ids"][begin + parent]
                )
            out.append(draw(int(self.hashes[slot]), self.tokens[slot], before_last))
            walked.append(i - first)
            children = (j for j in range(i + 1, last) if self.parents[b["logit_rows"][j]] == walked[-1] + row_of_first)
            i = next((j for j in children if b["draft_tokens"][j] == out[-1]), None)
        b["out_tokens"][row, : len(out)] = out
        b["out_rows"][row, : len(out)] = walked
        b["out_num_tokens"][row] = len(out)

    def step(self):
        """Plans, runs and commits one step; the events, or None when there is nothing to run."""
        info = self.runtime.plan()
        if info is None:
            return None
        self.run(info)
        return self.commit(info)

    def generate(self, session, delta, max_tokens, **params):
        """One whole turn: tokens, finish reason, statistics."""
        request_id = self.runtime.submit(session, np.asarray(delta, np.int32), max_tokens, **params)
        tokens, reason = [], None
        while reason is None:
            for event_id, new, why in self.step():
                assert event_id == request_id
                tokens += new
                reason = why
        return tokens, reason, self.runtime.stats_of(request_id)
