"""The simulated archive on disk: determinism, truth pixel for pixel, quirks, metadata, labels."""

from __future__ import annotations

import errno
import json
import shutil
import subprocess
import sys
from dataclasses import replace
from datetime import date, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyogrio
import pystac
import pytest
import rasterio
import shapely
from numpy.typing import NDArray
from pyproj import Transformer
from rasterio.features import rasterize
from rio_cogeo.cogeo import cog_validate
from shapely.geometry import shape
from support.recorded import STAC_ITEMS
from support.simulated import CLEAR, QUIRKY, items, pixels, superseded, tree

from infer.contract import BANDS, SmaltiError
from preproc.simulate import World, open_world, simulate
from preproc.simulate.schedule import S1Pass, S2Pass, s1_passes, s2_passes
from preproc.simulate.world import quantised

S2, S1 = "sentinel-2-l2a", "sentinel-1-rtc"


def clear_dn(world: World, item: S2Pass) -> dict[str, NDArray[np.uint16]]:
    """Stored numbers (offset included) by band at native resolution if there were no clouds."""
    return quantised(world.clear_reflectance(item, world.home), item.offset)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("simulated") / "archive"
    simulate(target, QUIRKY)
    return target


@pytest.fixture(scope="module")
def world(folder: Path) -> World:
    return open_world(folder)


def pass_of(item: dict[str, Any]) -> S2Pass:
    return next(p for p in s2_passes(QUIRKY) if f"_{p.moment:%Y%m%dT%H%M%S}_R" in item["id"])


def sweep_of(item: dict[str, Any]) -> S1Pass:
    start = datetime.strptime(item["properties"]["start_datetime"][:19], "%Y-%m-%d %H:%M:%S")
    whole = [p for p in s1_passes(QUIRKY) if len(p.polarisations) == len(item["assets"])]
    return next(p for p in whole if 0 <= (start - p.moment).total_seconds() <= 25)


# --- making it ---------------------------------------------------------------------------------------------------


def test_same_options_give_same_bytes_for_any_number_of_workers(folder: Path, tmp_path: Path) -> None:
    simulate(tmp_path / "again", QUIRKY, workers=2)
    assert tree(tmp_path / "again") == tree(folder)


def test_another_seed_gives_another_landscape_and_sky(folder: Path, tmp_path: Path) -> None:
    small = replace(QUIRKY, seed=2, s2_dates=2, s1_dates=1)
    simulate(tmp_path / "other", small)
    ours, other = tree(folder), tree(tmp_path / "other")
    assert ours["parcels.geojson"] != other["parcels.geojson"]
    assert not {value for name, value in ours.items() if name.endswith("B04.tif")} & set(other.values())


def test_a_complete_archive_is_left_alone_and_another_one_replaced(tmp_path: Path) -> None:
    small = replace(QUIRKY, s2_dates=2, s1_dates=1)
    assert simulate(tmp_path / "a", small).written
    before = (tmp_path / "a" / "items.json").stat().st_mtime_ns
    assert not simulate(tmp_path / "a", small).written
    assert (tmp_path / "a" / "items.json").stat().st_mtime_ns == before
    assert simulate(tmp_path / "a", replace(small, seed=3)).written
    (tmp_path / "a" / "truth.tif").write_bytes(b"")
    assert simulate(tmp_path / "a", replace(small, seed=3)).written
    assert not list(tmp_path.glob(".*"))


def test_a_folder_with_other_files_is_never_replaced(tmp_path: Path) -> None:
    (tmp_path / "thesis.docx").write_text("years of work")
    with pytest.raises(SmaltiError, match="holds files that are not a simulated archive"):
        simulate(tmp_path, QUIRKY)
    with pytest.raises(SmaltiError, match="is a file"):
        simulate(tmp_path / "thesis.docx", QUIRKY)
    assert (tmp_path / "thesis.docx").read_text() == "years of work"


