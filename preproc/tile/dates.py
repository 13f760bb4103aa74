"""The dates of a group of neighbouring tiles: one read of a scene serves all tiles that need it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import date
from typing import Protocol

from infer.contract import SmaltiError
from preproc.catalogue.scene import Scene
from preproc.reader.placement import Target
from preproc.reader.read import BandKind, Placed
from preproc.reader.whereabouts import Whereabouts
from preproc.tile.open_tile import OpenTile
from preproc.tile.same_day import FailedRead, Observation, StackName, scene_order


class ReadsRasters(Protocol):
    """What a tile needs of the archive; see preproc.reader.read.Reader. Safe for threads."""

    def read(
        self, href: str, targets: Sequence[Target], kind: BandKind, said: Whereabouts | None = None
    ) -> list[Placed]:
        """Pixels of a raster on each target."""


@dataclass(frozen=True)
class ReadContext:
    """Who reads."""

    reader: ReadsRasters
    pool: ThreadPoolExecutor
    ahead: int
    """Reads begun or waiting to be used; bounds the memory."""
    tell: Callable[[str, int, int], None]
    """Told what is being read, how many dates of it are done, and of how many."""


@dataclass(frozen=True)
class TileDate:
    """A tile's share of a date."""

    tile: OpenTile
    observation: Observation

    def number(self, scene: Scene) -> int:
        """Which of the tile's scenes of that date this is, from 1; 0 if it is none of them."""
        ids = [member.id for member in self.observation.scenes]
        return ids.index(scene.id) + 1 if scene.id in ids else 0


@dataclass(frozen=True)
class StackDate:
    """One date of a stack, and the tiles that have scenes of it."""

    day: date
    parts: tuple[TileDate, ...]

    @property
    def scenes(self) -> list[Scene]:
        """The scenes of all its tiles, in the order in which they are asked for a pixel."""
        known = {scene.id: scene for part in self.parts for scene in part.observation.scenes}
        epsg = self.parts[0].tile.epsg
        return sorted(known.values(), key=lambda scene: scene_order(scene, epsg))


def stack_dates(tiles: Sequence[OpenTile], stack: StackName) -> list[StackDate]:
    """The dates of a stack over all tiles, ascending. The tiles are of one zone."""
    parts: dict[date, list[TileDate]] = {}
    for tile in tiles:
        if tile.alive:
            for observation in tile.observations(stack):
                parts.setdefault(observation.day, []).append(TileDate(tile, observation))
    return [StackDate(day, tuple(parts[day])) for day in sorted(parts)]


def read_for(
    reader: ReadsRasters, scene: Scene, asset: str, tiles: Sequence[OpenTile], kind: BandKind
) -> list[Placed] | FailedRead:
    """One asset of a scene on some tiles, or why not."""
    try:
        return reader.read(scene.assets[asset], [tile.target for tile in tiles], kind, scene.places.get(asset))
    except SmaltiError as error:
        return FailedRead(scene.id, asset, error)
