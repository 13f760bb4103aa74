"""What is known of a tile's dates: kept, dropped and why. It becomes part of tile.json and quality.json."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import date
from typing import Literal

from infer.contract import SmaltiError
from infer.contract.tile import DroppedDate, FailedFile
from preproc.reader.ranges import MissingDataError
from preproc.tile.same_day import Observation

StackName = Literal["s2", "s1_ascending", "s1_descending"]
STACKS: tuple[StackName, ...] = ("s2", "s1_ascending", "s1_descending")

OnMissing = Literal["fail", "drop-date"]


@dataclass(frozen=True)
class FailedRead:
    """A read that failed."""

    item: str
    asset: str
    error: SmaltiError


@dataclass
class StackRecord:
    """The dates of one stack (Sentinel-2, or one orbit direction of Sentinel-1)."""

    name: StackName
    kept: list[date] = field(default_factory=list)
    """Ascending."""
    items: dict[date, list[str]] = field(default_factory=dict)
    """Kept date -> ids of the scenes that give pixels, in order."""
    _dropped: list[DroppedDate] = field(default_factory=list)
    failed: list[FailedFile] = field(default_factory=list)
    """Reads that failed for good."""

    @property
    def dropped(self) -> list[DroppedDate]:
        """Dates that were looked at and left out, each with its reason; dates ascending."""
        return sorted(self._dropped, key=lambda dropped: dropped.date)

    def keep(self, observation: Observation, numbers: list[int]) -> None:
        """A date is in the stack; `numbers` count its scenes from 1."""
        self.kept.append(observation.day)
        self.items[observation.day] = [observation.scenes[number - 1].id for number in numbers]

    def drop(self, observation: Observation, reason: str, clear_share: float | None = None) -> None:
        """A date is left out."""
        items = tuple(scene.id for scene in observation.scenes)
        self._dropped.append(DroppedDate(observation.day, reason, items, clear_share))

    def fail(self, observation: Observation, failure: FailedRead, policy: OnMissing) -> None:
        """A read failed: leave the date out and say so if the file is missing for good and the policy is "drop-date".

        Raises:
            SmaltiError: otherwise; one line with date, item, asset and reason.
        """
        place = f"{observation.day}, item {failure.item}, asset {failure.asset}: {failure.error}"
        if not isinstance(failure.error, MissingDataError):
            raise type(failure.error)(place)
        if policy == "fail":
            raise MissingDataError(f'{place} ([archive] on_missing = "drop-date" would leave the date out)')
        self.failed.append(FailedFile(observation.day, failure.item, failure.asset, str(failure.error)))
        self.drop(observation, f"asset {failure.asset} of {failure.item} cannot be read")
