"""`open_run`: what it gives is what the files hold, at the place that was asked for."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
from numpy.typing import NDArray
from pyproj import Transformer
from rasterio.transform import Affine
from support.embedded import embed, map_of, plan_of, tiled_run
from support.mosaicked import TOML, config, embed_places, place_values, planned_run, write_tile

from infer.contract import FormatError, Plan, PlannedTile, Run, SmaltiError, planned_tiles
from infer.contract.rasters import MapZone
from preproc import open_run
from preproc.mosaic.reader import EmbeddingReader
from preproc.mosaic.stage import StitchStage
from preproc.run.stage import run_stage


@pytest.fixture
def run(tmp_path: Path) -> Run:
    made = tiled_run(tmp_path / "run")
    embed(made, int8=True)
    return made


def test_embeddings_at_points_are_those_of_the_pixels_under_them(run: Run) -> None:
    opened = open_run(run.root)
    lonlat = Transformer.from_crs(32631, 4326, always_xy=True)
    expected, points = [], []
    for tile in opened.tiles:
        points.append(lonlat.transform(tile.west + 10 * 7 + 1.0, tile.north - 10 * 11 - 9.0))
        expected.append(opened.embedding(tile.name).window(slice(11, 12), slice(7, 8))[0, 0])
    points.append((0.0, 0.0))
    found = opened.embeddings_at(points)
    np.testing.assert_array_equal(found[:-1], expected)
    assert np.isnan(found[-1]).all()
    first = opened.tiles[0]
    edge = opened.embeddings_at([(first.west, first.north), (first.west, first.north - 320)], epsg=32631)
    below = next(tile for tile in opened.tiles if (tile.west, tile.north) == (first.west, first.north - 320))
    assert np.isnan(edge[0]).all(), "row 0 of the first tile is nodata"
    np.testing.assert_array_equal(edge[1], opened.embedding(below.name).window(slice(0, 1), slice(0, 1))[0, 0])


def test_a_window_is_joined_from_its_tiles_and_nodata_beyond(run: Run) -> None:
    opened = open_run(run.root)
    west, north = opened.tiles[0].west, opened.tiles[0].north
    raster = opened.embeddings_in((west - 20, north - 400, west + 400, north + 10), epsg=32631)
    assert (raster.epsg, raster.values.shape) == (32631, (41, 42, 6))
    assert raster.transform * (0, 0) == (west - 20, north + 10)
    assert np.isnan(raster.values[:, :2]).all()
    for tile in opened.tiles:
        top, left = (north + 10 - tile.north) // 10, (tile.west - west + 20) // 10
        shown = raster.values[top : top + 32, left : left + 32]
        whole = opened.embedding(tile.name).window(slice(0, shown.shape[0]), slice(0, shown.shape[1]))
        np.testing.assert_array_equal(shown, whole)
    with pytest.raises(SmaltiError, match="no tile lies in"):
        opened.embeddings_in((10, 10, 11, 11))


def test_a_box_of_the_map_has_every_pixel_that_it_touches(run: Run) -> None:
    numbers = np.arange(64 * 64, dtype=np.uint16).reshape(64, 64)
    run.map.mkdir()
    where = {"crs": "EPSG:32631", "transform": Affine(10, 0, 500_000, 0, -10, 5_600_000)}
    with rasterio.open(
        run.map / "c.tif", "w", "GTiff", width=64, height=64, count=1, dtype="uint16", **where
    ) as raster:
        raster.write(numbers, 1)
    zone = MapZone(32631, 64, 64, (500_000, 5_599_360, 500_640, 5_600_000), "c.tif", "c.tif", "", "", "")
    map_of({"31N": zone}).write(run.map_manifest, inputs={}, files=[run.map / "c.tif"])
    lonlat = Transformer.from_crs(32631, 4326, always_xy=True)
    for first, last in ((20, 25), (0, 3), (60, 63), (40, 40)):  # from a pixel's middle to another's
        west, north = lonlat.transform(500_005 + 10 * first, 5_599_995 - 10 * first)
        east, south = lonlat.transform(500_006 + 10 * last, 5_599_994 - 10 * last)
        found = open_run(run.root).map(bbox=(west, south, east, north))
        assert {numbers[first, first], numbers[last, last]} <= set(found.values.ravel().tolist())
        column, row = ~where["transform"] * (found.transform.c, found.transform.f)
        assert found.values[0, 0] == numbers[round(row), round(column)]
    np.testing.assert_array_equal(open_run(run.root).map(bbox=(-10, 40, 20, 60)).values, numbers)
    with pytest.raises(SmaltiError, match=r"c.tif: does not reach \[10, 10, 11, 11\]"):
        open_run(run.root).map(bbox=(10, 10, 11, 11))


def test_what_is_not_there_is_named(run: Run, tmp_path: Path) -> None:
    opened = open_run(run.root)
    with pytest.raises(SmaltiError, match="no tile 'x' in the plan: it has 4"):
        opened.embedding("x")
    with pytest.raises(FormatError, match="no such tile folder"):
        opened.tile(opened.tiles[0].name)
    with pytest.raises(SmaltiError, match="smalti predict"):
        opened.map()
    with pytest.raises(SmaltiError, match="no such run directory"):
        open_run(tmp_path / "nothing")


# --- from the mosaic's store

SHEETS = '[stitch]\nsheet = 128\nformats = ["zarr"]\n'
CELLS = [(32631, c, r) for c, r in [(0, 0), (1, 0), (2, 0), (3, 1), (0, 3), (6, 5)]] + [(32632, 0, 0)]
"""Of tiles of 48 pixels, which sheets of 128 divide; one sheet is empty."""


def stitched(run: Run, extra: str = SHEETS) -> None:
    run_stage(StitchStage(), run, config(run, extra))
    run.config.write_text(TOML.format(extra=extra))


def asked(run: Run) -> list[NDArray[Any]]:
    """What points all over the tiles of a run and some windows of it give."""
    opened = open_run(run.root)
    found = []
    for epsg in sorted({tile.epsg for tile in opened.tiles}):
        tiles = [tile for tile in opened.tiles if tile.epsg == epsg]
        spread = np.random.default_rng(1).uniform(-30, 510, (40, 2))
        points = np.concatenate([np.add(spread, (tile.west, tile.north - 480)) for tile in tiles])
        found.append(opened.embeddings_at(points, epsg=epsg))
        west, north = tiles[0].west, tiles[0].north
        found.append(opened.embeddings_in((west - 45, north - 900, west + 1500, north + 20), epsg=epsg).values)
    return found


def same(found: list[NDArray[Any]], wanted: list[NDArray[Any]]) -> None:
    for one, other in zip(found, wanted, strict=True):
        np.testing.assert_array_equal(one, other)


def unread(*_: object, **__: object) -> None:
    raise AssertionError("an embedding is read where the store has its numbers")


def test_the_store_gives_the_engines_numbers_and_is_read_where_it_has_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = planned_run(tmp_path / "run", CELLS, size=48)
    embed_places(run, int8=True)
    wanted = asked(run)
    assert np.isfinite(wanted[0]).all(axis=1).mean() > 0.5
    stitched(run)
    with monkeypatch.context() as patch:
        patch.setattr("preproc.mosaic.reader.open_embedding", unread)
        patch.setattr("preproc.mosaic.reader._POINTS", 7)
        same(asked(run), wanted)
        run.embeddings.rename(tmp_path / "elsewhere")
        same(asked(run), wanted)
    (tmp_path / "elsewhere").rename(run.embeddings)

    changed = planned_tiles(run)[1]  # an embedding that is another now, until the mosaic is made again
    write_tile(run, changed, place_values(changed, 8)[::-1].copy(), int8=True)
    middle = (changed.west + 240.0, changed.north - 240.0)
    (new,) = open_run(run.root).embeddings_at([middle], epsg=32631)
    np.testing.assert_allclose(new, place_values(changed, 8)[23, 24], atol=0.01)
    later = asked(run)
    monkeypatch.setattr("preproc.mosaic.reader._ZoneStore.opened", lambda *_: None)
    same(asked(run), later)


def test_whoever_reads_many_pixels_reads_the_store_only_where_tiles_are_not_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = planned_run(tmp_path / "run", CELLS, size=48)
    expected = embed_places(run, int8=True)
    stitched(run)
    tile = planned_tiles(run)[2]
    points = np.array([(tile.west + 10.0 * column + 5, tile.north - 245.0) for column in range(48)])

    def found() -> NDArray[Any]:
        return EmbeddingReader(run, Plan.read(run), gaps=False, source="tiles first").at(points, tile.epsg)

    with monkeypatch.context() as patch:
        patch.setattr("preproc.mosaic.reader._ZoneStore._read", unread)
        np.testing.assert_array_equal(found(), expected[tile.name][24])
    (run.embeddings / f"{tile.name}.json").unlink()
    monkeypatch.setattr("preproc.mosaic.reader.open_embedding", unread)
    np.testing.assert_array_equal(found(), expected[tile.name][24])


def test_a_store_of_another_plan_or_cut_short_is_not_read(tmp_path: Path) -> None:
    run = planned_run(tmp_path / "run", CELLS, size=48)
    embed_places(run, int8=True)
    wanted = asked(run)
    stitched(run)
    shard = run.mosaic / "embeddings.zarr/utm31/embeddings/c/0/0/0/0"
    shard.write_bytes(shard.read_bytes()[:-5])
    same(asked(run), wanted)
    plan = Plan.read(run)
    replace(plan, tiles=tuple(plan.tiles)[:1] + tuple(plan.tiles)[2:]).write(run.plan, inputs={}, files=[])
    gone = open_run(run.root).embeddings_at([(573_440 + 480 + 240, 5_626_880 - 240)], epsg=32631)
    assert np.isnan(gone).all(), "what no tile of the plan covers is nodata, whatever the mosaic has"


def test_embeddings_kept_as_floats_are_read_from_the_tiles_and_as_codes_where_those_are_not(tmp_path: Path) -> None:
    run = planned_run(tmp_path / "run", CELLS, size=48)
    embed_places(run)
    wanted = asked(run)
    stitched(run)
    same(asked(run), wanted)
    run.embeddings.rename(tmp_path / "elsewhere")
    for found, exact in zip(asked(run), wanted, strict=True):
        np.testing.assert_allclose(found, exact, atol=0.5 / 127 + 1e-6)


def test_at_the_equator_both_hemispheres_are_one_grid(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = planned_run(tmp_path / "run", [(32631, 0, 0)], size=48)
    north = [PlannedTile(f"n{i}", 32631, 500_160 + i * 480, 480, 48) for i in range(2)]
    south = [PlannedTile(f"s{i}", 32731, 500_160, 10_000_320 - i * 480, 48) for i in range(3)]
    plan_of([*south, *north]).write(run.plan, inputs={}, files=[])
    for index, tile in enumerate([*south, *north]):
        values = np.random.default_rng(index).normal(size=(48, 48, 8)).astype(np.float32)
        if tile.name == "s0":
            values[:31] = np.nan  # all but the row that the equator passes through, which both have
        write_tile(run, tile, values, int8=True)
    wanted = asked(run)
    opened = open_run(run.root)
    s0, n0 = (opened.embedding(name).window(slice(None), slice(None)) for name in ("s0", "n0"))
    across = opened.embeddings_in((500_160, -160, 500_640, 480), epsg=32631)
    assert (across.epsg, across.values.shape[:2]) == (32631, (64, 48))
    np.testing.assert_array_equal(across.values[:47], n0[:47])
    np.testing.assert_array_equal(across.values[47:], s0[31:])
    points = [(500_165.0, 10_000_005.0), (500_165.0, 9_999_995.0)]
    np.testing.assert_array_equal(opened.embeddings_at(points, epsg=32731), s0[31:33, 0])
    stitched(run)
    monkeypatch.setattr("preproc.mosaic.reader.open_embedding", unread)
    same(asked(run), wanted)


def test_tiles_that_are_missing_are_nodata_where_that_is_wished_and_else_an_error(tmp_path: Path) -> None:
    run = planned_run(tmp_path / "run", CELLS, size=48)
    embed_places(run, int8=True)
    tile = planned_tiles(run)[1]
    manifest = run.embeddings / f"{tile.name}.json"
    manifest.rename(tmp_path / "late")
    middle = [(tile.west + 240.0, tile.north - 240.0)]
    with pytest.raises(SmaltiError, match=rf"{tile.name}\.json.*smalti infer"):
        open_run(run.root).embeddings_at(middle, epsg=32631)
    extra = SHEETS + 'missing = "nodata"\n'
    run.config.write_text(TOML.format(extra=extra))
    without = asked(run)
    assert np.isnan(open_run(run.root).embeddings_at(middle, epsg=32631)).all()
    stitched(run, extra)
    same(asked(run), without)
    (tmp_path / "late").rename(manifest)
    found = open_run(run.root).embeddings_at(middle, epsg=32631)
    np.testing.assert_allclose(found[0], place_values(tile, 8)[24, 24], atol=0.01)
