"""The committed transcripts: what the user says and what each agent would answer, without the tools' results.

A transcript is a script, not a recording: the result of every call comes from executing it at run time.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from .calls import Call, check_value
from .tools import SCHEMAS, schema_text

FOLDER = Path(__file__).parent / "transcripts"
ORCHESTRATOR, ANALYST = "orchestrator", "analyst"


@dataclass(frozen=True)
class ScriptTurn:
    user: str | None  # a user's message that comes before this answer
    say: str
    call: Call

    def text(self) -> str:
        """The reference answer as an assistant's message."""
        return f"{self.say}\n{self.call.text()}"


@dataclass(frozen=True)
class Transcript:
    agent: str
    role: str
    turns: tuple[ScriptTurn, ...]


def load_transcript(agent: str) -> Transcript:
    data = json.loads((FOLDER / f"{agent}.json").read_text(encoding="utf-8"))
    turns = []
    for turn in data["turns"]:
        call = Call(turn["call"]["name"], turn["call"]["arguments"])
        check_value(call.arguments, SCHEMAS[call.name], call.name)
        turns.append(ScriptTurn(turn.get("user"), turn["say"], call))
    return Transcript(data["agent"], data["role"], tuple(turns))


def load_transcripts() -> dict[str, Transcript]:
    return {path.stem: load_transcript(path.stem) for path in sorted(FOLDER.glob("*.json"))}


def shared_prompt() -> str:
    """The system prompt that all agents begin with: the rules and every tool's schema."""
    return (FOLDER / "system.txt").read_text(encoding="utf-8") + schema_text()
