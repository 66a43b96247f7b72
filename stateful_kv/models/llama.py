"""Llama 2 and 3."""

from .decoder import DecoderConfig
from .rope import rope_config


def base_config(config: dict, family: str, **extra) -> DecoderConfig:
    """What the Llama-like families have in common; `extra` overrides."""
    heads = config["num_attention_heads"]
    head_dim = config.get("head_dim") or config["hidden_size"] // heads
    if config.get("hidden_act", "silu") != "silu":
        raise NotImplementedError(f"{family}: hidden_act {config['hidden_act']!r}, expected 'silu'")
    rope, max_position = rope_config(config, head_dim), config.get("max_position_embeddings", 2048)
    if rope.kind == "yarn":  # some checkpoints keep the trained length there and leave the extended one to the factor
        max_position = max(max_position, int(rope.original_max_position * float(dict(rope.scaling)["factor"])))
    fields = dict(
        family=family,
        vocab_size=config["vocab_size"],
        hidden_size=config["hidden_size"],
        intermediate_size=config["intermediate_size"],
        num_layers=config["num_hidden_layers"],
        num_heads=heads,
        num_kv_heads=config.get("num_key_value_heads") or heads,
        head_dim=head_dim,
        rms_norm_eps=config.get("rms_norm_eps", 1e-6),
        max_position=max_position,
        rope=rope,
        tie_word_embeddings=bool(config.get("tie_word_embeddings", False)),
    )
    return DecoderConfig(**{**fields, **extra})


def sliding_windows(config: dict, sliding_layer) -> tuple[int, ...]:
    """Per layer: a window of w tokens, the current one among them, hides keys more than w - 1 to the left."""
    window = config.get("sliding_window")
    if not window:
        return ()
    types = config.get("layer_types")
    layers = range(config["num_hidden_layers"])
    slides = [types[i] == "sliding_attention" if types else sliding_layer(i) for i in layers]
    return tuple(window - 1 if s else -1 for s in slides) if any(slides) else ()


def parse(config: dict) -> DecoderConfig:
    bias = bool(config.get("attention_bias", False))
    mlp_bias = bool(config.get("mlp_bias", False))
    return base_config(config, "llama", qkv_bias=bias, output_bias=bias, mlp_bias=mlp_bias)
