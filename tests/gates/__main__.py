"""python -m tests.gates [SOURCE...]: writes tests/gates/manifest.json from the kernels as they are now.

With sources (stems of csrc/cuda/*.cu) only their entries are renewed. Refuses kernels that spill or use local memory.
"""

import json
import sys

from .figures import figures_of, sources
from .gate import FORBIDDEN, MANIFEST, load, manifest_of
from .toolchain import find_nvcc, release

WANTED = "13.0.88"  # the version the packages of the `test` extra bring


def main(names: list[str]) -> int:
    nvcc = release(find_nvcc(WANTED))
    figures = {}
    for source in sources():
        if not names or source.stem in names:
            print(f"{source.name} ...", flush=True)
            figures[source.stem] = figures_of(source, WANTED)
    bad = [
        f"{kernel} on {arch}: {name} is {values[name]}"
        for by_arch in figures.values()
        for arch, of_arch in by_arch.items()
        for kernel, values in of_arch.items()
        for name in FORBIDDEN
        if values.get(name)
    ]
    manifest = manifest_of(figures, nvcc)
    if names:
        kept = {k: v for k, v in load()["kernels"].items() if k not in names}
        manifest["kernels"] = dict(sorted((kept | manifest["kernels"]).items()))
    lines = [
        f' "{source}": {{\n'
        + ",\n".join(f"  {json.dumps(kernel)}: {json.dumps(archs)}" for kernel, archs in of_source.items())
        + "\n }"
        for source, of_source in manifest["kernels"].items()
    ]
    text = f'{{"nvcc": "{manifest["nvcc"]}",\n"kernels": {{\n' + ",\n".join(lines) + "\n}}\n"
    assert json.loads(text) == manifest
    MANIFEST.write_text(text)
    print(f"wrote {MANIFEST.name}: {sum(map(len, manifest['kernels'].values()))} kernels")
    for line in bad:
        print(f"not allowed, the gate will fail: {line}")
    return int(bool(bad))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
