"""OPERA RTC-S1: Sentinel-1 bursts as NASA distributes them, GeoTIFFs without STAC items; the orbit is in a tag.

Names: OPERA_L2_RTC-S1_<burst>_<acquired>Z_<processed>Z_<satellite>_30_<version>_<VV or VH>.tif. Pixels are linear
gamma0, float32, 30 m, NaN where there is nothing: the data that the `aws` models were trained on.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyproj
import shapely
from rasterio.errors import RasterioError

from infer.contract import SmaltiError
from preproc.catalogue.sources import OPERA_S1, Item
from preproc.reader.gdal import gdal_settings
from preproc.reader.hrefs import absolute
from preproc.reader.ranges import RangeClient, is_remote
from preproc.reader.read import open_raster
from preproc.reader.sparse_file import RemoteFile
from preproc.reader.tiff_layout import LayoutError
from preproc.region.region import WGS84

ORBIT_TAG = "ORBIT_PASS_DIRECTION"
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
    with gdal_settings():
        return [_item_of(name, files) for name, files in sorted(groups.items())]


def with_orbit(item: Item, base: str, client: RangeClient) -> Item:
    """An item of an OPERA collection with its orbit, read from the file's tag where the item does not say it.

    Args:
        item: any item; those of other collections are given back as they are.
        base: what its hrefs are relative to.
        client: for remote files.

    Raises:
        SmaltiError: if the file that has the tag cannot be opened.
    """
    if item.get("collection") not in OPERA_S1.collections or item["properties"].get(OPERA_S1.orbit_property):
        return item
    assets = item.get("assets")
    asset = assets.get("VV") if isinstance(assets, Mapping) else None
    href = asset.get("href") if isinstance(asset, Mapping) else None
    if not href:
        return item  # rejected later, for want of VV
    path = absolute(str(href), base)
    with gdal_settings():
        if is_remote(path):
            try:
                with RemoteFile(client, path) as remote:
                    remote.layout()  # all that the header refers to is fetched
                    _, orbit = _header(remote.path, path)
            except LayoutError as error:
                raise SmaltiError(f"{path}: cannot be opened, to read its orbit: {error}") from error
        else:
            _, orbit = _header(path, path)
    return {**item, "properties": {**item["properties"], OPERA_S1.orbit_property: orbit}}


def _item_of(name: str, files: Mapping[str, Path]) -> dict[str, Any]:
    match = _FILE.fullmatch(next(iter(files.values())).name)
    assert match is not None  # they were found by it
    day, time = match["acquired"].split("T")
    (outline, epsg), orbit = _header(*[str(files.get("VV") or next(iter(files.values())))] * 2)
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


def _header(name: str, shown: str) -> tuple[tuple[shapely.Polygon, int | None], str | None]:
    """Outline in degrees and EPSG code of a raster, and the orbit that its tag names."""
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
    return (outline, crs.to_epsg()), known.get(orbit[:1])
