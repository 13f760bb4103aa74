"""Mosaics as cloud-optimised GeoTIFFs, their overviews, colours, pictures and STAC items."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import os
import random
import re
import subprocess
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pystac
import pytest
import rasterio
import rasterio.shutil
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from rasterio.enums import Resampling
from rio_cogeo import cog_validate
from support.mosaicked import place_values

from infer.contract import PlannedTile, SmaltiError
from infer.contract.classification import ClassEntry
from preproc.mosaic.pca import principal_components
from preproc.raster import cog
from preproc.raster.cog import Layer, cog_writer
from preproc.raster.legend import (
    class_colours,
    colour_table,
    gdal_categories,
    legend_csv,
    qgis_style,
    slugs,
)
from preproc.raster.overviews import halve_average, halve_mean, halve_mode, halve_nearest
from preproc.raster.preview import Picture, class_figure, length_text, picture, png_bytes, preview_level, scale_length
from preproc.raster.stac import AssetRecord, footprint, write_item
from preproc.raster.zones import ZoneGrid, zone_grids

NAN = float("nan")
LEGEND = (ClassEntry(1, "maize", "#ffd300"), ClassEntry(4, "winter wheat, late & <odd>", "#a87000"))


def tiles_of(cells: Sequence[tuple[int, int]], size: int, epsg: int = 32631) -> list[PlannedTile]:
    step = size * 10
    return [PlannedTile(f"t{c}_{r}", epsg, 50 * step + c * step, 600 * step - r * step, size) for c, r in cells]


def write(path: Path, grid: ZoneGrid, layer: Layer, tiles: Sequence[PlannedTile]) -> None:
    with cog_writer(path, grid, layer) as writer:
        for tile in tiles:
            values = place_values(tile, len(layer.bands))
            if layer.dtype != "float32":
                values = np.rint(values * 100 + (101 if layer.dtype == "uint8" else 0))
            writer.write(*grid.place(tile), values.astype(layer.dtype))


def sha(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


# --- the grid -----------------------------------------------------------------------------------------------------


@given(
    st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), min_size=1, max_size=12, unique=True),
    st.sampled_from([16, 50, 64]),
)
def test_every_tile_fits_its_zones_grid(cells: list[tuple[int, int]], size: int) -> None:
    [grid] = zone_grids(tiles_of(cells, size))
    taken = np.zeros((grid.height, grid.width), dtype=int)
    for tile in grid.tiles:
        row, column = grid.place(tile)
        assert (grid.west + 10 * column, grid.north - 10 * row) == (tile.west, tile.north)
        taken[row : row + size, column : column + size] += 1
    assert taken.max() == 1
    assert taken[0].any(), "the box is tight"
    assert taken[-1].any(), "the box is tight"
    assert taken[:, 0].any(), "the box is tight"
    assert taken[:, -1].any(), "the box is tight"
    assert taken.sum() == len(cells) * size * size


def test_zones_are_apart_and_do_not_depend_on_the_order_of_the_plan() -> None:
    tiles = [*tiles_of([(0, 0), (1, 1)], 32), *tiles_of([(0, 0)], 32, 32732), *tiles_of([(3, 0)], 32, 32630)]
    grids = zone_grids(tiles)
    assert [grid.label for grid in grids] == ["30N", "31N", "32S"]
    assert zone_grids(tiles[::-1]) == grids


# --- overviews ----------------------------------------------------------------------------------------------------


@given(st.integers(1, 9), st.integers(1, 9), st.integers(0, 10_000))
def test_average_overview_is_the_mean_of_what_is_valid(height: int, width: int, seed: int) -> None:
    generator = np.random.default_rng(seed)
    values = generator.normal(size=(2, height, width)).astype(np.float32)
    values[:, generator.random((height, width)) < 0.4] = np.nan
    halved = halve_average(values)
    assert halved.shape == (2, (height + 1) // 2, (width + 1) // 2)
    for row in range(halved.shape[1]):
        for column in range(halved.shape[2]):
            for band in range(2):
                quad = values[band, 2 * row : 2 * row + 2, 2 * column : 2 * column + 2]
                valid = quad[~np.isnan(quad)]
                if valid.size:
                    assert halved[band, row, column] == pytest.approx(valid.mean(), rel=1e-5, abs=1e-6)
                else:
                    assert np.isnan(halved[band, row, column])


def test_nearest_overview_invents_no_value() -> None:
    values = np.arange(35, dtype=np.int8).reshape(1, 5, 7)
    assert halve_nearest(values)[0].tolist() == [[0, 2, 4, 6], [14, 16, 18, 20], [28, 30, 32, 34]]


def test_overviews_agree_with_gdals_own(tmp_path: Path) -> None:
    tiles = tiles_of([(0, 0), (1, 0), (1, 1)], 520)
    [grid] = zone_grids(tiles)
    layer = Layer("float32", NAN, ("a", "b"), "average")
    write(tmp_path / "ours.tif", grid, layer, tiles)
    with rasterio.open(tmp_path / "ours.tif") as ours:
        assert ours.overviews(1) == [2, 4]
        profile, values = ours.profile, ours.read()
    profile.update(driver="GTiff", compress="none")
    with rasterio.open(tmp_path / "gdal.tif", "w", **profile) as gdal:
        gdal.write(values)
        gdal.build_overviews([2, 4], Resampling.average)
    for level in (0, 1):
        with (
            rasterio.open(tmp_path / "ours.tif", overview_level=level) as ours,
            rasterio.open(tmp_path / "gdal.tif", overview_level=level) as gdal,
        ):
            np.testing.assert_allclose(ours.read(), gdal.read(), atol=2e-6)


# --- the writer ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("bands", "size"), [(3, 300), (128, 100)])
def test_every_pixel_stands_where_it_belongs(tmp_path: Path, bands: int, size: int) -> None:
    tiles = tiles_of([(0, 0), (2, 0), (1, 1)], size)
    [grid] = zone_grids(tiles)
    path = tmp_path / "m.tif"
    layer = Layer("float32", NAN, tuple(f"e{i:03d}" for i in range(bands)), "average", {"SMALTI_MODEL": "x"})
    write(path, grid, layer, tiles)
    assert cog_validate(path, strict=True) == (True, [], [])
    with rasterio.open(path) as raster:
        assert (raster.width, raster.height) == (3 * size, 2 * size)
        assert raster.crs.to_epsg() == 32631
        assert raster.transform == grid.transform
        assert raster.tags()["SMALTI_MODEL"] == "x"
        assert raster.descriptions == layer.bands
        assert np.isnan(raster.nodata)
        assert raster.block_shapes[0] == (layer.block, layer.block)
        values = raster.read()
    expected = np.full((bands, 2 * size, 3 * size), np.nan, dtype=np.float32)
    for tile in tiles:
        row, column = grid.place(tile)
        expected[:, row : row + size, column : column + size] = np.moveaxis(place_values(tile, bands), 2, 0)
    np.testing.assert_array_equal(values, expected)


def test_bytes_depend_neither_on_order_nor_on_threads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiles = tiles_of([(c, r) for c in range(3) for r in range(3)], 250)
    [grid] = zone_grids(tiles)
    layer = Layer("int8", -128, tuple("abcde"), "nearest")
    found = set()
    for attempt, threads in enumerate((1, 4, 2)):
        monkeypatch.setattr(os, "sched_getaffinity", lambda _, threads=threads: set(range(threads)))
        random.Random(attempt).shuffle(tiles)
        write(tmp_path / f"{attempt}.tif", grid, layer, tiles)
        found.add(sha(tmp_path / f"{attempt}.tif"))
    assert len(found) == 1


def test_colour_table_and_nearest_overviews(tmp_path: Path) -> None:
    tiles = tiles_of([(0, 0)], 600)
    [grid] = zone_grids(tiles)
    layer = Layer("uint8", 0, ("class",), "nearest", colours=colour_table(LEGEND))
    codes = np.zeros((600, 600, 1), dtype=np.uint8)
    codes[100:500, 101:333] = 4
    with cog_writer(tmp_path / "c.tif", grid, layer) as writer:
        writer.write(0, 0, codes)
    assert cog_validate(tmp_path / "c.tif", strict=True)[0]
    with rasterio.open(tmp_path / "c.tif") as raster:
        assert raster.colormap(1)[4] == (0xA8, 0x70, 0x00, 255)
        assert raster.colormap(1)[0][3] == 0
        assert raster.nodata == 0
    with rasterio.open(tmp_path / "c.tif", overview_level=0) as coarser:
        np.testing.assert_array_equal(coarser.read(1), codes[::2, ::2, 0])


def test_an_interrupted_mosaic_leaves_the_old_one_and_no_rubbish(tmp_path: Path) -> None:
    tiles = tiles_of([(0, 0), (1, 0)], 40)
    [grid] = zone_grids(tiles)
    layer = Layer("float32", NAN, ("a",), "average")
    write(tmp_path / "m.tif", grid, layer, tiles)
    before = sha(tmp_path / "m.tif")

    def stopped() -> None:
        with cog_writer(tmp_path / "m.tif", grid, layer) as writer:
            writer.write(0, 0, place_values(tiles[0], 1))
            raise SmaltiError("the second tile is damaged")

    with pytest.raises(SmaltiError, match="second tile"):
        stopped()
    assert sha(tmp_path / "m.tif") == before
    assert [path.name for path in tmp_path.iterdir()] == ["m.tif"]


def test_wrong_pixels_are_a_bug_that_is_told(tmp_path: Path) -> None:
    [grid] = zone_grids(tiles_of([(0, 0)], 40))
    with (
        pytest.raises(ValueError, match=r"expected float32 \(H, W, 2\)"),
        cog_writer(tmp_path / "m.tif", grid, Layer("float32", NAN, ("a", "b"), "average")) as writer,
    ):
        writer.write(0, 0, np.zeros((40, 40, 3), np.float32))


def test_blocks_lost_on_the_way_to_the_file_are_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a full disk, of which GDAL says nothing."""
    tiles = tiles_of([(0, 0), (1, 0)], 600)
    [grid] = zone_grids(tiles)
    translate = cog._translate

    def losing(base: Path, result: Path, layer: Layer) -> None:
        with rasterio.open(base, "r+") as raster:
            raster.write(np.full((1, 100, 100), np.nan, np.float32), window=rasterio.windows.Window(600, 0, 100, 100))
        translate(base, result, layer)

    monkeypatch.setattr(cog, "_translate", losing)
    with pytest.raises(SmaltiError, match="what was written is not what can be read back"):
        write(tmp_path / "m.tif", grid, Layer("float32", NAN, ("a",), "average"), tiles)
    assert not list(tmp_path.iterdir())


