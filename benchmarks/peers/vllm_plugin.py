"""The vLLM plugin run for real, beside vLLM's own attention: python vllm_plugin.py PIECE... [--model DIR].

Run by the Python of an environment that vllm_env.py made. Pieces (default: all):
    equal     offline, float32: prefix caching, chunked prefill, n-gram speculation, two tensor-parallel processes over
              gloo, a sliding window; greedy tokens of the two backends must be the same
    bfloat16  the same prompts in bfloat16: how often the two differ, and how close the choice was there
    server    vLLM's OpenAI server and the openai client: streamed text and streamed tool calls, the same of both
    speed     the agents' workload in float32: delta prefill and decode, one agent at a time and all at once
    tests     the tests of tests/test_vllm_plugin.py that need vLLM
Each piece replaces its part of the result file, with the machine, the versions and the date.
"""

import argparse
import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parent.parent
sys.path[:0] = [str(ROOT / "benchmarks"), str(ROOT / "tests"), str(HERE)]

from common import machine, print_table  # noqa: E402
from traces import conversation  # noqa: E402

RESULT = ROOT / "benchmarks" / "results" / "cpu" / "vllm_plugin.json"
OWN, OURS = (
    "vllm.v1.attention.backends.cpu_attn.CPUAttentionBackendImpl",
    "stateful_kv.integrations.vllm_attention.CpuImpl",
)
ENGINE = dict(dtype="float32", enforce_eager=True, max_model_len=4096, block_size=32)
NGRAM = dict(method="ngram", num_speculative_tokens=6, prompt_lookup_max=4, prompt_lookup_min=1)
CASES = {
    "prefix caching": {},
    "chunked prefill": dict(max_num_batched_tokens=96),
    "n-gram speculation": dict(speculative_config=NGRAM),
    "tensor parallel 2": dict(tensor_parallel_size=2),
}
SPEED_SHAPE = dict(
    vocab_size=2560, hidden_size=512, intermediate_size=1408, num_hidden_layers=8, num_attention_heads=8,
    num_key_value_heads=2, head_dim=64, max_position_embeddings=8192, initializer_range=0.05,
)  # fmt: skip


def worker(specs: list[dict]) -> list[dict]:
    """What vllm_worker.py makes of the specs, in a process of its own; the attention is what was asked for."""
    with tempfile.TemporaryDirectory() as folder:
        paths = [pathlib.Path(folder) / name for name in ("specs.json", "out.json")]
        paths[0].write_text(json.dumps(specs))
        done = subprocess.run([sys.executable, HERE / "vllm_worker.py", *paths], capture_output=True, text=True)
        if done.returncode:
            sys.exit(f"vllm_worker.py failed:\n{done.stdout[-2000:]}\n{done.stderr[-6000:]}")
        results = json.loads(paths[1].read_text())
    for spec, result in zip(specs, results, strict=True):
        wanted = [[OURS if spec["ours"] else OWN]] * spec["engine"].get("tensor_parallel_size", 1)
        assert result["attention"] == wanted, f"attention is {result['attention']}, expected {wanted}"
    return results


def agents(model: pathlib.Path, count: int, turns: int) -> list[list[list[int]]]:
    """Conversations that begin with one system prompt and go on with tool results of 64 to 256 tokens, in tokens that
    the model has."""
    vocab = json.loads((model / "config.json").read_text())["vocab_size"]
    made = [conversation(seed, turns, 64, 256) for seed in range(1, count + 1)]
    return [[[token % vocab for token in delta] for delta in deltas] for deltas in made]


def windowed_model(folder: pathlib.Path) -> pathlib.Path:
    import checkpoints

    return checkpoints.save("mistral", folder, dict(head_dim=32, vocab_size=2560, max_position_embeddings=4096))


def compare(own: dict, ours: dict) -> dict:
    """Turn by turn: equal answers, and for the others where they part and by how much the best logit led there."""
    turns = [pair for a, b in zip(own["rows"], ours["rows"]) for pair in zip(a, b)]
    parted = []
    for mine, theirs in ((b, a) for a, b in turns):
        same = [x == y for x, y in zip(mine["tokens"], theirs["tokens"])]
        if not all(same):
            at = same.index(False)
            parted.append({"context": mine["context"], "token": at, "lead": theirs["leads"][at]})
    return {
        "turns": len(turns),
        "equal": len(turns) - len(parted),
        "tokens": sum(len(a["tokens"]) for a, _ in turns),
        "cached prompt tokens": [sum(r["cached"] for row in run["rows"] for r in row) for run in (own, ours)],
        "prompt tokens": sum(a["context"] for a, _ in turns),
        "parted": parted,
        "speculation": {"vllm": own["speculation"], "ours": ours["speculation"]},
        "seconds": {"vllm": own["seconds"], "ours": ours["seconds"]},
        "versions": ours["versions"],
    }


