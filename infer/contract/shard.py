"""A shard: every N-th unit of work, so that an array of tasks can divide a list without talking to each other."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar, overload

from infer.contract.errors import SmaltiError

T = TypeVar("T")


class Lazily(Sequence[T], Generic[T]):
    """What is made of each item of a list, when it is asked for and every time: a task makes its own share only."""

    def __init__(self, items: Sequence[Any], make: Callable[[Any], T]) -> None:
        self._items, self._make = items, make

    def __len__(self) -> int:
        return len(self._items)

    @overload
    def __getitem__(self, index: int) -> T: ...
    @overload
    def __getitem__(self, index: slice) -> Lazily[T]: ...
    def __getitem__(self, index: int | slice) -> T | Lazily[T]:
        return Lazily(self._items[index], self._make) if isinstance(index, slice) else self._make(self._items[index])

    def __iter__(self) -> Iterator[T]:
        return map(self._make, self._items)


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
