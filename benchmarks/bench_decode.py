"""Decoding one token after another on a random Llama of 112M parameters, and verifying drafts; llama.cpp beside it.

ours: a turn of an engine without speculation, seconds of its answer per token. llama.cpp, the same weights as GGUF in
bf16 and f16, greedy, one token at a time, in a process of its own; the contestants take turns. Where it is not
installed that is said, and the rest is measured. A step of R rows is what the loop does on the device with one token
and R - 1 drafts (forward pass, logits, verification); `linears` are the same matrix products alone, `other ops` the
other ops alone.

    python benchmarks/bench_decode.py [--dtype bfloat16] [--tokens 64] [--context 128] [--rows 1 2 5 9 17]
                                      [--llama-python PYTHON] [--json FILE]
"""

import argparse
import json
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time

import torch
from bench_turns import SHAPE, make_checkpoint
from common import interleaved, print_table, run_linears, write_json

import stateful_kv as skv
from stateful_kv import generate, ops
from stateful_kv.models import decoder

SETTLE_S = 0.5  # threads of the contestant before may spin a while for more work
WORKER = pathlib.Path(__file__).parent / "peers" / "llama_cpp_decode.py"


class Ours:
    def __init__(self, engine: skv.Engine, context: int):
        self.engine, self.context = engine, context

    def decode(self, tokens: int) -> float:
        """Seconds per token."""
        session = self.engine.open_session(namespace=object().__repr__())
        turn = session.generate(range(self.context), skv.SamplingParams(max_tokens=tokens + 1))
        session.close()
        return turn.stats.decode_s / tokens


class LlamaCpp:
    """The worker of peers/llama_cpp_decode.py; `missing` says why there is none."""

    def __init__(self, python: str, checkpoint: pathlib.Path, kind: str, context: int, room: int):
        command = [python, str(WORKER), str(checkpoint), kind, str(torch.get_num_threads()), str(room)]
        self.context = context
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        first = self.process.stdout.readline()
        self.version = json.loads(first)["ready"] if first else None
        self.missing = None if first else self.process.stderr.read().strip().splitlines()[-1]

    def decode(self, tokens: int) -> float:
        print(self.context, tokens, file=self.process.stdin, flush=True)
        return json.loads(self.process.stdout.readline())["seconds"] / tokens

    def close(self) -> None:
        self.process.communicate()


class Step:
    """Calls of one step with `rows` rows on a conversation of `context` tokens; each call does the same again."""

    def __init__(self, model, context: int, rows: int, num_splits: int, block_size: int = 16):
        num_blocks = -(-(context + rows) // block_size)
        self.model, self.num_splits, self.num_rows = model, num_splits, rows
        self.cache = generate.KVCache(model, num_blocks, block_size)
        self.cache.storage.normal_()
        i32 = dict(dtype=torch.int32)
        cu_rows = torch.tensor([0, rows], **i32)
        self.batch = generate.Batch(
            token_ids=torch.randint(0, model.config.vocab_size, (rows,), **i32),
            positions=torch.arange(context, context + rows),
            slot_mapping=torch.arange(context, context + rows),
            cu_seqlens_q=cu_rows,
            seqused_k=torch.tensor([context + rows], **i32),
            block_table=torch.arange(num_blocks, **i32)[None],
            max_seqlen_q=rows,
            logit_rows=torch.arange(rows),
            cu_logit_rows=cu_rows,
            max_logit_rows=rows,
        )
        self.out = torch.empty(1, rows, **i32), torch.empty(1, **i32)
        self.buffers = decoder.Buffers(model.config, rows, torch.empty(0, dtype=model.dtype))

    def whole(self) -> None:
        normed = generate.forward(self.model, self.cache, self.batch, self.num_splits)
        logits = self.model.logits(normed)
        tokens, num_tokens = self.out
        ops.verify_drafts(logits, self.batch.token_ids, self.batch.cu_logit_rows, tokens=tokens, num_tokens=num_tokens)

    def linears(self) -> None:
        run_linears(self.model, self.buffers)


def steps(model, context: int, row_counts: list[int], num_splits: int) -> list[dict]:
    table = []
    with torch.inference_mode():
        made = {rows: Step(model, context, rows, num_splits) for rows in row_counts}
        contestants = {}
        for rows, step in made.items():
            contestants |= {f"{rows} whole": step.whole, f"{rows} linears": step.linears}
        seconds = interleaved(contestants, budget_s=1.0, least=25)
    for rows in row_counts:
        whole, linears = seconds[f"{rows} whole"], seconds[f"{rows} linears"]
        table.append(
            {
                "rows": rows,
                "step ms": 1e3 * whole,
                "linears ms": 1e3 * linears,
                "rest ms": 1e3 * (whole - linears),
                "to the first": whole / seconds[f"{row_counts[0]} whole"],
            }
        )
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dtype", default="bfloat16", choices=["bfloat16", "float32"])
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--context", type=int, default=128)
    parser.add_argument("--repeat", type=int, default=7)
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 2, 5, 9, 17])
    parser.add_argument("--llama-python", default=sys.executable, help="a Python that has llama-cpp-python and gguf")
    parser.add_argument("--json", type=pathlib.Path)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = make_checkpoint(pathlib.Path(folder))
        engine = skv.Engine.from_pretrained(
            checkpoint, dtype=getattr(torch, args.dtype), num_blocks=256, speculation=None
        )
        contestants = {"ours": Ours(engine, args.context)}
        skipped = {}
        for kind in ("bf16", "f16") if args.dtype == "bfloat16" else ("f32",):
            room = args.context + args.tokens + 8
            peer = LlamaCpp(args.llama_python, checkpoint, kind, args.context, room)
            if peer.missing:
                skipped[kind] = peer.missing
                print(f"SKIPPED: llama.cpp, {kind}: {peer.missing}")
            else:
                contestants[f"llama.cpp {peer.version}, {kind}"] = peer
    for contestant in contestants.values():
        contestant.decode(args.tokens)
    times = {name: [] for name in contestants}
    for _ in range(args.repeat):
        for name, contestant in contestants.items():
            time.sleep(SETTLE_S)
            times[name].append(contestant.decode(args.tokens))
    for contestant in contestants.values():
        if isinstance(contestant, LlamaCpp):
            contestant.close()
    ours = statistics.median(times["ours"])
    decode = [
        {"contestant": name, "ms per token": 1e3 * statistics.median(t), "ours / it": ours / statistics.median(t)}
        for name, t in times.items()
    ]
    print_table(decode)
    table = steps(engine.model, args.context, args.rows, -1 if engine.deterministic else 0)
    print_table(table)
    if args.json:
        settings = {k: v for k, v in vars(args).items() if k not in ("json", "llama_python")}
        result = dict(settings=settings, shape=SHAPE, deterministic=engine.deterministic)
        result |= dict(decode=decode, skipped=skipped, steps=table)
        write_json(args.json, "bench_decode", result)


if __name__ == "__main__":
    main()
