"""Tiles of the web's grid (spherical Mercator, 256 pixels) from the rasters of a run: values, not colours."""

from __future__ import annotations

import math
import os
import warnings
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
import shapely
from numpy.typing import NDArray
from pyproj import Transformer
from rasterio.enums import Resampling
from rasterio.errors import NotGeoreferencedWarning
from rasterio.io import MemoryFile
from rasterio.transform import Affine
from rasterio.warp import reproject

from infer.contract import PIXEL_SIZE, PlannedTile, write_bytes

SIDE = 256
MERCATOR = 3857
_HALF = math.pi * 6378137.0
"""Half of the world's width in metres of the projection."""
_PLACELESS = Affine.scale(10, -10)
"""Of a picture: without any GDAL warns."""
_EDGE = 20
"""Parts of a tile's edge whose ends are looked at, for it is bent in another projection."""
_TOP_TILES = 2
"""Tiles along the longer side of the coarsest level, at most."""

Place = tuple[int, int]
"""Column and row of a tile, from the north-west."""


@dataclass(frozen=True)
class Grid:
    """The tiles that hold pixels of a run, level by level."""

    coarsest: int
    finest: int
    places: tuple[frozenset[Place], ...]
    """Of each level from `coarsest` on."""
    box: tuple[float, float, float, float]
    """West, north, east, south of the run's tiles, 0 to 1 over the world; east is beyond 1 across the antimeridian."""

    def within(self, most: int) -> Grid:
        """Its coarser levels, as many as hold so many tiles; one at least."""
        levels = len(self.places)
        while levels > 1 and sum(map(len, self.places[:levels])) > most:
            levels -= 1
        return Grid(self.coarsest, self.coarsest + levels - 1, self.places[:levels], self.box)

    @property
    def tiles(self) -> int:
        """Over all levels."""
        return sum(len(places) for places in self.places)


def tile_metres(level: int) -> float:
    """Side of a tile in metres of the projection."""
    return 2 * _HALF / float(2**level)


