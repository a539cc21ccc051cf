"""Independent pieces of work on threads, for numpy, which lets others run while it computes.

What comes out does not depend on how many there are.
"""

import os
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")

MOST_THREADS = 8
_here = threading.local()


def cores() -> int:
    """Cores that this process may use, at most MOST_THREADS."""
    if hasattr(os, "sched_getaffinity"):
        return min(MOST_THREADS, len(os.sched_getaffinity(0)))
    return min(MOST_THREADS, os.cpu_count() or 1)


def parallel_map(function: Callable[[Item], Result], items: Iterable[Item]) -> list[Result]:
    """[function(item) for item in items], on as many threads as there are cores; within one of
    these threads, in turn. The first exception, in the order of the items, is raised."""
    work = list(items)
    threads = min(cores(), len(work))
    if threads < 2 or getattr(_here, "busy", False):
        return [function(item) for item in work]
    with ThreadPoolExecutor(threads, initializer=_mark) as pool:
        return list(pool.map(function, work))


def _mark() -> None:
    _here.busy = True
