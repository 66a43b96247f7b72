"""Builds targets of tests/simt with CMake: `build("test_emulator_race")` returns the path of what was built.

`python tests/simt/build.py [plain|asan|race]` builds the emulated op library and prints its path; with that path in
STATEFUL_KV_SIMT_LIBRARY the op tests also run on the backend `simt`.
"""

import importlib.util
import os
import pathlib
import shutil
import subprocess
import sys

HERE = pathlib.Path(__file__).resolve().parent
BUILD = HERE.parents[1] / "build" / "simt"


def cuda_include() -> pathlib.Path | None:
    """The directory with cuda_fp16.h: of a toolkit, or of the nvidia pip packages."""
    candidates = [pathlib.Path(os.environ[name]) for name in ("CUDA_HOME", "CUDA_PATH") if name in os.environ]
    if nvcc := shutil.which("nvcc"):
        candidates.append(pathlib.Path(nvcc).resolve().parents[1])
    candidates.append(pathlib.Path("/usr/local/cuda"))
    if (spec := importlib.util.find_spec("nvidia")) and spec.submodule_search_locations:
        candidates += [pathlib.Path(p) / "cu13" for p in spec.submodule_search_locations]
    return next((c / "include" for c in candidates if (c / "include" / "cuda_fp16.h").is_file()), None)


def build(target: str) -> pathlib.Path:
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


if __name__ == "__main__":
    print(build(f"stateful_kv_simt_{sys.argv[1] if len(sys.argv) > 1 else 'plain'}"))
