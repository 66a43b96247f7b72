"""The runtime on a simulated device: the cost of a step and which drafts are right are given, tokens are made up."""

import numpy as np

from stateful_kv.runtime import Runtime

VOCAB = 3  # so small that every text repeats what it began with: drafts are always offered


class Simulation:
    """num_seqs conversations that decode: seconds(rows) a step, drafts of sequence i are right with acceptance(i)."""

    def __init__(self, num_seqs, num_drafts, seconds, acceptance, seed=0):
        self.rng = np.random.default_rng(seed)
        self.runtime = Runtime(
            num_blocks=num_seqs * 650,
            block_size=16,
            max_batch_tokens=4096,
            max_seqs=num_seqs,
            num_drafts=num_drafts,
            latest=False,
        )
        self.seconds, self.acceptance = seconds, acceptance
        self.sequence = {}
        for i in range(num_seqs):
            prompt = self.rng.integers(0, VOCAB, 50).astype(np.int32)
            self.sequence[self.runtime.submit(self.runtime.open(), prompt, max_tokens=10_000)] = i
        self.runtime_step(False)

    def runtime_step(self, measured):
        """One step; returns (seconds, tokens)."""
        step, b = self.runtime.plan(), self.runtime.buffers
        out, count, rows, drafts = b["out_tokens"], b["out_num_tokens"], b["cu_rows"], b["draft_tokens"]
        for i in range(step.num_seqs):
            fed = drafts[rows[i] + 1 : rows[i + 1]]
            right = self.rng.random(len(fed)) < self.acceptance(i)
            accepted = len(fed) if right.all() else int(right.argmin())
            out[i, :accepted] = fed[:accepted]
            other = int(self.rng.integers(0, VOCAB))
            if accepted < len(fed) and other == fed[accepted]:
                other = (other + 1) % VOCAB
            out[i, accepted] = other
            count[i] = accepted + 1
        seconds = self.seconds(step.num_tokens)
        events = self.runtime.commit(seconds if measured else 0.0)
        return seconds, sum(len(tokens) for _, tokens, _ in events)

    def tokens_per_second(self, steps, measured):
        total = [self.runtime_step(measured) for _ in range(steps)]
        return sum(tokens for _, tokens in total) / sum(seconds for seconds, _ in total)
