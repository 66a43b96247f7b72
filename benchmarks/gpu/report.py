"""The JSON and the table of gpu_check.py. Parts of earlier calls in the same file stay, each with its own commit; so do
a part's steps, of the same commit and kernels, that a call does not run."""

import datetime
import json
import os
import pathlib
import platform
import subprocess

import torch

from .kernels import digests
from .target import ROOT


def git_commit() -> str:
    """HEAD, with "+" when tracked files differ; "unknown" outside a checkout."""
    git = ["git", "-C", str(ROOT)]
    try:
        head = subprocess.check_output([*git, "rev-parse", "--short=12", "HEAD"], text=True, stderr=subprocess.DEVNULL)
        dirty = subprocess.check_output([*git, "status", "--porcelain", "--untracked-files=no"], text=True)
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return head.strip() + ("+" if dirty.strip() else "")


def machine(emulated: bool) -> dict:
    facts = {"torch": torch.__version__, "python": platform.python_version(), "cores": os.cpu_count()}
    if not emulated:
        p = torch.cuda.get_device_properties(0)
        facts |= {
            "gpu": p.name,
            "compute_capability": f"{p.major}.{p.minor}",
            "multiprocessors": p.multi_processor_count,
            "l2_bytes": p.L2_cache_size,
            "memory_bytes": p.total_memory,
        }
    return facts


class Report:
    """Written after every step, so that a run that is stopped leaves what it found."""

    def __init__(self, path: pathlib.Path, emulated: bool, commit: str):
        self.path, self.commit = path, commit
        self.data = {"benchmark": "gpu_check", "emulated": emulated, "machine": machine(emulated), "parts": {}}
        if path.is_file():
            earlier = json.loads(path.read_text())
            if earlier.get("emulated") == emulated and earlier["machine"].get("gpu") == self.data["machine"].get("gpu"):
                self.data["parts"] = earlier["parts"]

    def begin(self, part: str) -> None:
        today, sources = datetime.date.today().isoformat(), digests()
        earlier = self.data["parts"].get(part, {})
        same = (earlier.get("commit"), earlier.get("kernels")) == (self.commit, sources)
        steps = earlier["steps"] if same else []
        entry = {"status": "running", "commit": self.commit, "date": today, "kernels": sources, "steps": steps}
        self.data["parts"][part] = entry
        self.save()

    def add(self, part: str, step: dict) -> None:
        """The step, in the place of the same one of an earlier call."""
        entry = self.data["parts"][part]
        entry["steps"] = [s for s in entry["steps"] if s["name"] != step["name"]] + [step]
        self.save()

    def end(self, part: str, seconds: float) -> None:
        entry = self.data["parts"][part]
        passed = bool(entry["steps"]) and all(step["status"] == "ok" for step in entry["steps"])
        entry |= {"status": "ok" if passed else "failed", "seconds": round(seconds, 1)}
        self.save()

    def save(self) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        partial = self.path.with_suffix(".partial")
        partial.write_text(json.dumps(self.data, indent=1) + "\n")
        partial.replace(self.path)


def kernel_rows(parts: dict, emulated: bool) -> list[list[str]]:
    """Lines of the table of kernels, from the steps of the bench part. Emulated ones have no figures."""
    lines = []
    for step in parts.get("bench", {}).get("steps", []):
        for row in step.get("rows", []):
            shape = " ".join(f"{k}={v}" for k, v in row["shape"].items())
            us = row["us"].get("ours")
            if us is None:
                lines.append([row["op"], shape, "-", "-", "-", "-", row["errors"].get("ours", "not run")[:40]])
                continue
            if emulated:
                lines.append([row["op"], shape, "-", "-", "-", "-", "emulated"])
                continue
            rate = f"{row['TFLOP/s']:.0f} TFLOP/s" if row["flops"] > 200 * row["bytes"] else f"{row['GB/s']:.0f} GB/s"
            ratio = f"{row['ratio']:.2f}x" if "ratio" in row else "-"
            lines.append([row["op"], shape, f"{us:.1f}", rate, f"{row['share']:.0%}", ratio, row.get("best_peer", "-")])
    return lines


def print_lines(lines: list[list[str]]) -> None:
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    for line in lines:
        print("  ".join(cell.ljust(width) for cell, width in zip(line, widths)).rstrip())


def print_tables(data: dict, parts_run: list[str]) -> None:
    rows = kernel_rows(data["parts"], data["emulated"]) if "bench" in parts_run else []
    if rows:
        for step in data["parts"]["bench"]["steps"]:
            if (limits := step.get("limits")) and not data["emulated"]:
                copy, product = limits["copy_bytes_per_s"] / 1e9, limits["matmul_flop_per_s"] / 1e12
                print(f"measured limits: copy {copy:.0f} GB/s, bf16 product {product:.0f} TFLOP/s")
                break
        print_lines([["op", "shape", "us", "rate", "of limit", "ratio", "best peer"], *rows])
        print()
    lines = [["part", "step", "result", "seconds", "what"]]
    for part in parts_run:
        entry = data["parts"].get(part, {"status": "not run", "steps": []})
        for step in entry["steps"]:
            lines.append([part, step["name"], step["status"], f"{step['seconds']:.0f}", step["summary"][:110]])
        lines.append([part, "", entry["status"].upper(), f"{entry.get('seconds', 0):.0f}", ""])
    print_lines(lines)
    if data["emulated"]:
        print("emulated: a dry run on the CPU; no figure above says anything about a GPU")
