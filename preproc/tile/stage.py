"""The fetch stage: plan and items -> tiles/<tile>/, one folder a tile. See docs/fetch.md."""

from __future__ import annotations

import time
from collections.abc import Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path

from infer.contract import (
    TILE_MANIFEST,
    Inputs,
    Lazily,
    Plan,
    PlannedTile,
    Run,
    SmaltiError,
    State,
    child,
    is_released,
    planned_tiles,
    scratch_folder,
    tile_state,
)
from infer.contract.imported import imported_tiles
from preproc.catalogue.items import TileScenes, archive_moved
from preproc.catalogue.scene import Scene
from preproc.reader.gdal import check_coordinates, gdal_settings
from preproc.region.grid import region_mask
from preproc.region.region import Region, load_region, outline_fingerprint
from preproc.run.clean import leftover_lines, leftovers
from preproc.run.config import Config
from preproc.run.embedded import EmbeddingUnits, embedding_units
from preproc.run.progress import say
from preproc.run.quality import summarise_quality
from preproc.run.stage import Built, Due, LateInputs, Session, Unit, one_by_one
from preproc.run.stages import Keep, keeper
from preproc.run.waves import NOTHING, Room, budget, room_of, tile_space
from preproc.tile.recipe import Fingerprints, TileJob

GROUP_PIXELS = 2048
"""Side of the square of tiles that are made together, in pixels: larger ones share more blocks and take more memory."""
GROUP_TILES = 4
"""Tiles along that side, at most: what a killed task loses."""

_RELEASED = State("released")

TELL_S = 10.0
"""Seconds between two lines on how far a group is."""


@dataclass(frozen=True, kw_only=True)
class TileUnit(Unit):
    """A tile. When its arrays were released it is complete as long as its embedding is, and fetched again otherwise."""

    tile: PlannedTile
    embeddings: EmbeddingUnits

    def state(self, *, checksums: bool = False) -> State:
        """As of any unit, or "released"."""
        released = is_released(self._folder)
        if checksums and not released:
            return super().state(checksums=True)
        try:
            wanted = self.wanted()
        except SmaltiError as error:
            return State("missing", str(error))
        embedded = self.embeddings.made_from(self.name)
        record, digest = tile_state(self.manifest, wanted, released=released, embedded=embedded)
        if not (released and record.complete):
            return record
        embedding = self.embeddings.of(self.name, digest).state()
        if embedding.complete:
            return _RELEASED
        return State("missing", f"its arrays were released, and its embedding is {embedding.kind}: {embedding.reason}")

    def mark(self) -> tuple[int, ...]:
        """As of any unit; a released tile's is its embedding's as well."""
        return (*super().mark(), *(self.embeddings.of(self.name).mark() if is_released(self._folder) else ()))

    @property
    def _folder(self) -> str:
        return str(self.manifest)[: -len(f"/{TILE_MANIFEST}")]


@dataclass(frozen=True)
class _RunScenes:
    """What all tiles of a run share."""

    config: Config
    outline: str
    """Fingerprint of the region."""
    index: TileScenes
    tiles: Sequence[PlannedTile]
    """That are to be fetched, in plan order: none of those whose embeddings were imported, nobody will read their
    scenes."""
    fingerprints: Fingerprints
    folder: Path
    """Of tiles."""
    embeddings: EmbeddingUnits
    looked_up: dict[str, str] = field(default_factory=dict)
    """Name of a tile -> fingerprint of its scenes."""

    def look_up(self, units: Sequence[Unit]) -> None:
        """Find the scenes of many tiles together, which is much faster than one by one."""
        tiles = [tile_of(unit) for unit in units]
        known: dict[int, tuple[Sequence[Scene], str]] = {}  # many tiles have the same list, which is kept by it
        for tile, scenes in zip(tiles, self.index.for_tiles(tiles), strict=True):
            if id(scenes) not in known:
                known[id(scenes)] = scenes, self.fingerprints.of(scenes)
            self.looked_up[tile.name] = known[id(scenes)][1]

    @cached_property
    def region(self) -> Region:
        """Read when a tile is made."""
        found = load_region(self.config.region)
        if found.fingerprint != self.outline:
            raise SmaltiError(f"{self.config.region.geometry}: it changed since this command began: run it again")
        return found

    @property
    def window(self) -> tuple[str, str]:
        """First and last day, ISO."""
        return self.config.region.start.isoformat(), self.config.region.end.isoformat()

    def unit(self, tile: PlannedTile) -> Unit:
        """The unit of a tile; its inputs are everything that the tile's bytes depend on."""
        return TileUnit(
            tile.name,
            child(self.folder, tile.name) / TILE_MANIFEST,
            "tile",
            LateInputs(partial(self._inputs, tile)),
            tile=tile,
            embeddings=self.embeddings,
        )

    def _inputs(self, tile: PlannedTile) -> Inputs:
        return {
            "grid": [tile.epsg, tile.west, tile.north, tile.size],
            "region": self.outline,
            "window": list(self.window),
            "min_clear": self.config.tiles.min_clear,
            "on_missing": self.config.archive.on_missing,
            "source": self.config.archive.source,
            "scenes": self.looked_up.get(tile.name) or self.fingerprints.of(self.index.for_tile(tile)),
        }

    def job(self, unit: Unit, scratch: Path | None, keep: Keep | None) -> TileJob:
        """What a tile is made from."""
        tile = tile_of(unit)
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
            keep=keep,
        )


