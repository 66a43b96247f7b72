"""Every prim:: function on the emulator against its definition, and that nvcc takes its PTX.

tests/simt/prim_kernels.cuh holds the cases; on a GPU the same program compares the chip with the same answers.
"""

import re
import shutil
import subprocess

import pytest
from simt.build import HERE, build, cuda_include

pytestmark = pytest.mark.skipif(cuda_include() is None, reason="needs the CUDA headers; set CUDA_HOME")

CUDA = HERE.parents[1] / "csrc" / "cuda"


@pytest.fixture(scope="module")
def declared():
    """The device functions that csrc/cuda/prim*_ptx.cuh define for nvcc."""
    text = "".join(p.read_text() for p in CUDA.glob("prim*_ptx.cuh"))
    names = re.findall(r"^SKV_DEVICE \w+ (\w+)\(", text, re.MULTILINE)
    assert {"cp_async16", "tma_load", "wgmma_m64k16"} <= set(names)
    return names


@pytest.mark.parametrize("kind", ["plain", "asan", "race"])
def test_prims_do_what_they_are_defined_to_do(kind, declared):
    done = subprocess.run([build(f"prim_check_{kind}")], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    lines = done.stdout.splitlines()
    assert lines and all(line.startswith("ok ") for line in lines), done.stdout


def test_every_prim_has_a_case(declared):
    kernels = "".join(p.read_text() for p in HERE.glob("prim_kernels*.cuh"))
    assert [name for name in declared if f"prim::{name}" not in kernels] == []


@pytest.mark.skipif(shutil.which("nvcc") is None, reason="needs nvcc")
@pytest.mark.parametrize("arch", ["80", "90a"])
def test_ptx_assembles(arch, tmp_path):
    command = ["nvcc", "-std=c++17", "-gencode", f"arch=compute_{arch},code=sm_{arch}", "-I", str(CUDA)]
    command += ["-cubin", "-o", str(tmp_path / "prim.cubin"), str(HERE / "prim_check.cu")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
