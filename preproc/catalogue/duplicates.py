"""Scenes that the archive holds more than once: reprocessed, received at two stations, or in two collections. Pure.

Sentinel-2 items of one MGRS tile and datatake are copies of one granule. The newest processing comes first; an older
one is left out if newer ones cover it. Footprints of copies differ (square, outline of the data, of the product), and
so do the data of two stations and of a datatake that was split: what is not covered is kept, to fill in what lacks.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime

import shapely
from shapely.geometry import MultiPolygon
from shapely.geometry.base import BaseGeometry

from infer.contract import SmaltiError
from preproc.catalogue.declared import mgrs_tile
from preproc.catalogue.offset import processing_baseline
from preproc.catalogue.scene import Copy, Scene
from preproc.catalogue.sources import Item
from preproc.run.text import parse_time

SAME_FOOTPRINT = 0.8
"""Share of their union that the footprints of two items with one id must have in common."""
INACCURACY = 0.002
"""Part of a granule's side by which footprints may be off (200 m): they are drawn with few vertices."""

_S2_TAKE = re.compile(r"(S2[A-D])(?:_MSIL2A)?_(\d{8}T\d{6})_")
_S2_MADE = re.compile(r"MSIL2A.*_(\d{8}T\d{6})(?:\.SAFE)?$")
_S1_SLICE = re.compile(r"^(S1[A-D]_\w\w_\w{4}_\w{4}_\d{8}T\d{6}_\d{8}T\d{6}_\d{6}_[0-9A-F]{6})")
_OPERA = re.compile(r"(T\d{3}-\d{6}-IW\d)_(\d{8}T\d{6})Z_(\d{8}T\d{6})Z_(S1[A-D])_\d+_(v[\d.]+)")
_OLDEST = datetime(1, 1, 1, tzinfo=UTC)


@dataclass(frozen=True)
class Candidate:
    """A scene and the item it was parsed from."""

    item: Item
    scene: Scene


def dedupe(candidates: Sequence[Candidate]) -> tuple[list[Scene], dict[str, str]]:
    """Keep of each group of copies the newest, and those that newer ones do not cover.

    Args:
        candidates: in any order.

    Returns:
        The scenes kept, sorted by day and id, copies that are used side by side numbered; and the ids left out with
        the reason.

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
        used = _needed(group) if len(group) > 1 else group
        names = [candidate.scene.id for candidate in used]
        most = len(group[0].scene.assets)
        for scene in (other.scene for other in group if other.scene.id not in names):
            kind = "an older" if len(scene.assets) == most else "an incomplete"
            dropped[scene.id] = f"{kind} copy of {' and '.join(names[:3])}"
        kept += _numbered([candidate.scene for candidate in used], identity(group[0]))
    return sorted(kept, key=lambda scene: (scene.day, scene.id)), dict(sorted(dropped.items()))


def _needed(group: Sequence[Candidate]) -> list[Candidate]:
    """Those of a group's copies, newest first, that the ones before them do not cover."""
    used: list[Candidate] = []
    covered: BaseGeometry = MultiPolygon()
    for candidate in group:
        outline = shapely.from_wkt(candidate.scene.footprint)
        if not used or not covered.buffer(INACCURACY * outline.area**0.5, join_style="mitre").covers(outline):
            used.append(candidate)
            covered = covered.union(outline)
    return used


def _numbered(scenes: list[Scene], name: tuple[str, ...]) -> list[Scene]:
    """Copies of one granule, newest first, each told which it is."""
    if len(scenes) == 1:
        return scenes
    granule, acquired = " ".join(name), scenes[0].acquired
    return [replace(scene, copy=Copy(granule, acquired, number)) for number, scene in enumerate(scenes)]


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


def _datatake(candidate: Candidate) -> str:
    """Satellite and start of the datatake: equal for every processing of it."""
    match = re.match(r"G(S2[A-D])_(\d{8}T\d{6})", str(candidate.item["properties"].get("s2:datatake_id")))
    match = match or _S2_TAKE.search(str(candidate.item["properties"].get("s2:product_uri") or candidate.scene.id))
    return f"{match[1]}_{match[2]}" if match else candidate.scene.acquired.strftime("%Y%m%dT%H%M%S")


def _rank(candidate: Candidate) -> tuple[int, datetime, float, str, bool, str]:
    """The greatest comes first: complete before incomplete, then the newest processing; ties by collection and id."""
    item, scene = candidate.item, candidate.scene
    burst = _OPERA.search(scene.id)
    # of equal processings the one whose offset needs no guess
    collection = item.get("collection") == "sentinel-2-c1-l2a"
    version = burst[5] if burst else ""
    baseline = processing_baseline(item) or 0.0 if scene.modality == "s2" else 0.0
    return len(scene.assets), _processed(candidate, burst), baseline, version, collection, scene.id


def _processed(candidate: Candidate, burst: re.Match[str] | None) -> datetime:
    """When a scene was processed: as its item says it, or its product's name."""
    properties = candidate.item["properties"]
    names = [str(properties.get("s2:product_uri")), candidate.scene.id]
    stamps = [match[1] for match in map(_S2_MADE.search, names) if match] + ([burst[3]] if burst else [])
    stated = [properties.get(key) for key in ("s2:generation_time", "s1:processing_datetime")]
    moments = map(parse_time, (*stated, *stamps, properties.get("updated")))
    return next((moment for moment in moments if moment is not None), _OLDEST)


def _agree(one: BaseGeometry, other: BaseGeometry) -> bool:
    together = shapely.union(one, other).area
    return bool(together > 0 and shapely.intersection(one, other).area >= SAME_FOOTPRINT * together)
