"""What a STAC item declares about where its rasters lie: proj:bbox, proj:transform and proj:shape, its footprint."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

from shapely.geometry import MultiPolygon

from preproc.reader.whereabouts import Box, Whereabouts, affine_box


def whereabouts(
    item: Mapping[str, Any], assets: Mapping[str, str], epsg: int | None, outline: MultiPolygon
) -> dict[str, Whereabouts]:
    """Where an item says that its rasters lie.

    Args:
        item: the item.
        assets: our band name -> key of the asset.
        epsg: CRS that the item declares.
        outline: its footprint in degrees, cut at the antimeridian.

    Returns:
        Band -> place. What is declared in a form that is not understood is left out.
    """
    bounds = _bounds(outline)
    properties = item.get("properties") or {}
    places = {}
    for band, key in assets.items():
        asset = item["assets"].get(key)
        if isinstance(asset, Mapping):
            boxes = tuple(_boxes(asset)) or tuple(_boxes(properties))
            own = asset.get("proj:epsg") or str(asset.get("proj:code") or "").upper().removeprefix("EPSG:") or epsg
            places[band] = Whereabouts(None if own is None else f"EPSG:{own}", boxes, bounds)
    return places


def _boxes(place: Mapping[str, Any]) -> Iterator[Box]:
    """Every box that an asset (or the item for all of them) can be understood to declare."""
    box = _numbers(place.get("proj:bbox"))
    if len(box) in (4, 6):
        half = len(box) // 2
        yield box[0], box[1], box[half], box[half + 1]
    shape, transform = _numbers(place.get("proj:shape")), _numbers(place.get("proj:transform"))
    if len(shape) == 2 and len(transform) in (6, 9):
        a, b, c, d, e, f = transform[:6]
        yield affine_box((a, b, c, d, e, f), *shape)
        yield affine_box((b, c, a, e, f, d), *shape)  # some write it in the order of GDAL


def _numbers(values: Any) -> list[float]:
    """A list of finite numbers, or nothing."""
    if not isinstance(values, list | tuple) or not all(type(value) in (int, float) for value in values):
        return []
    try:
        numbers = [float(value) for value in values]
    except OverflowError:
        return []
    return numbers if all(map(math.isfinite, numbers)) else []


def _bounds(outline: MultiPolygon) -> Box:
    """Bounds in degrees; those of an outline across the antimeridian go on beyond 180."""
    west, south, east, north = outline.bounds
    if west == -180 and east == 180:
        parts = [part.bounds for part in outline.geoms]
        west = min(w for w, *_ in parts if w > 0) if any(w > 0 for w, *_ in parts) else west
        ends = [e for _, _, e, _ in parts if e < 0]
        east = max(ends) + 360 if ends and west > 0 else east
    return west, south, east, north
