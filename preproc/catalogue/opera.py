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

import shapely

from preproc.catalogue.header import read_header
from preproc.catalogue.sources import OPERA_S1, Item

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
