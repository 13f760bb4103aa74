"""Progress on standard error: a bar on a terminal, a plain line every few seconds elsewhere (batch logs, pipes)."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol

from rich.console import Console, RenderableType
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.progress import TimeRemainingColumn as Remaining

PLAIN_INTERVAL_S = 5.0
"""Seconds between plain lines."""

_UNBOUNDED = 100_000
"""Columns of what is no terminal."""


def plain_console(**options: Any) -> Console:
    """A console that prints what it is given: [brackets], :colons: and numbers in it mean nothing, lines stay whole."""
    return Console(highlight=False, markup=False, emoji=False, soft_wrap=True, **options)


console = plain_console(stderr=True)
"""Where people are told things. Standard output is kept for results."""


class Bar(Protocol):
    """What a stage tells while it works."""

    def advance(self, steps: float = 1, note: str = "") -> None:
        """Count `steps` more of the total, and show a short note on what is being done."""

    def total(self, total: float) -> None:
        """Change the total once it is known."""


@dataclass
class _PlainBar:
    label: str
    unit: str
    whole: float | None
    done: float = 0.0
    started: float = field(default_factory=time.monotonic)
    told: float = field(default_factory=time.monotonic)

    def total(self, total: float) -> None:
        self.whole = total

    def advance(self, steps: float = 1, note: str = "") -> None:
        self.done += steps
        now = time.monotonic()
        finished = self.whole is not None and self.done >= self.whole
        if now - self.told >= PLAIN_INTERVAL_S or (finished and now - self.started >= PLAIN_INTERVAL_S):
            self.told = now
            self.tell(now - self.started, note)

    def tell(self, elapsed: float, note: str) -> None:
        if self.whole:
            left = elapsed * (self.whole - self.done) / self.done if self.done else float("nan")
            eta = f", {left:.0f} s left" if self.done and self.done < self.whole else ""
            text = f"{self.done:.0f}/{self.whole:.0f} {self.unit} ({100 * self.done / self.whole:.0f} %)"
        else:
            eta, text = "", f"{self.done:.0f} {self.unit}"
        print(f"{self.label}: {text}, {elapsed:.0f} s{eta}{f' · {note}' if note else ''}", file=sys.stderr, flush=True)


@dataclass
class _RichBar:
    progress: Progress
    task: int

    def total(self, total: float) -> None:
        self.progress.update(self.task, total=total)  # type: ignore[arg-type]  # TaskID is a NewType of int

    def advance(self, steps: float = 1, note: str = "") -> None:
        self.progress.update(self.task, advance=steps, note=note)  # type: ignore[arg-type]  # as above


@contextmanager
def progress(label: str, total: float | None, unit: str = "steps") -> Iterator[Bar]:
    """Show progress while the block runs.

    Args:
        label: what is being done, for example "fetch".
        total: number of steps, or None while it is unknown.
        unit: what a step is, in the plural.
    """
    if not console.is_terminal:
        yield _PlainBar(label, unit, total)
        return
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn(unit, markup=False),
        TimeElapsedColumn(),
        Remaining(),
        TextColumn("{task.fields[note]}", style="dim", markup=False),
    )
    with Progress(*columns, console=console, transient=True) as shown:
        yield _RichBar(shown, shown.add_task(label, total=total, note=""))


def say(text: str) -> None:
    """One line for people, on standard error."""
    console.print(text)


def show(picture: RenderableType) -> None:
    """Print a result on standard output: fitted to a terminal; elsewhere (a pipe, a file) no line is wrapped."""
    width = None if sys.stdout.isatty() else _UNBOUNDED
    plain_console(width=width).print(picture)
