"""Qwen3: RMSNorm of every query and key head, its own head_dim, no QKV bias unless the config asks for one."""

from .decoder import DecoderConfig
from .llama import base_config, sliding_windows


def parse(config: dict) -> DecoderConfig:
    bias = bool(config.get("attention_bias", False))
    windows = ()
    if config.get("use_sliding_window"):
        first = config.get("max_window_layers", 28)
        windows = sliding_windows(config, lambda layer: layer >= first)
    head_dim = {"head_dim": 128, **config}  # the family's default where an old config leaves it out
    return base_config(head_dim, "qwen3", qkv_bias=bias, output_bias=bias, qk_norm=True, windows=windows)
