"""A seeded world and the tools that read and change it: a support desk, servers, a workspace of source files.

Every tool is deterministic and works in memory only; a World is a pure function of its seed and of the calls made so
far. Names of arguments are the keys under which results show the same value, and identifiers alternate digits and
letters, so that what a call needs can be copied from the conversation character by character.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable
from typing import Any

from ..calls import Call, CallError
from . import words

SUB_AGENTS = ("support", "coding", "operations")
HAND_OFFS = ("delegate", "collect")
# What an argument is, where it is no plain value: figures are reported apart.
IDENTIFIERS = frozenset(("order", "ticket", "customer", "alert"))
PATHS = frozenset(("path",))

_TEXT = {"type": "string"}
_NUMBER = {"type": "integer", "minimum": 0}
_AGENT = {"type": "string", "enum": list(SUB_AGENTS)}
_PLAN = {"type": "string", "enum": list(words.PLANS)}


def _tool(name: str, description: str, **properties: dict[str, Any]) -> dict[str, Any]:
    parameters = {"type": "object", "properties": properties, "required": list(properties)}
    return {"name": name, "description": description, "parameters": parameters}


TOOLS = {
    "support": [
        _tool("get_ticket", "One ticket.", ticket=_TEXT),
        _tool("get_order", "One order.", order=_TEXT),
        _tool("get_customer", "One customer.", customer=_TEXT),
        _tool("refund_order", "Pay money back.", order=_TEXT, amount=_NUMBER),
        _tool("set_plan", "Change a customer's plan.", customer=_TEXT, plan=_PLAN),
        _tool("close_ticket", "Close a ticket.", ticket=_TEXT),
    ],
    "operations": [
        _tool("get_alert", "One alert.", alert=_TEXT),
        _tool("get_metric", "One metric of a service.", service=_TEXT, metric=_TEXT),
        _tool("get_setting", "One setting of a service.", service=_TEXT, setting=_TEXT),
        _tool("change_setting", "Change a setting.", service=_TEXT, setting=_TEXT, value=_NUMBER),
        _tool("restart_service", "Restart a service.", service=_TEXT),
        _tool("resolve_alert", "Resolve an alert.", alert=_TEXT),
    ],
    "coding": [
        _tool("find_text", "Lines that contain a text.", text=_TEXT),
        _tool("read_file", "The text of a file.", path=_TEXT),
        _tool("edit_file", "Replace a text that occurs once.", path=_TEXT, old=_TEXT, new=_TEXT),
        _tool("run_tests", "Run a file of tests.", path=_TEXT),
    ],
    "orchestrator": [
        _tool("delegate", "Hand a task to an agent.", agent=_AGENT, task=_TEXT),
        _tool("collect", "Wait for an agent's report.", agent=_AGENT),
    ],
}
ALL_TOOLS = [tool for tools in TOOLS.values() for tool in tools]
SCHEMAS: dict[str, dict[str, Any]] = {tool["name"]: tool["parameters"] for tool in ALL_TOOLS}


def identifier(rng: random.Random) -> str:
    """Such as 4K7P2: the first characters tell two identifiers apart, every character is one token."""
    digit, letter = (lambda: rng.choice("0123456789")), (lambda: rng.choice("ABCDEFGHJKLMNPQRSTUVWXYZ"))
    return digit() + letter() + digit() + letter() + digit()


def names(rng: random.Random, count: int) -> list[str]:
    """Different names of one word or of two."""
    return [
        word if rng.random() < 0.5 else f"{word}_{rng.choice(words.TAILS)}" for word in rng.sample(words.WORDS, count)
    ]


class World:
    """The data of one seed, changed by the calls made so far."""

    def __init__(self, seed: int, size: int = 6):
        rng = random.Random(f"world {seed}")
        self._taken: set[str] = set()
        self.customers, self.orders, self.tickets = {}, {}, {}
        for _ in range(size):
            customer, order, ticket = (self._new_id(rng) for _ in range(3))
            name = f"{rng.choice(words.FIRST)} {rng.choice(words.LAST)}"
            self.customers[customer] = {"name": name, "plan": rng.choice(words.PLANS)}
            item = " ".join(rng.sample(words.WORDS, 2))
            row = {"customer": customer, "item": item, "amount": rng.randrange(10, 10 ** rng.choice((2, 3, 4)))}
            self.orders[order] = row | {"status": rng.choice(words.STATUSES)}
            self.tickets[ticket] = {"customer": customer, "order": order, "state": "open"}
        self._add_servers(rng, size)
        self._add_files(rng, size)
        self._refunds = [self._new_id(rng) for _ in range(64)]

    def _new_id(self, rng: random.Random) -> str:
        while True:
            # Not even the first two characters occur twice in a world.
            new = identifier(rng)
            if new[:2] not in self._taken:
                self._taken.add(new[:2])
                return new

    def _add_servers(self, rng: random.Random, size: int) -> None:
        self.settings = {
            service: {setting: rng.randrange(2, 200) for setting in names(rng, 3)}
            for service in rng.sample(words.WORDS, size)
        }
        self.metrics, self.alerts = {}, {}
        for service, settings in self.settings.items():
            metrics = names(rng, 2)
            self.metrics[service] = {
                metric: {"value": rng.randrange(50, 1000), "limit": rng.randrange(10, 50)} for metric in metrics
            }
            setting = rng.choice(list(settings))
            row = {"service": service, "metric": metrics[0], "setting": setting, "value": rng.randrange(2, 500)}
            self.alerts[self._new_id(rng)] = row | {"state": "firing"}
        self.restarts = dict.fromkeys(self.settings, 0)

    def _add_files(self, rng: random.Random, size: int) -> None:
        """Modules of constants and one function, each with a file of tests; every second one has a wrong constant."""
        self.files: dict[str, str] = {}
        modules = rng.sample(words.MODULES, size)
        functions = [
            f"{first}_{tail}" for first, tail in zip(*(rng.sample(w, size) for w in (words.WORDS, words.TAILS)))
        ]
        for idx, (module, function) in enumerate(zip(modules, functions)):
            folder = rng.choice(words.FOLDERS)
            constants, (a, b) = names(rng, 2), rng.sample(words.WORDS, 2)
            one, two = constants
            values = [rng.randrange(2, 1000) for _ in constants]
            lines = [f"{name} = {value}" for name, value in zip(constants, values)]
            body = rng.choice((f"{a} * {one} + {b}", f"{a} + {b} * {two}", f"min({a}, {one}) + {b}"))
            source = [*lines, "", f"def {function}({a}, {b}):", f"    return {body}"]
            self.files[f"{folder}/{module}.py"] = "\n".join(source)
            if idx % 2 == 0:
                wrong = rng.randrange(2)
                values[wrong] += rng.randrange(1, 90)
            tests = [f"from {folder}.{module} import {one}, {two}", ""]
            tests += [f"assert {name} == {value}" for name, value in zip(constants, values)]
            self.files[f"tests/test_{module}.py"] = "\n".join(tests)

    def execute(self, call: Call) -> str:
        """The result's text, an {"error": ...} included; `call` has been checked against SCHEMAS."""
        if call.name in HAND_OFFS:
            raise ValueError(f"{call.name} is executed by whoever runs the agents")
        if call.name not in SCHEMAS:
            raise ValueError(f"there is no tool {call.name}")
        tool: Callable[..., str] = getattr(self, call.name)
        try:
            return tool(**call.arguments)
        except CallError as error:
            return json.dumps({"error": str(error)})

    # ---- support ----

    @staticmethod
    def _find(table: dict[str, Any], key: str, what: str) -> Any:
        if key not in table:
            raise CallError(f"there is no {what} {key}")
        return table[key]

    def get_ticket(self, ticket: str) -> str:
        return json.dumps({"ticket": ticket, **self._find(self.tickets, ticket, "ticket")})

    def get_order(self, order: str) -> str:
        return json.dumps({"order": order, **self._find(self.orders, order, "order")})

    def get_customer(self, customer: str) -> str:
        return json.dumps({"customer": customer, **self._find(self.customers, customer, "customer")})

    def refund_order(self, order: str, amount: int) -> str:
        row = self._find(self.orders, order, "order")
        if amount > row["amount"]:
            raise CallError(f"only {row['amount']} of order {order} can be refunded")
        row["amount"] -= amount
        refund = self._refunds.pop(0)
        return json.dumps({"order": order, "amount": amount, "refund": refund})

    def set_plan(self, customer: str, plan: str) -> str:
        row = self._find(self.customers, customer, "customer")
        old, row["plan"] = row["plan"], plan
        return json.dumps({"customer": customer, "old": old, "plan": plan})

    def close_ticket(self, ticket: str) -> str:
        self._find(self.tickets, ticket, "ticket")["state"] = "closed"
        return json.dumps({"ticket": ticket, "state": "closed"})

    # ---- operations ----

    def get_alert(self, alert: str) -> str:
        return json.dumps({"alert": alert, **self._find(self.alerts, alert, "alert")})

    def _of_service(self, table: dict[str, Any], service: str, key: str, what: str) -> Any:
        return self._find(self._find(table, service, "service"), key, what)

    def get_metric(self, service: str, metric: str) -> str:
        values = self._of_service(self.metrics, service, metric, "metric")
        return json.dumps({"service": service, "metric": metric, **values})

    def get_setting(self, service: str, setting: str) -> str:
        value = self._of_service(self.settings, service, setting, "setting")
        return json.dumps({"service": service, "setting": setting, "value": value})

    def change_setting(self, service: str, setting: str, value: int) -> str:
        old = self._of_service(self.settings, service, setting, "setting")
        self.settings[service][setting] = value
        return json.dumps({"service": service, "setting": setting, "old": old, "value": value})

    def restart_service(self, service: str) -> str:
        self._find(self.restarts, service, "service")
        self.restarts[service] += 1
        return json.dumps({"service": service, "state": "restarted"})

    def resolve_alert(self, alert: str) -> str:
        self._find(self.alerts, alert, "alert")["state"] = "resolved"
        return json.dumps({"alert": alert, "state": "resolved"})

    # ---- coding ----

    def find_text(self, text: str) -> str:
        hits = [
            json.dumps({"path": path, "line": number, "text": line.strip()})
            for path, content in self.files.items()
            for number, line in enumerate(content.splitlines(), 1)
            if text and text in line
        ]
        return "\n".join(hits[:10]) or json.dumps({"lines": 0})

    def read_file(self, path: str) -> str:
        return self._find(self.files, path, "file")

    def edit_file(self, path: str, old: str, new: str) -> str:
        content = self._find(self.files, path, "file")
        if not old or content.count(old) != 1:
            raise CallError(f"{old!r} occurs {content.count(old) if old else 0} times in {path}")
        if len(content) + len(new) > 10_000:
            raise CallError(f"{path} would be too long")
        self.files[path] = content.replace(old, new)
        return json.dumps({"path": path, "state": "edited"})

    def run_tests(self, path: str) -> str:
        """Compares every `assert NAME == NUMBER` of a file with the constants of the file that it imports from; of the
        first that differs, what is there and what should be."""
        source = self._find(self.files, path, "file")
        module = re.search(r"^from ([\w.]+) import ", source, re.MULTILINE)
        if not module:
            raise CallError(f"{path} holds no tests")
        tested = module[1].replace(".", "/") + ".py"
        found = dict(re.findall(r"^(\w+) = (.+)$", self._find(self.files, tested, "file"), re.MULTILINE))
        wrong = [
            {"path": tested, "old": f"{name} = {found.get(name)}", "new": f"{name} = {value}"}
            for name, value in re.findall(r"^assert (\w+) == (\d+)$", source, re.MULTILINE)
            if found.get(name) != value
        ]
        total = len(re.findall(r"^assert ", source, re.MULTILINE))
        return json.dumps({"passed": total - len(wrong), "failed": len(wrong), **(wrong[0] if wrong else {})})
