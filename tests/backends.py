"""The backends that the op tests run on: one class each, offering the op namespace, the device and what it supports.

`simt` runs the CUDA kernels' own sources on the CPU; its library is built for tests only (tests/simt), registers the
same ops as torch.ops.stateful_kv_simt and takes CPU tensors. STATEFUL_KV_SIMT_LIBRARY names it elsewhere.
"""

import os
import pathlib

import torch

import stateful_kv  # noqa: F401  loads the ops

FLOATS = (torch.float32, torch.float16, torch.bfloat16)
FP8 = torch.float8_e4m3fn
SIMT_LIBRARY = pathlib.Path(
    os.environ.get("STATEFUL_KV_SIMT_LIBRARY", pathlib.Path(__file__).with_name("simt") / "libstateful_kv_simt.so")
)


class Cpu:
    name = "cpu"
    device = "cpu"
    emulated = False  # an emulated backend is slow: tests may choose fewer cases
    checks_indices = True  # data-dependent indices raise IndexError; on CUDA they are skipped

    @property
    def ops(self):
        return torch.ops.stateful_kv

    def supports(self, op, dtype=torch.float32, cache_dtype=None, head_dim=64, block_size=16):
        """Whether the contract promises `op` for these on this backend."""
        return True


class Cuda(Cpu):
    name = "cuda"
    device = "cuda"
    checks_indices = False

    def supports(self, op, dtype=torch.float32, cache_dtype=None, head_dim=64, block_size=16):
        if op == "delta_prefill" and (head_dim not in (64, 96, 128, 192, 256) or dtype == torch.float32):
            return False
        return head_dim <= 256 and block_size & (block_size - 1) == 0


class Simt(Cuda):
    name = "simt"
    device = "cpu"
    emulated = True

    @property
    def ops(self):
        return torch.ops.stateful_kv_simt

    def supports(self, op, dtype=torch.float32, cache_dtype=None, head_dim=64, block_size=16):
        """SIMT_FEW: a slow build, which has no attention with queries in float16 (simt/few_attention_kernels.cu)."""
        if os.environ.get("SIMT_FEW") and op == "delta_prefill" and dtype == torch.float16:
            return False
        return super().supports(op, dtype, cache_dtype, head_dim, block_size)

    def __init__(self):
        torch.ops.load_library(str(SIMT_LIBRARY))


def present():
    found = [Cpu()]
    if torch.cuda.is_available():
        found.append(Cuda())
    if SIMT_LIBRARY.exists():
        found.append(Simt())
    wanted = os.environ.get("STATEFUL_KV_TEST_BACKENDS")
    return [b for b in found if wanted is None or b.name in wanted.split(",")]


BACKENDS = present()
