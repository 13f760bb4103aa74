"""What sites' commands say of quotas, as numbers. Pure."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from preproc.run.waves import Space

_NUMBER = re.compile(r"(\d+(?:\.\d+)?)\*?([kKMGTPE]?)(i?)B?")
_RATIO = re.compile(r"([^\s/]+)\s*/\s*([^\s/]+)")


@dataclass(frozen=True)
class Quota:
    """Of one place."""

    place: Path
    used: Space
    most: Space
    """Infinite where there is no limit."""

    @property
    def left(self) -> Space:
        """What may still be written."""
        return self.most - self.used


def quota_of(text: str, form: Literal["lfs", "used/max"], folder: Path) -> Quota | None:
    """The quota that holds for a folder: of the deepest place above it; None if nothing is said of any.

    Args:
        text: what the command printed.
        form: how.
        folder: absolute.
    """
    rows = _lfs(text) if form == "lfs" else _ratios(text)
    above = [row for row in rows if folder.is_relative_to(row.place)]
    return max(above, key=lambda row: len(row.place.parts), default=None)


def _lfs(text: str) -> Iterable[Quota]:
    """`lfs quota`: file system, kbytes, quota, limit, grace, files, quota, limit, grace; 0 is no limit.

    A long file system's name stands on a line of its own; an asterisk marks what is over its quota.
    """
    words: list[str] = []
    for line in text.splitlines():
        found = line.split()
        if found and found[0].startswith("/"):
            words = found
        elif words and len(words) == 1:
            words += found
        if len(words) >= 9:
            used, soft, hard, files, soft_files, hard_files = (_number(words[n]) for n in (1, 2, 3, 5, 6, 7))
            known = (used, soft, hard, files, soft_files, hard_files)
            if all(number is not None for number in known):
                kilo = 1024
                most = Space(_limit(soft, hard) * kilo, _limit(soft_files, hard_files))
                yield Quota(Path(words[0]), Space((used or 0) * kilo, files or 0), most)
            words = []


def _limit(soft: float | None, hard: float | None) -> float:
    limits = [limit for limit in (soft, hard) if limit]
    return min(limits, default=math.inf)


def _ratios(text: str) -> Iterable[Quota]:
    for line in text.splitlines():
        place, _, rest = line.strip().partition(" ")
        pairs = [(_number(used), _number(most)) for used, most in _RATIO.findall(rest)]
        if not place.startswith("/") or len(pairs) < 2:
            continue
        (used, most), (files, most_files) = pairs[:2]
        if used is not None and files is not None:
            limit = Space(math.inf if most is None else most, math.inf if most_files is None else most_files)
            yield Quota(Path(place), Space(used, files), limit)


def _number(text: str) -> float | None:
    match = _NUMBER.fullmatch(text.strip())
    if match is None:
        return None
    number, unit, binary = match.groups()
    return float(number) * (1024.0 if binary else 1000.0) ** " KMGTPE".index(unit.upper() or " ")
