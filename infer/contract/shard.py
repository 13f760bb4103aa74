"""A shard: every N-th unit of work, so that an array of tasks can divide a list without talking to each other."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

from infer.contract.errors import SmaltiError

T = TypeVar("T")


@dataclass(frozen=True)
class Shard:
    """Units `index`, `index + count`, `index + 2 * count`, ... of an ordered list (0-based index)."""

    index: int = 0
    count: int = 1

    def __post_init__(self) -> None:
        if self.count < 1 or not 0 <= self.index < self.count:
            raise SmaltiError(f"--shard {self.index}/{self.count}: write I/N with 0 <= I < N, for example 0/4 to 3/4")

    @classmethod
    def parse(cls, text: str) -> Shard:
        """Read `I/N` (0 <= I < N)."""
        match = re.fullmatch(r"\s*(\d+)\s*/\s*(\d+)\s*", text)
        if match is None:
            raise SmaltiError(f"--shard {text!r}: write I/N with 0 <= I < N, for example 0/4 to 3/4")
        return cls(int(match[1]), int(match[2]))

    def take(self, units: Sequence[T]) -> list[T]:
        """The units of this shard, in order."""
        return list(units[self.index :: self.count])

    @property
    def whole(self) -> bool:
        """Whether this is everything (0/1)."""
        return self.count == 1

    def __str__(self) -> str:
        return f"{self.index}/{self.count}"
