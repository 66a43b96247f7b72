"""Tool calls in a model's text: `<tool_call>{"name": ..., "arguments": {...}}</tool_call>`.

`parse_call` is strict: a text holds exactly one call, the call is a JSON object with exactly these two keys, and
its arguments match the tool's JSON schema. Everything else raises CallError with the reason; nothing is repaired.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any

OPEN, CLOSE = "<tool_call>", "</tool_call>"
_TYPES = {"string": str, "integer": int, "boolean": bool, "object": dict}


class CallError(ValueError):
    """The text holds no call that could be executed."""


@dataclass(frozen=True)
class Call:
    name: str
    arguments: dict[str, Any]

    def text(self) -> str:
        return OPEN + json.dumps({"name": self.name, "arguments": self.arguments}) + CLOSE


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        raise CallError("a key is given twice")
    return result


def _no_constant(name: str) -> None:
    raise CallError(f"{name} is not JSON")


def check_value(value: Any, schema: dict[str, Any], where: str) -> None:
    """Checks the JSON-schema keywords that the tools use; an unknown type in a schema is a KeyError."""
    kind = _TYPES[schema["type"]]
    # bool is a subclass of int in Python, but not in JSON.
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise CallError(f"{where}: expected {schema['type']}, got {type(value).__name__}")
    if "enum" in schema and value not in schema["enum"]:
        raise CallError(f"{where}: {value!r} is not one of {schema['enum']}")
    if "pattern" in schema and not re.fullmatch(schema["pattern"], value):
        raise CallError(f"{where}: {value!r} does not match {schema['pattern']}")
    if "minimum" in schema and value < schema["minimum"]:
        raise CallError(f"{where}: {value} is below {schema['minimum']}")
    if "maximum" in schema and value > schema["maximum"]:
        raise CallError(f"{where}: {value} is above {schema['maximum']}")
    if kind is dict:
        properties = schema.get("properties", {})
        missing = [key for key in schema.get("required", ()) if key not in value]
        unknown = [key for key in value if key not in properties]
        if missing or unknown:
            raise CallError(f"{where}: missing {missing}, unknown {unknown}")
        for key, item in value.items():
            check_value(item, properties[key], f"{where}.{key}")


def parse_call(text: str, schemas: dict[str, dict[str, Any]]) -> Call:
    """The one call in `text`, checked against `schemas` (tool name -> schema of its arguments)."""
    if text.count(OPEN) != 1 or text.count(CLOSE) != 1:
        raise CallError(f"{text.count(OPEN)} times {OPEN} and {text.count(CLOSE)} times {CLOSE}, expected one of each")
    start, end = text.index(OPEN) + len(OPEN), text.index(CLOSE)
    if end < start:
        raise CallError(f"{CLOSE} stands before {OPEN}")
    try:
        call = json.loads(text[start:end], object_pairs_hook=_unique_keys, parse_constant=_no_constant)
    except (json.JSONDecodeError, RecursionError) as error:
        raise CallError(f"not JSON: {error}") from None
    if not isinstance(call, dict) or set(call) != {"name", "arguments"}:
        raise CallError("a call is an object with exactly the keys name and arguments")
    name, arguments = call["name"], call["arguments"]
    if not isinstance(name, str) or name not in schemas:
        raise CallError(f"there is no tool {name!r}")
    check_value(arguments, schemas[name], name)
    return Call(name, arguments)
