"""Typed wrappers of torch.ops.stateful_kv, one per op: they allocate missing outputs and raise Python's own errors.

Conventions of all ops (csrc/torch/schemas.cpp is the table of contents): outputs are mutated, last dimensions are
contiguous, every other stride is free; counts, tokens and tables are int32, slots int64.
"""

import pathlib
import re

import torch
from torch import Tensor

torch.ops.load_library(str(pathlib.Path(__file__).with_name("libstateful_kv_ops.so")))
_op = torch.ops.stateful_kv

_ERRORS = {e.__name__: e for e in (ValueError, TypeError, NotImplementedError, IndexError)}
_MESSAGE = re.compile(r"\[(ValueError|TypeError|NotImplementedError|IndexError)\] (.*)")


def _call(op, *args):
    """Runs an op; a failed check of its arguments becomes the Python exception its message names."""
    try:
        op(*args)
    except RuntimeError as error:
        found = _MESSAGE.search(str(error))
        if found is None:
            raise
        raise _ERRORS[found[1]](found[2]) from None


def append_kv(
    k_cache: Tensor,
    v_cache: Tensor,
    key: Tensor,
    value: Tensor,
    slot_mapping: Tensor,
    k_scale: Tensor | None = None,
    v_scale: Tensor | None = None,
) -> None:
    """Writes the keys and values of new tokens into their cache slots, in place.

    k_cache, v_cache: [num_blocks, block_size, num_kv_heads, head_dim], any strides, mutated.
    key, value: [>= num_tokens, num_kv_heads, head_dim] of the cache's dtype, or float32/float16/bfloat16 beside an
    fp8 (e4m3fn) cache, where stored = value / scale, saturating.
    slot_mapping: int64 [num_tokens], slot = block * block_size + offset; negative = skip.
    k_scale, v_scale: float32 [] or [num_kv_heads], fp8 caches only.
    Raises ValueError, TypeError, NotImplementedError for malformed arguments, IndexError (CPU) for a slot out of
    range, before anything is written. Source: paged KV cache of PagedAttention (Kwon et al., 2023).
    """
    _call(_op.append_kv.default, k_cache, v_cache, key, value, slot_mapping, k_scale, v_scale)
