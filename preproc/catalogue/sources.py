"""The one table of what differs between catalogues, and how an item of any of them becomes a Scene. Pure."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date, datetime
from types import MappingProxyType
from typing import Any, Literal

import shapely
from shapely.errors import ShapelyError
from shapely.geometry import MultiPolygon

from infer.contract import BANDS, SAR_BANDS, brief_name, one_line
from preproc.catalogue.declared import whereabouts
from preproc.catalogue.scene import OffsetPolicy, Scene
from preproc.reader.hrefs import absolute
from preproc.region.region import polygons_of, split_antimeridian
from preproc.run.config import Archive
from preproc.run.text import parse_time

Item = Mapping[str, Any]
"""A STAC item as JSON gives it."""
DataSource = Literal["mpc", "aws", "other"]

OFFSET_SINCE = date(2022, 1, 25)
"""Acquisitions after this day carry the offset of processing baseline 04.00 (the rule the models were trained with)."""
OFFSET_BASELINE = 4.0
_MAX_ID = 1000
"""Characters of an item's id, which messages and records of tiles repeat."""


@dataclass(frozen=True)
class Product:
    """One kind of item: where it is found, what its assets are called, what its pixels are."""

    name: str
    modality: Literal["s2", "s1"]
    collections: tuple[str, ...]
    assets: Mapping[str, str]
    """Our band name -> the catalogue's asset key."""
    data_source: DataSource
    offset_rule: Literal["acquisition-date", "earth-search", "none"]
    """How the offset policy of an item is found; see `offset_policy`."""
    nodata: float
    """Value of pixels without data; for s1 everything that is not above 0 counts as missing as well."""
    units: str
    orbit_property: str = "sat:orbit_state"
    """s1 only."""


@dataclass(frozen=True)
class Catalogue:
    """A STAC API."""

    name: str
    url: str
    products: tuple[Product, ...]
    page_size: int
    """Items a page: what the service answers well."""


@dataclass(frozen=True)
class Rejected:
    """An item that cannot be used, and why."""

    id: str
    reason: str


_DN = "reflectance x 10000"
_POWER = "gamma0, linear power"
_ROLES = ("red", "blue", "green", "nir", "nir08", "rededge1", "rededge2", "rededge3", "swir16", "swir22")

MPC_S2 = Product(
    "mpc-sentinel-2-l2a",
    "s2",
    ("sentinel-2-l2a",),
    MappingProxyType({name: name for name in (*BANDS, "SCL")}),
    "mpc",
    "acquisition-date",
    0,
    _DN,
)
MPC_S1 = Product(
    "mpc-sentinel-1-rtc",
    "s1",
    ("sentinel-1-rtc",),
    MappingProxyType({"VV": "vv", "VH": "vh"}),
    "mpc",
    "none",
    -32768,
    _POWER,
)
EARTH_SEARCH_S2 = Product(
    "earth-search-sentinel-2",
    "s2",
    ("sentinel-2-l2a", "sentinel-2-c1-l2a"),
    MappingProxyType({**dict(zip(BANDS, _ROLES, strict=True)), "SCL": "scl"}),
    "aws",
    "earth-search",
    0,
    _DN,
)
OPERA_S1 = Product(
    "opera-rtc-s1",
    "s1",
    ("opera-rtc-s1", "OPERA_L2_RTC-S1_V1", "OPERA_L2_RTC-S1_V1_1"),
    MappingProxyType({"VV": "VV", "VH": "VH"}),
    "aws",
    "none",
    float("nan"),
    _POWER,
)

CATALOGUES = MappingProxyType(
    {
        "mpc": Catalogue("mpc", "https://planetarycomputer.microsoft.com/api/stac/v1", (MPC_S2, MPC_S1), 250),
        "earth-search": Catalogue("earth-search", "https://earth-search.aws.element84.com/v1", (EARTH_SEARCH_S2,), 100),
    }
)
PRODUCTS = (MPC_S2, EARTH_SEARCH_S2, MPC_S1, OPERA_S1)
"""What a static archive may hold."""

_NOT_USABLE = (
    ("l1c", "Sentinel-2 level 1C is not corrected for the atmosphere: sentinel-2-l2a is needed"),
    ("grd", "Sentinel-1 GRD is not terrain-corrected: sentinel-1-rtc (or OPERA RTC-S1) is needed"),
    ("slc", "Sentinel-1 SLC is not terrain-corrected: sentinel-1-rtc (or OPERA RTC-S1) is needed"),
    ("l2a-cogs", "Earth Search v0 is retired: search its v1"),
    ("landsat", "Landsat is not used by TESSERA"),
)


