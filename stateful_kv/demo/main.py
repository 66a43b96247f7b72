"""`python -m stateful_kv demo`: agents that share one resident KV cache, beside the same work recomputed each turn.

A model that `train` has written works on its own seeded world: it makes the calls and gives the answers. Any other one
(--model), and random weights, have committed transcripts that say what happens where the model does not.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from .checkpoint import EMBEDDED
from .driver import Crew, RoundRecord, run_baseline
from .options import checkpoint_dir, device, output_file, positive, reading_checkpoint, seed
from .report import GAP_BOUND, all_turns, compare, machine, summarise, summary_text, table, turn_json

_DTYPES = ("float32", "float16", "bfloat16")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    model = parser.add_mutually_exclusive_group()
    model.add_argument(
        "--model",
        type=checkpoint_dir,
        metavar="DIR",
        help="one that `train` wrote, or any other on the transcripts",
    )
    model.add_argument("--scripted", action="store_true", help="random weights, on the transcripts")
    parser.add_argument("--device", type=device, default="cpu", help="cpu (default) or cuda")
    parser.add_argument("--dtype", choices=_DTYPES, help="default: float32 on the CPU, bfloat16 elsewhere")
    parser.add_argument("--turns", type=positive, default=99, metavar="N", help="at most N turns of each agent")
    parser.add_argument("--max-tokens", type=positive, metavar="N", help="longest answer: 160, of random weights 32")
    parser.add_argument("--no-speculation", action="store_true", help="no drafts in the run with reuse either")
    parser.add_argument("--seed", type=seed, default=0, help="seed of the random weights, or of the world")
    parser.add_argument("--json", type=output_file, metavar="FILE", help="write every figure to FILE")


def progress(name: str) -> Callable[[RoundRecord], None]:
    """One line on stderr that grows with the rounds; plain lines where stderr is no terminal."""
    begin = time.perf_counter()
    done = {"rounds": 0, "turns": 0, "tokens": 0}

    def show(record: RoundRecord) -> None:
        done["rounds"] += 1
        done["turns"] += len(record.turns)
        done["tokens"] += sum(len(turn.tokens) for turn in record.turns)
        agents = ", ".join(turn.agent for turn in record.turns)
        line = (
            f"{name}: round {done['rounds']}, {done['turns']} turns, {done['tokens']} tokens, "
            f"{time.perf_counter() - begin:.1f} s ({agents})"
        )
        if sys.stderr.isatty():
            print(f"\r\033[K{line}", end="", file=sys.stderr, flush=True)
        else:
            print(line, file=sys.stderr, flush=True)

    return show


def end_progress() -> None:
    if sys.stderr.isatty():
        print("\r\033[K", end="", file=sys.stderr, flush=True)


def warm_up(engine: Any, params: Any) -> None:
    """First calls build tables and thread pools; no turn should pay for that."""
    session = engine.open_session()
    session.generate(list(range(40, 60)), params)
    session.close()


def blocks_on_gpu(model: Any, block_size: int = 16) -> int:
    """Cache blocks for each of two engines on one GPU: two fifths of its free memory, at most a million tokens."""
    import torch

    from ..generate import KVCache

    free, _ = torch.cuda.mem_get_info(model.device)
    return max(1, min(int(0.4 * free) // KVCache.bytes_per_block(model, block_size), 1_000_000 // block_size))


def run(args: argparse.Namespace, directory: Path, random_weights: bool = False) -> int:
    import torch

    import stateful_kv as skv

    from .agents.crew import LiveCrew, make_plan
    from .text import ChatText
    from .transcripts import load_transcripts

    dtype = args.dtype or ("float32" if torch.device(args.device).type == "cpu" else "bfloat16")
    with reading_checkpoint():
        text = ChatText.from_checkpoint(directory)
        model = skv.models.load(directory, torch.device(args.device), getattr(torch, dtype))
    max_tokens = args.max_tokens or (32 if random_weights else 160)
    params = skv.SamplingParams(max_tokens=max_tokens, temperature=0.0, stop_token_ids=text.stop_token_ids)
    speculation = None if args.no_speculation else skv.PromptLookup()

    num_blocks = None if model.device.type == "cpu" else blocks_on_gpu(model)

    def load(**options: Any) -> Any:
        engine = skv.Engine(model, num_blocks=num_blocks, **options)
        warm_up(engine, params)
        return engine

    engine = load(speculation=speculation, prefix_cache=True)
    live = is_live(directory)
    if live:
        crew = LiveCrew(engine, text, make_plan(args.seed), params, args.turns, args.seed)
    else:
        crew = Crew(engine, text, load_transcripts(), params, args.turns)
    rounds = crew.run(progress("reuse"))
    end_progress()
    reference = load(speculation=None, prefix_cache=False)
    baseline = run_baseline(reference, rounds, params, progress("baseline"))
    end_progress()
    bound = GAP_BOUND[dtype]
    differences = compare(rounds, baseline, reference, bound)
    summary = summarise(rounds, baseline, differences, engine, crew.forks, bound)
    parts = []
    if live:
        summary["requests_right"], summary["requests"] = crew.right_requests()
        parts = [crew.answers_text()]
    crew.close()
    print(*parts, table(rounds, baseline), summary_text(summary, differences), sep="\n\n")
    if args.json:
        model = f"random weights, seed {args.seed}" if random_weights else str(args.model or "embedded")
        options = {"model": model, "device": args.device, "dtype": dtype, "max_tokens": max_tokens}
        options["speculation"] = not args.no_speculation
        turns = [turn_json(*pair) for pair in zip(all_turns(rounds), all_turns(baseline))]
        values = {"machine": machine(), "options": options, "summary": summary, "turns": turns}
        values["differences"] = [asdict(difference) for difference in differences]
        args.json.write_text(json.dumps(values, indent=1) + "\n", encoding="utf-8")
    return 1 if summary["failures"] else 0


def is_live(directory: Path) -> bool:
    """Whether a checkpoint is one that `train` wrote: it runs the agents of its own world, without transcripts."""
    return (directory / "training.json").is_file()


def main(args: argparse.Namespace) -> int:
    """Returns the exit status: 1 for an unexplained difference of outputs or too many rows fed, else 0."""
    if args.model:
        return run(args, args.model)
    if EMBEDDED.is_dir() and not args.scripted:
        return run(args, EMBEDDED)
    from .checkpoint import write_random_checkpoint

    with tempfile.TemporaryDirectory(prefix="stateful_kv_demo_") as folder:
        write_random_checkpoint(Path(folder), args.seed)
        return run(args, Path(folder), random_weights=True)