def equal(model: pathlib.Path, folder: pathlib.Path, only: str | None) -> dict:
    found, specs = {}, []
    names = [name for name in (*CASES, "sliding window") if only in (None, name)]
    for name in names:
        checkpoint = windowed_model(folder) if name == "sliding window" else model
        engine = {**ENGINE, **CASES.get(name, {})}
        spec = dict(model=str(checkpoint), engine=engine, deltas=agents(checkpoint, 3, 3), answer=24)
        specs += [{**spec, "ours": ours} for ours in (False, True)]
    results = worker(specs)
    for i, name in enumerate(names):
        found[name] = compare(*results[2 * i : 2 * i + 2])
        assert found[name]["equal"] == found[name]["turns"], f"{name}: {found[name]}"
        if name == "n-gram speculation":
            assert found[name]["speculation"]["ours"].get("num_accepted_tokens", 0) > 0, "nothing was accepted"
        print(f"{name}: {found[name]['turns']} turns, {found[name]['tokens']} tokens equal", flush=True)
    return found


def bfloat16(model: pathlib.Path) -> dict:
    spec = dict(model=str(model), engine={**ENGINE, "dtype": "bfloat16"}, deltas=agents(model, 4, 4), answer=32)
    found = compare(*worker([{**spec, "ours": False}, {**spec, "ours": True, "history": 0}]))
    print(f"bfloat16: {found['equal']} of {found['turns']} turns equal; the others part at {found['parted']}")
    return found


def speed_model(folder: pathlib.Path) -> pathlib.Path:
    import torch
    import transformers

    torch.manual_seed(7)
    transformers.LlamaForCausalLM(transformers.LlamaConfig(**SPEED_SHAPE)).save_pretrained(folder / "speed")
    return folder / "speed"


def speed(folder: pathlib.Path, rounds: int, count: int, turns: int) -> dict:
    """Both backends in turns, `rounds` times each, over the same conversations."""
    model = speed_model(folder)
    spec = dict(model=str(model), engine=ENGINE, deltas=agents(model, count, turns), answer=24, timed=True)
    specs = [
        {**spec, "ours": ours} | ({"history": 0} if i + ours else {}) for i in range(rounds) for ours in (False, True)
    ]
    results = worker(specs)
    runs = {False: results[::2], True: results[1::2]}
    table = []
    for way in ("one by one", "together"):
        for part, key in (("delta prefill", "prefill_s"), ("decode step", "decode_s")):
            ms = {}
            for ours, results in runs.items():
                # Of every turn after the first, the best of the rounds; then the mean over turns and agents.
                turns_of = [[t for row in r["rows"][way] for t in row[1:]] for r in results]
                best = [min(r[i][key] / (r[i]["decode_steps"] if key == "decode_s" else 1) for r in turns_of)
                        for i in range(len(turns_of[0]))]  # fmt: skip
                ms[ours] = 1e3 * statistics.mean(best)
            table.append(
                {
                    "agents": way,
                    "what": part,
                    "vllm ms": ms[False],
                    "ours ms": ms[True],
                    "ours / vllm": ms[True] / ms[False],
                }
            )
    print_table(table)
    settings = {"model": SPEED_SHAPE, "agents": count, "turns": turns, "rounds": rounds, "answer": 24, "engine": ENGINE}
    contexts = [row[-1]["context"] for row in runs[True][0]["rows"]["one by one"]]
    return {"table": table, "settings": settings, "last contexts": contexts, "versions": runs[True][0]["versions"]}


def tests() -> dict:
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", ROOT / "tests" / "test_vllm_plugin.py"],
        capture_output=True, text=True, cwd=ROOT / "tests",
    )  # fmt: skip
    print(done.stdout[-3000:])
    if done.returncode:
        sys.exit("the tests failed")
    return {"summary": done.stdout.strip().splitlines()[-1]}


def main() -> None:
    pieces = ("equal", "bfloat16", "server", "speed", "tests")
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pieces", nargs="*", choices=[*pieces, []], default=[])
    parser.add_argument("--model", type=pathlib.Path, help="a checkpoint; default: random weights")
    parser.add_argument("--case", choices=[*CASES, "sliding window"], help="only this case of equal")
    parser.add_argument("--rounds", type=int, default=2, help="of speed")
    parser.add_argument("--agents", type=int, default=6, help="of speed")
    parser.add_argument("--turns", type=int, default=4, help="of speed")
    parser.add_argument("--json", type=pathlib.Path, default=RESULT)
    args = parser.parse_args()
    os.environ["HF_HUB_OFFLINE"] = "1"

    from vllm_server import serve_both

    from stateful_kv.demo.checkpoint import random_checkpoint

    model = args.model or random_checkpoint()
    result = json.loads(args.json.read_text()) if args.json.exists() else {"benchmark": "vllm_plugin", "pieces": {}}
    for piece in args.pieces or pieces:
        with tempfile.TemporaryDirectory() as folder:
            found = {
                "equal": lambda f: equal(model, f, args.case),
                "bfloat16": lambda f: bfloat16(model),
                "server": lambda f: serve_both(model, f, embedded=args.model is not None),
                "speed": lambda f: speed(f, args.rounds, args.agents, args.turns),
                "tests": lambda f: tests(),
            }[piece](pathlib.Path(folder))
        kept = result["pieces"].get(piece, {})
        if args.case:  # one case renewed, the others as they were
            found = {**kept.get("found", {}), **found}
        name = piece if args.model is None else f"{piece} of {args.model.name}"
        result["pieces"][name] = {"machine": machine(), "found": found}
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(json.dumps(result, indent=1) + "\n")
    print(f"wrote {args.json}")


if __name__ == "__main__":
    main()
