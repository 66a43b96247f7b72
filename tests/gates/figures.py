"""What nvcc makes of each kernel: registers and spills from ptxas, instruction counts from the disassembly.

figures_of(source) compiles one .cu for every architecture and returns {architecture: {kernel: figures}}, kept in
~/.cache/stateful_kv/gates under a hash of the source with all it includes, the flags and the compiler's version.
"""

import collections
import concurrent.futures
import hashlib
import json
import os
import pathlib
import re
import subprocess
import tempfile

from .toolchain import environment, find_cuobjdump, find_nvcc, release

ROOT = pathlib.Path(__file__).resolve().parents[2]
KERNELS = ROOT / "csrc" / "cuda"
ARCHS = ("sm_80", "sm_89", "sm_90a", "sm_100", "sm_120")
FLAGS = ["-std=c++17", "--expt-relaxed-constexpr", "-lineinfo", "-Xptxas=-v"]
# As CMakeLists.txt ships them: machine code of sm_90a has PTX of its own, all others come from the PTX of compute_80.
PORTABLE = ["-gencode=arch=compute_80,code=[sm_80,sm_89,sm_100,sm_120]", "-gencode=arch=compute_90a,code=sm_90a"]
HOPPER = ["-gencode=arch=compute_90a,code=sm_90a"]
WATCHED = ("HGMMA", "HMMA", "UTMALDG", "LDGSTS", "LDL", "STL")
CACHE_FORMAT = 1

Figures = dict[str, dict[str, dict[str, int]]]


def sources() -> list[pathlib.Path]:
    return sorted(KERNELS.glob("*.cu"))


def archs_of(source: pathlib.Path) -> tuple[str, ...]:
    return ("sm_90a",) if source.stem.endswith("_sm90") else ARCHS


def closure(source: pathlib.Path) -> list[pathlib.Path]:
    """The source and every header of the project that it includes."""
    found, waiting = set(), [source.resolve()]
    while waiting:
        path = waiting.pop()
        if path not in found and path.is_file():
            found.add(path)
            waiting += [(path.parent / name).resolve() for name in re.findall(r'#include "([^"]+)"', path.read_text())]
    return sorted(found)


def gencode(source: pathlib.Path) -> list[str]:
    return HOPPER if source.stem.endswith("_sm90") else PORTABLE


def cache_key(source: pathlib.Path, nvcc: pathlib.Path) -> str:
    text = hashlib.sha256(json.dumps([CACHE_FORMAT, release(nvcc), FLAGS, gencode(source)]).encode())
    for path in closure(source):
        text.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
    return text.hexdigest()[:32]


def cache_folder() -> pathlib.Path:
    base = os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache"
    return pathlib.Path(base, "stateful_kv", "gates")


def demangle(names: list[str]) -> dict[str, str]:
    """Kernel names as a reader writes them: append_kv_kernel<unsigned short, unsigned short, 8>."""
    done = subprocess.run(["c++filt"], input="\n".join(names), capture_output=True, text=True, check=True)
    return {raw: readable(line) for raw, line in zip(names, done.stdout.splitlines(), strict=True)}


def readable(signature: str) -> str:
    if signature.endswith(")"):  # drop the parameters: back to the parenthesis that opens the last group
        depth, at = 0, len(signature)
        while at > 0:
            at -= 1
            depth += {")": 1, "(": -1}.get(signature[at], 0)
            if depth == 0:
                break
        signature = signature[:at]
    for noise in ("(anonymous namespace)::", "skv::cuda::", "void "):
        signature = signature.replace(noise, "")
    return signature.strip()


def parse_ptxas(log: str) -> dict[tuple[str, str], dict[str, int]]:
    """{(architecture, mangled kernel): registers and spilled bytes} from what ptxas -v prints."""
    found, current, spilled = {}, None, 0
    for line in log.splitlines():
        if m := re.search(r"Compiling entry function '(\S+)' for '(\w+)'", line):
            current, spilled = (m[2], m[1]), 0
        elif m := re.search(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", line):
            spilled = int(m[2]) + int(m[3])
        elif current and (m := re.search(r"Used (\d+) registers", line)):
            found[current] = {"registers": int(m[1]), "spilled_bytes": spilled}
            current = None
    return found


def parse_sass(text: str) -> dict[tuple[str, str], collections.Counter]:
    """{(architecture, mangled kernel): instruction counts} from what cuobjdump -sass prints."""
    found, arch, counts = {}, "", None
    opcode = re.compile(r"\s+/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z][A-Z0-9]*)")
    for line in text.splitlines():
        if m := opcode.match(line):
            if counts is not None and m[1] in WATCHED:
                counts[m[1]] += 1
        elif m := re.match(r"\s*code for (\S+)", line):
            arch = m[1]
        elif m := re.match(r"\s*Function : (\S+)", line):
            counts = found.setdefault((arch, m[1]), collections.Counter())
    return found


def compile_figures(source: pathlib.Path, nvcc: pathlib.Path) -> Figures:
    with tempfile.TemporaryDirectory() as folder:
        binary = pathlib.Path(folder, "kernels.fatbin")
        command = [str(nvcc), *FLAGS, *gencode(source), "-fatbin", "-o", str(binary), str(source)]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f"nvcc failed on {source.name}:\n{done.stdout[-3000:]}{done.stderr[-3000:]}")
        dump = [str(find_cuobjdump()), "-sass", str(binary)]
        sass = subprocess.run(dump, capture_output=True, text=True, check=True, env=environment()).stdout
    resources, counts = parse_ptxas(done.stdout + done.stderr), parse_sass(sass)
    names = demangle(sorted({kernel for _, kernel in resources}))
    figures: Figures = {}
    for (arch, kernel), used in resources.items():
        figures.setdefault(arch, {})[names[kernel]] = {**used, **counts.get((arch, kernel), {})}
    return figures


def figures_of(source: pathlib.Path, wanted: str | None = None) -> Figures:
    """wanted: the version of nvcc that is preferred."""
    nvcc = find_nvcc(wanted)
    kept = cache_folder() / f"{source.stem}-{cache_key(source, nvcc)}.json"
    if kept.is_file():
        return json.loads(kept.read_text())
    figures = compile_figures(source, nvcc)
    kept.parent.mkdir(parents=True, exist_ok=True)
    partial = kept.with_suffix(f".{os.getpid()}")
    partial.write_text(json.dumps(figures))
    partial.replace(kept)
    return figures


def all_figures(wanted: str | None = None, jobs: int | None = None) -> dict[str, Figures]:
    """{source: figures} of every kernel file, compiled side by side."""
    with concurrent.futures.ThreadPoolExecutor(jobs or min(8, len(os.sched_getaffinity(0)))) as pool:
        return dict(zip([s.stem for s in sources()], pool.map(lambda s: figures_of(s, wanted), sources())))


def kernels_in(library: pathlib.Path) -> dict[str, set[str]]:
    """{architecture: kernels} with machine code in a shared object."""
    dump = [str(find_cuobjdump()), "-res-usage", str(library)]
    text = subprocess.run(dump, capture_output=True, text=True, env=environment()).stdout
    found, arch = collections.defaultdict(set), ""
    for line in text.splitlines():
        if m := re.match(r"\s*arch = (\S+)", line):
            arch = m[1]
        elif m := re.match(r"\s*Function (\S+):", line):
            found[arch].add(m[1])
    names = demangle(sorted({k for kernels in found.values() for k in kernels}))
    return {arch: {names[k] for k in kernels} for arch, kernels in found.items()}
