"""The library for C++ servers: installed, found by a project outside of the tree, and run without Python or torch."""

import pathlib
import shutil
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parent.parent


def run(*command, **options) -> str:
    done = subprocess.run([str(c) for c in command], capture_output=True, text=True, **options)
    assert done.returncode == 0, f"{command}\n{done.stdout[-6000:]}\n{done.stderr[-6000:]}"
    return done.stdout


def build_tree() -> pathlib.Path:
    """The tree the package was built in, where there is one that a C++ compiler alone can use; else a new one."""
    for config in sorted(ROOT.glob(f"build/cmake-{sys.implementation.cache_tag}-*/stateful_kvConfig.cmake")):
        has_cuda = "stateful_kv_CUDA ON" in config.read_text()
        if (config.parent / "libstateful_kv.a").exists() and (not has_cuda or shutil.which("nvcc")):
            return config.parent
    tree = ROOT / "build" / "package"
    run("cmake", "-S", ROOT, "-B", tree, "-DSKV_PYTHON=OFF", "-DSKV_CUDA=OFF")
    run("cmake", "--build", tree, "-j", "2")
    return tree


@pytest.fixture(scope="module")
def prefix(tmp_path_factory):
    prefix = tmp_path_factory.mktemp("prefix")
    run("cmake", "--install", build_tree(), "--prefix", prefix)
    return prefix


@pytest.fixture(scope="module")
def examples(prefix, tmp_path_factory):
    """csrc/examples, copied away from the tree and built against what was installed."""
    source = tmp_path_factory.mktemp("server")
    shutil.copytree(ROOT / "csrc" / "examples", source, dirs_exist_ok=True)
    run("cmake", "-S", source, "-B", source / "build", f"-DCMAKE_PREFIX_PATH={prefix}")
    run("cmake", "--build", source / "build")
    return source / "build"


def test_the_example_answers_the_same_warm_and_cold(examples):
    out = run(examples / "turns")
    assert "rolled back and repeated: equal" in out and "recomputed from nothing: equal" in out
    rows = {line[:35].strip(): line[35:].split() for line in out.splitlines() if "reused" in line}
    reused = {name: int(words[3]) for name, words in rows.items()}
    assert reused["first turn"] == reused["the fork recomputed"] == 0
    prompt = int(rows["second turn"][1])
    assert reused["second turn"] == prompt - 10  # its 9 tokens, and the one drawn last before


def test_a_gpu_is_asked_for_by_name(examples):
    done = subprocess.run([examples / "turns", "--cuda"], capture_output=True, text=True)
    if done.returncode:  # without a GPU, or in a build without CUDA
        assert done.returncode == 2 and done.stderr.startswith("turns: ")
    else:
        assert "recomputed from nothing: equal" in done.stdout


def test_another_minor_version_is_not_taken(prefix, tmp_path):
    (tmp_path / "CMakeLists.txt").write_text(
        "cmake_minimum_required(VERSION 3.24)\nproject(server LANGUAGES CXX)\nfind_package(stateful_kv 0.2 REQUIRED)\n"
    )
    command = ["cmake", "-S", tmp_path, "-B", tmp_path / "build", f"-DCMAKE_PREFIX_PATH={prefix}"]
    done = subprocess.run([str(c) for c in command], capture_output=True, text=True)
    assert done.returncode != 0 and "0.2" in done.stderr


def test_public_headers_stand_alone(prefix, tmp_path):
    """Each compiles as the only include of a file, with nothing but the installed ones."""
    include = prefix / "include" / "stateful_kv"
    headers = sorted(h for h in include.rglob("*.h"))
    assert {h.relative_to(include).as_posix() for h in headers} >= {"core/backend.h", "runtime/runtime.h"}
    for header in headers:
        source = tmp_path / "one.cpp"
        source.write_text(f"#include <{header.relative_to(include).as_posix()}>\n")
        run("c++", "-std=c++17", "-Wall", "-Wextra", "-Werror", "-fsyntax-only", f"-I{include}", source)
