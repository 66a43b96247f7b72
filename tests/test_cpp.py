"""Builds and runs the C++ tests of the runtime and of launch plans, plain and with address and undefined sanitizers."""

import pathlib
import shutil
import subprocess

import pytest

ROOT = pathlib.Path(__file__).resolve().parent.parent


@pytest.mark.parametrize("sanitize", ["", "address,undefined"], ids=["plain", "sanitized"])
def test_runtime_in_cpp(sanitize):
    build = ROOT / "build" / f"cpp-tests-{'sanitized' if sanitize else 'plain'}"
    generator = ["-G", "Ninja"] if shutil.which("ninja") else []
    options = ["-DSKV_PYTHON=OFF", "-DSKV_CUDA=OFF", "-DSKV_TESTS=ON", f"-DSKV_SANITIZE={sanitize}"]
    for command in (
        ["cmake", "-S", str(ROOT), "-B", str(build), *generator, *options],
        ["cmake", "--build", str(build), "--target", "runtime_tests"],
        ["ctest", "--test-dir", str(build), "--output-on-failure", "-R", "^test_(runtime|plan)"],
    ):
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout[-8000:]}\n{done.stderr[-8000:]}"
    assert "No tests were found" not in done.stdout
    assert "100% tests passed" in done.stdout
