"""The compiled ops, and how they are called: a failed check of arguments is one of Python's own exceptions."""

import pathlib
import re

import torch

torch.ops.load_library(str(pathlib.Path(__file__).with_name("libstateful_kv_ops.so")))
op = torch.ops.stateful_kv

_ERRORS = {e.__name__: e for e in (ValueError, TypeError, NotImplementedError, IndexError)}
_MESSAGE = re.compile(r"\[(ValueError|TypeError|NotImplementedError|IndexError)\] (.*)")


def call(overload, *args):
    """Runs an op; a failed check of its arguments becomes the Python exception its message names."""
    try:
        overload(*args)
    except RuntimeError as error:
        found = _MESSAGE.search(str(error))
        if found is None:
            raise
        raise _ERRORS[found[1]](found[2]) from None
