"""A small simulated archive with every quirk, and readers that know nothing of how it was made."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
from numpy.typing import NDArray

from preproc.simulate import SimulationOptions

QUIRKY = SimulationOptions(extent_km=0.8, s2_dates=16, s1_dates=10, neighbour_dates=3, parcel_ha=0.9)
"""About a second to make; neighbour granules, duplicates, a missing asset, split strips, swath edges, slices."""
CLEAR = (4, 5, 6, 7, 11)
"""SCL classes that the simulation promises to be untouched by clouds."""


def tree(folder: Path) -> dict[str, str]:
    """Path -> SHA-256 of every file."""
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def items(folder: Path, collection: str) -> list[dict[str, Any]]:
    """The items of one collection, as written."""
    features = json.loads((folder / "items.json").read_text())["features"]
    return [item for item in features if item["collection"] == collection]


def pixels(folder: Path, item: dict[str, Any], asset: str) -> NDArray[Any]:
    """One band of an item."""
    with rasterio.open(folder / item["assets"][asset]["href"]) as source:
        return np.asarray(source.read(1))


def superseded(found: list[dict[str, Any]]) -> dict[str, str]:
    """Older item -> newer item of the same datatake, tile and footprint."""
    groups: dict[tuple[str, str, str], list[dict[str, Any]]] = {}
    for item in found:
        properties = item["properties"]
        take = properties["s2:datatake_id"].rsplit("_", 1)[0]
        key = (properties["s2:mgrs_tile"], take, json.dumps(item["geometry"]))
        groups.setdefault(key, []).append(item)
    result = {}
    for group in groups.values():
        ordered = sorted(group, key=lambda item: str(item["properties"]["s2:generation_time"]))
        result.update({item["id"]: ordered[-1]["id"] for item in ordered[:-1]})
    return result
