"""The grid: aligned, without gaps, and the same for every run."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pyproj
import pytest
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st
from shapely.geometry.base import BaseGeometry

from infer.contract import PlannedTile, SmaltiError
from preproc.region.grid import (
    _cells,
    plan_tiles,
    region_mask,
    tile_footprint,
    tile_footprints,
    tile_name,
    utm_zones,
    zone_epsg,
    zone_part,
)
from preproc.region.region import Region, make_region

FEW = settings(max_examples=40, deadline=None)


def region_of(shape: BaseGeometry) -> Region:
    return make_region(shape, "test", source="test")


@st.composite
def regions(draw: st.DrawFn, width: float = 0.2) -> Region:
    """Ragged shapes with a hole, some across a zone's edge, the equator or the antimeridian."""
    longitude = draw(st.sampled_from([-180.0, -177.3, -0.01, 0.0, 3.1, 5.99, 6.0, 12.02, 179.95]))
    latitude = draw(st.sampled_from([-79.5, -33.0, -0.02, 0.0, 0.05, 50.7, 63.0, 83.5]))
    count = draw(st.integers(3, 9))
    angles = sorted(draw(st.lists(st.floats(0, 6.28), min_size=count, max_size=count, unique=True)))
    radii = draw(st.lists(st.floats(0.2, 1.0), min_size=count, max_size=count))
    ring = [
        (longitude + width * r * np.cos(a), latitude + width / 2 * r * np.sin(a))
        for a, r in zip(angles, radii, strict=True)
    ]
    shape = shapely.Polygon(ring).buffer(0)
    if draw(st.booleans()):
        shape = shape.difference(shapely.Point(longitude + width / 10, latitude).buffer(width / 20))
    if shape.area < 1e-8:
        shape = shapely.box(longitude, latitude, longitude + width, latitude + width / 2)
    return region_of(shape)


def points_in(region: Region, count: int, seed: int = 0) -> list[tuple[float, float]]:
    """Random places of the region, not within decimetres of its edge: edges are reprojected to within 0.1 m."""
    rng = np.random.default_rng(seed)
    found: list[tuple[float, float]] = []
    inner = region.geometry.buffer(-2e-6)
    for polygon in region.geometry.geoms:
        west, south, east, north = polygon.bounds
        candidates = np.column_stack([rng.uniform(west, east, 40 * count), rng.uniform(south, north, 40 * count)])
        inside = candidates[shapely.contains_xy(inner, candidates)]
        found += [(float(x), float(y)) for x, y in inside[:count]]
    return found


