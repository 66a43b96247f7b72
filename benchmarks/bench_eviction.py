"""What an eviction policy keeps: the share of prompt tokens found in the cache, by order of turns and pool size.

64 agents with one 2,000-token prompt take 35 turns of 250 tokens each. Orders: "round" (each in turn), "jitter" (each
at its own pace, irregularly), "random", and "groups" (8 agents at a time until they are done). No model runs.

    python benchmarks/bench_eviction.py [--json FILE]
"""

import argparse
import pathlib

import numpy as np
from common import print_table, write_json

from stateful_kv.runtime import Runtime

AGENTS, TURNS, PROMPT, DELTA, VOCAB = 64, 35, 2000, 250, 30_000


def order_of(name, rng):
    if name == "round":
        return [agent for _ in range(TURNS) for agent in range(AGENTS)]
    if name == "random":
        return rng.permutation(np.repeat(np.arange(AGENTS), TURNS)).tolist()
    if name == "groups":
        return [agent for first in range(0, AGENTS, 8) for _ in range(TURNS) for agent in range(first, first + 8)]
    due, pace, order = rng.random(AGENTS) * AGENTS, 0.5 + rng.random(AGENTS), []
    for _ in range(TURNS * AGENTS):
        order.append(int(due.argmin()))
        due[order[-1]] += AGENTS * pace[order[-1]] * (0.7 + 0.6 * rng.random())
    return order


def reused_share(policy, order, pool_tokens, rng):
    runtime = Runtime(pool_tokens // 16, 16, max_batch_tokens=4096, max_seqs=1, num_drafts=0, policy=policy)
    prompt = rng.integers(0, VOCAB, PROMPT).astype(np.int32)
    sessions = [runtime.open() for _ in range(AGENTS)]
    runtime.buffers["out_tokens"][:] = 1
    reused = prompts = 0
    for agent in order:
        delta = rng.integers(0, VOCAB, DELTA).astype(np.int32)
        if runtime.length(sessions[agent]) == 0:
            delta = np.concatenate([prompt, delta])
        request = runtime.submit(sessions[agent], delta, 1)
        finished = False
        while not finished:
            runtime.plan()
            runtime.buffers["out_num_tokens"][0] = 1
            finished = bool(runtime.commit())
        stats = runtime.stats_of(request)
        reused, prompts = reused + stats["reused_tokens"], prompts + stats["prompt_tokens"]
    return reused / prompts


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=pathlib.Path)
    args = parser.parse_args()
    rows = []
    for name in ("round", "jitter", "random", "groups"):
        for pool_tokens in (150_000, 300_000, 500_000):
            row = {"order": name, "pool_tokens": pool_tokens}
            for policy in ("lru", "turns"):
                rng = np.random.default_rng(1)
                row[policy] = reused_share(policy, order_of(name, rng), pool_tokens, rng)
            rows.append(row)
    print_table(rows)
    if args.json:
        write_json(args.json, "eviction", {"rows": rows})


if __name__ == "__main__":
    main()