def test_a_full_disk_is_said_in_one_line_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: Path, content: bytes) -> int:
        if path.name == "B08.tif":
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        return write(path, content)

    write = Path.write_bytes
    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(SmaltiError, match="no space left") as caught:
        simulate(tmp_path / "a", replace(QUIRKY, s2_dates=2, s1_dates=1))
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


# --- Sentinel-2 --------------------------------------------------------------------------------------------------


def test_every_pixel_that_the_scl_calls_clear_holds_the_truth(folder: Path, world: World) -> None:
    found = items(folder, S2)
    old = superseded(found)
    checked = 0
    for item in found:
        if item["id"] in old or item["properties"]["proj:epsg"] != world.epsg:
            continue
        clear = np.isin(pixels(folder, item, "SCL"), CLEAR)
        truth = clear_dn(world, pass_of(item))
        for band in set(BANDS) & set(item["assets"]):
            stored = pixels(folder, item, band)
            mask = clear if stored.shape == clear.shape else clear.repeat(2, axis=0).repeat(2, axis=1)
            # The position comes from the file's own metadata, through coordinates in metres.
            with rasterio.open(folder / item["assets"][band]["href"]) as source:
                left, top, size = source.transform.c, source.transform.f, source.transform.a
            west, _, _, north = world.home.bounds
            column, row = round((left - west) / size), round((north - top) / size)
            expected = truth[band][row : row + stored.shape[0], column : column + stored.shape[1]]
            assert np.array_equal(stored[mask], expected[mask]), (item["id"], band)
            checked += int(mask.sum())
    assert checked > 200_000


