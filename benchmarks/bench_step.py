"""One step of many sessions: weights, attention and everything else, and what the host spends on it.

Random weights, greedy, every session with a conversation of --context tokens. Contestants take the same steps:
  host           generate.Loop: the host plans, launches, waits and commits
  device         device_step.DeviceLoop: one step of the device, the host one step behind; on a GPU launched op by op
  device, graph  the same as a replay of a CUDA graph (GPU only)
  ... op by op   and with norms, activation and residuals as ops of their own (--op-by-op; Hopper, few rows)
host us is the time of a step in which the host is busy: all but the forward pass, verification and its device's ops on
the CPU, all but waiting on a GPU. weights and attention are those parts alone, for the same rows, overlapped as in a
step. The floor of a step is what reading weights and KV takes at the bandwidth measured in the same run.

    python benchmarks/bench_step.py [--sessions 1 8 64] [--context 1024] [--drafts 0] [--steps 40] [--op-by-op]
                                    [--device cpu|cuda] [--model 112M|8B] [--json FILE]
"""

import argparse
import pathlib
import statistics
import time

import torch
from common import print_table, run_linears, write_json

import stateful_kv as skv
from stateful_kv import device_step, generate, ops
from stateful_kv.models import Decoder, DecoderConfig
from stateful_kv.models.checkpoint import expected_shapes
from stateful_kv.models.decoder import Buffers
from stateful_kv.models.rope import RopeConfig

BLOCK = 16
# hidden, intermediate, layers, heads, kv_heads, head_dim, vocab
MODELS = {"112M": (768, 2048, 12, 12, 4, 64, 32000), "8B": (4096, 14336, 32, 32, 8, 128, 128256)}
MODELS["tiny"] = (64, 128, 2, 2, 1, 64, 256)


def make_model(name: str, device: torch.device, dtype: torch.dtype, max_position: int) -> Decoder:
    hidden, intermediate, layers, heads, kv_heads, dim, vocab = MODELS[name]
    config = DecoderConfig(
        family="llama", vocab_size=vocab, hidden_size=hidden, intermediate_size=intermediate, num_layers=layers,
        num_heads=heads, num_kv_heads=kv_heads, head_dim=dim, rms_norm_eps=1e-5, max_position=max_position,
        rope=RopeConfig(dim, 500000.0), tie_word_embeddings=False,
    )  # fmt: skip
    shapes = expected_shapes(config)

    def take(tensor: str) -> torch.Tensor:
        torch.manual_seed(len(tensor))
        return torch.randn(shapes[tensor], device=device, dtype=dtype) * hidden**-0.5

    return Decoder(config, take, device, dtype)


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def seconds_of(call, device: torch.device, repeat: int) -> float:
    """Median seconds; on a GPU of a captured call, without what launching it costs."""
    call()
    if device.type == "cuda":
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            call()
        call = graph.replay
    times = []
    for _ in range(repeat):
        synchronize(device)
        begin = time.perf_counter()
        call()
        synchronize(device)
        times.append(time.perf_counter() - begin)
    return statistics.median(times)


