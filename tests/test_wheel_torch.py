"""The built wheel under another torch than the one it was built with: every op, the same bits.

SKV_OTHER_TORCH=2.11.0 makes an environment with that torch and nothing else, and installs the wheel there.
"""

import copy
import os
import pathlib
import subprocess
import sys
import venv

import pytest
import torch
from op_calls import CALLS, OUTPUTS

import stateful_kv as skv  # noqa: F401 (loads the ops)

ROOT = pathlib.Path(__file__).resolve().parent.parent
OTHER = os.environ.get("SKV_OTHER_TORCH")

# Runs in that environment: the saved calls, with outputs compared bit by bit.
RUN = """
import sys, torch, stateful_kv
torch.set_num_threads(1)
equal = lambda a, b: torch.equal(a.contiguous().view(torch.uint8), b.contiguous().view(torch.uint8))
for name, inputs, wanted in torch.load(sys.argv[1]):
    getattr(torch.ops.stateful_kv, name)(**inputs)
    for output, tensors in wanted.items():
        came = inputs[output] if isinstance(inputs[output], list) else [inputs[output]]
        assert all(map(equal, came, tensors)), f"{name}: {output} differs"
    print(name)
print("from", stateful_kv.__file__, "torch", torch.__version__)
"""


@pytest.fixture(scope="module")
def other_python(tmp_path_factory):
    """The Python of a fresh environment with the other torch and the wheel of this tree."""
    wheels, folder = tmp_path_factory.mktemp("wheel"), tmp_path_factory.mktemp("environment")
    build = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", str(wheels), "."]
    done = subprocess.run(build, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    (wheel,) = wheels.glob("*.whl")
    venv.create(folder, with_pip=True)
    python = folder / "bin" / "python"
    install = [python, "-m", "pip", "install", "-q", f"torch=={OTHER}", wheel]
    done = subprocess.run(install, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    return python


@pytest.mark.skipif(not OTHER, reason="SKV_OTHER_TORCH names no other version of torch")
def test_every_op_gives_the_same_bits_under_another_torch(other_python, tmp_path):
    torch.manual_seed(5)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    calls = []
    for name, make in CALLS.items():
        inputs = make()
        before = copy.deepcopy(inputs)
        getattr(torch.ops.stateful_kv, name)(**inputs)
        outputs = {k: inputs[k] if isinstance(inputs[k], list) else [inputs[k]] for k in OUTPUTS[name]}
        calls.append((name, before, outputs))
    torch.set_num_threads(threads)
    torch.save(calls, tmp_path / "calls.pt")
    env = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    command = [other_python, "-c", RUN, tmp_path / "calls.pt"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=env)
    assert done.returncode == 0, done.stdout + done.stderr
    *names, last = done.stdout.strip().splitlines()
    assert names == list(CALLS) and f"from {other_python.parents[1]}" in last
    assert last.split()[-1].split("+")[0] == OTHER.split("+")[0] != torch.__version__.split("+")[0], last
