"""plan.json: the tiles of a run, what was found for them, and what it will cost.

A plan of more than a thousand tiles has them in a file of its own, plan_tiles.npy, as columns: a task looks at
its share of a million tiles without making the others.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import date
from functools import lru_cache
from itertools import chain
from pathlib import Path
from typing import Any, Self, overload

import numpy as np
from numpy.typing import NDArray

from infer.contract.atomic import atomic_file, write_npy
from infer.contract.errors import FormatError
from infer.contract.manifest import Inputs, read_manifest, verify_files
from infer.contract.names import MAX_NAME_BYTES, safe_name
from infer.contract.record import Record, from_json
from infer.contract.regular import JsonObject, open_npy
from infer.contract.run import PIXEL_SIZE, Run, check_folder

MAX_TILE_SIZE = 2048
"""Pixels along a tile's side, at most."""
TILES_FILE = "plan_tiles.npy"
"""Beside plan.json: the tiles of a large plan, one a row, in the order that shards divide."""
_ROWS_IN_JSON = 1000
"""So many tiles stand in plan.json itself, for people to read."""
_KEPT = 1 << 18
"""Tiles that are kept once they were made: 60 megabytes."""
_COLUMNS = ("epsg", "west", "north")


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


def _row_type(width: int) -> np.dtype[Any]:
    """A tile as a row, with a name of so many bytes."""
    return np.dtype([*((key, "<i4") for key in _COLUMNS), ("name", f"S{width}")])


class PlannedTiles(Sequence[PlannedTile]):
    """Tiles as columns, of which each is made when it is asked for; parts share memory, and tiles that were made."""

    def __init__(self, rows_n: NDArray[Any], size: int, where: str = TILES_FILE, remedy: str = "plan again") -> None:
        """Tiles of a table.

        Args:
            rows_n: (N,) with the fields epsg, west, north and name (UTF-8).
            size: of all of them, in pixels.
            where: what they were read from, for messages.
            remedy: what to do, for messages.
        """
        self.rows_n, self.size, self._where, self._remedy = rows_n, size, where, remedy
        self._made: list[PlannedTile] | None = None
        """All of them, once somebody has gone through them: a command does so many times."""

    @classmethod
    def of(cls, tiles: Iterable[PlannedTile]) -> PlannedTiles:
        """The same of tiles in a list."""
        if isinstance(tiles, PlannedTiles):
            return tiles
        listed = list(tiles)
        rows = [(tile.epsg, tile.west, tile.north, tile.name.encode()) for tile in listed]
        width = max((len(row[3]) for row in rows), default=1)
        return cls(np.array(rows, dtype=_row_type(width)), listed[0].size if listed else 1)

    def column(self, key: str) -> NDArray[np.int64]:
        """(N,) epsg, west or north of all tiles."""
        return np.asarray(self.rows_n[key], dtype=np.int64)

    def chosen(self, which_n: NDArray[Any]) -> PlannedTiles:
        """Those that an index array or a mask names, in its order."""
        found = PlannedTiles(self.rows_n[which_n], self.size, self._where, self._remedy)
        if self._made is not None:
            found._made = [self._made[index] for index in np.arange(len(self))[which_n].tolist()]
        return found

    def __len__(self) -> int:
        return len(self.rows_n)

    @overload
    def __getitem__(self, index: int) -> PlannedTile: ...
    @overload
    def __getitem__(self, index: slice) -> PlannedTiles: ...
    def __getitem__(self, index: int | slice) -> PlannedTile | PlannedTiles:
        if isinstance(index, slice):
            found = PlannedTiles(self.rows_n[index], self.size, self._where, self._remedy)
            found._made = None if self._made is None else self._made[index]
            return found
        return self._tile(self.rows_n[index].tolist()) if self._made is None else self._made[index]

    def __iter__(self) -> Iterator[PlannedTile]:
        if self._made is not None:
            return iter(self._made)
        if len(self) <= _KEPT:
            self._made = list(map(self._tile, self.rows_n.tolist()))
            return iter(self._made)
        starts = range(0, len(self), 4096)
        return chain.from_iterable(map(self._tile, self.rows_n[start : start + 4096].tolist()) for start in starts)

    def _tile(self, row: tuple[int, int, int, bytes]) -> PlannedTile:
        epsg, west, north, name = row
        text = name.decode("utf-8", "backslashreplace")
        return PlannedTile(safe_name(text, self._where, self._remedy), epsg, west, north, self.size)

    def __eq__(self, other: object) -> bool:
        if isinstance(other, list | tuple):
            return len(self) == len(other) and all(mine == its for mine, its in zip(self, other, strict=True))
        return isinstance(other, PlannedTiles) and self.size == other.size and np.array_equal(self.rows_n, other.rows_n)

    __hash__ = None  # type: ignore[assignment]  # as a list

    def __repr__(self) -> str:
        return f"PlannedTiles({len(self)} of {self.size} x {self.size} pixels)"


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
    read_from: str | None = None
    """SHA-256 of the file that its outline was read from and of which layer; None if run.toml states the outline."""


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
    """plan.json, whose files are the items of the search and, of a large plan, the tables of tiles and scenes."""

    kind = "plan"
    stage = "plan"

    tile_size: int
    """Pixels along a tile's side."""
    tiles: Sequence[PlannedTile]
    """In the order that shards divide; in the file, rows of name, EPSG, west and north, or how many TILES_FILE has."""
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
        return replace(from_json(cls, {**content, "tiles": ()}, run.plan, _again(run)), tiles=tiles)

    def as_json(self) -> dict[str, Any]:
        """The record as JSON values."""
        tiles: Any = len(self.tiles)
        if tiles <= _ROWS_IN_JSON:
            tiles = [[tile.name, tile.epsg, tile.west, tile.north] for tile in self.tiles]
        return {**Record.as_json(replace(self, tiles=())), "tiles": tiles}

    def write(self, path: Path, *, inputs: Inputs, files: Sequence[Path]) -> None:
        """Write the plan; see `Record.write`."""
        path.with_name(TILES_FILE).unlink(missing_ok=True)  # of an earlier plan
        if len(self.tiles) > _ROWS_IN_JSON:
            files = [*files, path.with_name(TILES_FILE)]
            with atomic_file(files[-1]) as temporary:
                rows_n = np.ascontiguousarray(PlannedTiles.of(self.tiles).rows_n)
                write_npy(temporary, rows_n.view(np.uint8).reshape(len(rows_n), -1))
        super().write(path, inputs=inputs, files=files)


