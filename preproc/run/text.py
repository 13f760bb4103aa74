"""Bytes, shares, times, names and lists of problems as people read them, and times as services write them. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from infer.contract import one_line


def human_bytes(count: float) -> str:
    """For example 3.4 GB."""
    value = float(count)
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if value < 1000:
            return f"{value:.3g} {unit}"
        value /= 1000
    return f"{value:,.3g} PB"


def human_time(seconds: float) -> str:
    """For example 25 min."""
    if seconds < 1:
        return "< 1 s"
    for limit, unit, divisor in ((90, "s", 1), (5400, "min", 60), (2 * 86400, "h", 3600)):
        if seconds < limit:
            return f"{seconds / divisor:.0f} {unit}"
    return f"{seconds / 86400:,.0f} days"


def percent(part: int, whole: int) -> str:
    """For example 0.3 % or 42 %; "100 %" is all and "0 %" is nothing."""
    share = 100 * part / whole if whole else 0.0
    if part == 0 or part >= whole:
        return f"{share:.0f} %"
    if share < 0.1:
        return "< 0.1 %"
    return f"{share:.1f} %" if share < 10 else f"{share:.0f} %" if share < 99.5 else "> 99 %"


def parse_time(text: Any) -> datetime | None:
    """An ISO 8601 time in UTC (taken as UTC when it has no zone), or None if it is none."""
    try:
        moment = datetime.fromisoformat(text.upper())  # RFC 3339 allows "t" and "z"
        return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)
    except (AttributeError, TypeError, ValueError, OverflowError):  # no time, or one beyond the years
        return None


def some(names: Sequence[str], most: int = 5) -> str:
    """Names in a line, no more of them than people read."""
    return ", ".join(names[:most]) + (f" and {len(names) - most:,} more" if len(names) > most else "")


_LINE, _LINES = 600, 20


def problem_lines(where: Path | str, problems: Iterable[str]) -> str:
    """What is wrong with a file, a line each; no longer than people read, whatever the file holds."""
    found = [one_line(f"{where}: {problem}"[:_LINE]) for problem in problems]
    more = [f"{where}: and {len(found) - _LINES} more"] if len(found) > _LINES else []
    return "\n".join([*found[:_LINES], *more])
