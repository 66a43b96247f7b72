"""Qwen2 and Qwen2.5: biases on the QKV projections, optional sliding window in the upper layers."""

from .decoder import DecoderConfig
from .fields import Fields
from .llama import base_config, sliding_layers, windows

DEFAULTS = dict(max_position_embeddings=32768, sliding_window=4096, max_window_layers=28)


def upper_windows(config: Fields) -> tuple[int, ...]:
    """Windows in the layers from max_window_layers on, unless layer_types says in which."""
    is_on, slides = config.flag("use_sliding_window"), sliding_layers(config)
    if slides is None:
        if not is_on or config["sliding_window"] is None:
            return ()
        first = config.integer("max_window_layers", low=-(2**31))
        slides = [i >= first for i in range(config.integer("num_hidden_layers"))]
    elif any(slides) and not is_on:
        raise ValueError(
            f"{config.where}: layer_types[{slides.index(True)}] is 'sliding_attention', expected 'full_attention' "
            "as long as use_sliding_window is not true"
        )
    return windows(config, slides)


def parse(config: Fields) -> DecoderConfig:
    config = config.with_defaults(**DEFAULTS)
    return base_config(config, "qwen2", qkv_bias=True, windows=upper_windows(config))
