"""The op tests on the CUDA kernels' own sources, executed on the CPU by the emulator of tests/simt.

Each build runs test_<op>*.py of every op that has a kernel and test_wild_indices.py, in a process of its own beside
the other tests (background.py): plain, with AddressSanitizer and with the race checker, each under a schedule of its
own. Attention and linears have kernels of their own for sm_90: their tests run again where the emulated device says
that it is one, and those of few rows where it has multiprocessors enough for the kernel that such calls then take.
"""

import functools
import os
import pathlib
import subprocess
import sys

import background
import pytest
from simt.build import build, cuda_include

pytestmark = pytest.mark.skipif(cuda_include() is None, reason="needs the CUDA headers; set CUDA_HOME")

TESTS = pathlib.Path(__file__).resolve().parent
ENTRIES = TESTS.parent / "csrc" / "torch"
KERNELS = sorted(p.stem for p in (TESTS.parent / "csrc" / "cuda").glob("*.cu"))
OPS = [op for op in KERNELS if (TESTS / f"test_{op}.py").exists() and (ENTRIES / f"{op}.cpp").exists()]
FILES = sorted({f for op in OPS for f in TESTS.glob(f"test_{op}*.py")} | {TESTS / "test_wild_indices.py"})
# What many samples, many calls or a whole engine say is the same in every build: the plain one says it.
SAID_ONCE = (
    "the_distribution_is_the_targets",
    "from_the_cache_and_from_nothing",
    "how_many_rows_a_call_has",
    "does_not_depend_on_its_call",
    "(a_schedule_changes_no_bit and not 70)",
    "test_delta_prefill_fp8",  # about sm_90
)
# The slow builds have attention for queries in bf16 only, on sm_90 of head_dim 64 (simt/few_attention_kernels.cu), and
# run some of what there is for sm_90. There, what its own kernel does not take is as on other devices.
NOT_ON_SM90 = ("few_rows",)
SOME_ON_SM90 = (
    *("test_splits and bfloat16", "test_trees", "tree_with_a_window", "unaligned", "negative_block"),
    *("test_fp8_cache and batch_head", "masks_caps and (window or tree)", "by_hand_and and bfloat16"),
)
FOR_FEW_ROWS = ("test_delta_prefill_few_rows.py", "test_delta_prefill.py", "test_delta_prefill_masks.py")
SOME_FOR_FEW_ROWS = (
    *("everything_with_few_rows", "counts_around_the_limit and bfloat16", "nan_beside", "test_trees"),
    "long_context and 64",
)
# A schedule of its own each, the emulated device's compute capability and multiprocessors; the longest first.
RUN = ("kind", "seed", "capability", "multiprocessors")
RUNS = [
    *[("asan", 1, 80, 4), ("race", 2, 80, 4), ("plain", 0, 80, 4), ("race", 5, 90, 4), ("asan", 4, 90, 4)],
    *[("plain", 3, 90, 4), ("race", 8, 90, 16), ("asan", 7, 90, 16), ("plain", 6, 90, 16)],
]


def test_kernels_were_found():
    assert "append_kv" in OPS


def chosen(kind, capability, multiprocessors):
    """The files of a run, and pytest's -k."""
    if multiprocessors > 4:
        some = "" if kind == "plain" else f" and ({' or '.join(f'({name})' for name in SOME_FOR_FEW_ROWS)})"
        return [TESTS / name for name in FOR_FEW_ROWS], f"simt{some}"
    if capability == 80:
        return FILES, " and not ".join(["simt", *(SAID_ONCE if kind != "plain" else ())])
    files = sorted(TESTS.glob("test_delta_prefill*.py"))
    if kind == "plain":
        files += [TESTS / "test_row_linear.py", TESTS / "test_fused_row_linear.py"]
        return files, " and not ".join(["simt", *NOT_ON_SM90])
    return files, f"simt and ({' or '.join(f'({name})' for name in SOME_ON_SM90)})"


def run(kind, seed, capability, multiprocessors):
    env = os.environ | {
        "STATEFUL_KV_SIMT_LIBRARY": str(build(f"stateful_kv_simt_{kind}")),
        "STATEFUL_KV_TEST_BACKENDS": "simt",
        "SIMT_SEED": str(seed),
        "SIMT_CAPABILITY": str(capability),
        "SIMT_MULTIPROCESSORS": str(multiprocessors),
        "SIMT_FEW": "" if kind == "plain" else "1",
        "OMP_NUM_THREADS": "1",
    }
    if kind == "asan":
        # The sanitizer has to be in the process before Python is, and with it what throws: ops refuse by exceptions.
        libraries = [
            subprocess.check_output(["g++", f"-print-file-name={name}"], text=True).strip()
            for name in ("libasan.so", "libstdc++.so")
        ]
        env |= {"LD_PRELOAD": " ".join(libraries), "ASAN_OPTIONS": "detect_leaks=0"}
    files, which = chosen(kind, capability, multiprocessors)
    # A sanitizer's report ends the process, and with it all that pytest has captured: it is to leave stderr alone.
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-k", which, "-p", "no:cacheprovider", "--capture=sys"]
    return subprocess.run([*command, *files], capture_output=True, text=True, env=env, cwd=TESTS.parent, timeout=1500)


def in_background(items):
    chosen = [item.callspec.params for item in items if hasattr(item, "callspec")]
    keys = [tuple(values[name] for name in RUN) for values in chosen]
    return {key: functools.partial(run, *key) for key in keys} if cuda_include() else {}


@pytest.mark.parametrize(RUN, RUNS)
def test_ops_on_the_emulator(kind, seed, capability, multiprocessors):
    done = background.result((kind, seed, capability, multiprocessors))
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-4000:]
