"""Progress on standard error with the standard library: a bar on a terminal, a plain line now and then elsewhere."""

from __future__ import annotations

import sys
import threading
import time

PLAIN_INTERVAL_S = 5.0
"""Seconds between plain lines."""
BAR_INTERVAL_S = 0.2
_WIDTH = 28


def say(text: str) -> None:
    """One line for people, on standard error."""
    print(text, file=sys.stderr, flush=True)


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
