"""The support desk and its servers, in memory: customers, orders, tickets, metrics, alerts, settings.

Everything is a pure function of the data below and of the calls made so far, so a transcript always gets the same
results. Money is in cents, time in minutes since midnight of one imagined day.
"""

from __future__ import annotations

import copy
import json
from typing import Any

from .calls import CallError

CUSTOMERS = {
    "C-201": {"name": "Ana Duarte", "plan": "standard", "since": 2021},
    "C-204": {"name": "Ben Okafor", "plan": "plus", "since": 2019},
    "C-209": {"name": "Kira Hansen", "plan": "standard", "since": 2023},
    "C-215": {"name": "Mona Silva", "plan": "plus", "since": 2022},
}
_ORDER_KEYS = ("customer", "item", "cents", "days_late", "fee", "status")
ORDERS = {
    key: dict(zip(_ORDER_KEYS, values))
    for key, *values in (
        ("O-7311", "C-201", "oak desk", 24900, 3, 1500, "late"),
        ("O-7318", "C-204", "reading lamp", 5900, 2, 1000, "late"),
        ("O-7320", "C-209", "wool rug", 18900, 0, 0, "delivered"),
        ("O-7325", "C-209", "bookcase", 32900, 5, 1500, "late"),
        ("O-7331", "C-215", "desk chair", 15900, 0, 0, "shipped"),
        ("O-7340", "C-215", "coat rack", 7900, 0, 0, "shipped"),
    )
}
TICKETS = {
    "T-508": {"customer": "C-215", "order": "O-7331", "subject": "where is my chair", "status": "closed"},
    "T-512": {"customer": "C-201", "order": "O-7311", "subject": "late fee is too high", "status": "open"},
    "T-513": {"customer": "C-204", "order": "O-7318", "subject": "fee for two days", "status": "open"},
    "T-517": {"customer": "C-209", "order": "O-7325", "subject": "wrong fee on bookcase", "status": "open"},
}
SETTINGS = {
    "billing": {"release": "4.12", "late_fees": "on", "workers": "4"},
    "checkout": {"release": "9.03", "late_fees": "on", "workers": "8"},
}
ALERTS = [
    {"alert": "A-31", "service": "billing", "metric": "fee_cents", "since": 512, "state": "firing"},
    {"alert": "A-29", "service": "checkout", "metric": "queue_depth", "since": 430, "state": "firing"},
]
# A changed setting takes effect at this minute, on the metrics too.
TAKES_EFFECT = 560
# value(minute) = base + slope of a saw tooth + step from the given minute on
METRICS = {"fee_cents": (420, 7, 780, 510), "queue_depth": (12, 3, 30, 425), "error_rate": (2, 1, 0, 0)}


def _find(table: dict[str, dict[str, Any]], key: str, what: str) -> dict[str, Any]:
    if key not in table:
        raise CallError(f"there is no {what} {key}")
    return table[key]


def _json(value: Any) -> str:
    return json.dumps(value)


class Desk:
    """One copy of the data, changed by the calls of one run."""

    def __init__(self) -> None:
        self.orders, self.tickets = copy.deepcopy(ORDERS), copy.deepcopy(TICKETS)
        self.settings, self.alerts = copy.deepcopy(SETTINGS), copy.deepcopy(ALERTS)
        self.fees_off_since: int | None = None
        self.next_refund = 90

    def list_tickets(self, status: str) -> str:
        rows = [{"ticket": key, **row} for key, row in self.tickets.items() if row["status"] == status]
        return _json([{"ticket": row["ticket"], "order": row["order"], "subject": row["subject"]} for row in rows])

    def get_ticket(self, ticket: str) -> str:
        return _json({"ticket": ticket, **_find(self.tickets, ticket, "ticket")})

    def get_customer(self, customer: str) -> str:
        return _json({"customer": customer, **_find(CUSTOMERS, customer, "customer")})

    def get_order(self, order: str) -> str:
        return _json({"order": order, **_find(self.orders, order, "order")})

    def find_orders(self, status: str) -> str:
        return _json([key for key, row in self.orders.items() if row["status"] == status])

    def refund_order(self, order: str, cents: int, reason: str) -> str:
        row = _find(self.orders, order, "order")
        if cents > row["fee"]:
            raise CallError(f"{order}: only {row['fee']} cents of fees can be refunded")
        row["fee"] -= cents
        self.next_refund += 1
        return _json({"refund": f"R-{self.next_refund}", "order": order, "cents": cents, "fee_left": row["fee"]})

    def reply_ticket(self, ticket: str, text: str, close: bool) -> str:
        row = _find(self.tickets, ticket, "ticket")
        if close:
            row["status"] = "closed"
        return _json({"ticket": ticket, "sent": len(text), "status": row["status"]})

    def list_alerts(self) -> str:
        return _json(self.alerts)

    def query_metric(self, metric: str, start: int, end: int, how: str) -> str:
        if end <= start:
            raise CallError("end must be after start")
        base, slope, step, since = METRICS[metric]
        values = [base + slope * (minute % 9) + (step if minute >= since else 0) for minute in range(start, end)]
        if metric == "fee_cents" and self.fees_off_since is not None:
            values = [0 if start + i >= self.fees_off_since else value for i, value in enumerate(values)]
        values.sort()
        value = {"mean": sum(values) // len(values), "max": values[-1], "p95": values[len(values) * 95 // 100]}[how]
        return _json({"metric": metric, "start": start, "end": end, how: value})

    def get_settings(self, service: str) -> str:
        return _json({"service": service, **self.settings[service]})

    def change_setting(self, service: str, key: str, value: str) -> str:
        row = self.settings[service]
        if key not in row or key == "release":
            raise CallError(f"{service} has no setting {key} that could be changed")
        old, row[key] = row[key], value
        if (service, key) == ("billing", "late_fees"):
            self.fees_off_since = TAKES_EFFECT if value == "off" else None
        return _json({"service": service, "key": key, "old": old, "new": value})

    def resolve_alert(self, alert: str) -> str:
        for row in self.alerts:
            if row["alert"] == alert:
                row["state"] = "resolved"
                return _json(row)
        raise CallError(f"there is no alert {alert}")
