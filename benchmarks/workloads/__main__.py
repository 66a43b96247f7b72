"""python -m benchmarks.workloads [--out DIR] [NAME...]: writes workloads as JSON, by default into build/proof."""

import argparse
import pathlib

from . import files
from .generate import WORKLOADS


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "names", nargs="*", metavar="NAME", help=f"of {', '.join(files.NAMES)}; the general ones if none"
    )
    parser.add_argument("--model", type=pathlib.Path, help="a checkpoint directory, for those of the embedded model")
    parser.add_argument("--out", type=pathlib.Path, default=files.FOLDER)
    args = parser.parse_args()
    for name in args.names or WORKLOADS:
        path = files.write(files.make(name, args.model), args.out)
        print(f"{path}: {path.stat().st_size / 1e3:.0f} kB")


if __name__ == "__main__":
    main()
