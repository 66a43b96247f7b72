"""Work of minutes in processes of its own, begun as the run begins: it fills the cores that other tests leave idle.

A test module that has such work defines `in_background(items)`: {key: a call without arguments}, of what its chosen
items need, the longest first. conftest.py begins all of it; `result(key)` waits for one and returns, or raises, what
the call did. The processes that calls start have a lower priority than the tests in the foreground.
"""

import os
from collections.abc import Callable, Hashable
from concurrent.futures import Future, ThreadPoolExecutor

NICENESS = 5  # a quarter to a third of a core where the foreground wants all of them

_pool: ThreadPoolExecutor | None = None
_results: dict[Hashable, Future] = {}


def begin(calls: dict[Hashable, Callable[[], object]]) -> None:
    global _pool
    if not calls:
        return
    # A thread's niceness is its own on Linux, and of the processes it starts.
    _pool = _pool or ThreadPoolExecutor(
        len(os.sched_getaffinity(0)), initializer=os.setpriority, initargs=(os.PRIO_PROCESS, 0, NICENESS)
    )
    _results.update({key: _pool.submit(call) for key, call in calls.items()})


def result(key: Hashable):
    return _results[key].result()


def end() -> None:
    """Forgets what has not begun."""
    if _pool:
        _pool.shutdown(wait=False, cancel_futures=True)
