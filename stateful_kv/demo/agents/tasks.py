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
        """The call, its result as a message, and the result: parsed where it is JSON."""
        call = Call(name, arguments)
        result = self.world.execute(call)
        self.messages += [Message.of_call(call), Message("tool", result)]
        if not result.startswith("{"):
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
    t.ask(f"What is the status of order {x}?", f"Where is order {x}?", f"Has order {x} been delivered?",
          f"Look up order {x}.")  # fmt: skip
    row = t.call("get_order", order=x)
    t.say(f"Order {x}, {row['item']}, is {row['status']}.")


def order_amount(t: Talk) -> None:
    x = t.pick(t.world.orders)
    t.ask(f"How much was order {x}?", f"What is the amount of order {x}?", f"What did order {x} cost?")
    t.say(f"The amount of order {x} is {t.call('get_order', order=x)['amount']}.")


def refund_part(t: Talk) -> None:
    x = t.pick(t.world.orders)
    most = t.world.orders.get(x, {"amount": 100})["amount"]
    amount = t.rng.randrange(1, max(2, most))
    t.ask(f"Refund {amount} of order {x}.", f"Pay back {amount} for order {x}.",
          f"Please give {amount} of order {x} back.", f"Order {x} gets a refund of {amount}.")  # fmt: skip
    row = t.call("refund_order", order=x, amount=amount)
    t.say(f"I refunded {amount} of order {x}, refund {row['refund']}.")


def refund_full(t: Talk) -> None:
    x = t.pick(t.world.orders)
    t.ask(f"Refund order {x} in full.", f"Pay back all of order {x}.", f"Please refund the whole order {x}.")
    amount = t.call("get_order", order=x)["amount"]
    row = t.call("refund_order", order=x, amount=amount)
    t.say(f"I refunded {amount} of order {x}, refund {row['refund']}.")


def ticket_refund(t: Talk) -> None:
    x = t.pick(t.world.tickets)
    t.ask(f"Refund the order of ticket {x} in full and close the ticket.",
          f"Ticket {x}: refund its order in full, then close it.",
          f"Pay back all of the order of ticket {x} and close the ticket.")  # fmt: skip
    order = t.call("get_ticket", ticket=x)["order"]
    amount = t.call("get_order", order=order)["amount"]
    row = t.call("refund_order", order=order, amount=amount)
    t.call("close_ticket", ticket=x)
    t.say(f"I refunded {amount} of order {order}, refund {row['refund']}, and closed ticket {x}.")


def ticket_who(t: Talk) -> None:
    x = t.pick(t.world.tickets)
    t.ask(f"Who wrote ticket {x}?", f"Which customer is ticket {x} from?", f"Who is the customer of ticket {x}?")
    customer = t.call("get_ticket", ticket=x)["customer"]
    row = t.call("get_customer", customer=customer)
    t.say(f"Ticket {x} is from {row['name']}, customer {customer}, on the {row['plan']} plan.")


def order_who(t: Talk) -> None:
    x = t.pick(t.world.orders)
    t.ask(f"Who bought order {x}?", f"Which customer is order {x} from?", f"Who is the customer of order {x}?")
    customer = t.call("get_order", order=x)["customer"]
    row = t.call("get_customer", customer=customer)
    t.say(f"Order {x} is from {row['name']}, customer {customer}, on the {row['plan']} plan.")


def close_ticket(t: Talk) -> None:
    x = t.pick(t.world.tickets)
    t.ask(f"Close ticket {x}.", f"Please close ticket {x}.", f"Ticket {x} is done, close it.")
    t.call("close_ticket", ticket=x)
    t.say(f"Ticket {x} is closed.")


def set_plan(t: Talk) -> None:
    x, plan = t.pick(t.world.customers), t.rng.choice(words.PLANS)
    t.ask(f"Move customer {x} to the {plan} plan.", f"Set the plan of customer {x} to {plan}.",
          f"Customer {x} wants the {plan} plan.")  # fmt: skip
    row = t.call("set_plan", customer=x, plan=plan)
    t.say(f"Customer {x} is now on the {plan} plan, before it was {row['old']}.")


# ---- operations ----


def metric_value(t: Talk) -> None:
    service = t.pick(t.world.metrics)
    metric = t.pick(t.world.metrics[service])
    t.ask(f"What is the {metric} of {service}?", f"How high is {metric} on {service}?",
          f"Check {metric} of {service}.", f"Look at the {metric} of {service}.")  # fmt: skip
    row = t.call("get_metric", service=service, metric=metric)
    t.say(f"{metric} of {service} is {row['value']}, the limit is {row['limit']}.")


def setting_value(t: Talk) -> None:
    service = t.pick(t.world.settings)
    setting = t.pick(t.world.settings[service])
    t.ask(f"What is {setting} of {service} set to?", f"Which value does {setting} have on {service}?",
          f"Show the setting {setting} of {service}.")  # fmt: skip
    row = t.call("get_setting", service=service, setting=setting)
    t.say(f"{setting} of {service} is {row['value']}.")


def _setting(t: Talk) -> tuple[str, str, int]:
    service = t.pick(t.world.settings)
    return service, t.pick(t.world.settings[service]), t.rng.randrange(2, 500)


def setting_change(t: Talk) -> None:
    service, setting, value = _setting(t)
    t.ask(f"Set {setting} of {service} to {value}.", f"Change {setting} on {service} to {value}.",
          f"{service} needs {setting} {value}, set it.")  # fmt: skip
    row = t.call("change_setting", service=service, setting=setting, value=value)
    t.say(f"{setting} of {service} is now {value}, before it was {row['old']}.")


