"""What a process tells and hears with the standard library: progress on standard error, and the signals to stop.

Progress is a bar on a terminal, a plain line now and then elsewhere.
"""

from __future__ import annotations

import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
"""What a scheduler or a person sends to end a process."""
PLAIN_INTERVAL_S = 5.0
"""Seconds between plain lines."""
BAR_INTERVAL_S = 0.2
_WIDTH = 28


def say(text: str) -> None:
    """One line for people, on standard error."""
    print(text, file=sys.stderr, flush=True)


@contextmanager
def on_stop(act: Callable[[int], object]) -> Iterator[None]:
    """While the block runs, call `act` with the number of each stop signal; the handlers before come back after it."""

    def handle(number: int, _frame: FrameType | None) -> None:
        act(number)

    before = {number: signal.signal(number, handle) for number in STOP_SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class Progress:
    """Counts tiles, in fractions; safe to call from any thread."""

    def __init__(self, label: str, total: int) -> None:
        self._label = label
        self._total = total
        self._done = 0.0
        self._terminal = sys.stderr.isatty()
        self._started = self._told = time.monotonic()
        self._lock = threading.Lock()

    def advance(self, tiles: float) -> None:
        """Count a part of a tile."""
        with self._lock:
            self._done += tiles
            now = time.monotonic()
            if now - self._told >= (BAR_INTERVAL_S if self._terminal else PLAIN_INTERVAL_S):
                self._told = now
                self._show(now - self._started)

    def say(self, text: str) -> None:
        """Print a line without spoiling the bar."""
        with self._lock:
            if self._terminal:
                sys.stderr.write("\r\x1b[K")
            say(text)

    def close(self) -> None:
        """Clear the bar."""
        with self._lock:
            if self._terminal:
                sys.stderr.write("\r\x1b[K")
                sys.stderr.flush()

    def _show(self, elapsed: float) -> None:
        share = min(1.0, self._done / self._total) if self._total else 1.0
        left = f", {elapsed * (1 - share) / share:.0f} s left" if share > 0 else ""
        text = f"{self._label}: {self._done:.1f}/{self._total} tiles ({100 * share:.0f} %), {elapsed:.0f} s{left}"
        if self._terminal:
            filled = round(_WIDTH * share)
            sys.stderr.write(f"\r\x1b[K[{'=' * filled}{' ' * (_WIDTH - filled)}] {text}")
            sys.stderr.flush()
        else:
            say(text)
