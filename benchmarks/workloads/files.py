"""Workloads as files: one JSON each, the same bytes for the same seed."""

import json
import pathlib

from . import embedded
from .generate import WORKLOADS, Workload

FOLDER = pathlib.Path(__file__).resolve().parents[2] / "build" / "proof" / "workloads"
NAMES = [*WORKLOADS, *embedded.TURNS]


def make(name: str, checkpoint: pathlib.Path | None = None) -> Workload:
    """checkpoint: whose tokenizer the workloads of the embedded model are written in."""
    if name in WORKLOADS:
        return WORKLOADS[name]()
    if checkpoint is None or not (checkpoint / "tokenizer.json").is_file():
        raise ValueError(f"{name}: needs a model that has a tokenizer, the embedded one for instance")
    return embedded.embedded(name, checkpoint)


def write(workload: Workload, folder: pathlib.Path = FOLDER) -> pathlib.Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{workload.name}.json"
    path.write_text(json.dumps(workload.as_json()) + "\n")
    return path


def ensure(name: str, folder: pathlib.Path = FOLDER, checkpoint: pathlib.Path | None = None) -> pathlib.Path:
    """The file of a workload, generated when it is not there or another version left it there."""
    path, workload = folder / f"{name}.json", make(name, checkpoint)
    if not path.exists() or path.read_text() != json.dumps(workload.as_json()) + "\n":
        write(workload, folder)
    return path
