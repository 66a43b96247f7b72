"""Everything that wants a GPU, in one command: builds, checks and times every kernel, and reports what failed.

    python benchmarks/gpu_check.py [--parts build,prims,ops,graphs,engine,sanitizer,bench,step] [--out FOLDER]
                                   [--only REGEX] [--budget SECONDS] [--commit HASH] [--dry-run]

Each step is a process with a time limit; whatever fails is reported and the rest goes on. FOLDER/gpu_check.json holds
all results and keeps the parts of earlier calls; a table comes last. Exit code: 0 all well, 1 something failed, 2
there is no GPU. --dry-run goes through every part on the emulator with tiny shapes and marks the file "emulated".
benchmarks/GPU.md says how to run it on a machine without a network.
"""

import argparse
import concurrent.futures
import os
import pathlib
import re
import subprocess
import sys
import time

import torch

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))
from benchmarks.gpu.parts import PARTS, Setting, make_folder, run_step
from benchmarks.gpu.report import Report, git_commit, print_tables
from benchmarks.gpu.target import ROOT

NO_GPU = 2


def chosen_parts(text: str) -> list[str]:
    names = [name for name in text.split(",") if name]
    if unknown := [name for name in names if name not in PARTS]:
        raise argparse.ArgumentTypeError(f"{unknown[0]!r} is not a part, expected some of {','.join(PARTS)}")
    return [name for name in PARTS if name in names]


def default_folder(emulated: bool) -> pathlib.Path:
    if emulated:
        return ROOT / "build" / "gpu_check"
    name = re.sub(r"[^a-z0-9]+", "_", torch.cuda.get_device_name().lower()).strip("_")
    return ROOT / "benchmarks" / "results" / name


def run_part(name: str, setting: Setting, report: Report, end: float, only: re.Pattern = re.compile("")) -> bool:
    """Runs the part's steps whose names `only` is found in; whether all went well."""
    part, begin = PARTS[name], time.monotonic()
    steps, entries = [], []
    try:
        steps = [step for step in part.steps(setting) if only.search(step.name)]
        if not steps:
            return True
    except Exception as error:  # what a part needs is not there: say so, go on
        entries.append({"name": "setup", "status": "failed", "seconds": 0.0, "summary": str(error), "command": ""})
    report.begin(name)
    for entry in entries:
        report.add(name, entry)
    workers = 2 if setting.emulated else part.side_by_side
    with concurrent.futures.ThreadPoolExecutor(workers) as pool:
        running = [pool.submit(lambda s=s: run_step(s, setting, end - time.monotonic())) for s in steps]
        for done in concurrent.futures.as_completed(running):
            entry = done.result()
            entries.append(entry)
            report.add(name, entry)
            print(f"{name}: {entry['name']}: {entry['status']} ({entry['seconds']:.0f} s) {entry['summary']}")
    report.end(name, time.monotonic() - begin)
    return all(entry["status"] == "ok" for entry in entries)


def find_simt_library() -> str:
    """The emulated op library: the one the environment names, else built from these sources."""
    if named := os.environ.get("STATEFUL_KV_SIMT_LIBRARY"):
        return named
    command = [sys.executable, str(ROOT / "tests" / "simt" / "build.py"), "plain"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", type=chosen_parts, default=list(PARTS), metavar="NAMES")
    parser.add_argument(
        "--only", type=re.compile, default=re.compile(""), metavar="REGEX", help="found in steps' names"
    )
    parser.add_argument("--out", type=pathlib.Path, metavar="FOLDER", help="default: benchmarks/results/<the GPU>")
    parser.add_argument("--budget", type=float, default=570, metavar="SECONDS", help="of the whole call (570)")
    parser.add_argument("--commit", help="to be noted where the copy of the sources has no .git")
    parser.add_argument("--dry-run", action="store_true", help="on the emulator, tiny shapes")
    args = parser.parse_args()
    if not args.dry_run and not torch.cuda.is_available():
        print(f"gpu_check: there is no GPU that torch {torch.__version__} can use; --dry-run runs on the emulator")
        return NO_GPU
    end = time.monotonic() + args.budget
    setting = Setting(args.dry_run, make_folder())
    if args.dry_run:
        setting.simt_library = find_simt_library()
    else:
        setting.capability = ".".join(map(str, torch.cuda.get_device_capability()))
    folder = args.out or default_folder(args.dry_run)
    report = Report(folder / "gpu_check.json", args.dry_run, args.commit or git_commit())
    failed = [name for name in args.parts if not run_part(name, setting, report, end, args.only)]
    print()
    print_tables(report.data, args.parts)
    print(f"wrote {report.path}; logs of the steps: {setting.folder}")
    print(f"failed: {', '.join(failed)}" if failed else "all parts passed")
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main())
