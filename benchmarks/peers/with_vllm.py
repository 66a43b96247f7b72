"""vLLM as a contestant: its engine in this process, prefix caching on.

Variants: `prefix`; `lookup` (with n-gram speculation); `recomputing` (prefix caching off). Turns of one step are in its
batch together. Needs VLLM_CPU_KVCACHE_SPACE (set here); VLLM_ENABLE_V1_MULTIPROCESSING=0 keeps the engine here.
"""

import os
import sys

from contestant import Answer, Contestant, Turn, serve
from vllm_fixes import bind_threads, let_kernels_register

BLOCK = 32  # the CPU backend wants a multiple of it
SPECULATION = {"method": "ngram", "num_speculative_tokens": 8, "prompt_lookup_max": 4, "prompt_lookup_min": 1}


class VLLM(Contestant):
    def __init__(self, cell: dict):
        os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "4")
        os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
        os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
        bind_threads(1, cell["threads"])
        import vllm

        let_kernels_register()

        self.vllm, self.version = vllm, f"vllm {vllm.__version__}"
        variant = cell["variant"]
        if variant not in ("prefix", "lookup", "recomputing"):
            raise ValueError(f"variant: unknown {variant}")
        options = {"speculative_config": SPECULATION} if variant == "lookup" else {}
        if cell["pool_tokens"]:
            options["num_gpu_blocks_override"] = cell["pool_tokens"] // BLOCK
        self.llm = vllm.LLM(
            model=cell["checkpoint"],
            skip_tokenizer_init=True,
            dtype=cell["dtype"],
            max_model_len=-(-(cell["max_context"] + 64) // BLOCK) * BLOCK,
            enable_prefix_caching=variant != "recomputing",
            block_size=BLOCK,
            max_num_seqs=max(1, cell["agents"]),
            disable_log_stats=False,
            **options,
        )
        self.engine, self.count = self.llm.llm_engine, 0

    def start(self) -> None:
        self.llm.reset_prefix_cache()

    def _counters(self) -> tuple[int, int] | None:
        """Tokens drafted and accepted so far."""
        try:
            values = {m.name: getattr(m, "value", None) for m in self.llm.get_metrics()}
            names = ("vllm:spec_decode_num_draft_tokens", "vllm:spec_decode_num_accepted_tokens")
            return tuple(int(values.get(name) or 0) for name in names)
        except (AttributeError, AssertionError):
            return None

    def take(self, turns: list[Turn]) -> list[Answer]:
        before, begin = self._counters(), self.clock()
        ids = []
        for turn in turns:
            self.count += 1
            ids.append(str(self.count))
            params = self.vllm.SamplingParams(
                temperature=0.0, max_tokens=turn.answer, ignore_eos=True, detokenize=False
            )
            self.engine.add_request(ids[-1], {"prompt_token_ids": turn.context}, params)
        first: dict[str, float] = {}
        done: dict[str, tuple] = {}
        while self.engine.has_unfinished_requests():
            for output in self.engine.step():
                now = self.clock() - begin
                if output.outputs[0].token_ids:
                    first.setdefault(output.request_id, now)
                if output.finished:
                    done[output.request_id] = output, now
        after = self._counters()
        answers = []
        for turn, key in zip(turns, ids):
            output, now = done[key]
            computed = len(turn.context) - (output.num_cached_tokens or 0)
            answers.append(Answer(list(output.outputs[0].token_ids), first[key], now, computed, None, None))
        if before and after:  # of the step: told by its first row
            answers[0].drafted, answers[0].accepted = after[0] - before[0], after[1] - before[1]
            for answer in answers[1:]:
                answer.drafted = answer.accepted = 0
        return answers


if __name__ == "__main__":
    sys.exit(serve(VLLM))
