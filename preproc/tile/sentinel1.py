"""Sentinel-1: from scenes of one orbit direction to a stack of scaled dB of a group of tiles.

A scene has a value at a pixel if VV or VH, as they are stored, is not 0: the format's own meaning of "missing".
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from infer.contract import SAR_BANDS
from preproc.catalogue.scene import Scene
from preproc.reader.read import BACKSCATTER
from preproc.run.workers import read_ahead
from preproc.tile.dates import ReadContext, StackDate, TileDate, read_for, stack_dates
from preproc.tile.open_tile import OpenTile
from preproc.tile.radiometry import scaled_db
from preproc.tile.same_day import FailedRead, add_source, copy_where, sources_used


@dataclass
class _Date:
    """One date on one tile."""

    part: TileDate
    values_hwp: NDArray[np.int16]
    source_hw: NDArray[np.uint8]
    """Number of the scene that gives each pixel, from 1; 0 = none."""
    failure: FailedRead | None = None

    @property
    def open(self) -> bool:
        """Whether another scene could still give a pixel."""
        tile = self.part.tile
        return self.failure is None and tile.alive and int(np.count_nonzero(self.source_hw)) < tile.region_pixels


def add_sentinel1(
    tiles: Sequence[OpenTile], stack: Literal["s1_ascending", "s1_descending"], context: ReadContext
) -> None:
    """Fill one orbit's stack of a group of tiles; dates ascend, those without a value inside the region are dropped."""
    days = stack_dates(tiles, stack)
    results = read_ahead(context.pool, lambda day: _read_day(context, day), days, ahead=context.ahead)
    for done, (_, dates) in enumerate(results, start=1):
        context.tell(f"Sentinel-1, {stack.removeprefix('s1_')}", done, len(days))
        for date in dates:
            tile, observation = date.part.tile, date.part.observation
            if not tile.alive:
                continue
            if date.failure is not None:
                tile.fail(stack, observation, date.failure)
            elif not date.source_hw.any():
                tile.records[stack].drop(observation, "no value inside the region")
            else:
                tile.add(stack, observation, sources_used(date.source_hw, observation.scenes), date.values_hwp)


def _read_day(context: ReadContext, day: StackDate) -> list[_Date]:
    dates = []
    for part in day.parts:
        shape = part.tile.inside_hw.shape
        dates.append(_Date(part, np.zeros((*shape, len(SAR_BANDS)), np.int16), np.zeros(shape, np.uint8)))
    for scene in day.scenes:
        wanting = [date for date in dates if date.open and date.part.number(scene)]
        if wanting:
            _add_scene(context, scene, wanting)
    return dates


def _add_scene(context: ReadContext, scene: Scene, wanting: Sequence[_Date]) -> None:
    """Let a scene give the pixels that none before it gave."""
    planes: list[list[NDArray[np.int16]]] = [[] for _ in wanting]
    for name in SAR_BANDS:
        placed = read_for(context.reader, scene, name, [date.part.tile for date in wanting], BACKSCATTER)
        if isinstance(placed, FailedRead):
            for date in wanting:
                date.failure = placed
            return
        for of_date, one in zip(planes, placed, strict=True):
            of_date.append(scaled_db(one.values_hw, one.nodata))
    for date, of_date in zip(wanting, planes, strict=True):
        number = date.part.number(scene)
        has_value = np.logical_or.reduce([plane != 0 for plane in of_date]) & date.part.tile.inside_hw
        if add_source(date.source_hw, number, has_value):
            here = date.source_hw == number
            for band, plane in enumerate(of_date):
                copy_where(date.values_hwp[..., band], plane, here)