def in_a_process(body: str, tmp_path: Path, *arguments: object) -> str:
    done = subprocess.run(
        [sys.executable, "-c", body, str(tmp_path), *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        env={
            **os.environ,
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": f"{Path(__file__).parents[4]}:{Path(__file__).parents[3]}",
        },
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


_MAKE = """
import resource, sys
from pathlib import Path
import numpy as np
from infer.contract import PlannedTile, SmaltiError
from preproc.raster.cog import Layer, cog_writer
from preproc.raster.zones import zone_grids
size, bands = 256, 64
def make(folder, across):
    tiles = [PlannedTile(f"t{i}", 32631, 500480 + i * size * 10, 5600000, size) for i in range(across)]
    [grid] = zone_grids(tiles)
    noise = np.random.default_rng(0).normal(size=(size, size, bands)).astype(np.float32)
    layer = Layer("float32", float("nan"), tuple(f"e{i}" for i in range(bands)), "average")
    with cog_writer(folder / "m.tif", grid, layer) as writer:
        for tile in tiles:
            writer.write(*grid.place(tile), noise)
"""


@pytest.mark.slow
def test_memory_does_not_grow_with_the_mosaic(tmp_path: Path) -> None:
    body = (
        f"{_MAKE}\nmake(Path(sys.argv[1]), int(sys.argv[2]))\nprint(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)"
    )
    small, large = (int(in_a_process(body, tmp_path, across)) / 1024 for across in (8, 24))
    added = 16 * 256 * 256 * 64 * 4 / 2**20
    assert added > 250
    assert large - small < 60, f"{small:.0f} MiB for 8 tiles, {large:.0f} MiB for 24"


def test_a_disk_that_refuses_is_an_error_and_no_file(tmp_path: Path) -> None:
    body = f"""{_MAKE}
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]), resource.RLIM_INFINITY))
try:
    make(Path(sys.argv[1]), 2)
except SmaltiError as error:
    print(str(error))
else:
    print("no error")
"""
    for limit in (4 << 20, 37 << 20):  # within the temporary file; within the overviews or the result
        assert "cannot be written" in in_a_process(body, tmp_path, limit)
        assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("row", "column"), [(1, 0), (0, 1), (-1, 0), (0, -1)])
def test_pixels_outside_the_mosaic_are_never_dropped_in_silence(tmp_path: Path, row: int, column: int) -> None:
    [grid] = zone_grids(tiles_of([(0, 0)], 40))
    with (
        pytest.raises(ValueError, match="leave the mosaic"),
        cog_writer(tmp_path / "m.tif", grid, Layer("float32", NAN, ("a",), "average")) as writer,
    ):
        writer.write(row, column, np.zeros((40, 40, 1), np.float32))


@settings(max_examples=50)
@given(st.integers(0, 2**32 - 1), st.integers(1, 9), st.integers(1, 9))
def test_coarser_classes_are_the_commonest_and_coarser_confidence_the_mean(seed: int, height: int, width: int) -> None:
    values = np.random.default_rng(seed).integers(0, 4, (1, height, width)).astype(np.uint8)
    modes, means = halve_mode(values, 0), halve_mean(values, 0)
    assert modes.shape == means.shape == (1, -(-height // 2), -(-width // 2))
    for row in range(modes.shape[1]):
        for column in range(modes.shape[2]):
            window = values[0, 2 * row : 2 * row + 2, 2 * column : 2 * column + 2].ravel().tolist()
            valid = [value for value in window if value]
            if not valid:
                assert modes[0, row, column] == means[0, row, column] == 0
                continue
            most = max(valid.count(value) for value in valid)
            assert modes[0, row, column] == next(value for value in valid if valid.count(value) == most)
            assert means[0, row, column] == int(sum(valid) / len(valid) + 0.5)


# --- principal components -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(6))
def test_components_are_those_of_a_singular_value_decomposition(seed: int) -> None:
    generator = np.random.default_rng(seed)
    values = (generator.normal(size=(5000, 3)) * [5, 3, 1] @ generator.normal(size=(3, 10))).astype(np.float32)
    found = principal_components(values)
    centred = values.astype(np.float64) - values.mean(axis=0)
    _, singular, axes = np.linalg.svd(centred, full_matrices=False)
    ours = found.axes_c3 / np.linalg.norm(found.axes_c3, axis=0)
    for index in range(3):
        assert abs(ours[:, index] @ axes[index]) == pytest.approx(1, abs=1e-4)
        assert ours[np.argmax(np.abs(ours[:, index])), index] > 0
    np.testing.assert_allclose(found.share_3, (singular**2 / (singular**2).sum())[:3], atol=1e-3)
    rgba = found.colours(values[None])
    assert (rgba[..., 3] == 255).all()
    inside = (rgba[0, :, 0] > 0) & (rgba[0, :, 0] < 255)
    assert 0.94 < inside.mean() < 0.97, "2 % are cut off at either end"


def test_sums_are_exact_so_that_no_order_can_change_a_colour(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = np.random.default_rng(1)
    values = (generator.normal(size=(3000, 128)) * 3).astype(np.float32)
    first = principal_components(values)
    shuffled = values[generator.permutation(3000)]
    monkeypatch.setattr("preproc.mosaic.pca._TOGETHER", 100)
    again = principal_components(shuffled)
    np.testing.assert_array_equal(first.axes_c3, again.axes_c3)
    np.testing.assert_array_equal(first.low_3, again.low_3)


@pytest.mark.parametrize("values", [np.zeros((1, 4)), np.full((7, 2), 3.0), np.zeros((0, 4)), np.eye(1)])
def test_few_or_equal_pixels_still_give_a_picture(values: NDArray[Any]) -> None:
    found = principal_components(values.astype(np.float32))
    window = np.concatenate([values, np.full((1, values.shape[1]), np.nan)])[None].astype(np.float32)
    rgba = found.colours(window)
    assert rgba[0, -1].tolist() == [0, 0, 0, 0]
    assert (rgba[0, :-1, 3] == 255).all()


# --- pictures -----------------------------------------------------------------------------------------------------


def test_a_picture_is_cut_to_what_it_shows_and_knows_where_it_is(tmp_path: Path) -> None:
    tiles = tiles_of([(0, 0), (1, 0)], 512)
    [grid] = zone_grids(tiles)
    codes = np.zeros((512, 512, 1), dtype=np.uint8)
    codes[200:300, 400:512] = 1
    path = tmp_path / "c.tif"
    with cog_writer(path, grid, Layer("uint8", 0, ("class",), "nearest")) as writer:
        writer.write(0, 0, codes)
    shown = picture([path], grid, lambda strips: class_colours(strips[0][..., 0], LEGEND))
    west, south, east, north = shown.bounds
    margin = 2 * 10
    assert west == grid.west + 400 * 10 - margin
    assert north == grid.north - 200 * 10 + margin
    assert (east, south) == (grid.west + 512 * 10 + margin, grid.north - 300 * 10 - margin)
    opaque = shown.rgba_hwc[..., 3] > 0
    assert opaque.mean() == pytest.approx(100 * 112 / (104 * 116), abs=1e-9)
    assert np.unique(shown.rgba_hwc[opaque], axis=0).tolist() == [[0xFF, 0xD3, 0x00, 255]]


def test_large_mosaics_are_shown_from_an_overview(tmp_path: Path) -> None:
    tiles = tiles_of([(0, 0), (1, 0)], 1100)
    [grid] = zone_grids(tiles)
    write(tmp_path / "m.tif", grid, Layer("float32", NAN, ("a",), "average"), tiles)
    assert preview_level(tmp_path / "m.tif") == 1
    shown = picture([tmp_path / "m.tif"], grid, lambda strips: np.full((*strips[0].shape[:2], 4), 255, np.uint8))
    assert shown.rgba_hwc.shape == (550, 1100, 4)
    assert shown.pixel == 20


@given(st.floats(25, 3e6))
def test_scale_bars_are_round_and_fit(metres: float) -> None:
    length = scale_length(metres)
    assert str(length).strip("0") in {"1", "2", "5"}
    assert metres / 10.1 <= length <= max(metres / 4, 1)


def test_figures_have_the_same_bytes_every_time() -> None:
    rgba = np.zeros((30, 50, 4), dtype=np.uint8)
    rgba[5:, 5:] = (10, 200, 30, 255)
    shown = Picture(rgba, 500_000.0, 5_600_000.0, 10.0)
    first, again = (class_figure(shown, LEGEND, "A map", "a note") for _ in range(2))
    assert first == again
    for content in (first, png_bytes(rgba)):
        assert b"matplotlib" not in content.lower()
        assert b"tIME" not in content
    assert length_text(2000) == "2 km"


def test_odd_class_names_are_drawn_as_they_are() -> None:
    shown = Picture(np.zeros((30, 50, 4), dtype=np.uint8), 500_000.0, 5_600_000.0, 10.0)
    legend = [ClassEntry(code, name, "#000000") for code, name in enumerate(["$x^$", "_other", "中文"], start=1)]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        all_three = class_figure(shown, legend, "A map", "a $^ note")
        two = class_figure(shown, [legend[0], legend[2]], "A map", "a $^ note")
    assert all_three != two


# --- what goes with a map -----------------------------------------------------------------------------------------


def test_legends_say_the_same_to_every_program() -> None:
    rows = list(csv.DictReader(io.StringIO(legend_csv(LEGEND).decode())))
    assert [(int(row["code"]), row["name"], row["color"]) for row in rows] == [
        (entry.code, entry.name, entry.color) for entry in LEGEND
    ]
    style = ElementTree.fromstring(qgis_style(LEGEND))
    entries = style.findall("./pipe/rasterrenderer[@type='paletted']/colorPalette/paletteEntry")
    assert [(int(e.get("value", "")), e.get("label"), e.get("color")) for e in entries] == [
        (entry.code, entry.name, entry.color) for entry in LEGEND
    ]
    categories = ElementTree.fromstring(gdal_categories(LEGEND))
    names = [element.text or "" for element in categories.findall(".//Category")]
    assert names == ["no data", "maize", "", "", "winter wheat, late & <odd>"]


def test_names_that_xml_cannot_hold_leave_it_well_formed() -> None:
    odd = [ClassEntry(1, "wheat\x0b\x01\ufffe\ud800", "#ff0000"), ClassEntry(2, "🌾 <wheat>\n&", "#00ff00")]
    labels = [e.get("label") for e in ElementTree.fromstring(qgis_style(odd)).iter("paletteEntry")]
    assert labels == ["wheat\ufffd\ufffd\ufffd\ufffd", "🌾 <wheat>\n&"]
    assert [e.text for e in ElementTree.fromstring(gdal_categories(odd)).iter("Category")] == ["no data", *labels]


def test_slugs_are_readable_and_no_two_alike() -> None:
    names = ["Blé", "Ble", "ble", "小麦", "玉米", "Weiß (late)", "Zuckerrübe", "class-4"]
    made = slugs([ClassEntry(code, name, "#000000") for code, name in enumerate(names, start=1)])
    assert made == ["Ble", "Ble-2", "ble-3", "class-4", "class-5", "Weiss-late", "Zuckerrube", "class-4-8"]


def test_stac_items_can_be_read_moved_and_verified(tmp_path: Path) -> None:
    tiles = tiles_of([(0, 0), (3, 3)], 40)
    [grid] = zone_grids(tiles)
    layer = Layer("float32", NAN, ("e000", "e001"), "average")
    (tmp_path / "a").mkdir()
    write(tmp_path / "a" / "m.tif", grid, layer, tiles)
    record = AssetRecord("embeddings", tmp_path / "a" / "m.tif", "Embeddings", "data", layer)
    write_item(tmp_path / "a" / "item.json", grid, ("2020-01-01", "2020-12-31"), [record], {"title": "t"})
    assert str(tmp_path) not in (tmp_path / "a" / "item.json").read_text()
    (tmp_path / "a").rename(tmp_path / "b")
    item = pystac.Item.from_file(str(tmp_path / "b" / "item.json"))
    asset = item.assets["embeddings"]
    assert asset.href == "./m.tif"
    moved = Path(asset.get_absolute_href() or "")
    assert asset.extra_fields["file:checksum"] == "1220" + sha(moved)
    assert asset.extra_fields["bands"] == [{"name": "e000"}, {"name": "e001"}]
    assert asset.extra_fields["raster:bands"][0]["nodata"] == "nan"
    assert item.properties["proj:code"] == "EPSG:32631"
    assert item.properties["proj:shape"] == [160, 160]
    assert (item.properties["start_datetime"], item.properties["end_datetime"]) == (
        "2020-01-01T00:00:00Z",
        "2020-12-31T23:59:59Z",
    )
    assert item.bbox is not None
    shape = shapely.geometry.shape(item.geometry)
    assert len(shape.geoms) == 2, "what lies between two tiles is not claimed"
    assert shape.bounds == tuple(item.bbox)
    with rasterio.open(moved) as raster:
        box = rasterio.warp.transform_bounds(raster.crs, 4326, *raster.bounds)
    np.testing.assert_allclose(box, item.bbox, atol=1e-4)


def test_stac_ids_are_those_of_the_work_and_not_of_the_file(tmp_path: Path) -> None:
    tiles = tiles_of([(0, 0)], 40)
    [grid] = zone_grids(tiles)
    ids = []
    for name, layer in (("a", "e000"), ("b", "e000"), ("c", "e001")):
        folder = tmp_path / name
        folder.mkdir()
        record = AssetRecord("it", folder / "m.tif", "It", "data", Layer("float32", NAN, (layer,), "average"))
        write(record.path, grid, record.layer, tiles)
        item = folder / "map_31N.json"
        write_item(item, grid, ("2020-01-01", "2020-12-31"), [record], {}, of=("Pays de Blé/2", "tessera-v1.1"))
        ids.append(pystac.Item.from_file(str(item)).id)
    assert re.fullmatch(r"Pays-de-Bl-2_tessera-v1-1_map-31N_2020-01-01_2020-12-31_[0-9a-f]{10}", ids[0]), (
        "two runs in one catalogue do not collide"
    )
    assert ids[0] == ids[1] != ids[2]


def test_a_footprint_across_the_antimeridian_is_cut_there() -> None:
    tile = PlannedTile("t", 32701, 100_000, 8_000_000, 1024)  # reaches west of 180 degrees
    [grid] = zone_grids([tile, PlannedTile("u", 32701, 202_400, 8_000_000, 1024)])
    geometry, bbox = footprint(grid)
    assert geometry["type"] == "MultiPolygon"
    longitudes = [x for part in geometry["coordinates"] for x, _ in part[0]]
    assert max(abs(x) for x in longitudes) <= 180
    west, south, east, north = bbox
    assert west > 170 > 0 > east > -180, "by RFC 7946 such a box runs from a high west to a low east"
    assert south < north
    json.dumps(geometry)
