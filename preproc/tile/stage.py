"""The fetch stage: plan and items -> tiles/<tile>/, one folder a tile. See docs/fetch.md."""

from __future__ import annotations

import time
from collections.abc import Generator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from infer.contract import TILE_MANIFEST, PlannedTile, Run, SmaltiError, child, planned_tiles, scratch_folder
from infer.contract.imported import imported_tiles
from preproc.catalogue.items import SceneIndex, archive_moved, load_scenes
from preproc.reader.gdal import check_coordinates, gdal_settings
from preproc.reader.ranges import RangeClient
from preproc.reader.read import Reader
from preproc.reader.signing import make_signer
from preproc.region.grid import region_mask
from preproc.region.region import Region, load_region
from preproc.run.config import Config
from preproc.run.leftovers import leftover_lines, leftovers
from preproc.run.progress import say
from preproc.run.quality import summarise_quality
from preproc.run.stage import Built, Due, Session, Unit, one_by_one
from preproc.tile.build import build_tiles
from preproc.tile.recipe import Fingerprints, TileJob

GROUP_PIXELS = 2048
"""Side of the square of tiles that are made together, in pixels: larger ones share more blocks and take more memory."""
GROUP_TILES = 4
"""Tiles along that side, at most: what a killed task loses."""

TELL_S = 10.0
"""Seconds between two lines on how far a group is."""


@dataclass(frozen=True)
class _RunScenes:
    """What all tiles of a run share."""

    config: Config
    region: Region
    index: SceneIndex
    tiles: dict[str, PlannedTile]
    fingerprints: Fingerprints

    @property
    def window(self) -> tuple[str, str]:
        """First and last day, ISO."""
        return self.config.region.start.isoformat(), self.config.region.end.isoformat()

    def unit(self, run: Run, tile: PlannedTile) -> Unit:
        """The unit of a tile; its inputs are everything that the tile's bytes depend on."""
        inputs = {
            "grid": [tile.epsg, tile.west, tile.north, tile.size],
            "region": self.region.fingerprint,
            "window": list(self.window),
            "min_clear": self.config.tiles.min_clear,
            "on_missing": self.config.archive.on_missing,
            "source": self.config.archive.source,
            "scenes": self.fingerprints.of(self.index.for_tile(tile)),
        }
        return Unit(tile.name, child(run.tiles, tile.name) / TILE_MANIFEST, "tile", inputs)

    def job(self, unit: Unit, scratch: Path | None) -> TileJob:
        """What a tile is made from."""
        tile = self.tiles[unit.name]
        return TileJob(
            tile=tile,
            folder=unit.manifest.parent,
            inside_hw=region_mask(self.region, tile),
            scenes=self.index.for_tile(tile),
            window=self.window,
            min_clear=self.config.tiles.min_clear,
            on_missing=self.config.archive.on_missing,
            source=self.config.archive.source,
            inputs=unit.inputs,
            scratch=scratch,
        )


def _season(run: Run, config: Config) -> _RunScenes:
    check_coordinates()
    tiles = {tile.name: tile for tile in planned_tiles(run)}
    index = SceneIndex(load_scenes(run, config))
    fingerprints = Fingerprints(run.root, archive_moved(run, config))
    return _RunScenes(config, load_region(config.region), index, tiles, fingerprints)


def group_key(tile: PlannedTile) -> tuple[int, int, int]:
    """Which square of neighbouring tiles a tile belongs to: the same in every run and shard."""
    side = max(1, min(GROUP_TILES, GROUP_PIXELS // tile.size)) * tile.size * 10
    west, south, _, _ = tile.bounds
    return tile.epsg, west // side, south // side


class _Teller:
    """Says now and then how far a group of tiles is: the stage's own progress counts whole tiles."""

    def __init__(self, tiles: int) -> None:
        self._tiles = tiles
        self._said = time.monotonic()

    def __call__(self, what: str, done: int, total: int) -> None:
        now = time.monotonic()
        if now - self._said >= TELL_S:
            self._said = now
            together = f"{self._tiles} tiles together" if self._tiles > 1 else "1 tile"
            say(f"fetch: {together}: {what}: {done} of {total} dates")


class FetchStage:
    """Reads the scenes of every planned tile and writes its time series."""

    name = "fetch"
    noun = "tiles"
    sharded = True
    apart = False

    def open(self, run: Run, config: Config) -> Session:
        """One unit a planned tile, in plan order; none of those whose embeddings were imported.

        Raises:
            SmaltiError: if there is no valid plan, or its items cannot be read.
        """
        imported = imported_tiles(run)  # their embeddings are there: nobody will read their scenes
        season = _season(run, config)
        units = [season.unit(run, tile) for tile in season.tiles.values() if tile.name not in imported]
        return Session(units, lambda due: _build(run, season, due), after=lambda: _said_afterwards(run))


def _said_afterwards(run: Run) -> list[str]:
    return [*summarise_quality(run).lines(), *leftover_lines(run, leftovers(run))]


def _build(run: Run, season: _RunScenes, due: Due) -> Generator[Built]:
    """Fetch tiles, each together with those of its neighbours that are due as well."""
    archive = season.config.archive
    scratch = scratch_folder(season.config.site.scratch)
    groups: dict[tuple[int, int, int], list[Unit]] = {}
    for unit in due.units:
        groups.setdefault(group_key(season.tiles[unit.name]), []).append(unit)
    results: dict[str, SmaltiError | None] = {}
    """Made along with a neighbour: what went wrong, or None."""
    with (
        gdal_settings(),
        RangeClient(make_signer(run, season.config), connections=archive.connections) as client,
        ThreadPoolExecutor(archive.workers, thread_name_prefix="read") as pool,
    ):
        reader = Reader(client)

        def make(unit: Unit) -> None:
            if unit.name not in results:
                together = groups.pop(group_key(season.tiles[unit.name]), [unit])
                jobs = [season.job(member, scratch) for member in together]
                errors = build_tiles(jobs, reader, pool, archive.workers, _Teller(len(together)))
                results.update({member.name: errors.get(member.name) for member in together})
            error = results.pop(unit.name)
            if error is not None:
                raise error

        yield from one_by_one(due.units, make)
