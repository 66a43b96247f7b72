"""Qwen2 and Qwen2.5: biases on the QKV projections, optional sliding window in the upper layers."""

from .decoder import DecoderConfig
from .llama import base_config, sliding_windows


def parse(config: dict) -> DecoderConfig:
    windows = ()
    if config.get("use_sliding_window"):
        first = config.get("max_window_layers", 28)
        windows = sliding_windows(config, lambda layer: layer >= first)
    return base_config(config, "qwen2", qkv_bias=True, windows=windows)
