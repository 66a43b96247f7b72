"""Every supported family against transformers: logits and greedy tokens of a conversation, turn by turn."""

import json

import numpy as np
import pytest
import torch
import transformers
from checkpoints import FAMILIES, VOCAB, save

import stateful_kv as skv


@pytest.fixture(scope="session")
def checkpoints(tmp_path_factory):
    return tmp_path_factory.mktemp("checkpoints")


def oracle(path, dtype=torch.float32):
    return transformers.AutoModelForCausalLM.from_pretrained(path, dtype=dtype, attn_implementation="eager").eval()


def capture_logits(engine) -> list[torch.Tensor]:
    """Every logits row the engine's model computes from now on, one tensor per step."""
    seen, compute = [], engine.model.logits
    engine.model.logits = lambda hidden: seen.append(compute(hidden)) or seen[-1]
    return seen


def turns(seed: int, lengths=(70, 9, 1, 33)):
    r = np.random.default_rng(seed)
    return [r.integers(0, VOCAB, n).tolist() for n in lengths]


@pytest.mark.parametrize("name", FAMILIES)
@torch.no_grad()
def test_logits_and_greedy_tokens_agree_with_transformers(name, checkpoints):
    path = save(name, checkpoints)
    reference = oracle(path)
    engine = skv.Engine.from_pretrained(path, dtype=torch.float32, num_blocks=64, speculation=None, max_batch_tokens=40)
    seen = capture_logits(engine)
    session, conversation = engine.open_session(), []
    for delta in turns(1):
        seen.clear()
        turn = session.generate(delta, skv.SamplingParams(max_tokens=6))
        start = len(conversation) + len(delta)
        conversation += delta + turn.tokens
        expected = reference(torch.tensor([conversation[:-1]])).logits[0, start - 1 :]
        torch.testing.assert_close(torch.cat(seen), expected, rtol=2e-4, atol=2e-4)
        assert turn.tokens == expected.argmax(-1).tolist()
    assert session.tokens == conversation


@pytest.mark.parametrize("name", ["llama3", "qwen3", "mistral"])
@torch.no_grad()
def test_bfloat16_is_as_close_as_transformers_is(name, checkpoints):
    path = save(name, checkpoints)
    prompt = turns(2)[0]
    exact = oracle(path)(torch.tensor([prompt])).logits[0, -1]
    theirs = oracle(path, torch.bfloat16)(torch.tensor([prompt])).logits[0, -1].float()
    engine = skv.Engine.from_pretrained(path, dtype=torch.bfloat16, num_blocks=64)
    assert engine.model.dtype == torch.bfloat16
    ours = engine.score(prompt)
    assert (ours - exact).abs().mean() <= 1.5 * (theirs - exact).abs().mean()


def test_sharded_checkpoint_and_score(checkpoints, tmp_path):
    whole, sharded = save("llama2", checkpoints), save("llama2", tmp_path, max_shard_size="100KB")
    assert len(list(sharded.glob("*.safetensors"))) > 1
    prompt = turns(3)[0]
    a, b = (skv.Engine.from_pretrained(p, num_blocks=16).score(prompt) for p in (whole, sharded))
    assert torch.equal(a, b)


def edited(path, tmp_path, **changes):
    """A copy of the checkpoint whose config.json has other entries."""
    copy = tmp_path / "edited"
    copy.mkdir()
    config = json.loads((path / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps({**config, **changes}))
    (copy / "model.safetensors").write_bytes((path / "model.safetensors").read_bytes())
    return copy


@pytest.mark.parametrize(
    "changes, error, message",
    [
        (dict(model_type="gpt2", architectures=["GPT2LMHeadModel"]), NotImplementedError, "GPT2LMHeadModel"),
        (dict(num_hidden_layers=4), ValueError, r"model\.layers\.3\..* is missing"),
        (dict(tie_word_embeddings=False), ValueError, r"'lm_head\.weight' is missing"),
        (dict(intermediate_size=128), ValueError, r"model\.layers\.0\.mlp.*has shape"),
        (dict(rope_parameters=dict(rope_type="longrope", rope_theta=1e4)), NotImplementedError, "longrope"),
        (dict(hidden_act="gelu"), NotImplementedError, "gelu"),
        (dict(quantization_config=dict(quant_method="awq")), NotImplementedError, "quantized"),
    ],
    ids=["architecture", "missing layer", "missing head", "shape", "rope", "activation", "quantized"],
)
def test_what_is_not_supported_is_named(changes, error, message, checkpoints, tmp_path):
    with pytest.raises(error, match=message):
        skv.Engine.from_pretrained(edited(save("llama3", checkpoints), tmp_path, **changes))


def test_tensors_that_the_config_does_not_explain_are_refused(checkpoints, tmp_path):
    with pytest.raises(ValueError, match=r"no place for tensor 'model\.layers\.2"):
        skv.Engine.from_pretrained(edited(save("llama3", checkpoints), tmp_path, num_hidden_layers=2))


def test_a_head_that_differs_from_the_embedding_is_used(checkpoints, tmp_path):
    untied = save("llama2", checkpoints)
    claims_tied = edited(untied, tmp_path, tie_word_embeddings=True)
    a, b = (skv.Engine.from_pretrained(p, num_blocks=16).score(turns(4)[0]) for p in (untied, claims_tied))
    assert torch.equal(a, b)


def test_yarn_extends_the_positions(checkpoints):
    engine = skv.Engine.from_pretrained(save("llama-yarn", checkpoints), num_blocks=8)
    assert engine.max_length == 512  # 128 trained positions, factor 4


def test_missing_files_are_named(tmp_path, checkpoints):
    with pytest.raises(FileNotFoundError, match=r"config\.json"):
        skv.Engine.from_pretrained(tmp_path)
    copy = edited(save("llama3", checkpoints), tmp_path)
    (copy / "model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"model\.safetensors"):
        skv.Engine.from_pretrained(copy)
