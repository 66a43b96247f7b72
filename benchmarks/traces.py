"""Seeded conversations of one tool-calling agent, as token ids of the demo's tokenizer.

Tool results in JSON whose ids and fields recur, as agents' contexts do.
"""

import json
import random

from stateful_kv.demo.text import ChatText
from stateful_kv.demo.transcripts import shared_prompt

_NAMES = ["Ana", "Ben", "Carla", "Dmitri", "Elena", "Farid", "Grace", "Hugo", "Ines", "Jonas"]
_STATES = ["open", "pending", "shipped", "delivered", "cancelled", "refunded", "escalated"]
_ITEMS = ["desk lamp", "monitor arm", "laptop stand", "webcam", "usb-c hub", "travel mug"]


def _order(r: random.Random, customers: list[str]) -> dict:
    items = [
        {"sku": f"SKU-{r.randrange(100, 999)}", "name": r.choice(_ITEMS), "quantity": r.randrange(1, 5)}
        for _ in range(r.randrange(1, 3))
    ]
    return {
        "order_id": f"ORD-{r.randrange(10**5, 10**6)}",
        "customer_id": r.choice(customers),
        "customer_name": r.choice(_NAMES),
        "status": r.choice(_STATES),
        "total_cents": r.randrange(500, 90000),
        "items": items,
    }


def conversation(seed: int, turns: int, low: int, high: int) -> list[list[int]]:
    """One delta per turn: the first holds the system prompt and a tool result, each later one a tool result of `low` to
    `high` tokens, ending where the assistant begins to write."""
    r, text = random.Random(seed), ChatText()
    customers = [f"CUS-{r.randrange(1000, 9999)}" for _ in range(3)]
    deltas = []
    for turn in range(turns):
        want = r.randrange(low, high + 1)
        tail = text.end_message() + text.begin_message("assistant")
        body: list[int] = []
        while len(body) < want - len(tail):
            body += text.body(json.dumps(_order(r, customers)) + "\n")
        head = text.message("system", shared_prompt()) if turn == 0 else text.end_message()
        deltas.append(head + text.begin_message("tool") + body[: want - len(tail)] + tail)
    return deltas
