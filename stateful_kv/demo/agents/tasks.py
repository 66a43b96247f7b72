"""What users ask of the agents, and how each task is done: the reference calls and the final answer.

A task is a function of a Talk: it says what the user says, makes the calls one after the other on the world, reads
their results, and answers with what the results say. TASKS lists them by agent.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ..calls import Call
from . import words
from .world import World, identifier


@dataclass(frozen=True)
class Message:
    """One message of a conversation; an assistant's message is either text or a call."""

    role: str
    text: str
    call: Call | None = None

    @staticmethod
    def of_call(call: Call) -> Message:
        return Message("assistant", call.text(), call)


class Failed(Exception):
    """A tool answered with an error; carries its text."""


class Talk:
    """A conversation that a task extends, on one world."""

    def __init__(self, rng: random.Random, world: World):
        self.rng, self.world = rng, world
        self.messages: list[Message] = []

    def user(self, text: str) -> None:
        self.messages.append(Message("user", text))

    def ask(self, *texts: str) -> None:
        self.user(self.rng.choice(texts))

    def say(self, text: str) -> None:
        self.messages.append(Message("assistant", text))

    def call(self, name: str, **arguments: Any) -> Any:
        """The call, its result as a message, and the result: parsed where it is one JSON object."""
        call = Call(name, arguments)
        result = self.world.execute(call)
        self.messages += [Message.of_call(call), Message("tool", result)]
        if not result.startswith("{") or "\n" in result:  # text, or several lines of JSON
            return result
        parsed = json.loads(result)
        if "error" in parsed:
            raise Failed(parsed["error"])
        return parsed

    def pick(self, table: dict[str, Any]) -> str:
        """A key of the table; now and then one that does not exist, so that errors are answered too."""
        if self.rng.random() < 0.04 and next(iter(table))[0].isdigit():
            return identifier(self.rng)
        return self.rng.choice(list(table))


Task = Callable[[Talk], None]


def run_task(talk: Talk, task: Task) -> None:
    """The task up to its final answer, which names the error when a call failed."""
    try:
        task(talk)
    except Failed as error:
        talk.say(f"That did not work: {error}.")


# ---- support ----


def order_status(t: Talk) -> None:
    x = t.pick(t.world.orders)
    t.ask(f"What is the status of order: '{x}'?", f"Where is order: '{x}'?", f"Has order: '{x}' been delivered?",
          f"Look up order: '{x}'.")  # fmt: skip
    row = t.call("get_order", order=x)
    t.say(f"Order: '{x}', {row['item']}, is {row['status']}.")


def order_amount(t: Talk) -> None:
    x = t.pick(t.world.orders)
    t.ask(f"How much was order: '{x}'?", f"What is the amount of order: '{x}'?", f"What did order: '{x}' cost?")
    t.say(f"The amount of order: '{x}' is {t.call('get_order', order=x)['amount']}.")


def refund_part(t: Talk) -> None:
    x = t.pick(t.world.orders)
    most = t.world.orders.get(x, {"amount": 100})["amount"]
    amount = t.rng.randrange(1, max(2, most))
    t.ask(f"Refund the amount: {amount} of order: '{x}'.", f"For order: '{x}' pay back the amount: {amount}.",
          f"Order: '{x}' gets a refund, amount: {amount}.")  # fmt: skip
    refund = t.call("refund_order", order=x, amount=amount)["refund"]
    t.say(f"I refunded the amount: {amount} of order: '{x}', refund: '{refund}'.")


def refund_full(t: Talk) -> None:
    x = t.pick(t.world.orders)
    t.ask(f"Refund order: '{x}' in full.", f"Pay back all of order: '{x}'.", f"Please refund the whole order: '{x}'.")
    amount = t.call("get_order", order=x)["amount"]
    refund = t.call("refund_order", order=x, amount=amount)["refund"]
    t.say(f"I refunded the amount: {amount} of order: '{x}', refund: '{refund}'.")


def ticket_refund(t: Talk) -> None:
    x = t.pick(t.world.tickets)
    t.ask(f"Refund the order of ticket: '{x}' in full and close the ticket.",
          f"Ticket: '{x}': refund its order in full, then close it.",
          f"Pay back all of the order of ticket: '{x}' and close the ticket.")  # fmt: skip
    order = t.call("get_ticket", ticket=x)["order"]
    amount = t.call("get_order", order=order)["amount"]
    refund = t.call("refund_order", order=order, amount=amount)["refund"]
    t.call("close_ticket", ticket=x)
    t.say(f"I refunded the amount: {amount} of order: '{order}', refund: '{refund}', and closed ticket: '{x}'.")


def ticket_who(t: Talk) -> None:
    x = t.pick(t.world.tickets)
    t.ask(
        f"Who wrote ticket: '{x}'?", f"Which customer is ticket: '{x}' from?", f"Who is the customer of ticket: '{x}'?"
    )
    customer = t.call("get_ticket", ticket=x)["customer"]
    row = t.call("get_customer", customer=customer)
    plan = row["plan"]
    t.say(f"Ticket: '{x}' is from {row['name']}, customer: '{customer}', plan: '{plan}'.")


