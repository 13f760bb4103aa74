"""plan.json: the tiles of a run, what was found for them, and what it will cost."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import date
from functools import lru_cache
from pathlib import Path
from typing import Any, Self

from infer.contract.errors import FormatError
from infer.contract.manifest import read_manifest
from infer.contract.names import safe_name
from infer.contract.record import Record, from_json
from infer.contract.run import PIXEL_SIZE, Run, check_folder

MAX_TILE_SIZE = 2048
"""Pixels along a tile's side, at most."""


@dataclass(frozen=True, slots=True)
class PlannedTile:
    """One tile of the plan: a square of `size` x `size` pixels of 10 m on the zone's snapped grid."""

    name: str
    epsg: int
    """UTM zone, 326xx or 327xx."""
    west: int
    """Easting of the left edge in metres, a multiple of 10 * size."""
    north: int
    """Northing of the upper edge in metres, a multiple of 10 * size."""
    size: int
    """Width and height in pixels."""

    @property
    def transform(self) -> tuple[float, float, float, float, float, float]:
        """Affine coefficients (a, b, c, d, e, f) as rasterio writes them."""
        return (float(PIXEL_SIZE), 0.0, float(self.west), 0.0, -float(PIXEL_SIZE), float(self.north))

    @property
    def bounds(self) -> tuple[int, int, int, int]:
        """West, south, east, north in metres."""
        extent = self.size * PIXEL_SIZE
        return self.west, self.north - extent, self.west + extent, self.north


@dataclass(frozen=True)
class PlannedRegion:
    """What [region] names."""

    name: str
    fingerprint: str
    """SHA-256 of its outline."""
    bbox: tuple[float, float, float, float]
    """West, south, east, north in degrees; west may exceed east across the antimeridian."""
    pixels: int
    """Inside the region."""


@dataclass(frozen=True)
class SceneCount:
    """The scenes of one stack."""

    scenes: int
    days: Mapping[str, int]
    """YYYY-MM-DD -> scenes of that day, ascending."""


@dataclass(frozen=True)
class LeftOut:
    """Items that are of no use, for one reason."""

    reason: str
    items: int
    examples: tuple[str, ...]
    """Ids of a few."""


@dataclass(frozen=True)
class FoundScenes:
    """What the search found."""

    s2: SceneCount
    s1_ascending: SceneCount
    s1_descending: SceneCount
    duplicates: int
    """Older copies of other items."""
    rejected: tuple[LeftOut, ...]


@dataclass(frozen=True)
class SampledTiles:
    """How often tiles are seen, from some of them."""

    tiles_sampled: int
    s2_days: float
    """Dates a tile, in the mean."""
    s1_days: float
    """Of both orbits."""
    least_s2_days: int
    """Of the tile with the fewest."""
    least_tile: str


@dataclass(frozen=True)
class Cost:
    """Of a stage, all tiles together; see docs/plan.md."""

    read_bytes: int
    written_bytes: int
    files: int
    memory_bytes: int
    """Of one process."""
    seconds: int = field(metadata={"was": "cpu_seconds"})
    """On the machine that planned; of fetch mostly of waiting for the network."""
    gpu_seconds: int | None = None
    """On one GPU; None for a stage that uses none."""


@dataclass(frozen=True, kw_only=True)
class Plan(Record):
    """plan.json, whose files are the items of the search."""

    kind = "plan"
    stage = "plan"

    tile_size: int
    """Pixels along a tile's side."""
    tiles: tuple[PlannedTile, ...]
    """In the order that shards divide; in the file, rows of name, EPSG, west and north."""
    zones: Mapping[str, int]
    """EPSG code -> tiles."""
    region: PlannedRegion
    window: tuple[date, date]
    """First and last day, inclusive."""
    source: str
    """[archive] source."""
    scenes: FoundScenes
    season: SampledTiles
    neighbours_in_shards_of: int
    """The number of shards for which each shard is a patch of neighbours."""
    estimate: Mapping[str, Cost]
    """Stage -> what it costs."""
    warnings: tuple[str, ...]

    @classmethod
    def path(cls, run: Run) -> Path:
        """RUN/plan.json."""
        return run.plan

    @classmethod
    def read(cls, run: Run) -> Self:
        """Read RUN/plan.json.

        Raises:
            SmaltiError: if there is no such run.
            FormatError: if the plan is missing or not what it should be.
        """
        content, tiles = _read(run)
        return from_json(cls, {**content, "tiles": tiles}, run.plan, _again(run))

    def as_json(self) -> dict[str, Any]:
        """The record as JSON values."""
        rows = [[tile.name, tile.epsg, tile.west, tile.north] for tile in self.tiles]
        return {**Record.as_json(replace(self, tiles=())), "tiles": rows}


def planned_tiles(run: Run) -> list[PlannedTile]:
    """The tiles of the plan, in plan order (the order that shards divide): all that the engine needs of it.

    Raises:
        FormatError: if the plan is not what it should be; a tile's name must be safe, for folders are named by it.
    """
    return list(_read(run)[1])


def _read(run: Run) -> tuple[dict[str, Any], tuple[PlannedTile, ...]]:
    """The plan without its tiles, and those. A command asks for it many times; a country's takes a while to read."""
    check_folder(run)
    try:
        found = run.plan.stat()
    except OSError:
        return _parsed(run)  # which says what is wrong
    return _kept(run, found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns)


@lru_cache(maxsize=1)
def _kept(run: Run, *file: int) -> tuple[dict[str, Any], tuple[PlannedTile, ...]]:
    del file  # part of the key: a plan that was replaced is read again
    return _parsed(run)


def _parsed(run: Run) -> tuple[dict[str, Any], tuple[PlannedTile, ...]]:
    content = read_manifest(run.plan, Plan.kind, remedy=f"run `smalti plan {run.quoted}`")
    tiles = tuple(_tiles(run, content))
    content.pop("tiles")
    return content, tiles


def _again(run: Run) -> str:
    return f"run `smalti plan {run.quoted} --force`"


def _tiles(run: Run, content: Mapping[str, Any]) -> list[PlannedTile]:
    remedy, where = _again(run), str(run.plan)
    rows, size = content.get("tiles"), content.get("tile_size")
    if not isinstance(rows, list) or type(size) is not int or not 0 < size <= MAX_TILE_SIZE:
        raise FormatError(f"{run.plan}: its tiles cannot be read (no list of tiles, or no size): {remedy}")
    tiles = [_planned(row, size, where, remedy) for row in rows]
    if len({tile.name for tile in tiles}) < len(tiles):
        raise FormatError(f"{run.plan}: two of its tiles have the same name: {remedy}")
    return tiles


def _planned(row: Any, size: int, where: str, remedy: str) -> PlannedTile:
    if not (isinstance(row, list) and len(row) == 4 and _whole(row[1]) and _whole(row[2]) and _whole(row[3])):
        raise FormatError(f"{where}: its tiles cannot be read (a row is not name, EPSG, west, north): {remedy}")
    name, epsg, west, north = row
    if epsg // 100 not in (326, 327) or not 1 <= epsg % 100 <= 60:
        raise FormatError(f"{where}: EPSG:{epsg} is no UTM zone: {remedy}")
    return PlannedTile(safe_name(name, where, remedy), epsg, west, north, size)


def _whole(value: Any) -> bool:
    return type(value) is int and -(10**8) < value < 10**8
