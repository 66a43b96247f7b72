"""The CUDA emulator's own tests: right kernels pass under every schedule, each planted bug is caught.

tests/simt/test_emulator.cpp holds the right kernels, planted_bugs*.cpp the others, each run in its own process.
"""

import re
import subprocess

import pytest
from simt.build import build, cuda_include

pytestmark = pytest.mark.skipif(cuda_include() is None, reason="needs the CUDA headers; set CUDA_HOME")

BUILDS = ("plain", "asan", "race")
EVERYWHERE = {
    "divergent_barrier": "barrier divergence",
    "barrier_against_shuffle": "deadlock",
    "mismatched_collectives": "warp divergence",
    "uneven_barrier_counts": "deadlock: threads wait for one that has returned",
    "wait_for_nobody": "deadlock: threads poll and nothing changes",
    "copy_never_awaited": "returned with cp.async in flight",
    "misaligned_copy": "not aligned to 16 bytes",
    "copy_past_shared": "16 bytes at 512 of 512 bytes of shared memory",
    "shared_overrun": "past the end of shared memory|AddressSanitizer",
    "global_overrun": "invalid access to address|AddressSanitizer",
    "missing_barrier": "wrong answer|read of uninitialised|race",
    "missing_wait": "wrong answer|unfinished async copy",
    "wait_after_barrier": "wrong answer|unfinished async copy",
    "lost_update": "wrong answer",
    "assumes_cta_order": "wrong answer",
    "bulk_no_full_wait": "deadlock|wrong answer|unfinished async copy|read of uninitialised",
    "bulk_early_release": "wrong answer|race",
    "bulk_no_empty_wait": "mbarrier.arrive: more arrivals than its count 1",
    "bulk_wrong_bytes": "deadlock: threads poll and nothing changes",
    "bulk_never_awaited": "CTA ended with 1 bulk copies in flight",
    "mbarrier_not_initialised": "no initialised mbarrier|race",
    "mbarrier_overwritten": "no initialised mbarrier|race",
    "store_no_read_wait": "wrong answer",
    "wgmma_no_fence": "wgmma without wgmma.fence before it",
    "wgmma_no_wait": "wrong answer",
    "wgmma_early_reuse": "wrong answer|race",
    "overlapped_returns_early": "ended without waiting for those ahead",
    "wgmma_missing_warp": "warps 0 and 1 of a warpgroup issued 0 and 1",
}
ASAN_ONLY = {
    "static_overrun": "AddressSanitizer: use-after-poison|index 32 out of bounds",
    "dynamic_overrun": "AddressSanitizer: use-after-poison",
}
RACE_ONLY = {
    "shared_race": r"race \(.*static shared memory",
    "shuffle_as_barrier": r"race \(read after write\) at static shared memory",
    "uninitialised_shared": "read of uninitialised shared memory",
    "early_buffer_reuse": r"race \(.*static shared memory",
    "global_race": r"race \(write after write\) at global memory",
    "global_race_with_atomic": r"race \(.*global memory(.|\n)*(reads|writes|wrote atomically)",
    "no_release_fence": r"race \(read after write\) at global memory",
    "no_acquire_fence": r"race \(read after write\) at global memory",
    "fence_before_barrier": r"race \(read after write\) at global memory",
    "plain_flag": r"race \(.*global memory",
    "overlapped_writes_early": "writes to global memory before it has waited",
    "store_no_proxy_fence": "no fence.proxy.async between an ordinary write and the asynchronous proxy",
    "store_late_proxy_fence": "no fence.proxy.async between an ordinary write and the asynchronous proxy",
    "wgmma_no_proxy_fence": "no fence.proxy.async between an ordinary write and the asynchronous proxy",
}
CASES = (
    [(b, name, text) for name, text in EVERYWHERE.items() for b in BUILDS]
    + [("asan", name, text) for name, text in ASAN_ONLY.items()]
    + [("race", name, text) for name, text in RACE_ONLY.items()]
)


@pytest.fixture(scope="module")
def emulators():
    return {name: build(f"test_emulator_{name}") for name in BUILDS}


def run(program, *args):
    done = subprocess.run([program, *args], capture_output=True, text=True, timeout=100)
    return done.returncode, done.stdout + done.stderr


@pytest.mark.parametrize("name", BUILDS)
def test_right_kernels_pass_under_every_schedule(emulators, name):
    code, output = run(emulators[name])
    assert code == 0, output
    assert "0 failed checks" in output


@pytest.mark.parametrize(("name", "bug", "report"), CASES)
def test_planted_bug_is_caught(emulators, name, bug, report):
    code, output = run(emulators[name], bug)
    assert code not in (0, 2), output
    assert "nothing noticed" not in output
    assert re.search(report, output), output


@pytest.mark.parametrize("kernel", ["handoff", "overlapped", "hopper_pipeline", "hopper_store", "hopper_product"])
@pytest.mark.parametrize("name", BUILDS)
def test_right_counterparts_of_planted_bugs_are_not_reported(emulators, name, kernel):
    code, output = run(emulators[name], kernel)
    assert (code, output) == (1, f"{kernel}: nothing noticed\n")
