"""How much of each pixel a polygon covers. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from typing import Any

import numpy as np
import shapely
from numpy.typing import NDArray

from infer.contract import PIXEL_SIZE

_SIDE = 256
"""Rows and columns of pixels looked at at a time, so that memory does not grow with a polygon."""


def covered(
    polygon: Any, west: float, north: float, width: int, height: int, size: float = PIXEL_SIZE
) -> Iterator[tuple[slice, slice, NDArray[np.float64]]]:
    """The pixels of a raster that a polygon touches: rows, columns, and the share of each pixel (h, w) that it covers.

    Args:
        polygon: valid, in metres; prepared polygons are faster.
        west: left edge of the raster.
        north: its upper edge.
        width: columns of it.
        height: rows of it.
        size: of a pixel in metres.
    """
    if polygon.is_empty:
        return
    x0, y0, x1, y1 = polygon.bounds
    left, right = (int(np.clip(edge, 0, width)) for edge in (np.floor((x0 - west) / size), np.ceil((x1 - west) / size)))
    top, bottom = (
        int(np.clip(edge, 0, height)) for edge in (np.floor((north - y1) / size), np.ceil((north - y0) / size))
    )
    for first, start in product(range(top, bottom, _SIDE), range(left, right, _SIDE)):
        rows, columns = slice(first, min(bottom, first + _SIDE)), slice(start, min(right, start + _SIDE))
        x, y = np.meshgrid(
            west + np.arange(columns.start, columns.stop) * size, north - np.arange(rows.start, rows.stop) * size
        )
        boxes_hw = shapely.box(x, y - size, x + size, y)
        share_hw = np.zeros(boxes_hw.shape)
        touched_hw = shapely.intersects(polygon, boxes_hw)
        whole_hw = touched_hw & shapely.contains_properly(polygon, boxes_hw)
        share_hw[whole_hw] = 1.0
        edge_hw = touched_hw & ~whole_hw
        share_hw[edge_hw] = shapely.area(shapely.intersection(boxes_hw[edge_hw], polygon)) / size**2
        yield rows, columns, share_hw
