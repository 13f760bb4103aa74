"""Region -> tiles on a fixed UTM grid, and the order that they are worked through in. Pure.

The grid does not depend on the region: tile corners are multiples of the tile's ground size in each UTM zone, and each
place belongs to one zone, that of its longitude and hemisphere (without the exceptions for Norway and Svalbard). So
two runs whose regions overlap share the tiles of the overlap. A region that crosses a zone's edge or the equator is cut
there; each part has its own sub-grid. Within a zone every pixel belongs to one tile; along a cut, the pixels that the
cut passes through are in both sub-grids (at most one pixel of overlap, never a gap).

The order is such that shard I of N, every N-th tile, is a patch of neighbours: they share scenes and compressed blocks,
and made in one task, what they share is fetched once. Tiles are put in the order of squares of 4 x 4 (within those of
2 x 2), cut into N runs of one length, and dealt out so that the positions I, I + N, I + 2N ... hold run I. With another
N than was planned for, shards are as good, and less by_neighbourhood.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import TypeVar

import numpy as np
import shapely
from numpy.typing import NDArray
from pyproj import Transformer
from rasterio.features import rasterize
from rasterio.transform import Affine
from shapely.geometry import MultiPolygon, Polygon
from shapely.geometry.base import BaseGeometry

from infer.contract import PIXEL_SIZE, PlannedTile, SmaltiError
from preproc.region.region import WGS84, Region, polygons_of, reproject, split_antimeridian

ZONE_DEGREES = 6
MAX_TILES = 4_000_000
"""Of one plan: a million take a minute and a gigabyte."""
_BLOCK = 32
"""Tiles along the side of the squares with which the search for tiles begins."""
_EDGE = 1e-6
"""Metres by which a tile is narrowed before it is compared with the region: what only shares its edge is no overlap."""
_SQUARES = (4, 2, 1)
"""Sides of the squares, in tiles, from the outermost: fetch makes at most 4 x 4 tiles together."""


def zone_epsg(longitude: float, latitude: float) -> int:
    """UTM zone of a place: 32601..32660 from the equator northwards, 32701..32760 south of it."""
    zone = min(int((longitude + 180) // ZONE_DEGREES) + 1, 60)
    return (32600 if latitude >= 0 else 32700) + zone


def zone_box(epsg: int) -> Polygon:
    """The part of the world that belongs to a zone, in degrees."""
    west = (epsg % 100) * ZONE_DEGREES - 186
    south, north = (0, 90) if epsg < 32700 else (-90, 0)
    return shapely.box(west, south, west + ZONE_DEGREES, north)


def utm_zones(region: Region) -> list[int]:
    """EPSG codes of the zones in which the region has an area, ascending."""
    return sorted(epsg for epsg in _candidate_zones(region) if not _clip(region, epsg).is_empty)


def zone_part(region: Region, epsg: int) -> BaseGeometry:
    """The region's part that belongs to a zone, in metres; empty if it has none. The last few are remembered."""
    return _zone_part(region, epsg)


def plan_tiles(region: Region, size: int) -> list[PlannedTile]:
    """The tiles that share an area with the region, by zone, from north to south, from west to east.

    Args:
        region: in degrees.
        size: width and height of a tile in pixels of 10 m.

    Raises:
        SmaltiError: if there are more than MAX_TILES.
    """
    extent = size * PIXEL_SIZE
    at_least = round(sum(zone_part(region, epsg).area for epsg in utm_zones(region)) / extent**2)
    if at_least > MAX_TILES:
        raise SmaltiError(
            f"[region] {region.name}: takes {at_least:,} tiles of {size} x {size} pixels, a plan holds {MAX_TILES:,}: "
            "choose larger tiles ([tiles] size) or cut the region into several runs"
        )
    return [
        PlannedTile(tile_name(epsg, column * extent, row * extent), epsg, column * extent, row * extent, size)
        for epsg in utm_zones(region)
        for row, column in _cells(zone_part(region, epsg), extent)
    ]


def tile_name(epsg: int, west: int, north: int) -> str:
    """Name of a tile: zone, hemisphere and upper left corner in metres, for example 31N_E0573440_N5626880."""
    return f"{epsg % 100:02d}{'N' if epsg < 32700 else 'S'}_E{west:07d}_N{north:07d}"


def region_mask(region: Region, tile: PlannedTile) -> NDArray[np.uint8]:
    """Which pixels of a tile belong to the region.

    Returns:
        (H, W) uint8, 1 where a pixel touches the region's part in the tile's zone (all-touched), else 0.
    """
    west, south, east, north = tile.bounds
    margin = 4 * PIXEL_SIZE  # what the cut rounds stays off the tile
    part = zone_part(region, tile.epsg)
    near = shapely.clip_by_rect(part, west - margin, south - margin, east + margin, north + margin)
    if not near.is_valid:  # that is fast, and now and then wrong where the outline touches itself
        near = shapely.intersection(part, shapely.box(west - margin, south - margin, east + margin, north + margin))
    shapes = polygons_of(near)
    if not shapes:
        return np.zeros((tile.size, tile.size), np.uint8)
    mask: NDArray[np.uint8] = rasterize(
        shapes, (tile.size, tile.size), transform=Affine(*tile.transform), all_touched=True, dtype="uint8"
    )
    return mask


