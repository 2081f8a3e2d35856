"""Run many small matrix decompositions in parallel, each on one thread."""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cache
from typing import TypeVar

import torch

Part = TypeVar("Part")
Result = TypeVar("Result")

MAX_WORKERS = 4  # threads; each needs the memory of several chunks


@contextmanager
def single_threaded() -> Iterator[int]:
    """Limit torch to one CPU thread, and yield the number that it had before.

    Otherwise torch's own idle threads would take time from the worker threads by busy waiting.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield threads
    finally:
        torch.set_num_threads(threads)


def parallel(function: Callable[[Part], Result], parts: Sequence[Part], workers: int) -> list[Result]:
    """Apply a function to all parts in up to `workers` threads; call this within single_threaded.

    Small matrices are too small for LAPACK's own threads.
    """
    if workers == 1:
        return list(map(function, parts))
    return list(_pool(min(workers, MAX_WORKERS)).map(function, parts))


@cache
def _pool(workers: int) -> ThreadPoolExecutor:
    """Return a pool whose threads are reused.

    The first decomposition in a new thread takes as long as all decompositions of a small layer.
    """
    return ThreadPoolExecutor(workers)
