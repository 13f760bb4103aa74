"""Sheets: places are exact at any size, the store is what its layout says, and any division gives the same bytes."""

from __future__ import annotations

import hashlib
import re
import resource
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import zarr
from numpy.typing import NDArray
from support.mosaicked import MODEL, TOML, config, embed_places, far_run, planned_run, put_together, write_tile

from infer.contract import Run, Shard, SmaltiError, planned_tiles
from infer.contract.rasters import MosaicManifest
from preproc import open_run
from preproc.mosaic import sheet
from preproc.mosaic.check import check_mosaic
from preproc.mosaic.stage import StitchSheetsStage, StitchStage
from preproc.raster.zones import sheets_of, zone_grids
from preproc.run.stage import StageFailedError, run_stage

SHEETS = "[stitch]\nsheet = 128\n[site]\nworkers = 1"
CELLS = [(32631, c, r) for c, r in [(0, 0), (1, 0), (2, 0), (3, 1), (0, 3), (6, 5)]] + [(32632, 0, 0)]
"""Of tiles of 48 pixels, which do not divide a sheet: 31N has 3 x 3 sheets, of which some are empty."""


def files(run: Run) -> dict[str, str]:
    found = sorted(path for path in run.mosaic.rglob("*") if path.is_file())
    return {path.relative_to(run.mosaic).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in found}


def stored(run: Run, group: str, name: str = "embeddings") -> NDArray[np.float32]:
    """(H, W, C) what zarr reads of the store; NaN where there is nothing."""
    root = zarr.open_group(run.mosaic / "embeddings.zarr", mode="r")
    codes, scales = root[f"{group}/{name}"][0], root[f"{group}/scales"][0]  # type: ignore[index]
    scales = np.where(np.isfinite(scales), scales, np.nan)
    return np.moveaxis(codes.astype(np.float32) * scales, 0, 2)


def virtual(run: Run, label: str, several: str = ".vrt") -> NDArray[np.float32]:
    """(H, W, C) what GDAL reads of a zone as one raster."""
    stem = run.mosaic / f"embeddings_{label}"
    suffix = several if Path(f"{stem}{several}").exists() else ".tif"
    with rasterio.open(f"{stem}{suffix}") as codes, rasterio.open(f"{stem}_scales{suffix}") as scales:
        assert codes.descriptions[0] == ("e000" if several == ".vrt" else None)
        assert codes.crs.to_epsg() == 32600 + int(label[:2])
        return np.moveaxis(codes.read().astype(np.float32) * scales.read(1), 0, 2)


def test_sheets_divide_a_zone_from_its_corner_and_a_small_zone_is_one(tmp_path: Path) -> None:
    grids = zone_grids(planned_tiles(planned_run(tmp_path, CELLS, size=48)))
    sheets = sheets_of(grids[0], 128)
    assert [sheet.name for sheet in sheets] == [
        "31N_r00_c00", "31N_r00_c01", "31N_r01_c00", "31N_r01_c02", "31N_r02_c02"
    ]  # fmt: skip
    assert sum(sheet.pixels for sheet in sheets) == 6 * 48 * 48
    assert [sheet.name for sheet in sheets_of(grids[1], 128)] == ["32N"]
    assert sheets[-1].grid.bounds[2:] == (grids[0].bounds[2], grids[0].north - 2560)


@pytest.mark.parametrize("int8", [True, False])
def test_every_pixel_is_in_its_place_in_store_and_sheets_and_depths_are_prefixes(tmp_path: Path, int8: bool) -> None:
    run = planned_run(tmp_path / "run", CELLS, size=48)
    tiles = embed_places(run, dim=24, int8=int8)
    run_stage(StitchStage(), run, config(run, SHEETS))
    for label, group in (("31N", "utm31"), ("32N", "utm32")):
        wanted = put_together(run, tiles, label)
        found = stored(run, group)
        if int8:
            np.testing.assert_array_equal(found, wanted)
        else:
            np.testing.assert_allclose(found, wanted, atol=0.5 / 127 + 1e-6)
        np.testing.assert_array_equal(virtual(run, label), found)
        for depth in (4, 16):
            np.testing.assert_array_equal(stored(run, group, f"embeddings_d{depth}"), found[..., :depth])
    root = zarr.open_group(run.mosaic / "embeddings.zarr", mode="r")
    scales = root["utm31/scales"][0]  # type: ignore[index]
    assert np.isposinf(scales[60, 300]), "no tile: not there yet"
    assert np.isnan(scales[0, 0]), "a tile that says that nothing was seen"


