"""Threads that compute batches: one on an accelerator, one a core on a CPU.

On a CPU a batch is computed by one thread from beginning to end, in that core's own cache and without barriers between
operations. It also makes results independent of the number of cores.
"""

from __future__ import annotations

import ctypes
import os
import sys
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor, wait
from functools import partial

import torch

from infer.device import Device

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8
_KEPT_BYTES = 1 << 25
_KEPT_COMPUTATIONS = 32
_FEW_CORES = 8


def arrange_host_memory() -> None:
    """Settle how a CPU computation uses memory; call it before torch computes anything.

    glibc is asked to keep freed blocks: batches allocate the same sizes again and again, and every activation of some
    megabytes would cost its page faults anew. torch is asked to keep fewer oneDNN computations than its 1024: in
    bfloat16 every number of pixels and dates has its own, which would grow to a gigabyte over a large tile.
    """
    os.environ.setdefault("LRU_CACHE_CAPACITY", str(_KEPT_COMPUTATIONS))
    if not sys.platform.startswith("linux"):
        return
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):  # no glibc
        return
    if len(os.sched_getaffinity(0)) <= _FEW_CORES:
        mallopt(_M_ARENA_MAX, 1)  # one heap: what one thread frees serves the others; many would queue for it
    mallopt(_M_MMAP_THRESHOLD, _KEPT_BYTES)
    mallopt(_M_TRIM_THRESHOLD, _KEPT_BYTES)


class Workers:
    """Runs tasks one after another, or on a CPU on several threads."""

    def __init__(self, device: Device) -> None:
        """Start the threads of a device; on a CPU each has one core, so that torch must not divide its work further."""
        self._count = device.workers
        start = partial(torch.set_num_threads, 1) if device.on_cpu else device.activate
        self._pool = ThreadPoolExecutor(self._count, thread_name_prefix="compute", initializer=start)

    def run(self, tasks: Iterable[Callable[[], None]]) -> None:
        """Run all tasks; the first failure is raised once the running ones have ended.

        The iterable is advanced by the threads, one at a time.
        """
        lock, source, failed = threading.Lock(), iter(tasks), threading.Event()

        def following() -> Callable[[], None] | None:
            with lock:
                return None if failed.is_set() else next(source, None)

        def work() -> None:
            with torch.inference_mode():
                try:
                    while (task := following()) is not None:
                        task()
                except BaseException:
                    failed.set()
                    raise

        futures = [self._pool.submit(work) for _ in range(self._count)]
        wait(futures)
        failures = (future.exception() for future in futures)
        error = next((failure for failure in failures if failure is not None), None)
        try:
            if error is not None:
                raise error
        finally:  # its traceback refers to this frame: a cycle would keep the failed batch's memory for a while
            del futures, failures, error

    def close(self) -> None:
        """End the threads."""
        self._pool.shutdown()
