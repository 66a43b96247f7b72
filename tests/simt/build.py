"""Builds targets of tests/simt with CMake: `build("test_emulator_race")` returns the path of what was built.

`python tests/simt/build.py [plain|asan|race]` builds the emulated op library and prints its path; with that path in
STATEFUL_KV_SIMT_LIBRARY the op tests also run on the backend `simt`.
"""

import fcntl
import functools
import importlib.util
import os
import pathlib
import shutil
import subprocess
import sys
import threading
from typing import NamedTuple

HERE = pathlib.Path(__file__).resolve().parent
BUILD = HERE.parents[1] / "build" / "simt"
_one_at_a_time = threading.Lock()


def cuda_include() -> pathlib.Path | None:
    """The directory with cuda_fp16.h: of a toolkit, or of the nvidia pip packages."""
    candidates = [pathlib.Path(os.environ[name]) for name in ("CUDA_HOME", "CUDA_PATH") if name in os.environ]
    if nvcc := shutil.which("nvcc"):
        candidates.append(pathlib.Path(nvcc).resolve().parents[1])
    candidates.append(pathlib.Path("/usr/local/cuda"))
    if (spec := importlib.util.find_spec("nvidia")) and spec.submodule_search_locations:
        candidates += [pathlib.Path(p) / "cu13" for p in spec.submodule_search_locations]
    return next((c / "include" for c in candidates if (c / "include" / "cuda_fp16.h").is_file()), None)


@functools.cache
def build(target: str) -> pathlib.Path:
    BUILD.mkdir(parents=True, exist_ok=True)
    with open(BUILD / "lock", "w") as lock:  # one at a time, of threads and of processes
        fcntl.flock(lock, fcntl.LOCK_EX)
        return _build(target)


def _build(target: str) -> pathlib.Path:
    import torch

    include = cuda_include()
    if include is None:
        raise RuntimeError("the CUDA headers (cuda_fp16.h) were not found; set CUDA_HOME")
    configure = [
        "cmake", "-S", str(HERE), "-B", str(BUILD), "-G", "Ninja",
        f"-DSIMT_CUDA_INCLUDE={include}",
        f"-DSIMT_TORCH_DIR={pathlib.Path(torch.__file__).parent}",
    ]  # fmt: skip
    if shutil.which("ninja") is None:
        import ninja

        configure.append(f"-DCMAKE_MAKE_PROGRAM={pathlib.Path(ninja.BIN_DIR) / 'ninja'}")
    subprocess.run(configure, check=True, stdout=subprocess.DEVNULL)
    done = subprocess.run(["cmake", "--build", str(BUILD), "--target", target], capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"building {target} failed:\n{done.stdout[-6000:]}{done.stderr[-2000:]}")
    return BUILD / (f"lib{target}.so" if target.startswith("stateful_kv_simt") else target)


def compiler() -> str:
    return os.environ.get("CXX", "g++")


def small_case_flags(kind: str) -> list[str]:
    """Compiler flags of a small case; they include a precompiled header, without which a case takes twice as long."""
    with _one_at_a_time:
        return _small_case_flags(kind)


@functools.cache
def _small_case_flags(kind: str) -> list[str]:
    build(f"simt_core_{kind}")
    flags = ["-std=c++17", *(BUILD / f"flags_{kind}.txt").read_text().split("\n"), "-O1", "-DSKV_SIMT"]
    flags += ["-DSKV_PRIM_EMULATION=<simt/prim.h>", f"-I{HERE / 'include'}", "-isystem", str(cuda_include())]
    header = BUILD / f"small_{kind}" / "all.h"
    header.parent.mkdir(exist_ok=True)
    header.write_text(
        "".join(f"#include <{name}>\n" for name in ("simt/prim.h", "simt/buffer.h", "algorithm", "vector"))
    )
    made = f"{header}.{os.getpid()}"  # then moved: another process may be reading the old one
    subprocess.run([compiler(), *flags, "-x", "c++-header", str(header), "-o", made], check=True)
    os.replace(made, f"{header}.gch")
    return [*flags, "-include", str(header)]


class SmallCase(NamedTuple):
    """A program of tests/simt/small in one build of the emulator."""

    program: str
    kind: str

    def run(self, kernels: pathlib.Path, folder: pathlib.Path, *more_flags: str) -> subprocess.CompletedProcess:
        """Compiles it in `folder` against the kernels of that directory and runs it, a second's work; a hang raises."""
        flags, core = small_case_flags(self.kind), BUILD / f"libsimt_core_{self.kind}.a"
        source, made, program = HERE / "small" / f"{self.program}.cpp", folder / "small.o", folder / "small"
        command = [compiler(), *flags, *more_flags, f"-I{kernels}", "-c", str(source), "-o", str(made)]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f"{self.program} does not compile:\n{done.stderr[-3000:]}")
        sanitizers = ["-fsanitize=address,undefined"] if self.kind == "asan" else []  # not thread: core has its hooks
        command = [compiler(), str(made), str(core), "-ldl", *sanitizers, "-o", str(program)]
        subprocess.run(command, check=True)
        return subprocess.run([program], capture_output=True, text=True, timeout=300)


if __name__ == "__main__":
    print(build(f"stateful_kv_simt_{sys.argv[1] if len(sys.argv) > 1 else 'plain'}"))
