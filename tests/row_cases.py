"""What the tests of the row-wise ops share: awkward sizes, and the same rows met again in another call."""

import contextlib
import random

import torch
from cases import nan_storage

# Less than a vector of any instruction set, whole ones, one more, one less, and what a CTA takes in several rounds.
HIDDEN = (1, 7, 16, 31, 64, 65, 320, 768, 1000, 4097)


@contextlib.contextmanager
def threads(count):
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def place(rows, dtype, device):
    """The rows with poison around them, at a random stride and alignment."""
    offset, gap = random.randint(0, 20), random.randint(0, 20)
    memory = nan_storage((rows.size(0), offset + rows.size(1) + gap), dtype, device)
    placed = memory[:, offset : offset + rows.size(1)]
    placed.copy_(rows)
    return placed


def another_call(backend, x, out_size, dtype):
    """Random rows of x, some of them turned into NaN, and an output: (which, those that are left, input, out)."""
    chosen = torch.randint(0, len(x), (random.choice((1, 2, 5, 17, 64, 200)),), device=backend.device)
    keep = torch.rand(len(chosen), device=backend.device) >= 0.1
    placed = place(x[chosen], dtype, backend.device)
    placed[~keep] = float("nan")
    out = place(torch.full((len(chosen), out_size), float("nan"), device=backend.device), dtype, backend.device)
    return chosen, keep, placed, out
