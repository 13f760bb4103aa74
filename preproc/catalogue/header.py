"""What the headers of files say where items do not: the CRS, the orbit of an OPERA burst, and whole OPERA items.

OPERA RTC-S1 are Sentinel-1 bursts as NASA distributes them, GeoTIFFs without STAC items; the orbit is in a tag. Names:
OPERA_L2_RTC-S1_<burst>_<acquired>Z_<processed>Z_<satellite>_30_<version>_<VV or VH>.tif. Pixels are linear gamma0,
float32, 30 m, NaN where there is nothing: the data that the `aws` models were trained on.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
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


COLLECTION = OPERA_S1.collections[0]
_FILE = re.compile(
    r"(?P<id>OPERA_L2_RTC-S1_T\d{3}-\d{6}-IW\d_(?P<acquired>\d{8}T\d{6})Z_(?P<processed>\d{8}T\d{6})Z_S1[A-D]_\d+_v[\d.]+)"
    r"_(?P<band>VV|VH|HH|HV)\.tif"
)


def opera_items(folder: Path) -> list[Item]:
    """STAC items of the OPERA files under a folder, by id; empty if there are none.

    Raises:
        SmaltiError: if a file cannot be opened.
    """
    groups: dict[str, dict[str, Path]] = {}
    for path in sorted(folder.rglob("OPERA_L2_RTC-S1_*.tif")):
        match = _FILE.fullmatch(path.name)
        if match:
            groups.setdefault(match["id"], {})[match["band"]] = path
    return [_item_of(name, files) for name, files in sorted(groups.items())]


def _item_of(name: str, files: Mapping[str, Path]) -> dict[str, Any]:
    match = _FILE.fullmatch(next(iter(files.values())).name)
    assert match is not None  # they were found by it
    day, time = match["acquired"].split("T")
    outline, epsg, orbit = read_header(str(files.get("VV") or next(iter(files.values()))), None)
    return {
        "type": "Feature",
        "stac_version": "1.0.0",
        "id": name,
        "collection": COLLECTION,
        "geometry": json.loads(shapely.to_geojson(outline)),
        "bbox": list(outline.bounds),
        "properties": {
            "datetime": f"{day[:4]}-{day[4:6]}-{day[6:]}T{time[:2]}:{time[2:4]}:{time[4:]}Z",
            OPERA_S1.orbit_property: orbit,
            **({} if epsg is None else {"proj:epsg": epsg}),
        },
        "assets": {band: {"href": str(path)} for band, path in sorted(files.items())},
        "links": [],
    }
