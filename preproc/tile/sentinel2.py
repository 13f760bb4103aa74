"""Sentinel-2: from scenes to the stacks of bands and masks of one tile.

Two passes. First the scene classification of every date: it alone decides which dates are kept and which scene gives
each pixel. Then the ten bands, of kept dates and of scenes that give pixels only: a cloudy date costs one band.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import groupby
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from infer.contract import BANDS
from preproc.archive.placement import Target
from preproc.archive.read import REFLECTANCE, SCENE_CLASSES, BandKind, MissingDataError, Placed
from preproc.tile.mosaic import Observation, add_source, keeps_date, sources_used
from preproc.tile.parallel import in_order
from preproc.tile.radiometry import clear, remove_offset
from preproc.tile.record import FailedRead, OnMissing, StackRecord


class ReadsRasters(Protocol):
    """What a tile needs of the archive; see preproc.archive.read.Reader."""

    def read(self, href: str, target: Target, kind: BandKind) -> Placed:
        """Pixels of a raster on a target."""


@dataclass(frozen=True)
class Workplace:
    """What both sensors need to fill a tile."""

    tile: str
    """Name, for messages."""
    target: Target
    """Smallest window of the tile that holds the region's pixels."""
    inside_hw: NDArray[np.bool_]
    """The region's pixels in it."""
    reader: ReadsRasters
    pool: ThreadPoolExecutor
    ahead: int
    """Reads begun or waiting to be used."""
    min_clear: float
    on_missing: OnMissing


@dataclass(frozen=True)
class Cover:
    """What the scene classifications of one date say."""

    observation: Observation
    source_hw: NDArray[np.uint8]
    """Number of the scene that gives each pixel, from 1; 0 = not clear, or outside the region."""
    clear_pixels: int
    failure: FailedRead | None = None


@dataclass(frozen=True)
class _BandTask:
    cover: Cover
    number: int
    """Of the scene, from 1."""
    band: int
    """Index in BANDS."""


_BandResult = NDArray[np.uint16] | FailedRead


def _read_cover(work: Workplace, observation: Observation) -> Cover:
    source_hw = np.zeros(work.inside_hw.shape, np.uint8)
    region_pixels = int(work.inside_hw.sum())
    for number, scene in enumerate(observation.scenes, start=1):
        try:
            classes_hw = work.reader.read(scene.assets["SCL"], work.target, SCENE_CLASSES).values_hw
        except MissingDataError as error:
            return Cover(observation, source_hw, 0, FailedRead(scene.id, "SCL", str(error)))
        add_source(source_hw, number, clear(classes_hw) & work.inside_hw)
        if np.count_nonzero(source_hw) == region_pixels:
            break  # the scenes that follow cannot give a pixel any more
    return Cover(observation, source_hw, int(np.count_nonzero(source_hw)))


def read_covers(work: Workplace, observations: Sequence[Observation], record: StackRecord) -> list[Cover]:
    """First pass: the dates that are kept, each with the scene that gives each pixel.

    Raises:
        MissingDataError: if a file is missing for good and the policy is "fail".
        UnreachableError: if a server does not answer.
    """
    region_pixels = int(work.inside_hw.sum())
    kept = []
    for observation, cover in in_order(
        work.pool, lambda observation: _read_cover(work, observation), observations, ahead=work.ahead
    ):
        if cover.failure is not None:
            record.fail(observation, cover.failure, work.tile, work.on_missing)
        elif keeps_date(cover.clear_pixels, region_pixels, work.min_clear):
            kept.append(cover)
        else:
            share = round(cover.clear_pixels / region_pixels, 6)
            record.drop(observation, "too few clear pixels", clear_share=share)
    return kept


def _tasks(covers: Sequence[Cover]) -> Iterator[_BandTask]:
    for cover in covers:
        for number in sources_used(cover.source_hw, cover.observation.scenes):
            for band in range(len(BANDS)):
                yield _BandTask(cover, number, band)


def _read_band(work: Workplace, task: _BandTask) -> _BandResult:
    scene = task.cover.observation.scenes[task.number - 1]
    try:
        placed = work.reader.read(scene.assets[BANDS[task.band]], work.target, REFLECTANCE)
    except MissingDataError as error:
        return FailedRead(scene.id, BANDS[task.band], str(error))
    return remove_offset(placed.values_hw, scene.offset)


def read_bands(
    work: Workplace,
    covers: Sequence[Cover],
    record: StackRecord,
    write: Callable[[Observation, NDArray[np.uint16], NDArray[np.uint8]], None],
) -> None:
    """Second pass: hand the bands (h, w, 10) and the mask (h, w) of each kept date to `write`, dates ascending.

    Pixels that are not clear are 0 in both. A clear pixel keeps what the bands hold there, 0 included.

    Raises:
        MissingDataError: if a file is missing for good and the policy is "fail".
        UnreachableError: if a server does not answer.
    """
    results = in_order(work.pool, lambda task: _read_band(work, task), _tasks(covers), ahead=work.ahead)
    for _, parts in groupby(results, key=lambda result: id(result[0].cover)):
        _write_date(work, parts, record, write)


def _write_date(
    work: Workplace,
    parts: Iterator[tuple[_BandTask, _BandResult]],
    record: StackRecord,
    write: Callable[[Observation, NDArray[np.uint16], NDArray[np.uint8]], None],
) -> None:
    bands_hwb = np.zeros((*work.inside_hw.shape, len(BANDS)), np.uint16)
    failure: FailedRead | None = None
    cover: Cover | None = None
    for task, values in parts:
        cover = task.cover
        if isinstance(values, FailedRead):
            failure = failure or values
        else:
            here = cover.source_hw == task.number
            bands_hwb[..., task.band][here] = values[here]
    assert cover is not None  # a group has a member
    if failure is not None:
        record.fail(cover.observation, failure, work.tile, work.on_missing)
        return
    record.keep(cover.observation, sources_used(cover.source_hw, cover.observation.scenes))
    write(cover.observation, bands_hwb, (cover.source_hw > 0).astype(np.uint8))
