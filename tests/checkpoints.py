"""Random-weight checkpoints of each supported family, written by transformers itself."""

import pathlib

import torch
import transformers

VOCAB = 320
_SHAPE = dict(
    vocab_size=VOCAB,
    hidden_size=64,
    intermediate_size=96,
    num_hidden_layers=3,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=512,
    initializer_range=0.35,  # sharp enough that greedy choices are not near-ties
)
_LLAMA3_ROPE = dict(
    rope_type="llama3",
    rope_theta=10000.0,
    factor=4.0,
    low_freq_factor=1.0,
    high_freq_factor=4.0,
    original_max_position_embeddings=128,
)
_YARN_ROPE = dict(rope_type="yarn", rope_theta=10000.0, factor=4.0, original_max_position_embeddings=128)

# name -> (config class, overrides)
FAMILIES = {
    "llama2": ("LlamaConfig", dict(num_key_value_heads=4, tie_word_embeddings=False)),
    "llama3": ("LlamaConfig", dict(rope_parameters=_LLAMA3_ROPE, tie_word_embeddings=True)),
    "llama-linear": ("LlamaConfig", dict(rope_parameters=dict(rope_type="linear", rope_theta=10000.0, factor=2.0))),
    "llama-yarn": ("LlamaConfig", dict(rope_parameters=_YARN_ROPE)),
    "llama-bias": ("LlamaConfig", dict(attention_bias=True, mlp_bias=True, head_dim=32)),
    "qwen2": ("Qwen2Config", dict(tie_word_embeddings=True)),
    "qwen2-window": ("Qwen2Config", dict(use_sliding_window=True, sliding_window=24, max_window_layers=1)),
    "qwen3": ("Qwen3Config", dict(head_dim=32, tie_word_embeddings=True)),
    "mistral": ("MistralConfig", dict(sliding_window=24)),
}


def save(name: str, directory: pathlib.Path, shape: dict | None = None, **save_options) -> pathlib.Path:
    """Writes the checkpoint `name` below `directory` (once) and returns its folder; `shape` overrides its config."""
    path = directory / name
    if not path.exists():
        config_class, overrides = FAMILIES[name]
        config = getattr(transformers, config_class)(**{**_SHAPE, **overrides, **(shape or {})})
        torch.manual_seed(sum(map(ord, name)))
        model = transformers.AutoModelForCausalLM.from_config(config)
        with torch.no_grad():  # biases and norms start at 0 and 1: move them, or a forgotten one would go unnoticed
            for parameter in model.parameters():
                if parameter.ndim == 1:
                    parameter.add_(torch.randn_like(parameter) * 0.2)
        model.save_pretrained(path, **save_options)
    return path
