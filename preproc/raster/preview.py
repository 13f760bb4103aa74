"""Small pictures of mosaics: read from a COG's overviews, strip by strip, and written as PNG with the same bytes."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
from matplotlib.image import imsave
from numpy.typing import NDArray
from rasterio.windows import Window

from infer.contract import write_bytes

LONGEST_SIDE = 1600
"""Pixels of a picture's longer side at most."""
_SMALL_SIDE = 640
"""A smaller picture is enlarged by a whole factor up to about this."""


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


def picture(paths: list[Path], colours: Callable[[list[NDArray[Any]]], NDArray[np.uint8]]) -> NDArray[np.uint8]:
    """(H, W, 4) picture of COGs, with at most LONGEST_SIDE pixels a side.

    Args:
        paths: files on the same grid.
        colours: strips (h, W, C), one a file -> (h, W, 4).
    """
    level = preview_level(paths[0])
    rgba = np.concatenate([colours(strips) for strips in read_strips(paths, level)])
    factor = max(1, _SMALL_SIDE // max(rgba.shape[:2]))
    return rgba.repeat(factor, axis=0).repeat(factor, axis=1)


def png_bytes(rgba_hwc: NDArray[np.uint8]) -> bytes:
    """A PNG without versions or dates in it."""
    stream = io.BytesIO()
    imsave(stream, rgba_hwc, format="png", metadata={"Software": None})  # type: ignore[dict-item]  # None is documented: leaves the version out
    return stream.getvalue()


def write_png(path: Path, rgba_hwc: NDArray[np.uint8]) -> None:
    """Write a picture atomically."""
    write_bytes(path, png_bytes(rgba_hwc))
