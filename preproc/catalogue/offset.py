"""Whether the offset of Sentinel-2's baseline 04.00 is still in an item's pixels, and how that is known. Pure.

Baseline 04.00 (25 January 2022) and later add 1000 to every number. Some archives remove it, some items say so, and
not all that say so are right.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from datetime import date, datetime
from typing import Any, Literal
from urllib.parse import urlsplit

from infer.contract import JsonObject
from preproc.catalogue.declared import Item
from preproc.catalogue.scene import OffsetBasis, OffsetPolicy, Scene

OffsetRule = Literal["planetary-computer", "earth-search"]
"""Whose habits an item follows where it does not say everything itself."""
Offset = tuple[OffsetPolicy, OffsetBasis]

OFFSET_SINCE = date(2022, 1, 25)
"""Acquisitions after this day carry the offset, if nothing else is known (the rule the models were trained with)."""
OFFSET_BASELINE = 4.0

_FLAGS = ("earthsearch:boa_offset_applied", "sentinel:boa_offset_applied")
_REMOVED_IN = frozenset({"sentinel-cogs"})
"""Element 84's own copies."""
_KEPT_IN = frozenset({"sentinel-s2-l2a", "e84-earth-search-sentinel-data", "sentinel2l2a01"})
"""ESA's originals, Element 84's of collection 1, Planetary Computer's."""
_BASELINE = re.compile(r"N?(\d{1,2})(?:\.(\d{1,2})|(\d{2}))?")
_IN_NAME = re.compile(r"_N(\d{4})_")


def offset_policy(item: Item, keys: Iterable[str], acquired: datetime, rule: OffsetRule) -> Offset:
    """What must be done to an item's digital numbers, and what that rests on.

    A baseline before 04.00 has no offset, whatever else is said. Planetary Computer stores what ESA delivered: what an
    item declares (`raster:offset`) or its baseline decides, and only where it has neither the date of acquisition.

    Earth Search says for `sentinel-2-l2a` with a flag whether it has removed the offset. The flag is missing on ESA's
    originals in that collection, where it is not removed, and some that deny it are wrong: those are decided by their
    pixels. `sentinel-2-c1-l2a` keeps the offset. `raster:bands` gives -0.1 all over, and is believed only where it
    gives 0.

    Args:
        item: of Sentinel-2.
        keys: of its reflectance assets.
        acquired: when.
        rule: whose habits it follows; one that has the flag follows Earth Search's.
    """
    assets = [asset for key in keys if isinstance(asset := item["assets"].get(key), Mapping)]
    baseline, flag, declared = processing_baseline(item), _flag(item), _declared(assets)
    late = acquired.date() > OFFSET_SINCE
    subtract, none, by_pixels = OffsetPolicy.SUBTRACT_1000, OffsetPolicy.NONE, OffsetPolicy.BY_PIXELS
    if baseline is not None and baseline < OFFSET_BASELINE:
        return none, OffsetBasis.BASELINE
    if rule == "planetary-computer" and flag is None:
        if declared is not None:
            return (subtract if declared else none), OffsetBasis.DECLARED
        if baseline is not None:
            return subtract, OffsetBasis.BASELINE
        return (subtract if late else none), OffsetBasis.DATE
    removed = _removed(item, assets)
    if flag is True:
        return (by_pixels, OffsetBasis.BUCKET) if removed is False else (none, OffsetBasis.FLAG)
    if declared == 0:
        return none, OffsetBasis.DECLARED
    if item.get("collection") == "sentinel-2-c1-l2a":
        return subtract, OffsetBasis.COLLECTION
    if baseline is None and not late:
        return none, OffsetBasis.DATE
    if flag is False:
        return by_pixels, OffsetBasis.FLAG
    if removed is not None:
        return (none if removed else subtract), OffsetBasis.BUCKET
    return by_pixels, OffsetBasis.DATE if baseline is None else OffsetBasis.BASELINE


def contradicts_date(scene: Scene) -> bool:
    """Whether the baseline that a scene states and the date of its acquisition disagree about the offset."""
    late = scene.day > OFFSET_SINCE
    return scene.offset_basis is OffsetBasis.BASELINE and late != (scene.offset is not OffsetPolicy.NONE)


def processing_baseline(item: Item) -> float | None:
    """Sentinel-2 processing baseline, for example 5.11: as the item states it, or in the name of its product."""
    properties = item["properties"]
    for stated in (properties.get("s2:processing_baseline"), _two_by_two(properties.get("processing:version"))):
        match = None if isinstance(stated, bool | None) else _BASELINE.fullmatch(str(stated).strip().upper())
        if match:
            return float(f"{match[1]}.{match[2] or match[3] or 0}")
    named = _IN_NAME.search(f"{properties.get('s2:product_uri')} {item.get('id')}")
    return int(named[1]) / 100 if named else None


def _two_by_two(version: Any) -> Any:
    """A version that is written like a baseline: others are of the software."""
    return version if re.fullmatch(r"\d\d\.\d\d", str(version)) else None


def _flag(item: Item) -> bool | None:
    for name in _FLAGS:
        said = str(item["properties"].get(name)).strip().lower()
        if said in ("true", "false"):
            return said == "true"
    return None


def _removed(item: Item, assets: Iterable[JsonObject]) -> bool | None:
    """Whether the bucket that the bands lie in is known to hold numbers without the offset, or with it."""
    buckets = [_buckets(str(asset.get("href"))) for asset in assets]
    if not any(buckets):  # a mirror's own place says nothing
        buckets = [_buckets(str(item["properties"].get("earthsearch:s3_path")))]
    for removed, known in ((True, _REMOVED_IN), (False, _KEPT_IN)):
        if all(found and found <= known for found in buckets):
            return removed
    return None


def _buckets(href: str) -> set[str]:
    """The known buckets that an address names: as its host, or in its path, where copies keep their names."""
    try:
        parts = urlsplit(href)
        names = {(parts.hostname or "").partition(".")[0], *parts.path.split("/")}
    except ValueError:
        return set()
    return names & (_REMOVED_IN | _KEPT_IN)


def _declared(assets: Iterable[JsonObject]) -> float | None:
    """Offset that a reflectance asset declares (STAC 1.1 and raster extensions 1 and 2), None where none does."""
    for asset in assets:
        bands = [band for key in ("bands", "raster:bands") for band in _list(asset.get(key))]
        for place in (asset, *bands):
            for key in ("raster:offset", "offset"):
                value = place.get(key) if isinstance(place, Mapping) else None
                try:
                    number = math.nan if isinstance(value, bool | None) else float(value)
                except (TypeError, ValueError, OverflowError):
                    continue
                if math.isfinite(number):
                    return number
    return None


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []
