"""Gates on the CUDA kernels' machine code, checked without a GPU: no spills, the promised instructions, few registers.

tests/gates/manifest.json holds the bounds; `python -m tests.gates` writes it anew. The first run compiles every kernel
for five architectures, later ones read what was kept of unchanged sources.
"""

import functools
import pathlib
import subprocess

import background
import pytest
from gates import figures as gate_figures
from gates.figures import (
    FLAGS,
    archs_of,
    built_figures,
    built_object,
    compile_figures,
    figures_of,
    kernels_in,
    readable,
    sources,
)
from gates.gate import FORBIDDEN, bounds, load, manifest_of, missing_kernels, violations
from gates.toolchain import environment, find_cuobjdump, find_nvcc, release

import stateful_kv as skv

LIBRARY = pathlib.Path(skv.__file__).with_name("libstateful_kv_ops.so")
MANIFEST = load()
SHIPPED = ("sm_80", "sm_90a")  # what SKV_CUDA_ARCHS gives machine code by default


def in_background(items):
    wanted = any("compiled" in item.fixturenames for item in items)
    return {source: functools.partial(figures_of, source, MANIFEST["nvcc"]) for source in sources() if wanted}


@pytest.fixture(scope="module")
def compiled():
    """{source: figures} of every kernel file."""
    return {source.stem: background.result(source) for source in sources()}


def compiler_is_the_manifests():
    return release(find_nvcc(MANIFEST["nvcc"])) == MANIFEST["nvcc"]


def test_the_manifest_lists_every_source():
    assert sorted(MANIFEST["kernels"]) == [s.stem for s in sources() if MANIFEST["kernels"].get(s.stem)]
    launchers_only = {s.stem for s in sources()} - set(MANIFEST["kernels"])
    for stem in launchers_only:
        assert "__global__" not in gate_figures.KERNELS.joinpath(f"{stem}.cu").read_text(), f"{stem} is not listed"


@pytest.mark.parametrize("source", sources(), ids=lambda s: s.stem)
def test_machine_code_keeps_its_bounds(compiled, source):
    expected = MANIFEST["kernels"].get(source.stem, {})
    found = violations(expected, compiled[source.stem], compiler_is_the_manifests())
    assert not found, "\n".join(found)


def test_every_architecture_was_compiled(compiled):
    for source in sources():
        if compiled[source.stem]:
            assert set(compiled[source.stem]) == set(archs_of(source)), source.stem


def test_attention_and_linears_run_on_tensor_cores_and_asynchronous_copies():
    """The manifest itself: regenerating it must not let these go unseen."""
    for stem in ("delta_prefill_bf16", "delta_prefill_f16", "row_linear", "fused_row_linear"):
        for kernel, archs in MANIFEST["kernels"][stem].items():
            if "f32" in kernel or "add_rows" in kernel:
                continue
            assert set(archs) == set(gate_figures.ARCHS)
            for arch, text in archs.items():
                if ("stream" in kernel or "fused" in kernel) and arch != "sm_90a":  # the only one that runs it
                    continue
                assert "HMMA>=" in text or "HGMMA>=" in text, f"{kernel} on {arch}"
                assert "LDGSTS>=" in text or "UTMALDG>=" in text, f"{kernel} on {arch}"
    for stem in ("delta_prefill_bf16_sm90", "delta_prefill_f16_sm90", "delta_prefill_fp8_sm90"):
        for kernel, archs in MANIFEST["kernels"][stem].items():
            assert set(archs) == {"sm_90a"}, kernel
            assert {"HGMMA", "UTMALDG"} <= {w.split(">=")[0] for w in archs["sm_90a"].split()}, kernel
            # With two groups of consumers the registers are handed from the producers to them.
            assert ("USETMAXREG>=2" in archs["sm_90a"].split()) == kernel.endswith(", 2>"), kernel
    for kernel, archs in MANIFEST["kernels"]["delta_prefill_few_rows_sm90"].items():
        assert {"HMMA", "UTMALDG"} <= {w.split(">=")[0] for w in archs["sm_90a"].split()}, kernel


def test_the_library_holds_every_kernel():
    present = kernels_in(LIBRARY)
    if not present:
        pytest.skip("the package was built without CUDA")
    assert set(present) & set(SHIPPED)
    missing = missing_kernels(MANIFEST, present)
    assert not missing, "\n".join(missing)


