"""The one table of what differs between catalogues, and how an item of any of them becomes a Scene. Pure."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from types import MappingProxyType
from typing import Any, Literal

import shapely
from shapely.errors import ShapelyError
from shapely.geometry import MultiPolygon
from shapely.geometry.base import BaseGeometry

from infer.contract import BANDS, SAR_BANDS, brief_name, one_line
from infer.contract.registry import DataSource
from preproc.catalogue.declared import Item as Item
from preproc.catalogue.declared import item_epsg, whereabouts
from preproc.catalogue.offset import OffsetRule, offset_policy
from preproc.catalogue.scene import OffsetBasis, OffsetPolicy, Scene
from preproc.reader.hrefs import absolute, beyond
from preproc.region.region import TURNS, polygons_of, split_antimeridian
from preproc.run.config import Archive
from preproc.run.text import parse_time

MARGIN_DEGREES = 0.01
"""Footprints are drawn with few vertices: what lies this near a region is asked for too."""
_MAX_ID = 1000
"""Characters of an item's id, which messages and records of tiles repeat."""


@dataclass(frozen=True)
class Product:
    """One kind of item: where it is found, what its assets are called, whose data it is.

    Pixels are reflectance x 10000 (s2) or gamma nought in linear power (s1), whatever the catalogue. What stands for
    nodata is read from each file (`preproc.reader.read`).
    """

    name: str
    modality: Literal["s2", "s1"]
    collections: tuple[str, ...]
    assets: Mapping[str, str]
    """Our band name -> the catalogue's asset key."""
    data_source: DataSource
    offset_rule: OffsetRule | None
    """How the offset policy of an item is found (s2); see `preproc.catalogue.offset`."""
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


_ROLES = ("red", "blue", "green", "nir", "nir08", "rededge1", "rededge2", "rededge3", "swir16", "swir22")

MPC_S2 = Product(
    "mpc-sentinel-2-l2a",
    "s2",
    ("sentinel-2-l2a",),
    MappingProxyType({name: name for name in (*BANDS, "SCL")}),
    "mpc",
    "planetary-computer",
)
MPC_S1 = Product(
    "mpc-sentinel-1-rtc",
    "s1",
    ("sentinel-1-rtc",),
    MappingProxyType({"VV": "vv", "VH": "vh"}),
    "mpc",
    None,
)
EARTH_SEARCH_S2 = Product(
    "earth-search-sentinel-2",
    "s2",
    ("sentinel-2-l2a", "sentinel-2-c1-l2a"),
    MappingProxyType({**dict(zip(BANDS, _ROLES, strict=True)), "SCL": "scl"}),
    "aws",
    "earth-search",
)
OPERA_S1 = Product(
    "opera-rtc-s1",
    "s1",
    ("opera-rtc-s1", "OPERA_L2_RTC-S1_V1", "OPERA_L2_RTC-S1_V1_1"),
    MappingProxyType({"VV": "VV", "VH": "VH"}),
    "aws",
    None,
)

CATALOGUES = MappingProxyType(
    {
        "mpc": Catalogue("mpc", "https://planetarycomputer.microsoft.com/api/stac/v1", (MPC_S2, MPC_S1), 250),
        "earth-search": Catalogue("earth-search", "https://earth-search.aws.element84.com/v1", (EARTH_SEARCH_S2,), 100),
    }
)
PRODUCTS = (MPC_S2, EARTH_SEARCH_S2, MPC_S1, OPERA_S1)
"""What a static archive may hold."""

_RULES: Mapping[str, OffsetRule] = MappingProxyType({"mpc": "planetary-computer", "aws": "earth-search"})
"""Data source -> offset rule; "other" follows the item's product."""
_POLE = 90.01
"""Degrees: what lies farther north or south is no place."""

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
    if not isinstance(item.get("properties"), Mapping):
        return Rejected(identifier, "has no properties")
    if not isinstance(item.get("assets"), Mapping) or not item["assets"]:
        return Rejected(identifier, "has no assets")
    product = _product_of(item, products_for(archive))
    if isinstance(product, str):
        return Rejected(identifier, product)
    assets, refused = _assets(item, product, base_href, archive)
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
    offset: tuple[OffsetPolicy, OffsetBasis | None] = OffsetPolicy.NONE, None
    if product.offset_rule is not None:
        rule = _RULES.get(source, product.offset_rule)
        offset = offset_policy(item, [product.assets[band] for band in BANDS], acquired, rule)
    epsg = item_epsg(item, product.assets.values(), sentinel2=product.modality == "s2")
    return Scene(
        id=identifier,
        modality=product.modality,
        acquired=acquired,
        assets=MappingProxyType(assets),
        footprint=shapely.to_wkt(outline, rounding_precision=7),
        epsg=epsg,
        orbit=orbit,
        offset=offset[0],
        offset_basis=offset[1],
        data_source=source,
        places=whereabouts(item, product.assets, epsg, outline),
    )


