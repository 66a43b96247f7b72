"""The wheel: what it holds, and that it runs from where it was installed, far from the source tree and offline."""

import json
import os
import pathlib
import shutil
import subprocess
import sys
import zipfile

import pytest

ROOT = pathlib.Path(__file__).resolve().parent.parent
# Runs a module as `python -m` does, but with every way out of the machine closed.
OFFLINE = """
import runpy, socket, sys

def refuse(*args, **kwargs):
    raise OSError("this run is offline")

socket.socket.connect = socket.create_connection = socket.getaddrinfo = refuse
import stateful_kv
print("from", stateful_kv.__file__)
runpy.run_module("stateful_kv", run_name="__main__", alter_sys=True)
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    for stale in ROOT.glob("build/lib*"):
        if stale.is_dir():
            shutil.rmtree(stale)  # setuptools packs what an earlier build left there
    command = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", str(folder), "."]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    (path,) = folder.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", str(folder), str(wheel)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-4000:]
    return folder


def run(installed, tmp_path, *argv):
    env = os.environ | {"PYTHONPATH": str(installed), "HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}
    command = [sys.executable, "-c", OFFLINE, *argv]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=env)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    assert f"from {installed}" in done.stdout
    return done.stdout


def test_it_holds_the_package_and_nothing_else(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    parts = {name.split("/")[0] for name in names}
    assert parts == {"stateful_kv", f"stateful_kv-{wheel.name.split('-')[1]}.dist-info"}
    inside = {name.removeprefix("stateful_kv/") for name in names}
    assert {"libstateful_kv_ops.so", "py.typed", "_runtime.pyi", "demo/tokenizer.json"} <= inside
    assert any(name.startswith("_runtime.") and name.endswith(".so") for name in inside)
    model = {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "generation_config.json"}
    assert {f"demo/model/{name}" for name in model} <= inside
    python = {path.relative_to(ROOT).as_posix() for path in (ROOT / "stateful_kv").rglob("*.py")}
    assert {name for name in names if name.endswith(".py")} == python


def test_the_demo_runs_from_it_without_a_network(installed, tmp_path):
    path = tmp_path / "figures.json"
    out = run(installed, tmp_path, "demo", "--turns", "3", "--json", str(path))
    figures = json.loads(path.read_text())
    assert figures["options"]["model"] == "embedded" and figures["summary"]["failures"] == []
    assert any(turn["call"] for turn in figures["turns"])  # the model's own calls, not a transcript's
    assert "requests" in out
