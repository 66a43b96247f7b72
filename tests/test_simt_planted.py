"""The tests of the tests: bugs planted in the kernels, a matrix of kernels and classes of bug, and each one noticed.

tests/simt/planted_*.py hold the matrix, tests/simt/small the cases: one small program per op that runs its kernels on
the emulator and compares the answer with a plain computation. A bug is a text replacement in a copy of csrc/cuda; the
program is compiled against that copy and run, every time in processes of its own. The unchanged kernels pass.
"""

import functools
import pathlib
import re
import shutil
import tempfile

import background
import pytest
from simt import planted_attention, planted_cache, planted_decode, planted_hopper, planted_rows, planted_step
from simt.build import HERE, SmallCase, cuda_include
from simt.planted_bug import CLASSES

pytestmark = pytest.mark.skipif(cuda_include() is None, reason="needs the CUDA headers; set CUDA_HOME")

CUDA = HERE.parents[1] / "csrc" / "cuda"
BUILDS = ("plain", "asan", "race")
KERNELS = [
    kernel
    for module in (planted_attention, planted_cache, planted_decode, planted_hopper, planted_rows, planted_step)
    for kernel in module.KERNELS
]
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


def run_small_case(program, bug_or_kind):
    """Compiles and runs a program of tests/simt/small against the kernels as they are, or with one bug in a copy."""
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        if isinstance(bug_or_kind, str):
            return SmallCase(program, bug_or_kind).run(CUDA, folder)
        bug = bug_or_kind
        shutil.copytree(CUDA, folder / "cuda")
        (folder / "core").symlink_to(CUDA.parent / "core")
        source = folder / "cuda" / bug.file
        parts = source.read_text().split(bug.old)
        if len(parts) <= bug.nth + 1:
            raise RuntimeError(f"{bug.file} no longer holds what tests/simt/planted_*.py replace: {bug.old}")
        head, tail = bug.old.join(parts[: bug.nth + 1]), bug.old.join(parts[bug.nth + 1 :])
        source.write_text(head + bug.new + tail)
        return SmallCase(program, bug.build).run(folder / "cuda", folder)


def in_background(items):
    chosen = [
        item.callspec.params for item in items if "program" in getattr(getattr(item, "callspec", None), "params", ())
    ]
    keys = [(values["program"], values.get("bug") or values["kind"]) for values in chosen]
    return {key: functools.partial(run_small_case, *key) for key in keys} if cuda_include() else {}


@pytest.mark.parametrize("kind", BUILDS)
@pytest.mark.parametrize("program", PROGRAMS)
def test_kernels_as_they_are_pass(program, kind):
    run = background.result((program, kind))
    assert run.returncode == 0, run.stdout + run.stderr


@pytest.mark.parametrize("name", ["append_kv", "compact_kv", "propose_drafts"])
def test_a_debug_build_stops_at_an_index_out_of_range(name, tmp_path):
    run = SmallCase(name, "plain").run(CUDA, tmp_path, "-DSKV_DEBUG")
    assert run.returncode != 0 and "__trap()" in run.stdout + run.stderr, run.stdout + run.stderr


@pytest.mark.parametrize(("program", "bug"), BUGS)
def test_planted_bug_turns_a_case_red(program, bug):
    run = background.result((program, bug))
    report = run.stdout + run.stderr
    assert run.returncode != 0, "nothing noticed"
    assert re.search("^wrong answer|^SIMT ERROR|AddressSanitizer|runtime error:", report, re.MULTILINE), report
