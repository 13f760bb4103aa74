"""The fetch stage: plan and items -> tiles/<tile>/, one folder a tile. See docs/fetch.md."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass

from infer.contract import TILE_MANIFEST, PlannedTile, Run, planned_tiles
from preproc.archive.catalogue import SceneIndex, load_scenes
from preproc.archive.read import Reader
from preproc.archive.scene import Scene
from preproc.archive.signing import make_signer
from preproc.archive.transport import gdal_settings
from preproc.config import Config
from preproc.grid import region_mask
from preproc.region import Region, load_region
from preproc.stage import Unit
from preproc.tile.build import Fingerprints, TileJob, build_tile


@dataclass(frozen=True)
class _Season:
    """What all tiles of a run share."""

    region: Region
    index: SceneIndex
    tiles: dict[str, PlannedTile]
    fingerprints: Fingerprints

    def inputs(self, tile: PlannedTile, config: Config) -> dict[str, object]:
        """Fingerprint of everything that the tile's bytes depend on."""
        return {
            "grid": [tile.epsg, tile.west, tile.north, tile.size],
            "region": self.region.fingerprint,
            "window": [config.region.start.isoformat(), config.region.end.isoformat()],
            "min_clear": config.tiles.min_clear,
            "on_missing": config.archive.on_missing,
            "source": config.archive.source,
            "scenes": self.fingerprints.of(self.index.for_tile(tile)),
        }


def _season(run: Run, config: Config) -> _Season:
    tiles = {tile.name: tile for tile in planned_tiles(run)}
    scenes: list[Scene] = load_scenes(run, config)
    return _Season(load_region(config.region), SceneIndex(scenes), tiles, Fingerprints())


class FetchStage:
    """Reads the scenes of every planned tile and writes its time series."""

    name = "fetch"
    noun = "tiles"
    sharded = True

    def units(self, run: Run, config: Config) -> list[Unit]:
        """One unit a planned tile, in plan order.

        Raises:
            SmaltiError: if there is no valid plan, or its items cannot be read.
        """
        season = _season(run, config)
        return [
            Unit(name, run.tiles / name / TILE_MANIFEST, "tile", season.inputs(tile, config))
            for name, tile in season.tiles.items()
        ]

    @contextmanager
    def builder(self, run: Run, config: Config) -> Iterator[Callable[[Unit], None]]:
        """A function that fetches one tile; the threads and tokens live as long as the context."""
        season = _season(run, config)
        reader = Reader(make_signer(run, config))
        workers = config.archive.workers
        with gdal_settings(), ThreadPoolExecutor(workers, thread_name_prefix="read") as pool:

            def build(unit: Unit) -> None:
                tile = season.tiles[unit.name]
                job = TileJob(
                    tile=tile,
                    inside_hw=region_mask(season.region, tile),
                    scenes=season.index.for_tile(tile),
                    window=(config.region.start.isoformat(), config.region.end.isoformat()),
                    min_clear=config.tiles.min_clear,
                    on_missing=config.archive.on_missing,
                    source=config.archive.source,
                    inputs=unit.inputs,
                )
                build_tile(job, reader, pool, workers, unit.manifest.parent)

            yield build
