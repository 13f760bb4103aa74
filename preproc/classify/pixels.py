"""Which pixels a label claims: geometries in metres on the 10 m lattice -> pixels of a tile. Pure: no files."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import shapely
from numpy.typing import NDArray

from infer.contract import PIXEL_SIZE, PlannedTile
from preproc.raster.zones import own_rows

_POINTS = (shapely.GeometryType.POINT, shapely.GeometryType.MULTIPOINT)
_ROWS = 256
"""Rows of pixel centres tested at a time."""


@dataclass(frozen=True)
class Shapes:
    """Features (N) in metres of one UTM zone, ready to be placed."""

    whole_n: NDArray[Any]
    """(N,) outlines as mapped, or None: not in this zone. Decide where labels contradict each other."""
    core_n: NDArray[Any]
    """(N,) outlines shrunk by the margin, where pixels are taken; points as they are."""
    kept_whole_n: NDArray[np.bool_]
    """(N,) polygons too small to be shrunk: their core is the whole."""
    tree: shapely.STRtree
    """Index over `whole_n`."""


@dataclass(frozen=True)
class Claims:
    """What the labels claim of one tile (M pixels, by row, then column)."""

    rows_m: NDArray[np.int32]
    cols_m: NDArray[np.int32]
    features_m: NDArray[np.int32]
    """Index of the feature whose pixel it is; the first of several of one class."""
    conflicts: int
    """Pixels left out because features of different classes claim them."""


def prepare_shapes(whole_n: NDArray[Any], shrink: float) -> Shapes:
    """Shrink polygons so that mixed edge pixels are left out; keep those whole that would lose all their pixels.

    Args:
        whole_n: (N,) geometries in metres, None where absent.
        shrink: metres.
    """
    present = ~shapely.is_missing(whole_n)
    polygons = present & ~np.isin(shapely.get_type_id(whole_n), _POINTS)
    core_n = whole_n.copy()
    kept_whole = np.zeros(len(whole_n), dtype=bool)
    if shrink > 0:
        core_n[polygons] = shapely.buffer(whole_n[polygons], -shrink)
        for index in np.flatnonzero(polygons):
            if not holds_centre(core_n[index]):
                kept_whole[index] = True
                core_n[index] = whole_n[index]
    for geometries in (whole_n, core_n):
        shapely.prepare(geometries[polygons])
    return Shapes(whole_n, core_n, kept_whole, shapely.STRtree(whole_n))


def holds_centre(polygon: Any) -> bool:
    """Whether a polygon contains the centre of any pixel of the lattice (centres at 10 k + 5 metres)."""
    if polygon.is_empty:
        return False
    west, south, east, north = polygon.bounds
    half = PIXEL_SIZE / 2
    x = np.arange(np.ceil((west - half) / PIXEL_SIZE), np.floor((east - half) / PIXEL_SIZE) + 1) * PIXEL_SIZE + half
    y = np.arange(np.ceil((south - half) / PIXEL_SIZE), np.floor((north - half) / PIXEL_SIZE) + 1) * PIXEL_SIZE + half
    shapely.prepare(polygon)
    return any(bool(_contains(polygon, x, y[start : start + _ROWS]).any()) for start in range(0, len(y), _ROWS))


def _contains(polygon: Any, x_w: NDArray[Any], y_h: NDArray[Any]) -> NDArray[np.bool_]:
    xx, yy = np.meshgrid(x_w, y_h)
    inside: NDArray[np.bool_] = shapely.contains_xy(polygon, xx, yy)
    return inside


def claim_pixels(tile: PlannedTile, shapes: Shapes, class_n: NDArray[np.int32]) -> Claims:
    """Place the features on a tile.

    A pixel belongs to a polygon if its centre is inside the shrunk outline, and to the point that it contains; beyond
    the equator to the other hemisphere's tile. Where features of different classes claim a pixel (by their whole
    outlines) it is left out. Within one class the feature that comes first in the file has it.

    Args:
        tile: where.
        shapes: features of the tile's zone.
        class_n: (N,) a number per class.
    """
    shape_hw = (tile.size, tile.size)
    class_hw = np.full(shape_hw, -1, dtype=np.int32)
    feature_hw = np.full(shape_hw, -1, dtype=np.int32)
    conflict_hw = np.zeros(shape_hw, dtype=bool)
    for index in np.sort(shapes.tree.query(shapely.box(*tile.bounds))):
        whole = shapes.whole_n[index]
        if shapely.get_type_id(whole) in _POINTS:
            window, inside, core = _point_pixels(tile, whole)
        else:
            window, inside, core = _polygon_pixels(tile, whole, shapes.core_n[index])
        classes, features = class_hw[window], feature_hw[window]  # views
        conflict_hw[window] |= inside & (classes >= 0) & (classes != class_n[index])
        classes[inside & (classes < 0)] = class_n[index]
        features[core & (features < 0)] = index
    claimed = (feature_hw >= 0) & own_rows(tile, np.arange(tile.size))[:, None]
    rows, cols = np.nonzero(claimed & ~conflict_hw)
    return Claims(
        rows.astype(np.int32), cols.astype(np.int32), feature_hw[rows, cols], int((claimed & conflict_hw).sum())
    )


_Window = tuple[slice, slice]


def _point_pixels(tile: PlannedTile, points: Any) -> tuple[_Window, NDArray[np.bool_], NDArray[np.bool_]]:
    x, y = shapely.get_coordinates(points).T
    cols = np.floor((x - tile.west) / PIXEL_SIZE).astype(np.int64)
    rows = np.floor((tile.north - y) / PIXEL_SIZE).astype(np.int64)
    here = (rows >= 0) & (rows < tile.size) & (cols >= 0) & (cols < tile.size)
    if not here.any():
        nothing = np.zeros((0, 0), dtype=bool)
        return (slice(0, 0), slice(0, 0)), nothing, nothing
    rows, cols = rows[here], cols[here]
    top, left = int(rows.min()), int(cols.min())
    inside = np.zeros((int(rows.max()) - top + 1, int(cols.max()) - left + 1), dtype=bool)
    inside[rows - top, cols - left] = True
    return (slice(top, top + inside.shape[0]), slice(left, left + inside.shape[1])), inside, inside


def _polygon_pixels(tile: PlannedTile, whole: Any, core: Any) -> tuple[_Window, NDArray[np.bool_], NDArray[np.bool_]]:
    west, south, east, north = whole.bounds
    left, right = _span((west - tile.west) / PIXEL_SIZE, (east - tile.west) / PIXEL_SIZE, tile.size)
    top, bottom = _span((tile.north - north) / PIXEL_SIZE, (tile.north - south) / PIXEL_SIZE, tile.size)
    x_w = tile.west + (np.arange(left, right) + 0.5) * PIXEL_SIZE
    y_h = tile.north - (np.arange(top, bottom) + 0.5) * PIXEL_SIZE
    window = (slice(top, bottom), slice(left, right))
    return window, _contains(whole, x_w, y_h), _contains(core, x_w, y_h)


def _span(low: float, high: float, size: int) -> tuple[int, int]:
    """First and one past the last pixel touched by an interval in pixels, clipped to the tile."""
    first, last = int(np.clip(np.floor(low), 0, size)), int(np.clip(np.ceil(high), 0, size))
    return first, max(first, last)
