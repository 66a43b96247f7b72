"""The proof in one command.

    python -m benchmarks.proof all                # environments, every workload, judging, result files, report: hours
    python -m benchmarks.proof all --quick        # 20 minutes on two cores beside environments that are there: six
                                                  # turns and free text, each engine's fastest settings
    python -m benchmarks.proof run --workload six_turns --contestant ours-plain llama --dtype float32
    python -m benchmarks.proof results            # judges the cells that are there and writes the result files
    python -m benchmarks.proof setup [ENGINE...]  # environments of the engines alone

`run` writes one file per cell (workload, model, dtype, contestant, repetition) below build/proof/cells and skips cells
that are there: stop it and start it again as you like. `results` condenses them into proof_*.json below
benchmarks/results/cpu, from which benchmarks/report.py makes the page. A contestant that is not installed is named and
left out. On a busy machine `--threads 1 --clock cpu` measures processor time, which waiting does not enter.
"""

import argparse
import pathlib
import shlex
import subprocess
import sys
import time

import torch

from benchmarks.common import commit, write_json
from benchmarks.workloads import files
from benchmarks.workloads.generate import WORKLOADS

from . import cells, judge, models, summary
from .contestants import CONTESTANTS, ENGINES, missing, python_of, set_up

ROOT = pathlib.Path(__file__).resolve().parents[2]
RESULTS = ROOT / "benchmarks" / "results" / "cpu"
LONG = "thirty_five_turns_long"
QUICK = dict(
    workload=["six_turns", "free_text"],
    repetitions=1,
    contestant=["ours", "ours-plain", "vllm", "vllm-lookup", "llama-plain-attention", "llama-lookup", "transformers"],
)


def available(names: list[str], pythons: dict[str, str]) -> tuple[list[str], dict[str, str]]:
    """The contestants that can run here, and why the others cannot."""
    reasons = {engine: missing(engine, python_of(engine, pythons)) for engine in {CONTESTANTS[n].engine for n in names}}
    skipped = {n: reasons[CONTESTANTS[n].engine] for n in names if reasons[CONTESTANTS[n].engine]}
    for name, reason in skipped.items():
        print(f"SKIPPED: {name}: {reason}", file=sys.stderr)
    return [n for n in names if n not in skipped], skipped


def run(args) -> dict[str, str]:
    """Runs what is not there yet; returns the contestants that could not, with the reason."""
    names, skipped = available(args.contestant, args.python)
    planned = cells.interleaved(args.workload, args.model, args.dtype, names, args.repetitions, args.clock)
    progress = cells.Progress(len(planned))
    for cell in planned:
        what = f"{cell.group} {cell.contestant} repetition {cell.repetition + 1}"
        if cell.path(args.cells).exists():
            progress.end(what, "there already")
            continue
        try:
            wanted = cells.settings(cell, args.threads, args.steps, args.cells)
            begin = time.monotonic()
            result = cells.run(
                cell, wanted, args.python, args.prefix, args.limit, lambda line, what=what: progress.step(what, line)
            )
        except RuntimeError as error:
            skipped[cell.contestant] = str(error)
            progress.end(what, f"FAILED: {error}")
            continue
        cells.keep(cell, result | {"script": wanted.get("script"), "commit": commit()}, args.cells)
        progress.end(what, f"{result['wall_s']:.1f} s of turns, {time.monotonic() - begin:.0f} s in all")
        time.sleep(args.settle)
    return skipped


def results(args, skipped: dict[str, str]) -> None:
    for workload in args.workload:
        group = args.cells / cells.Cell(workload, args.model, args.dtype, "", 0, args.clock).group
        if not group.exists():
            print(f"NOT RUN: {group.name}", file=sys.stderr)
            continue
        verdicts = {} if args.no_judge else judge.all_verdicts(group, args.model, args.judge_turns)
        condensed = summary.summarize(group, verdicts, skipped)
        condensed = dict(
            workload=workload, title=files.make(workload, models.checkpoint(args.model)).title, **condensed
        )
        write_json(args.results / f"proof_{group.name}.json", "proof", condensed)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["all", "run", "results", "setup"])
    parser.add_argument("engines", nargs="*", metavar="ENGINE", help="of setup; all if none")
    parser.add_argument("--workload", nargs="+", choices=files.NAMES, default=[w for w in WORKLOADS if w != LONG])
    parser.add_argument("--contestant", nargs="+", choices=CONTESTANTS)
    parser.add_argument("--model", default="110M", help=f"{', '.join(models.SHAPES)} or a checkpoint directory")
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--steps", type=int, help="only the first steps of each workload")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--clock", choices=["wall", "cpu"], default="wall", help="what turns are timed by")
    parser.add_argument("--quick", action="store_true", help="six turns and free text, few contestants, one repetition")
    parser.add_argument("--python", nargs="*", default=[], metavar="ENGINE=PYTHON", help="an engine's own Python")
    parser.add_argument("--prefix", default="", help="a command put before each contestant's, taskset for instance")
    parser.add_argument("--limit", type=float, default=3600.0, help="seconds after which a cell is given up")
    parser.add_argument("--settle", type=float, default=0.5, help="seconds of rest between cells")
    parser.add_argument("--no-judge", action="store_true", help="results without comparing answers to the reference")
    parser.add_argument(
        "--judge-turns", type=int, metavar="N", help="judge N turns of each workload, drawn with a seed"
    )
    parser.add_argument("--cells", type=pathlib.Path, default=cells.FOLDER)
    parser.add_argument("--results", type=pathlib.Path, default=RESULTS)
    args = parser.parse_args()
    args.python = dict(item.split("=", 1) for item in args.python)
    args.prefix = shlex.split(args.prefix)
    if args.quick:
        args.workload, args.repetitions = QUICK["workload"], QUICK["repetitions"]
    args.contestant = args.contestant or (QUICK["contestant"] if args.quick else list(CONTESTANTS))
    return args


def main() -> int:
    args = parse()
    if unknown := set(args.engines) - set(ENGINES):
        raise SystemExit(f"setup: {', '.join(unknown)} is none of {', '.join(ENGINES)}")
    if args.what in ("all", "setup"):
        for engine in args.engines or {CONTESTANTS[name].engine: None for name in args.contestant}:
            if engine not in args.python:
                try:
                    set_up(engine)
                except subprocess.CalledProcessError as error:
                    print(f"{engine}: no environment: {error}", file=sys.stderr)
    skipped = run(args) if args.what in ("all", "run") else {}
    if args.what in ("all", "results"):
        results(args, skipped or available(args.contestant, args.python)[1])
    if args.what == "all":
        subprocess.run([sys.executable, str(ROOT / "benchmarks" / "report.py")], check=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
