"""A run by parcel: cover, means, the map's majority, declared against mapped, and polygons that are refused."""

from __future__ import annotations

import csv
import json
import shutil
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import rasterio
import shapely
from pyproj import CRS, Transformer
from support.embedded import plan_of, write_vector
from support.mosaicked import (
    EPSG,
    NAMES,
    NORTH,
    WEST,
    classified_run,
    crops,
    far_run,
    planned_run,
    put_together,
    write_tile,
)

from infer.contract import PlannedTile, Run, SmaltiError, planned_tiles, read_embedding, write_manifest
from preproc.classify.class_raster import ClassMap, read_map
from preproc.cli import app
from preproc.raster.zones import zone_grids
from preproc.region.vector import read_vector
from preproc.survey.cover import covered


def test_cover_is_the_share_of_each_pixel() -> None:
    polygon = shapely.box(105, 65, 125, 98)  # half of two columns, whole of one; 3.3 rows
    (rows, columns, share), *rest = covered(polygon, 100, 100, 10, 10)
    assert (rows, columns, rest) == (slice(0, 4), slice(0, 3), [])
    assert share == pytest.approx(np.outer([0.8, 1, 1, 0.5], [0.5, 1, 0.5]))
    assert not list(covered(shapely.box(0, 0, 5, 5), 100, 100, 10, 10))
    tall = shapely.Point(1000, 0).buffer(1900)
    found = sum(share.sum() for _, _, share in covered(tall, -1000, 2000, 400, 400))
    assert found * 100 == pytest.approx(tall.area)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return classified_run(tmp_path_factory.mktemp("parcels") / "run")[0]


@pytest.fixture
def run(made: Run, tmp_path: Path) -> Run:
    shutil.copytree(made.root, tmp_path / "run")
    return Run(tmp_path / "run")


def box(column: float, row: float, width: float, height: float) -> Any:
    west, north = WEST + column * 10, NORTH - row * 10
    return shapely.box(west, north - height * 10, west + width * 10, north)


def write(run: Run, shapes: list[Any], **fields: Any) -> Path:
    path = run.root / "fields.gpkg"
    path.unlink(missing_ok=True)
    return write_vector(path, shapes, {name: np.array(values) for name, values in fields.items()}, epsg=EPSG, to=4326)


def parcels(run: Run, path: Path, *more: object) -> Any:
    app(["parcels", str(run.root), str(path), *map(str, more)], standalone_mode=False)
    table = pq.read_table(run.root / "parcels" / "fields.parquet")
    assert b"SMALTI_MODEL_LICENCE" in table.schema.metadata
    return table.to_pylist()


def mosaic(run: Run) -> np.ndarray:
    """(64, 64, C) of the four tiles."""
    values = np.empty((64, 64, 6), np.float32)
    for tile in planned_tiles(run):
        top, left = (NORTH - tile.north) // 10, (tile.west - WEST) // 10
        embedding = read_embedding(run.embeddings, tile.name)
        values[top : top + 32, left : left + 32] = embedding.window(slice(None), slice(None))
    return values


def test_a_parcel_across_tiles_has_the_mean_and_spread_of_its_pixels_by_cover(run: Run) -> None:
    shapes = [box(20.5, 28, 24, 9.25), box(0, 0, 2, 2), box(-40, 0, 20, 20)]  # the second in the nodata corner
    whole, corner = parcels(run, write(run, shapes, name=["a", "b", "c"]), "--id", "name")
    cover = np.outer(np.r_[np.ones(9), 0.25], np.r_[0.5, np.ones(23), 0.5])[..., None]
    values = mosaic(run)[28:38, 20:45].astype(float)
    full = cover.sum()
    cover = np.where(np.isnan(values[..., :1]), 0, cover)  # a corner of the fourth tile has no embedding
    values = np.nan_to_num(values)
    mean = (values * cover).sum(axis=(0, 1)) / cover.sum()
    spread = np.sqrt((((values - mean) ** 2) * cover).sum(axis=(0, 1)) / cover.sum())
    assert whole["id"] == "a"
    assert whole["mean"] == pytest.approx(mean.tolist(), rel=1e-3, abs=1e-3)  # its outline went to degrees and back
    assert whole["spread"] == pytest.approx(spread.tolist(), rel=1e-3)
    assert whole["pixels"] == pytest.approx(cover.sum(), rel=1e-4)
    assert whole["observed"] == pytest.approx(cover.sum() / full, rel=1e-4)
    assert whole["hectares"] == pytest.approx(2.22, rel=1e-3)
    codes = read_map(run)
    votes = np.zeros(4)
    for _, _, codes_hw in codes.strips():
        votes += np.bincount(np.maximum(codes_hw[28:38, 20:45], 0).ravel(), weights=cover.ravel(), minlength=4)
    assert whole["mapped"] == codes.names[int(votes.argmax())]
    assert whole["mapped_share"] == pytest.approx(votes.max() / votes.sum(), rel=1e-3)
    assert 0 < whole["probability"] <= 1
    assert (corner["mean"], corner["mapped"], corner["predicted"], corner["observed"]) == (None, None, None, 0)
    again = read_vector(run.root / "parcels" / "fields.parquet", key="x", attributes=["id"])
    assert len(again) == 2
    assert again.crs.to_epsg() == 4326 or "CRS84" in again.crs.to_string()


