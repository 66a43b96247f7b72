"""The tests of the tests: bugs planted in the kernels, a matrix of kernels and classes of bug, and each one noticed.

tests/simt/planted_*.py hold the matrix, tests/simt/small the cases: one small program per op that runs its kernels on
the emulator and compares the answer with a plain computation. A bug is a text replacement in a copy of csrc/cuda; the
program is compiled against that copy and run, every time in processes of its own. The unchanged kernels pass.
"""

import re
import shutil

import pytest
from simt import planted_attention, planted_cache, planted_decode, planted_rows
from simt.build import HERE, SmallCase, cuda_include
from simt.planted_bug import CLASSES

pytestmark = pytest.mark.skipif(cuda_include() is None, reason="needs the CUDA headers; set CUDA_HOME")

CUDA = HERE.parents[1] / "csrc" / "cuda"
BUILDS = ("plain", "asan", "race")
KERNELS = [*planted_attention.KERNELS, *planted_cache.KERNELS, *planted_decode.KERNELS, *planted_rows.KERNELS]
PROGRAMS = sorted({kernel.program for kernel in KERNELS})
BUGS = [
    pytest.param(kernel.program, bug, id=f"{kernel.name}-{name}-{i}")
    for kernel in KERNELS
    for name, bugs in kernel.bugs.items()
    for i, bug in enumerate(bugs)
]


def test_the_matrix_is_complete():
    for kernel in KERNELS:
        columns = [*kernel.bugs, *kernel.none.split(), *kernel.shared.split()]
        assert sorted(columns) == sorted(CLASSES), kernel.name
        assert all(kernel.bugs.values()), kernel.name
    touched = {bug.values[1].file for bug in BUGS}
    with_kernels = {p.name for p in CUDA.glob("*.cuh") if "__global__ void" in p.read_text()}
    assert with_kernels - touched == set()


@pytest.mark.parametrize("kind", BUILDS)
@pytest.mark.parametrize("program", PROGRAMS)
def test_kernels_as_they_are_pass(program, kind, tmp_path):
    run = SmallCase(program, kind).run(CUDA, tmp_path)
    assert run.returncode == 0, run.stdout + run.stderr


@pytest.mark.parametrize(("program", "bug"), BUGS)
def test_planted_bug_turns_a_case_red(program, bug, tmp_path):
    shutil.copytree(CUDA, tmp_path / "cuda")
    (tmp_path / "core").symlink_to(CUDA.parent / "core")
    source = tmp_path / "cuda" / bug.file
    parts = source.read_text().split(bug.old)
    assert len(parts) > bug.nth + 1, f"{bug.file} no longer holds what tests/simt/planted_*.py replaces: {bug.old}"
    head, tail = bug.old.join(parts[: bug.nth + 1]), bug.old.join(parts[bug.nth + 1 :])
    source.write_text(head + bug.new + tail)
    run = SmallCase(program, bug.build).run(tmp_path / "cuda", tmp_path)
    report = run.stdout + run.stderr
    assert run.returncode != 0, "nothing noticed"
    assert re.search("^wrong answer|^SIMT ERROR|AddressSanitizer|runtime error:", report, re.MULTILINE), report