def test_a_build_of_the_package_gives_the_figures_of_a_compilation():
    source, nvcc = gate_figures.KERNELS / "copy_blocks.cu", find_nvcc(MANIFEST["nvcc"])
    made = built_object(source, nvcc)
    if made is None:
        pytest.skip("this tree holds no build of the package by this compiler")
    figures, wanted = built_figures(made, archs_of(source), nvcc), compile_figures(source, nvcc)
    assert set(wanted) == set(gate_figures.ARCHS) and set(figures) == set(wanted)
    for arch, kernels in wanted.items():
        assert {k: v | {"spilled_bytes": 0} for k, v in figures[arch].items()} == kernels, arch


# ---- each gate fails when broken on purpose ----

GOOD = """
__global__ void scale(float* p, float by) { p[threadIdx.x] *= by; }
"""
SPILLS = """
__global__ void __launch_bounds__(1024, 2) scale(float* p, float by) {  // 32 registers for 64 values alive at once
  float v[64];
  for (int r = 0; r < 16; ++r) {
#pragma unroll
    for (int i = 0; i < 64; ++i) v[i] = p[i * 1024 + r] * (r ? v[(i * 7) % 64] : by);
  }
#pragma unroll
  for (int i = 0; i < 64; ++i) p[i * 1024 + threadIdx.x] = v[i];
}
"""
LOCAL_ARRAY = """
__global__ void scale(float* p, float by) {  // indexed by what only the device knows: no registers
  float v[32] = {};
  for (int i = 0; i < 1000; ++i) v[(i * int(by)) & 31] += p[i];
  for (int i = 0; i < 32; ++i) p[32 * threadIdx.x + i] = v[i];
}
"""
TENSOR_CORES = """
#include <mma.h>
__global__ void scale(__half* p, float by) {
  using namespace nvcuda::wmma;
  fragment<matrix_a, 16, 16, 16, __half, row_major> a;
  fragment<matrix_b, 16, 16, 16, __half, col_major> b;
  fragment<accumulator, 16, 16, 16, __half> c;
  fill_fragment(c, __float2half(by));
  load_matrix_sync(a, p, 16);
  load_matrix_sync(b, p, 16);
  mma_sync(c, a, b, c);
  store_matrix_sync(p, c, 16, mem_row_major);
}
"""
NO_TENSOR_CORES = """
#include <cuda_fp16.h>
__global__ void scale(__half* p, float by) {
  __half c = __float2half(by);
  for (int i = 0; i < 16; ++i) c = __hfma(p[i], p[threadIdx.x], c);
  p[threadIdx.x] = c;
}
"""
MOVES_REGISTERS = """
__global__ void __launch_bounds__(256, 1) scale(float* p, float by) {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
  if (threadIdx.x < 128) {
    asm volatile("setmaxnreg.dec.sync.aligned.u32 40;");
  } else {
    asm volatile("setmaxnreg.inc.sync.aligned.u32 168;");
  }
#endif
  p[threadIdx.x] *= by;
}
"""


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    """Figures of a small source on sm_80 and sm_90a."""
    folder, kept = tmp_path_factory.mktemp("toy"), {}

    def make(text):
        if text not in kept:
            path = folder / "toy.cu"
            path.write_text(text)
            with pytest.MonkeyPatch.context() as patch:
                portable = ["-gencode=arch=compute_80,code=sm_80", "-gencode=arch=compute_90a,code=sm_90a"]
                patch.setattr(gate_figures, "PORTABLE", portable)
                kept[text] = compile_figures(path, find_nvcc(MANIFEST["nvcc"]))
        return kept[text]

    return make


def expected_of(figures):
    return manifest_of({"toy": figures}, "")["kernels"]["toy"]


def test_a_kernel_passes_its_own_bounds(toy):
    figures = toy(GOOD)
    assert set(figures) == {"sm_80", "sm_90a"} and set(figures["sm_80"]) == {"scale"}
    assert violations(expected_of(figures), figures) == []


def test_a_spilling_kernel_fails(toy):
    figures = toy(SPILLS)
    found = violations(expected_of(figures), figures)  # although the manifest was made from it
    assert len(found) >= 2 and any("spilled_bytes" in line for line in found), found
    assert any("STL is" in line for line in found), found


