"""Model families: config.json -> DecoderConfig (one file per family), weights -> Decoder."""

from .checkpoint import FAMILIES, load, read_config
from .decoder import Decoder, DecoderConfig

__all__ = ["FAMILIES", "Decoder", "DecoderConfig", "load", "read_config"]
