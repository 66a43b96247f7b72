"""Entries of a JSON file as what they are used as, or a ValueError: file, entry, what came and what was expected."""

import json
import math
import pathlib
from typing import Any

from ..arguments import INT32, shown


class Fields(dict):
    """One JSON object. where: its file, and inside that file its name."""

    def __init__(self, where: str, entries: dict):
        super().__init__(entries)
        self.where = where

    @classmethod
    def read(cls, path: pathlib.Path) -> "Fields":
        try:
            entries = json.loads(path.read_text("utf-8"))
        except (ValueError, RecursionError) as error:  # not UTF-8, not JSON, or nested without end
            raise ValueError(f"{path}: {error}, expected a JSON object") from None
        if not isinstance(entries, dict):
            raise ValueError(f"{path}: holds {shown(entries)}, expected a JSON object")
        return cls(str(path), entries)

    def __missing__(self, name: str):
        raise ValueError(f"{self.where}: entry {name!r} is missing")

    def with_defaults(self, **defaults: Any) -> "Fields":
        return Fields(self.where, {**defaults, **self})

    def wrong(self, name: str, expected: str, error: type[Exception] = ValueError) -> Exception:
        return error(f"{self.where}: {name} is {shown(self[name])}, expected {expected}")

    def integer(self, name: str, low: int = 1) -> int:
        value = self[name]
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= INT32[1]:
            raise self.wrong(name, f"an integer from {low} to {INT32[1]}")
        return value

    def real(self, name: str, low: float = -math.inf, above: float = -math.inf) -> float:
        value = self[name]
        is_number = isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) <= 1e300  # no NaN
        if not is_number or value < low or value <= above:
            bounds = f" of at least {low:g}" if low > -math.inf else f" above {above:g}" if above > -math.inf else ""
            raise self.wrong(name, f"a number{bounds}")
        return float(value)

    def flag(self, name: str) -> bool:
        """An entry that is left out is false."""
        if not isinstance(self.get(name, False), bool):
            raise self.wrong(name, "true or false")
        return self.get(name, False)
