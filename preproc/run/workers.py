"""Units built in several processes ([site] workers), so that a node's cores are used; items in threads, in order.

Each process takes a unit, builds it and says how that went; the parent gives it the next one. A unit that fails does
not stop the others, nor does a process that is killed: its unit has failed, and another process takes its place. When
the parent ends, however it ends, so do they.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import islice
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import TypeVar

from infer.contract import SmaltiError
from preproc.run.config import Config
from preproc.run.progress import progress
from preproc.run.stage import Built, Unit, one_by_one

_PATIENCE_S = 10.0
"""For a process to tidy up after it was asked to end."""

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")

Make = Callable[[Unit], None]
"""Builds a unit, or raises a SmaltiError. Sent to other processes once each, so it is picklable and may keep things."""


_WORTHWHILE = 512 * 512
"""Pixels for which a process is worth the second that it takes to start."""


def worker_count(config: Config, pixels: int | None = None) -> int:
    """[site] workers, or the cores that this process is allowed; fewer where there is little to do.

    Args:
        config: of the run.
        pixels: that the work is about, if it is told.
    """
    allowed = config.site.workers or len(os.sched_getaffinity(0))
    return allowed if pixels is None else min(allowed, -(-pixels // _WORTHWHILE))


@contextmanager
def within_unit(label: str, total: int, steps: str) -> Iterator[Callable[[], None]]:
    """Progress within a unit, for those that take long; of several processes none shows it.

    Args:
        label: what is being done.
        total: number of steps.
        steps: what they are, in the plural.

    Yields:
        What to call after each step.
    """
    if multiprocessing.parent_process() is not None:
        yield lambda: None
        return
    with progress(label, total, steps) as bar:
        yield bar.advance


def side_by_side(units: Sequence[Unit], make: Make, workers: int) -> Generator[Built]:
    """Build units in up to `workers` processes, which share the cores; see `Session.build`.

    Args:
        units: that are due. With one of them, or one worker, this process builds them itself.
        make: builds one.
        workers: processes.

    Returns:
        What became of each unit, in the order in which they end.
    """
    workers = min(workers, len(units))
    if workers < 2:
        yield from one_by_one(units, make)
        return
    waiting = list(reversed(units))
    crew: list[_Worker] = []
    try:
        crew += [_start(make, member, workers) for member in range(workers)]
        for worker in crew:
            worker.give(waiting.pop())
        while any(worker.unit for worker in crew):
            ready = wait([worker.ours for worker in crew if worker.unit])
            for place, worker in enumerate(crew):
                if worker.ours not in ready:
                    continue
                built, alive = worker.take()
                if not alive and waiting:
                    crew[place] = worker = _start(make, place, workers)
                if waiting:
                    worker.give(waiting.pop())
                yield built
    finally:
        _end(crew)


def read_ahead(
    pool: ThreadPoolExecutor, work: Callable[[_Item], _Result], items: Iterable[_Item], *, ahead: int
) -> Iterator[tuple[_Item, _Result]]:
    """Work on items in the threads of a pool, a few ahead, and give the results in the order of the items.

    Args:
        pool: the threads.
        work: done in a thread; an exception is raised here when that item's turn comes.
        items: taken only as fast as results are used (back-pressure).
        ahead: items begun or done whose results have not been taken; bounds the memory.
    """
    waiting: deque[tuple[_Item, Future[_Result]]] = deque()
    remaining = iter(items)
    try:
        for item in islice(remaining, ahead):
            waiting.append((item, pool.submit(work, item)))
        while waiting:
            item, future = waiting.popleft()
            result = future.result()
            for following in islice(remaining, 1):
                waiting.append((following, pool.submit(work, following)))
            yield item, result
    finally:
        for _, future in waiting:
            future.cancel()
        for _, future in waiting:
            if not future.cancelled():
                future.exception()  # wait: nothing may run on after the tile was given up


def in_order(items: Iterable[_Item], work: Callable[[_Item], _Result], workers: int) -> Iterator[tuple[_Item, _Result]]:
    """The same in threads of its own, for work that waits for disks or computes outside of Python.

    Yields:
        Each item with what came of it, in their order; the first error ends it.
    """
    with ThreadPoolExecutor(workers) as pool:
        yield from read_ahead(pool, work, items, ahead=2 * workers + 1)


class OneAtATime:
    """Calls from several threads, one at a time in each process: for libraries that two threads cannot use at once.

    The first caller works in this process, and those that would wait for it work in others, which are started when
    callers have waited for as long as starting takes.
    """

    def __init__(self, worthwhile_s: float = 2.0) -> None:
        """With seconds that callers wait, all together, before other processes are started."""
        self._here = threading.Lock()
        self._starting = threading.Lock()
        self._left_s = worthwhile_s
        self._others: ProcessPoolExecutor | None = None

    def call(self, work: Callable[..., _Result], *arguments: object) -> _Result:
        """What `work` returns; all that is sent to and fro is picklable.

        Raises:
            SmaltiError: if the process that worked was ended.
        """
        if self._mine():
            try:
                return work(*arguments)
            finally:
                self._here.release()
        others = self._crew()
        try:
            return others.submit(work, *arguments).result()
        except BrokenProcessPool as error:
            self._others = None
            raise SmaltiError(
                "a process that worked on the side was ended, perhaps for want of memory: set [site] workers lower"
            ) from error

    def _mine(self) -> bool:
        """Whether this process is the caller's now."""
        if multiprocessing.current_process().daemon:  # which has no processes of its own
            return self._here.acquire()
        began = time.monotonic()
        mine = self._here.acquire(timeout=max(0.0, self._left_s))
        self._left_s -= time.monotonic() - began
        return mine

    def _crew(self) -> ProcessPoolExecutor:
        with self._starting:
            if self._others is None:
                many = max(1, len(os.sched_getaffinity(0)) - 1)
                context = multiprocessing.get_context("spawn")
                self._others = ProcessPoolExecutor(many, context, initializer=_follow_parent)
            return self._others


