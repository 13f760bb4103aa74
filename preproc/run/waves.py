"""What a run takes on disk, and waves of fetch and infer that keep it under [site] tile_space and tile_files.

A wave is a set of neighbouring shards. It is fetched when what the waves before it held is embedded and released. Who
fetches a shard reckons by itself, from the plan and the settings, which shards are of its wave: what lies on disk of
other waves, because embedding it failed, is room that the wave has not got, and its tasks share what is left. So the
budget holds after failures and requeues as well, without tasks that talk to each other.
"""

from __future__ import annotations

import math
import os
from collections.abc import Collection, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from infer.contract import TILE_ARRAYS, Plan, Run, Shard, SmaltiError, array_paths, is_released
from preproc.run.config import Config
from preproc.run.text import human_bytes

TILE_FILES = 11
"""Of a tile whose arrays are on disk: seven arrays, mask, manifest, quality and its picture."""
_BESIDE = 2**16
"""Bytes of a tile beside its stacks: headers, days of year, mask, quality, manifest."""
_UNEVEN = 1.1
"""Some shards see more dates than the mean."""
NO_ROOM = "no room for it under [site]"


class NoRoomError(SmaltiError):
    """A tile would lie on disk above the budget."""


@dataclass(frozen=True)
class Space:
    """Bytes and files of tiles."""

    bytes: float
    files: float

    def __add__(self, other: Space) -> Space:
        return Space(self.bytes + other.bytes, self.files + other.files)

    def __sub__(self, other: Space) -> Space:
        return Space(self.bytes - other.bytes, self.files - other.files)

    def __mul__(self, factor: float) -> Space:
        return Space(self.bytes * factor, self.files * factor)

    def holds(self, other: Space) -> bool:
        """Whether that much fits into it."""
        return other.bytes <= self.bytes and other.files <= self.files


NOTHING = Space(0, 0)


def budget(config: Config) -> Space | None:
    """What tiles may take on disk at any time; None where nobody set it."""
    site = config.site
    if site.tile_space is None and site.tile_files is None:
        return None
    return Space(site.tile_space or math.inf, site.tile_files or math.inf)


def tile_space(size: int, s2_dates: float, s1_dates: float) -> Space:
    """What a tile of so many dates takes: the most, if these are all dates on which a scene touches it. Pure."""
    return Space(size**2 * (21 * s2_dates + 4 * s1_dates) + _BESIDE, TILE_FILES)


