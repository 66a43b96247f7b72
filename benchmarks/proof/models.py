"""The models of the comparison: random weights of a named shape, or a checkpoint directory (the embedded model)."""

import pathlib

FOLDER = pathlib.Path(__file__).resolve().parents[2] / "build" / "proof" / "models"

# head_dim is 64 everywhere, as small models have it. initializer_range: smaller, and greedy answers loop at once.
SHAPES = {
    "tiny": dict(hidden_size=128, intermediate_size=256, num_hidden_layers=2, num_attention_heads=2, vocab_size=2560),
    "10M": dict(hidden_size=320, intermediate_size=864, num_hidden_layers=6, num_attention_heads=5, vocab_size=4096),
    "110M": dict(
        hidden_size=768, intermediate_size=2048, num_hidden_layers=12, num_attention_heads=12, vocab_size=24000
    ),
}
_KV_HEADS = {"tiny": 1, "10M": 5, "110M": 4}


def label(model: str) -> str:
    """What a model is called in results: its shape, or its directory's name."""
    return model if model in SHAPES else pathlib.Path(model).name


def checkpoint(model: str) -> pathlib.Path:
    """The directory of a model; random weights are made when they are asked for the first time."""
    if model not in SHAPES:
        if not (pathlib.Path(model) / "config.json").is_file():
            raise FileNotFoundError(f"model: {model} is neither one of {', '.join(SHAPES)} nor a checkpoint directory")
        return pathlib.Path(model).resolve()
    folder = FOLDER / model
    if not (folder / "model.safetensors").exists():
        _make(model, folder)
    return folder


def _make(model: str, folder: pathlib.Path) -> None:
    import torch
    import transformers

    torch.manual_seed(7)
    config = transformers.LlamaConfig(
        **SHAPES[model],
        num_key_value_heads=_KV_HEADS[model],
        max_position_embeddings=131072,
        initializer_range=0.05,
        tie_word_embeddings=False,
    )
    # bfloat16 numbers: what every contestant reads exactly, whatever it computes in
    transformers.LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)