def test_a_kernel_with_an_array_in_local_memory_fails(toy):
    figures = toy(LOCAL_ARRAY)
    found = violations(expected_of(figures), figures)
    assert any("LDL is" in line for line in found), found


def test_a_kernel_that_lost_its_tensor_cores_fails(toy):
    expected = expected_of(toy(TENSOR_CORES))
    assert "HMMA>=" in expected["scale"]["sm_80"]
    assert violations(expected, toy(TENSOR_CORES)) == []
    found = violations(expected, toy(NO_TENSOR_CORES))
    assert any("0 HMMA, expected at least" in line for line in found), found


def test_a_kernel_that_no_longer_moves_registers_fails(toy):
    figures = toy(MOVES_REGISTERS)
    expected = expected_of(figures)
    assert "USETMAXREG>=2" in expected["scale"]["sm_90a"] and violations(expected, figures) == []
    found = violations(expected, toy(GOOD))
    assert any("0 USETMAXREG, expected at least 2" in line for line in found), found


def test_a_kernel_with_too_many_registers_fails(toy):
    figures = toy(GOOD)
    expected = {"scale": {arch: "registers<=4" for arch in figures}}
    found = violations(expected, figures)
    assert len(found) == 2 and all("registers, expected at most 4" in line for line in found)
    assert violations(expected, figures, check_registers=False) == []


def test_a_kernel_unknown_to_the_manifest_or_not_compiled_fails(toy):
    figures = toy(GOOD)
    assert [line.split(";")[0] for line in violations({}, figures)] == [
        f"scale on {arch} is not in the manifest" for arch in figures
    ]
    expected = expected_of(figures) | {"other": {"sm_80": "registers<=8"}}
    assert [line.split(";")[0] for line in violations(expected, figures)] == ["other on sm_80 was not compiled"]


def test_a_kernel_dropped_from_the_library_is_missed(tmp_path):
    """A shared object that holds one of two kernels, as when the linker takes nothing from an archive."""
    source, library = tmp_path / "toy.cu", tmp_path / "libtoy.so"
    source.write_text(GOOD)
    nvcc = find_nvcc(MANIFEST["nvcc"])
    command = [str(nvcc), *FLAGS, "-arch=sm_80", "-Xcompiler=-fPIC", "-shared", "-cudart=none"]
    subprocess.run([*command, "-o", str(library), str(source)], check=True, capture_output=True)
    present = kernels_in(library)
    assert present == {"sm_80": {"scale"}}
    manifest = {"kernels": {"toy": {"scale": {"sm_80": ""}, "other": {"sm_80": "", "sm_90a": ""}}}}
    assert missing_kernels(manifest, present) == ["other on sm_80 is not in the library"]


def test_bounds_leave_room_for_small_changes_only():
    assert bounds({"registers": 97, "HMMA": 64, "LDGSTS": 1}) == "registers<=104 HMMA>=48 LDGSTS>=1"
    assert "spilled_bytes" in FORBIDDEN and {"LDL", "STL"} <= set(FORBIDDEN)


def test_kernel_names_are_readable():
    name = "void skv::cuda::(anonymous namespace)::copy<unsigned short, (bool)1, 8>(skv::cuda::Params<(int)2>)"
    assert readable(name) == "copy<unsigned short, (bool)1, 8>"
    assert readable("scale(float*, float)") == "scale"


def test_included_headers_change_what_is_kept(tmp_path):
    nvcc = find_nvcc(MANIFEST["nvcc"])
    (tmp_path / "a.cu").write_text('#include "b.cuh"\n')
    (tmp_path / "b.cuh").write_text('#include "c.cuh"\n')
    (tmp_path / "c.cuh").write_text("// one\n")
    before = gate_figures.cache_key(tmp_path / "a.cu", nvcc)
    assert before == gate_figures.cache_key(tmp_path / "a.cu", nvcc)
    (tmp_path / "c.cuh").write_text("// two\n")
    assert gate_figures.cache_key(tmp_path / "a.cu", nvcc) != before


def test_tools_answer():
    done = subprocess.run([str(find_cuobjdump()), "--version"], capture_output=True, text=True, env=environment())
    assert done.returncode == 0 and "cuobjdump" in done.stdout
