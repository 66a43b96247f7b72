"""vLLM engines over agents' workloads, one after another in one process: python vllm_worker.py SPECS.json OUT.json.

A spec: model, ours (our attention or vLLM's own), engine (arguments of vllm.LLM), deltas[agent][turn], answer (tokens
per turn, greedy), and if given history: the index of the spec whose answers stand in the contexts in place of the own
ones, so that two runs of another arithmetic meet the same prompts. timed: agents take turns one by one, then all at
once, and the steps are timed; else all agents' turns are one batch. Out: tokens, the lead of the best logit over the
second, cached prompt tokens, who attended, seconds.
"""

import argparse
import json
import os
import pathlib
import time

from vllm_fixes import bind_threads, let_kernels_register

ENVIRONMENT = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # the engine in this process: steps can be timed
    "VLLM_ALLOW_INSECURE_SERIALIZATION": "1",  # collective_rpc with a function, for attention_of
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_LOGGING_LEVEL": "WARNING",
    "VLLM_NO_USAGE_STATS": "1",
    "HF_HUB_OFFLINE": "1",
}


def choose(ours: bool) -> None:
    """Our attention or vLLM's own for the engines made from now on, here and in processes that are started."""
    os.environ["STATEFUL_KV_VLLM"] = str(int(ours))
    from vllm.plugins import load_general_plugins
    from vllm.v1.attention import selector
    from vllm.v1.attention.backends.registry import AttentionBackendEnum

    from stateful_kv.integrations import vllm as plugin

    load_general_plugins()  # the first time, as vLLM itself does
    AttentionBackendEnum.CPU_ATTN.clear_override()
    plugin.register()
    selector._cached_get_attn_backend.cache_clear()


def attention_of(worker) -> list[str]:
    """The classes that attend in a worker."""
    layers = worker.model_runner.compilation_config.static_forward_context.values()
    return sorted({type(layer.impl).__module__ + "." + type(layer.impl).__qualname__ for layer in layers})


class Engine:
    def __init__(self, spec: dict):
        import vllm

        self.vllm = vllm
        self.llm = vllm.LLM(
            model=spec["model"], skip_tokenizer_init=True, seed=0, disable_log_stats=False, enable_prefix_caching=True,
            **spec["engine"],
        )  # fmt: skip
        self.answer, self.requests = spec["answer"], 0

    def sampling(self, leads: bool):
        return self.vllm.SamplingParams(
            temperature=0, max_tokens=self.answer, ignore_eos=True, detokenize=False, logprobs=2 if leads else None
        )

    def batch(self, prompts: list[list[int]]) -> list[dict]:
        """All prompts at once, with the leads of the best tokens."""
        inputs = [self.vllm.TokensPrompt(prompt_token_ids=p) for p in prompts]
        rows = []
        for done in self.llm.generate(inputs, self.sampling(leads=True), use_tqdm=False):
            best = [sorted((c.logprob for c in step.values()), reverse=True)[:2] for step in done.outputs[0].logprobs]
            rows.append(
                {
                    "tokens": list(done.outputs[0].token_ids),
                    "leads": [round(a - b, 6) for a, b in best],
                    "cached": done.num_cached_tokens,
                }
            )
        return rows

    def timed(self, prompts: list[list[int]]) -> list[dict]:
        """The prompts at once: seconds until each has its first token, and from the last of these to the end."""
        engine = self.llm.llm_engine
        names = [f"r{self.requests + i}" for i in range(len(prompts))]
        self.requests += len(prompts)
        begin = time.perf_counter()
        for name, prompt in zip(names, prompts):
            engine.add_request(name, self.vllm.TokensPrompt(prompt_token_ids=prompt), self.sampling(leads=False))
        first, outputs, steps = {}, {}, 0
        while engine.has_unfinished_requests():
            results = engine.step()
            now = time.perf_counter()
            steps += len(first) == len(prompts)
            for result in results:
                outputs[result.request_id] = result
                first.setdefault(result.request_id, now)
        prefilled = max(first.values())
        return [
            {
                "tokens": list(outputs[name].outputs[0].token_ids),
                "cached": outputs[name].num_cached_tokens,
                "prefill_s": prefilled - begin,
                "decode_s": now - prefilled,
                "decode_steps": steps,
            }
            for name in names
        ]

    def speculation(self) -> dict[str, float]:
        found = {m.name.removeprefix("vllm:spec_decode_"): m for m in self.llm.get_metrics() if "spec_decode" in m.name}
        return {name: m.value for name, m in found.items() if hasattr(m, "value")}


def run(spec: dict) -> dict:
    begin = time.perf_counter()
    bind_threads(spec["engine"].get("tensor_parallel_size", 1))
    choose(spec["ours"])
    let_kernels_register()
    engine = Engine(spec)
    started = time.perf_counter() - begin
    deltas, history = spec["deltas"], spec.get("history")
    agents, turns = range(len(deltas)), range(len(deltas[0]))

    def conversation(run_turn) -> list[list[dict]]:
        contexts, rows = [[] for _ in agents], [[] for _ in agents]
        for turn in turns:
            for a in agents:
                contexts[a] += deltas[a][turn]
            for a, row in enumerate(run_turn(contexts)):
                rows[a].append({"context": len(contexts[a]), **row})
                contexts[a] += history[a][turn] if history else row["tokens"]
        return rows

    if spec.get("timed"):
        engine.timed([[1, 2, 3] * 30] * 2)  # kernels chosen, pages touched
        ways = {"one by one": lambda c: [engine.timed([p])[0] for p in c], "together": engine.timed}
        rows = {}
        for name, way in ways.items():
            engine.llm.reset_prefix_cache()
            rows[name] = conversation(way)
    else:
        rows = conversation(engine.batch)
    import torch
    import vllm
    from vllm.distributed import cleanup_dist_env_and_memory

    found = {
        "rows": rows,
        "attention": engine.llm.collective_rpc(attention_of),
        "speculation": engine.speculation(),
        "start_s": started,
        "seconds": time.perf_counter() - begin - started,
        "versions": {"vllm": vllm.__version__, "torch": torch.__version__, "threads": torch.get_num_threads()},
    }
    engine.llm.llm_engine.engine_core.shutdown()
    engine.llm = None
    cleanup_dist_env_and_memory()
    return found


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("specs", "out"):
        parser.add_argument(name, metavar=f"{name.upper()}.json", type=pathlib.Path)
    args = parser.parse_args()
    specs, out = args.specs, args.out
    os.environ.update(ENVIRONMENT)
    found = []
    for spec in json.loads(specs.read_text()):
        answers = spec.get("history")
        if isinstance(answers, int):  # the answers of an earlier spec
            rows = found[answers]["rows"]
            rows = rows["one by one"] if isinstance(rows, dict) else rows
            spec["history"] = [[turn["tokens"] for turn in row] for row in rows]
        found.append(run(spec))
        out.write_text(json.dumps(found))
