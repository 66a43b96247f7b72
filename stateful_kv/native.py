"""The compiled ops, and how they are called: a failed check of arguments is one of Python's own exceptions."""

import pathlib
import re

import torch

from .arguments import shown

torch.ops.load_library(str(pathlib.Path(__file__).with_name("libstateful_kv_ops.so")))
op = torch.ops.stateful_kv

_ERRORS = {e.__name__: e for e in (ValueError, TypeError, NotImplementedError, IndexError)}
_MESSAGE = re.compile(r"\[(ValueError|TypeError|NotImplementedError|IndexError)\] (.*)")

_KINDS = {
    "Tensor": (torch.Tensor, "a tensor"),
    "int": (int, "an int"),
    "float": ((float, int), "a float"),
    "bool": (bool, "a bool"),
}


def call(overload, *args):
    """Runs an op; a failed check of its arguments becomes the Python exception its message names."""
    try:
        overload(*args)
    except RuntimeError as error:
        found = _MESSAGE.search(str(error))
        if found is not None:
            raise _ERRORS[found[1]](found[2]) from None
        _raise_refusal(overload._schema, args)
        raise


def require_tensor(op_name: str, name: str, value) -> torch.Tensor:
    """An argument from which a wrapper makes a missing output before the op can look at it."""
    if not isinstance(value, torch.Tensor):
        raise TypeError(f"{op_name}: {name} is {shown(value)}, expected a tensor")
    return value


def require_size(op_name: str, name: str, value) -> int:
    """As require_tensor, of a dimension."""
    if not isinstance(value, int):
        raise TypeError(f"{op_name}: {name} is {shown(value)}, expected an int")
    if value < 0:
        raise ValueError(f"{op_name}: {name} is {value}, expected at least 0")
    return value


def _raise_refusal(schema, args) -> None:
    """torch's dispatcher turns values of other types away without our words: raises these, if that was it."""
    op_name = schema.name.removeprefix("stateful_kv::")
    for argument, value in zip(schema.arguments, args, strict=False):
        kind = str(argument.type)
        optional, kind = kind.startswith("Optional["), kind.removeprefix("Optional[").removesuffix("]")
        if kind.startswith("List["):
            for i, element in enumerate(value):
                require_tensor(op_name, f"{argument.name}[{i}]", element)
        elif not (optional and value is None):
            accepted, expected = _KINDS[kind]
            if not isinstance(value, accepted):
                raise TypeError(f"{op_name}: {argument.name} is {shown(value)}, expected {expected}")
            if kind == "int" and not -(2**63) <= value < 2**63:
                raise ValueError(f"{op_name}: {argument.name} is {value}, expected a number of 64 bits")
