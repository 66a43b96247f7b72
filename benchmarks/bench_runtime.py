"""The C++ runtime's parts from Python: match, insert and evict in the radix tree, turns of sessions, draft proposal.

Microseconds of thread time, medians: processor time, so other programs lengthen them little. "one node" holds a prefix
that came at once, "chain" one that grew by 306 tokens at a time, as conversations do. memcmp compares the same tokens
and is what a match cannot beat. A turn is submit, plan and commit around 300 new tokens and one drawn; with more than
100k tokens, or more than 64 sessions and more than 1k, sessions are forks of one. Drafts: an index that grows with the
text beside propose_drafts, which reads the whole history each time, and transformers' prompt lookup. Peers: the prefix
caches of SGLang and vLLM (peers/prefix_cache.py) in the same run, each in the Python that has it.

    python benchmarks/bench_runtime.py [--quick] [--peers sglang=PYTHON vllm=PYTHON] [--json FILE]
"""

import argparse
import functools
import json
import pathlib
import statistics
import subprocess
import time

import numpy as np
import torch
from common import print_table, write_json

from stateful_kv import ops
from stateful_kv.runtime import DraftIndex, RadixTree, Runtime

BLOCK, STEP, DELTA, VOCAB = 16, 306, 300, 32_000
PREFIX_CACHE = pathlib.Path(__file__).with_name("peers") / "prefix_cache.py"


def thread_us(call, repeat: int, prepare=lambda: ()) -> float:
    """Median microseconds of call(*prepare()); what prepare does is not counted."""
    times = []
    for _ in range(repeat):
        given = prepare()
        begin = time.thread_time_ns()
        call(*given)
        times.append((time.thread_time_ns() - begin) / 1e3)
    return statistics.median(times)


def tokens(rng, length: int) -> np.ndarray:
    return rng.integers(0, VOCAB, length).astype(np.int32)


