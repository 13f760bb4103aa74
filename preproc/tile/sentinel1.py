"""Sentinel-1: from scenes of one orbit direction to a stack of scaled dB of one tile.

A scene has a value at a pixel if VV or VH, as they are stored, is not 0: the format's own meaning of "missing".
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from infer.contract import SAR_BANDS
from preproc.archive.read import BACKSCATTER, MissingDataError
from preproc.tile.mosaic import Observation, add_source, sources_used
from preproc.tile.parallel import in_order
from preproc.tile.radiometry import scaled_db
from preproc.tile.record import FailedRead, StackRecord
from preproc.tile.sentinel2 import Workplace


@dataclass(frozen=True)
class _Date:
    values_hwp: NDArray[np.int16]
    source_hw: NDArray[np.uint8]
    failure: FailedRead | None = None


def _read_date(work: Workplace, observation: Observation) -> _Date:
    shape = work.inside_hw.shape
    values_hwp, source_hw = np.zeros((*shape, len(SAR_BANDS)), np.int16), np.zeros(shape, np.uint8)
    region_pixels = int(work.inside_hw.sum())
    for number, scene in enumerate(observation.scenes, start=1):
        scene_hwp = np.zeros_like(values_hwp)
        for index, name in enumerate(SAR_BANDS):
            try:
                placed = work.reader.read(scene.assets[name], work.target, BACKSCATTER)
            except MissingDataError as error:
                return _Date(values_hwp, source_hw, FailedRead(scene.id, name, str(error)))
            scene_hwp[..., index] = scaled_db(placed.values_hw, placed.nodata)
        if add_source(source_hw, number, scene_hwp.any(axis=-1) & work.inside_hw):
            here = source_hw == number
            values_hwp[here] = scene_hwp[here]
        if np.count_nonzero(source_hw) == region_pixels:
            break  # the scenes that follow cannot give a pixel any more
    return _Date(values_hwp, source_hw)


def read_orbit(
    work: Workplace,
    observations: Sequence[Observation],
    record: StackRecord,
    write: Callable[[Observation, NDArray[np.int16]], None],
) -> None:
    """Hand VV and VH (h, w, 2) of each date that has a value inside the region to `write`, dates ascending.

    Raises:
        MissingDataError: if a file is missing for good and the policy is "fail".
        UnreachableError: if a server does not answer.
    """
    for observation, date in in_order(
        work.pool, lambda observation: _read_date(work, observation), observations, ahead=work.ahead
    ):
        if date.failure is not None:
            record.fail(observation, date.failure, work.tile, work.on_missing)
        elif not date.source_hw.any():
            record.drop(observation, "no value inside the region")
        else:
            record.keep(observation, sources_used(date.source_hw, observation.scenes))
            write(observation, date.values_hwp)
