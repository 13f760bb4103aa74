"""What items do not say and the headers of their files do: the CRS, and the orbit of an OPERA burst."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import pyproj
import shapely
from rasterio.errors import RasterioError

from infer.contract import JsonObject, SmaltiError
from preproc.catalogue.declared import item_epsg
from preproc.catalogue.sources import OPERA_S1, Item
from preproc.reader.gdal import gdal_settings
from preproc.reader.hrefs import beyond
from preproc.reader.ranges import RangeClient, is_remote
from preproc.reader.read import open_raster
from preproc.reader.sparse_file import RemoteFile
from preproc.reader.tiff_layout import LayoutError
from preproc.region.region import WGS84

ORBIT_TAG = "ORBIT_PASS_DIRECTION"

Header = tuple[shapely.Polygon, int | None, str | None]
"""Outline in degrees, EPSG code, orbit."""


def with_headers(items: Iterable[Item], folders: Sequence[str], client: RangeClient) -> list[Item]:
    """Items, with what their files' headers say where they do not say it themselves.

    An OPERA burst without its orbit is of no use, and must be readable. An item without a CRS in any form, and without
    an MGRS tile, gets it from its first file, so that its scene stands where it belongs in a tile's order; if one such
    file cannot be read, no other is tried: `fetch` will say what is wrong.

    Args:
        items: as saved, hrefs absolute.
        folders: see `preproc.reader.hrefs.beyond`.
        client: for remote files.

    Raises:
        SmaltiError: if an OPERA file that has the orbit cannot be opened.
    """
    found: list[Item] = []
    readable = True
    for item in items:
        properties: JsonObject = item["properties"]
        assets = {key: str(asset["href"]) for key, asset in sorted(item["assets"].items())}
        assets = {key: href for key, href in assets.items() if not beyond(href, folders)}
        is_opera = item.get("collection") in OPERA_S1.collections
        more: dict[str, Any] = {}
        if is_opera and not properties.get(OPERA_S1.orbit_property) and "VV" in assets:
            more = {OPERA_S1.orbit_property: read_header(assets["VV"], client)[2]}
        elif not is_opera and assets and readable and not _says_crs(item):
            try:
                _, epsg, _ = read_header(next(iter(assets.values())), client)
                more = {} if epsg is None else {"proj:epsg": epsg}
            except SmaltiError:
                readable = False
        found.append({**item, "properties": {**properties, **more}} if more else item)
    return found


def _says_crs(item: Item) -> bool:
    sentinel2 = any(key in item["assets"] for key in ("SCL", "scl"))  # names of Sentinel-1 look like MGRS tiles
    return item_epsg(item, item["assets"], sentinel2=sentinel2) is not None


def read_header(href: str, client: RangeClient | None) -> Header:
    """Where a raster lies, and the orbit that its tag names.

    Args:
        href: absolute path or URL.
        client: for remote files.

    Raises:
        SmaltiError: if it cannot be opened, or has no CRS.
    """
    with gdal_settings():
        if client is None or not is_remote(href):
            return _header(href, href)
        try:
            with RemoteFile(client, href) as remote:
                remote.layout()  # all that the header refers to is fetched
                return _header(remote.path, href)
        except LayoutError as error:
            raise SmaltiError(f"{href}: cannot be opened, to read its orbit: {error}") from error


def _header(name: str, shown: str) -> Header:
    try:
        with open_raster(name) as dataset:
            bounds, crs, tags = dataset.bounds, dataset.crs, dataset.tags()
    except RasterioError as error:
        text = " ".join(str(error).split()).replace(name, shown)
        raise SmaltiError(f"{shown}: cannot be opened, to read its orbit: {text}") from error
    if crs is None:
        raise SmaltiError(f"{shown}: has no CRS: its pixels cannot be placed")
    square = shapely.segmentize(shapely.box(*bounds), 5000)
    backward = pyproj.Transformer.from_crs(crs.to_wkt(), WGS84, always_xy=True)
    outline = shapely.transform(square, lambda xy: np.column_stack(backward.transform(xy[:, 0], xy[:, 1])))
    orbit = str(tags.get(ORBIT_TAG, "")).strip().lower()
    known = {"a": "ascending", "d": "descending"}
    return outline, crs.to_epsg(), known.get(orbit[:1])
