"""Builds the package with CMake (CMakeLists.txt holds the only list of sources).

Environment: SKV_CUDA=AUTO|ON|OFF, SKV_CUDA_ARCHS, SKV_TORCH_DIR, SKV_BUILD_TYPE, MAX_JOBS.
"""

import importlib.util
import os
import pathlib
import shutil
import subprocess
import sys
import sysconfig

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

HERE = pathlib.Path(__file__).resolve().parent


def torch_dir() -> pathlib.Path:
    """The torch to build against: that of the environment being installed into, also under pip's build isolation."""
    if chosen := os.environ.get("SKV_TORCH_DIR"):
        return pathlib.Path(chosen)
    spec = importlib.util.find_spec("torch")
    if spec and spec.submodule_search_locations:
        return pathlib.Path(spec.submodule_search_locations[0])
    isolated = pathlib.Path(sysconfig.get_paths()["purelib"]) / "torch"
    if (isolated / "include").is_dir():
        return isolated
    sys.exit("stateful_kv: torch is not installed in this environment; install it first (2.11 or newer, CPU or CUDA)")


class CMakeBuild(build_ext):
    def run(self):
        import pybind11

        out = pathlib.Path(self.get_ext_fullpath(self.extensions[0].name)).resolve().parent
        cuda = os.environ.get("SKV_CUDA", "AUTO").upper()
        build = HERE / "build" / f"cmake-{sys.implementation.cache_tag}-{cuda.lower()}"
        configure = [
            "cmake", "-S", str(HERE), "-B", str(build), "-G", "Ninja",
            f"-DCMAKE_BUILD_TYPE={os.environ.get('SKV_BUILD_TYPE', 'Release')}",
            f"-DPython_EXECUTABLE={sys.executable}",
            f"-DSKV_TORCH_DIR={torch_dir()}",
            f"-DSKV_CUDA={cuda}",
            f"-DSKV_OUTPUT_DIR={out}",
            f"-Dpybind11_DIR={pybind11.get_cmake_dir()}",
        ]  # fmt: skip
        if archs := os.environ.get("SKV_CUDA_ARCHS"):
            configure.append(f"-DSKV_CUDA_ARCHS={archs}")
        program = shutil.which("ninja")
        if program is None:
            import ninja

            program = pathlib.Path(ninja.BIN_DIR) / "ninja"
        configure.append(f"-DCMAKE_MAKE_PROGRAM={program}")  # that of an earlier, isolated build may be gone
        subprocess.check_call(configure)
        jobs = os.environ.get("MAX_JOBS")
        subprocess.check_call(["cmake", "--build", str(build), *(["-j", jobs] if jobs else [])])


setup(ext_modules=[Extension("stateful_kv._runtime", sources=[])], cmdclass={"build_ext": CMakeBuild})
