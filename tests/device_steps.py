"""What the tests of the device's steps share: a small model, engines on it and parameters of turns."""

import torch
from checkpoints import save

import stateful_kv as skv

FIXED = skv.PromptLookup(adaptive=False)  # drafts whatever they cost here
VOCAB = 40  # few, so that answers repeat themselves and drafts are accepted
SHAPE = {"num_hidden_layers": 2, "hidden_size": 32, "intermediate_size": 48, "vocab_size": VOCAB}
STOPS = tuple(range(0, VOCAB, 3))


def engine_of(model, **options):
    return skv.Engine(model, **{"num_blocks": 200, "block_size": 8, "max_seqs": 8, "speculation": FIXED, **options})


def params_of(r):
    return skv.SamplingParams(
        max_tokens=r.choice([1, 2, 9, 25]), temperature=r.choice([0.0, 0.0, 0.8]), top_k=r.choice([0, 5]),
        top_p=r.choice([1.0, 0.9]), stop_token_ids=r.choice([(), STOPS]), seed=r.randrange(100),
    )  # fmt: skip


def small_model(folder):
    return skv.models.load(save("llama2", folder, SHAPE), torch.device("cpu"))
