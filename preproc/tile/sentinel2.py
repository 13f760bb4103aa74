"""Sentinel-2: from scenes to the stacks of bands and masks of a group of tiles.

Two passes. First the scene classification of every date: it alone decides which dates a tile keeps and which scene
gives each pixel. Then the ten bands, of kept dates and of scenes that give pixels only: a cloudy date costs one band.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any

import numpy as np
from numpy.typing import NDArray

from infer.contract import BANDS
from preproc.catalogue.scene import OffsetPolicy, Scene
from preproc.reader.read import REFLECTANCE, SCENE_CLASSES
from preproc.run.workers import read_ahead
from preproc.tile.dates import ReadContext, StackDate, TileDate, read_for, stack_dates
from preproc.tile.open_tile import OpenTile
from preproc.tile.radiometry import clear, offset_is_gone, remove_offset
from preproc.tile.same_day import FailedRead, add_source, copy_where, keeps_date, sources_used


@dataclass
class _ClearMask:
    """What the scene classifications of one date say of one tile."""

    part: TileDate
    source_hw: NDArray[np.uint8]
    """Number of the scene that gives each pixel, from 1; 0 = not clear, or outside the region."""
    clear_pixels: int = 0
    failure: FailedRead | None = None
    seen: dict[str, NDArray[np.bool_]] = field(default_factory=dict)
    """Granule of which several copies are used -> where the newer ones have data, clear or not."""

    def wants(self, scene: Scene) -> bool:
        """Whether a scene could still give a pixel."""
        tile = self.part.tile
        if self.failure is not None or self.clear_pixels >= tile.region_pixels or not tile.alive:
            return False
        seen = None if scene.copy is None else self.seen.get(scene.copy.granule)
        return self.part.number(scene) > 0 and (seen is None or not seen[tile.inside_hw].all())

    def take(self, scene: Scene, classes_hw: NDArray[np.uint8]) -> None:
        """Let a scene give the clear pixels that nothing gives yet, and of which no newer copy of it has data."""
        has_value = clear(classes_hw) & self.part.tile.inside_hw
        if scene.copy is not None:
            seen = self.seen.setdefault(scene.copy.granule, np.zeros(classes_hw.shape, bool))
            has_value &= ~seen
            seen |= classes_hw != 0
        add_source(self.source_hw, self.part.number(scene), has_value)
        self.clear_pixels = int(np.count_nonzero(self.source_hw))


@dataclass(frozen=True)
class _BandTask:
    covers: Sequence[_ClearMask]
    """Of one date; those that need this scene."""
    scene: Scene
    band: int
    """Index in BANDS."""


_BandResult = list[tuple[NDArray[np.uint16], NDArray[np.bool_] | None]] | FailedRead
"""For each cover the band, and where its file says that it has no value (by a mask, or a nodata value but 0)."""


def add_sentinel2(tiles: Sequence[OpenTile], context: ReadContext) -> None:
    """Fill the Sentinel-2 stacks of a group of tiles; dates ascend.

    Pixels that are not clear are 0 in bands and mask, and so are those where a band's file declares that it has no
    value. Any other clear pixel keeps what the bands hold there, 0 included.
    """
    _read_bands(_read_covers(tiles, context), context)


def _clear_masks(context: ReadContext, day: StackDate) -> list[_ClearMask]:
    covers = [_ClearMask(part, np.zeros(part.tile.inside_hw.shape, np.uint8)) for part in day.parts]
    for scene in day.scenes:
        wanting = [cover for cover in covers if cover.wants(scene)]
        if not wanting:
            continue
        placed = read_for(context.reader, scene, "SCL", [cover.part.tile for cover in wanting], SCENE_CLASSES)
        for index, cover in enumerate(wanting):
            if isinstance(placed, FailedRead):
                cover.failure = placed
            else:
                cover.take(scene, placed[index].values_hw)
    return covers


def _read_covers(tiles: Sequence[OpenTile], context: ReadContext) -> list[list[_ClearMask]]:
    """First pass: for each date the covers of the tiles that keep it."""
    kept = []
    days = stack_dates(tiles, "s2")
    results = read_ahead(context.pool, lambda day: _clear_masks(context, day), days, ahead=context.ahead)
    for done, (_, covers) in enumerate(results, start=1):
        context.tell("Sentinel-2, clouds", done, len(days))
        kept.append([cover for cover in covers if cover.part.tile.alive and _keep(cover)])
    return kept


def _keep(cover: _ClearMask) -> bool:
    """Whether a tile keeps a date; if not, the reason is recorded."""
    tile, observation = cover.part.tile, cover.part.observation
    if cover.failure is not None:
        tile.fail("s2", observation, cover.failure)
        return False
    if keeps_date(cover.clear_pixels, tile.region_pixels, tile.job.min_clear):
        return True
    share = round(cover.clear_pixels / tile.region_pixels, 6)
    tile.records["s2"].drop(observation, "too few clear pixels", clear_share=share)
    return False


def _tasks(kept: Sequence[Sequence[_ClearMask]]) -> Iterator[_BandTask]:
    for covers in kept:
        if not covers:
            continue
        used = {id(cover): sources_used(cover.source_hw, cover.part.observation.scenes) for cover in covers}
        for scene in StackDate(covers[0].part.observation.day, tuple(cover.part for cover in covers)).scenes:
            for band in range(len(BANDS)):
                wanting = [
                    cover for cover in covers if cover.part.tile.alive and cover.part.number(scene) in used[id(cover)]
                ]
                if wanting:
                    yield _BandTask(wanting, scene, band)


def _read_band(context: ReadContext, task: _BandTask) -> _BandResult:
    tiles = [cover.part.tile for cover in task.covers]
    placed = read_for(context.reader, task.scene, BANDS[task.band], tiles, REFLECTANCE)
    if isinstance(placed, FailedRead):
        return placed
    policy = task.scene.offset
    policy = OffsetPolicy.NONE if policy is OffsetPolicy.BY_PIXELS else policy  # of all bands together: `_settle`
    return [(remove_offset(one.values_hw, policy), one.values_hw == 0 if one.gaps else None) for one in placed]


def _read_bands(kept: Sequence[Sequence[_ClearMask]], context: ReadContext) -> None:
    """Second pass: the bands and the mask of each kept date."""
    results = read_ahead(context.pool, lambda task: _read_band(context, task), _tasks(kept), ahead=context.ahead)
    days = sum(1 for covers in kept if covers)
    by_day = groupby(results, key=lambda result: result[0].covers[0].part.observation.day)
    for done, (_, of_day) in enumerate(by_day, start=1):
        _add_day(of_day)
        context.tell("Sentinel-2, bands", done, days)


def _add_day(results: Iterator[tuple[_BandTask, _BandResult]]) -> None:
    covers: dict[str, _ClearMask] = {}
    bands: dict[str, NDArray[np.uint16]] = {}
    failures: dict[str, FailedRead] = {}
    here: dict[tuple[str, str], NDArray[np.bool_]] = {}
    gaps: dict[str, Any] = {}
    for task, result in results:
        for index, cover in enumerate(task.covers):
            name = cover.part.tile.name
            if name not in covers:
                covers[name] = cover
                bands[name] = np.zeros((*cover.source_hw.shape, len(BANDS)), np.uint16)
            if isinstance(result, FailedRead):
                failures.setdefault(name, result)
                continue
            key = (name, task.scene.id)
            if key not in here:
                here[key] = cover.source_hw == cover.part.number(task.scene)
            values, missing = result[index]
            copy_where(bands[name][..., task.band], values, here[key])
            if missing is not None:
                gaps[name] = gaps.get(name, False) | (missing & here[key])
    for name, cover in covers.items():
        tile, observation = cover.part.tile, cover.part.observation
        if name in failures:
            tile.fail("s2", observation, failures[name])
        elif tile.alive:
            if name in gaps:
                cover.source_hw[gaps[name]] = 0
                bands[name][gaps[name]] = 0
            numbers = sources_used(cover.source_hw, observation.scenes)
            if numbers:
                _settle(cover, numbers, bands[name])
                tile.add("s2", observation, numbers, bands[name], (cover.source_hw > 0).astype(np.uint8))
            else:
                tile.records["s2"].drop(observation, "no value inside the region")


def _settle(cover: _ClearMask, numbers: Sequence[int], bands_hwb: NDArray[np.uint16]) -> None:
    """Find out by their pixels what the catalogue does not reliably say of some scenes, and remove their offset."""
    for number in numbers:
        scene = cover.part.observation.scenes[number - 1]
        if scene.offset is OffsetPolicy.BY_PIXELS:
            here = cover.source_hw == number
            gone = offset_is_gone(bands_hwb[here])
            if not gone:
                bands_hwb[here] = remove_offset(bands_hwb[here], OffsetPolicy.SUBTRACT_1000)
            cover.part.tile.offset_by_pixels[scene.id] = OffsetPolicy.NONE if gone else OffsetPolicy.SUBTRACT_1000
