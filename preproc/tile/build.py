"""Tiles from their scenes: the arrays, the region mask, the quality summary and the manifest of each.

Neighbouring tiles are made together: what they need of a scene is fetched and decoded once. Memory, for 16 tiles of 512
pixels, 200 dates and 8 workers: one byte a pixel and kept date for the mosaics (0.5 GB at most), the reads in flight
(0.3 GB) and one date of bands (0.1 GB). The stacks themselves are streamed to disk, date by date.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

from infer.contract import SmaltiError
from preproc.tile.dates import ReadContext, ReadsRasters
from preproc.tile.open_tile import OpenTile
from preproc.tile.recipe import TileJob
from preproc.tile.sentinel1 import add_sentinel1
from preproc.tile.sentinel2 import add_sentinel2


def build_tiles(
    jobs: Sequence[TileJob],
    reader: ReadsRasters,
    pool: ThreadPoolExecutor,
    workers: int,
    tell: Callable[[str, int, int], None] = lambda *_: None,
) -> dict[str, SmaltiError]:
    """Make a group of tiles of one UTM zone, each atomically; the same bytes whatever the group and the workers.

    Args:
        jobs: what to make.
        reader: safe for threads.
        pool: where reads run.
        workers: its threads; twice as many reads are begun or waiting to be used.
        tell: told what is being read, how many dates of it are done, and of how many.

    Returns:
        Tile -> what went wrong. Such a tile has no folder (or keeps the one it had); the others are complete.
    """
    if len({job.tile.epsg for job in jobs}) > 1:
        raise ValueError("the tiles of a group lie in one zone")
    tiles = [OpenTile(job) for job in jobs]
    context = ReadContext(reader, pool, 2 * workers, tell)
    try:
        for tile in tiles:
            tile.begin()
        add_sentinel2(tiles, context)
        add_sentinel1(tiles, "s1_ascending", context)
        add_sentinel1(tiles, "s1_descending", context)
        for tile in tiles:
            tile.finish()
    finally:
        for tile in tiles:
            tile.discard()
    return {tile.name: tile.error for tile in tiles if tile.error is not None}
