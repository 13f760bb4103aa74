"""Where a raster's pixels fall on a tile's grid: pure arithmetic, no reading.

Two ways. A raster on the tile's own lattice (same CRS, pixel an exact multiple of 10 m, corner on a multiple of 10 m)
is placed by whole numbers: nothing is warped, 10 m pixels are copied, coarser ones are repeated (nearest) or weighted
(bilinear). Any other raster is placed by projecting the centre of every target pixel into it.

Both follow the conventions of GDAL's warper: a target pixel has a value if its centre lies inside the raster, on a
pixel that is not nodata; bilinear weighs the four pixels around the centre, those that are nodata or outside the raster
left out and the rest weighted up; whole numbers are rounded half up. What a pixel gets depends on its position alone,
never on the window that was asked for: tiles have no seams.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pyproj import Transformer
from pyproj.exceptions import ProjError

from infer.contract import PIXEL_SIZE

_ON_LATTICE = 1e-6
"""Metres by which a corner may miss the lattice and still be on it: what is left of decimal fractions in files."""
_STRIP = 1 << 18
"""Target pixels that are warped at a time: bounds the memory of the floating-point arrays."""


class UnusableError(Exception):
    """A raster is not what it should be, or not where it should be, as far as its bytes go."""


@dataclass(frozen=True)
class RasterGrid:
    """The grid of a raster as its file says it."""

    crs: str
    """"EPSG:..." or WKT: anything that pyproj reads, equal text for equal CRS."""
    transform: tuple[float, float, float, float, float, float]
    """Affine coefficients (a, b, c, d, e, f): x = a * column + b * row + c, y = d * column + e * row + f."""
    height: int
    width: int


@dataclass(frozen=True)
class Target:
    """A window of a tile: `height` x `width` pixels of 10 m, north up."""

    epsg: int
    west: int
    """Easting of the left edge, metres."""
    north: int
    """Northing of the upper edge, metres."""
    height: int
    width: int


@dataclass(frozen=True)
class SourceWindow:
    """Rows and columns of a raster that must be read."""

    row: int
    column: int
    height: int
    width: int


@dataclass(frozen=True)
class _Axis:
    """One axis of an aligned placement, by whole numbers."""

    offset: int
    """Target pixels (10 m) from the raster's edge to the target's edge."""
    factor: int
    """Source pixel in target pixels."""
    size: int
    """Source pixels."""
    count: int
    """Target pixels."""

    def span(self, margin: int) -> tuple[int, int]:
        """First source index that is needed and the one after the last, within the raster."""
        first = self.offset // self.factor - margin
        last = (self.offset + self.count - 1) // self.factor + margin
        return max(first, 0), min(last + 1, self.size)

    @property
    def covered(self) -> bool:
        """Whether all neighbours that bilinear weighs lie within the raster."""
        half = self.factor // 2
        return self.offset >= half and self.offset + self.count + half <= self.size * self.factor

    def nearest(self) -> NDArray[np.int64]:
        """(count,) source index of each target pixel; -1 outside."""
        index = (self.offset + np.arange(self.count, dtype=np.int64)) // self.factor
        return np.where((index >= 0) & (index < self.size), index, -1)

    def linear(self) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.uint32], NDArray[np.uint32]]:
        """Lower and upper source index and their weights in 1 / (2 * factor); weight 0 outside the raster."""
        centre = 2 * (self.offset + np.arange(self.count, dtype=np.int64)) + 1  # in half target pixels
        inside = (centre > 0) & (centre < 2 * self.factor * self.size)
        lower = (centre - self.factor) // (2 * self.factor)
        upper_weight = (centre - self.factor) - lower * 2 * self.factor
        lower_weight = 2 * self.factor - upper_weight
        upper = lower + 1
        weights = (
            np.where(inside & (lower >= 0), lower_weight, 0).astype(np.uint32),
            np.where(inside & (upper < self.size), upper_weight, 0).astype(np.uint32),
        )
        return np.clip(lower, 0, self.size - 1), np.clip(upper, 0, self.size - 1), *weights


class Placement:
    """How one raster falls on one target."""

    window: SourceWindow | None
    """What to read, for `margin` as given; None if no pixel of the target lies inside the raster."""

    def nearest(self, source_yx: NDArray[Any]) -> NDArray[Any]:
        """(height, width) of the target from the window's pixels; 0 outside the raster."""
        raise NotImplementedError

    def bilinear(self, source_yx: NDArray[np.uint16]) -> NDArray[np.uint16]:
        """(height, width) of the target from the window's pixels, 0 being nodata and the result outside the raster."""
        raise NotImplementedError


