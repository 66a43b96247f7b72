"""An engine that runs on the CUDA kernels alone, its linears included: cold = warm, bit for bit.

tests/test_deterministic.py does the same, at length, on the CPU's kernels. Here it is one small model and a few turns,
on the emulator and, where there is one, on a GPU.
"""

import random

import pytest
import torch
from checkpoints import save
from logits_tap import Seen, Tap

import stateful_kv as skv
from stateful_kv import ops

VOCAB = 64
SHAPE = dict(
    num_hidden_layers=2, hidden_size=64, intermediate_size=96, num_attention_heads=2, num_key_value_heads=1,
    head_dim=64, vocab_size=VOCAB,
)  # fmt: skip


def turns_of(seed):
    """The first turn holds every token, so that whatever is answered has been met and a draft follows it."""
    r = random.Random(seed)
    return [
        (r.sample(range(VOCAB), VOCAB), skv.SamplingParams(max_tokens=5)),
        (r.sample(range(VOCAB), 9), skv.SamplingParams(max_tokens=4, temperature=0.8, seed=seed)),
    ]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_from_the_cache_and_from_nothing_are_the_same_bits(backend, dtype, tmp_path, monkeypatch):
    if backend.name == "cpu":
        pytest.skip("test_deterministic.py")
    if backend.emulated:
        monkeypatch.setattr(ops, "_op", backend.ops)
    path, seen = save("qwen2", tmp_path, SHAPE), Seen()

    def engine_of(**options):
        engine = skv.Engine.from_pretrained(
            path, device=backend.device, dtype=dtype, num_blocks=64, deterministic=True, **options
        )
        Tap(engine, seen)
        return engine

    # Two sessions in one batch, in chunks of at most 33 rows, with drafts.
    warm = engine_of(max_batch_tokens=33, speculation=skv.PromptLookup(adaptive=False))
    conversations = [turns_of(3), turns_of(40)]
    sessions, drafted = [warm.open_session() for _ in conversations], 0
    answers = [[] for _ in conversations]
    for i in range(2):
        requests = [skv.Request(s, *turns[i]) for s, turns in zip(sessions, conversations)]
        for own, turn in zip(answers, warm.generate(requests)):
            own.append(turn.tokens)
            drafted += turn.stats.drafted

    cold = engine_of(prefix_cache=False, speculation=None)
    for turns, own in zip(conversations, answers):
        prompt = []
        for (tokens, params), answer in zip(turns, own):
            assert cold.complete(prompt + tokens, params).tokens == answer
            prompt += tokens + answer
    assert seen.compared > 10 and drafted > 0
    assert not seen.different
