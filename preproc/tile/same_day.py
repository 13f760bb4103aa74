"""Which scenes make an observation, in which order, and which scene gives a pixel (pure).

Scenes of one UTC date (Sentinel-1: and one orbit direction) form one observation. For each pixel the first scene in
order that has a value there gives all its bands. The order: scenes in the tile's own UTM zone first, because they need
no warp; then by time of acquisition; of copies of one granule the newest processing first; then by id.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import date, datetime
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from infer.contract import BANDS, SAR_BANDS
from preproc.catalogue.scene import Scene

_Pixel = TypeVar("_Pixel", bound=np.generic)

S2_ASSETS = ("SCL", *BANDS)
MAX_SCENES = 254
"""Scenes of one observation: their numbers are kept in one byte a pixel."""


@dataclass(frozen=True)
class Observation:
    """The scenes of one date, in the order in which they are asked for a pixel."""

    day: date
    scenes: tuple[Scene, ...]

    @property
    def day_of_year(self) -> int:
        """1..366."""
        return self.day.timetuple().tm_yday


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
