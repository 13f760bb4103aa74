"""The grid of a mosaic: one per UTM zone, the bounding box of its tiles. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rasterio.transform import Affine

from infer.contract import PIXEL_SIZE, PlannedTile


@dataclass(frozen=True)
class ZoneGrid:
    """The raster that holds all tiles of one UTM zone, north up, square pixels of 10 m."""

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
    tiles: tuple[PlannedTile, ...]
    """The zone's tiles from north to south, then from west to east, whatever the order of the plan."""

    @property
    def label(self) -> str:
        """Zone and hemisphere, for example 31N."""
        return f"{self.epsg % 100:02d}{'N' if self.epsg < 32700 else 'S'}"

    @property
    def transform(self) -> Affine:
        """Pixel (column, row) -> metres."""
        return Affine(PIXEL_SIZE, 0.0, self.west, 0.0, -PIXEL_SIZE, self.north)

    @property
    def bounds(self) -> tuple[int, int, int, int]:
        """West, south, east, north in metres."""
        return self.west, self.north - self.height * PIXEL_SIZE, self.west + self.width * PIXEL_SIZE, self.north

    def place(self, tile: PlannedTile) -> tuple[int, int]:
        """Row and column of a tile's upper left pixel."""
        return (self.north - tile.north) // PIXEL_SIZE, (tile.west - self.west) // PIXEL_SIZE


def zone_grids(tiles: Sequence[PlannedTile]) -> list[ZoneGrid]:
    """One grid per UTM zone, by EPSG code.

    Args:
        tiles: of the plan, in any order.

    Raises:
        ValueError: if tiles of one zone do not share a 10 m lattice (a plan never has such).
    """
    zones: dict[int, list[PlannedTile]] = {}
    for tile in tiles:
        zones.setdefault(tile.epsg, []).append(tile)
    return [_grid(epsg, zones[epsg]) for epsg in sorted(zones)]


def _grid(epsg: int, tiles: Sequence[PlannedTile]) -> ZoneGrid:
    ordered = tuple(sorted(tiles, key=lambda tile: (-tile.north, tile.west)))
    west, north = min(t.west for t in ordered), max(t.north for t in ordered)
    east, south = max(t.bounds[2] for t in ordered), min(t.bounds[1] for t in ordered)
    stray = [t.name for t in ordered if (t.west - west) % PIXEL_SIZE or (north - t.north) % PIXEL_SIZE]
    if stray:
        raise ValueError(f"tile {stray[0]} is off the 10 m lattice of its zone {epsg}")
    return ZoneGrid(epsg, west, north, (east - west) // PIXEL_SIZE, (north - south) // PIXEL_SIZE, ordered)
