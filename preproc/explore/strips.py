"""The embeddings of a zone, strip by strip: computed on all cores, written in order, in bounded memory."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from infer.contract import Run
from preproc.raster import strips as sheet_strips
from preproc.raster.cog import Layer, cog_writer
from preproc.raster.provenance import RunProvenance
from preproc.raster.zones import Sheet, ZoneGrid, sheets_of
from preproc.run.progress import Bar

_PIXELS = 1 << 15
"""Pixels that a core takes at a time, about: with 128 numbers 4 MiB as codes."""
_SIDE = 1024
"""Pixels along a square, about; whole tiles, so that each is opened once."""


@dataclass(frozen=True)
class Strip:
    """Some rows of a square of a zone."""

    grid: ZoneGrid
    """Of the zone."""
    top: int
    """First row, in the grid."""
    left: int
    """First column."""
    values_hwc: NDArray[Any]
    """(h, W, C) float32, NaN = nodata; or int8 codes."""
    scales_hw: NDArray[np.float32] | None
    """Of codes; NaN = nodata."""

    @property
    def valid_hw(self) -> NDArray[np.bool_]:
        """Where there is an embedding."""
        valid: NDArray[np.bool_] = ~np.isnan(self.values_hwc[..., 0] if self.scales_hw is None else self.scales_hw)
        return valid

    def rows(self, start: int, stop: int) -> Strip:
        """Some of its rows."""
        scales_hw = None if self.scales_hw is None else self.scales_hw[start:stop]
        return Strip(self.grid, self.top + start, self.left, self.values_hwc[start:stop], scales_hw)


def squares(grid: ZoneGrid) -> list[Sheet]:
    """The parts in which a zone is gone through."""
    size = grid.tiles[0].size
    return sheets_of(grid, max(1, _SIDE // size) * size)


def strips(run: Run, grid: ZoneGrid, square: Sheet, facts: RunProvenance) -> Iterator[Strip]:
    """A square of a zone from north to south; tiles that are missing, where that is allowed, are nodata.

    Raises:
        SmaltiError: if an embedding is damaged, or not as the plan says.
    """
    for part in sheet_strips.strips(run, square, facts, codes=facts.int8, values=not facts.int8, gaps=False):
        top = square.top + part.top
        if part.codes_hwc is not None:
            scales_hw = np.where(np.isfinite(part.scales_hw), part.scales_hw, np.float32(np.nan))
            yield Strip(grid, top, square.left, part.codes_hwc, scales_hw)
        else:
            assert part.values_hwc is not None
            yield Strip(grid, top, square.left, part.values_hwc, None)


def write_layer(
    run: Run,
    path: Path,
    grid: ZoneGrid,
    layer: Layer,
    facts: RunProvenance,
    compute: Callable[[Strip], NDArray[Any]],
    seen: Callable[[Strip, NDArray[Any]], None],
    bar: Bar,
) -> None:
    """Write a raster computed from the embeddings of its pixels.

    Args:
        run: whose embeddings.
        path: of the COG.
        grid: its zone.
        layer: what it holds.
        facts: about the embeddings.
        compute: (h, W) values of a strip, or (h, W, B) of several bands; called in several threads, as numpy lets go
            of Python's lock.
        seen: is told every strip with its values, in order.
        bar: of squares.
    """
    workers = len(os.sched_getaffinity(0))
    with ExitStack() as stack:
        writer = stack.enter_context(cog_writer(path, grid, layer))
        stack.enter_context(threadpool_limits(1))  # each part is a core's: products that divide themselves would wait
        pool = stack.enter_context(ThreadPoolExecutor(workers))
        for square in squares(grid):
            waiting: list[tuple[Strip, list[Any]]] = []
            for strip in strips(run, grid, square, facts):
                waiting.append((strip, [pool.submit(compute, part) for part in _parts(strip)]))
                if len(waiting) > 1:  # the next strip is read while this one is computed
                    _write(writer, *waiting.pop(0), seen)
            for strip, values in waiting:
                _write(writer, strip, values, seen)
            bar.advance(note=square.name)


def _parts(strip: Strip) -> list[Strip]:
    height, width = strip.values_hwc.shape[:2]
    step = max(1, _PIXELS // width)
    return [strip.rows(start, min(start + step, height)) for start in range(0, height, step)]


def _write(writer: Any, strip: Strip, parts: Sequence[Any], seen: Callable[..., None]) -> None:
    values_hw = np.concatenate([part.result() for part in parts])
    writer.write(strip.top, strip.left, values_hw if values_hw.ndim == 3 else values_hw[..., None])
    seen(strip, values_hw)
