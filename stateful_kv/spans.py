"""What a tool's schema fixes of a call to it, as spans to draft from: Engine.open_session(draft_spans=...)."""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from .arguments import each, shown


def call_pieces(tool: Mapping[str, Any], name_key: str = "name", arguments_key: str = "arguments") -> list[str]:
    """The text of a JSON call between the values of its arguments, those in the order of the schema's properties.

    tool: {"name": ..., "parameters": JSON schema}, or that under "function". Raises ValueError where there is no name.
    """
    function = _mapping(tool.get("function", tool) if isinstance(tool, Mapping) else tool, "tool")
    if not isinstance(function.get("name"), str):
        raise ValueError(f"call_pieces: got {function!r}, expected a tool with a name")
    piece = f"{{{json.dumps(name_key)}: {json.dumps(function['name'])}, {json.dumps(arguments_key)}: {{"
    pieces = []
    properties = _entry(_entry(function, "parameters"), "properties")
    for i, (key, schema) in enumerate(properties.items()):
        takes_any = isinstance(schema, bool)  # JSON schema's true
        quote = '"' if not takes_any and _entry(properties, key).get("type") == "string" else ""
        pieces.append(f"{piece}{', ' if i else ''}{json.dumps(key)}: {quote}")
        piece = quote
    return [*pieces, piece + "}}"]


def _mapping(value: Any, name: str) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise TypeError(f"call_pieces: {name} is {shown(value)}, expected a mapping")
    return value


def _entry(of: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    """A part of a tool, which may be left out or null."""
    return {} if of.get(key) is None else _mapping(of[key], key)


def call_spans(
    tools: Iterable[Mapping[str, Any]],
    encode: Callable[[str], Sequence[int]],
    opening: str = "",
    name_key: str = "name",
    arguments_key: str = "arguments",
) -> list[list[int]]:
    """Token spans of calls of any of the tools; the first of each begins with `opening` (a marker, say)."""
    spans = []
    for tool in each("call_spans", "tools", tools, "a sequence of tools"):
        first, *others = call_pieces(tool, name_key, arguments_key)
        spans += [list(encode(piece)) for piece in (opening + first, *others)]
    return spans
