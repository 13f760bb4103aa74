"""Pixels fall where GDAL's warper puts them, whatever the window: parity with rasterio.warp.reproject."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import rasterio
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from pyproj import Transformer
from rasterio.transform import Affine
from rasterio.warp import Resampling, reproject

from preproc.reader.placement import RasterGrid, Target, place

WEST, NORTH = 573440, 5626880


def on_target(grid: RasterGrid, source: NDArray[np.uint16], target: Target, *, bilinear: bool) -> NDArray[np.uint16]:
    """What the code under test makes of the window that it asks for."""
    placement = place(grid, target, bilinear=bilinear)
    if placement.window is None:
        return np.zeros((target.height, target.width), source.dtype)
    w = placement.window
    assert w.row >= 0
    assert w.column >= 0
    pixels = source[w.row : w.row + w.height, w.column : w.column + w.width]
    assert pixels.shape == (w.height, w.width)
    return placement.bilinear(pixels) if bilinear else placement.nearest(pixels)


def by_gdal(grid: RasterGrid, source: NDArray[np.uint16], target: Target, *, bilinear: bool) -> NDArray[np.uint16]:
    """The same by GDAL from the whole raster, four columns at a time: up to five it projects exactly, more it bends."""
    out = np.zeros((target.height, target.width), source.dtype)
    for column in range(0, target.width, 4):
        strip = np.zeros_like(out[:, column : column + 4])
        reproject(
            source,
            strip,
            src_transform=Affine(*grid.transform),
            src_crs=grid.crs,
            src_nodata=0 if bilinear else None,
            dst_transform=Affine(10, 0, target.west + 10 * column, 0, -10, target.north),
            dst_crs=f"EPSG:{target.epsg}",
            dst_nodata=0,
            resampling=Resampling.bilinear if bilinear else Resampling.nearest,
            num_threads=1,
            # GDAL guesses the scale from the shapes of the windows, and smooths when small ones mislead it.
            XSCALE=grid.transform[0] / 10,
            YSCALE=grid.transform[0] / 10,
        )
        out[:, column : column + 4] = strip
    return out


def pixels(seed: int, shape: tuple[int, int], share_of_nodata: float) -> NDArray[np.uint16]:
    rng = np.random.default_rng(seed)
    values = rng.integers(1, 20000, shape, dtype=np.uint16)
    values[rng.random(shape) < share_of_nodata] = 0
    return values


aligned = st.fixed_dictionaries(
    {
        "factor": st.sampled_from([1, 2, 3, 6]),
        "shape": st.tuples(st.integers(2, 40), st.integers(2, 40)),  # GDAL is odd about rasters one pixel high
        "left": st.integers(-60, 60),
        "up": st.integers(-60, 60),
        "size": st.tuples(st.integers(1, 50), st.integers(1, 50)),
        "seed": st.integers(0, 2**31),
        "holes": st.sampled_from([0.0, 0.05, 0.5]),
    }
)


@settings(max_examples=150, deadline=None)
@given(aligned, st.booleans())
def test_rasters_on_the_lattice_are_placed_as_gdal_does(case: dict, bilinear: bool) -> None:  # type: ignore[type-arg]
    size = 10.0 * case["factor"]
    grid = RasterGrid(
        "EPSG:32631", (size, 0, WEST + 10 * case["left"], 0, -size, NORTH + 10 * case["up"]), *case["shape"]
    )
    target = Target(32631, WEST, NORTH, *case["size"])
    source = pixels(case["seed"], case["shape"], case["holes"])
    ours = on_target(grid, source, target, bilinear=bilinear)
    gdals = by_gdal(grid, source, target, bilinear=bilinear)
    # Weights of a third are not exact in GDAL's floating point: where the mean ends in .5 it may round down.
    difference = np.abs(ours.astype(int) - gdals).max()
    assert difference <= (1 if bilinear and case["factor"] in (3, 6) else 0)


@pytest.mark.parametrize("holes", [0.0, 0.01])
@pytest.mark.parametrize("factor", [1, 2])
@pytest.mark.parametrize("shift", [(7, 7), (8, 5), (1, 30)])
def test_targets_well_inside_a_raster_are_placed_as_gdal_does(
    factor: int, holes: float, shift: tuple[int, int]
) -> None:
    """What nearly all tiles are: the raster goes on beyond the target on every side."""
    size = 10.0 * factor
    grid = RasterGrid("EPSG:32631", (size, 0, WEST - 10 * shift[0], 0, -size, NORTH + 10 * shift[1]), 90, 100)
    source = pixels(4, (90, 100), holes)
    target = Target(32631, WEST, NORTH, 50, 60)
    ours = on_target(grid, source, target, bilinear=True)
    np.testing.assert_array_equal(ours, by_gdal(grid, source, target, bilinear=True))
    assert holes or ours.all()
    nearest = on_target(grid, source, target, bilinear=False)
    np.testing.assert_array_equal(nearest, by_gdal(grid, source, target, bilinear=False))


@settings(max_examples=60, deadline=None)
@given(aligned, st.floats(-9, 9), st.floats(-9, 9))
def test_rasters_off_the_lattice_are_placed_as_gdal_does(case: dict, dx: float, dy: float) -> None:  # type: ignore[type-arg]
    size = 10.0 * case["factor"]
    corner = (WEST + 10 * case["left"] + dx, NORTH + 10 * case["up"] + dy)
    grid = RasterGrid("EPSG:32631", (size, 0, corner[0], 0, -size, corner[1]), *case["shape"])
    target = Target(32631, WEST, NORTH, *case["size"])
    source = pixels(case["seed"], case["shape"], case["holes"])
    ours = on_target(grid, source, target, bilinear=True).astype(int)
    gdals = by_gdal(grid, source, target, bilinear=True).astype(int)
    assert np.abs(ours - gdals).max() <= 1


@pytest.mark.parametrize("seed", range(20))
def test_other_zones_are_warped_as_gdal_does(seed: int) -> None:
    rng = np.random.default_rng(seed)
    epsg, size = int(rng.choice([32630, 32632])), float(rng.choice([10.0, 20.0]))
    # A raster around the place where zone 31 meets its neighbour, and a target somewhere over it.
    longitude = 0.0 if epsg == 32630 else 6.0
    latitude = float(rng.uniform(30, 60))
    x, y = Transformer.from_crs(4326, epsg, always_xy=True).transform(longitude, latitude)
    corner = (round(x / size) * size - 75 * size, round(y / size) * size + 75 * size)
    grid = RasterGrid(f"EPSG:{epsg}", (size, 0, corner[0], 0, -size, corner[1]), 150, 150)
    tx, ty = Transformer.from_crs(4326, 32631, always_xy=True).transform(longitude, latitude)
    height, width = (int(v) for v in rng.integers(20, 140, 2))
    dx, dy = (int(v) for v in rng.integers(-80, 30, 2) * [1, -1])
    target = Target(32631, round(tx / 10 + dx) * 10, round(ty / 10 + dy) * 10, height, width)
    source = pixels(seed, (150, 150), 0.02)
    ours, gdals = (f(grid, source, target, bilinear=True).astype(int) for f in (on_target, by_gdal))
    assert gdals.any()
    assert np.abs(ours - gdals).max() <= 1
    ours, gdals = (f(grid, source, target, bilinear=False).astype(int) for f in (on_target, by_gdal))
    # Nearest: equal, but for centres that fall on the edge of a source pixel to within the projection's rounding.
    assert np.count_nonzero(ours != gdals) <= 2


@settings(max_examples=60, deadline=None)
@given(st.sampled_from([10.0, 20.0]), st.booleans(), st.booleans(), st.data())
def test_what_a_pixel_gets_does_not_depend_on_the_window(
    size: float, warped: bool, bilinear: bool, data: st.DataObject
) -> None:
    grid = RasterGrid("EPSG:32631", (size, 0, WEST - 40, 0, -size, NORTH + (33.3 if warped else 40)), 40, 40)
    source = pixels(1, (40, 40), 0.1)
    whole = Target(32631, WEST, NORTH, 48, 48)
    row, column = data.draw(st.integers(0, 47)), data.draw(st.integers(0, 47))
    height, width = data.draw(st.integers(1, 48 - row)), data.draw(st.integers(1, 48 - column))
    part = replace(whole, west=WEST + 10 * column, north=NORTH - 10 * row, height=height, width=width)
    expected = on_target(grid, source, whole, bilinear=bilinear)[row : row + height, column : column + width]
    np.testing.assert_array_equal(on_target(grid, source, part, bilinear=bilinear), expected)


def test_a_window_of_the_raster_is_asked_for_no_larger_than_needed() -> None:
    grid = RasterGrid("EPSG:32631", (20, 0, WEST - 4000, 0, -20, NORTH + 4000), 5490, 5490)
    window = place(grid, Target(32631, WEST, NORTH, 512, 512), bilinear=True).window
    assert window is not None
    assert (window.row, window.column, window.height, window.width) == (199, 199, 258, 258)
    window = place(grid, Target(32631, WEST, NORTH, 512, 512), bilinear=False).window
    assert window is not None
    assert (window.row, window.column, window.height, window.width) == (200, 200, 256, 256)


def test_ten_metre_pixels_are_copied() -> None:
    source = np.arange(64 * 64, dtype=np.uint16).reshape(64, 64)
    grid = RasterGrid("EPSG:32631", (10, 0, WEST - 100, 0, -10, NORTH + 200), 64, 64)
    found = on_target(grid, source, Target(32631, WEST, NORTH, 30, 20), bilinear=True)
    np.testing.assert_array_equal(found, source[20:50, 10:30])


def test_a_raster_elsewhere_gives_nothing_and_is_not_read() -> None:
    for crs in ("EPSG:32631", "EPSG:32655"):
        grid = RasterGrid(crs, (10, 0, 300000, 0, -10, 200000), 64, 64)
        assert place(grid, Target(32631, WEST, NORTH, 16, 16), bilinear=True).window is None


def test_the_crs_may_be_wkt() -> None:
    wkt = rasterio.crs.CRS.from_epsg(32632).to_wkt()
    target = Target(32631, WEST, NORTH, 16, 16)
    x, y = Transformer.from_crs(32631, 32632, always_xy=True).transform(WEST, NORTH)
    transform = (10.0, 0.0, x - 300, 0.0, -10.0, y + 300)
    source = pixels(3, (80, 80), 0)
    by_wkt = on_target(RasterGrid(wkt, transform, 80, 80), source, target, bilinear=True)
    assert by_wkt.all()
    np.testing.assert_array_equal(
        by_wkt, on_target(RasterGrid("EPSG:32632", transform, 80, 80), source, target, bilinear=True)
    )
