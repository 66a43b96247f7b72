"""Stateful LLM inference for multi-agent tool calling. See README.md for the way from generate.py to a kernel."""

from . import ops

__all__ = ["ops"]
__version__ = "0.1.0"