def tile_at(tiles: list[PlannedTile], longitude: float, latitude: float) -> tuple[PlannedTile, int, int]:
    """The one tile of a place, and its pixel there, computed from scratch."""
    zone = int((longitude + 180) // 6) + 1
    epsg = (32600 if latitude >= 0 else 32700) + min(zone, 60)
    x, y = pyproj.Transformer.from_crs("EPSG:4326", epsg, always_xy=True).transform(longitude, latitude)
    hits = [
        tile
        for tile in tiles
        if tile.epsg == epsg and tile.bounds[0] <= x < tile.bounds[2] and tile.bounds[1] < y <= tile.bounds[3]
    ]
    assert len(hits) == 1, f"{longitude}, {latitude}: {len(hits)} tiles"
    return hits[0], int((hits[0].north - y) // 10), int((x - hits[0].west) // 10)


@FEW
@given(regions(), st.sampled_from([16, 64, 510, 512]))
def test_tiles_are_aligned_unique_and_ordered(region: Region, size: int) -> None:
    tiles = plan_tiles(region, size)
    assert tiles
    for tile in tiles:
        assert tile.west % (10 * size) == 0
        assert tile.north % (10 * size) == 0
        assert tile.size == size
        assert tile.name == tile_name(tile.epsg, tile.west, tile.north)
    assert max(Counter(tile.name for tile in tiles).values()) == 1
    assert tiles == sorted(tiles, key=lambda tile: (tile.epsg, -tile.north, tile.west))


@FEW
@given(regions())
def test_every_place_of_the_region_is_in_one_tile_and_inside_its_mask(region: Region) -> None:
    tiles = plan_tiles(region, 512)
    for longitude, latitude in points_in(region, 20):
        tile, row, column = tile_at(tiles, longitude, latitude)
        assert region_mask(region, tile)[row, column] == 1


@FEW
@given(regions())
def test_no_tile_is_planned_in_vain(region: Region) -> None:
    for tile in plan_tiles(region, 128):
        overlap = zone_part(region, tile.epsg).intersection(shapely.box(*tile.bounds)).area
        assert overlap > 0
        if overlap > 1:  # square metres
            assert region_mask(region, tile).any()


@FEW
@given(regions(), st.floats(-0.1, 0.1), st.floats(-0.05, 0.05))
def test_overlapping_regions_share_the_tiles_of_the_overlap(region: Region, east: float, north: float) -> None:
    moved = shapely.transform(region.geometry, lambda xy: np.clip(xy + np.array([east, north]), [-180, -80], [180, 84]))
    other = region_of(shapely.union_all(moved.buffer(0)))
    common = shapely.intersection(region.geometry, other.geometry)
    if common.area < 1e-9:
        return
    mine, theirs = set(plan_tiles(region, 64)), set(plan_tiles(other, 64))
    both = plan_tiles(region_of(common), 64)
    missing = [tile for tile in both if tile not in mine or tile not in theirs]
    for tile in missing:  # only where the overlap is narrower than a rounding error
        assert zone_part(region_of(common), tile.epsg).intersection(shapely.box(*tile.bounds)).area < 1e-3


def test_tiles_found_by_the_quadtree_equal_those_found_one_by_one() -> None:
    shape = shapely.Point(8.5, 47.0).buffer(1.2).difference(shapely.Point(8.4, 47.1).buffer(0.5))
    region = region_of(shape)
    part = zone_part(region, 32632)
    west, south, east, north = (int(value // 5120) for value in part.bounds)
    expected = {
        (column * 5120, row * 5120)
        for column in range(west, east + 1)
        for row in range(south, north + 2)
        if part.intersection(shapely.box(column * 5120, (row - 1) * 5120, (column + 1) * 5120, row * 5120)).area > 0
    }
    assert {(tile.west, tile.north) for tile in plan_tiles(region, 512)} == expected


def test_a_region_in_one_zone_has_that_zone_also_if_it_touches_the_next() -> None:
    assert utm_zones(region_of(shapely.box(5.9, 50, 6.0, 50.1))) == [32631]
    assert utm_zones(region_of(shapely.box(5.9, 50, 6.0001, 50.1))) == [32631, 32632]
    assert utm_zones(region_of(shapely.box(5.9, -0.1, 5.95, 0.1))) == [32631, 32731]
    assert utm_zones(region_of(shapely.box(179.9, 10, 180.1, 11))) == [32601, 32660]


def test_a_region_across_the_equator_is_cut_there() -> None:
    region = region_of(shapely.box(5.9, -0.1, 5.95, 0.1))
    assert zone_part(region, 32631).bounds[1] == pytest.approx(0, abs=1e-3)
    assert zone_part(region, 32731).bounds[3] == pytest.approx(10_000_000, abs=1e-3)


@FEW
@given(regions())
def test_the_zones_parts_add_up_to_the_region(region: Region) -> None:
    parts = []
    for epsg in utm_zones(region):
        backward = pyproj.Transformer.from_crs(epsg, 4326, always_xy=True)
        part = zone_part(region, epsg)
        parts.append(
            shapely.transform(part, lambda xy, b=backward: np.column_stack(b.transform(xy[:, 0], xy[:, 1]))).area
        )
    assert sum(parts) == pytest.approx(region.geometry.area, rel=1e-4)


def test_cells_that_only_share_an_edge_or_a_corner_are_left_out() -> None:
    assert list(_cells(shapely.box(500_000, 0, 500_320, 160), 160)) == [(1, 3125), (1, 3126)]


def test_norway_and_svalbard_have_no_exception() -> None:
    assert utm_zones(region_of(shapely.box(4.9, 60.3, 5.1, 60.4))) == [32631]
    assert zone_epsg(9.5, 78) == 32632


@pytest.mark.parametrize(
    ("longitude", "latitude", "epsg"),
    [
        (-180, 1, 32601),
        (180, 1, 32660),
        (0, 0, 32631),
        (-0.001, -0.001, 32730),
        (179.999, -45, 32760),
        (5.999, 50, 32631),
    ],
)
def test_zones(longitude: float, latitude: float, epsg: int) -> None:
    assert zone_epsg(longitude, latitude) == epsg


def test_along_a_zone_edge_both_sub_grids_meet_without_a_gap_and_hardly_overlap() -> None:
    region = region_of(shapely.box(5.98, 50.0, 6.02, 50.02))
    pixels = sum(int(region_mask(region, tile).sum()) for tile in plan_tiles(region, 64))
    area = sum(zone_part(region, epsg).area for epsg in utm_zones(region)) / 100
    edge = sum(zone_part(region, epsg).length for epsg in utm_zones(region)) / 10
    assert area < pixels < area + 1.5 * edge


def test_a_plan_that_would_fill_the_memory_is_refused() -> None:
    with pytest.raises(SmaltiError, match=r"takes [\d,]+ tiles of 32 x 32 pixels, .*\[tiles\] size"):
        plan_tiles(region_of(shapely.box(-60, -20, 60, 60)), 32)


@FEW
@given(regions(width=0.02))
def test_the_mask_is_all_touched(region: Region) -> None:
    """Against the definition: a pixel is inside if its square shares an area with the region."""
    tile = plan_tiles(region, 32)[0]
    mask = region_mask(region, tile)
    part = zone_part(region, tile.epsg)
    columns, rows = np.meshgrid(np.arange(32), np.arange(32))
    west, north = tile.west + 10 * columns, tile.north - 10 * rows
    areas = shapely.area(shapely.intersection(part, shapely.box(west, north - 10, west + 10, north)))
    assert (mask[areas > 1e-3] == 1).all()
    touched = shapely.dwithin(part, shapely.box(west, north - 10, west + 10, north), 1e-3)
    assert (mask[~touched] == 0).all()


def test_the_real_region(shared: object) -> None:
    region = region_of(shapely.box(4.05845801968282, 50.74309444718184, 4.0676581015920155, 50.7489315922272))
    (tile,) = plan_tiles(region, 512)
    assert tile == PlannedTile("31N_E0573440_N5626880", 32631, 573440, 5626880, 512)


def test_footprint_of_a_tile_contains_its_corners() -> None:
    tile = PlannedTile("31N_E0573440_N5626880", 32631, 573440, 5626880, 512)
    footprint = tile_footprint(tile)
    backward = pyproj.Transformer.from_crs(32631, 4326, always_xy=True)
    west, south, east, north = tile.bounds
    for corner in ((west, south), (west, north), (east, south), (east, north)):
        assert footprint.distance(shapely.Point(backward.transform(*corner))) < 1e-9
    assert tile_footprint(tile, 1000).contains(footprint)


def test_footprints_of_many_tiles_are_those_of_each() -> None:
    boxes = [(179.9, -0.05, 180, 0.05), (-180, -0.05, -179.9, 0.05), (5.95, 50, 6.05, 50.05)]
    tiles = plan_tiles(region_of(shapely.MultiPolygon([shapely.box(*box) for box in boxes])), 512)
    assert len({tile.epsg for tile in tiles}) == 6
    together = tile_footprints(tiles, 1000)
    assert [shapely.to_wkb(one) for one in together] == [shapely.to_wkb(tile_footprint(tile, 1000)) for tile in tiles]
    assert any(len(one.geoms) == 2 for one in together)


def test_footprint_of_a_tile_on_the_antimeridian_is_cut() -> None:
    region = region_of(shapely.box(179.99, 10, 180, 10.01))
    footprint = tile_footprint(plan_tiles(region, 512)[0], 1000)
    west, _, east, _ = footprint.bounds
    assert (west, east) == (-180, 180)
    assert footprint.area < 0.01
