"""The CUDA kernels of this checkout: whose they are, and what their sources are."""

import hashlib
import pathlib
import re

ROOT = pathlib.Path(__file__).resolve().parents[2]


def registered_ops(root: pathlib.Path = ROOT) -> list[str]:
    """The ops of csrc/torch/schemas.cpp, in its order."""
    return re.findall(r'"(\w+)\(Tensor\(a!\)', (root / "csrc" / "torch" / "schemas.cpp").read_text())


def files(root: pathlib.Path = ROOT) -> dict[str, list[pathlib.Path]]:
    """{name of a __global__ function: the files that define one}."""
    found: dict[str, list[pathlib.Path]] = {}
    for path in sorted((root / "csrc" / "cuda").glob("*.cu*")):
        text = re.sub(r"__launch_bounds__\([^)]*\)", "", path.read_text())
        for name in re.findall(r"__global__[^;{]*?\b(\w+)\(", text):
            found.setdefault(name, []).append(path)
    return found


def kernels(root: pathlib.Path = ROOT) -> dict[str, list[str]]:
    """{op: its kernels}; a kernel belongs to the op with the longest name within its own, or within its file's."""
    ops = registered_ops(root)
    found: dict[str, list[str]] = {op: [] for op in ops}
    for name, paths in files(root).items():
        owner = max((op for op in ops if op in name), key=len, default=None)
        owner = owner or max((op for op in ops if op in paths[0].stem), key=len, default=None)
        if owner is None:
            raise ValueError(f"{paths[0].name}: {name} carries the name of no op, and neither does its file")
        found[owner].append(name)
    return found


def code(path: pathlib.Path) -> str:
    """A source without what a compiler does not see: comments and how it is spaced."""
    return " ".join(re.sub(r"//[^\n]*|/\*.*?\*/", "", path.read_text(), flags=re.DOTALL).split())


def included(path: pathlib.Path) -> set[pathlib.Path]:
    """A source and the project's files it includes, however deep."""
    found, new = set(), [path.resolve()]
    while new:
        at = new.pop()
        if at in found or not at.is_file():
            continue
        found.add(at)
        new += [(at.parent / name).resolve() for name in re.findall(r'#include "([^"]+)"', at.read_text())]
    return found


def is_everyones(path: pathlib.Path) -> bool:
    """The primitives, which have checks of their own, and what declares all ops."""
    return path.name.startswith("prim") or path.name in ("params.h", "backend.h", "parallel.h")


def digests(root: pathlib.Path = ROOT) -> dict[str, str]:
    """{kernel: hash of the code it is made of}, without what is everyone's and without its launcher."""
    found = {}
    for name, paths in files(root).items():
        sources = sorted((p for p in set.union(*map(included, paths)) if not is_everyones(p)), key=lambda p: p.name)
        found[name] = hashlib.sha256("\n".join(map(code, sources)).encode()).hexdigest()[:16]
    return found
