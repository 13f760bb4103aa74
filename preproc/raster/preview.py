"""Small pictures of mosaics: read from a COG's overviews, strip by strip, and written as PNG with the same bytes."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
from numpy.typing import NDArray
from rasterio.windows import Window

from infer.contract import PIXEL_SIZE, write_bytes
from preproc.raster.zones import ZoneGrid

LONGEST_SIDE = 1600
"""Pixels of a picture's longer side at most."""
_SMALL_SIDE = 640
"""A smaller picture is enlarged by a whole factor up to about this."""
_MARGIN = 0.02
"""Of the longer side, kept transparent around what is shown."""


def picture_step(width: int, height: int, longest: int = LONGEST_SIDE) -> int:
    """The power of two of pixels that become one, so that a picture of a raster is not larger than that."""
    step = 1
    while -(-max(width, height) // step) > longest:
        step *= 2
    return step


def preview_level(path: Path, longest: int = LONGEST_SIDE) -> int:
    """Overview level (0: full size) of a COG that fits a picture of that size, or its coarsest.

    Args:
        path: the COG.
        longest: pixels of the picture's longer side at most.
    """
    with rasterio.open(path) as source:
        side = max(source.width, source.height)
        levels = [1, *source.overviews(1)]
    return next((index for index, factor in enumerate(levels) if -(-side // factor) <= longest), len(levels) - 1)


def read_strips(paths: list[Path], level: int) -> Iterator[list[NDArray[Any]]]:
    """Strips (h, W, C) of one overview level of COGs on the same grid, from north to south.

    Args:
        paths: files of equal size.
        level: 0 for full size.
    """
    options = {} if level == 0 else {"overview_level": level - 1}
    sources = [rasterio.open(path, **options) for path in paths]
    try:
        height, width, step = sources[0].height, sources[0].width, int(sources[0].block_shapes[0][0])
        for row in range(0, height, step):
            window = Window(0, row, width, min(step, height - row))
            yield [np.moveaxis(source.read(window=window), 0, 2) for source in sources]
    finally:
        for source in sources:
            source.close()


@dataclass(frozen=True)
class Picture:
    """A picture and where it is, cut to what is not transparent."""

    rgba_hwc: NDArray[np.uint8]
    west: float
    """Easting of the left edge in metres."""
    north: float
    """Northing of the upper edge in metres."""
    pixel: float
    """Ground size of a pixel in metres."""

    @property
    def bounds(self) -> tuple[float, float, float, float]:
        """West, south, east, north in metres."""
        height, width, _ = self.rgba_hwc.shape
        return self.west, self.north - height * self.pixel, self.west + width * self.pixel, self.north


def picture(paths: list[Path], grid: ZoneGrid, colours: Callable[[list[NDArray[Any]]], NDArray[np.uint8]]) -> Picture:
    """A picture of COGs, with at most LONGEST_SIDE pixels a side; small ones are enlarged.

    Args:
        paths: files on the grid.
        grid: where they are.
        colours: strips (h, W, C), one a file -> (h, W, 4).
    """
    level = preview_level(paths[0])
    return framed(np.concatenate([colours(strips) for strips in read_strips(paths, level)]), grid, 2**level)


def framed(rgba_hwc: NDArray[np.uint8], grid: ZoneGrid, step: int) -> Picture:
    """A picture cut to what is not transparent, and enlarged if it is small.

    Args:
        rgba_hwc: (H, W, 4) of the whole grid.
        grid: where it is.
        step: pixels of the grid along one of the picture's.
    """
    top, bottom, left, right = _opaque_box(rgba_hwc)
    size = float(PIXEL_SIZE * step)
    factor = max(1, _SMALL_SIDE // max(bottom - top, right - left))
    cut_hwc = rgba_hwc[top:bottom, left:right].repeat(factor, axis=0).repeat(factor, axis=1)
    return Picture(cut_hwc, grid.west + left * size, grid.north - top * size, size / factor)


def _opaque_box(rgba_hwc: NDArray[np.uint8]) -> tuple[int, int, int, int]:
    """First and last + 1 row and column that are not transparent, with a margin; everything if nothing is opaque."""
    height, width, _ = rgba_hwc.shape
    rows, columns = (np.flatnonzero(rgba_hwc[..., 3].any(axis=axis)) for axis in (1, 0))
    if not len(rows):
        return 0, height, 0, width
    margin = max(1, round(_MARGIN * max(rows[-1] - rows[0], columns[-1] - columns[0])))
    return (
        max(0, int(rows[0]) - margin),
        min(height, int(rows[-1]) + 1 + margin),
        max(0, int(columns[0]) - margin),
        min(width, int(columns[-1]) + 1 + margin),
    )


def png_bytes(rgba_hwc: NDArray[np.uint8]) -> bytes:
    """A PNG without versions or dates in it."""
    from matplotlib.image import imsave  # here: tasks that make sheets draw nothing

    stream = io.BytesIO()
    imsave(stream, rgba_hwc, format="png", metadata={"Software": None})  # type: ignore[dict-item]  # None is documented: leaves the version out
    return stream.getvalue()


def write_png(path: Path, rgba_hwc: NDArray[np.uint8]) -> None:
    """Write a picture atomically."""
    write_bytes(path, png_bytes(rgba_hwc))
