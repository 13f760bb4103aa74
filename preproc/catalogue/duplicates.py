"""Scenes that the archive holds more than once: reprocessed, received at two stations, or in two collections. Pure.

Two Sentinel-2 items are one scene if MGRS tile and datatake are equal and their footprints agree; the newest processing
wins. Granules of one datatake that was split along a datastrip have other footprints and are all kept.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

import shapely
from shapely.geometry.base import BaseGeometry

from infer.contract import SmaltiError
from preproc.catalogue.scene import Scene
from preproc.catalogue.sources import Item, processing_baseline
from preproc.run.text import parse_time

SAME_FOOTPRINT = 0.8
"""Share of their union that two footprints must have in common (footprints of two processings differ a little)."""

_S2_TILE = re.compile(r"(?:^|_)T?(\d{1,2}[C-HJ-NP-X][A-HJ-NP-Z][A-HJ-NP-V])(?:_|$)")
_S2_TAKE = re.compile(r"(S2[A-D])(?:_MSIL2A)?_(\d{8}T\d{6})_")
_S1_SLICE = re.compile(r"^(S1[A-D]_\w\w_\w{4}_\w{4}_\d{8}T\d{6}_\d{8}T\d{6}_\d{6}_[0-9A-F]{6})")
_OPERA = re.compile(r"(T\d{3}-\d{6}-IW\d)_(\d{8}T\d{6})Z_(\d{8}T\d{6})Z_(S1[A-D])_\d+_(v[\d.]+)")
_OLDEST = datetime(1, 1, 1, tzinfo=UTC)


@dataclass(frozen=True)
class Candidate:
    """A scene and the item it was parsed from."""

    item: Item
    scene: Scene


def dedupe(candidates: Sequence[Candidate]) -> tuple[list[Scene], dict[str, str]]:
    """Keep one scene of each group of duplicates.

    Args:
        candidates: in any order.

    Returns:
        The scenes kept, sorted by day and id, and the ids left out with the reason.

    Raises:
        SmaltiError: if two items with one id are not one scene: either of them would be lost.
    """
    unique: dict[tuple[str, str], Candidate] = {}
    for candidate in sorted(candidates, key=_rank, reverse=True):
        known = unique.setdefault((candidate.scene.modality, candidate.scene.id), candidate)
        _check_same(known.scene, candidate.scene)
    groups: defaultdict[tuple[str, ...], list[Candidate]] = defaultdict(list)
    for candidate in unique.values():
        groups[identity(candidate)].append(candidate)
    kept: list[Scene] = []
    dropped: dict[str, str] = {}
    for group in groups.values():  # newest first, by the order above
        outlines: list[tuple[Scene, BaseGeometry]] = []
        for candidate in group:
            outline = shapely.from_wkt(candidate.scene.footprint) if len(group) > 1 else None
            twin = next((scene for scene, other in outlines if _agree(outline, other)), None)
            if twin is None:
                outlines.append((candidate.scene, outline))
            else:
                dropped[candidate.scene.id] = f"an older copy of {twin.id}"
        kept.extend(scene for scene, _ in outlines)
    return sorted(kept, key=lambda scene: (scene.day, scene.id)), dict(sorted(dropped.items()))


def _check_same(one: Scene, other: Scene) -> None:
    if one is other or one == other:
        return
    outlines = [shapely.from_wkt(scene.footprint) for scene in (one, other) if scene.footprint]
    if one.acquired == other.acquired and (len(outlines) < 2 or _agree(*outlines)):
        return
    raise SmaltiError(
        f"two items have the id {one.id} and are different scenes ({one.acquired:%Y-%m-%d %H:%M} and "
        f"{other.acquired:%Y-%m-%d %H:%M}, or other footprints): give each item of the archive an id of its own"
    )


def identity(candidate: Candidate) -> tuple[str, ...]:
    """What two copies of a scene have in common, besides the footprint."""
    scene, item = candidate.scene, candidate.item
    if scene.modality == "s2":
        tile = mgrs_tile(item)
        return ("s2", tile, _datatake(candidate)) if tile else ("s2", scene.id)
    burst = _OPERA.search(scene.id)
    if burst:
        return ("s1", burst[1], burst[2], burst[4])
    cut = _S1_SLICE.match(scene.id)
    return ("s1", cut[1] if cut else scene.id, str(scene.orbit))


def mgrs_tile(item: Item) -> str | None:
    """MGRS tile of a Sentinel-2 item, for example 31UES, or None if it names none."""
    properties = item["properties"]
    name = str(properties.get("s2:mgrs_tile") or properties.get("grid:code") or "").removeprefix("MGRS-")
    if not name and properties.get("mgrs:grid_square"):
        parts = (properties.get("mgrs:utm_zone"), properties.get("mgrs:latitude_band"), properties["mgrs:grid_square"])
        name = "".join(map(str, parts))
    if not name:
        match = _S2_TILE.search(str(item.get("id")))
        name = match[1] if match else ""
    return name.upper().removeprefix("T").zfill(5) if name else None


def _datatake(candidate: Candidate) -> str:
    """Satellite and start of the datatake: equal for every processing of it."""
    match = re.match(r"G(S2[A-D])_(\d{8}T\d{6})", str(candidate.item["properties"].get("s2:datatake_id")))
    match = match or _S2_TAKE.search(str(candidate.item["properties"].get("s2:product_uri") or candidate.scene.id))
    return f"{match[1]}_{match[2]}" if match else candidate.scene.acquired.strftime("%Y%m%dT%H%M%S")


def _rank(candidate: Candidate) -> tuple[int, datetime, float, str, bool, str]:
    """The greatest is kept: complete before incomplete, then the newest processing; ties by collection and id."""
    item, scene = candidate.item, candidate.scene
    properties = item["properties"]
    burst = _OPERA.search(scene.id)
    made = properties.get("s2:generation_time") or properties.get("s1:processing_datetime")
    made = made or (burst[3] if burst else None) or properties.get("updated")
    generated = parse_time(made) if made else None
    # of equal processings the one whose offset needs no guess
    collection = item.get("collection") == "sentinel-2-c1-l2a"
    version = burst[5] if burst else ""
    return len(scene.assets), generated or _OLDEST, processing_baseline(item) or 0.0, version, collection, scene.id


def _agree(one: BaseGeometry, other: BaseGeometry) -> bool:
    together = shapely.union(one, other).area
    return bool(together > 0 and shapely.intersection(one, other).area >= SAME_FOOTPRINT * together)
