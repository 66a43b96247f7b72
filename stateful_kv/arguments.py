"""Arguments as what they are used as, or an error naming the call, the argument, what came and what was expected."""

import math
import operator
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

INF = math.inf
INT32 = (-(2**31), 2**31 - 1)
FLAT = "expected a flat sequence of integers"


def shown(value: Any) -> str:
    """Of a long value its beginning: a message is one line."""
    try:
        text = " ".join(repr(value).split())
    except Exception:  # an integer of more digits than Python writes, say
        text = f"<{type(value).__name__}>"
    return text if len(text) <= 100 else f"{text[:97]}..."


def is_bool(value: Any) -> bool:
    return isinstance(value, (bool, np.bool_))


def integer(call: str, name: str, value: Any, low: float, high: float, hint: str = "") -> int:
    """Anything that can be an index, numpy's and torch's scalars included, but a truth value."""
    try:
        number = operator.index(None if is_bool(value) else value)
    except TypeError:
        raise TypeError(f"{call}: {name} is {shown(value)}, expected an integer") from None
    if not low <= number <= high:
        raise ValueError(f"{call}: {name} is {shown(number)}, expected {low} to {high}{hint}")
    return number


def real(call: str, name: str, value: Any, low: float, high: float, expected: str) -> float:
    """Anything that float() takes, but text and truth values."""
    try:
        if is_bool(value) or not hasattr(type(value), "__float__"):  # float() would read text
            raise TypeError
        number = float(value)
    except OverflowError:  # an integer beyond all floats, which is beyond all bounds
        number = math.nan
    except (TypeError, ValueError, RuntimeError):  # torch's, of a tensor with several elements
        raise TypeError(f"{call}: {name} is {shown(value)}, expected {expected}") from None
    if not low <= number <= high:  # NaN included
        raise ValueError(f"{call}: {name} is {shown(value)}, expected {expected}")
    return number


def instance(call: str, name: str, value: Any, kind: type) -> None:
    if not isinstance(value, kind):
        raise TypeError(f"{call}: {name} is {shown(value)}, expected {kind.__name__}")


def each(call: str, name: str, value: Any, expected: str) -> Iterator:
    try:
        return iter(value)
    except TypeError:
        raise TypeError(f"{call}: {name} is {shown(value)}, expected {expected}") from None


def flag(call: str, name: str, value: Any) -> bool:
    """True or False: what else counts as true ("no", say) is more likely a mistake."""
    if not is_bool(value):
        raise TypeError(f"{call}: {name} is {shown(value)}, expected True or False")
    return bool(value)


def namespace_bytes(call: str, namespace: str | bytes | None) -> bytes:
    if isinstance(namespace, bytes):
        return namespace
    namespace = "" if namespace is None else namespace
    if not isinstance(namespace, str):
        raise TypeError(f"{call}: namespace is {shown(namespace)}, expected text or bytes")
    try:
        return namespace.encode()
    except UnicodeEncodeError:
        raise ValueError(f"{call}: namespace is {shown(namespace)}, expected text that UTF-8 can hold") from None


def token_ids(call: str, name: str, tokens: Any, vocab_size: int) -> np.ndarray:
    """int32 [n], not copied where they are that already."""
    try:
        array = np.asarray(tokens.cpu().numpy() if isinstance(tokens, torch.Tensor) else tokens)
    except (TypeError, ValueError, NotImplementedError) as error:  # uneven lists, tensors that numpy has no kind of
        raise TypeError(f"{call}: {name} is {shown(tokens)}, {FLAT}") from error
    if array.ndim == 1:
        if array.size == 0:
            return np.empty(0, np.int32)
        if array.dtype.kind in "iu" and array.min() >= 0 and array.max() < vocab_size:
            return np.ascontiguousarray(array, np.int32)
        # numpy makes one type of all, be it float: of some of its own kinds, of one that is too large.
        return _token_ids_one_by_one(call, name, array if isinstance(tokens, torch.Tensor) else tokens, vocab_size)
    came = f"has shape {list(array.shape)}" if array.ndim else f"is {shown(tokens)}"
    raise TypeError(f"{call}: {name} {came}, {FLAT}")


def _token_ids_one_by_one(call: str, name: str, tokens: Any, vocab_size: int) -> np.ndarray:
    numbers = []
    for i, token in enumerate(tokens):
        try:
            numbers.append(operator.index(None if is_bool(token) else token))
        except TypeError:
            raise TypeError(f"{call}: {name}[{i}] is {shown(token)}, {FLAT}") from None
        if not 0 <= numbers[i] < vocab_size:
            bad = f"{name}[{i}]: {shown(numbers[i])}"
            raise ValueError(f"{call}: {bad} is not in the vocabulary, expected 0 to {vocab_size - 1}")
    return np.array(numbers, np.int32)