def products_for(archive: Archive) -> tuple[Product, ...]:
    """The kinds of item that an archive may hold."""
    return PRODUCTS if archive.source == "static" else CATALOGUES[archive.source].products


def parse_item(item: Item, base_href: str, archive: Archive) -> Scene | Rejected:
    """One STAC item as a scene.

    Args:
        item: the item.
        base_href: path or URL of the file it stands in, for relative hrefs.
        archive: section [archive] of run.toml; `data_source` overrides what the item looks like.

    Returns:
        The scene, with an asset less for each band that the item lacks (Sentinel-2; the fetch leaves it out and records
        why), or the reason why the item cannot be used.
    """
    identifier = str(item.get("id") or "(no id)")
    if not item.get("id"):
        return Rejected(identifier, "has no id")
    if len(identifier) > _MAX_ID or one_line(identifier) != identifier:
        return Rejected(brief_name(identifier), f"has an id of control characters, or of more than {_MAX_ID}")
    product = _product_of(item, products_for(archive))
    if isinstance(product, str):
        return Rejected(identifier, product)
    assets, refused = _assets(item, product, base_href)
    if refused:
        return Rejected(identifier, refused)
    acquired = acquired_at(item)
    if acquired is None:
        return Rejected(identifier, "has no readable datetime")
    outline = footprint(item)
    if outline is None:
        return Rejected(identifier, "has neither a geometry nor a bbox")
    orbit = None
    if product.modality == "s1":
        orbit = item["properties"].get(product.orbit_property)
        if orbit not in ("ascending", "descending"):
            return Rejected(identifier, f"{product.orbit_property} is {orbit!r}, not ascending or descending")
    source = archive.data_source or product.data_source
    offset = offset_policy(item, product, acquired, source)
    if isinstance(offset, str) and not isinstance(offset, OffsetPolicy):
        return Rejected(identifier, offset)
    epsg = _epsg(item, product)
    return Scene(
        id=identifier,
        modality=product.modality,
        acquired=acquired,
        assets=MappingProxyType(assets),
        footprint=shapely.to_wkt(outline, rounding_precision=7),
        epsg=epsg,
        orbit=orbit,
        offset=offset,
        data_source=source,
        places=whereabouts(item, product.assets, epsg, outline),
    )


def offset_policy(item: Item, product: Product, acquired: datetime, source: DataSource) -> OffsetPolicy | str:
    """What must be done to the item's digital numbers, or why that cannot be told.

    Planetary Computer stores what ESA delivered: the offset is in all acquisitions after 2022-01-25. Earth Search says
    for `sentinel-2-l2a` with `earthsearch:boa_offset_applied` whether it has removed the offset; `raster:bands` gives
    -0.1 all the same, so reading both would subtract twice. `sentinel-2-c1-l2a` has no such flag and keeps the offset.
    What an item says of itself counts more than `[archive] data_source`.
    """
    if product.modality == "s1":
        return OffsetPolicy.NONE
    applied = item["properties"].get("earthsearch:boa_offset_applied")
    rule = {"mpc": "acquisition-date", "aws": "earth-search"}.get(source, product.offset_rule)
    if rule == "acquisition-date" and applied is None:
        return OffsetPolicy.SUBTRACT_1000 if acquired.date() > OFFSET_SINCE else OffsetPolicy.NONE
    if applied is True:
        return OffsetPolicy.NONE
    baseline = processing_baseline(item)
    if baseline is not None and baseline < OFFSET_BASELINE:
        return OffsetPolicy.NONE
    if applied is False or item.get("collection") == "sentinel-2-c1-l2a":
        declared = _declared_offset(item, product)
        return OffsetPolicy.NONE if declared == 0 else OffsetPolicy.SUBTRACT_1000
    if acquired.date() <= OFFSET_SINCE and baseline is None:
        return OffsetPolicy.NONE
    return (
        "does not say whether the offset of baseline 04.00 is still in its pixels (earthsearch:boa_offset_applied is "
        'missing): set [archive] data_source = "mpc" if it is in all after 2022-01-25'
    )