def tile_footprint(tile: PlannedTile, margin: float = 0) -> MultiPolygon:
    """A tile's outline in degrees, widened by `margin` metres, cut at the antimeridian."""
    return tile_footprints([tile], margin)[0]


def tile_footprints(tiles: Sequence[PlannedTile], margin: float = 0) -> list[MultiPolygon]:
    """The same of many tiles, in their order."""
    found: dict[int, MultiPolygon] = {}
    for epsg in {tile.epsg for tile in tiles}:
        indices = [index for index, tile in enumerate(tiles) if tile.epsg == epsg]
        west, south, east, north = np.array([tiles[index].bounds for index in indices], dtype=float).T
        squares = shapely.box(west - margin, south - margin, east + margin, north + margin)
        dense = shapely.segmentize(squares, (east - west + 2 * margin) / 4)
        backward = _to_degrees(epsg)
        outlines = shapely.transform(
            dense, lambda xy, backward=backward: np.column_stack(backward.transform(xy[:, 0], xy[:, 1]))
        )
        left, _, right, _ = shapely.bounds(outlines).T
        crossing = ~((right - left <= 180) & (left >= -180) & (right <= 180))  # of most there is nothing to cut
        whole = shapely.multipolygons(outlines, indices=np.arange(len(outlines)))
        found.update(zip(indices, whole.tolist(), strict=True))
        for place in np.flatnonzero(crossing).tolist():
            found[indices[place]] = MultiPolygon(split_antimeridian(outlines[place]))
    return [found[index] for index in range(len(tiles))]


def _candidate_zones(region: Region) -> set[int]:
    zones = set()
    for polygon in region.geometry.geoms:
        west, south, east, north = polygon.bounds
        for longitude in np.arange(np.floor(west / ZONE_DEGREES) * ZONE_DEGREES, east, ZONE_DEGREES):
            inside = min(longitude + ZONE_DEGREES / 2, 179.0)
            zones |= {zone_epsg(inside, latitude) for latitude in (south, north)}
    return zones


@lru_cache(maxsize=128)
def _clip(region: Region, epsg: int) -> MultiPolygon:
    box = zone_box(epsg)
    pieces: list[Polygon] = []
    for part in region.geometry.geoms:
        if box.contains(shapely.box(*part.bounds)):
            pieces.append(part)
        elif part.intersects(box):
            pieces += polygons_of(shapely.intersection(part, box))
    return MultiPolygon(pieces)


@lru_cache(maxsize=8)
def _zone_part(region: Region, epsg: int) -> BaseGeometry:
    part = reproject(_clip(region, epsg), epsg)
    if not part.is_valid:  # vertices of the file closer together than the reprojection's rounding
        part = MultiPolygon(polygons_of(shapely.make_valid(part)))
    shapely.prepare(part)
    return part


@lru_cache(maxsize=8)
def _to_degrees(epsg: int) -> Transformer:
    return Transformer.from_crs(epsg, WGS84, always_xy=True)


def _cells(part: BaseGeometry, extent: int) -> Iterator[tuple[int, int]]:
    """(row, column) of the grid cells that share an area with `part`; row counts the upper edge, in units of extent.

    A quadtree: a square wholly inside gives all its cells, one wholly outside none, others are divided.
    """
    west, south, east, north = part.bounds
    step = _BLOCK
    columns = np.arange(np.floor(west / extent / step) * step, np.ceil(east / extent), step, dtype=np.int64)
    rows = np.arange(np.floor(south / extent / step) * step, np.ceil(north / extent), step, dtype=np.int64)
    corners = np.stack(np.meshgrid(rows, columns, indexing="ij"), axis=-1).reshape(-1, 2)  # lower left (row, column)
    found = [np.empty((0, 2), np.int64)]
    while len(corners):
        lower, upper = corners * extent + _EDGE, (corners + step) * extent - _EDGE  # (row, column)
        boxes = shapely.box(lower[:, 1], lower[:, 0], upper[:, 1], upper[:, 0])
        if step == 1:
            found.append(corners[shapely.intersects(part, boxes)])
            break
        inside = shapely.contains_properly(part, boxes)
        found.append(_children(corners[inside], step, 1))
        partly = corners[~inside & shapely.intersects(part, boxes)]
        corners = _children(partly, step, step // 2)
        step //= 2
    cells = np.concatenate(found, axis=0) + np.array([1, 0])  # lower edge -> upper edge
    order = np.lexsort((cells[:, 1], -cells[:, 0]))
    yield from zip(cells[order, 0].tolist(), cells[order, 1].tolist(), strict=True)


def _children(corners: NDArray[np.int64], step: int, child: int) -> NDArray[np.int64]:
    offsets = np.arange(0, step, child)
    rows, columns = np.meshgrid(offsets, offsets, indexing="ij")
    inner = np.stack([rows, columns], axis=-1).reshape(1, -1, 2)
    return (corners[:, None, :] + inner).reshape(-1, 2)


T = TypeVar("T")


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
