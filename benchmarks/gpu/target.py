"""Where the kernels of gpu_check run: a GPU, or the emulator of tests/simt for a dry run.

Times on a GPU: every contestant gets as many sets of buffers as exceed the L2 cache three times, one call on each is
captured into a CUDA graph, and the median over replays is divided by the number of calls; so each call finds a cold
cache. On the emulator the wall clock stands in, and no figure means anything.
"""

import os
import pathlib
import statistics
import sys
import time
from collections.abc import Callable

import torch

ROOT = pathlib.Path(__file__).resolve().parents[2]
MAX_SETS = 64


class Target:
    def __init__(self, emulated: bool):
        self.emulated = emulated
        self.device = "cpu" if emulated else "cuda"
        if emulated:
            torch.ops.load_library(os.environ["STATEFUL_KV_SIMT_LIBRARY"])
            self.ops = torch.ops.stateful_kv_simt
        else:
            import stateful_kv  # noqa: F401  loads the ops

            self.ops = torch.ops.stateful_kv
            self.cache_bytes = torch.cuda.get_device_properties(0).L2_cache_size
            self.memory = torch.cuda.mem_get_info()[1]

    def num_sets(self, num_bytes: int) -> int:
        """Sets of buffers of num_bytes each that together are three times the L2 cache, as far as memory allows."""
        if self.emulated:
            return 1
        num_bytes = max(num_bytes, 1)
        return max(1, min(MAX_SETS, -(-3 * self.cache_bytes // num_bytes), self.memory // 2 // num_bytes))

    def fits(self, num_bytes: int) -> bool:
        return self.emulated or num_bytes < 0.75 * self.memory

    def seconds(self, calls: list[Callable[[], object]], budget_s: float = 0.08) -> float:
        """Median seconds of one call; the calls do the same on buffers of their own."""
        return self._on_the_emulator(calls) if self.emulated else self._on_the_gpu(calls, budget_s)

    def _on_the_emulator(self, calls):
        begin = time.perf_counter()
        for call in calls:
            call()
        return (time.perf_counter() - begin) / len(calls)

    def _on_the_gpu(self, calls, budget_s):
        stream = torch.cuda.Stream()
        torch.cuda.synchronize()  # the buffers were filled on another stream
        with torch.cuda.stream(stream):
            for call in calls:  # first calls load modules and pick algorithms
                call()
        torch.cuda.synchronize()
        replay = self._captured(calls, stream)
        replay()
        torch.cuda.synchronize()
        times, end = [], time.perf_counter() + budget_s
        while len(times) < 5 or (time.perf_counter() < end and len(times) < 100):
            before, after = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            before.record()
            replay()
            after.record()
            after.synchronize()
            times.append(before.elapsed_time(after) * 1e-3 / len(calls))
            if times[0] * len(calls) > 0.5 and len(times) >= 3:
                break
        return statistics.median(times)

    def _captured(self, calls, stream) -> Callable[[], None]:
        """All calls as one graph; what cannot be captured is launched call by call."""

        def one_by_one():
            for call in calls:
                call()

        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph, stream=stream):
                one_by_one()
        except Exception as error:
            print(f"  not captured: {error}", file=sys.stderr)
            torch.cuda.synchronize()
            return one_by_one
        return graph.replay

    def limits(self) -> dict:
        """Bytes per second of a large copy (read plus written; by the driver or by a kernel, whichever is faster) and
        FLOP per second of a bf16 product, random data."""
        num_bytes, n = (1 << 16, 64) if self.emulated else (min(4 << 30, self.memory // 8), 8192)
        source = torch.randint(0, 255, (num_bytes,), dtype=torch.uint8, device=self.device).view(torch.int32)
        target = torch.empty_like(source)
        ways = (lambda: target.copy_(source), lambda: torch.bitwise_not(source, out=target))
        copy = min(self.seconds([way], 0.3) for way in ways)
        a, b = (torch.randn(n, n, device=self.device).bfloat16() for _ in range(2))
        product = self.seconds([lambda: torch.mm(a, b)], 0.5)
        return {"copy_bytes_per_s": 2 * num_bytes / copy, "matmul_flop_per_s": 2 * n**3 / product}