def test_tiles_that_are_missing_leave_their_parcels_without_where_that_is_wished(
    run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write(run, [box(20, 20, 24, 9), box(36, 4, 8, 8), box(4, 36, 8, 8)])
    before = parcels(run, path)
    gone = planned_tiles(run)[1]
    (run.embeddings / f"{gone.name}.json").unlink()
    with pytest.raises(SmaltiError, match="1 of 4 tiles have no embedding yet"):
        parcels(run, path)
    run.config.write_text(run.config.read_text() + '[stitch]\nmissing = "nodata"\n')
    capsys.readouterr()
    across, inside, beside = parcels(run, path)
    assert f"parcels: 1 tile has no embedding and is nodata ([stitch] missing): {gone.name}" in capsys.readouterr().err
    assert across["pixels"] == pytest.approx(before[0]["pixels"] / 2, rel=1e-3)
    assert (inside["pixels"], inside["mean"]) == (0, None)
    assert beside == before[2]
    assert json.loads((run.root / "parcels" / "fields.json").read_text())["missing"] == [gone.name]


def test_declared_against_mapped(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    side = 8  # the truth's parcels
    shapes = [box(column * side, row * side, side, side) for row in range(1, 7) for column in range(1, 7)]
    known = parcels(run, write(run, shapes, name=np.arange(36)), "--id", "name")
    mapped = [row["mapped"] for row in known]
    declared = list(mapped)
    declared[3] = next(name for name in NAMES if name != mapped[3])
    declared[7] = None
    path = write(run, [*shapes, box(30, 30, 1, 1)], name=np.arange(37), crop=np.array([*declared, NAMES[0]], object))
    capsys.readouterr()
    rows = parcels(run, path, "--id", "name", "--class", "crop", "--share", 0)
    assert [row["check"] for row in rows[:8]] == ["agrees"] * 3 + ["differs"] + ["agrees"] * 3 + [None]
    assert rows[36]["check"] == "cannot be told"  # one pixel
    with (run.root / "parcels" / "fields_check.csv").open() as file:
        table = list(csv.DictReader(file))
    assert sum(int(row["parcels"]) for row in table) == 36
    assert [row for row in table if row["check"] == "differs"] == [
        {"declared": declared[3], "mapped": mapped[3], "check": "differs", "parcels": "1", "hectares": "0.64"}
    ]
    assert "Declared against mapped" in capsys.readouterr().out
    before = (run.root / "parcels" / "fields.parquet").read_bytes()
    parcels(run, path, "--id", "name", "--class", "crop", "--share", 0)
    assert "complete" in capsys.readouterr().err
    (run.root / "parcels" / "fields.json").unlink()
    parcels(run, path, "--id", "name", "--class", "crop", "--share", 0)
    assert (run.root / "parcels" / "fields.parquet").read_bytes() == before
    parcels(run, path, "--id", "name")
    assert not (run.root / "parcels" / "fields_check.csv").exists(), "it was of the table before"


def test_files_of_two_years_have_a_table_each(run: Run) -> None:
    for year in (2024, 2025):
        path = write_vector(run.root / f"fields.{year}.gpkg", [box(20, 28, 24, 9)], {}, epsg=EPSG, to=4326)
        app(["parcels", str(run.root), str(path)], standalone_mode=False)
    assert {path.name for path in (run.root / "parcels").glob("*.parquet")} == {
        "fields.2024.parquet",
        "fields.2025.parquet",
    }


def test_parcels_teach_each_other(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    tiles = planned_tiles(run)
    names = np.array(NAMES, object)
    shapes, declared = [], []
    for tile in tiles:
        top, left = (NORTH - tile.north) // 80, (tile.west - WEST) // 80
        for row in range(4):
            for column in range(4):
                shapes.append(box((left + column) * 8 + 1, (top + row) * 8 + 1, 6, 6))
                declared.append(names[crops(tile)[row * 8, column * 8]])
    true = list(declared)
    declared[5], declared[6], declared[7] = None, "rye", next(name for name in NAMES if name != true[7])
    path = write(run, shapes, name=np.arange(64), crop=np.array(declared, object))
    run.map_manifest.unlink()  # it takes no map
    rows = parcels(run, path, "--id", "name", "--class", "crop", "--train")
    told = [row["by_parcels"] for row in rows]
    right = [name == one for name, one in zip(told, true, strict=True)]
    assert sum(right) >= 58  # means of 36 pixels under noise; the classes of `crops` have centres of their own
    assert told[7] == true[7]  # whatever is declared of it: it has not seen itself
    said = " ".join(capsys.readouterr().err.split())
    assert "rye is declared of one parcel only" in said
    assert "trained on 62 parcels, each told by those of other folds: macro-F1 0.9" in said
    with pytest.raises(SmaltiError, match="--train: learns the class of parcels"):
        parcels(run, path, "--train")
    with pytest.raises(SmaltiError, match="1 classes are declared of two parcels or more"):
        parcels(run, write(run, shapes[:3], crop=["a", "a", "b"]), "--class", "crop", "--train")


def test_a_table_that_is_gone_cut_short_or_wrongly_described_is_made_again(
    run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write(run, [box(20, 28, 24, 9)], name=["a"])
    made = parcels(run, path)
    capsys.readouterr()
    assert parcels(run, path) == made
    assert "complete" in capsys.readouterr().err
    table = run.root / "parcels" / "fields.parquet"
    table.unlink()
    assert parcels(run, path) == made
    table.write_bytes(table.read_bytes()[:100])
    assert parcels(run, path) == made
    table.with_suffix(".json").write_text("[]")
    assert parcels(run, path) == made


def test_of_a_map_in_many_files_each_is_asked_for_its_own_parcels(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(run, [box(2, 28, 10, 9), box(30.5, 28, 24, 9)], name=["a", "b"])
    whole, asked = parcels(run, path, "--id", "name"), []
    (file,) = (one for one in read_map(run).files)
    halves = []
    with rasterio.open(file) as raster:
        for left in (0, 32):  # the second parcel lies in both
            halves.append(run.root / f"half_{left}.tif")
            part = rasterio.windows.Window(left, 0, 32, 64)
            profile = {**raster.profile, "width": 32, "transform": raster.window_transform(part)}
            with rasterio.open(halves[-1], "w", **profile) as half:
                half.write(raster.read(window=part))
                half.write_colormap(1, raster.colormap(1))
    boxes = tuple((WEST + left * 10, NORTH - 640, WEST + left * 10 + 320, NORTH) for left in (0, 32))
    made = replace(read_map(run), files=tuple(halves), systems=read_map(run).systems * 2, bounds=boxes)
    monkeypatch.setattr("preproc.survey.parcels.read_map", lambda _: made)

    def counted(outline: Any, *where: Any) -> Any:
        asked.append(where)
        return covered(outline, *where)

    monkeypatch.setattr("preproc.survey.parcels.covered", counted)
    assert parcels(run, path, "--id", "name") == whole
    assert sum(width == 32 for _, _, width, _ in asked) == 3


def test_parcels_that_are_none_end_with_one_line(run: Run) -> None:
    shapes = [box(2, 2, 5, 5), box(10, 10, 5, 5)]

    def refuse(path: Path, options: list[object], message: str) -> None:
        with pytest.raises(SmaltiError, match=message) as caught:
            parcels(run, path, *options)
        assert "\n" not in str(caught.value)

    refuse(run.root / "none.gpkg", [], "no such file")
    refuse(write(run, shapes, name=["a", "a"]), ["--id", "name"], "name 'a' is there 2 times: ids name one parcel each")
    refuse(write(run, shapes, name=np.array(["a", None], object)), ["--id", "name"], "feature 2 has no 'name'")
    refuse(write(run, shapes, name=["a", "b"]), ["--id", "nam"], "no attribute 'nam'")
    refuse(write(run, shapes, crop=[np.nan, np.nan]), ["--class", "crop"], "'crop' is empty in all parcels")
    refuse(write(run, shapes, crop=[1.5, 2]), ["--class", "crop"], "holds 1.5: a class is text or a whole number")
    refuse(write(run, [shapes[0].centroid], name=["a"]), [], "feature 1 is a point: parcels are polygons")
    refuse(write(run, [box(9000, 0, 5, 5)], name=["a"]), [], "no parcel lies in the run's region")
    refuse(write(run, shapes, name=["a", "b"]), ["--share", 2], "a share between 0 and 1")
    run.map_manifest.unlink()
    refuse(write(run, shapes, crop=["a", "b"]), ["--class", "crop"], "what is declared is checked by a map")
    assert not (run.root / "parcels").exists()


def on_ground(run: Run, epsg: int, shapes: list[Any]) -> list[dict[str, Any]]:
    """The table of parcels that are given in metres of a zone."""
    path = write_vector(run.root / "fields.gpkg", shapes, {"name": np.arange(len(shapes))}, epsg=epsg, to=4326)
    rows: list[dict[str, Any]] = parcels(run, path, "--id", "name")
    return rows


def test_parcels_across_the_equator_have_the_pixels_of_both_hemispheres_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, tiles = far_run(tmp_path / "run", dim=6)
    run.config.write_text(run.config.read_text() + '[stitch]\nmissing = "nodata"\n')
    [grid] = [grid for grid in zone_grids(planned_tiles(run)) if grid.label == "60N"]
    codes = np.full((grid.height, grid.width), 2, np.uint8)
    codes[:176] = 1
    run.map.mkdir()
    profile = {"height": grid.height, "width": grid.width, "count": 1, "dtype": "uint8", "transform": grid.transform}
    with rasterio.open(run.map / "c.tif", "w", driver="GTiff", crs=f"EPSG:{grid.epsg}", **profile) as raster:
        raster.write(codes, 1)
    of_map = {"nodata": 0, "names": {1: "north", 2: "south"}, "pixels": {1: 1, 2: 1}, "hectares": {}, "even": True}
    mapped = ClassMap((run.map / "c.tif",), (CRS.from_epsg(grid.epsg),), (grid.bounds,), **of_map)
    monkeypatch.setattr("preproc.survey.parcels.read_map", lambda _: mapped)
    write_manifest(run.map_manifest, "map", inputs={}, files=[])
    values = put_together(run, tiles, "60N")
    shapes, wanted = [], []
    for row, column in ((164, 150), (170, 180), (173, 200), (185, 214)):  # the equator passes above row 176
        window = values[row : row + 20, column : column + 20]
        west, north = grid.west + column * 10, grid.north - row * 10
        shapes.append(shapely.box(west, north - 200, west + 200, north))
        wanted.append(window[np.isfinite(window[..., 0])])
    rows = on_ground(run, grid.epsg, shapes)
    assert len(rows) == len(shapes)
    assert [row["mapped"] for row in rows] == ["north", "south", "south", "south"]
    assert [row["mapped_share"] for row in rows] == pytest.approx([0.6, 0.7, 0.85, 1], abs=0.01)
    for row, pixels in zip(rows, wanted, strict=True):
        assert row["pixels"] == pytest.approx(len(pixels), rel=2e-3)
        assert row["mean"] == pytest.approx(pixels.mean(axis=0).tolist(), abs=0.02)


def test_parcels_across_the_seam_of_zones_have_the_pixels_of_both(tmp_path: Path) -> None:
    plan_tiles = []
    for epsg in (32631, 32632):
        x, y = Transformer.from_crs(4326, epsg, always_xy=True).transform(6.0, 50.0)
        west, north = round(x / 10) * 10 - 320, round(y / 10) * 10 + 320
        plan_tiles.append(PlannedTile(f"t{epsg}", epsg, west, north, 64))
    run = planned_run(tmp_path / "run", [(32631, 0, 0)])
    replace(plan_of(plan_tiles), window=(date(2018, 12, 1), date(2019, 11, 30))).write(run.plan, inputs={}, files=[])
    for value, tile in enumerate(plan_tiles, start=1):
        x, y = np.meshgrid(tile.west + np.arange(64) * 10 + 5, tile.north - np.arange(64) * 10 - 5)
        longitude, _ = Transformer.from_crs(tile.epsg, 4326, always_xy=True).transform(x, y)
        own = (longitude < 6) if tile.epsg == 32631 else (longitude >= 6)
        write_tile(run, tile, np.where(own[..., None], np.float32(value), np.float32(np.nan)).repeat(6, axis=2))
    tile = plan_tiles[0]
    shape = shapely.box(tile.west + 200, tile.north - 400, tile.west + 400, tile.north - 200)  # the seam is at 320
    (row,) = on_ground(run, 32631, [shape])
    assert row["observed"] == pytest.approx(1, abs=0.05)
    assert row["mean"] == pytest.approx([1.4] * 6, abs=0.05)
