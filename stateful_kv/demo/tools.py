"""The demo's tools: one JSON schema each, and a World that executes a checked call on its own copy of the data.

Every tool is deterministic and works in memory only. `delegate` and `collect` hand work from one agent to another;
the driver gives their result, because only it knows the agents.
"""

from __future__ import annotations

import json
from typing import Any

from .calls import Call, CallError
from .desk import ALERTS, CUSTOMERS, METRICS, ORDERS, SETTINGS, TICKETS, Desk
from .workspace import Workspace

SUB_AGENTS = ("support", "coding", "operations")
HAND_OFFS = ("delegate", "collect")
_TEXT: dict[str, Any] = {"type": "string"}
_MINUTE = {"type": "integer", "minimum": 0, "maximum": 1440}


def _id(table: Any) -> dict[str, str]:
    letter = next(iter(table))[0]
    return {"type": "string", "pattern": f"{letter}-[0-9]+"}


def _choice(values: Any) -> dict[str, Any]:
    return {"type": "string", "enum": list(values)}


def _tool(name: str, description: str, **properties: dict[str, Any]) -> dict[str, Any]:
    parameters = {"type": "object", "properties": properties, "required": list(properties)}
    return {"name": name, "description": description, "parameters": parameters}


TOOLS = [
    _tool("list_tickets", "Tickets of one status.", status=_choice(("open", "closed"))),
    _tool("get_ticket", "One ticket.", ticket=_id(TICKETS)),
    _tool("get_customer", "One customer.", customer=_id(CUSTOMERS)),
    _tool("get_order", "One order with its fee in cents.", order=_id(ORDERS)),
    _tool("find_orders", "Ids of orders of one status.", status=_choice(("late", "shipped", "delivered"))),
    _tool(
        "refund_order", "Pay back a part of an order's fee.",
        order=_id(ORDERS), cents={"type": "integer", "minimum": 1}, reason=_TEXT,
    ),
    _tool("reply_ticket", "Answer a ticket.", ticket=_id(TICKETS), text=_TEXT, close={"type": "boolean"}),
    _tool("list_files", "Files of one folder; empty for all.", folder=_TEXT),
    _tool("read_file", "The text of one file.", path=_TEXT),
    _tool("grep", "Lines that contain a text, in all files.", text=_TEXT),
    _tool("edit_file", "Replace a text that occurs exactly once.", path=_TEXT, old=_TEXT, new=_TEXT),
    _tool("run_tests", "Run the tests of one file.", path=_TEXT),
    _tool("list_alerts", "All alerts."),
    _tool(
        "query_metric", "A metric between two minutes of the day.",
        metric=_choice(METRICS), start=_MINUTE, end=_MINUTE, how=_choice(("mean", "max", "p95")),
    ),
    _tool("get_settings", "The settings of a service.", service=_choice(SETTINGS)),
    _tool("change_setting", "Change one setting.", service=_choice(SETTINGS), key=_TEXT, value=_TEXT),
    _tool("resolve_alert", "Mark an alert as resolved.", alert=_id([row["alert"] for row in ALERTS])),
    _tool("delegate", "Hand a task to another agent, who works beside you.", agent=_choice(SUB_AGENTS), task=_TEXT),
    _tool("collect", "Wait for another agent's report.", agent=_choice(SUB_AGENTS)),
    _tool("report", "End your task with a report.", text=_TEXT),
]  # fmt: skip
SCHEMAS: dict[str, dict[str, Any]] = {tool["name"]: tool["parameters"] for tool in TOOLS}


def schema_text() -> str:
    """All tools as the model sees them: one JSON object a line."""
    return "\n".join(json.dumps(tool) for tool in TOOLS)


class World:
    """Everything the tools read and change. `execute` returns the result's text, an {"error": ...} included."""

    def __init__(self) -> None:
        self.desk, self.workspace = Desk(), Workspace()

    def report(self, text: str) -> str:
        return json.dumps({"reported": len(text)})

    def execute(self, call: Call) -> str:
        if call.name in HAND_OFFS:
            raise ValueError(f"{call.name} is executed by the driver")
        for owner in (self.desk, self.workspace, self):
            tool = getattr(owner, call.name, None) if call.name in SCHEMAS else None
            if tool is not None:
                try:
                    return tool(**call.arguments)
                except CallError as error:
                    return json.dumps({"error": str(error)})
        raise ValueError(f"there is no tool {call.name}")
