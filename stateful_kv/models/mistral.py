"""Mistral: Llama with an optional sliding window, in every layer unless layer_types says in which."""

from .decoder import DecoderConfig
from .fields import Fields
from .llama import base_config, sliding_layers, windows

DEFAULTS = dict(max_position_embeddings=131072, sliding_window=4096)


def parse(config: Fields) -> DecoderConfig:
    config = config.with_defaults(**DEFAULTS)
    slides = sliding_layers(config)
    if slides is None:
        slides = [config["sliding_window"] is not None] * config.integer("num_hidden_layers")
    return base_config(config, "mistral", windows=windows(config, slides))