def order_who(t: Talk) -> None:
    x = t.pick(t.world.orders)
    t.ask(f"Who bought order: '{x}'?", f"Which customer is order: '{x}' from?", f"Who is the customer of order: '{x}'?")
    customer = t.call("get_order", order=x)["customer"]
    row = t.call("get_customer", customer=customer)
    plan = row["plan"]
    t.say(f"Order: '{x}' is from {row['name']}, customer: '{customer}', plan: '{plan}'.")


def close_ticket(t: Talk) -> None:
    x = t.pick(t.world.tickets)
    t.ask(f"Close ticket: '{x}'.", f"Please close ticket: '{x}'.", f"Ticket: '{x}' is done, close it.")
    t.call("close_ticket", ticket=x)
    t.say(f"Ticket: '{x}' is closed.")


def set_plan(t: Talk) -> None:
    x, plan = t.pick(t.world.customers), t.rng.choice(words.PLANS)
    t.ask(f"Move customer: '{x}' to plan: '{plan}'.", f"Give customer: '{x}' the plan: '{plan}'.",
          f"Customer: '{x}' wants plan: '{plan}'.")  # fmt: skip
    row = t.call("set_plan", customer=x, plan=plan)
    t.say(f"Customer: '{x}' is now on plan: '{plan}', before it was `{row['old']}`.")


# ---- operations ----


def metric_value(t: Talk) -> None:
    service = t.pick(t.world.metrics)
    metric = t.pick(t.world.metrics[service])
    t.ask(f"For service: '{service}', how high is metric: '{metric}'?",
          f"On service: '{service}' check metric: '{metric}'.",
          f"What is the metric: '{metric}' of service: '{service}'?")  # fmt: skip
    row = t.call("get_metric", service=service, metric=metric)
    t.say(f"Metric: '{metric}' of service: '{service}' has value: {row['value']}, limit {row['limit']}.")


def setting_value(t: Talk) -> None:
    service = t.pick(t.world.settings)
    setting = t.pick(t.world.settings[service])
    t.ask(f"What is setting: '{setting}' of service: '{service}'?",
          f"On service: '{service}', show setting: '{setting}'.",
          f"Which value has setting: '{setting}' on service: '{service}'?")  # fmt: skip
    row = t.call("get_setting", service=service, setting=setting)
    t.say(f"Setting: '{setting}' of service: '{service}' has value: {row['value']}.")


def _setting(t: Talk) -> tuple[str, str, int]:
    service = t.pick(t.world.settings)
    return service, t.pick(t.world.settings[service]), t.rng.randrange(2, 500)


def setting_change(t: Talk) -> None:
    service, setting, value = _setting(t)
    t.ask(f"On service: '{service}' give setting: '{setting}' the value: {value}.",
          f"Change setting: '{setting}' of service: '{service}' to value: {value}.",
          f"Service: '{service}' needs setting: '{setting}' at value: {value}.")  # fmt: skip
    row = t.call("change_setting", service=service, setting=setting, value=value)
    t.say(f"Setting: '{setting}' of service: '{service}' now has value: {value}, before {row['old']}.")


def setting_restart(t: Talk) -> None:
    service, setting, value = _setting(t)
    t.ask(f"On service: '{service}' give setting: '{setting}' the value: {value} and restart it.",
          f"Change setting: '{setting}' of service: '{service}' to value: {value}, then restart it.")  # fmt: skip
    row = t.call("change_setting", service=service, setting=setting, value=value)
    t.call("restart_service", service=service)
    t.say(f"Setting: '{setting}' of service: '{service}' now has value: {value}, before {row['old']}; it is restarted.")


def restart(t: Talk) -> None:
    service = t.pick(t.world.settings)
    t.ask(f"Restart service: '{service}'.", f"Please restart service: '{service}'.",
          f"Service: '{service}' hangs, restart it.")  # fmt: skip
    t.call("restart_service", service=service)
    t.say(f"Service: '{service}' is restarted.")


def alert_look(t: Talk) -> None:
    x = t.pick(t.world.alerts)
    t.ask(f"What is alert: '{x}' about?", f"Look into alert: '{x}'.", f"Why does alert: '{x}' fire?")
    alert = t.call("get_alert", alert=x)
    service, metric = alert["service"], alert["metric"]
    row = t.call("get_metric", service=service, metric=metric)
    t.say(f"Alert: '{x}': metric: '{metric}' of service: '{service}' has value: {row['value']}, limit {row['limit']}.")


def alert_handle(t: Talk) -> None:
    x = t.pick(t.world.alerts)
    t.ask(f"Handle alert: '{x}'.", f"Do what alert: '{x}' advises and resolve it.", f"Please fix alert: '{x}'.")
    alert = t.call("get_alert", alert=x)
    service, setting, value = alert["service"], alert["setting"], alert["value"]
    t.call("change_setting", service=service, setting=setting, value=value)
    t.call("restart_service", service=service)
    t.call("resolve_alert", alert=x)
    t.say(f"Alert: '{x}' is resolved: setting: '{setting}' of service: '{service}' now has value: {value}.")


