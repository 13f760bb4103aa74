"""The order of a plan's tiles: such that shard I of N, every N-th tile, is a patch of neighbours. Pure.

Neighbours share scenes and compressed blocks: made in one task, what they share is fetched once. Tiles are put in the
order of squares of 4 x 4 (within those of 2 x 2), cut into N runs of one length, and dealt out so that the positions
I, I + N, I + 2N ... hold run I. With another N than was planned for, shards are as good, and less by_neighbourhood.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import numpy as np

from infer.contract import PlannedTile

T = TypeVar("T")

_SQUARES = (4, 2, 1)
"""Sides of the squares, in tiles, from the outermost: fetch makes at most 4 x 4 tiles together."""


def by_neighbourhood(tiles: Sequence[PlannedTile]) -> list[int]:
    """Indices of the tiles, zone by zone, square by square, each from north to south and from west to east."""
    if not tiles:
        return []
    rows = np.fromiter((value for tile in tiles for value in (tile.epsg, tile.west, tile.north)), np.int64)
    epsg, west, north = rows.reshape(-1, 3).T
    extent = tiles[0].size * 10
    column, row = west // extent, north // extent - 1  # of the lower edge: as fetch forms its squares
    keys = [epsg]
    for side in _SQUARES:
        keys += [-(row // side), column // side]
    order: list[int] = np.lexsort(keys[::-1]).tolist()
    return order


def interleaved(units: Sequence[T], shards: int) -> list[T]:
    """Units reordered so that every `shards`-th of them, from the I-th on, are the I-th run of the given order.

    Runs are as long as the shards are: the first ones are longer by one where it does not come out even.
    """
    count = len(units)
    shards = max(1, min(shards, count))
    short, longer = divmod(count, shards)
    starts = [index * short + min(index, longer) for index in range(shards)]
    return [units[starts[place % shards] + place // shards] for place in range(count)]