class _Aligned(Placement):
    def __init__(self, rows: _Axis, columns: _Axis, margin: int) -> None:
        self._rows, self._columns = rows, columns
        self._covered = rows.covered and columns.covered
        self.window = None
        row, row_end = rows.span(margin)
        column, column_end = columns.span(margin)
        if (rows.nearest() >= 0).any() and (columns.nearest() >= 0).any():
            self.window = SourceWindow(row, column, row_end - row, column_end - column)
        # 10 m pixels that cover the target are its pixels, one for one.
        self._copied = rows.factor == 1 and margin == 0 and self._covered

    def nearest(self, source_yx: NDArray[Any]) -> NDArray[Any]:
        assert self.window is not None
        if self._copied:
            return source_yx
        rows, columns = self._rows.nearest(), self._columns.nearest()
        target = np.zeros((len(rows), len(columns)), source_yx.dtype)
        inside_rows, inside_columns = rows >= 0, columns >= 0
        picked = source_yx[np.ix_(rows[inside_rows] - self.window.row, columns[inside_columns] - self.window.column)]
        target[np.ix_(inside_rows, inside_columns)] = picked
        return target

    def bilinear(self, source_yx: NDArray[np.uint16]) -> NDArray[np.uint16]:
        assert self.window is not None
        if self._rows.factor == 1:
            return self.nearest(source_yx)
        total = self._weigh(source_yx.astype(np.uint32))
        if self._covered and source_yx.all():  # the usual case: every weight counts, and their sum is a constant
            whole = (2 * self._rows.factor) ** 2
            total += np.uint32(whole // 2)
            total //= np.uint32(whole)
            return total.astype(np.uint16)
        weight = self._weigh((source_yx > 0).astype(np.uint32))
        values = _divide_half_up(total, weight)
        values[self.nearest(source_yx) == 0] = 0
        return values

    def _weigh(self, values_yx: NDArray[np.uint32]) -> NDArray[np.uint32]:
        assert self.window is not None
        # Columns first, because the window has fewer rows than the target; in place, because this is called for every
        # 20 m band of every date.
        left, right, left_weight, right_weight = self._columns.linear()
        left, right = self._within(left, self.window.column, values_yx.shape[1], right)
        columns = values_yx.take(left, axis=1)
        columns *= left_weight
        other = values_yx.take(right, axis=1)
        other *= right_weight
        columns += other
        lower, upper, lower_weight, upper_weight = self._rows.linear()
        lower, upper = self._within(lower, self.window.row, values_yx.shape[0], upper)
        weighed = columns.take(lower, axis=0)
        weighed *= lower_weight[:, None]
        other = columns.take(upper, axis=0)
        other *= upper_weight[:, None]
        weighed += other
        return weighed

    @staticmethod
    def _within(
        lower: NDArray[np.int64], start: int, size: int, upper: NDArray[np.int64]
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        # Pixels outside the raster have weight 0 and may point anywhere in the window.
        return np.clip(lower - start, 0, size - 1), np.clip(upper - start, 0, size - 1)


def _divide_half_up(total: NDArray[np.uint32], weight: NDArray[np.uint32]) -> NDArray[np.uint16]:
    """total / weight rounded half up, 0 where the weight is 0."""
    safe = np.maximum(weight, 1)
    rounded: NDArray[np.uint16] = ((2 * total + weight) // (2 * safe)).astype(np.uint16)
    return rounded


class _Warped(Placement):
    def __init__(self, grid: RasterGrid, target: Target, margin: int) -> None:
        x, y = _centres(grid.crs, target)
        a, b, c, d, e, f = grid.transform
        determinant = a * e - b * d
        self._columns = (e * (x - c) - b * (y - f)) / determinant
        self._rows = (a * (y - f) - d * (x - c)) / determinant
        # A centre that cannot be projected is infinite: outside.
        self._inside = (self._columns >= 0) & (self._columns < grid.width)
        self._inside &= (self._rows >= 0) & (self._rows < grid.height)
        self._grid = grid
        self._shape = (target.height, target.width)
        self.window = None
        if self._inside.any():
            row, row_end = _span(self._rows[self._inside], margin, grid.height)
            column, column_end = _span(self._columns[self._inside], margin, grid.width)
            self.window = SourceWindow(row, column, row_end - row, column_end - column)

    def nearest(self, source_yx: NDArray[Any]) -> NDArray[Any]:
        assert self.window is not None
        target = np.zeros(self._shape, source_yx.dtype)
        rows = self._rows[self._inside].astype(np.int64) - self.window.row
        columns = self._columns[self._inside].astype(np.int64) - self.window.column
        target[self._inside] = source_yx[rows, columns]
        return target

    def bilinear(self, source_yx: NDArray[np.uint16]) -> NDArray[np.uint16]:
        height, width = self._shape
        target = np.zeros(self._shape, np.uint16)
        strip = max(1, _STRIP // width)
        for start in range(0, height, strip):
            part = slice(start, start + strip)
            inside = self._inside[part]
            target[part][inside] = self._interpolate(source_yx, self._rows[part][inside], self._columns[part][inside])
        return target

    def _interpolate(
        self, source_yx: NDArray[np.uint16], rows: NDArray[np.float64], columns: NDArray[np.float64]
    ) -> NDArray[np.uint16]:
        assert self.window is not None
        row, column = np.floor(rows - 0.5), np.floor(columns - 0.5)
        row_share, column_share = rows - 0.5 - row, columns - 0.5 - column
        total, weight = np.zeros(len(rows)), np.zeros(len(rows))
        for down in (0, 1):
            for right in (0, 1):
                share = (row_share if down else 1 - row_share) * (column_share if right else 1 - column_share)
                at_row, at_column = row.astype(np.int64) + down, column.astype(np.int64) + right
                exists = (
                    (at_row >= 0) & (at_row < self._grid.height) & (at_column >= 0) & (at_column < self._grid.width)
                )
                at_row = np.clip(at_row - self.window.row, 0, source_yx.shape[0] - 1)
                at_column = np.clip(at_column - self.window.column, 0, source_yx.shape[1] - 1)
                value = source_yx[at_row, at_column]
                share = np.where(exists & (value > 0), share, 0.0)
                total += share * value
                weight += share
        own = source_yx[rows.astype(np.int64) - self.window.row, columns.astype(np.int64) - self.window.column]
        mean = np.divide(total, weight, out=np.zeros_like(total), where=(own > 0) & (weight > 0))
        return np.floor(mean + 0.5).astype(np.uint16)


def _span(values: NDArray[np.float64], margin: int, size: int) -> tuple[int, int]:
    return max(int(values.min()) - margin, 0), min(int(values.max()) + margin + 1, size)


@functools.lru_cache(maxsize=8)
def _centres(crs: str, target: Target) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Centres of the target's pixels in `crs`, (height, width) each. Cached: all rasters of a CRS share them."""
    x = target.west + PIXEL_SIZE * (np.arange(target.width) + 0.5)
    y = target.north - PIXEL_SIZE * (np.arange(target.height) + 0.5)
    grid_x, grid_y = np.meshgrid(x, y)
    return project(grid_x, grid_y, f"EPSG:{target.epsg}", crs)


def project(
    x: NDArray[np.float64], y: NDArray[np.float64], source: str, target: str
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Coordinates in another CRS (x before y in both); infinite where it has none.

    Raises:
        UnusableError: if nothing leads from one CRS to the other (another planet's, heights, a building site's).
    """
    if source == target:
        return x, y
    try:
        projected_x, projected_y = Transformer.from_crs(source, target, always_xy=True).transform(x, y)
    except ProjError as error:
        text = f"there is no transformation between {_short(source)} and {_short(target)}"
        raise UnusableError(f"its pixels cannot be placed: {text}") from error
    return projected_x, projected_y


def _short(crs: str) -> str:
    """The name of a CRS that is given as WKT."""
    name = crs.partition('"')[2].partition('"')[0]
    return name[:80] or crs[:80]


def _whole(value: float) -> int | None:
    nearest = round(value)
    return nearest if abs(value - nearest) * PIXEL_SIZE <= _ON_LATTICE else None


def _aligned_axes(grid: RasterGrid, target: Target) -> tuple[_Axis, _Axis] | None:
    a, b, c, d, e, f = grid.transform
    if grid.crs != f"EPSG:{target.epsg}" or b != 0 or d != 0 or a != -e:
        return None
    factor = _whole(a / PIXEL_SIZE)
    left, top = _whole((target.west - c) / PIXEL_SIZE), _whole((f - target.north) / PIXEL_SIZE)
    if factor is None or not 1 <= factor <= 64 or left is None or top is None:
        return None
    return _Axis(top, factor, grid.height, target.height), _Axis(left, factor, grid.width, target.width)


def place(grid: RasterGrid, target: Target, *, bilinear: bool) -> Placement:
    """Work out how a raster falls on a target.

    Args:
        grid: the raster's.
        target: the window of the tile.
        bilinear: whether neighbours are needed: one more pixel is read on every side then.
    """
    axes = _aligned_axes(grid, target)
    if axes is not None:
        return _Aligned(*axes, 1 if bilinear and axes[0].factor > 1 else 0)
    margin = 1 if bilinear else 0
    return _Warped(grid, target, margin)
