"""Qwen3: RMSNorm of every query and key head, its own head_dim, no QKV bias unless the config asks for one."""

from .decoder import DecoderConfig
from .fields import Fields
from .llama import base_config
from .qwen2 import DEFAULTS as QWEN2_DEFAULTS
from .qwen2 import upper_windows

DEFAULTS = {**QWEN2_DEFAULTS, "head_dim": 128}


def parse(config: Fields) -> DecoderConfig:
    config = config.with_defaults(**DEFAULTS)
    bias = config.flag("attention_bias")
    return base_config(config, "qwen3", qkv_bias=bias, output_bias=bias, qk_norm=True, windows=upper_windows(config))
