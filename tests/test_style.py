"""The formatting and lint settings of the project hold for every file."""

import pathlib
import shutil
import subprocess
import sysconfig

import pytest

ROOT = pathlib.Path(__file__).resolve().parent.parent
CPP = {".cpp", ".h", ".cu", ".cuh"}


def tool(name: str) -> str:
    found = shutil.which(name, path=sysconfig.get_path("scripts")) or shutil.which(name)
    assert found, f"{name} is not installed: pip install '.[test]'"
    return found


def sources(suffixes: set[str]) -> list[str]:
    folders = ("csrc", "stateful_kv", "tests", "benchmarks")
    return sorted(str(p) for f in folders for p in (ROOT / f).rglob("*") if p.suffix in suffixes)


@pytest.mark.parametrize("command", [["check"], ["format", "--check"]], ids=["lint", "format"])
def test_python_style(command):
    done = subprocess.run([tool("ruff"), *command, str(ROOT)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_cpp_style():
    files = sources(CPP)
    assert files
    done = subprocess.run([tool("clang-format"), "--dry-run", "--Werror", *files], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-4000:]
