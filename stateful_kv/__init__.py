"""Stateful LLM inference for multi-agent tool calling. generate.py holds the loop; README.md the way to a kernel."""

from . import ops
from .engine import Engine, Event, OutOfBlocks, PromptLookup, Request, SamplingParams, Session, Turn, TurnStats

__all__ = [
    "Engine",
    "Event",
    "OutOfBlocks",
    "PromptLookup",
    "Request",
    "SamplingParams",
    "Session",
    "Turn",
    "TurnStats",
    "ops",
]
__version__ = "0.1.0"