def planned_tiles(run: Run) -> PlannedTiles:
    """The tiles of the plan, in plan order (the order that shards divide): all that the engine needs of it.

    Raises:
        FormatError: if the plan is not what it should be; a tile's name must be safe, for folders are named by it.
    """
    return _read(run)[1]


def _read(run: Run) -> tuple[dict[str, Any], PlannedTiles]:
    """The plan without its tiles, and those. A command asks for it many times."""
    check_folder(run)
    try:
        found = run.plan.stat()
    except OSError:
        return _parsed(run)  # which says what is wrong
    return _kept(run, found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns)


@lru_cache(maxsize=1)
def _kept(run: Run, *file: int) -> tuple[dict[str, Any], PlannedTiles]:
    del file  # part of the key: a plan that was replaced is read again
    return _parsed(run)


def _parsed(run: Run) -> tuple[dict[str, Any], PlannedTiles]:
    content = read_manifest(run.plan, Plan.kind, remedy=f"run `smalti plan {run.quoted}`")
    tiles = _tiles(run, content)
    content.pop("tiles")
    return content, tiles


def _again(run: Run) -> str:
    return f"run `smalti plan {run.quoted} --force`"


def _tiles(run: Run, content: JsonObject) -> PlannedTiles:
    remedy, where = _again(run), str(run.plan)
    rows, size = content.get("tiles"), content.get("tile_size")
    if type(size) is not int or not 0 < size <= MAX_TILE_SIZE or not (isinstance(rows, list) or _whole(rows)):
        raise FormatError(f"{run.plan}: its tiles cannot be read (no list of tiles, or no size): {remedy}")
    if isinstance(rows, list):  # of a small plan, or as all were written before
        made = PlannedTiles.of(_planned(row, size, where, remedy) for row in rows)
        found = PlannedTiles(made.rows_n, size, where, remedy)
    else:
        found = _table(run, content, rows, size)
    names = found.rows_n["name"].tolist()
    if len(set(names)) < len(names):
        raise FormatError(f"{run.plan}: two of its tiles have the same name: {remedy}")
    return found


def _table(run: Run, content: JsonObject, count: Any, size: int) -> PlannedTiles:
    path, remedy = run.plan.with_name(TILES_FILE), _again(run)
    if TILES_FILE not in content["files"]:
        raise FormatError(f"{run.plan}: does not list {TILES_FILE}, which holds its tiles: {remedy}")
    verify_files(run.plan, {TILES_FILE: content["files"][TILES_FILE]}, remedy=remedy)
    bytes_nb, least = open_npy(path, remedy), 4 * len(_COLUMNS)
    shape, kind = bytes_nb.shape, bytes_nb.dtype
    if kind != np.uint8 or len(shape) != 2 or shape[0] != count or not least < shape[1] <= least + MAX_NAME_BYTES:
        raise FormatError(f"{path}: {kind} {shape} are not the {count} tiles of the plan: {remedy}")
    rows_n = np.array(bytes_nb).view(_row_type(shape[1] - least)).reshape(count)
    epsg, west, north = (np.asarray(rows_n[key], dtype=np.int64) for key in _COLUMNS)
    zones = np.unique(epsg)
    wrong = [zone for zone in zones.tolist() if not _zone(zone)]
    if wrong:
        raise FormatError(f"{path}: EPSG:{wrong[0]} is no UTM zone: {remedy}")
    if count and max(np.abs(west).max(), np.abs(north).max()) >= _FARTHEST:
        raise FormatError(f"{path}: a tile lies beyond the Earth: {remedy}")
    return PlannedTiles(rows_n, size, str(path), remedy)


def _planned(row: Any, size: int, where: str, remedy: str) -> PlannedTile:
    if not (isinstance(row, list) and len(row) == 4 and _whole(row[1]) and _whole(row[2]) and _whole(row[3])):
        raise FormatError(f"{where}: its tiles cannot be read (a row is not name, EPSG, west, north): {remedy}")
    name, epsg, west, north = row
    if not _zone(epsg):
        raise FormatError(f"{where}: EPSG:{epsg} is no UTM zone: {remedy}")
    return PlannedTile(safe_name(name, where, remedy), epsg, west, north, size)


_FARTHEST = 10**8
"""Metres."""


def _zone(epsg: int) -> bool:
    return epsg // 100 in (326, 327) and 1 <= epsg % 100 <= 60


def _whole(value: Any) -> bool:
    return type(value) is int and -_FARTHEST < value < _FARTHEST
