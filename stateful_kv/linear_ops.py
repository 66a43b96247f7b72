"""Wrappers of the ops of linears: stateful_kv.ops.row_linear, fused_row_linear and pack_linear_weight."""

import torch
from torch import Tensor

from .native import call as _call
from .native import op as _op
from .native import require_tensor


def row_linear(x: Tensor, weight: Tensor, bias: Tensor | None = None, out: Tensor | None = None) -> Tensor:
    """x @ weight^T + bias with one fixed reduction order: a row's bits depend on that row and the weights alone.

    x: [rows, k], float32, float16 or bfloat16, any row stride.
    weight: [n, k] of x's dtype with any row stride, or what pack_linear_weight made of it: the same bits, faster, but
    for up to 32 rows of float16 or bfloat16 on Hopper, which stream a plain weight.
    bias: [n] of x's dtype. out: [rows, n] of x's dtype or float32, any row stride, not overlapping the inputs;
    allocated when None. Sums are float32 and rounded once.
    Returns out. Neither the number of rows, their position, strides or alignment nor the number of threads changes a
    row's bits, so a prompt computed at once, from a cache or in chunks gives equal logits (same processor and build).
    A processor that multiplies bfloat16 natively takes subnormal bfloat16 values and sums as 0.
    Raises ValueError, TypeError, NotImplementedError for malformed arguments, before anything is written.
    Source: batch-invariant kernels ("Defeating Nondeterminism in LLM Inference", He et al., 2025).
    """
    if out is None:
        x, weight = require_tensor("row_linear", "x", x), require_tensor("row_linear", "weight", weight)
        out = x.new_empty((*x.shape[:-1], *weight.shape[:1]))
    _call(_op.row_linear.default, out, x, weight, bias)
    return out


def fused_row_linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    norm_weight: Tensor | None = None,
    epsilon: float = 1e-6,
    silu_and_mul: bool = False,
    add: bool = False,
    out: Tensor | None = None,
) -> Tensor:
    """row_linear with what stands before and after it in a decoder layer: the same bits as those ops one by one.

    x, weight, bias: as in row_linear. norm_weight: [k] of x's dtype; x is first normalised, by rms_norm with epsilon.
    silu_and_mul: weight is [2 * size, k], gate above up, and out [rows, size] what silu_and_mul makes of the product.
    add: the result, rounded, is added to what out holds (a residual), which then has to be given.
    out: [rows, n or size] of x's dtype, any row stride, not overlapping the inputs; allocated when None. Mutated.
    Returns out. On Hopper it is one launch, of float16 or bfloat16, plain weights, and rows of x and weight that begin
    at multiples of 16 bytes: with a norm for up to 8 rows (k a multiple of 64, (rows + 1) * k at most 79,872), without
    one for up to 32 if the product is at most added. All else runs the ops it stands for, through memory of torch's
    allocator.
    Raises ValueError, TypeError, NotImplementedError for malformed arguments, before anything is written.
    Source: prologue and epilogue fusion of linears (CUTLASS); SwiGLU (Shazeer, 2020).
    """
    if out is None:
        if add:
            raise ValueError("fused_row_linear: out is None, expected the tensor that add is to add to")
        x, weight = require_tensor("fused_row_linear", "x", x), require_tensor("fused_row_linear", "weight", weight)
        n = weight.shape[0] // (2 if silu_and_mul else 1) if weight.dim() else 0
        out = x.new_empty((*x.shape[:-1], n))
    _call(_op.fused_row_linear.default, out, x, weight, bias, norm_weight, epsilon, silu_and_mul, add)
    return out


def pack_linear_weight(weight: Tensor, packed: Tensor | None = None) -> Tensor:
    """The weight of a linear, [n, k], in the order in which row_linear reads it on this device.

    weight: float32, float16 or bfloat16, last dimension contiguous.
    packed: contiguous [n, ceil(k / pair), pair] of the same dtype and device, pair being 2 for bfloat16 and else 1;
    allocated when None. On the CPU it holds panels of 32 rows of the weight, each stored k first; on CUDA, of 16-bit
    weights, blocks of 8 rows by 32 elements; in the memory of the weight either way.
    Returns packed. It can be saved, loaded, copied and sent to another process, for the kind of device that packed it:
    on a GPU, what the CPU packed would be wrong, and so would a slice of it or another dtype (row_linear refuses what
    it can tell). The weight itself is not needed any more.
    Raises ValueError, TypeError, NotImplementedError for malformed arguments.
    """
    if packed is None:
        pair = 2 if require_tensor("pack_linear_weight", "weight", weight).dtype == torch.bfloat16 else 1
        packed = weight.new_empty((*weight.shape[:1], -(-weight.shape[-1] // pair) if weight.dim() else 0, pair))
    _call(_op.pack_linear_weight.default, packed, weight)
    return packed
