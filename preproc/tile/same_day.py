"""Which scenes make an observation, in which order, which scene gives a pixel, and what became of each date. Pure.

Scenes of one UTC date (Sentinel-1: and one orbit direction) form one observation. For each pixel the first scene in
order that has a value there gives all its bands. The order: scenes in the tile's own UTM zone first, because they need
no warp; then by time of acquisition; of copies of one granule the newest processing first; then by id. Which dates were
kept, dropped and why becomes part of tile.json and quality.json.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import date, datetime
from typing import Any, Literal, TypeVar

import numpy as np
from numpy.typing import NDArray

from infer.contract import BANDS, SAR_BANDS, SmaltiError
from infer.contract.tile import DroppedDate, FailedFile
from preproc.catalogue.scene import Scene
from preproc.reader.ranges import MissingDataError

_Pixel = TypeVar("_Pixel", bound=np.generic)

S2_ASSETS = ("SCL", *BANDS)
MAX_SCENES = 254
"""Scenes of one observation: their numbers are kept in one byte a pixel."""
StackName = Literal["s2", "s1_ascending", "s1_descending"]
STACKS: tuple[StackName, ...] = ("s2", "s1_ascending", "s1_descending")

OnMissing = Literal["fail", "drop-date"]


@dataclass(frozen=True)
class Observation:
    """The scenes of one date, in the order in which they are asked for a pixel."""

    day: date
    scenes: tuple[Scene, ...]


def missing_assets(scene: Scene) -> list[str]:
    """Assets that a scene would need and its item does not have: such a scene cannot be used."""
    needed = S2_ASSETS if scene.modality == "s2" else SAR_BANDS
    return [name for name in needed if name not in scene.assets]


def scene_order(scene: Scene, epsg: int) -> tuple[bool, datetime, int, str]:
    """Sort key of scenes within an observation for a tile in the zone `epsg`."""
    acquired, number = (scene.acquired, 0) if scene.copy is None else (scene.copy.acquired, scene.copy.number)
    return (scene.epsg != epsg, acquired, number, scene.id)


def observations(scenes: Iterable[Scene], epsg: int) -> list[Observation]:
    """Group the usable scenes of one modality (and orbit) by UTC date, dates ascending.

    Args:
        scenes: of one modality; for Sentinel-1 of one orbit direction.
        epsg: zone of the tile.
    """
    days: dict[date, list[Scene]] = {}
    for scene in scenes:
        days.setdefault(scene.day, []).append(scene)
    ordered = []
    for day in sorted(days):
        members = sorted(days[day], key=lambda scene: scene_order(scene, epsg))
        if len(members) > MAX_SCENES:
            raise ValueError(f"{len(members)} scenes on {day} over one tile: duplicates were not removed")
        ordered.append(Observation(day, tuple(members)))
    return ordered


def add_source(source_hw: NDArray[np.uint8], number: int, has_value_hw: NDArray[np.bool_]) -> bool:
    """Let a scene take the pixels where it has a value and none before it had.

    Args:
        source_hw: number of the scene that gives each pixel, counted from 1, 0 = none yet; changed in place.
        number: this scene's.
        has_value_hw: where it has a value (and the region is).

    Returns:
        Whether it took any.
    """
    taken = has_value_hw & (source_hw == 0)
    source_hw[taken] = number
    return bool(taken.any())


def copy_where(to_hw: NDArray[_Pixel], from_hw: NDArray[_Pixel], here_hw: NDArray[np.bool_]) -> None:
    """Copy the pixels of a mask; a plain copy where that is all of them."""
    if here_hw.all():
        to_hw[...] = from_hw
    else:
        np.copyto(to_hw, from_hw, where=here_hw)


def keeps_date(clear_pixels: int, region_pixels: int, min_clear: float) -> bool:
    """Whether a date has enough clear pixels inside the region (min_clear 0: any at all)."""
    return clear_pixels > 0 and clear_pixels / region_pixels >= min_clear


def bounding_box(inside_hw: NDArray[Any]) -> tuple[slice, slice] | None:
    """Smallest rows and columns that hold every pixel of a mask, None if it is empty."""
    rows, columns = np.flatnonzero(inside_hw.any(axis=1)), np.flatnonzero(inside_hw.any(axis=0))
    if not len(rows):
        return None
    return slice(int(rows[0]), int(rows[-1]) + 1), slice(int(columns[0]), int(columns[-1]) + 1)


def sources_used(source_hw: NDArray[np.uint8], scenes: Sequence[Scene]) -> list[int]:
    """Numbers (from 1) of the scenes that give at least one pixel, in order."""
    counts = np.bincount(source_hw.ravel(), minlength=len(scenes) + 1)
    return [number for number in range(1, len(scenes) + 1) if counts[number]]


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
