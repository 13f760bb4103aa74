"""The grid of a mosaic, one per UTM zone, and its sheets: the squares in which what gathers is divided. Pure.

A zone's grid is the bounding box of its tiles. Its sheets are squares of equal size from its upper left corner on, so
that a region smaller than a sheet is one sheet, and a sheet is a shard of the published stores' layout. A zone of which
the run has tiles on both sides of the equator is one grid in the northern CRS, whose rows go on below 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rasterio.transform import Affine

from infer.contract import PIXEL_SIZE, PlannedTile, PlannedTiles

_SOUTH = 32700
"""EPSG codes of southern zones begin above it."""
FALSE_NORTHING = 10_000_000
"""Metres by which the northings of a southern zone exceed those of the northern one."""


@dataclass(frozen=True)
class Overlap:
    """What a tile and a grid have in common, in pixels."""

    rows: slice
    """Of the tile."""
    columns: slice
    """Of the tile."""
    top: int
    """Row of the grid where it begins."""
    left: int
    """Column of the grid."""


@dataclass(frozen=True)
class ZoneGrid:
    """A raster of a UTM zone with the tiles that lie in it, north up, square pixels of 10 m."""

    epsg: int
    """326xx or 327xx."""
    west: int
    """Easting of the left edge in metres."""
    north: int
    """Northing of the upper edge in metres."""
    width: int
    """Columns."""
    height: int
    """Rows."""
    tiles: Sequence[PlannedTile]
    """Its tiles from north to south, then from west to east, whatever the order of the plan; southern ones before
    northern ones, since they reach beyond the equator and nothing of theirs is there."""

    @property
    def label(self) -> str:
        """Zone and hemisphere, for example 31N."""
        return f"{self.epsg % 100:02d}{'N' if self.epsg < _SOUTH else 'S'}"

    @property
    def transform(self) -> Affine:
        """Pixel (column, row) -> metres."""
        return Affine(PIXEL_SIZE, 0.0, self.west, 0.0, -PIXEL_SIZE, self.north)

    @property
    def bounds(self) -> tuple[int, int, int, int]:
        """West, south, east, north in metres."""
        return self.west, self.north - self.height * PIXEL_SIZE, self.west + self.width * PIXEL_SIZE, self.north

    @cached_property
    def mixed(self) -> bool:
        """Whether tiles of both hemispheres lie in it, which overlap in the pixels that the equator passes through."""
        return len(np.unique(PlannedTiles.of(self.tiles).column("epsg"))) > 1

    def northing(self, tile: PlannedTile) -> int:
        """Northing of a tile's upper edge in the grid's CRS."""
        return tile.north - (FALSE_NORTHING if self.epsg < _SOUTH < tile.epsg else 0)

    def tile_bounds(self, tile: PlannedTile) -> tuple[int, int, int, int]:
        """West, south, east, north of a tile in the grid's CRS."""
        extent, north = tile.size * PIXEL_SIZE, self.northing(tile)
        return tile.west, north - extent, tile.west + extent, north

    def place(self, tile: PlannedTile) -> tuple[int, int]:
        """Row and column of a tile's upper left pixel; of a tile that leaves a sheet they may be negative."""
        return (self.north - self.northing(tile)) // PIXEL_SIZE, (tile.west - self.west) // PIXEL_SIZE

    def places(self) -> NDArray[np.int64]:
        """(T, 2) `place` of all its tiles."""
        return self._places

    @cached_property
    def _places(self) -> NDArray[np.int64]:
        tiles = PlannedTiles.of(self.tiles)
        corner_t2 = np.column_stack([self.north - _northings(tiles, self.epsg), tiles.column("west") - self.west])
        return np.asarray(corner_t2 // PIXEL_SIZE)

    def part(self, top: int, left: int, height: int, width: int) -> ZoneGrid:
        """A window of the grid, which may leave it, with the tiles that touch it.

        Args:
            top: first row.
            left: first column.
            height: rows.
            width: columns.
        """
        tiles = PlannedTiles.of(self.tiles)
        row_t, column_t = self.places().T
        touches_t = (row_t < top + height) & (top < row_t + tiles.size)
        touches_t &= (column_t < left + width) & (left < column_t + tiles.size)
        west, north = self.west + left * PIXEL_SIZE, self.north - top * PIXEL_SIZE
        return replace(self, west=west, north=north, width=width, height=height, tiles=tiles.chosen(touches_t))

    def overlap(self, tile: PlannedTile) -> Overlap | None:
        """What of a tile lies in the grid; None if nothing does."""
        row, column = self.place(tile)
        rows = slice(max(0, -row), min(tile.size, self.height - row))
        columns = slice(max(0, -column), min(tile.size, self.width - column))
        if rows.start >= rows.stop or columns.start >= columns.stop:
            return None
        return Overlap(rows, columns, max(0, row), max(0, column))


@dataclass(frozen=True)
class Sheet:
    """A square of a zone, smaller at the zone's right and lower edge."""

    name: str
    """The zone's label where the zone is one sheet, otherwise with row and column: 31N_r00_c03."""
    zone: str
    """Label of its zone."""
    row: int
    """Of the zone's sheets, from the north."""
    column: int
    """Of the zone's sheets, from the west."""
    top: int
    """First row of the zone's pixels."""
    left: int
    """First column of the zone's pixels."""
    grid: ZoneGrid
    """Its extent, and the tiles that touch it."""

    @property
    def pixels(self) -> int:
        """Of its tiles that lie in it."""
        parts = [part for tile in self.grid.tiles if (part := self.grid.overlap(tile)) is not None]
        return sum((p.rows.stop - p.rows.start) * (p.columns.stop - p.columns.start) for p in parts)


def zone_grids(tiles: Sequence[PlannedTile]) -> list[ZoneGrid]:
    """One grid per UTM zone, by EPSG code.

    Args:
        tiles: of the plan, in any order.

    Raises:
        ValueError: if tiles of one zone do not share a 10 m lattice (a plan never has such).
    """
    table = PlannedTiles.of(tiles)
    zone_n = table.column("epsg") % 100
    grids = [_grid(table.chosen(zone_n == zone)) for zone in np.unique(zone_n).tolist()]
    return sorted(grids, key=lambda grid: grid.epsg)


def _grid(tiles: PlannedTiles) -> ZoneGrid:
    tiles = tiles.chosen(np.lexsort((tiles.column("west"), -tiles.column("north"), -tiles.column("epsg"))))
    epsg, extent = int(tiles.column("epsg").min()), tiles.size * PIXEL_SIZE
    west_n, north_n = tiles.column("west"), _northings(tiles, epsg)
    west, north = int(west_n.min()), int(north_n.max())
    east, south = int(west_n.max()) + extent, int(north_n.min()) - extent
    off_n = ((west_n - west) % PIXEL_SIZE != 0) | ((north - north_n) % PIXEL_SIZE != 0)
    if off_n.any():
        raise ValueError(f"tile {tiles[int(off_n.argmax())].name} is off the 10 m lattice of its zone {epsg}")
    return ZoneGrid(epsg, west, north, (east - west) // PIXEL_SIZE, (north - south) // PIXEL_SIZE, tiles)


def _northings(tiles: PlannedTiles, epsg: int) -> NDArray[np.int64]:
    """`ZoneGrid.northing` of all tiles."""
    return tiles.column("north") - np.where((epsg < _SOUTH) & (tiles.column("epsg") > _SOUTH), FALSE_NORTHING, 0)


def sheets_of(grid: ZoneGrid, side: int) -> list[Sheet]:
    """The sheets of a zone that have tiles, from north to south, then from west to east.

    Args:
        grid: of the zone.
        side: of a sheet in pixels.
    """
    tiles = PlannedTiles.of(grid.tiles)
    row_n, column_n = grid.places().T
    last = tiles.size - 1
    cells: list[NDArray[np.int64]] = []  # row, column, tile
    for down in range(last // side + 2):
        for across in range(last // side + 2):
            cell_row_n, cell_column_n = row_n // side + down, column_n // side + across
            touches_n = (cell_row_n <= (row_n + last) // side) & (cell_column_n <= (column_n + last) // side)
            found = np.stack([cell_row_n, cell_column_n, np.arange(len(tiles))], axis=1)
            cells.append(found[touches_n])
    cells_m3 = np.concatenate(cells)
    cells_m3 = cells_m3[np.lexsort(cells_m3.T[::-1])]
    bounds = np.flatnonzero(np.diff(cells_m3[:, :2], axis=0).any(axis=1)) + 1
    alone = max(grid.width, grid.height) <= side
    digits = max(2, len(str(max(grid.width, grid.height) // side)))
    sheets = []
    for cell_m3 in np.split(cells_m3, bounds):
        row, column = cell_m3[0, :2].tolist()
        top, left = row * side, column * side
        part = replace(
            grid,
            west=grid.west + left * PIXEL_SIZE,
            north=grid.north - top * PIXEL_SIZE,
            width=min(side, grid.width - left),
            height=min(side, grid.height - top),
            tiles=tiles.chosen(cell_m3[:, 2]),
        )
        name = grid.label if alone else f"{grid.label}_r{row:0{digits}d}_c{column:0{digits}d}"
        sheets.append(Sheet(name, grid.label, row, column, top, left, part))
    return sheets


def own_rows(tile: PlannedTile, row_n: NDArray[Any]) -> NDArray[np.bool_]:
    """Which rows of a tile lie in its own hemisphere. The first row beyond the equator has embeddings in both.

    Args:
        tile: which.
        row_n: (N,) rows.
    """
    northing_n = tile.north - (row_n + 0.5) * PIXEL_SIZE
    return np.asarray(northing_n >= 0 if tile.epsg < _SOUTH else northing_n < FALSE_NORTHING)


def shares_of(tiles: Sequence[PlannedTile], side: int) -> list[range]:
    """Tiles of a plan in its order, by their index, as many together as a sheet has: of what is divided by tiles.

    Args:
        tiles: of the plan.
        side: of a sheet in pixels.
    """
    step = max(1, side // tiles[0].size) ** 2 if tiles else 1
    return [range(start, min(start + step, len(tiles))) for start in range(0, len(tiles), step)]