def test_the_store_is_laid_out_as_published_ones_are(tmp_path: Path) -> None:
    run = planned_run(tmp_path / "run", [(32631, 0, 0)])
    embed_places(run, dim=128, int8=True)
    run_stage(StitchStage(), run, config(run))
    root = zarr.open_group(run.mosaic / "embeddings.zarr", mode="r", use_consolidated=True)
    layout = {
        name: (array.shape, array.chunks, array.shards, str(array.dtype), array.metadata.dimension_names)  # type: ignore[attr-defined]
        for name, array in root["utm31"].arrays()  # type: ignore[union-attr]
        if array.ndim > 1
    }
    cube, d16, d4 = (("time", band, "y", "x") for band in ("band", "band_d16", "band_d4"))
    seen = ("time", "observation", "y", "x")
    assert layout == {
        "observations": ((1, 4, 32, 32), (1, 4, 128, 128), (1, 4, 4096, 4096), "uint8", seen),
        "embeddings": ((1, 128, 32, 32), (1, 128, 32, 32), (1, 128, 4096, 4096), "int8", cube),
        "embeddings_d16": ((1, 16, 32, 32), (1, 16, 64, 64), (1, 16, 4096, 4096), "int8", d16),
        "embeddings_d4": ((1, 4, 32, 32), (1, 4, 128, 128), (1, 4, 4096, 4096), "int8", d4),
        "scales": ((1, 32, 32), (1, 32, 32), (1, 4096, 4096), "float32", ("time", "y", "x")),
    }
    attributes = dict(root.attrs)
    assert attributes["geoemb:depths"] == [
        {"dimensions": 4, "array": "embeddings_d4"},
        {"dimensions": 16, "array": "embeddings_d16"},
        {"dimensions": 128, "array": "embeddings"},
    ]
    own: Any = attributes["smalti:model"]
    assert own["licence"], "of the weights"
    assert own["citation"]
    assert attributes["geoemb:quantization"]["scale"]["nodata"] == "+inf"  # type: ignore[index, call-overload]
    zone = dict(root["utm31"].attrs)
    assert zone["proj:code"] == "EPSG:32631"
    assert zone["spatial:transform"] == [10.0, 0.0, 573440.0, 0.0, -10.0, 5626880.0]
    assert root["utm31/time"][:].tolist() == [2019], "the year of the season's last day"  # type: ignore[index, union-attr]
    assert root["utm31/x"][0] == 573_445  # type: ignore[index]


def test_a_prefix_of_other_families_means_nothing_and_is_not_stored(tmp_path: Path) -> None:
    run = planned_run(tmp_path / "run", [(32631, 0, 0)])
    embed_places(run, dim=24, int8=True, model=replace(MODEL, family="v1.1"))
    run_stage(StitchStage(), run, config(run, '[stitch]\nformats = ["zarr"]'))
    root = zarr.open_group(run.mosaic / "embeddings.zarr", mode="r")
    assert "embeddings_d4" not in root["utm31"]  # type: ignore[operator]
    assert "geoemb:depths" not in root.attrs


