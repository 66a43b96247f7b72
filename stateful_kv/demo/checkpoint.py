"""A seeded random-weight Llama checkpoint in the Hugging Face layout, for runs without a trained model.

It says nothing sensible, but it is a real checkpoint on the real path: config.json, model.safetensors and
tokenizer.json, read by the same loader as any other. The scales of the weights are chosen so that greedy answers
wander and then fall into repetitions, never at once: there is something to draft, and something to reject.
"""

from __future__ import annotations

import atexit
import json
import shutil
import tempfile
from pathlib import Path

from .text import END, TOKENIZER_FILE

EMBEDDED = Path(__file__).parent / "model"  # where a trained model (agents/) becomes the default
HIDDEN, LAYERS, HEADS, KV_HEADS, HEAD_DIM, INTERMEDIATE = 256, 4, 4, 2, 64, 704
_EMBED_STD, _QK_STD, _STD, _FINAL_NORM = 0.3, 0.1, 0.06, 0.2


def random_checkpoint(seed: int = 0) -> Path:
    """A random checkpoint in a temporary directory that lives as long as the process."""
    folder = tempfile.TemporaryDirectory(prefix="stateful_kv_")
    atexit.register(folder.cleanup)
    write_random_checkpoint(Path(folder.name), seed)
    return Path(folder.name)


def write_random_checkpoint(directory: Path, seed: int = 0) -> None:
    """Writes config.json, model.safetensors (float32) and tokenizer.json into an existing directory."""
    import torch
    from safetensors.torch import save_file
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(TOKENIZER_FILE))
    vocab = tokenizer.get_vocab_size()
    end = tokenizer.token_to_id(END)
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_act": "silu",
        "hidden_size": HIDDEN,
        "intermediate_size": INTERMEDIATE,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "num_key_value_heads": KV_HEADS,
        "head_dim": HEAD_DIM,
        "max_position_embeddings": 8192,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "attention_bias": False,
        "mlp_bias": False,
        "tie_word_embeddings": True,
        "vocab_size": vocab,
        "bos_token_id": None,
        "eos_token_id": end,
        "torch_dtype": "float32",
    }
    generator = torch.Generator().manual_seed(seed)

    def normal(rows: int, columns: int, std: float) -> torch.Tensor:
        return torch.randn(rows, columns, generator=generator) * std

    tensors = {
        "model.embed_tokens.weight": normal(vocab, HIDDEN, _EMBED_STD),
        "model.norm.weight": torch.full((HIDDEN,), _FINAL_NORM),
    }
    for layer in range(LAYERS):
        name = f"model.layers.{layer}."
        tensors[name + "input_layernorm.weight"] = torch.ones(HIDDEN)
        tensors[name + "post_attention_layernorm.weight"] = torch.ones(HIDDEN)
        tensors[name + "self_attn.q_proj.weight"] = normal(HEADS * HEAD_DIM, HIDDEN, _QK_STD)
        tensors[name + "self_attn.k_proj.weight"] = normal(KV_HEADS * HEAD_DIM, HIDDEN, _QK_STD)
        tensors[name + "self_attn.v_proj.weight"] = normal(KV_HEADS * HEAD_DIM, HIDDEN, _STD)
        tensors[name + "self_attn.o_proj.weight"] = normal(HIDDEN, HEADS * HEAD_DIM, _STD)
        tensors[name + "mlp.gate_proj.weight"] = normal(INTERMEDIATE, HIDDEN, _STD)
        tensors[name + "mlp.up_proj.weight"] = normal(INTERMEDIATE, HIDDEN, _STD)
        tensors[name + "mlp.down_proj.weight"] = normal(HIDDEN, INTERMEDIATE, _STD)
    save_file(tensors, str(directory / "model.safetensors"), metadata={"format": "pt"})
    (directory / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    shutil.copyfile(TOKENIZER_FILE, directory / "tokenizer.json")
