"""The embeddings of a zone, strip by strip: computed on all cores, written in order, in bounded memory."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from infer.contract import Embedding, PlannedTile, Run, SmaltiError, read_embedding
from preproc.raster.cog import Layer, cog_writer
from preproc.raster.zones import ZoneGrid
from preproc.run.progress import Bar

_PIXELS = 1 << 15
"""Pixels of a strip, about: with 128 numbers 4 MiB as codes."""


@dataclass(frozen=True)
class Strip:
    """Some rows of a tile."""

    tile: PlannedTile
    top: int
    """First row, in the tile."""
    values_hwc: NDArray[Any]
    """(h, W, C) float32, or int8 codes."""
    scales_hw: NDArray[np.float32] | None
    """Of codes; NaN = nodata."""

    @property
    def valid_hw(self) -> NDArray[np.bool_]:
        """Where there is an embedding."""
        valid: NDArray[np.bool_] = ~np.isnan(self.values_hwc[..., 0] if self.scales_hw is None else self.scales_hw)
        return valid


def strips(run: Run, tile: PlannedTile) -> Iterator[Strip]:
    """A tile from north to south.

    Raises:
        SmaltiError: if its embedding is missing, damaged or of another size than the plan's.
    """
    embedding: Embedding = read_embedding(run.embeddings, tile.name)
    height, width, _ = embedding.shape_hwc
    if (height, width) != (tile.size, tile.size):
        raise SmaltiError(
            f"{run.embeddings / tile.name}.npy: {height} x {width} pixels, the plan says {tile.size} x {tile.size}: "
            f"run `smalti infer {run.quoted}` again"
        )
    step = max(1, _PIXELS // width)
    for top in range(0, height, step):
        rows = slice(top, min(top + step, height))
        scales = None if embedding.scales_hw is None else np.asarray(embedding.scales_hw[rows])
        values = embedding.window(rows, slice(None)) if scales is None else np.asarray(embedding.values_hwc[rows])
        yield Strip(tile, top, values, scales)


def write_layer(
    run: Run,
    path: Path,
    grid: ZoneGrid,
    layer: Layer,
    compute: Callable[[Strip], NDArray[Any]],
    seen: Callable[[Strip, NDArray[Any]], None],
    bar: Bar,
    *,
    missing: Collection[str] = (),
) -> None:
    """Write a raster computed from the embeddings of its pixels.

    Args:
        run: whose embeddings.
        path: of the COG.
        grid: its zone.
        layer: what it holds.
        compute: (h, W) values of a strip, or (h, W, B) of several bands; called in several threads, as numpy lets go
            of Python's lock.
        seen: is told every strip with its values, in order.
        bar: of tiles.
        missing: names of tiles that are nodata, having no embedding.
    """
    workers = len(os.sched_getaffinity(0))
    with ExitStack() as stack:
        writer = stack.enter_context(cog_writer(path, grid, layer))
        stack.enter_context(threadpool_limits(1))  # each strip is a core's: products that divide themselves would wait
        pool = stack.enter_context(ThreadPoolExecutor(workers))
        for tile in grid.tiles:
            if tile.name in missing:
                bar.advance(note=tile.name)
                continue
            row, column = grid.place(tile)
            waiting = []
            for strip in strips(run, tile):
                waiting.append((strip, pool.submit(compute, strip)))
                if len(waiting) > workers:
                    _write(writer, row, column, *waiting.pop(0), seen)
            for strip, values in waiting:
                _write(writer, row, column, strip, values, seen)
            bar.advance(note=tile.name)


def _write(writer: Any, row: int, column: int, strip: Strip, values: Any, seen: Callable[..., None]) -> None:
    values_hw = values.result()
    writer.write(row + strip.top, column, values_hw if values_hw.ndim == 3 else values_hw[..., None])
    seen(strip, values_hw)