@dataclass
class _Worker:
    process: BaseProcess
    ours: Connection
    """The parent's end."""
    unit: Unit | None = None
    """What it builds."""

    def give(self, unit: Unit) -> None:
        self.unit = unit
        with suppress(OSError):  # it is gone, which `take` will find
            self.ours.send(unit)

    def take(self) -> tuple[Built, bool]:
        """What became of its unit, and whether it can build another."""
        unit, self.unit = self.unit, None
        assert unit is not None
        try:
            error, bug = self.ours.recv()
        except (EOFError, OSError):
            self.process.join()
            return Built(unit, SmaltiError(f"its process was ended ({_cause(self.process.exitcode)})")), False
        if bug:
            raise RuntimeError(f"{unit.name}: {bug}")
        return Built(unit, error), True


def _cause(code: int | None) -> str:
    if code == -signal.SIGKILL:
        return "killed: perhaps for want of memory: set [site] workers lower"
    return f"by signal {-code}" if code is not None and code < 0 else f"exit code {code}"


def _start(make: Make, member: int, members: int) -> _Worker:
    context = multiprocessing.get_context("spawn")  # a fork would copy GDAL's and CatBoost's locks as they stand
    ours, theirs = context.Pipe()
    process = context.Process(target=_work, args=(theirs, make), name=f"worker {member}", daemon=True)
    with _cores(member, members):
        process.start()
    theirs.close()
    return _Worker(process, ours)


@contextmanager
def _cores(member: int, members: int) -> Iterator[None]:
    """What is started inside has a share of the cores: libraries that start a thread a core then start few."""
    allowed = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, allowed[member::members] or [allowed[member % len(allowed)]])
    try:
        yield
    finally:
        os.sched_setaffinity(0, allowed)


def _end(crew: Sequence[_Worker]) -> None:
    for worker in crew:
        worker.ours.close()  # who waits for a unit ends
        if worker.unit is not None:
            worker.process.terminate()
    for worker in crew:
        worker.process.join(_PATIENCE_S)
        if worker.process.is_alive():
            worker.process.kill()
            worker.process.join()


def _work(theirs: Connection, make: Make) -> None:
    """The process: build what comes, until nothing more does."""
    _follow_parent()
    signal.signal(signal.SIGTERM, _leave)
    while True:
        try:
            unit = theirs.recv()
        except (EOFError, OSError):
            return
        error, bug = None, ""
        try:
            make(unit)
        except SmaltiError as problem:
            error = SmaltiError(str(problem), exit_code=problem.exit_code)
        except Exception:  # noqa: BLE001  # raised by the parent
            bug = traceback.format_exc()
        theirs.send((error, bug))


def _follow_parent() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal sends it to all; the parent says when to end
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _leave(_signal: int, _frame: object) -> None:
    raise SystemExit(1)


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os._exit(1)  # killed as it was: what is half made is recognised later by its name