def test_at_equator_and_antimeridian_a_zone_is_one_grid_whose_rows_go_on_below_0(tmp_path: Path) -> None:
    run, tiles = far_run(tmp_path / "run", dim=8)
    settings = config(run, SHEETS.replace("sheet = 128", 'sheet = 128\nmissing = "nodata"'))
    for index in (1, 0):
        run_stage(StitchSheetsStage(), run, settings, shard=Shard(index, 2))
    run_stage(StitchStage(), run, settings)
    for label, group in (("60N", "utm60"), ("01N", "utm01")):
        wanted = put_together(run, tiles, label)
        assert wanted.shape[:2] == (176 + 128, 288)
        np.testing.assert_array_equal(stored(run, group), wanted)
        np.testing.assert_array_equal(virtual(run, label), wanted)
        assert len(list(run.mosaic.glob(f"sheet_{label}_*.json"))) < 9, "some sheets are empty"
        assert "-180" in (run.mosaic / f"embeddings_{label}_r01_c{2 if label == '60N' else 0:02d}.json").read_text()
    assert "have the numbers of the embeddings" in check_mosaic(run, settings)
    assert MosaicManifest.read(run).missing == ("n1_1_0",)
    root = zarr.open_group(run.mosaic / "embeddings.zarr", mode="r")
    assert np.asarray(root["utm60/y"])[-1] == 1760 - 10 * 304 + 5
    opened = open_run(run.root)
    run.config.write_text(TOML.format(extra='[stitch]\nmissing = "nodata"'))
    points = [(tile.west + 105.0, tile.north - 325.0) for tile in planned_tiles(run) if tile.epsg == 32760]
    there = [tiles[tile.name][32, 10] for tile in planned_tiles(run) if tile.epsg == 32760]
    np.testing.assert_array_equal(opened.embeddings_at(points, epsg=32760), there)


def test_a_southern_zone_keeps_its_crs_in_geotiffs_and_lies_below_0_in_the_store(tmp_path: Path) -> None:
    run = planned_run(tmp_path / "run", [(32721, 0, 0), (32721, 1, 0)])
    tiles = embed_places(run, int8=True)
    run_stage(StitchStage(), run, config(run))
    with rasterio.open(run.mosaic / "embeddings_21S.tif") as raster:
        assert raster.crs.to_epsg() == 32721
        assert raster.bounds.top == 5_626_880
    zone = zarr.open_group(run.mosaic / "embeddings.zarr", mode="r")["utm21"]
    assert zone.attrs["proj:code"] == "EPSG:32621"
    assert zone.attrs["spatial:transform"][5] == 5_626_880 - 10_000_000  # type: ignore[index]
    np.testing.assert_array_equal(stored(run, "utm21"), put_together(run, tiles, "21S"))


def test_shards_in_any_order_with_kills_give_the_bytes_of_one_process(tmp_path: Path) -> None:
    runs = []
    for name in ("whole", "shards"):
        run = planned_run(tmp_path / name, CELLS, size=48)
        embed_places(run, int8=True)
        runs.append(run)
    run_stage(StitchStage(), runs[0], config(runs[0], SHEETS))
    settings = config(runs[1], SHEETS)
    for index in (3, 1, 0):
        run_stage(StitchSheetsStage(), runs[1], settings, shard=Shard(index, 4))
    killed = runs[1].mosaic / "sheet_31N_r00_c00.json"
    killed.unlink()  # as if it had been killed before it was complete
    (runs[1].mosaic / "embeddings.zarr/utm31/embeddings/c/0/0/0/0").write_bytes(b"half")
    run_stage(StitchSheetsStage(), runs[1], settings, shard=Shard(2, 4))
    assert not runs[1].mosaic_manifest.exists()
    assert not (runs[1].mosaic / "embeddings.zarr/zarr.json").exists(), "nobody takes it for a store"
    done = run_stage(StitchStage(), runs[1], settings)
    assert done.built == 2
    assert files(runs[0]) == files(runs[1])


def test_a_task_reads_its_own_share_and_a_missing_tile_stops_its_own_sheet_only(tmp_path: Path) -> None:
    run = planned_run(tmp_path / "run", CELLS, size=48)
    embed_places(run, int8=True)
    (run.embeddings / "t32631_6_5.json").unlink()
    settings = config(run, SHEETS)
    with pytest.raises(StageFailedError, match=r"31N_r02_c02: .*1 of 1 tiles have no valid embedding: t32631_6_5"):
        run_stage(StitchSheetsStage(), run, settings, shard=Shard(0, 2))
    assert sorted(path.stem for path in run.mosaic.glob("sheet_*")) == ["sheet_31N_r00_c00", "sheet_31N_r01_c00"]
    with pytest.raises(SmaltiError, match=r"1 of 7 tiles have no valid embedding"):
        run_stage(StitchStage(), run, settings)


