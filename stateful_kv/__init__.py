"""Stateful LLM inference for multi-agent tool calling. generate.py holds the loop; README.md the way to a kernel."""

from . import ops
from .engine import Engine
from .runtime import OutOfBlocks
from .sampling import PromptLookup, SamplingParams
from .session import Event, Request, Session, Stream, Turn, TurnStats

__all__ = [
    "Engine",
    "Event",
    "OutOfBlocks",
    "PromptLookup",
    "Request",
    "SamplingParams",
    "Session",
    "Stream",
    "Turn",
    "TurnStats",
    "ops",
]
__version__ = "0.1.0"
