"""Types of the commands' options: what is wrong with a value is said before anything runs."""

from __future__ import annotations

import argparse
import contextlib
import math
import os
from collections.abc import Iterator
from pathlib import Path

_MOST = 2**31 - 1
_SEEDS = (-(2**63), 2**63 - 1)  # what torch's generators and the samplers take


def _integer(text: str, low: int, high: int) -> int:
    try:
        value = int(text)
    except ValueError:  # of too many digits, too
        value = low - 1
    if not low <= value <= high:
        raise argparse.ArgumentTypeError(f"{text:.40} is not an integer from {low} to {high}")
    return value


def positive(text: str) -> int:
    return _integer(text, 1, _MOST)


def count(text: str) -> int:
    return _integer(text, 0, _MOST)


def seed(text: str) -> int:
    return _integer(text, *_SEEDS)


def amount(text: str) -> float:
    """Finite and above 0, a whole number or not."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"{text} is not a positive number")
    return value


def checkpoint_dir(text: str) -> Path:
    missing = [name for name in ("config.json", "tokenizer.json") if not (Path(text) / name).is_file()]
    if missing:
        raise argparse.ArgumentTypeError(f"{text} has no {' and no '.join(missing)}")
    return Path(text)


@contextlib.contextmanager
def reading_checkpoint() -> Iterator[None]:
    """What is wrong with a checkpoint's files ends the command in that line: a user's mistake is no traceback."""
    try:
        yield
    except (ValueError, NotImplementedError) as error:
        raise SystemExit(f"stateful-kv: {error}") from None


def output_file(text: str) -> Path:
    """Checked before the run, not after it."""
    path, folder = Path(text), Path(text).absolute().parent
    if path.is_dir() or not folder.is_dir():
        raise argparse.ArgumentTypeError(f"{text} is not a file in an existing folder")
    if not os.access(path if path.exists() else folder, os.W_OK):
        raise argparse.ArgumentTypeError(f"{text} cannot be written")
    return path


def output_dir(text: str) -> Path:
    """One that exists, or can be made."""
    path = Path(text).absolute()
    there = next(folder for folder in (path, *path.parents) if folder.exists())
    if not (there.is_dir() and os.access(there, os.W_OK)):
        raise argparse.ArgumentTypeError(f"{text} is not a folder that can be written: {there} is none")
    return Path(text)


def device(text: str) -> str:
    import torch

    try:
        value = torch.device(text)
        usable = value.type == "cpu" or (value.type == "cuda" and (value.index or 0) < torch.cuda.device_count())
    except RuntimeError:
        usable = False
    if not usable:
        raise argparse.ArgumentTypeError(f"{text} is not a device that this torch can use")
    return text