def test_nobody_takes_a_mosaic_for_whole_while_sheets_are_made_again(tmp_path: Path) -> None:
    run = planned_run(tmp_path / "run", CELLS, size=48)
    embed_places(run, int8=True)
    settings = config(run, SHEETS)
    run_stage(StitchStage(), run, settings)
    good = files(run)
    (run.mosaic / "embeddings.zarr/utm31/embeddings/c/0/0/0/1").unlink()
    assert run_stage(StitchStage(), run, settings).built == 1
    assert files(run) == good
    northern = planned_run(tmp_path / "northern", [*CELLS, (32631, 0, -1)], size=48)  # all sheets lie elsewhere now
    embed_places(northern, int8=True)
    run_stage(StitchStage(), northern, settings)
    shutil.copy(northern.plan, run.plan)
    shutil.rmtree(run.embeddings)
    shutil.copytree(northern.embeddings, run.embeddings)
    run_stage(StitchSheetsStage(), run, settings, shard=Shard(0, 5))
    told = [run.mosaic_manifest, run.mosaic / "embeddings.zarr/zarr.json", *run.mosaic.glob("*.vrt")]
    assert not [path for path in [*told, *run.mosaic.glob("*.gti.gpkg")] if path.exists()]
    run_stage(StitchStage(), run, settings)
    assert files(run) == files(northern)


def test_a_strip_may_have_more_tiles_than_a_process_has_files_at_first(tmp_path: Path) -> None:
    run = planned_run(tmp_path / "run", [(32631, c, r) for c in range(22) for r in range(3)], size=34)
    tiles = embed_places(run, dim=32, int8=True)  # codes and scales are mapped: small arrays are not
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (len(list(Path("/proc/self/fd").iterdir())) + 80, hard))
    try:
        run_stage(StitchStage(), run, config(run, '[stitch]\nformats = ["zarr"]'))
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    np.testing.assert_array_equal(stored(run, "utm31"), put_together(run, tiles, "31N"))