def acquired_at(item: Item) -> datetime | None:
    """When an item was acquired, in UTC: `datetime`, or else `start_datetime`."""
    moments = (parse_time(item["properties"].get(key)) for key in ("datetime", "start_datetime"))
    return next((moment for moment in moments if moment is not None), None)


def footprint(item: Item) -> MultiPolygon | None:
    """Outline of an item in degrees, cut at the antimeridian: its geometry, or its bbox where that has no area."""
    return _outline(lambda: shapely.from_geojson(json.dumps(item["geometry"]))) or _outline(lambda: _box(item["bbox"]))


def _outline(read: Callable[[], BaseGeometry]) -> MultiPolygon | None:
    """What is read, as polygons within -180..180; None if it cannot be, has no area, or is nowhere on Earth."""
    try:
        outline = read()
        west, south, east, north = outline.bounds  # of what is empty, NaN
        if not (west >= -TURNS and east <= TURNS and south >= -_POLE and north <= _POLE):
            return None
        valid = outline if outline.is_valid else shapely.make_valid(outline)
        parts = [part for polygon in polygons_of(valid) for part in split_antimeridian(polygon)]
        return MultiPolygon(polygons_of(shapely.union_all(parts))) if parts else None
    except (ShapelyError, KeyError, TypeError, ValueError, IndexError, OverflowError, RecursionError):
        return None


def _box(bbox: Sequence[Any]) -> BaseGeometry:
    box = [float(value) for value in bbox]
    west, south, east, north = box if len(box) == 4 else (box[0], box[1], box[3], box[4])
    return shapely.box(west, south, east if east >= west else east + 360, north)


def _product_of(item: Item, products: tuple[Product, ...]) -> Product | str:
    """The kind of an item, or why it is of none."""
    collection = str(item.get("collection") or "")
    keys = set(item["assets"])
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
    described = [asset.get("description") for asset in used if isinstance(asset, Mapping)]
    words = [item.get("id"), item.get("collection"), *described]
    text = " ".join(map(str, words)).lower()
    return len(common) == len(product.assets) and any(word in text for word in ("rtc", "gamma naught", "gamma0"))


def _assets(item: Item, product: Product, base_href: str, archive: Archive) -> tuple[dict[str, str], str]:
    """Band -> absolute unsigned href, and why the item must be rejected, if it must."""
    found, folders = {}, archive.folders
    for band, key in product.assets.items():
        href = asset_href(item["assets"].get(key), base_href, folders)
        if href:
            found[band] = href
            wrong = beyond(href, folders)
            if wrong:
                return {}, f"its {band} may not be read: {wrong}"
    if product.modality == "s1" and len(found) < len(SAR_BANDS):
        return {}, f"lacks VV or VH (its assets: {_some(item['assets'])}): TESSERA needs both"
    return found, ""


def asset_href(asset: Any, base: str, folders: Sequence[str]) -> str | None:
    """Absolute unsigned href of an asset: its own, or of its `alternate` ones the first that may be read.

    Args:
        asset: as JSON gives it.
        base: path or URL of the file that it stands in.
        folders: those that the archive's files may lie in; see `preproc.reader.hrefs.beyond`.

    Returns:
        Its own where none may be read; None if it has none at all.
    """
    others = asset.get("alternate") if isinstance(asset, Mapping) else None
    places = [asset, *(others.values() if isinstance(others, Mapping) else ())]
    hrefs = [place.get("href") for place in places if isinstance(place, Mapping)]
    found = [_absolute(href, base) for href in hrefs if isinstance(href, str) and href]
    return next((href for href in found if not beyond(href, folders)), found[0] if found else None)


def _absolute(href: str, base: str) -> str:
    try:
        return absolute(href, base)
    except ValueError:  # no address: http://[
        return href


def _some(keys: Any, limit: int = 6) -> str:
    names = sorted(map(str, keys))
    return ", ".join(names[:limit]) + (", ..." if len(names) > limit else "")