class Parts:
    """The linears and the attention of one step alone."""

    def __init__(self, engine: skv.Engine, sessions: int, rows: int, context: int):
        self.engine, self.model, c = engine, engine.model, engine.model.config
        i32 = dict(dtype=torch.int32, device=self.model.device)
        self.buffers = Buffers(c, sessions * rows, self.model.embedding)
        for t in (self.buffers.normed, self.buffers.attention, self.buffers.activated, self.buffers.qkv):
            t.normal_()
        blocks = -(-context // BLOCK)
        self.table = torch.arange(sessions * blocks, **i32).view(sessions, blocks)
        self.cu = torch.arange(0, sessions * rows + 1, rows, **i32)
        self.used = torch.full((sessions,), context, **i32)
        self.rows = rows

    def weights(self) -> None:
        with ops.overlapping_launches():
            run_linears(self.model, self.buffers)

    def attention(self) -> None:
        loop, b, c = self.engine._loop, self.buffers, self.model.config
        schedule = None
        if self.model.device.type == "cuda":
            schedule = ops.schedule_delta_prefill(
                self.cu, self.used, c.num_heads, c.num_kv_heads, c.head_dim, self.rows, num_splits=loop.num_splits
            )
        with ops.overlapping_launches():
            for keys, values in zip(loop.cache.keys, loop.cache.values):
                ops.delta_prefill(
                    b.query, keys, values, self.cu, self.used, self.table, self.rows, num_splits=loop.num_splits,
                    schedule=schedule, out=b.attention,
                )  # fmt: skip


def answer_length(args) -> int:
    """More tokens than all steps give."""
    return (args.steps + 80) * (1 + args.drafts)


def engine_of(model: Decoder, sessions: int, args, device_loop: bool) -> skv.Engine:
    """With every session in the middle of an answer."""
    answer = answer_length(args)
    blocks = sessions * (-(-(args.context + answer) // BLOCK) + 1)
    speculation = skv.PromptLookup(num_drafts=args.drafts, adaptive=False) if args.drafts else None
    engine = skv.Engine(
        model, num_blocks=blocks, block_size=BLOCK, max_seqs=sessions, speculation=speculation, device_loop=device_loop
    )
    engine._loop.cache.storage.normal_()
    r = torch.Generator().manual_seed(1)
    for _ in range(sessions):
        text = torch.randint(0, model.config.vocab_size, (args.context,), generator=r)
        params = skv.SamplingParams(max_tokens=answer)
        engine.submit(skv.Request(engine.open_session(), text, params))
    while engine._loop.runtime.stats()["waiting"] or any(not run.tokens for run in engine._turns.running.values()):
        engine.step()
    return engine


class Busy:
    """Seconds of the functions that run on the device's behalf, or wait for it."""

    def __init__(self, device: torch.device):
        self.device, self.seconds, self._undo = device, 0.0, []

    def __enter__(self) -> "Busy":
        places = [(generate.HostBuffers, "synchronize"), (torch.cuda.Event, "synchronize")]
        if self.device.type == "cpu":
            places = [(generate.Loop, "_run"), (device_step, "device_step")]
        for owner, name in places:
            real = getattr(owner, name)
            self._undo.append((owner, name, real))
            setattr(owner, name, self._timed(real))
        return self

    def _timed(self, real):
        def timed(*args, **kwargs):
            begin = time.perf_counter()
            try:
                return real(*args, **kwargs)
            finally:
                self.seconds += time.perf_counter() - begin

        return timed

    def __exit__(self, *_) -> None:
        for owner, name, real in self._undo:
            setattr(owner, name, real)


def uncaptured(loop, rows) -> None:
    device_step.device_step(loop.model, loop.cache, loop.state, rows, loop.lookup, loop.num_splits)


def steps_of(engine: skv.Engine, count: int, device: torch.device) -> tuple[float, float, float]:
    """Median seconds of a step, of the host in it, and rows a step."""
    for _ in range(4):  # captures, takes the first results
        engine.step()
    fed, times, host = engine.stats()["rows_fed"], [], []
    synchronize(device)
    with Busy(device) as busy:
        for _ in range(count):
            before, begin = busy.seconds, time.perf_counter()
            engine.step()
            times.append(time.perf_counter() - begin)
            host.append(times[-1] - (busy.seconds - before))
    return statistics.median(times), statistics.median(host), (engine.stats()["rows_fed"] - fed) / count


def measure(model: Decoder, sessions: int, args) -> list[dict]:
    device, table = model.device, []
    fused_rows = model.layers[0].fused_rows
    contestants = {"host": (False, False, fused_rows), "device": (True, False, fused_rows)}
    if device.type == "cuda":
        contestants["device, graph"] = (True, True, fused_rows)
        if args.op_by_op:
            contestants["device, graph, op by op"] = (True, True, 0)
    for name, (device_loop, is_captured, most_fused) in contestants.items():
        for layer in model.layers:
            layer.fused_rows = most_fused
        engine = engine_of(model, sessions, args, device_loop)
        if device_loop and not is_captured:
            loop = engine._loop.device_loop
            loop._run = lambda rows, loop=loop: uncaptured(loop, rows)
        step, host, rows = steps_of(engine, args.steps, device)
        with torch.inference_mode():
            parts = Parts(engine, sessions, max(1, round(rows / sessions)), args.context)
            weights = seconds_of(parts.weights, device, args.steps)
            attention = seconds_of(parts.attention, device, args.steps)
        floor = floor_of(model, sessions, args.context) / args.bytes_per_s
        table.append(
            {
                "sessions": sessions, "contestant": name, "rows": rows, "step ms": 1e3 * step,
                "weights ms": 1e3 * weights, "attention ms": 1e3 * attention,
                "else ms": 1e3 * (step - weights - attention), "host us": 1e6 * host, "steps/s": 1 / step,
                "floor ms": 1e3 * floor, "share of floor": floor / step,
            }
        )  # fmt: skip
    for layer in model.layers:
        layer.fused_rows = fused_rows
    return table


def floor_of(model: Decoder, sessions: int, context: int) -> int:
    """Bytes of the weights that a step reads, and of the KV."""
    c = model.config
    shapes = expected_shapes(c)
    weights = sum(torch.Size(s).numel() for name, s in shapes.items() if "embed_tokens" not in name)
    kv = sessions * context * c.num_layers * 2 * c.num_kv_heads * c.head_dim
    return (weights + kv) * model.dtype.itemsize


def read_bandwidth(device: torch.device) -> float:
    """Bytes per second of torch's sum over an array that no cache holds; on a GPU also of a copy, both ways counted, by
    the driver or by a kernel, whichever is fastest."""
    data = torch.ones((1 << 30 if device.type == "cuda" else 1 << 28) // 4, device=device)
    if device.type == "cuda":
        other = torch.empty_like(data)
        ways = (lambda: other.copy_(data), lambda: torch.neg(data, out=other))
        copied = 2 * data.nbytes / min(seconds_of(way, device, 20) for way in ways)
        return max(copied, data.nbytes / seconds_of(data.sum, device, 20))
    return data.nbytes / seconds_of(data.sum, device, 9)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sessions", type=int, nargs="+", default=[1, 8, 64])
    parser.add_argument("--context", type=int, default=1024)
    parser.add_argument("--drafts", type=int, default=0)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--op-by-op", action="store_true")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", default="bfloat16", choices=["bfloat16", "float16", "float32"])
    parser.add_argument("--model", choices=MODELS, help="default: 8B on a GPU, 112M on the CPU")
    parser.add_argument("--json", type=pathlib.Path)
    args = parser.parse_args()
    device = torch.device(args.device)
    args.model = args.model or ("8B" if device.type == "cuda" else "112M")
    args.bytes_per_s = read_bandwidth(device)
    longest = args.context + answer_length(args)
    model = make_model(args.model, device, getattr(torch, args.dtype), longest)
    rows = [row for sessions in args.sessions for row in measure(model, sessions, args)]
    print_table(rows)
    if args.json:
        settings = {k: v for k, v in vars(args).items() if k != "json"}
        write_json(args.json, "bench_step", dict(settings=settings, rows=rows))


if __name__ == "__main__":
    main()
