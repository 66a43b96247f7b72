"""Writes README's figures and results/FIGURES.md from the result files: python benchmarks/figures.py [--check]

FIGURES.md has every table; README says where something else is faster, and the figures one would ask for first.
"""

import argparse
import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))
from benchmarks import figure_tables as ft
from benchmarks import losses
from benchmarks.proof import tables
from benchmarks.proof.contestants import CONTESTANTS

ROOT = pathlib.Path(__file__).resolve().parents[1]
README, FIGURES = ROOT / "README.md", ROOT / "benchmarks" / "results" / "FIGURES.md"
BEGIN, END = "<!-- figures -->", "<!-- /figures -->"
MEASURED = """\
Measured on two CPU threads, and on one H200 at an earlier commit; written by `benchmarks/figures.py`. Every table, with
machine, commit and date: [`FIGURES.md`](benchmarks/results/FIGURES.md). What has run on which GPU, and what has not:
[`results/README.md`](benchmarks/results/README.md). Where something else is faster:"""
BESIDE = """\
Agentic workloads beside other engines with prefix caching on: their time to ours, at the median turn and in all, of
each engine's configurations the fastest, the smaller of the median within repetitions and the quotient of medians.
Speculation is off everywhere, or on in ours and left to the faster in other engines:"""
ENGINES = {"vllm": "vLLM", "llama_cpp": "llama.cpp", "transformers": "transformers"}


def _fastest(result: dict, engine: str, ours: str) -> str:
    """Times of an engine to ours, at the median turn and in all: of its configurations the fastest each time."""
    found = [c for c in tables.comparisons(result) if CONTESTANTS[c.peer].engine == engine and c.ours == ours]
    ratios = [min((c.ratio for c in found if c.what == what), default=None) for what in ("turn", "wall")]
    return "not run" if ratios == [None, None] else ", ".join(tables.number(r, ".2f") or "-" for r in ratios)


def workloads() -> str:
    lines = []
    for folder, processor in (("cpu", "AVX2"), ("cpu_amx", "AMX")):
        for _, result in losses.proofs(folder):
            s = result["settings"]
            rows = {r["contestant"]: r for r in result["rows"]}
            for ours, what in (("ours-plain", "off"), ("ours", "on")):
                if ours in rows:
                    head = [f"{result['title']}, {s['model']}, {s['dtype']}", processor, what]
                    times = [f"{rows[ours]['turn_ms']:.0f} ms", f"{rows[ours]['wall_s']:.1f} s"]
                    lines.append([*head, *times, *(_fastest(result, engine, ours) for engine in ENGINES)])
    return ft.table(["workload", "CPU", "speculation", "our median turn", "ours in all", *ENGINES.values()], lines)


def _turns(folder: str) -> str:
    said = []
    for dtype in ("bfloat16", "float32"):
        ours = next(r for r in losses.load(f"{folder}/bench_turns_{dtype}")["summary"] if r["contestant"] == "ours")
        said.append(f"{ours['ratio to cache kept, median']:.2f} (p90 {ours['p90']:.2f}) in {dtype}")
    return " and ".join(said)


def _deltas(folder: str) -> str:
    rows = [r for r in losses.load(f"{folder}/bench_delta_prefill")["deltas"] if r["delta"] >= 64]
    ends = [f"{f(r[key] for r in rows):.2f}" for key in ("ratio_masked", "ratio") for f in (min, max)]
    return f"{ends[0]} to {ends[1]} with the mask that makes its answer right, {ends[2]} to {ends[3]} without any"


def summary() -> str:
    host = losses.load("cpu/bench_host_time")["rows"]
    decode = {r["contestant"]: r["ours / it"] for r in losses.load("cpu/bench_decode")["decode"][1:]}
    embedded = losses.load("cpu/evaluate")["figures"]["usual"]
    lines = [
        "A turn of a growing conversation (112M parameters) takes, of the time of transformers with its cache kept by "
        f"hand, {_turns('cpu')} on AVX2, {_turns('cpu_amx')} on AMX.",
        f"Host time of a turn outside the model: {host[0]['runtime us per turn']:.0f} us in the C++ runtime, "
        f"{host[0]['host us per turn'] / 1e3:.2f} ms in all at {host[0]['conversation']:,} tokens, "
        f"{host[-1]['to the first']:.2f} of that at {host[-1]['conversation']:,}.",
        "`delta_prefill` for deltas of 64 and more: torch's SDPA on contiguous KV takes, of our time, "
        f"{_deltas('cpu')} on AVX2; {_deltas('cpu_amx')} on AMX.",
        "Decoding of 112M parameters in bfloat16 on AMX: "
        + ", ".join(f"{ratio:.2f} of the time of {name}" for name, ratio in decode.items())
        + ".",
        f"The embedded model on held-out conversations: {embedded['valid']:.1%} of its calls are valid, "
        f"{embedded['right tool']:.1%} name the right tool, {embedded['exact']:.1%} are exact, at "
        f"{embedded['tokens per step, calls']:.2f} tokens a step.",
    ]
    return "\n".join(f"- {line}" for line in lines)


def readme() -> str:
    lost = losses.all_of_them()
    return "\n\n".join(
        [
            "## Figures",
            MEASURED,
            ft.table(losses.HEADS, losses.rows(lost)),
            BESIDE,
            workloads(),
            summary(),
        ]
    )


def figures() -> str:
    each = "\n".join(f"- {x.what}, {x.beside} ({x.cells} of {x.of}): {'; '.join(x.each)}" for x in losses.all_of_them())
    parts = [
        "# Figures",
        "Written by `benchmarks/figures.py` from the result files beside it, each table from the file that it names.",
        "## Where something else is faster",
        "The time of something else to ours, cell by cell. Whatever else was measured takes at least our time.",
        each,
        "## Agentic workloads, AVX2",
        ft.proof("cpu"),
        ft.ablation("cpu"),
        "## Agentic workloads, AMX",
        ft.proof("cpu_amx"),
        ft.ablation("cpu_amx"),
        "## A growing conversation",
        "On a random-weight Llama of 112M parameters, against transformers in the same run "
        "(`benchmarks/bench_turns.py`), medians from the second turn on. Random weights in bfloat16 part at near-ties.",
        ft.turns("cpu"),
        ft.turns("cpu_amx"),
        "## Host time and runtime",
        ft.host_time("cpu"),
        ft.host_time("cpu_amx"),
        ft.runtime(),
        ft.prefix_caches(),
        "## Steps and speculation",
        ft.steps(),
        ft.speculation(),
        "## Linears and decoding",
        ft.linears(),
        ft.decode(),
        "## Attention",
        ft.attention("cpu", "bench_delta_prefill_decode"),
        ft.attention("cpu_amx", "bench_delta_prefill"),
        "## The embedded model",
        ft.embedded(),
        "## vLLM with our attention",
        ft.vllm(),
    ]
    return "\n\n".join(parts) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; exit code 1 where something is stale")
    args = parser.parse_args()
    text = README.read_text()
    head, rest = text.split(BEGIN)
    made = {README: f"{head}{BEGIN}\n{readme()}\n{END}{rest.split(END)[1]}", FIGURES: figures()}
    if args.check:
        stale = [path.name for path, new in made.items() if not path.exists() or path.read_text() != new]
        print(f"out of date, run benchmarks/figures.py: {', '.join(stale)}" if stale else "figures are up to date")
        return int(bool(stale))
    for path, new in made.items():
        path.write_text(new)
    return 0


if __name__ == "__main__":
    sys.exit(main())
