"""Embeddings out of a run: the same numbers at the same places, resumable, and never two models in one target."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import rasterio
import shapely
import zarr
from numpy.typing import NDArray
from pyproj import Transformer
from support.embedded import write_vector
from support.mosaicked import MODEL, TOML, config, embed_places, far_run, looks, planned_run, put_together, write_tile
from support.s3_server import ACCESS_KEY, SECRET_KEY, S3Server

from infer.contract import Plan, Run, SmaltiError, planned_tiles, read_embedding
from infer.contract.imported import imported_tiles
from preproc.exchange.export import CARD, PointsWanted, export
from preproc.exchange.geotessera import open_published
from preproc.exchange.importing import import_embeddings
from preproc.exchange.placement import Frame, Patch, take
from preproc.exchange.points import hilbert
from preproc.mirror.store import ObjectStore
from preproc.mosaic.stage import StitchStage
from preproc.raster.zones import own_rows, zone_grids
from preproc.run.config import parse_config
from preproc.run.stage import run_stage

CELLS = [(32631, 0, 0), (32631, 1, 0), (32631, 1, 1)]


@pytest.fixture
def run(tmp_path: Path) -> Run:
    run = planned_run(tmp_path / "run", CELLS)
    embed_places(run, dim=128, int8=True)
    return run


def files(folder: Path) -> dict[str, int]:
    return {str(path.relative_to(folder)): path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


def same_files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_geotesseras_tiles_come_back_as_they_were(run: Run, tmp_path: Path) -> None:
    target = tmp_path / "out"
    assert "parts written to" in export(run, str(target), "geotessera")
    stated = json.loads((target / "tessera_metadata.json").read_text())
    assert stated["dataset_version"] == "2.0"
    assert stated["dataset_variant"].startswith("smalti-abab")
    assert {"smalti_licence", "smalti_citation"} <= set(stated)
    published = open_published(str(target), 2019)
    for tile in planned_tiles(run):
        whole = np.ones((tile.size, tile.size), dtype=bool)
        found, made = (
            take(Frame.of(tile), whole, published.patches(tile), 128),
            read_embedding(run.embeddings, tile.name),
        )
        assert made.scales_hw is not None
        np.testing.assert_array_equal(found.scales_hw, made.scales_hw)
        np.testing.assert_array_equal(
            found.codes_hwc, np.where(np.isnan(made.scales_hw)[..., None], 0, made.values_hwc)
        )
        assert found.shift_m == 0
    table = pq.read_table(target / "manifest.parquet").to_pylist()
    for row in table:
        name = f"grid_{row['lon']:.2f}_{row['lat']:.2f}"
        codes = target / "global_0.1_degree_representation" / "2019" / name / f"{name}.npy"
        assert codes.stat().st_size == row["grid_size"]
        with rasterio.open(target / "global_0.1_degree_tiff_all" / f"{name}.tiff") as mask:
            assert mask.shape == np.load(codes, mmap_mode="r").shape[:2]
            assert mask.transform.c % 10 == mask.transform.f % 10 == 0
            scales = np.load(codes.with_name(f"{name}_scales.npy"))
            np.testing.assert_array_equal(mask.read(1) == 1, ~np.isnan(scales))


def test_npy_tiles_of_a_run_are_taken_for_what_they_are_and_for_no_other_model_or_season(
    run: Run, tmp_path: Path
) -> None:
    export(run, str(tmp_path / "out"), "geotessera")
    other = planned_run(tmp_path / "other", CELLS)
    text = other.config.read_text()
    for model, start, refused in (
        (
            "tessera-v2-nano",
            "2018-12-01",
            r"asks for tessera-v2-nano, the source has demo by smalti: set \[model\] name",
        ),
        ("demo", "2019-01-01", "the season is .*, the source's 2018-12-01 to 2019-11-30"),
    ):
        if start != "2018-12-01":
            plan = Plan.read(other)
            replace(plan, window=(date(2019, 1, 1), date(2019, 12, 31))).write(other.plan, inputs={}, files=[])
        settings = parse_config(f'{text}[model]\nname = "{model}"\n', other.config)
        with pytest.raises(SmaltiError, match=refused):
            import_embeddings(other, settings, str(tmp_path / "out"))
    other = planned_run(tmp_path / "third", CELLS)
    import_embeddings(other, parse_config(f'{text}[model]\nname = "demo"\n', other.config), str(tmp_path / "out"))
    stated = read_embedding(other.embeddings, planned_tiles(other)[0].name).manifest
    assert stated.model.trained is False, "as it was where they were made"
    assert stated.model.label == "demo by smalti, as published"


def test_geotiffs_hold_the_values_in_geotesseras_cells(run: Run, tmp_path: Path) -> None:
    """Names, bands and tags are those by which geotessera and torchgeo know them."""
    export(run, str(tmp_path / "out"), "torchgeo")
    published = sorted((tmp_path / "out").glob("grid_*.tiff"))
    assert published
    seen = 0
    for path in published:
        assert re.fullmatch(r"grid_[0-9.-]+_[0-9.-]+_2019\.tiff", path.name)
        with rasterio.open(path) as raster:
            assert raster.count == 128
            assert raster.descriptions[127] == "Tessera_Band_127"
            assert raster.tags()["TESSERA_DATASET_VARIANT"].startswith("smalti-abab")
            assert raster.tags()["TESSERA_TILE_LON"] in path.name
            values, where = raster.read([1, 77]), raster.transform
        for tile in planned_tiles(run):
            made = read_embedding(run.embeddings, tile.name).window(slice(None), slice(None))
            row, column = round((where.f - tile.north) / 10), round((tile.west - where.c) / 10)
            rows = np.arange(32)[(np.arange(32) + row >= 0) & (np.arange(32) + row < values.shape[1])]
            columns = np.arange(32)[(np.arange(32) + column >= 0) & (np.arange(32) + column < values.shape[2])]
            if len(rows) and len(columns):
                found = values[:, rows[:, None] + row, columns[None, :] + column]
                np.testing.assert_array_equal(found, np.moveaxis(made[rows[:, None], columns][..., [0, 76]], -1, 0))
                seen += found.shape[1] * found.shape[2]
    assert seen >= 3 * 32 * 32


def test_points_have_the_embeddings_of_their_places(run: Run, tmp_path: Path) -> None:
    tile = planned_tiles(run)[1]
    values = np.random.default_rng(0).normal(size=(32, 32, 128)).astype(np.float32)
    write_tile(run, tile, values, int8=True, observations_hwm=looks(32))
    export(run, str(tmp_path / "out"), "geoparquet", points=PointsWanted(every=5))
    table = pq.read_table(tmp_path / "out" / f"{tile.name}.parquet")
    geo = json.loads(table.schema.metadata[b"geo"])
    assert geo["columns"]["geometry"]["covering"]["bbox"]["xmin"] == ["bbox", "xmin"]
    assert table.schema.metadata[b"SMALTI_MODEL"] == b"demo"
    made = read_embedding(run.embeddings, tile.name)
    move = Transformer.from_crs(4326, tile.epsg, always_xy=True)
    rows = table.to_pylist()
    assert 36 <= len(rows) <= 49
    seen = set()
    for row in rows:
        point = shapely.from_wkb(row["geometry"])
        assert row["bbox"]["xmin"] == point.x
        x, y = move.transform(point.x, point.y)
        r, c = int((tile.north - y) // 10), int((x - tile.west) // 10)
        seen.add((int(y // 10) % 5, int(x // 10) % 5))
        assert row["embedding"] == made.values_hwc[r, c].tolist()
        assert row["observations_s2"] == looks(32)[r, c, 0]
    assert len(seen) == 1, "one lattice for all tiles"


def test_at_equator_and_antimeridian_points_and_geotiffs_are_in_their_place(tmp_path: Path) -> None:
    run, tiles = far_run(tmp_path / "run", dim=8)
    extra = '[stitch]\nsheet = 128\nformats = ["cog"]\nmissing = "nodata"\n'
    run.config.write_text(TOML.format(extra=extra))
    run_stage(StitchStage(), run, config(run, extra))
    for kind in ("cog", "geoparquet"):
        export(run, str(tmp_path / kind), kind, points=PointsWanted(every=4), gaps=True)
    grids = {grid.label: grid for grid in zone_grids(planned_tiles(run))}
    whole = {label: put_together(run, tiles, label) for label in grids}
    for label, values in whole.items():
        with (
            rasterio.open(tmp_path / "cog" / f"embeddings_{label}.vrt") as codes,
            rasterio.open(tmp_path / "cog" / f"embeddings_{label}_scales.vrt") as scales,
        ):
            found = np.moveaxis(codes.read(), 0, 2) * scales.read(1)[..., None]
        np.testing.assert_allclose(np.nan_to_num(found), np.nan_to_num(values), atol=1e-6)
    seen: dict[str, list[tuple[int, int]]] = {label: [] for label in grids}
    for tile in planned_tiles(run):
        path = tmp_path / "geoparquet" / f"{tile.name}.parquet"
        label = next(label for label, grid in grids.items() if grid.epsg % 100 == tile.epsg % 100)
        move = Transformer.from_crs(4326, grids[label].epsg, always_xy=True)
        for row in pq.read_table(path).to_pylist() if path.exists() else []:
            point = shapely.from_wkb(row["geometry"])
            x, y = move.transform(point.x, point.y)
            place = int((grids[label].north - y) // 10), int((x - grids[label].west) // 10)
            np.testing.assert_allclose(np.multiply(row["embedding"], row["scale"]), whole[label][place], atol=1e-6)
            seen[label].append(place)
    for label, places in seen.items():
        rows, columns = np.array(sorted(set(places))).T
        own = {tile.name: tiles[tile.name].copy() for tile in planned_tiles(run)}
        for tile in planned_tiles(run):
            own[tile.name][~own_rows(tile, np.arange(48))] = np.nan
        every = put_together(run, own, label)[rows[0] % 4 :: 4, columns[0] % 4 :: 4, 0]
        assert len(places) == len(set(places)) == np.isfinite(every).sum(), "each pixel is one point"


def test_given_points_have_the_pixels_they_lie_in_and_the_names_of_their_file(
    run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first, second, _ = planned_tiles(run)
    corner, far = (first.west + 5, first.north - 5), (first.west - 500, first.north)
    places = [(first.west + 203.0, first.north - 171.0), (second.west + 310.0, second.north - 315.0), corner, far]
    path = write_vector(tmp_path / "plots.geojson", [shapely.Point(*xy) for xy in places], {"plot": list("abcd")})
    wanted = PointsWanted(path=path, name="plot")
    assert "2 parts written" in export(run, str(tmp_path / "out"), "geoparquet", points=wanted)
    said = capsys.readouterr().err
    assert "2 of 4 points are left out: 0 have no geometry, 1 lie outside the run's tiles, 1 have no embedding" in said
    for tile, (x, y), name in zip((first, second), places, "ab", strict=False):
        (row,) = pq.read_table(tmp_path / "out" / f"{tile.name}.parquet").to_pylist()
        made = read_embedding(run.embeddings, tile.name)
        assert row["id"] == name
        assert row["embedding"] == made.values_hwc[int((tile.north - y) // 10), int((x - tile.west) // 10)].tolist()
        back = Transformer.from_crs(4326, tile.epsg, always_xy=True).transform(
            *shapely.from_wkb(row["geometry"]).coords[0]
        )
        np.testing.assert_allclose(back, (x, y), atol=1e-3)
    assert "2 were there" in export(run, str(tmp_path / "out"), "geoparquet", points=wanted)
    with pytest.raises(SmaltiError, match="holds an export of another choice of points: "):
        export(run, str(tmp_path / "out"), "geoparquet", points=PointsWanted(path=path))
    with pytest.raises(SmaltiError, match="--points: points are written --as geoparquet, not --as zarr"):
        export(run, str(tmp_path / "new"), "zarr", points=wanted)
    with pytest.raises(SmaltiError, match=r"has no attribute 'plott', which --points names; it has: plot"):
        export(run, str(tmp_path / "new"), "geoparquet", points=PointsWanted(path=path, name="plott"))
    field = write_vector(tmp_path / "fields.geojson", [shapely.box(0, 0, 1, 1)], {"plot": ["a"]})
    with pytest.raises(SmaltiError, match=r"feature 0 is a polygon: --points takes points; .* `smalti parcels"):
        export(run, str(tmp_path / "new"), "geoparquet", points=PointsWanted(path=field))
    away = write_vector(tmp_path / "away.geojson", [shapely.Point(*far)], {"plot": ["d"]})
    with pytest.raises(SmaltiError, match="none of its 1 points has an embedding"):
        export(run, str(tmp_path / "new"), "geoparquet", points=PointsWanted(path=away))
    with pytest.raises(SmaltiError, match=r"gone.gpkg: no such file: --points names it"):
        export(run, str(tmp_path / "new"), "geoparquet", points=PointsWanted(path=tmp_path / "gone.gpkg"))
    assert not (tmp_path / "new").exists(), "nothing is claimed by a question that cannot be answered"


def test_the_curve_is_hilberts() -> None:
    """Neighbours along it are neighbours on the ground, and it goes everywhere once."""
    x, y = (axis.ravel().astype(float) for axis in np.meshgrid(np.arange(8), np.arange(8)))
    order = np.argsort(hilbert(x, y))
    steps = np.abs(np.diff(x[order])) + np.abs(np.diff(y[order]))
    assert (steps == 1).all()


def test_the_store_goes_out_and_in_again(run: Run, tmp_path: Path) -> None:
    run_stage(StitchStage(), run, config(run, "[stitch]\nsheet = 128"))
    export(run, str(tmp_path / "store"), "zarr")
    assert zarr.open_group(tmp_path / "store", mode="r").attrs["geoemb:dimensions"] == 128
    other = planned_run(tmp_path / "other", [(32631, 0, 0), (32631, 1, 0), (32631, 1, 1)])
    text = other.config.read_text() + '[model]\nname = "demo"\n'
    bbox = "bbox = [3.9, 50.6, 4.4, 51.0]"
    text = text.replace("bbox = [4.0, 50.7, 4.1, 50.8]", bbox)
    import_embeddings(other, parse_config(text, other.config), str(tmp_path / "store"))
    for tile in planned_tiles(run):
        mine, theirs = (read_embedding(r.embeddings, tile.name) for r in (run, other))
        assert mine.scales_hw is not None
        assert theirs.scales_hw is not None
        valid = ~np.isnan(mine.scales_hw)
        np.testing.assert_array_equal(theirs.scales_hw, mine.scales_hw)
        np.testing.assert_array_equal(theirs.values_hwc[valid], mine.values_hwc[valid])
        assert theirs.manifest.inputs["checkpoint"] == "ab" * 32
        assert theirs.manifest.model.trained is False
    with pytest.raises(SmaltiError, match="asks for tessera-v2-small, the source has demo by smalti"):
        import_embeddings(
            other, parse_config(text.replace('"demo"', '"tessera-v2-small"'), other.config), str(tmp_path / "store")
        )


def test_a_bucket_takes_an_export_that_was_killed_and_is_imported_from(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_stage(StitchStage(), run, config(run))
    keys = {"AWS_ACCESS_KEY_ID": ACCESS_KEY, "AWS_SECRET_ACCESS_KEY": SECRET_KEY, "AWS_ALLOW_HTTP": "true"}
    server = S3Server()
    for name, value in {**keys, "AWS_ENDPOINT_URL": server.url, "AWS_REGION": "test"}.items():
        monkeypatch.setenv(name, value)
    made, other = [], planned_run(tmp_path / "other", CELLS)

    def killed(store: ObjectStore, key: str, path: Path) -> None:
        made.append(key)
        if len(made) == 4:
            raise KeyboardInterrupt
        put(store, key, path)

    put = ObjectStore.put
    with server.running():
        with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
            patched.setattr(ObjectStore, "put", killed)
            export(run, "s3://maps/out", "zarr")
        assert re.search(r"s3://maps/out, 3 were there$", export(run, "s3://maps/out", "zarr"))
        files = {name.removeprefix("/maps/out/"): content for name, content in server.files.items()}
        own = {path.relative_to(run.mosaic / "embeddings.zarr") for path in run.mosaic.rglob("embeddings.zarr/**/*")}
        assert {str(path) for path in own if (run.mosaic / "embeddings.zarr" / path).is_file()} <= set(files)
        text = other.config.read_text().replace("[4.0, 50.7, 4.1, 50.8]", "[3.9, 50.6, 4.4, 51.0]")
        text += '[model]\nname = "demo"\n'
        import_embeddings(other, parse_config(text, other.config), "s3://maps/out")
    for tile in planned_tiles(run):
        mine, theirs = (read_embedding(r.embeddings, tile.name) for r in (run, other))
        np.testing.assert_array_equal(theirs.scales_hw, mine.scales_hw)


def test_counts_come_along_and_pixels_that_were_seen_too_rarely_are_left_out(tmp_path: Path) -> None:
    run = planned_run(tmp_path / "run", CELLS)
    for tile in planned_tiles(run):
        values = np.random.default_rng(0).normal(size=(32, 32, 128)).astype(np.float32)
        write_tile(run, tile, values, int8=True, observations_hwm=looks(32))
    run_stage(StitchStage(), run, config(run, "[stitch]\nsheet = 128"))
    other = planned_run(tmp_path / "other", CELLS)
    text = other.config.read_text().replace("bbox = [4.0, 50.7, 4.1, 50.8]", "bbox = [3.9, 50.6, 4.4, 51.0]")
    text += '[model]\nname = "demo"\nmin_clear_s2 = 15\n'
    import_embeddings(other, parse_config(text, other.config), str(run.mosaic / "embeddings.zarr"))
    for tile in planned_tiles(run):
        found = read_embedding(other.embeddings, tile.name)
        np.testing.assert_array_equal(found.observations_hwm, looks(32))
        assert found.scales_hw is not None
        np.testing.assert_array_equal(np.isnan(found.scales_hw), looks(32)[..., 0] < 15)
        assert found.manifest.as_json()["origin"]["pixels_too_thinly_observed"] == int((looks(32)[..., 0] < 15).sum())
    import_embeddings(
        other, parse_config(text, other.config), str(run.mosaic / "embeddings.zarr"), fill=True, force=True
    )
    assert not imported_tiles(other), "each has such pixels: all are left to the engine"
    assert not list(other.embeddings.glob("*.json")), "and what was taken before is not taken for the engine's"


def test_a_zone_without_counts_is_not_taken_for_seen_often(tmp_path: Path) -> None:
    (tile,) = planned_tiles(planned_run(tmp_path / "run", CELLS))[:1]
    patch = Patch(
        "utm31", tile.epsg % 100, tile.west, tile.north, (tile.size, tile.size),
        lambda rows, columns: (np.ones((32, 32, 4), np.int8), np.full((32, 32), 0.1, np.float32)),
    )  # fmt: skip
    inside = np.ones((32, 32), dtype=bool)
    assert np.isfinite(take(Frame.of(tile), inside, [patch], 4).scales_hw).all()
    with pytest.raises(SmaltiError, match="utm31 does not say how often"):
        take(Frame.of(tile), inside, [patch], 4, min_clear_s2=15)


def test_the_mosaic_goes_out_whole(run: Run, tmp_path: Path) -> None:
    run_stage(StitchStage(), run, config(run, "[stitch]\nsheet = 128"))
    export(run, str(tmp_path / "out"), "stac")
    there = {name for name in files(tmp_path / "out") if not name.startswith(".smalti/")} - {CARD}
    assert there == {name for name in files(run.mosaic) if not name.startswith("previews/")}, "what stitch works with"
    for name in there:
        assert (tmp_path / "out" / name).read_bytes() == (run.mosaic / name).read_bytes()
    card = json.loads((tmp_path / "out" / CARD).read_text())
    (tmp_path / "out" / CARD).write_text(json.dumps({**card, "kind": "mosaic"}))  # as earlier versions called it
    assert ": 0 parts written" in export(run, str(tmp_path / "out"), "stac")
    export(run, str(tmp_path / "cogs"), "cog")
    there = {name for name in files(tmp_path / "cogs") if not name.startswith(".smalti/")} - {CARD}
    assert there == {name for name in files(run.mosaic) if name.endswith((".tif", ".vrt", ".gti.gpkg"))}
    (zone,) = json.loads(run.mosaic_manifest.read_text())["zones"].values()
    with rasterio.open(tmp_path / "cogs" / zone["raster"]) as mine, rasterio.open(run.mosaic / zone["raster"]) as its:
        np.testing.assert_array_equal(mine.read(1), its.read(1))
    run_stage(StitchStage(), run, config(run, '[stitch]\nsheet = 128\nformats = ["zarr"]'))
    with pytest.raises(SmaltiError, match=r'has no cog: add "cog" to \[stitch\] formats in run.toml and run'):
        export(run, str(tmp_path / "none"), "cog")


def test_a_mosaic_with_missing_tiles_goes_out_as_what_it_says_it_is(run: Run, tmp_path: Path) -> None:
    first, second, third = planned_tiles(run)
    (run.embeddings / f"{first.name}.json").unlink()
    run_stage(StitchStage(), run, config(run, '[stitch]\nsheet = 128\nmissing = "nodata"'))
    for tile in (second, third):  # of another model by now, and not stitched again
        write_tile(run, tile, np.ones((32, 32, 128), np.float32), int8=True, checkpoint="cd" * 32)
    export(run, str(tmp_path / "out"), "stac")
    card = json.loads((tmp_path / "out" / CARD).read_text())
    assert card["model"] == json.loads(run.mosaic_manifest.read_text())["model"]
    assert card["missing"] == [first.name]
    with pytest.raises(SmaltiError, match="1 of 3 tiles have no valid embedding"):
        export(run, str(tmp_path / "points"), "geoparquet")


def test_tiles_that_are_missing_are_left_out_and_named_where_that_is_wished_and_come_later(
    run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first, second, third = planned_tiles(run)
    places = [(first.west + 203.0, first.north - 171.0), (second.west + 310.0, second.north - 315.0)]
    plots = write_vector(tmp_path / "plots.geojson", [shapely.Point(*xy) for xy in places], {"plot": list("ab")})
    kinds: dict[str, tuple[Any, PointsWanted | None]] = {
        "lattice": ("geoparquet", None),
        "plots": ("geoparquet", PointsWanted(path=plots, name="plot")),
        "cells": ("geotessera", None),
    }
    for name, (kind, points) in kinds.items():
        export(run, str(tmp_path / "whole" / name), kind, points=points)
    manifest = run.embeddings / f"{second.name}.json"
    manifest.rename(tmp_path / "late")
    for name, (kind, points) in kinds.items():
        capsys.readouterr()
        export(run, str(tmp_path / "out" / name), kind, points=points, gaps=True)
        assert f"export: 1 tile has no embedding and is nodata ([stitch] missing): {second.name}" in (
            capsys.readouterr().err
        )
        assert json.loads((tmp_path / "out" / name / CARD).read_text())["missing"] == [second.name]
    names = [
        [path.stem for path in sorted((tmp_path / "out" / kind).glob("*.parquet"))] for kind in ("lattice", "plots")
    ]
    assert names == [[first.name, third.name], [first.name]]
    (tmp_path / "late").rename(manifest)
    for name, (kind, points) in kinds.items():
        export(run, str(tmp_path / "out" / name), kind, points=points, gaps=True)
        assert same_files(tmp_path / "out" / name) == same_files(tmp_path / "whole" / name)


def test_an_export_goes_on_where_it_stopped_and_follows_changes(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "out"
    export(run, str(target), "geoparquet")
    before = files(target)
    assert export(run, str(target), "geoparquet").endswith("0 parts written to " + f"{target}, 3 were there")
    assert files(target) == before
    first, second, _ = planned_tiles(run)
    (target / f"{first.name}.parquet").write_bytes(b"cut")
    write_tile(run, second, np.ones((32, 32, 128), np.float32), int8=True)
    assert "2 parts written" in export(run, str(target), "geoparquet")
    codes = run.embeddings / f"{second.name}.npy"
    codes.write_bytes(codes.read_bytes()[:-1] + b"x")
    with pytest.raises(SmaltiError, match=rf"(?s)1 of 3 parts failed; .*{second.name}: .*do not match the checksum"):
        export(run, str(target), "geoparquet", force=True)


def test_a_target_that_cannot_be_written_is_told_in_a_line(run: Run) -> None:
    with pytest.raises(SmaltiError, match=r"/proc/none/smalti-export.json: cannot be written .*: name a folder"):
        export(run, "/proc/none", "geoparquet")


def test_two_models_never_share_a_target(run: Run, tmp_path: Path) -> None:
    export(run, str(tmp_path / "out"), "geoparquet")
    for tile in planned_tiles(run):
        values: NDArray[Any] = np.ones((32, 32, 128), np.float32)
        write_tile(run, tile, values, int8=True, checkpoint="cd" * 32)
    with pytest.raises(SmaltiError, match=r"holds an export of another model: .* do not mix; name another target"):
        export(run, str(tmp_path / "out"), "geoparquet")
    with pytest.raises(SmaltiError, match=r"another .*choice of points.*: "):
        export(run, str(tmp_path / "out"), "geoparquet", points=PointsWanted(every=3))


def test_what_geotessera_has_no_place_for_is_refused(tmp_path: Path) -> None:
    run = planned_run(tmp_path / "run", CELLS)
    embed_places(run, dim=64, int8=True, model=MODEL)
    with pytest.raises(SmaltiError, match="int8 codes of 128 numbers, the run has 64 as int8"):
        export(run, str(tmp_path / "out"), "geotessera")
