"""What vLLM 0.32 needs on a CPU before its engine starts with n-gram speculation or several processes."""

import builtins
import os


def let_kernels_register() -> None:
    """Its search for Triton kernels asks every attribute of every module for its __dict__, and stops at one of
    llvmlite's (loaded with the n-gram proposer) that answers with something else."""
    from vllm.triton_utils import dispatcher

    def instance_dict(value):
        found = builtins.vars(value)
        return found if hasattr(type(found), "get") else {}

    dispatcher.vars = instance_dict


def bind_threads(processes: int, threads: int | None = None) -> None:
    """The cores of this process, or the first `threads` of them, shared out among vLLM's workers: by itself it wants a
    memory node for each."""
    cores = sorted(os.sched_getaffinity(0))[:threads]
    share = max(1, len(cores) // processes)
    lists = [cores[i * share : (i + 1) * share] or cores[-1:] for i in range(processes)]
    os.environ["VLLM_CPU_OMP_THREADS_BIND"] = "|".join(",".join(map(str, of_one)) for of_one in lists)
