"""Writes tokenizer.json: trains the demo's tokenizer on all that its conversations contain, and on some code.

python -m stateful_kv.demo.train_tokenizer
"""

from __future__ import annotations

from pathlib import Path

from .calls import Call
from .desk import CUSTOMERS, METRICS, ORDERS, SETTINGS, TICKETS
from .text import train_tokenizer
from .tools import HAND_OFFS, World
from .transcripts import load_transcripts, shared_prompt
from .workspace import FILES


def corpus() -> list[str]:
    world = World()
    texts = [shared_prompt(), *FILES.values(), world.desk.list_alerts(), world.desk.list_tickets("open")]
    texts += [world.desk.get_order(key) for key in ORDERS] + [world.desk.get_ticket(key) for key in TICKETS]
    texts += [world.desk.get_customer(key) for key in CUSTOMERS] + [world.desk.get_settings(key) for key in SETTINGS]
    texts += [world.desk.query_metric(key, 400, 500, "mean") for key in METRICS]
    texts += [world.workspace.run_tests(key) for key in FILES if key.startswith("tests/")]
    for transcript in load_transcripts().values():
        texts.append(transcript.role)
        for turn in transcript.turns:
            texts += [turn.user or "", turn.text()]
            if turn.call.name not in HAND_OFFS:
                texts.append(world.execute(Call(turn.call.name, turn.call.arguments)))
    # Twice, so that every word of the conversations becomes one token; the demo's own code gives breadth.
    return texts * 2 + [path.read_text(encoding="utf-8") for path in sorted(Path(__file__).parent.glob("*.py"))]


if __name__ == "__main__":
    train_tokenizer(corpus())
