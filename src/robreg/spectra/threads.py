"""Many small matrix decompositions side by side, each on one thread."""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cache
from typing import TypeVar

import torch

Part = TypeVar("Part")

Made = TypeVar("Made")

MAX_WORKERS = 4  # each holds a chunk several times over


@contextmanager
def single_threaded() -> Iterator[int]:
    """Give torch one CPU thread, and yield how many it had: while others compute, its own would wait busily."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield threads
    finally:
        torch.set_num_threads(threads)


def parallel(function: Callable[[Part], Made], parts: Sequence[Part], workers: int) -> list[Made]:
    """Map in up to `workers` threads, within single_threaded: small matrices leave LAPACK's own threads waiting."""
    if workers == 1:
        return list(map(function, parts))
    return list(_pool(min(workers, MAX_WORKERS)).map(function, parts))


@cache
def _pool(workers: int) -> ThreadPoolExecutor:
    """Keep threads: the first decomposition in a new one takes as long as all of a small layer."""
    return ThreadPoolExecutor(workers)