def test_numbers_are_reflectance_times_10000_rounded_plus_the_offset_of_the_date(folder: Path, world: World) -> None:
    rng = np.random.default_rng(7)
    days = set()
    for item in items(folder, S2):
        moment = date.fromisoformat(item["properties"]["datetime"][:10])
        if item["properties"]["proj:epsg"] != world.epsg or item["id"] in superseded(items(folder, S2)):
            continue
        with rasterio.open(folder / item["assets"]["B08"]["href"]) as source:
            stored, transform = source.read(1), source.transform
        clear = np.isin(pixels(folder, item, "SCL"), CLEAR).repeat(2, axis=0).repeat(2, axis=1)
        rows, columns = np.nonzero(clear)
        if rows.size == 0:
            continue
        days.add(moment > date(2022, 1, 25))
        offset = 1000 if moment > date(2022, 1, 25) else 0
        reflectance = world.clear_reflectance(pass_of(item), world.home)[..., BANDS.index("B08")]
        for place in rng.integers(0, rows.size, 50):
            x, y = transform @ (columns[place] + 0.5, rows[place] + 0.5)
            at = int((world.home.north - y) // 10), int((x - world.home.west) // 10)
            wanted = round(float(reflectance[at]) * 10000)
            assert abs(int(stored[rows[place], columns[place]]) - offset - wanted) <= 1
    assert days == {True, False}, "the season must straddle the change of offset"


def test_coarse_bands_are_means_of_four_fine_pixels(world: World) -> None:
    item = s2_passes(QUIRKY)[0]
    fine = world.clear_reflectance(item, world.home)[..., BANDS.index("B11")].astype(np.float64)
    coarse = clear_dn(world, item)["B11"]
    mean = (fine[0::2, 0::2] + fine[1::2, 0::2] + fine[0::2, 1::2] + fine[1::2, 1::2]) / 4
    assert np.abs(coarse - np.clip(np.rint(mean * 10000), 1, None) - item.offset).max() <= 1


def test_baselines_and_offsets_change_with_the_date(folder: Path) -> None:
    for item in items(folder, S2):
        baseline = float(item["properties"]["s2:processing_baseline"])
        assert (baseline >= 4) == (item["properties"]["datetime"][:10] > "2022-01-25"), item["id"]
        name = item["properties"]["s2:product_uri"]
        assert f"_N{item['properties']['s2:processing_baseline'].replace('.', '')}_" in name


def test_clouds_are_white_where_the_scl_says(folder: Path) -> None:
    compared = 0
    for item in items(folder, S2):
        if item["id"] in superseded(items(folder, S2)):
            continue
        scl, blue = pixels(folder, item, "SCL"), pixels(folder, item, "B02").astype(float) - pass_of(item).offset
        halved = blue.reshape(scl.shape[0], 2, scl.shape[1], 2).mean(axis=(1, 3))
        white, dark, free = np.isin(scl, (8, 9)), scl == 3, np.isin(scl, (4, 5))
        if white.sum() > 20 and free.sum() > 20:
            assert np.median(halved[white]) > 2 * np.median(halved[free])
            compared += 1
        if dark.sum() > 20 and free.sum() > 20:
            assert np.median(halved[dark]) < np.median(halved[free])
    assert compared >= 3


def test_clouds_cast_shadows_away_from_the_sun() -> None:
    world = World(replace(QUIRKY, extent_km=7.0, s2_dates=40))
    broken = [item for item in s2_passes(world.options) if 0.1 < item.cloud < 0.5 and 4 <= item.moment.month <= 9]
    assert len(broken) >= 3
    for item in broken:
        sky, azimuth = world.sky(item, world.home), np.radians(world.sun(item)[1])
        assert np.pi * 0.75 < azimuth < np.pi, "half past ten in the north: the sun stands in the south-east"
        rows, columns = np.nonzero(sky.shadow > 0)
        met = []
        for steps in range(3, 120):
            # Walk from the shadows towards the sun: at one distance nearly all of them meet a cloud.
            up = np.round(rows - steps * np.cos(azimuth)).astype(int)
            right = np.round(columns + steps * np.sin(azimuth)).astype(int)
            inside = (up >= 0) & (up < sky.cloud.shape[0]) & (right >= 0) & (right < sky.cloud.shape[1])
            met.append(float((sky.cloud > 0)[up[inside], right[inside]].mean()) if inside.sum() > 500 else 0.0)
        assert max(met) > 0.93
        assert np.median(met) < 0.85, "clouds are patches: at other distances they are met by chance"


def test_some_dates_are_clear_and_some_overcast() -> None:
    fractions = [item.cloud for item in s2_passes(replace(QUIRKY, s2_dates=60))]
    assert min(fractions) == 0
    assert max(fractions) == 1
    assert sum(0 < fraction < 1 for fraction in fractions) > 10
    sunny = replace(QUIRKY, s2_dates=60, climate=replace(QUIRKY.climate, cloudiness=0.1))
    assert np.mean([item.cloud for item in s2_passes(sunny)]) < 0.5 * np.mean(fractions)


def test_percentages_come_from_the_pixels(folder: Path) -> None:
    for item in items(folder, S2):
        scl, properties = pixels(folder, item, "SCL"), item["properties"]
        assert properties["s2:nodata_pixel_percentage"] == pytest.approx(100 * (scl == 0).mean(), abs=1e-5)
        share = 100 * np.isin(scl[scl > 0], (8, 9, 10)).mean()
        assert properties["eo:cloud_cover"] == pytest.approx(share, abs=1e-5)


def test_nodata_is_zero_in_all_bands_at_once(folder: Path) -> None:
    for item in items(folder, S2):
        missing = pixels(folder, item, "SCL") == 0
        for band in set(BANDS) & set(item["assets"]):
            stored = pixels(folder, item, band)
            wide = missing if stored.shape == missing.shape else missing.repeat(2, axis=0).repeat(2, axis=1)
            assert np.array_equal(stored == 0, wide), (item["id"], band)


def test_the_older_of_two_processings_is_visibly_wrong(folder: Path, world: World) -> None:
    found = {item["id"]: item for item in items(folder, S2)}
    old = superseded(list(found.values()))
    assert len(old) == 4, "two dates, two granules each"
    for name, newer in old.items():
        older, better = found[name], found[newer]
        assert older["properties"]["s2:generation_time"] < better["properties"]["s2:generation_time"]
        assert older["geometry"] == better["geometry"]
        assert older["properties"]["s2:mgrs_tile"] == better["properties"]["s2:mgrs_tile"]
        difference = pixels(folder, older, "B04").astype(int) - pixels(folder, better, "B04")
        assert np.median(difference) > 1500
    assert {found[name]["properties"]["datetime"] > "2022-01-26" for name in old} == {True, False}


def test_one_item_lacks_an_asset(folder: Path) -> None:
    lacking = [item for item in items(folder, S2) if "B11" not in item["assets"]]
    assert len(lacking) == 1
    assert not (folder / S2 / lacking[0]["id"] / "B11.tif").exists()
    assert (folder / S2 / lacking[0]["id"] / "B12.tif").exists()


def test_a_split_datastrip_gives_two_items_that_complete_each_other(folder: Path) -> None:
    passed = next(p for p in s2_passes(QUIRKY) if p.quirk == "split datastrip")
    found = [i for i in items(folder, S2) if pass_of(i) == passed]
    tile = max(
        {i["properties"]["s2:mgrs_tile"] for i in found}, key=[i["properties"]["s2:mgrs_tile"] for i in found].count
    )
    north, south = (i for i in found if i["properties"]["s2:mgrs_tile"] == tile)
    one, other = pixels(folder, north, "B04") > 0, pixels(folder, south, "B04") > 0
    assert one.any()
    assert other.any()
    assert not (one & other).any()
    assert (one | other).all()
    assert north["properties"]["s2:datatake_id"] == south["properties"]["s2:datatake_id"]
    assert north["properties"]["s2:datastrip_id"] != south["properties"]["s2:datastrip_id"]
    assert north["geometry"] != south["geometry"]
    assert (
        north["properties"]["s2:datastrip_id"].rsplit("_S", 1)[1]
        < south["properties"]["s2:datastrip_id"].rsplit("_S", 1)[1]
    )
    assert shape(north["geometry"]).centroid.y > shape(south["geometry"]).centroid.y, "the pass descends"
    assert shape(north["geometry"]).intersection(shape(south["geometry"])).area < 0.2 * shape(north["geometry"]).area


def test_the_swath_edge_leaves_a_wedge_without_data(folder: Path) -> None:
    edged = [item for item in items(folder, S2) if item["properties"]["sat:relative_orbit"] == 51]
    assert edged
    assert any(0 < item["properties"]["s2:nodata_pixel_percentage"] < 100 for item in edged)


def test_two_granules_of_the_home_zone_overlap(folder: Path, world: World) -> None:
    by_date: dict[str, set[str]] = {}
    for item in items(folder, S2):
        by_date.setdefault(item["properties"]["datetime"], set()).add(item["properties"]["s2:mgrs_tile"])
    assert {"31UFS", "31UGS"} in by_date.values()
    assert {"31UFS", "31UGS", "32UKB"} in by_date.values()
    assert {"32UKB"} in by_date.values()


def test_the_neighbouring_zone_shows_the_same_ground_at_the_same_place(folder: Path, world: World) -> None:
    """Pixels well inside a parcel hold what the home zone's do, and no shift by a pixel fits better."""
    checked = 0
    for item in items(folder, S2):
        if item["properties"]["s2:mgrs_tile"] != "32UKB":
            continue
        with rasterio.open(folder / item["assets"]["B08"]["href"]) as source:
            near, transform, crs = source.read(1), source.transform, source.crs
        assert crs.to_epsg() == 32632 == item["properties"]["proj:epsg"]
        clear = np.isin(pixels(folder, item, "SCL"), CLEAR).repeat(2, axis=0).repeat(2, axis=1)
        columns, rows = np.meshgrid(np.arange(near.shape[1]) + 0.5, np.arange(near.shape[0]) + 0.5)
        x, y = Transformer.from_crs(crs, world.epsg, always_xy=True).transform(*(transform @ (columns, rows)))
        truth = clear_dn(world, pass_of(item))
        at_row, at_column = ((world.home.north - y) // 10).astype(int), ((x - world.home.west) // 10).astype(int)
        inside = clear & (at_row >= 2) & (at_column >= 2)
        inside &= (at_row < world.home.height - 2) & (at_column < world.home.width - 2)
        place = world.surface(world.home).place
        deep = np.ones(place.shape, bool)
        for down in (-2, 0, 2):
            for right in (-2, 0, 2):
                deep &= np.roll(place, (down, right), (0, 1)) == place
        if inside.sum() > 1000:
            wrong = {
                (down, right): np.abs(
                    near[inside] - truth["B08"][at_row[inside] + down, at_column[inside] + right].astype(int)
                )
                for down, right in ((0, 0), (0, 1), (0, -1), (1, 0), (-1, 0))
            }
            mean = {shift: float(difference.mean()) for shift, difference in wrong.items()}
            assert min(mean, key=lambda shift: mean[shift]) == (0, 0), "a pixel beside fits better"
        inside[inside] &= deep[at_row[inside], at_column[inside]]
        if inside.sum() < 200:
            continue
        error = near[inside].astype(int) - truth["B08"][at_row[inside], at_column[inside]]
        assert abs(np.median(error)) < 30
        assert np.percentile(np.abs(error), 95) < 250
        checked += 1
    assert checked >= 2


def test_landmarks_agree_across_zones(world: World) -> None:
    """The middle of every large parcel, taken over its pixels, is at the same place in both zones."""
    home, away = world.home, world.neighbour
    x, y = Transformer.from_crs(away.epsg, home.epsg, always_xy=True).transform(*away.centres())
    here, there = world.surface(home).place, world.surface(away).place
    inner = shapely.box(*home.bounds).buffer(-120)
    large = [p for p in world.landscape.farmed if world.landscape.polygons[p].area > 6000]
    large = [p for p in large if shapely.contains(inner, world.landscape.polygons[p])]
    assert len(large) >= 5
    moved = []
    for place in large:
        first = [float(axis[here == place].mean()) for axis in home.centres()]
        moved.append((float(x[there == place].mean()) - first[0], float(y[there == place].mean()) - first[1]))
    assert np.abs(np.mean(moved, axis=0)).max() < 1, "metres"
    assert np.abs(moved).max() < 7


# --- Sentinel-1 --------------------------------------------------------------------------------------------------


def test_radar_holds_the_mean_signal_times_speckle_of_its_looks(folder: Path, world: World) -> None:
    ratios = []
    for item in items(folder, S1):
        if set(item["assets"]) != {"vv", "vh"}:
            continue
        mean = world.mean_power(sweep_of(item))
        for channel, name in enumerate(("vv", "vh")):
            stored = pixels(folder, item, name)
            seen = stored > 0
            ratios.append(stored[seen] / mean[..., channel][seen])
    ratio = np.concatenate(ratios)
    assert ratio.size > 100_000
    assert ratio.mean() == pytest.approx(1, abs=0.01)
    assert 1 / ratio.var() == pytest.approx(QUIRKY.looks, rel=0.05)


def test_radar_edges_are_filled_with_zeros_and_the_outside_is_nodata(folder: Path) -> None:
    zero, missing = 0, 0
    for item in items(folder, S1):
        with rasterio.open(folder / item["assets"]["vv"]["href"]) as source:
            assert source.nodata == -32768
            assert source.dtypes == ("float32",)
            values = source.read(1)
        zero += bool((values == 0).any())
        missing += bool((values == -32768).any())
        assert ((values > 0) | (values == 0) | (values == -32768)).all()
    assert zero >= 3
    assert missing == 1, "the product in the neighbouring zone reaches beyond the area"


def test_slices_of_one_pass_overlap_and_agree(folder: Path) -> None:
    by_orbit: dict[int, list[dict[str, Any]]] = {}
    for item in items(folder, S1):
        if len(item["assets"]) == 2 and item["properties"]["sat:orbit_state"] == "ascending":
            by_orbit.setdefault(item["properties"]["sat:absolute_orbit"], []).append(item)
    pairs = [pair for pair in by_orbit.values() if len(pair) == 2]
    assert pairs
    for pair in pairs:
        first, second = (pixels(folder, item, "vh") for item in pair)
        both = (first > 0) & (second > 0)
        assert both.any()
        assert np.array_equal(first[both], second[both])
        assert ((first > 0) | (second > 0)).all()


def test_both_orbits_and_a_product_with_one_polarisation(folder: Path) -> None:
    found = items(folder, S1)
    assert {item["properties"]["sat:orbit_state"] for item in found} == {"ascending", "descending"}
    single = [item for item in found if set(item["assets"]) == {"vv"}]
    assert len(single) == 2
    assert all("_1SSV_" in item["id"] for item in single)
    whole_days = {item["properties"]["datetime"][:10] for item in found if len(item["assets"]) == 2}
    assert sorted(item["properties"]["datetime"][:10] in whole_days for item in single) == [False, True]


# --- files and metadata ------------------------------------------------------------------------------------------


def test_every_raster_is_a_valid_cog(folder: Path) -> None:
    rasters = sorted(folder.rglob("*.tif"))
    assert len(rasters) > 200
    for path in rasters:
        valid, errors, warnings = cog_validate(path, quiet=True)
        assert valid, (path, errors)
        assert not warnings, (path, warnings)


def test_large_rasters_have_overviews(tmp_path: Path) -> None:
    large = replace(QUIRKY, extent_km=4.8, overlap=1.0, s2_dates=1, s1_dates=0, parcel_ha=40.0, neighbour_dates=0)
    simulate(tmp_path / "large", large)
    path = next((tmp_path / "large").rglob("B04.tif"))
    valid, errors, warnings = cog_validate(path, quiet=True)
    assert (valid, errors, warnings) == (True, [], [])
    with rasterio.open(path) as source:
        assert source.overviews(1)
        assert source.block_shapes == [(512, 512)]


def test_items_describe_their_files(folder: Path) -> None:
    for collection in (S2, S1):
        for item in items(folder, collection):
            for name, asset in item["assets"].items():
                described = {**item["properties"], **asset}
                with rasterio.open(folder / asset["href"]) as source:
                    assert list(source.shape) == described["proj:shape"], name
                    assert list(source.transform)[:6] == described["proj:transform"][:6]
                    assert list(source.bounds) == described["proj:bbox"]
                    assert source.crs.to_epsg() == described["proj:epsg"]
                    assert source.profile["compress"] == "deflate"
                    assert all(size % 16 == 0 for size in source.block_shapes[0])


def test_footprints_hold_what_was_seen(folder: Path) -> None:
    for item in items(folder, S2):
        with rasterio.open(folder / item["assets"]["SCL"]["href"]) as source:
            scl, transform, crs = source.read(1), source.transform, source.crs
        rows, columns = np.nonzero(scl)
        assert rows.size
        x, y = Transformer.from_crs(crs, 4326, always_xy=True).transform(*(transform @ (columns + 0.5, rows + 0.5)))
        assert shapely.contains_xy(shape(item["geometry"]).buffer(1e-6), x, y).mean() > 0.999
        assert item["bbox"] == pytest.approx(shape(item["geometry"]).bounds, abs=1e-6)


def test_pystac_reads_the_collection_and_the_catalogue(folder: Path) -> None:
    collection = pystac.ItemCollection.from_file(str(folder / "items.json"))
    by_file = {item.id for item in collection}
    catalogue = pystac.Catalog.from_file(str(folder / "catalog.json"))
    walked = list(catalogue.get_items(recursive=True))
    assert {item.id for item in walked} == by_file
    assert len(walked) == len(by_file)
    for item in walked:
        assert item.datetime is not None
        assert item.get_collection() is not None
        for asset in item.get_assets().values():
            assert Path(str(asset.get_absolute_href())).is_file()


def test_items_satisfy_the_stac_schema(folder: Path, tmp_path: Path) -> None:
    """The core schema comes with the validator; those of the extensions would have to be downloaded."""
    validator = shutil.which("rustac", path=Path(sys.executable).parent)
    if validator is None:
        pytest.skip("rustac is not installed")
    content = json.loads((folder / "items.json").read_text())
    for item in content["features"]:
        item["stac_extensions"] = []
    good, bad = tmp_path / "good.json", tmp_path / "bad.json"
    good.write_text(json.dumps(content))
    content["features"][3]["properties"]["datetime"] = "yesterday"
    bad.write_text(json.dumps(content))
    assert subprocess.run([validator, "validate", good], check=False).returncode == 0
    assert subprocess.run([validator, "validate", bad], check=False, capture_output=True).returncode != 0


def test_items_are_shaped_like_the_recorded_ones(folder: Path) -> None:
    base = STAC_ITEMS / "stac-geoparquet"
    recorded_s2 = json.loads((base / "searchresponse_mpc_sentinel-2-l2a_0.json").read_text())["response"]["features"][0]
    recorded_s1 = json.loads((base / "sentinel-1-rtc-pc.json").read_text())
    recorded_s1 = (recorded_s1 if isinstance(recorded_s1, list) else recorded_s1["features"])[0]
    for collection, recorded in ((S2, recorded_s2), (S1, recorded_s1)):
        for item in items(folder, collection):
            extra = set(item["properties"]) - set(recorded["properties"])
            # The first is left out of items of newer baselines; the second is how the report knows.
            assert extra <= {"s2:dark_features_percentage", "smalti:simulated"}
            for key in set(item["properties"]) - extra:
                assert type(item["properties"][key]) is type(recorded["properties"][key]), key
            assert set(item) == set(recorded)
            for name, asset in item["assets"].items():
                assert set(asset) <= set(recorded["assets"][name]), name
                assert asset["type"] == recorded["assets"][name]["type"]


@pytest.mark.parametrize(
    ("place", "crops", "zones"),
    [
        ((-60.1, -33.6), (("soybean", 0.6), ("maize", 0.2), ("sunflower", 0.2)), {32720, 32721}),
        ((-0.02, 44.2), (("vineyard", 0.5), ("orchard", 0.2), ("sunflower", 0.3)), {32630, 32631}),
        ((27.0, 60.5), (("spring barley", 0.5), ("alfalfa", 0.3), ("fallow", 0.2)), {32635, 32636}),
    ],
)
def test_other_places_crops_and_climates(
    tmp_path: Path, place: tuple[float, float], crops: tuple[tuple[str, float], ...], zones: set[int]
) -> None:
    climate = replace(QUIRKY.climate, southern=place[1] < 0, cloudiness=0.2, dryness=0.6)
    options = replace(QUIRKY, place=place, crops=crops, climate=climate, s2_dates=4, s1_dates=2, start=date(2022, 3, 1))
    simulate(tmp_path / "a", options)
    found = items(tmp_path / "a", S2)
    assert {item["properties"]["proj:epsg"] for item in found} == zones
    region = shape(json.loads((tmp_path / "a" / "region.geojson").read_text())["features"][0]["geometry"])
    assert region.contains(shapely.Point(place).buffer(1e-4))
    for item in found:
        assert shape(item["geometry"]).intersects(region)
        assert item["properties"]["s2:mgrs_tile"][:2] == f"{item['properties']['proj:epsg'] % 100:02d}"
    parcels = json.loads((tmp_path / "a" / "parcels.geojson").read_text())["features"]
    assert {parcel["properties"]["crop"] for parcel in parcels} == {name for name, _ in crops}


# --- labels ------------------------------------------------------------------------------------------------------


def test_parcels_points_and_truth_map_agree(folder: Path, world: World) -> None:
    with rasterio.open(folder / "truth.tif") as source:
        truth, transform, crs = source.read(1), source.transform, source.crs
        assert source.colormap(1)[1] == (217, 170, 60, 255)
    legend = {row["code"]: row["crop"] for row in json.loads((folder / "legend.json").read_text())}
    assert set(np.unique(truth)) <= set(legend)
    parcels = json.loads((folder / "parcels.geojson").read_text())["features"]
    assert len({parcel["properties"]["parcel"] for parcel in parcels}) == len(parcels) > 20
    to_map = Transformer.from_crs(4326, crs, always_xy=True)
    for parcel in parcels:
        inner = shapely.transform(
            shape(parcel["geometry"]), lambda points: np.column_stack(to_map.transform(points[:, 0], points[:, 1]))
        ).representative_point()
        column, row = ~transform @ (inner.x, inner.y)
        assert legend[truth[int(row), int(column)]] == parcel["properties"]["crop"]
        assert legend[parcel["properties"]["code"]] == parcel["properties"]["crop"]
    meta, _, geometry, fields = pyogrio.raw.read(folder / "points.gpkg")
    assert meta["crs"] == "EPSG:3035"
    points = shapely.from_wkb(geometry)
    x, y = Transformer.from_crs(3035, crs, always_xy=True).transform(shapely.get_x(points), shapely.get_y(points))
    columns, rows = ~transform @ (x, y)
    crops = dict(zip(meta["fields"], fields, strict=True))["crop"]
    assert len(points) > len(parcels)
    assert [legend[code] for code in truth[rows.astype(int), columns.astype(int)]] == list(crops)


def test_parcels_lie_on_the_grid_to_the_pixel(folder: Path) -> None:
    """Burning the declared polygons with another program gives the raster of parcels, pixel for pixel."""
    with rasterio.open(folder / "parcels.tif") as source:
        burnt, transform, crs = source.read(1), source.transform, source.crs
    to_map = Transformer.from_crs(4326, crs, always_xy=True)
    shapes = [
        (
            shapely.transform(
                shape(feature["geometry"]), lambda p: np.column_stack(to_map.transform(p[:, 0], p[:, 1]))
            ),
            feature["properties"]["parcel"],
        )
        for feature in json.loads((folder / "parcels.geojson").read_text())["features"]
    ]
    expected = rasterize(shapes, out_shape=burnt.shape, transform=transform, dtype="uint32")
    assert (burnt != expected).sum() <= 3, "centres within a centimetre of an edge may fall on either side"
    assert (burnt > 0).mean() > 0.2


def test_the_region_is_no_rectangle_and_has_a_hole(folder: Path) -> None:
    region = shape(json.loads((folder / "region.geojson").read_text())["features"][0]["geometry"])
    assert region.is_valid
    assert len(region.interiors) == 1
    assert region.area < 0.92 * shapely.box(*region.bounds).area


def test_the_default_landscape_has_enough_parcels_of_every_crop() -> None:
    world = World(type(QUIRKY)())
    from preproc.simulate.crops import CROPS
    from preproc.simulate.labels import declared

    parcels = declared(world)
    names = [CROPS[world.landscape.kind[place]].name for place in parcels]
    areas = np.array([world.landscape.polygons[place].area for place in parcels]) / 1e4
    assert all(names.count(name) >= 6 for name, _ in world.options.crops)
    assert 0.5 < np.median(areas) < 5
    assert areas.max() < 20
    covered = shapely.union_all([world.landscape.polygons[place] for place in parcels]).area
    assert covered == pytest.approx(areas.sum() * 1e4, rel=0.02), "parcels do not overlap"
