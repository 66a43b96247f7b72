"""Cells: one contestant, one workload, one model, one repetition; each runs in a process of its own and is one file."""

import dataclasses
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import threading
from dataclasses import dataclass

from benchmarks.workloads import files

from . import models
from .contestants import CONTESTANTS, ENGINES, PEERS, python_of

FOLDER = pathlib.Path(__file__).resolve().parents[2] / "build" / "proof" / "cells"
SLOW_TURNS = 8  # turns that a recomputing contestant takes of a workload with more than twice as many


@dataclass(frozen=True)
class Cell:
    workload: str
    model: str
    dtype: str
    contestant: str
    repetition: int
    clock: str = "wall"

    def path(self, folder: pathlib.Path = FOLDER) -> pathlib.Path:
        return folder / self.group / f"{self.contestant}.{self.repetition}.json"

    @property
    def group(self) -> str:
        """What is compared with each other."""
        return f"{self.workload}_{models.label(self.model)}_{self.dtype}" + ("_cpu" if self.clock == "cpu" else "")


def interleaved(
    workloads: list[str], model: str, dtype: str, contestants: list[str], repetitions: int, clock: str = "wall"
) -> list[Cell]:
    """All contestants once, then all of them again: a slow hour of the machine meets every one."""
    return [
        Cell(workload, model, dtype, contestant, repetition, clock)
        for workload in workloads
        for repetition in range(repetitions)
        for contestant in contestants
    ]


def script_for(cell: Cell, folder: pathlib.Path) -> list[list[int]] | None:
    """Every answer of the workload, from a contestant that took all turns: what a slow one skips over."""
    for name, contestant in CONTESTANTS.items():
        path = dataclasses.replace(cell, contestant=name, repetition=0).path(folder)
        if not contestant.recomputes and path.exists():
            return [row["tokens"] for row in json.loads(path.read_text())["rows"]]
    return None


def settings(cell: Cell, threads: int, steps: int | None, folder: pathlib.Path) -> dict:
    contestant, checkpoint = CONTESTANTS[cell.contestant], models.checkpoint(cell.model)
    workload = files.ensure(cell.workload, checkpoint=checkpoint)
    wanted = dict(
        workload=str(workload),
        checkpoint=str(checkpoint),
        dtype=cell.dtype,
        threads=threads,
        clock=cell.clock,
        variant=contestant.variant,
        steps=steps,
        contestant=cell.contestant,
        repetition=cell.repetition,
        model=models.label(cell.model),
    )
    num_steps = len(json.loads(workload.read_text())["steps"][:steps])
    if contestant.recomputes and num_steps > 2 * SLOW_TURNS:
        script = script_for(cell, folder)
        if script is None:
            raise RuntimeError("needs the answers of a contestant that takes every turn: run one first")
        wanted.update(every=num_steps // (SLOW_TURNS - 1), script=script)
    return wanted


class Progress:
    """A bar that says which cell of how many, and which step of it; without a terminal a line per cell."""

    def __init__(self, total: int, out=sys.stderr):
        self.total, self.out, self.done = total, out, 0
        self.is_live = out.isatty()

    def step(self, what: str, line: str) -> None:
        words = line.split()
        if self.is_live and words[:1] == ["step"]:
            share = int(words[1]) / int(words[3])
            bar = ("#" * round(20 * share)).ljust(20, ".")
            self.out.write(f"\r\033[K[{self.done + 1}/{self.total}] {bar} {what}")
            self.out.flush()

    def end(self, what: str, result: str) -> None:
        self.done += 1
        start = "\r\033[K" if self.is_live else ""
        self.out.write(f"{start}[{self.done}/{self.total}] {what}: {result}\n")
        self.out.flush()


def run(cell: Cell, wanted: dict, pythons: dict[str, str], prefix: list[str], limit_s: float, on_line) -> dict:
    """Runs a cell in its own process; raises RuntimeError with what the process said last when it fails."""
    engine = CONTESTANTS[cell.contestant].engine
    adapter = PEERS / ENGINES[engine].adapter
    with tempfile.TemporaryDirectory() as scratch:
        given, out, log = (pathlib.Path(scratch) / name for name in ("cell.json", "out.json", "log"))
        given.write_text(json.dumps(wanted))
        command = [*prefix, python_of(engine, pythons), str(adapter), str(given), str(out)]
        environment = dict(os.environ, PYTHONPATH=str(PEERS.parents[1]))
        with open(log, "w") as errors:
            process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True, env=environment)
            timer = threading.Timer(limit_s, process.kill)
            timer.start()
            try:
                for line in process.stdout:
                    on_line(line)
                process.wait()
            finally:
                timer.cancel()
                process.kill()  # does nothing to one that has ended
        if process.returncode or not out.exists():
            said = log.read_text().strip().splitlines() or ["nothing"]
            late = f" (at most {limit_s:.0f} s were given)" if process.returncode == -9 else ""
            raise RuntimeError(f"ended with {process.returncode}{late}; it said: {said[-1]}")
        return json.loads(out.read_text())


def keep(cell: Cell, result: dict, folder: pathlib.Path) -> None:
    path = cell.path(folder)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    part.write_text(json.dumps(result) + "\n")
    part.rename(path)