def grown(rng, length: int, step: int) -> tuple[RadixTree, np.ndarray]:
    """A tree that holds one prefix, inserted `step` tokens at a time."""
    tree, prefix = RadixTree(4 * (length // BLOCK + 64) + 100 * (DELTA // BLOCK + 2), BLOCK), tokens(rng, length)
    for end in range(step, length, step):
        tree.insert(prefix[:end])
    tree.insert(prefix)
    return tree, prefix


def tree_rows(rng, lengths: list[int], repeat: int) -> list[dict]:
    rows = []
    for length in lengths:
        for shape, step in (("one node", length), ("chain", STEP)):
            tree, prefix = grown(rng, length, step)
            same = prefix.copy().tobytes()
            raw = prefix.tobytes()
            row = {"tokens": length, "shape": shape, "nodes": tree.num_nodes}
            row["match us"] = thread_us(tree.match, repeat, lambda p=prefix: (p,))
            row["length alone us"] = thread_us(tree.match_length, repeat, lambda p=prefix: (p,))
            row["memcmp us"] = thread_us(lambda a=raw, b=same: a == b, repeat)
            longer = lambda p=prefix: (np.concatenate([p, tokens(rng, DELTA)]),)  # noqa: E731
            row["insert 300 us"] = thread_us(tree.insert, min(repeat, 50), longer)
            row["evict us a block"] = thread_us(tree.evict, 10, lambda: (50,)) / 50
            rows.append(row)
    return rows


class Turns:
    """Sessions in a runtime without a model: what a turn costs on the host."""

    def __init__(self, rng, sessions: int, history: int):
        self.rng = rng
        shared = history > 100_000 or (sessions > 64 and history > 1000)
        room = history * (1 if shared else sessions) + sessions * 8 * (DELTA + 2 * BLOCK) + 200_000
        self.runtime = Runtime(
            room // BLOCK, BLOCK, max_batch_tokens=4096, max_blocks_per_seq=(history + 100_000) // BLOCK, num_drafts=0
        )
        first = self._ingest(history)
        rest = range(sessions - 1)
        self.sessions = [first, *(self.runtime.fork(first) if shared else self._ingest(history) for _ in rest)]

    def _ingest(self, history: int) -> int:
        session = self.runtime.open()
        self.turn(session, tokens(self.rng, history))
        return session

    def turn(self, session: int, delta: np.ndarray) -> float:
        """Microseconds of this thread in the runtime; the forward pass between plan and commit is absent."""
        num = self.runtime.buffers["out_num_tokens"]
        begin = time.thread_time_ns()
        self.runtime.submit(session, delta, 1)
        spent, finished = time.thread_time_ns() - begin, False
        while not finished:
            begin = time.thread_time_ns()
            step = self.runtime.plan()
            spent += time.thread_time_ns() - begin
            num[: step.num_seqs] = 1
            begin = time.thread_time_ns()
            finished = bool(self.runtime.commit())
            spent += time.thread_time_ns() - begin
        return spent / 1e3

    def measure(self, turns: int) -> tuple[float, float]:
        order = [self.sessions[i % len(self.sessions)] for i in range(turns + 8)]
        times = sorted([self.turn(session, tokens(self.rng, DELTA)) for session in order][8:])
        return statistics.median(times), times[int(len(times) * 0.9)]


def turn_rows(rng, sessions: list[int], histories: list[int], turns: int) -> list[dict]:
    rows = []
    for count in sessions:
        for history in histories:
            median, p90 = Turns(rng, count, history).measure(turns)
            rows.append({"sessions": count, "history": history, "turn us": median, "p90 us": p90})
    return rows


def text(rng, length: int) -> np.ndarray:
    """Tokens of which a third are passages seen before."""
    out = np.minimum(rng.zipf(1.2, length), VOCAB - 1).astype(np.int32)
    for start in range(120, length - 30, 90):
        source = int(rng.integers(0, start - 40))
        out[start : start + 30] = out[source : source + 30]
    return out


def draft_rows(rng, lengths: list[int], repeat: int) -> list[dict]:
    from transformers.generation.candidate_generator import PromptLookupCandidateGenerator

    lookup = PromptLookupCandidateGenerator(num_output_tokens=8, max_matching_ngram_size=4, max_length=1 << 30)
    rows = []
    for length in lengths:
        history = text(rng, length)
        index = DraftIndex(4, 1)
        begin = time.thread_time_ns()
        index.extend(history)
        row = {"history": length, "index us a token": (time.thread_time_ns() - begin) / 1e3 / length}
        piece = history[-8:]
        row["append 8 us"] = thread_us(index.extend, repeat, lambda p=piece: (p,))
        row["propose us"] = thread_us(index.propose, repeat, lambda: (8,))
        held = torch.from_numpy(history)[None]
        lens, drafts, num = (torch.full((1,), length, dtype=torch.int32), *ops_out())
        given = (held, lens, 4)
        outputs = dict(drafts=drafts, num_drafts=num)
        row["propose_drafts us"] = thread_us(functools.partial(ops.propose_drafts, *given, **outputs), min(repeat, 50))
        row["transformers us"] = thread_us(lookup.get_candidates, min(repeat, 20), lambda h=held: (h.long(),))
        rows.append(row)
    return rows


def ops_out() -> tuple[torch.Tensor, torch.Tensor]:
    return torch.empty(1, 8, dtype=torch.int32), torch.empty(1, dtype=torch.int32)


def peer_rows(pythons: dict[str, str], lengths: list[int], repeat: int) -> tuple[list[dict], dict[str, str]]:
    """Rows of the engines that are there, and why others are not."""
    rows, skipped = [], {}
    for engine, python in pythons.items():
        command = [python, str(PREFIX_CACHE), engine, *map(str, lengths), "--repeat", str(repeat)]
        try:
            done = subprocess.run(command, capture_output=True, text=True)
        except OSError as error:
            skipped[engine] = str(error)
            continue
        if done.returncode:
            skipped[engine] = (done.stderr.strip().splitlines() or ["it ended without a word"])[-1]
            continue
        found = json.loads(done.stdout.splitlines()[-1])
        rows += [{**row, "engine": f"{row['engine']} {found['version']}"} for row in found["rows"]]
        skipped |= found["skipped"]
    for name, reason in skipped.items():
        print(f"SKIPPED: {name}: {reason}")
    return rows, skipped


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="short histories, few repetitions: seconds")
    parser.add_argument("--peers", nargs="*", default=[], metavar="ENGINE=PYTHON", help="of sglang, vllm")
    parser.add_argument("--json", type=pathlib.Path)
    args = parser.parse_args()
    torch.set_num_threads(1)  # thread time is that of the calling thread
    rng = np.random.default_rng(0)
    lengths = [1000, 5000] if args.quick else [10_000, 100_000]
    histories = [1000, 5000] if args.quick else [1000, 10_000, 100_000, 1_000_000]
    repeat = 20 if args.quick else 200
    tables = {
        "tree": tree_rows(rng, lengths, repeat),
        "turns": turn_rows(rng, [1, 8] if args.quick else [1, 64, 1000], histories, repeat),
        "drafts": draft_rows(rng, lengths, repeat),
    }
    pythons = dict(item.split("=", 1) for item in args.peers)
    tables["peers"], skipped = peer_rows(pythons, lengths, min(repeat, 50))
    for name, rows in tables.items():
        if rows:
            print(f"\n{name}")
            print_table(rows)
    if args.json:
        settings = {"block_size": BLOCK, "delta_tokens": DELTA, "skipped": skipped}
        write_json(args.json, "bench_runtime", settings | tables)


if __name__ == "__main__":
    main()
