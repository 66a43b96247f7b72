"""Host time of the C++ runtime alone for one turn, called from Python: submit + every plan + every commit.

A turn brings 300 tokens and draws 1 or 16; the forward pass is absent (its results are written between the clocks).
Text is Zipf-distributed with passages repeated from the history, so the draft index works as on real conversations; a
turn's tokens enter the index at its first decode step, so turns that draw one token leave them to a later one. Sessions
take turns round-robin. Up to 100k tokens every session has a history of its own; at 1M they are forks of one.

    python benchmarks/bench_runtime_turn.py [--turns 64] [--json FILE]
"""

import argparse
import pathlib
import statistics
import time

import numpy as np
from common import print_table, write_json

from stateful_kv.runtime import Runtime

DELTA = 300
VOCAB = 32_000


def text(rng, length, history=None):
    """`length` tokens, a third of them passages that the history already holds."""
    tokens = np.minimum(rng.zipf(1.2, length), VOCAB - 1).astype(np.int32)
    if history is not None and len(history) > 200:
        for start in range(0, length - 30, 90):
            source = int(rng.integers(0, len(history) - 40))
            tokens[start : start + 30] = history[source : source + 30]
    return tokens


class Bench:
    def __init__(self, rng, num_sessions, history, num_drafts):
        shared = history > 100_000
        tokens_needed = (history * (1 if shared else num_sessions)) + num_sessions * 100_000
        self.rng = rng
        self.runtime = Runtime(
            tokens_needed // 16, 16, max_blocks_per_seq=(history + 200_000) // 16, num_drafts=num_drafts
        )
        self.buffers = self.runtime.buffers
        first = self.ingest(history)
        self.sessions = [first]
        for _ in range(num_sessions - 1):
            self.sessions.append(self.runtime.fork(first) if shared else self.ingest(history))
        self.samples = [text(rng, 200, self.runtime.tokens(s)[-20_000:]) for s in self.sessions[:8]]

    def ingest(self, history):
        session = self.runtime.open()
        prompt = text(self.rng, history)
        for start in range(90, history - 30, 90):
            source = int(self.rng.integers(0, start))
            length = min(30, start - source)
            prompt[start : start + length] = prompt[source : source + length]
        self.turn(session, prompt, 2)
        return session

    def turn(self, session, delta, max_tokens):
        """Seconds spent in the runtime."""
        clock = time.perf_counter
        answers = self.rng.integers(0, VOCAB, max_tokens).astype(np.int32)
        out, num = self.buffers["out_tokens"], self.buffers["out_num_tokens"]
        begin = clock()
        self.runtime.submit(session, delta, max_tokens)
        spent = clock() - begin
        given = 0
        while given < max_tokens:
            begin = clock()
            step = self.runtime.plan()
            spent += clock() - begin
            out[: step.num_seqs, 0] = answers[given]
            num[: step.num_seqs] = 1
            begin = clock()
            events = self.runtime.commit()
            spent += clock() - begin
            given += len(events)
        return spent

    def measure(self, turns, max_tokens):
        """Microseconds per turn: median and 90th percentile, after one warm-up turn of every session."""
        times = []
        for i in range(len(self.sessions) + turns):
            session = self.sessions[i % len(self.sessions)]
            delta = text(self.rng, DELTA, self.runtime.tokens(session, max(0, self.runtime.length(session) - 5000)))
            times.append(self.turn(session, delta, max_tokens) * 1e6)
        times = sorted(times[len(self.sessions) :])
        return statistics.median(times), times[int(len(times) * 0.9)]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--turns", type=int, default=64)
    parser.add_argument("--histories", type=int, nargs="*", default=[1_000, 10_000, 100_000, 1_000_000])
    parser.add_argument("--sessions", type=int, nargs="*", default=[1, 64])
    parser.add_argument("--json", type=pathlib.Path)
    args = parser.parse_args()
    rows = []
    for num_sessions in args.sessions:
        for history in args.histories:
            row = {"sessions": num_sessions, "history_tokens": history}
            for name, num_drafts in (("", 8), ("_no_drafts", 0)):
                bench = Bench(np.random.default_rng(0), num_sessions, history, num_drafts)
                for answer in (1, 16):
                    row[f"answer_{answer}{name}_us"], row[f"answer_{answer}{name}_p90_us"] = bench.measure(
                        args.turns, answer
                    )
            rows.append(row)
    print(f"microseconds of host time per turn of {DELTA} tokens")
    print_table(rows)
    if args.json:
        write_json(args.json, "runtime_turn", {"delta_tokens": DELTA, "rows": rows})


if __name__ == "__main__":
    main()
