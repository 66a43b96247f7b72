"""What nvcc makes of each kernel: registers and spills from ptxas, instruction counts from the disassembly.

figures_of(source) returns {architecture: {kernel: figures}} of one .cu, kept in ~/.cache/stateful_kv/gates under a hash
of the source with all it includes, the flags and the compiler's version. Where the package's own build has just made an
object of that source, its machine code and its PTX are taken, and only the other architectures are compiled.
"""

import collections
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
WATCHED = ("HGMMA", "HMMA", "UTMALDG", "LDGSTS", "USETMAXREG", "LDL", "STL")
CACHE_FORMAT = 2

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


def parse_resources(text: str) -> dict[tuple[str, str], dict[str, int]]:
    """{(architecture, mangled kernel): registers} from what cuobjdump -res-usage prints."""
    found, arch, kernel = {}, "", ""
    for line in text.splitlines():
        if m := re.match(r"\s*arch = (\S+)", line):
            arch = m[1]
        elif m := re.match(r"\s*Function (\S+):", line):
            kernel = m[1]
        elif kernel and (m := re.search(r"\bREG:(\d+)", line)):
            found[arch, kernel] = {"registers": int(m[1])}
    return found


def cuobjdump(*arguments: str, folder: str | None = None) -> str:
    command = [str(find_cuobjdump()), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True, env=environment(), cwd=folder).stdout


def figures_from(resources: dict, sass: str) -> Figures:
    counts, names = parse_sass(sass), demangle(sorted({kernel for _, kernel in resources}))
    figures: Figures = {}
    for (arch, kernel), used in resources.items():
        figures.setdefault(arch, {})[names[kernel]] = {**used, **counts.get((arch, kernel), {})}
    return figures


def compile_figures(source: pathlib.Path, nvcc: pathlib.Path, targets: list[str] | None = None) -> Figures:
    """source: a .cu, or the PTX of one."""
    with tempfile.TemporaryDirectory() as folder:
        binary = pathlib.Path(folder, "kernels.fatbin")
        command = [str(nvcc), *FLAGS, *(targets or gencode(source)), "-fatbin", "-o", str(binary), str(source)]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f"nvcc failed on {source.name}:\n{done.stdout[-3000:]}{done.stderr[-3000:]}")
        return figures_from(parse_ptxas(done.stdout + done.stderr), cuobjdump("-sass", str(binary)))


def built_object(source: pathlib.Path, nvcc: pathlib.Path) -> pathlib.Path | None:
    """What that compiler made of a source in a build of the package, newer than the source and all it includes."""
    changed = max(path.stat().st_mtime for path in closure(source))
    for made in ROOT.glob(f"build/*/CMakeFiles/skv_cuda.dir/csrc/cuda/{source.name}.o"):
        facts = [path.read_text() for path in made.parents[4].glob("CMakeFiles/*/CMakeCUDACompiler.cmake")]
        same = any(f'CMAKE_CUDA_COMPILER_VERSION "{release(nvcc)}"' in text for text in facts)
        if same and made.stat().st_mtime > changed:
            return made
    return None


def built_figures(made: pathlib.Path, archs: tuple[str, ...], nvcc: pathlib.Path) -> Figures | None:
    """Figures of an object of the package; None where it cannot give all of them."""
    figures = figures_from(parse_resources(cuobjdump("-res-usage", str(made))), cuobjdump("-sass", str(made)))
    missing = [arch for arch in archs if arch not in figures]
    if not figures or not missing:
        return figures or None
    with tempfile.TemporaryDirectory() as folder:
        cuobjdump("-xptx", "all", str(made.resolve()), folder=folder)
        ptx = [p for p in pathlib.Path(folder).glob("*.ptx") if ".target sm_80" in p.read_text()]
        if len(ptx) != 1 or "sm_90a" in missing:
            return None
        targets = [f"-gencode=arch=compute_80,code=[{','.join(missing)}]"]
        return figures | compile_figures(ptx[0], nvcc, targets)


def figures_of(source: pathlib.Path, wanted: str | None = None) -> Figures:
    """wanted: the version of nvcc that is preferred."""
    nvcc = find_nvcc(wanted)
    kept = cache_folder() / f"{source.stem}-{cache_key(source, nvcc)}.json"
    if kept.is_file():
        return json.loads(kept.read_text())
    made = built_object(source, nvcc)
    figures = (made and built_figures(made, archs_of(source), nvcc)) or compile_figures(source, nvcc)
    kept.parent.mkdir(parents=True, exist_ok=True)
    partial = kept.with_suffix(f".{os.getpid()}")
    partial.write_text(json.dumps(figures))
    partial.replace(kept)
    return figures


def kernels_in(library: pathlib.Path) -> dict[str, set[str]]:
    """{architecture: kernels} with machine code in a shared object."""
    found = figures_from(parse_resources(cuobjdump("-res-usage", str(library))), "")
    return {arch: set(kernels) for arch, kernels in found.items()}