def _season(run: Run, config: Config) -> _RunScenes:
    check_coordinates()
    tiles: Sequence[PlannedTile] = planned_tiles(run)
    index = TileScenes(run, config)
    fingerprints = Fingerprints(run.root, archive_moved(run, config))
    imported = imported_tiles(run)
    if imported:
        tiles = [tile for tile in tiles if tile.name not in imported]
    outline = outline_fingerprint(run, config.region)
    return _RunScenes(config, outline, index, tiles, fingerprints, run.tiles, embedding_units(run, config))


def tile_of(unit: Unit) -> PlannedTile:
    """The tile of a unit of this stage."""
    assert isinstance(unit, TileUnit)
    return unit.tile


def group_key(tile: PlannedTile) -> tuple[int, int, int]:
    """Which square of neighbouring tiles a tile belongs to: the same in every run and shard."""
    side = max(1, min(GROUP_TILES, GROUP_PIXELS // tile.size)) * tile.size * 10
    west, south, _, _ = tile.bounds
    return tile.epsg, west // side, south // side


def jobs_that_fit(jobs: Sequence[TileJob], room: Room | None) -> tuple[list[TileJob], dict[str, SmaltiError]]:
    """Those of some tiles that may be made together, and what is to be said of the others."""
    if room is None:
        return list(jobs), {}
    fitting: list[TileJob] = []
    refused: dict[str, SmaltiError] = {}
    needs = NOTHING
    for job in jobs:
        days = {(scene.modality, scene.orbit if scene.modality == "s1" else "", scene.day) for scene in job.scenes}
        s2 = sum(modality == "s2" for modality, _, _ in days)
        more = needs + tile_space(job.tile.size, s2, len(days) - s2)
        if room.fits(more):
            needs = more
            fitting.append(job)
        else:
            refused[job.tile.name] = room.refusal()
    return fitting, refused


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
        season = _season(run, config)
        units = Lazily(season.tiles, season.unit)
        return Session(
            units, lambda due: _build(run, season, due), after=lambda: _said_afterwards(run), ahead=season.look_up
        )


def _said_afterwards(run: Run) -> list[str]:
    return [*summarise_quality(run).lines(), *leftover_lines(run, leftovers(run))]


def _build(run: Run, season: _RunScenes, due: Due) -> Generator[Built]:
    """Fetch tiles, each together with those of its neighbours that are due as well."""
    # here: what talks to services takes long to import, and often no tile is due
    from preproc.reader.ranges import RangeClient
    from preproc.reader.read import Reader
    from preproc.reader.signing import make_signer
    from preproc.tile.build import build_tiles

    archive = season.config.archive
    scratch = scratch_folder(season.config.site.scratch)
    keep = None
    if season.config.tiles.keep == "record":
        keep = keeper(run, season.config, [tile_of(unit) for unit in due.units])
    room = None
    if budget(season.config) is not None:
        fetched = [tile.name for tile in season.tiles]
        room = room_of(run, season.config, Plan.read(run), due.shard, fetched)
    groups: dict[tuple[int, int, int], list[Unit]] = {}
    for unit in due.units:
        groups.setdefault(group_key(tile_of(unit)), []).append(unit)
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
                together = groups.pop(group_key(tile_of(unit)), [unit])
                jobs = [season.job(member, scratch, keep) for member in together]
                jobs, errors = jobs_that_fit(jobs, room)
                errors |= build_tiles(jobs, reader, pool, archive.workers, _Teller(len(jobs)))
                if room is not None:
                    room.measure(job.tile.name for job in jobs)
                results.update({member.name: errors.get(member.name) for member in together})
            error = results.pop(unit.name)
            if error is not None:
                raise error

        yield from one_by_one(due.units, make)