def test_a_finished_mosaic_is_read_back_and_damage_is_named(tmp_path: Path) -> None:
    run = planned_run(tmp_path / "run", [(32631, 0, 0), (32631, 3, 1), (32632, 0, 0)], size=48)
    embed_places(run, dim=24, int8=True)
    settings = config(run, SHEETS)
    run_stage(StitchStage(), run, settings)
    assert "pixels of store and GeoTIFFs have the numbers of the embeddings" in check_mosaic(run, settings)
    shard = run.mosaic / "embeddings.zarr/utm31/embeddings_d4/c/0/0/0/1"
    content = shard.read_bytes()
    shard.unlink()
    with pytest.raises(SmaltiError, match=r"31N_r00_c01, .*shard of embeddings_d4 is not there") as raised:
        check_mosaic(run, settings)
    assert "pixels of embeddings_d4 in the store differ" in str(raised.value)
    shard.write_bytes(content[: len(content) // 2])
    with pytest.raises(SmaltiError, match="31N_r00_c01: cannot be read"):
        check_mosaic(run, settings)
    shard.write_bytes(content)
    path = run.mosaic / "embeddings_32N.tif"
    with rasterio.open(path, "r+", IGNORE_COG_LAYOUT_BREAK="YES") as raster:
        values = raster.read(5)
        values[20:22, 30] = 1
        raster.write(values, 5)
    with pytest.raises(SmaltiError, match=r"32N, rows from 0: 2 pixels of embeddings_32N\.tif differ"):
        check_mosaic(run, settings)
    root = run.mosaic / "embeddings.zarr" / "zarr.json"
    root.write_text(root.read_text().replace("EPSG:32632", "EPSG:32633"))
    with pytest.raises(SmaltiError, match="EPSG:32633"):
        check_mosaic(run, settings)


@pytest.mark.parametrize("int8", [True, False])
def test_a_mosaic_of_floats_is_read_back_as_well(tmp_path: Path, int8: bool) -> None:
    run = planned_run(tmp_path / "run", CELLS, size=48)
    tiles = embed_places(run, dim=6, int8=int8)
    settings = config(run, SHEETS.replace("sheet = 128", 'sheet = 128\nformats = ["cog"]\ndtype = "float32"'))
    run_stage(StitchStage(), run, settings)
    with rasterio.open(run.mosaic / "embeddings_31N.vrt") as raster:
        np.testing.assert_array_equal(np.moveaxis(raster.read(), 0, 2), put_together(run, tiles, "31N"))
    assert "pixels of GeoTIFFs have the numbers of the embeddings" in check_mosaic(run, settings)
    path = run.mosaic / "embeddings_31N_r00_c01.tif"
    for band, value in ((2, 9.0), (6, np.nan)):  # a number that is another, and one that is gone
        good = path.read_bytes()
        with rasterio.open(path, "r+", IGNORE_COG_LAYOUT_BREAK="YES") as raster:
            values = raster.read(band)
            values[46:48, 10] = value
            raster.write(values, band)
        with pytest.raises(
            SmaltiError, match=r"31N_r00_c01, rows from 0: 2 pixels of embeddings_31N_r00_c01\.tif differ"
        ):
            check_mosaic(run, settings)
        path.write_bytes(good)
    check_mosaic(run, settings)


# --- tiles that are missing


def test_missing_tiles_are_nodata_where_that_is_wished_and_filled_in_later(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = planned_run(tmp_path / "run", CELLS, size=48)
    tiles = embed_places(run, dim=24, int8=True)
    settings = config(run, SHEETS)
    run_stage(StitchStage(), run, settings)
    good = files(run)
    shutil.rmtree(run.mosaic)
    gone = [tile.name for tile in planned_tiles(run)][1::4]  # one of them is all that its sheet has
    for name in gone:
        run.embeddings.joinpath(f"{name}.json").rename(tmp_path / name)
        tiles[name] = np.full_like(tiles[name], np.nan)
    with pytest.raises(SmaltiError, match=r"2 of 7 tiles have no valid embedding: .*\[stitch\] missing = .nodata."):
        run_stage(StitchStage(), run, settings)
    settings = config(run, SHEETS.replace("sheet = 128", 'sheet = 128\nmissing = "nodata"'))
    for index in (1, 0):
        run_stage(StitchSheetsStage(), run, settings, shard=Shard(index, 2))
    capsys.readouterr()
    run_stage(StitchStage(), run, settings)
    assert f"2 tiles have no embedding and are nodata ([stitch] missing): {', '.join(gone)}" in capsys.readouterr().err
    for label, group in (("31N", "utm31"), ("32N", "utm32")):
        np.testing.assert_array_equal(stored(run, group), put_together(run, tiles, label))
        np.testing.assert_array_equal(virtual(run, label), put_together(run, tiles, label))
    assert MosaicManifest.read(run).missing == tuple(gone)
    assert "have the numbers of the embeddings" in check_mosaic(run, settings)
    for name in gone:
        (tmp_path / name).rename(run.embeddings / f"{name}.json")
    outcome = run_stage(StitchStage(), run, settings)
    assert outcome.complete_before > 0, "sheets that no missing tile touches stand"
    assert files(run) == good


def test_a_tile_that_comes_while_its_sheet_is_made_is_filled_in_the_next_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = planned_run(tmp_path / "run", [(32632, 0, 0), (32632, 1, 0)], size=48)
    tiles = embed_places(run, dim=24, int8=True)
    settings = config(run, SHEETS.replace("sheet = 128", 'sheet = 128\nmissing = "nodata"'))
    manifest = run.embeddings / f"{planned_tiles(run)[1].name}.json"
    manifest.rename(tmp_path / "late")

    def late(*arguments: object) -> int:
        if not manifest.exists():  # the engine works beside it
            (tmp_path / "late").rename(manifest)
        return count(*arguments)

    count, read = sheet._give, MosaicManifest.read
    monkeypatch.setattr(sheet, "_give", late)
    run_stage(StitchStage(), run, settings)
    assert len(read(run).missing) == 1
    assert run_stage(StitchStage(), run, settings).built == 2
    assert not read(run).missing
    np.testing.assert_array_equal(stored(run, "utm32"), put_together(run, tiles, "32N"))


def test_a_zone_of_many_sheets_has_an_index_in_place_of_a_long_vrt(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = planned_run(tmp_path / "run", CELLS, size=48)
    tiles = embed_places(run, dim=24, int8=True)
    settings = config(run, SHEETS)
    run_stage(StitchStage(), run, settings)
    assert re.search(
        r"stitch: about .*B for the store and .*B for the GeoTIFFs at most; .*B are free", capsys.readouterr().err
    )
    np.testing.assert_array_equal(virtual(run, "31N", ".gti.gpkg"), virtual(run, "31N"))
    assert MosaicManifest.read(run).zones["31N"].raster == "embeddings_31N.vrt"
    monkeypatch.setattr("preproc.mosaic.join.MOST_SOURCES", 5 * 24 - 1)
    run_stage(StitchStage(), run, settings, force=True)
    zone = MosaicManifest.read(run).zones["31N"]
    assert (zone.raster, zone.scales) == ("embeddings_31N.gti.gpkg", "embeddings_31N_scales.vrt")
    assert not (run.mosaic / "embeddings_31N.vrt").exists()
    np.testing.assert_array_equal(virtual_index(run, "31N"), put_together(run, tiles, "31N"))
    moved = run.root.rename(tmp_path / "moved")
    np.testing.assert_array_equal(virtual_index(Run(moved), "31N"), put_together(Run(moved), tiles, "31N"))
    assert MosaicManifest.read(Run(moved)).zones["32N"].raster == "embeddings_32N.tif"


def test_coarse_levels_of_several_sheets_come_from_their_overviews(tmp_path: Path) -> None:
    run = planned_run(tmp_path / "run", [(32631, 0, 0), (32631, 1, 0)], size=768)
    for tile in planned_tiles(run):
        write_tile(run, tile, np.ones((768, 768, 2), np.float32), observations_hwm=np.full((768, 768, 2), 20, np.uint8))
    run_stage(StitchStage(), run, config(run, '[stitch]\nsheet = 768\nformats = ["cog"]'))
    with rasterio.open(run.mosaic / "observations_31N_r00_c01.tif", "r+", IGNORE_COG_LAYOUT_BREAK="YES") as sheet:
        assert sheet.overviews(1) == [2]
        sheet.write(np.full((768, 768), 99, np.uint8), 1)  # and its overview stays as it is
    path = run.mosaic / "observations_31N.vrt"
    with rasterio.open(path) as whole:
        assert whole.overviews(1) == [2, 4]
        np.testing.assert_array_equal(whole.read(1), np.repeat([[20, 99]], 768, axis=1).repeat(768, axis=0))
    for level, side in enumerate((384, 192)):
        with rasterio.open(path, overview_level=level) as coarser:
            np.testing.assert_array_equal(coarser.read(1), np.full((side, 2 * side), 20))


def virtual_index(run: Run, label: str) -> NDArray[np.float32]:
    """(H, W, C) what GDAL reads of a zone whose codes have an index and whose scales a VRT."""
    stem = run.mosaic / f"embeddings_{label}"
    with rasterio.open(f"{stem}.gti.gpkg") as codes, rasterio.open(f"{stem}_scales.vrt") as scales:
        assert codes.tags()["SMALTI_MODEL"] == "demo"
        return np.moveaxis(codes.read().astype(np.float32) * scales.read(1), 0, 2)
