"""Mistral: Llama with an optional sliding window in every layer."""

from .decoder import DecoderConfig
from .llama import base_config, sliding_windows


def parse(config: dict) -> DecoderConfig:
    return base_config(config, "mistral", windows=sliding_windows(config, lambda layer: True))