@dataclass(frozen=True)
class Waves:
    """How a run's tiles are divided."""

    budget: Space
    shards: int
    """All shards that the tiles are divided among."""
    together: int
    """Shards of one wave."""

    @property
    def count(self) -> int:
        """Number of waves."""
        return -(-self.shards // self.together)

    def of(self, shard: int) -> int:
        """The wave of a shard."""
        return shard // self.together

    def members(self, wave: int) -> range:
        """The shards of a wave."""
        return range(wave * self.together, min(self.shards, (wave + 1) * self.together))


def fewest_shards(config: Config, tiles: int, s2_dates: float, s1_dates: float) -> int:
    """The fewest shards one of which fits into the budget; 1 without one. Pure.

    Raises:
        SmaltiError: if not one tile fits.
    """
    space = budget(config)
    return 1 if space is None else max(1, -(-tiles // _fitting(space, config, s2_dates, s1_dates)))


def _fitting(space: Space, config: Config, s2_dates: float, s1_dates: float) -> int:
    """Tiles that may lie on disk at a time."""
    one = tile_space(config.tiles.size, s2_dates, s1_dates) * _UNEVEN
    if not space.holds(one):
        raise SmaltiError(
            f"[site] tile_space, tile_files: a tile takes {human_bytes(one.bytes)} and {TILE_FILES} files: allow more, "
            "or make [tiles] size smaller"
        )
    return math.floor(min(space.bytes / one.bytes, space.files / one.files))


def waves_of(plan: Plan, config: Config, shards: int) -> Waves | None:
    """How so many shards are grouped into waves; None without a budget.

    Raises:
        SmaltiError: if not one tile fits.
    """
    space = budget(config)
    if space is None:
        return None
    fitting = _fitting(space, config, plan.season.s2_days, plan.season.s1_days)
    largest = max(1, -(-len(plan.tiles) // shards))
    return Waves(space, shards, max(1, fitting // largest))


def lying(run: Run, tiles: Collection[str]) -> dict[str, Space]:
    """What tiles take whose arrays are on disk, and what dead processes left half-made of them; of records nothing.

    Args:
        run: the run directory.
        tiles: names of those that count.

    Returns:
        Name of a folder in tiles/ -> what it takes; a half-made one's begins with a dot.
    """
    wanted = frozenset(tiles)
    found: dict[str, Space] = {}
    if not run.tiles.is_dir():
        return found
    with os.scandir(run.tiles) as entries:
        for entry in entries:
            name = entry.name[1:].split(".", 1)[0] if entry.name.startswith(".") else entry.name
            if name in wanted and entry.is_dir(follow_symlinks=False):
                found[entry.name] = _taken(Path(entry.path))
    return found


def _taken(folder: Path) -> Space:
    sizes = []
    for path in array_paths(folder):
        with suppress(OSError):  # not there, or gone meanwhile
            sizes.append(path.stat().st_size)
    if not sizes:
        return NOTHING
    beside = NOTHING if is_released(folder) else Space(_BESIDE, TILE_FILES - len(TILE_ARRAYS))
    return Space(sum(sizes), len(sizes)) + beside


class Room:
    """What one process may put on disk of its shard, and what it has."""

    def __init__(self, run: Run, allowed: Space, tiles: Collection[str]) -> None:
        self._run, self._allowed = run, allowed
        self._taken = lying(run, tiles)

    def fits(self, needs: Space) -> bool:
        """Whether that much more fits."""
        return self._allowed.holds(sum(self._taken.values(), needs))

    def measure(self, tiles: Iterable[str]) -> None:
        """Tiles were made: look at what they take."""
        self._taken.update({name: _taken(self._run.tiles / name) for name in tiles})

    def refusal(self) -> NoRoomError:
        """What is to be said of a tile that does not fit."""
        there = sum(self._taken.values(), NOTHING)
        return NoRoomError(
            f"{NO_ROOM} tile_space and tile_files: {human_bytes(there.bytes)} of tiles that are not embedded yet lie "
            "there: embed them (`smalti infer`, or `smalti resubmit`), then fetch again"
        )


def room_of(run: Run, config: Config, plan: Plan, shard: Shard, tiles: Sequence[str]) -> Room | None:
    """The share of a shard in what its wave may take; None without a budget.

    Args:
        run: the run directory.
        config: its settings.
        plan: its plan.
        shard: that is to be fetched.
        tiles: those that are fetched at all, in the order that shards divide.

    Raises:
        SmaltiError: if not one tile fits.
    """
    waves = waves_of(plan, config, shard.count)
    if waves is None:
        return None
    members = waves.members(waves.of(shard.index))
    wave = {name for index, name in enumerate(tiles) if index % shard.count in members}
    own = shard.take(tiles)
    others = lying(run, {tile.name for tile in plan.tiles} - wave)
    left = waves.budget - sum(others.values(), NOTHING)
    return Room(run, left * (len(own) / max(1, len(wave))), own)


RECORD = Space(2**14, TILE_FILES - 7)
"""What is kept of a tile whose arrays were let go: mask, manifest, quality and its picture, and that it was."""
_RELEASED = Space(0, 1)


@dataclass(frozen=True)
class StageDisk:
    """Of one stage."""

    stage: str
    peak: Space
    end: Space


def mosaic_bytes(pixels: float, config: Config) -> tuple[float, float]:
    """What the store and the GeoTIFFs of a mosaic take, about, for so many pixels of the region; 0: not written.

    Noise hardly compresses: what is saved is mostly what lies outside of the region.
    """
    dim, settings = config.model.dim, config.stitch
    store = dim + 4 + 24 if "zarr" in settings.formats else 0  # with the depths
    values = 4 * dim if settings.dtype == "float32" else dim + 4
    return pixels * store * 0.85, pixels * (values * 4 / 3 if "cog" in settings.formats else 0) * 0.85  # with overviews


def disk_of(plan: Plan, config: Config) -> list[StageDisk]:
    """What each stage that the plan reckons takes, and all of them together."""
    stages = []
    for stage, cost in plan.estimate.items():
        written = Space(cost.written_bytes, cost.files)
        stages.append(
            _fetch(written, len(plan.tiles), config) if stage == "fetch" else StageDisk(stage, written, written)
        )
    rest = sum((stage.end for stage in stages if stage.stage != "fetch"), NOTHING)
    tiles = next((stage for stage in stages if stage.stage == "fetch"), StageDisk("fetch", NOTHING, NOTHING))
    embedded = next((stage.end for stage in stages if stage.stage == "infer"), NOTHING)
    peak = tiles.peak + embedded  # tiles go before mosaics are made
    end = tiles.end + rest
    return [*stages, StageDisk("all", Space(max(peak.bytes, end.bytes), max(peak.files, end.files)), end)]


def _fetch(written: Space, tiles: int, config: Config) -> StageDisk:
    if config.tiles.keep != "record":
        return StageDisk("fetch", written, written)
    kept = (RECORD + _RELEASED) * tiles
    space = budget(config)
    if space is None:
        return StageDisk("fetch", Space(max(written.bytes, kept.bytes), max(written.files, kept.files)), kept)
    at_once = Space(min(space.bytes, written.bytes), min(space.files, written.files))
    return StageDisk("fetch", at_once + kept, kept)
