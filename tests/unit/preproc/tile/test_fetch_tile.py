"""What a fetched tile holds: mosaics, offsets, thresholds, edges, missing data. Real rasters, real plan, real fetch."""

from __future__ import annotations

import json
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
from pyproj import Transformer
from rasterio.io import MemoryFile
from support.tiny import EPSG, NORTH, SIZE, TEN_METRES, WEST, TinyArchive, fetch, outline, write_raster

from infer.contract import BANDS, FormatError, Run, Tile, embedding_paths, planned_tiles, read_tile
from preproc.catalogue.items import load_scenes
from preproc.plan.stage import PlanStage
from preproc.run.config import load_config
from preproc.run.stage import StageFailedError, run_stage
from preproc.tile.quality import QualityCounter, picture
from preproc.tile.stage import FetchStage


@pytest.fixture
def tiny(tmp_path: Path) -> TinyArchive:
    return TinyArchive(tmp_path / "archive")


def region(run: Run) -> np.ndarray:
    with rasterio.open(run.tiles / planned_tiles(run)[0].name / "roi.tiff") as dataset:
        return dataset.read(1) > 0


def stated(tile: Tile) -> dict[str, Any]:
    """tile.json, as it stands there."""
    return tile.manifest.as_json()


def test_pixels_outside_the_region_are_masked_and_zero(tiny: TinyArchive, tmp_path: Path) -> None:
    tiny.s2("a", "2021-07-01")
    tiny.s1("r", "2021-07-02")
    run, config = tiny.run(tmp_path / "run", shrink=45)
    tile = fetch(run, config)
    inside = region(run)
    expected = np.zeros((SIZE, SIZE), bool)
    expected[4:-4, 4:-4] = True  # 45 m: half of the fifth pixel is inside, and all-touched takes it
    np.testing.assert_array_equal(inside, expected)
    np.testing.assert_array_equal(tile.masks_thw[0] > 0, inside)
    np.testing.assert_array_equal((tile.bands_thwb[0] > 0).all(axis=-1), inside)
    np.testing.assert_array_equal((tile.sar_asc_thwp[0] > 0).all(axis=-1), inside)
    assert stated(tile)["region_pixels"] == (SIZE - 8) ** 2


