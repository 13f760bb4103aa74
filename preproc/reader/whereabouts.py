"""Where a catalogue says that a raster lies, and whether the raster's own header agrees: pure arithmetic.

A file that is shifted, or has another zone's numbers or swapped axes, can be read like any other: only its item tells.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np

from preproc.reader.placement import RasterGrid, UnusableError, project

Box = tuple[float, float, float, float]
"""West, south, east, north."""

_PIXELS = 0.9
"""By which the edges of a declared box may be off: half a pixel for other conventions, but not a whole one."""
_COARSE = 0.03
"""Of its longer side by which a raster may fall short of its item's outline: outlines are coarse, or ignore terrain."""
_LEAST_DEGREES = 30 / 111_320
"""The same for small rasters: 30 m."""
_EDGE_POINTS = 9


@dataclass(frozen=True)
class Whereabouts:
    """What an item says of the place of one of its rasters."""

    crs: str | None
    """"EPSG:..." of the boxes, if it says so."""
    boxes: tuple[Box, ...]
    """What it declares (proj:bbox, proj:transform with proj:shape), in units of `crs`; none if it declares nothing."""
    outline: Box
    """Bounds of the item's footprint in degrees; east may be above 180."""


def check_place(grid: RasterGrid, said: Whereabouts) -> None:
    """Make sure that a raster is where its item says.

    A declared box in the raster's own CRS decides. Otherwise footprint and raster must lie in one another: footprints
    are often smaller (where the data are), files may be cut out.

    Raises:
        UnusableError: if it is not; with both boxes.
    """
    own = _box(grid)
    a, b, _, d, e, _ = grid.transform
    across, down = float(np.hypot(a, d)) * _PIXELS, float(np.hypot(b, e)) * _PIXELS
    fits = any(_near(own, box, across, down) for box in said.boxes)
    if said.boxes and said.crs == grid.crs:
        if not fits:
            raise UnusableError(_text(own, said.boxes[0], f"in {grid.crs}", 1))
        return
    if fits and said.crs is None:
        return
    found = _degrees(grid)
    outline, shrink = said.outline, _shrink(said.outline)
    if outline[2] > 180 and found[2] < outline[0]:  # one of them lies across the antimeridian, the other beyond it
        found = _eastward(found)
    elif found[2] > 180 and outline[2] < found[0]:
        outline = _eastward(outline)
    margin = max(_LEAST_DEGREES, _COARSE * max(found[3] - found[1], (found[2] - found[0]) * shrink))
    wide = margin / shrink
    if not _within(outline, found, wide, margin) and not _within(found, outline, wide, margin):
        raise UnusableError(_text(found, outline, "in degrees", 4))


def _text(own: Box, said: Box, units: str, digits: int) -> str:
    shown = [", ".join(f"{value:.{digits}f}" for value in box) for box in (own, said)]
    return (
        f"is not where its item says: the file lies in {shown[0]} (west, south, east, north {units}), "
        f"the item says {shown[1]}"
    )


def _shrink(box: Box) -> float:
    """Length of a degree of longitude in degrees of latitude, halfway up."""
    return max(0.05, float(np.cos(np.radians((box[1] + box[3]) / 2))))


def _eastward(box: Box) -> Box:
    return box[0] + 360, box[1], box[2] + 360, box[3]


def _near(one: Box, other: Box, across: float, down: float) -> bool:
    return all(abs(p - q) <= limit for p, q, limit in zip(one, other, (across, down) * 2, strict=True))


def _within(inner: Box, outer: Box, wide: float, high: float) -> bool:
    return (
        inner[0] >= outer[0] - wide
        and inner[1] >= outer[1] - high
        and inner[2] <= outer[2] + wide
        and inner[3] <= outer[3] + high
    )


def _box(grid: RasterGrid) -> Box:
    return affine_box(grid.transform, grid.height, grid.width)


def affine_box(transform: tuple[float, float, float, float, float, float], height: float, width: float) -> Box:
    """Bounds of a raster in its CRS.

    Args:
        transform: affine coefficients as in RasterGrid.
        height: rows.
        width: columns.
    """
    a, b, c, d, e, f = transform
    x = [c + a * column + b * row for column in (0, width) for row in (0, height)]
    y = [f + d * column + e * row for column in (0, width) for row in (0, height)]
    return min(x), min(y), max(x), max(y)


@functools.lru_cache(maxsize=1024)
def _degrees(grid: RasterGrid) -> Box:
    """Bounds of a raster in degrees; east is above 180 if it lies across the antimeridian.

    Raises:
        UnusableError: if it lies nowhere on Earth.
    """
    steps = np.linspace(0, 1, _EDGE_POINTS)
    columns, rows = (part.ravel() for part in np.meshgrid(steps * grid.width, steps * grid.height))
    a, b, c, d, e, f = grid.transform
    longitude, latitude = project(c + a * columns + b * rows, f + d * columns + e * rows, grid.crs, "EPSG:4326")
    if not (np.isfinite(longitude).all() and np.isfinite(latitude).all()):
        west, south, east, north = _box(grid)
        place = f"{west:.1f}, {south:.1f}, {east:.1f}, {north:.1f} (west, south, east, north)"
        raise UnusableError(f"lies nowhere on Earth: {place} in {grid.crs[:80]}")
    if longitude.max() - longitude.min() > 180:
        longitude = np.where(longitude < 0, longitude + 360, longitude)
    return float(longitude.min()), float(latitude.min()), float(longitude.max()), float(latitude.max())
