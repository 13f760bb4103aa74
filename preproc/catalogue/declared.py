"""What a STAC item declares about where its rasters lie: CRS, MGRS tile, proj:bbox, proj:transform and proj:shape."""

from __future__ import annotations

import functools
import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, TypeAlias

import pyproj
from pyproj.exceptions import CRSError
from shapely.geometry import MultiPolygon

from infer.contract import JsonObject
from preproc.reader.whereabouts import Box, Whereabouts, affine_box

Item: TypeAlias = JsonObject
"""A STAC item as JSON gives it, checked where something is taken from it: its publisher's, not smalti's."""

_EPSG = re.compile(r"(?:.*EPSG[:/]+(?:0?[:/])?)?(\d{4,6})(?:\.0*)?", re.IGNORECASE)
"""32631, EPSG:32631, 32631.0, urn:ogc:def:crs:EPSG::32631, http://www.opengis.net/def/crs/EPSG/0/32631."""
_LONGEST_CRS = 20_000
"""Characters of WKT or PROJJSON: no real CRS has more."""
_MGRS = re.compile(r"T?(0?[1-9]|[1-5]\d|60)([C-HJ-NP-X])([A-HJ-NP-Z][A-HJ-NP-V])")
_S2_TILE = re.compile(rf"(?:^|_)({_MGRS.pattern})(?:_|$)")


def mgrs_tile(item: Item) -> str | None:
    """MGRS tile of a Sentinel-2 item, for example 31UES, or None if it names none."""
    properties = item["properties"]
    parts = [properties.get(f"mgrs:{key}") for key in ("utm_zone", "latitude_band", "grid_square")]
    named = re.search(_S2_TILE, str(item.get("id")))
    for name in (properties.get("s2:mgrs_tile"), properties.get("grid:code"), "".join(map(str, parts))):
        match = _MGRS.fullmatch(str(name).strip().upper().removeprefix("MGRS-"))
        if match:
            return f"{match[1].zfill(2)}{match[2]}{match[3]}"
    return f"{named[2].zfill(2)}{named[3]}{named[4]}" if named else None


def item_epsg(item: Item, keys: Iterable[str], *, sentinel2: bool) -> int | None:
    """EPSG code of an item's rasters: as it or its first asset that says so declares, in any form.

    A Sentinel-2 granule is in the zone that its tile is named after: that counts more than another zone's number, and
    is what is left where nothing is declared.

    Args:
        item: the item.
        keys: of the assets that are used.
        sentinel2: whether it is of Sentinel-2.
    """
    places = [item["properties"], *(item["assets"].get(key) for key in keys)]
    declared = next((code for code in map(epsg_of, places) if code is not None), None)
    tile = mgrs_tile(item) if sentinel2 else None
    if tile is None or (declared is not None and not 32601 <= declared <= 32760):
        return declared
    return (32600 if tile[2] >= "N" else 32700) + int(tile[:2])


def epsg_of(place: Any) -> int | None:
    """EPSG code that an asset, or an item's properties, declare: proj:epsg, proj:code, proj:wkt2 or proj:projjson."""
    if not isinstance(place, Mapping):
        return None
    for value in (place.get("proj:epsg"), place.get("proj:code")):
        match = None if isinstance(value, bool | None) else _EPSG.fullmatch(str(value)[:100].strip())
        if match:
            return int(match[1])
    for value in (place.get("proj:wkt2"), place.get("proj:projjson")):
        if isinstance(value, str | Mapping) and value:
            code = _epsg_of_text(value if isinstance(value, str) else json.dumps(value))
            if code is not None:
                return code
    return None


@functools.lru_cache(maxsize=256)
def _epsg_of_text(text: str) -> int | None:
    try:
        return pyproj.CRS.from_user_input(text).to_epsg() if len(text) <= _LONGEST_CRS else None
    except CRSError:
        return None


def whereabouts(
    item: Item, assets: Mapping[str, str], epsg: int | None, outline: MultiPolygon
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
            own = epsg_of(asset) or epsg
            places[band] = Whereabouts(None if own is None else f"EPSG:{own}", boxes, bounds)
    return places


def _boxes(place: JsonObject) -> Iterator[Box]:
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