def setting_restart(t: Talk) -> None:
    service, setting, value = _setting(t)
    t.ask(f"Set {setting} of {service} to {value} and restart it.",
          f"Change {setting} on {service} to {value}, then restart {service}.")  # fmt: skip
    row = t.call("change_setting", service=service, setting=setting, value=value)
    t.call("restart_service", service=service)
    t.say(f"{setting} of {service} is now {value}, before it was {row['old']}, and {service} is restarted.")


def restart(t: Talk) -> None:
    service = t.pick(t.world.settings)
    t.ask(f"Restart {service}.", f"Please restart {service}.", f"{service} hangs, restart it.")
    t.call("restart_service", service=service)
    t.say(f"{service} is restarted.")


def alert_look(t: Talk) -> None:
    x = t.pick(t.world.alerts)
    t.ask(f"What is alert {x} about?", f"Look into alert {x}.", f"Why does alert {x} fire?")
    alert = t.call("get_alert", alert=x)
    service, metric = alert["service"], alert["metric"]
    row = t.call("get_metric", service=service, metric=metric)
    t.say(f"Alert {x}: {metric} of {service} is {row['value']}, the limit is {row['limit']}.")


def alert_handle(t: Talk) -> None:
    x = t.pick(t.world.alerts)
    t.ask(f"Handle alert {x}.", f"Do what alert {x} advises and resolve it.", f"Please fix alert {x}.")
    alert = t.call("get_alert", alert=x)
    service, setting, value = alert["service"], alert["setting"], alert["advice"]
    t.call("change_setting", service=service, setting=setting, value=value)
    t.call("restart_service", service=service)
    t.call("resolve_alert", alert=x)
    t.say(f"Alert {x} is resolved: {setting} of {service} is now {value}.")


def resolve(t: Talk) -> None:
    x = t.pick(t.world.alerts)
    t.ask(f"Resolve alert {x}.", f"Alert {x} is over, resolve it.", f"Mark alert {x} as resolved.")
    t.call("resolve_alert", alert=x)
    t.say(f"Alert {x} is resolved.")


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
    t.ask(f"Open `{path}`.", f"Read `{path}`.", f"What does `{path}` define?", f"Show me the file `{path}`.")
    t.call("read_file", path=path)
    t.say(f"`{path}` defines `{_function(t, path)[1]}`.")


def find_function(t: Talk) -> None:
    path = _module(t)
    name = _function(t, path)[0]
    t.ask(f"Where is `{name}` defined?", f"Which file defines `{name}`?", f"Find `{name}`.")
    t.call("find_text", text=name)
    t.say(f"`{name}` is defined in `{path}`.")


def find_and_open(t: Talk) -> None:
    path = _module(t)
    name, heading = _function(t, path)
    t.ask(f"Find `{name}` and open its file.", f"Search for `{name}` and read the file.")
    t.call("find_text", text=name)
    t.call("read_file", path=path)
    t.say(f"`{path}` defines `{heading}`.")


def edit(t: Talk) -> None:
    path, old, new = _edit(t)
    t.ask(f"In `{path}` replace `{old}` with `{new}`.", f"Edit `{path}`: `{old}` becomes `{new}`.",
          f"Change `{old}` to `{new}` in `{path}`.")  # fmt: skip
    t.call("edit_file", path=path, old=old, new=new)
    t.say(f"I replaced `{old}` with `{new}` in `{path}`.")


def edit_and_test(t: Talk) -> None:
    path, old, new = _edit(t)
    tests = _tests_of(path)
    t.ask(f"In `{path}` replace `{old}` with `{new}` and run `{tests}`.",
          f"Change `{old}` to `{new}` in `{path}`, then run the tests in `{tests}`.")  # fmt: skip
    t.call("edit_file", path=path, old=old, new=new)
    result = t.call("run_tests", path=tests)
    t.say(f"I replaced `{old}` with `{new}` in `{path}`: {result.splitlines()[-1]}.")


def run_tests(t: Talk) -> None:
    tests = _tests_of(_module(t))
    t.ask(f"Run `{tests}`.", f"Run the tests in `{tests}`.", f"Does `{tests}` pass?")
    t.say(f"`{tests}`: {t.call('run_tests', path=tests).splitlines()[-1]}.")


def fix_tests(t: Talk) -> None:
    """Runs the tests, sets the constants that they expect, runs them again."""
    tests = _tests_of(_module(t))
    t.ask(f"Run `{tests}` and fix what fails.", f"Make `{tests}` pass.", f"Fix the tests in `{tests}`.")
    result = t.call("run_tests", path=tests)
    while failed := re.search(r"FAILED (\S+): found `(.+)`, expected `(.+)`", result):
        t.call("edit_file", path=failed[1], old=failed[2], new=failed[3])
        result = t.call("run_tests", path=tests)
    t.say(f"`{tests}`: {result.splitlines()[-1]}.")


TASKS: dict[str, list[Task]] = {
    "support": [order_status, order_amount, refund_part, refund_full, ticket_refund, ticket_who, order_who,
                close_ticket, set_plan],
    "operations": [metric_value, setting_value, setting_change, setting_restart, restart, alert_look, alert_handle,
                   resolve],
    "coding": [open_file, find_function, find_and_open, edit, edit_and_test, run_tests, fix_tests],
}  # fmt: skip