def grid_of(tiles: Sequence[PlannedTile], latitude: float, *, finest: int | None = None) -> Grid:
    """The pyramid of a run's tiles: its finest pixels are about as small as the run's.

    Args:
        tiles: of the plan.
        latitude: of the region, by which the projection stretches.
        finest: level; None finds it.
    """
    if finest is None:
        ground = math.cos(math.radians(latitude))
        finest = min(16, math.ceil(math.log2(2 * _HALF * ground / (SIDE * PIXEL_SIZE)) - 0.25))
    places = frozenset(place for tile in tiles for place in _touched(tile, finest))
    levels = [places]
    while len(levels) <= finest and _extent(levels[0]) > _TOP_TILES:
        levels.insert(0, frozenset((column // 2, row // 2) for column, row in levels[0]))
    return Grid(finest - len(levels) + 1, finest, tuple(levels), _box(list(map(_world, tiles))))


def _world(tile: PlannedTile) -> tuple[float, float, float, float]:
    """West, north, east, south of a tile, 0 to 1 over the world, to the east beyond it where it crosses 180 degrees."""
    outline = shapely.segmentize(shapely.box(*tile.bounds), tile.size * PIXEL_SIZE / _EDGE)
    across, down = _on_world(tile, *shapely.get_coordinates(outline).T)
    return float(across.min()), float(down.min()), float(across.max()), float(down.max())


def _on_world(tile: PlannedTile, x: Any, y: Any) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Places of a tile's zone, 0 to 1 over the world, those beyond 180 degrees on the side of the others."""
    x, y = Transformer.from_crs(tile.epsg, MERCATOR, always_xy=True).transform(x, y)
    across, down = (np.asarray(x) + _HALF) / (2 * _HALF), (_HALF - np.asarray(y)) / (2 * _HALF)
    return across + ((across < 0.5) & (np.ptp(across) > 0.5)), down


def region_box(grid: Grid, degrees: Sequence[float]) -> tuple[float, float, float, float]:
    """The part of a grid's box that a region (west, south, east, north in degrees) takes up; all, if none. Pure."""
    west, south, east, north = degrees
    left, right = (west + 180) / 360, (east + 180) / 360 + (east < west)
    upper, lower = ((1 - math.asinh(math.tan(math.radians(value))) / math.pi) / 2 for value in (north, south))
    turn = 1 if right <= grid.box[0] else 0
    found = (
        max(left + turn, grid.box[0]),
        max(upper, grid.box[1]),
        min(right + turn, grid.box[2]),
        min(lower, grid.box[3]),
    )
    return found if found[0] < found[2] and found[1] < found[3] else grid.box


def corners_of(tile: PlannedTile) -> list[list[float]]:
    """North-west, north-east, south-east and south-west of a tile, 0 to 1 over the world, to a centimetre."""
    west, south, east, north = tile.bounds
    across, down = _on_world(tile, [west, east, east, west], [north, north, south, south])
    return [[round(a, 10), round(b, 10)] for a, b in zip(across.tolist(), down.tolist(), strict=True)]


def _box(worlds: Sequence[tuple[float, float, float, float]]) -> tuple[float, float, float, float]:
    """Around all of them; beginning in the east, where that is the shorter way round."""

    def around(turn: float) -> tuple[float, float, float, float]:
        shifted = [(w + (w < turn), n, e + (w < turn), s) for w, n, e, s in worlds]
        west, north, east, south = zip(*shifted, strict=True)
        return min(west), min(north), max(east), max(south)

    plain, turned = around(0.0), around(0.5)
    return turned if turned[2] - turned[0] < plain[2] - plain[0] else plain


def _touched(tile: PlannedTile, level: int) -> Iterable[Place]:
    west, north, east, south = (value * 2**level for value in _world(tile))
    columns, rows = range(math.floor(west), math.floor(east) + 1), range(math.floor(north), math.floor(south) + 1)
    return [(column % 2**level, row) for column in columns for row in rows]


def _extent(places: frozenset[Place]) -> int:
    columns, rows = zip(*places, strict=True)
    return int(max(max(columns) - min(columns), max(rows) - min(rows))) + 1


def write_pyramid(
    folder: Path, rasters: Sequence[Path], bands: Sequence[int], nodata: int, grid: Grid, done: Callable[[], None]
) -> int:
    """Write {level}/{column}/{row}.png: 8-bit grey, the values as they are; tiles without any are left out.

    Args:
        folder: of the layer.
        rasters: GeoTIFFs or VRTs of uint8, one a zone.
        bands: which, from 1; several are written below each other. All of them have no data at the same pixels.
        nodata: of the raster.
        grid: which tiles.
        done: called after each tile.

    Returns:
        Bytes written.
    """

    def write(level: int, column: int, row: int) -> int:
        values_bhw = read_tile(rasters, bands, nodata, level, column, row)
        if not (values_bhw != nodata).any():
            return 0
        content = _png(values_bhw.reshape(-1, SIDE))
        write_bytes(folder / str(level) / str(column) / f"{row}.png", content)
        return len(content)

    levels = enumerate(grid.places, start=grid.coarsest)
    todo = [(level, *place) for level, places in levels for place in sorted(places)]
    written, pool = 0, ThreadPoolExecutor(len(os.sched_getaffinity(0)))  # GDAL lets go of Python's lock
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)  # of arrays: rasterio's own filter is not for threads
        try:
            for size in pool.map(lambda which: write(*which), todo):
                written += size
                done()
        finally:
            pool.shutdown(cancel_futures=True)
    return written


def read_tile(
    rasters: Sequence[Path], bands: Sequence[int], nodata: int, level: int, column: int, row: int
) -> NDArray[np.uint8]:
    """(bands, 256, 256) values of a tile: of the nearest pixel, from the overview that is just finer."""
    side = tile_metres(level)
    west, north, pixel = column * side - _HALF, _HALF - row * side, side / SIDE
    found = np.full((len(bands), SIDE, SIDE), nodata, np.uint8)
    for path in rasters:
        with rasterio.open(path) as whole:
            factors = whole.overviews(bands[0])
        ground = pixel / PIXEL_SIZE * _shrink(north - side / 2)
        finer = [index for index, factor in enumerate(factors) if factor <= ground]
        options = {"overview_level": finer[-1]} if finer else {}
        values_bhw = np.full(found.shape, nodata, np.uint8)
        with rasterio.open(path, **options) as source:
            reproject(  # a band that has no data where others have some must be read alone: GDAL masks them all
                rasterio.band(source, list(bands)),
                values_bhw,
                src_nodata=nodata,
                dst_transform=Affine(pixel, 0, west, 0, -pixel, north),
                dst_crs=f"EPSG:{MERCATOR}",
                dst_nodata=nodata,
                resampling=Resampling.nearest,
            )
        here = values_bhw != nodata
        found[here] = values_bhw[here]
    return found


def _shrink(y: float) -> float:
    """Metres on the ground of one metre of the projection."""
    return 1 / math.cosh(y / 6378137.0)


def _png(values_hw: NDArray[np.uint8]) -> bytes:
    size = {"width": SIDE, "height": len(values_hw)}
    with MemoryFile() as memory:
        with memory.open(driver="PNG", **size, count=1, dtype="uint8", transform=_PLACELESS) as target:
            target.write(values_hw, 1)
        return bytes(memory.read())
