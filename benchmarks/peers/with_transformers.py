"""transformers as a contestant, three ways.

Variants: `recomputing` (every turn generates from the whole conversation); `cache_kept` (one DynamicCache per agent,
kept by hand, a plain greedy loop without generate()'s overhead; a fork copies the cache); `lookup` (recomputing, with
prompt lookup: on a cache that is carried from turn to turn its result is wrong).
"""

import copy
import sys

from contestant import Answer, Contestant, Turn, serve


class Transformers(Contestant):
    def __init__(self, cell: dict):
        import torch
        import transformers

        torch.set_num_threads(cell["threads"])
        torch.set_grad_enabled(False)
        self.torch, self.transformers, self.variant = torch, transformers, cell["variant"]
        self.version = f"transformers {transformers.__version__}, torch {torch.__version__}"
        dtype = getattr(torch, cell["dtype"])
        self.model = transformers.LlamaForCausalLM.from_pretrained(
            cell["checkpoint"], dtype=dtype, attn_implementation="sdpa"
        ).eval()
        config = self.model.generation_config
        config.eos_token_id, config.pad_token_id, config.do_sample = None, 0, False
        self.fed: list[int] = []  # rows of every forward pass
        self.model.register_forward_pre_hook(self._count, with_kwargs=True)
        self.caches: dict = {}

    def _count(self, module, args, kwargs) -> None:
        ids = args[0] if args else kwargs["input_ids"]
        self.fed.append(ids.shape[1])

    def start(self) -> None:
        self.caches = {}

    def turn(self, turn: Turn, first_token) -> Answer:
        self.fed.clear()
        tokens = (self._kept if self.variant == "cache_kept" else self._generate)(turn, first_token)
        drafted = sum(n - 1 for n in self.fed[1:])
        return Answer(tokens, 0.0, 0.0, self.fed[0], drafted, len(tokens) - len(self.fed) if drafted else 0)

    def _kept(self, turn: Turn, first_token) -> list[int]:
        torch = self.torch
        if turn.agent not in self.caches:
            parent = self.caches.get(turn.fork_of)
            fresh = self.transformers.DynamicCache(config=self.model.config) if parent is None else None
            self.caches[turn.agent] = copy.deepcopy(parent) if parent is not None else fresh
        cache, tokens = self.caches[turn.agent], []
        ids = torch.tensor([turn.context[cache.get_seq_length() :]])
        for _ in range(turn.answer):
            logits = self.model(input_ids=ids, past_key_values=cache, use_cache=True, logits_to_keep=1).logits
            tokens.append(int(logits[0, -1].argmax()))
            if len(tokens) == 1:
                first_token()
            ids = torch.tensor([tokens[-1:]])
        return tokens

    def _generate(self, turn: Turn, first_token) -> list[int]:
        torch, seen = self.torch, []

        class Streamer:  # put() comes for the prompt, then for every token or group of tokens
            def put(self, value) -> None:
                seen.append(value)
                if len(seen) == 2:
                    first_token()

            def end(self) -> None:
                pass

        ids = torch.tensor([turn.context])
        options = {"prompt_lookup_num_tokens": 10} if self.variant == "lookup" else {}
        out = self.model.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=turn.answer, streamer=Streamer(), **options
        )
        return out[0, len(turn.context) :].tolist()


if __name__ == "__main__":
    sys.exit(serve(Transformers))
