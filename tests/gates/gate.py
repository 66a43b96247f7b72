"""The manifest: for each kernel and architecture bounds that its machine code has to keep, and the check of them.

Written by `python -m tests.gates` from what the compiler makes of the sources now. Registers are rounded up to a
multiple of 8, the unit in which the hardware hands them out; of the instructions that a kernel's speed rests on
(tensor cores, asynchronous copies) three quarters have to stay, of those that move registers between warpgroups all.
Spills and local memory are never allowed.
"""

import json
import pathlib

from .figures import Figures

MANIFEST = pathlib.Path(__file__).with_name("manifest.json")
PROMISED = {"HGMMA": 0.75, "HMMA": 0.75, "UTMALDG": 0.75, "LDGSTS": 0.75, "USETMAXREG": 1}  # the share that has to stay
FORBIDDEN = ("spilled_bytes", "LDL", "STL")
REGENERATE = "if that is meant, run `python -m tests.gates` and commit tests/gates/manifest.json"


def load() -> dict:
    return json.loads(MANIFEST.read_text())


def bounds(figures: dict[str, int]) -> str:
    """One kernel's line of the manifest: "registers<=96 HMMA>=48"."""
    text = [f"registers<={-(-figures['registers'] // 8) * 8}"]
    text += [f"{name}>={max(1, int(figures[name] * share))}" for name, share in PROMISED.items() if figures.get(name)]
    return " ".join(text)


def manifest_of(figures: dict[str, Figures], nvcc: str) -> dict:
    """{"nvcc": version, "kernels": {source: {kernel: {architecture: bounds}}}}"""
    kernels: dict = {}
    for source, by_arch in sorted(figures.items()):
        for arch, of_arch in by_arch.items():
            for kernel, values in sorted(of_arch.items()):
                kernels.setdefault(source, {}).setdefault(kernel, {})[arch] = bounds(values)
    return {"nvcc": nvcc, "kernels": kernels}


def violations(expected: dict[str, dict[str, str]], figures: Figures, check_registers: bool = True) -> list[str]:
    """What is wrong with one source's kernels. check_registers: whether the compiler is the manifest's, without which
    register counts say little."""
    found = []
    for arch, of_arch in figures.items():
        for kernel, values in of_arch.items():
            where = f"{kernel} on {arch}"
            found += [f"{where}: {name} is {values[name]}, expected 0" for name in FORBIDDEN if values.get(name)]
            if arch not in expected.get(kernel, {}):
                found.append(f"{where} is not in the manifest; {REGENERATE}")
                continue
            for bound in expected[kernel][arch].split():
                if "<=" in bound:
                    name, limit = bound.split("<=")
                    if check_registers and values[name] > int(limit):
                        found.append(f"{where}: {values[name]} {name}, expected at most {limit}; {REGENERATE}")
                else:
                    name, limit = bound.split(">=")
                    if values.get(name, 0) < int(limit):
                        found.append(f"{where}: {values.get(name, 0)} {name}, expected at least {limit}; {REGENERATE}")
    for kernel, archs in expected.items():
        found += [
            f"{kernel} on {arch} was not compiled; {REGENERATE}"
            for arch in archs
            if kernel not in figures.get(arch, {})
        ]
    return found


def missing_kernels(manifest: dict, present: dict[str, set[str]]) -> list[str]:
    """Kernels of the manifest that a library lacks, for each architecture that it has machine code of."""
    return [
        f"{kernel} on {arch} is not in the library"
        for of_source in manifest["kernels"].values()
        for kernel, archs in of_source.items()
        for arch in archs
        if arch in present and kernel not in present[arch]
    ]
