"""Scripts under benchmarks/ that are asked what they do say so, and do nothing."""

import os
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parent.parent
FILES = [
    "figure_tables.py",
    "figures.py",
    "losses.py",
    "peers/vllm_env.py",
    "peers/vllm_plugin.py",
    "peers/vllm_worker.py",
    "peers/with_llama_cpp.py",
    "peers/with_stateful_kv.py",
    "peers/with_transformers.py",
    "peers/with_vllm.py",
]
MODULES = ["gpu.plot_attention", "gpu.status", "proof", "workloads"]


@pytest.mark.parametrize(
    "command",
    [[str(ROOT / "benchmarks" / file)] for file in FILES] + [["-m", f"benchmarks.{module}"] for module in MODULES],
    ids=FILES + MODULES,
)
def test_help_is_no_folder_and_no_order(command, tmp_path):
    environment = {**os.environ, "PYTHONPATH": str(ROOT) if command[0] == "-m" else ""}
    done = subprocess.run(
        [sys.executable, *command, "--help"], capture_output=True, text=True, cwd=tmp_path, env=environment, timeout=60
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("usage: ")
    assert list(tmp_path.iterdir()) == []