def resolve(t: Talk) -> None:
    x = t.pick(t.world.alerts)
    t.ask(f"Resolve alert: '{x}'.", f"Alert: '{x}' is over, resolve it.", f"Mark alert: '{x}' as resolved.")
    t.call("resolve_alert", alert=x)
    t.say(f"Alert: '{x}' is resolved.")


# ---- coding ----


def _module(t: Talk) -> str:
    return t.rng.choice([path for path in t.world.files if not path.startswith("tests/")])


def _function(t: Talk, path: str) -> tuple[str, str]:
    """Name and heading of the function that a module defines."""
    found = re.search(r"def ((\w+)\(.*\)):", t.world.files[path])
    return found[2], found[1]


def _edit(t: Talk) -> tuple[str, str, str]:
    path = _module(t)
    name, value = t.rng.choice(re.findall(r"^(\w+) = (\d+)$", t.world.files[path], re.MULTILINE))
    return path, f"{name} = {value}", f"{name} = {t.rng.randrange(2, 1000)}"


def _tests_of(path: str) -> str:
    return "tests/test_" + path.split("/")[1]


def open_file(t: Talk) -> None:
    path = _module(t)
    t.ask(f"Open path: '{path}'.", f"Read path: '{path}'.", f"Show me the file at path: '{path}'.",
          f"What does the file at path: '{path}' define?")  # fmt: skip
    t.call("read_file", path=path)
    t.say(f"Path: '{path}' defines `{_function(t, path)[1]}`.")


def find_function(t: Talk) -> None:
    path = _module(t)
    name = _function(t, path)[0]
    t.ask(f"Where does the text: '{name}' stand?", f"Which file has the text: '{name}'?", f"Find the text: '{name}'.")
    t.call("find_text", text=name)
    t.say(f"Text: '{name}' stands in path: '{path}'.")


def find_and_open(t: Talk) -> None:
    path = _module(t)
    name, heading = _function(t, path)
    t.ask(f"Find the text: '{name}' and open its file.", f"Search for the text: '{name}' and read the file.")
    t.call("find_text", text=name)
    t.call("read_file", path=path)
    t.say(f"Path: '{path}' defines `{heading}`.")


def edit(t: Talk) -> None:
    path, old, new = _edit(t)
    t.ask(f"In path: '{path}' replace old: '{old}' with new: '{new}'.",
          f"Edit path: '{path}': old: '{old}', new: '{new}'.",
          f"Change path: '{path}' from old: '{old}' to new: '{new}'.")  # fmt: skip
    t.call("edit_file", path=path, old=old, new=new)
    t.say(f"I replaced old: '{old}' with new: '{new}' in path: '{path}'.")


def edit_and_test(t: Talk) -> None:
    path, old, new = _edit(t)
    tests = _tests_of(path)
    t.ask(f"In path: '{path}' replace old: '{old}' with new: '{new}', then run path: '{tests}'.",
          f"Edit path: '{path}': old: '{old}', new: '{new}'. Then test path: '{tests}'.")  # fmt: skip
    t.call("edit_file", path=path, old=old, new=new)
    t.say(f"Path: '{path}' now has `{new}`: {_outcome(t.call('run_tests', path=tests))}.")


def run_tests(t: Talk) -> None:
    tests = _tests_of(_module(t))
    t.ask(f"Run path: '{tests}'.", f"Run the tests at path: '{tests}'.", f"Test path: '{tests}'.")
    t.say(f"Path: '{tests}': {_outcome(t.call('run_tests', path=tests))}.")


def fix_tests(t: Talk) -> None:
    """Runs the tests, sets the constants that they expect, runs them again."""
    tests = _tests_of(_module(t))
    t.ask(
        f"Run path: '{tests}' and fix what fails.", f"Make path: '{tests}' pass.", f"Fix the tests at path: '{tests}'."
    )
    result = t.call("run_tests", path=tests)
    while result["failed"]:
        t.call("edit_file", path=result["path"], old=result["old"], new=result["new"])
        result = t.call("run_tests", path=tests)
    t.say(f"Path: '{tests}': {_outcome(result)}.")


def _outcome(result: dict[str, Any]) -> str:
    return f"passed {result['passed']}, failed {result['failed']}"


TASKS: dict[str, list[Task]] = {
    "support": [order_status, order_amount, refund_part, refund_full, ticket_refund, ticket_who, order_who,
                close_ticket, set_plan],
    "operations": [metric_value, setting_value, setting_change, setting_restart, restart, alert_look, alert_handle,
                   resolve],
    "coding": [open_file, find_function, find_and_open, edit, edit_and_test, run_tests, fix_tests],
}  # fmt: skip