def acquired_at(item: Item) -> datetime | None:
    """When an item was acquired, in UTC: `datetime`, or else `start_datetime`."""
    properties = item.get("properties") or {}
    for key in ("datetime", "start_datetime"):
        if properties.get(key):
            return parse_time(properties[key])
    return None


def processing_baseline(item: Item) -> float | None:
    """Sentinel-2 processing baseline, for example 5.11, or None."""
    text = (item.get("properties") or {}).get("s2:processing_baseline")
    try:
        return None if text is None else float(text)
    except (TypeError, ValueError):
        return None


def footprint(item: Item) -> MultiPolygon | None:
    """Outline of an item in degrees, cut at the antimeridian: its geometry, or else its bbox."""
    outline = None
    try:
        if item.get("geometry"):
            outline = shapely.from_geojson(json.dumps(item["geometry"]))
        elif item.get("bbox"):
            box = [float(value) for value in item["bbox"]]
            west, south, east, north = box if len(box) == 4 else (box[0], box[1], box[3], box[4])
            outline = shapely.box(west, south, east if east >= west else east + 360, north)
    except (ShapelyError, TypeError, ValueError, IndexError):
        return None
    if outline is None:
        return None
    valid = outline if outline.is_valid else shapely.make_valid(outline)
    parts = [part for polygon in polygons_of(valid) for part in split_antimeridian(polygon)]
    return MultiPolygon(polygons_of(shapely.union_all(parts))) if parts else None


def _product_of(item: Item, products: tuple[Product, ...]) -> Product | str:
    """The kind of an item, or why it is of none."""
    collection = str(item.get("collection") or "")
    keys = set(item.get("assets") or ())
    if not keys:
        return "has no assets"
    for hint, reason in _NOT_USABLE:
        if hint in collection.lower():
            return f"is of collection {collection}: {reason}"
    named = [product for product in products if collection in product.collections]
    ranked = sorted(named or products, key=lambda product: -len(keys & set(product.assets.values())))
    best = ranked[0]
    common = keys & set(best.assets.values())
    if not named and not _looks_like(item, best, common):
        return f"is of collection {collection or '(none)'}, with assets smalti does not know ({_some(keys)})"
    if not common and best.modality == "s2":
        return f"has none of the Sentinel-2 bands among its assets ({_some(keys)})"
    return best


def _looks_like(item: Item, product: Product, common: set[str]) -> bool:
    """Whether an item of an unknown collection is of a product, by its assets."""
    if product.modality == "s2":
        return product.assets["SCL"] in common and len(common) > 1
    used = [item["assets"][key] for key in sorted(common)]
    words = [item.get("id"), item.get("collection"), *(asset.get("description") for asset in used)]
    text = " ".join(map(str, words)).lower()
    return len(common) == len(product.assets) and any(word in text for word in ("rtc", "gamma naught", "gamma0"))


def _assets(item: Item, product: Product, base_href: str) -> tuple[dict[str, str], str]:
    """Band -> absolute unsigned href, and why the item must be rejected, if it must."""
    found = {}
    for band, key in product.assets.items():
        href = (item["assets"].get(key) or {}).get("href")
        if href:
            found[band] = absolute(str(href), base_href)
    if product.modality == "s1" and len(found) < len(SAR_BANDS):
        return {}, f"lacks VV or VH (its assets: {_some(item['assets'])}): TESSERA needs both"
    return found, ""


def _some(keys: Any, limit: int = 6) -> str:
    names = sorted(map(str, keys))
    return ", ".join(names[:limit]) + (", ..." if len(names) > limit else "")


def _declared_offset(item: Item, product: Product) -> float | None:
    """`raster:bands` offset of the item's reflectance assets, or None where it declares none."""
    for band in BANDS:
        for record in (item["assets"].get(product.assets[band]) or {}).get("raster:bands") or ():
            if "offset" in record:
                return float(record["offset"])
    return None


def _epsg(item: Item, product: Product) -> int | None:
    """EPSG code that the item or its first used asset declares."""
    places = [item.get("properties") or {}]
    places += [item["assets"][key] for key in product.assets.values() if key in item["assets"]]
    for place in places:
        if isinstance(place.get("proj:epsg"), int):
            return int(place["proj:epsg"])
        code = str(place.get("proj:code") or "")
        if code.startswith("EPSG:") and code[5:].isdigit():
            return int(code[5:])
    return None
