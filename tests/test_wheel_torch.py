"""The built wheel under another torch than the one it was built with: every op, the same bits.

SKV_OTHER_TORCH names the Python of an environment with such a torch (2.11 or newer, CPU or CUDA) and numpy.
"""

import copy
import os
import pathlib
import subprocess
import sys

import pytest
import torch
from op_calls import CALLS, OUTPUTS

import stateful_kv as skv  # noqa: F401 (loads the ops)

ROOT = pathlib.Path(__file__).resolve().parent.parent
OTHER = os.environ.get("SKV_OTHER_TORCH")

# Runs in the other environment: the saved calls, with outputs compared bit by bit.
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
def installed(tmp_path_factory):
    """A folder that holds the package as the wheel brings it, and nothing of this environment."""
    wheels, folder = tmp_path_factory.mktemp("wheel"), tmp_path_factory.mktemp("site")
    pip = [sys.executable, "-m", "pip"]
    build = [*pip, "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", str(wheels), "."]
    done = subprocess.run(build, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    (wheel,) = wheels.glob("*.whl")
    subprocess.run([*pip, "install", "-q", "--no-deps", "--target", str(folder), str(wheel)], check=True)
    return folder


@pytest.mark.skipif(not OTHER, reason="SKV_OTHER_TORCH names no Python of an environment with another torch")
def test_every_op_gives_the_same_bits_under_another_torch(installed, tmp_path):
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
    done = subprocess.run(
        [OTHER, "-c", RUN, tmp_path / "calls.pt"], capture_output=True, text=True, cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(installed)},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    *names, last = done.stdout.strip().splitlines()
    assert names == list(CALLS) and f"from {installed}" in last
    assert last.split()[-1].split("+")[0] != torch.__version__.split("+")[0], f"{OTHER} has this very torch: {last}"
