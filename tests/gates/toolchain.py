"""Where nvcc and cuobjdump are: the PATH, a toolkit, or the nvidia packages of this Python environment."""

import functools
import os
import pathlib
import re
import shutil
import subprocess
import sysconfig


def pip_toolkit() -> pathlib.Path | None:
    """The folder that the nvidia-cuda-* packages fill together."""
    nvidia = pathlib.Path(sysconfig.get_path("purelib"), "nvidia")
    return next((p.parent.parent for p in sorted(nvidia.glob("cu*/bin/nvcc"))), None) or next(
        (p.parent.parent for p in sorted(nvidia.glob("cu*/bin/cuobjdump"))), None
    )


def _candidates(tool: str):
    for name in ("CUDA_HOME", "CUDA_PATH"):
        if name in os.environ:
            yield pathlib.Path(os.environ[name], "bin", tool)
    if found := shutil.which(tool):
        yield pathlib.Path(found)
    yield pathlib.Path("/usr/local/cuda/bin", tool)
    if toolkit := pip_toolkit():
        yield toolkit / "bin" / tool


@functools.cache
def release(nvcc: pathlib.Path) -> str:
    """nvcc's version, "13.0.88" say."""
    text = subprocess.check_output([str(nvcc), "--version"], text=True)
    return re.search(r"release [\d.]+, V([\d.]+)", text)[1]


@functools.cache
def find_nvcc(wanted: str | None = None) -> pathlib.Path:
    """An nvcc of the version `wanted` where there is one, else the first found."""
    found = [p for p in _candidates("nvcc") if p.is_file()]
    if not found:
        raise RuntimeError("no nvcc was found: pip install '.[test]', or set CUDA_HOME")
    return next((p for p in found if release(p) == wanted), found[0])


@functools.cache
def find_cuobjdump() -> pathlib.Path:
    """A cuobjdump with nvdisasm beside it or on the PATH."""
    for p in _candidates("cuobjdump"):
        if p.is_file() and ((p.parent / "nvdisasm").is_file() or shutil.which("nvdisasm")):
            return p
    raise RuntimeError("no cuobjdump with nvdisasm was found: pip install '.[test]'")


def environment() -> dict[str, str]:
    """cuobjdump calls nvdisasm from the PATH."""
    return os.environ | {"PATH": f"{find_cuobjdump().parent}{os.pathsep}{os.environ['PATH']}"}
