"""Host time of a turn: everything outside the model's layers, for a fixed delta, as the conversation grows.

A one-layer model with a short attention window keeps the layers cheap; what is timed is what is left of a turn when the
time inside the layers, the logits and the attention is taken away: the C++ runtime (submit, plan, commit: its own
clock, and as Python sees it through the binding), and all of it with Python, verification and the copies around it.

    python benchmarks/bench_host_time.py [--delta 300] [--answer 8] [--json FILE]
"""

import argparse
import pathlib
import statistics
import time

import numpy as np
import torch
from common import print_table, write_json

import stateful_kv as skv
from stateful_kv import generate
from stateful_kv.models import Decoder, DecoderConfig
from stateful_kv.models.checkpoint import expected_shapes
from stateful_kv.models.rope import RopeConfig

VOCAB = 4096


def make_model(max_position: int) -> Decoder:
    config = DecoderConfig(
        family="llama",
        vocab_size=VOCAB,
        hidden_size=64,
        intermediate_size=64,
        num_layers=1,
        num_heads=1,
        num_kv_heads=1,
        head_dim=64,
        rms_norm_eps=1e-6,
        max_position=max_position,
        rope=RopeConfig(64, 10000.0),
        tie_word_embeddings=True,
        windows=(64,),
    )
    torch.manual_seed(0)
    shapes = expected_shapes(config)
    return Decoder(config, lambda name: torch.randn(shapes[name]) * 0.3, torch.device("cpu"), torch.float32)


class Stopwatch:
    """Adds up the seconds spent in the functions it wraps."""

    def __init__(self):
        self.seconds = 0.0

    def wrap(self, function):
        def timed(*args, **kwargs):
            begin = time.perf_counter()
            try:
                return function(*args, **kwargs)
            finally:
                self.seconds += time.perf_counter() - begin

        return timed


class Timed:
    """An object whose methods are timed."""

    def __init__(self, inner, watch: Stopwatch):
        self._inner, self._watch = inner, watch

    def __getattr__(self, name: str):
        value = getattr(self._inner, name)
        if callable(value):
            value = self._watch.wrap(value)
            setattr(self, name, value)
        return value


def measure(length: int, delta: int, answer: int, turns: int) -> dict:
    """Medians over `turns` turns, each on the same conversation of `length` tokens, rolled back after it."""
    model = make_model(length + delta + answer + 64)
    engine = skv.Engine(model, num_blocks=(length + 2 * turns * (delta + answer)) // 16 + 64, max_batch_tokens=2048)
    layers, binding, runtime = Stopwatch(), Stopwatch(), engine._loop.runtime
    engine._loop.runtime = Timed(runtime, binding)
    model.logits = layers.wrap(model.logits)
    r = np.random.default_rng(length)
    session = engine.open_session()
    params = skv.SamplingParams(max_tokens=answer)
    forward = generate.forward
    generate.forward = layers.wrap(forward)
    host, inside, called, steps = [], [], [], 0
    try:
        session.generate(r.integers(0, VOCAB, length - answer).astype(np.int32), params)
        for i in range(turns + 3):
            tokens = r.integers(0, VOCAB, delta).astype(np.int32)
            if i == 3:  # warm by now
                steps, host, inside, called = engine.stats()["steps"], [], [], []
            layers.seconds, binding.seconds, busy = 0.0, 0.0, runtime.busy_seconds
            begin = time.perf_counter()
            session.generate(tokens, params)
            host.append(time.perf_counter() - begin - layers.seconds)
            called.append(binding.seconds)
            inside.append(runtime.busy_seconds - busy)
            session.rollback(length)
    finally:
        generate.forward = forward
    return {
        "conversation": length,
        "steps per turn": (engine.stats()["steps"] - steps) / turns,
        "runtime us per turn": 1e6 * statistics.median(inside),
        "with its binding": 1e6 * statistics.median(called),
        "host us per turn": 1e6 * statistics.median(host),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--delta", type=int, default=300)
    parser.add_argument("--answer", type=int, default=8)
    parser.add_argument("--turns", type=int, default=40)
    parser.add_argument("--lengths", type=int, nargs="+", default=[1000, 10000, 100000])
    parser.add_argument("--json", type=pathlib.Path)
    args = parser.parse_args()
    rows = [measure(length, args.delta, args.answer, args.turns) for length in args.lengths]
    for row in rows:
        row["to the first"] = row["host us per turn"] / rows[0]["host us per turn"]
    print_table(rows)
    if args.json:
        settings = {k: v for k, v in vars(args).items() if k != "json"}
        write_json(args.json, "bench_host_time", dict(settings=settings, rows=rows))


if __name__ == "__main__":
    main()
