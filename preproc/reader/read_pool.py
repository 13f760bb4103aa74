"""Many reads in flight, results in order, memory bounded."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")


def in_order(
    pool: ThreadPoolExecutor, function: Callable[[T], R], tasks: Iterable[T], *, ahead: int
) -> Iterator[tuple[T, R]]:
    """Apply `function` to tasks in threads and give the results in the order of the tasks.

    Args:
        pool: the threads.
        function: called with one task; an exception is raised here when that task's turn comes.
        tasks: taken only as fast as results are used (back-pressure).
        ahead: tasks begun or done whose results have not been taken; bounds the memory.
    """
    waiting: deque[tuple[T, Future[R]]] = deque()
    remaining = iter(tasks)
    try:
        for task in islice(remaining, ahead):
            waiting.append((task, pool.submit(function, task)))
        while waiting:
            task, future = waiting.popleft()
            result = future.result()
            for following in islice(remaining, 1):
                waiting.append((following, pool.submit(function, following)))
            yield task, result
    finally:
        for _, future in waiting:
            future.cancel()
        for _, future in waiting:
            if not future.cancelled():
                future.exception()  # wait: nothing may run on after the tile was given up