def test_a_region_of_any_shape_is_cut_out(tiny: TinyArchive, tmp_path: Path) -> None:
    """Neither clear pixels nor radar values, nor the share of clear pixels, count outside the region."""
    scl = np.full((SIZE // 2, SIZE // 2), 4, np.uint8)
    scl[np.tril_indices(SIZE // 2, -1)] = 8  # cloudy below the diagonal
    tiny.s2("above", "2021-07-01", scl=scl)
    tiny.s2("below", "2021-07-03", scl=np.where(scl == 4, 8, 4).astype(np.uint8))
    tiny.s1("r", "2021-07-02")
    run, config = tiny.run(tmp_path / "run", min_clear=0.3)
    path = run.root / "region.geojson"
    content = json.loads(path.read_text())
    ring = content["features"][0]["geometry"]["coordinates"][0]
    west, east = min(x for x, _ in ring), max(x for x, _ in ring)
    south, north = min(y for _, y in ring), max(y for _, y in ring)
    content["features"][0]["geometry"]["coordinates"] = [[[west, north], [east, north], [east, south], [west, north]]]
    path.write_text(json.dumps(content))
    run_stage(PlanStage(), run, config)
    tile = fetch(run, config)
    inside = region(run)
    assert 0.4 < inside.mean() < 0.6
    assert stated(tile)["dates"]["s2"] == ["2021-07-01"]
    assert not tile.masks_thw[0][~inside].any()
    assert not tile.bands_thwb[0][~inside].any()
    assert not tile.sar_asc_thwp[0][~inside].any()
    assert tile.sar_asc_thwp[0][inside].all()


def test_the_offset_is_removed_after_2022_01_25_only(tiny: TinyArchive, tmp_path: Path) -> None:
    dn = np.arange(SIZE * SIZE, dtype=np.uint16).reshape(SIZE, SIZE) + 500
    for name, day in (("before", "2022-01-24"), ("on", "2022-01-25"), ("after", "2022-01-26")):
        tiny.s2(name, day, bands={"B04": dn, "B02": 900, "B8A": 4000})
    run, config = tiny.run(tmp_path / "run", shrink=4)
    tile = fetch(run, config)
    assert stated(tile)["dates"]["s2"] == ["2022-01-24", "2022-01-25", "2022-01-26"]
    assert stated(tile)["offset_policy"] == {
        "none": ["before", "on"],
        "subtract-1000-where-dn>=1000": ["after"],
    }
    inside = region(run)
    for t in (0, 1):
        np.testing.assert_array_equal(tile.bands_thwb[t, ..., 0][inside], dn[inside])
    np.testing.assert_array_equal(tile.bands_thwb[2, ..., 0][inside], np.where(dn >= 1000, dn - 1000, dn)[inside])
    assert set(tile.bands_thwb[2, ..., BANDS.index("B02")][inside].tolist()) == {900}
    assert set(tile.bands_thwb[2, ..., BANDS.index("B8A")][inside].tolist()) == {3000}


COPY = {"s2:mgrs_tile": "31UFS", "s2:datatake_id": "GS2A_20210701T104619_021115_N02.12"}


def copy_of(tiny: TinyArchive, name: str, made: str, *, cut: int = SIZE * 10, **more: Any) -> None:
    """A copy of one granule; its footprint reaches `cut` metres from the west."""
    tiny.s2(name, "2021-07-01", **more)
    tiny.items[-1]["geometry"] = outline(WEST, NORTH, cut, SIZE * 10, EPSG)
    tiny.items[-1]["properties"] |= {**COPY, "s2:generation_time": f"{made}T00:00:00Z"}


def test_of_two_processings_the_newest_gives_what_it_has_and_the_older_one_the_rest(
    tiny: TinyArchive, tmp_path: Path
) -> None:
    newest = np.full((16, 16), 4, np.uint8)
    newest[:, 14:] = 0  # received at another station: no data in the east
    newest[:8, :4] = 9  # cloudy in the north-west, whatever the older one says
    copy_of(tiny, "a-old", "2021-07-02", bands=7000)
    copy_of(tiny, "b-new", "2023-06-01", bands=3000, scl=newest, cut=280)
    tile = fetch(*tiny.run(tmp_path / "run", shrink=4))
    expected = np.full((SIZE, SIZE), 3000)
    expected[:, 28:] = 7000
    expected[:16, :8] = 0
    np.testing.assert_array_equal(tile.bands_thwb[0, ..., 0], expected)
    assert stated(tile)["items"]["s2"] == {"2021-07-01": ["b-new", "a-old"]}


def test_an_older_processing_is_not_read_where_the_newest_has_data_all_over(tiny: TinyArchive, tmp_path: Path) -> None:
    copy_of(tiny, "old", "2021-07-02", bands=7000, scl=4)
    copy_of(tiny, "new", "2023-06-01", bands=3000, scl=np.where(np.arange(16) < 8, 4, 9).astype(np.uint8), cut=200)
    run, config = tiny.run(tmp_path / "run", shrink=4)
    (tiny.folder / "old" / "SCL.tif").unlink()
    tile = fetch(run, config)
    assert set(np.unique(tile.bands_thwb)) == {0, 3000}


@pytest.mark.parametrize("declared", [None, "32631", 32631.0, "epsg:32631"])
def test_the_neighbouring_zones_granule_is_not_first_however_the_crs_is_written(
    tiny: TinyArchive, tmp_path: Path, declared: Any
) -> None:
    x, y = Transformer.from_crs(EPSG, 32632, always_xy=True).transform(WEST, NORTH)
    tiny.s2("S2A_MSIL2A_20210701T104619_R051_T32ULB_20210702T000000", "2021-07-01T10:20:00", bands=7000, epsg=32632,
            west=round(x / 20) * 20 - 400, north=round(y / 20) * 20 + 400, extent=1600)  # fmt: skip
    tiny.s2("own", "2021-07-01T10:30:00", bands=3000)
    for item in tiny.items:
        item["properties"].pop("proj:epsg")
    tiny.items[1]["properties"]["proj:epsg"] = declared  # if it is None, its file's header tells
    tile = fetch(*tiny.run(tmp_path / "run", shrink=4))
    assert set(np.unique(tile.bands_thwb)) == {3000}


def test_where_an_item_says_no_crs_its_files_header_does(tiny: TinyArchive, tmp_path: Path) -> None:
    tiny.s2("x", "2021-07-01")
    tiny.s1("S1A_IW_GRDH_1SDV_20210701T173244_20210701T173309_038583_048D8A_rtc", "2021-07-01")  # 1SDV is no MGRS tile
    for item in tiny.items:
        item["properties"].pop("proj:epsg")
    run, config = tiny.run(tmp_path / "run")
    assert {scene.epsg for scene in load_scenes(run, config)} == {EPSG}


@pytest.mark.parametrize(("added", "applied"), [(0, "none"), (1000, "subtract-1000-where-dn>=1000")])
def test_where_the_catalogue_is_not_reliable_clear_pixels_decide_about_the_offset(
    tiny: TinyArchive, tmp_path: Path, capfd: pytest.CaptureFixture[str], added: int, applied: str
) -> None:
    dark = np.full((SIZE, SIZE), 3000 + added, np.uint16)
    dark[:8] = 300 + added
    tiny.s2("a", "2022-05-01", bands={name: dark[:: 1 if name in TEN_METRES else 2, :: 1 if name in TEN_METRES else 2]
                                      for name in BANDS})  # fmt: skip
    tiny.items[-1]["properties"] |= {"earthsearch:boa_offset_applied": False, "s2:processing_baseline": "05.11"}
    run, config = tiny.run(tmp_path / "run", shrink=4)
    tile = fetch(run, config)
    assert set(np.unique(tile.bands_thwb[0, ..., 0])) == {300, 3000}
    assert stated(tile)["offset_policy"] == {applied: ["a"]}
    assert stated(tile)["offset_basis"] == {"clear pixels": ["a"]}
    said = capfd.readouterr().err.count("have clear pixels below 1000 although the catalogue does not say")
    quality = json.loads((run.tiles / tile.name / "quality.json").read_text())
    assert (said, quality.get("offset_gone")) == ((0, None) if added else (1, ["a"]))


def test_the_first_scene_of_a_date_that_is_clear_gives_all_bands(tiny: TinyArchive, tmp_path: Path) -> None:
    # In order: c (own zone, first), a (own zone, later), b (own zone, same time as a, id after it).
    half = SIZE // 2
    left_cloudy = np.full((half, half), 4, np.uint8)
    left_cloudy[:, : half // 2] = 9
    top_cloudy = np.full((half, half), 5, np.uint8)
    top_cloudy[: half // 2] = 3
    tiny.s2("b", "2021-07-01T10:40:00", scl=7, bands=300)
    tiny.s2("a", "2021-07-01T10:40:00", scl=top_cloudy, bands=200)
    tiny.s2("c", "2021-07-01T10:30:00", scl=left_cloudy, bands=100)
    run, config = tiny.run(tmp_path / "run")
    tile = fetch(run, config)
    expected = np.full((SIZE, SIZE), 100)
    expected[:half, :half] = 300
    expected[half:, :half] = 200
    inside = region(run)
    assert tile.masks_thw.shape[0] == 1
    np.testing.assert_array_equal(tile.masks_thw[0] > 0, inside)
    for band in range(10):
        np.testing.assert_array_equal(tile.bands_thwb[0, ..., band], np.where(inside, expected, 0))
    assert stated(tile)["items"]["s2"] == {"2021-07-01": ["c", "a", "b"]}


def test_a_scene_of_the_tiles_zone_comes_before_an_earlier_one_of_another(tiny: TinyArchive, tmp_path: Path) -> None:
    x, y = Transformer.from_crs(EPSG, 32632, always_xy=True).transform(WEST, NORTH)
    tiny.s2("other", "2021-07-01T10:20:00", bands=700, epsg=32632, west=round(x / 20) * 20 - 400,
            north=round(y / 20) * 20 + 400, extent=1600)  # fmt: skip
    tiny.s2("own", "2021-07-01T10:30:00", bands=500, extent=160)
    run, config = tiny.run(tmp_path / "run")
    tile = fetch(run, config)
    inside = region(run)
    expected = np.where(np.arange(SIZE * SIZE).reshape(SIZE, SIZE) >= 0, 700, 0)
    expected[:16, :16] = 500
    np.testing.assert_array_equal(tile.bands_thwb[0, ..., 0], np.where(inside, expected, 0))
    assert stated(tile)["items"]["s2"]["2021-07-01"] == ["own", "other"]


@pytest.mark.parametrize(("clear_rows", "kept"), [(0, False), (1, False), (2, True), (16, True)])
def test_dates_below_min_clear_are_dropped_and_their_bands_not_read(
    tiny: TinyArchive, tmp_path: Path, clear_rows: int, kept: bool
) -> None:
    scl = np.full((16, 16), 8, np.uint8)
    scl[:clear_rows] = 4
    folder = tiny.s2("a", "2021-07-01", scl=scl)
    tiny.s2("b", "2021-07-03")
    if not kept:
        for band in BANDS:
            (folder / f"{band}.tif").write_bytes(b"nobody may read this")
    run, config = tiny.run(tmp_path / "run", shrink=4, min_clear=0.125)  # 2 of 16 rows: exactly the threshold
    tile = fetch(run, config)
    assert region(run).all()
    assert stated(tile)["dates"]["s2"] == (["2021-07-01"] if kept else []) + ["2021-07-03"]
    reason = {"reason": "too few clear pixels", "clear_share": clear_rows / 16}
    dropped = {"date": "2021-07-01", "items": ["a"], **reason}
    assert stated(tile)["dropped"]["s2"] == ([] if kept else [dropped])


def test_min_clear_0_keeps_a_date_with_one_clear_pixel_and_no_date_without(tiny: TinyArchive, tmp_path: Path) -> None:
    scl = np.full((16, 16), 9, np.uint8)
    scl[3, 3] = 5
    tiny.s2("one", "2021-07-01", scl=scl)
    tiny.s2("none", "2021-07-03", scl=9)
    tile = fetch(*tiny.run(tmp_path / "run", min_clear=0))
    assert stated(tile)["dates"]["s2"] == ["2021-07-01"]
    assert int(tile.masks_thw.sum()) == 4  # one pixel of 20 m


def test_where_a_scene_ends_the_tile_is_not_clear(tiny: TinyArchive, tmp_path: Path) -> None:
    tiny.s2("part", "2021-07-01", west=WEST - 160, north=NORTH + 160)
    tiny.s1("part1", "2021-07-01", west=WEST - 160, north=NORTH + 160)
    tiny.s2("beside", "2021-07-02", west=WEST + SIZE * 10)
    tiny.s1("beside1", "2021-07-02", west=WEST + SIZE * 10)
    run, config = tiny.run(tmp_path / "run")
    tile = fetch(run, config)
    expected = region(run)
    expected[16:] = False
    expected[:, 16:] = False
    np.testing.assert_array_equal(tile.masks_thw[0] > 0, expected)
    np.testing.assert_array_equal(tile.sar_asc_thwp[0].any(axis=-1), expected)
    assert stated(tile)["dates"] == {
        "s2": ["2021-07-01"],
        "s1_ascending": ["2021-07-01"],
        "s1_descending": [],
    }
    assert [entry["reason"] for entry in stated(tile)["dropped"]["s1_ascending"]] == ["no value inside the region"]


def test_sentinel_1_zeros_and_nodata_are_missing_and_the_next_scene_fills_them(
    tiny: TinyArchive, tmp_path: Path
) -> None:
    first = np.full((SIZE, SIZE), 0.1, np.float32)
    first[:4] = 0
    first[4:8] = -32768
    first[8:12] = np.nan
    vh = first.copy()
    vh[12:16] = 0  # VV alone is a value too
    second = np.full((SIZE, SIZE), 1.0, np.float32)
    second[:2] = -5
    tiny.s1("a", "2021-07-01T17:00:00", vv=first, vh=vh)
    tiny.s1("b", "2021-07-01T17:00:25", vv=second, vh=second)
    tiny.s1("d", "2021-07-01T05:00:00", orbit="descending")
    tiny.s2("x", "2021-07-01")
    run, config = tiny.run(tmp_path / "run", shrink=4)
    tile = fetch(run, config)
    expected = np.zeros((SIZE, SIZE, 2), int)
    expected[2:12] = 10000
    expected[12:] = int((20 * np.log10(float(np.float32(0.1))) + 50) * 200)
    expected[12:16, :, 1] = 0
    np.testing.assert_array_equal(tile.sar_asc_thwp[0], expected)
    assert stated(tile)["items"]["s1_ascending"]["2021-07-01"] == ["a", "b"]
    assert tile.sar_desc_thwp.shape[0] == 1


def test_dates_ascend_across_the_turn_of_the_year(tiny: TinyArchive, tmp_path: Path) -> None:
    for day in ("2022-01-03", "2021-12-31", "2021-06-02", "2022-05-01"):
        tiny.s2(f"s{day}", day)
        tiny.s1(f"r{day}", day, orbit="descending")
    tile = fetch(*tiny.run(tmp_path / "run"))
    assert tile.doys_t.tolist() == [153, 365, 3, 121]
    assert tile.sar_desc_doys_t.tolist() == [153, 365, 3, 121]


def test_a_season_without_a_usable_date_gives_empty_arrays(tiny: TinyArchive, tmp_path: Path) -> None:
    tiny.s2("cloud", "2021-07-01", scl=9)
    tile = fetch(*tiny.run(tmp_path / "run"))
    assert tile.bands_thwb.shape == (0, SIZE, SIZE, 10)
    assert tile.masks_thw.shape == (0, SIZE, SIZE)
    assert tile.sar_asc_thwp.shape == (0, SIZE, SIZE, 2)


def test_a_scene_whose_item_lacks_an_asset_is_left_out_and_said(tiny: TinyArchive, tmp_path: Path) -> None:
    tiny.s2("whole", "2021-07-01", bands=100)
    tiny.s2("lacking", "2021-07-01T09:00:00", bands=200, without=["B11"])
    tile = fetch(*tiny.run(tmp_path / "run"))
    assert stated(tile)["left_out"] == [{"item": "lacking", "reason": "the item has no asset B11"}]
    assert stated(tile)["items"]["s2"] == {"2021-07-01": ["whole"]}
    assert int(tile.bands_thwb.max()) == 100


@pytest.mark.parametrize("asset", ["SCL", "B11"])
def test_a_missing_file_fails_the_tile_in_one_line(tiny: TinyArchive, tmp_path: Path, asset: str) -> None:
    tiny.s2("good", "2021-07-01")
    folder = tiny.s2("bad", "2021-07-03")
    run, config = tiny.run(tmp_path / "run")
    (folder / f"{asset}.tif").unlink()
    with pytest.raises(StageFailedError) as raised:
        fetch(run, config)
    (line,) = str(raised.value).splitlines()[1:]
    assert "2021-07-03, item bad, asset " + asset in line
    assert line.count("no such file") == 1
    assert list(run.tiles.iterdir()) == []


@pytest.mark.parametrize("asset", ["SCL", "B11"])
def test_drop_date_leaves_the_date_out_and_records_it(tiny: TinyArchive, tmp_path: Path, asset: str) -> None:
    tiny.s2("good", "2021-07-01")
    folder = tiny.s2("bad", "2021-07-03")
    tiny.s2("companion", "2021-07-03T10:31:00")
    tiny.s2("good2", "2021-07-05")
    radar = tiny.s1("badr", "2021-07-03")
    tiny.s1("goodr", "2021-07-09")
    run, config = tiny.run(tmp_path / "run", archive='on_missing = "drop-date"')
    (folder / f"{asset}.tif").write_bytes(b"II*\0" + bytes(100))
    (radar / "vh.tif").unlink()
    tile = fetch(run, config)
    assert stated(tile)["dates"]["s2"] == ["2021-07-01", "2021-07-05"]
    assert stated(tile)["dates"]["s1_ascending"] == ["2021-07-09"]
    (failed,) = stated(tile)["failed"]["s2"]
    assert (failed["date"], failed["item"], failed["asset"]) == ("2021-07-03", "bad", asset)
    assert "not a readable GeoTIFF" in failed["reason"]
    assert stated(tile)["failed"]["s1_ascending"][0]["asset"] == "VH"
    assert stated(tile)["dropped"]["s2"][0]["items"] == ["bad", "companion"]
    quality = json.loads((run.tiles / tile.name / "quality.json").read_text())
    assert quality["stacks"]["s2"]["dropped_for"] == {"unreadable": 1}


@pytest.mark.parametrize(("sensor", "asset"), [("Sentinel-2", "B11"), ("Sentinel-2", "SCL"), ("Sentinel-1", "VH")])
def test_drop_date_does_not_leave_a_sensor_out(tiny: TinyArchive, tmp_path: Path, sensor: str, asset: str) -> None:
    for name in ("a", "b"):
        folder = tiny.s2(name, f"2021-07-0{1 + (name == 'b')}")
        radar = tiny.s1(f"{name}r", f"2021-07-0{3 + (name == 'b')}", orbit="ascending" if name == "a" else "descending")
        (folder / f"{asset}.tif" if sensor == "Sentinel-2" else radar / "vh.tif").unlink()
    run, config = tiny.run(tmp_path / "run", archive='on_missing = "drop-date"')
    with pytest.raises(StageFailedError) as raised:
        fetch(run, config)
    assert f"no {sensor} date is left: " in str(raised.value)
    assert "left out 2 whose files cannot be read, the first 2021-07-0" in str(raised.value)
    assert list(run.tiles.iterdir()) == []


def test_where_a_band_declares_no_value_a_pixel_is_not_clear(tiny: TinyArchive, tmp_path: Path) -> None:
    folder = tiny.s2("a", "2021-07-01")
    lost = tiny.s2("b", "2021-07-03")
    tiny.s2("c", "2021-07-05", bands={"B8A": 0})
    half = np.full((SIZE // 2, SIZE // 2), 3000, np.uint16)
    half[:, :8] = 65535
    write_raster(folder / "B8A.tif", half, pixel=20, nodata=65535)
    write_raster(lost / "B8A.tif", np.full_like(half, 65535), pixel=20, nodata=65535)
    tile = fetch(*tiny.run(tmp_path / "run", shrink=4))
    assert stated(tile)["dates"]["s2"] == ["2021-07-01", "2021-07-05"]
    assert [entry["date"] for entry in stated(tile)["dropped"]["s2"]] == ["2021-07-03"]
    expected = np.zeros((SIZE, SIZE), bool)
    expected[:, 16:] = True
    np.testing.assert_array_equal(tile.masks_thw[0] > 0, expected)
    np.testing.assert_array_equal(tile.bands_thwb[0] == 3000, np.repeat(expected[..., None], 10, axis=-1))
    assert tile.masks_thw[1].all()  # 0, declared or not, is what the bands hold there


def test_neighbouring_tiles_have_no_seam(tiny: TinyArchive, tmp_path: Path) -> None:
    """Two tiles side by side are one raster of twice the width, cut: also for the interpolated 20 m bands."""
    rng = np.random.default_rng(1)
    values = rng.integers(1, 10000, (SIZE, SIZE), dtype=np.uint16)  # 20 m over 2 x 2 tiles
    tiny.s2("a", "2021-07-01", bands={"B11": values}, extent=2 * SIZE * 10)
    run, config = tiny.run(tmp_path / "run", tiles=(2, 2), shrink=4)
    fetch(run, config)
    stacks = {
        (tile.north, tile.west): np.load(run.tiles / tile.name / "bands.npy")[0, ..., BANDS.index("B11")]
        for tile in planned_tiles(run)
    }
    assert len(stacks) == 4
    rows = [
        np.hstack([stacks[north, west] for west in (WEST, WEST + SIZE * 10)]) for north in (NORTH, NORTH - SIZE * 10)
    ]
    found = np.vstack(rows)
    padded = np.pad(values.astype(int), 1, mode="edge")
    by_rows = np.empty((2 * SIZE, SIZE + 2), int)
    by_rows[0::2] = padded[:-2] + 3 * padded[1:-1]
    by_rows[1::2] = 3 * padded[1:-1] + padded[2:]
    expected = np.empty((2 * SIZE, 2 * SIZE), int)
    expected[:, 0::2] = by_rows[:, :-2] + 3 * by_rows[:, 1:-1]
    expected[:, 1::2] = 3 * by_rows[:, 1:-1] + by_rows[:, 2:]
    np.testing.assert_array_equal(found, (expected + 8) // 16)


def test_the_size_of_tiles_changes_no_pixel(tiny: TinyArchive, tmp_path: Path) -> None:
    """By default: a `min_clear` above 0 drops dates tile by tile, whatever the neighbours see."""
    rng = np.random.default_rng(2)
    for k, clear in enumerate((1.0, 0.3, 0.01)):
        scl = np.where(rng.random((SIZE, SIZE)) < clear, 4, 9).astype(np.uint8)  # 20 m over 2 x 2 tiles
        bands = {name: rng.integers(1, 10000, (SIZE, SIZE), dtype=np.uint16) for name in ("B11", "B05")}
        tiny.s2(f"s{k}", f"2021-07-0{k + 1}", scl=scl, bands=bands, extent=2 * SIZE * 10)
    found = []
    for size in (SIZE, 2 * SIZE):
        run, _ = tiny.run(tmp_path / f"run-{size}", tiles=(2, 2))
        text = run.config.read_text().replace("min_clear = 0.05", "").replace(f"size = {SIZE}", f"size = {size}")
        run.config.write_text(text)
        run_stage(PlanStage(), run, load_config(run))
        fetch(run, load_config(run))
        whole = np.zeros((3, 2 * SIZE, 2 * SIZE, 11), np.uint16)
        for planned in planned_tiles(run):
            tile = read_tile(run.tiles / planned.name, need_manifest=True)
            row, column = (NORTH - planned.north) // 10, (planned.west - WEST) // 10
            for t, day in enumerate(stated(tile)["dates"]["s2"]):
                place = whole[int(day[-1]) - 1, row : row + size, column : column + size]
                place[..., :10], place[..., 10] = tile.bands_thwb[t], tile.masks_thw[t]
        found.append(whole)
    assert 0 < found[0][2, ..., 10].mean() < 0.05
    np.testing.assert_array_equal(*found)


def test_the_picture_of_a_tile_holds_its_counts() -> None:
    counter = QualityCounter((2, 3))
    counter.counts_hw["s2"][:] = [[0, 7, 300], [60, 61, 5]]
    inside = np.array([[1, 1, 1], [1, 1, 0]], np.uint8)
    with MemoryFile(picture(counter, inside)) as memory, memory.open() as dataset:
        np.testing.assert_array_equal(dataset.read(1), [[0, 7, 254], [60, 61, 255]])
        colours = dataset.colormap(1)
    assert (colours[0], colours[60], colours[254]) == ((68, 1, 84, 255), (253, 231, 37, 255), (253, 231, 37, 255))
    assert colours[255][3] == 0


def test_the_manifest_says_what_the_tile_is(tiny: TinyArchive, tmp_path: Path) -> None:
    tiny.s2("a", "2021-07-01")
    run, config = tiny.run(tmp_path / "run", start=date(2021, 6, 1), end=date(2021, 9, 30))
    tile = fetch(run, config)
    manifest = stated(tile)
    assert manifest["grid"] == {
        "crs": "EPSG:32631",
        "transform": [10.0, 0.0, float(WEST), 0.0, -10.0, float(NORTH)],
        "height": SIZE,
        "width": SIZE,
    }
    assert manifest["window"] == {"start": "2021-06-01", "end": "2021-09-30"}
    assert (manifest["source"], manifest["data_source"], manifest["min_clear"]) == ("static", "mpc", 0.05)
    quality = json.loads((run.tiles / tile.name / "quality.json").read_text())
    assert quality["stacks"]["s2"]["dates_kept"] == 1
    assert quality["stacks"]["s2"]["largest_gap_days"] == 91  # 2021-07-02 to 2021-09-30
    assert quality["stacks"]["s1_ascending"]["largest_gap_days"] == 122
    assert {"roi.tiff", "quality.json", "quality.png"} <= set(manifest["files"])


@pytest.mark.parametrize("up", [True, False])
def test_a_tile_named_by_a_path_leaves_the_outside_untouched(tiny: TinyArchive, tmp_path: Path, up: bool) -> None:
    tiny.s2("a", "2021-07-01")
    run, config = tiny.run(tmp_path / "run")
    outside = tmp_path / "precious"
    outside.mkdir()
    (outside / "thesis.txt").write_text("years of work")
    plan = json.loads(run.plan.read_text())
    plan["tiles"][0][0] = "../../precious" if up else str(outside)
    run.plan.write_text(json.dumps(plan))
    with pytest.raises(FormatError, match=r"plan\.json: the name .* holds a path, not a name"):
        run_stage(FetchStage(), run, config)
    with pytest.raises(FormatError, match="holds a path"):
        embedding_paths(run.embeddings, plan["tiles"][0][0])  # whatever the plan's reader lets through
    assert [path.name for path in outside.iterdir()] == ["thesis.txt"]
    assert not list(run.tiles.glob("*"))
