"""What a planted bug is: one text replacement in a kernel, and the build of the emulator in which a small case notices.

The matrix has a row per kernel and a column per class of bug; where a class does not apply, the row says why in a word:
"none" (the kernel has no such thing) or "shared" (the code is in another row).
"""

from typing import NamedTuple

CLASSES = {
    "barrier": "a __syncthreads is gone",
    "syncwarp": "a __syncwarp is gone",
    "wait": "an asynchronous copy is not awaited",
    "fence": "CTAs hand data over without ordering it",
    "init": "a counter or an accumulator does not start where it should",
    "mask": "a condition is off by one",
    "bounds": "an index that may be out of range is not checked",
    "stride": "one stride is taken for another",
    "tail": "the last, partly filled piece has the wrong length",
    "align": "wide accesses where rows do not allow them",
    "narrow": "an offset is computed in 32 bits",
    "order": "something is read after it was overwritten, or the other way round",
}


class Bug(NamedTuple):
    file: str  # in csrc/cuda
    old: str
    new: str
    build: str = "plain"
    nth: int = 0  # which occurrence of `old`, from 0


class Kernel(NamedTuple):
    name: str
    program: str  # of tests/simt/small
    bugs: dict[str, list[Bug]]
    none: str = ""  # names of classes
    shared: str = ""
