"""A real season: the tile that plan and fetch make equals one computed here with rasterio and numpy alone.

The computation below is written from the rules (docs/fetch.md), not from the code: it imports nothing of smalti but
the reader of tiles.
"""

from __future__ import annotations

import datetime
import json
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
from numpy.typing import NDArray
from rasterio.features import rasterize
from rasterio.transform import Affine
from rasterio.warp import Resampling, reproject, transform_geom
from support.runs import smalti

from infer.contract import Run, Tile, planned_tiles, read_tile

BANDS = ["B04", "B02", "B03", "B08", "B8A", "B05", "B06", "B07", "B11", "B12"]
RUN_TOML = """\
[region]
geometry = "{data}/region.geojson"
start = "2018-12-01"
end = "2019-11-30"
[archive]
source = "static"
href = "{data}/items.json"
[tiles]
size = 512
min_clear = {min_clear}
"""
SIZE = 512


@pytest.fixture(scope="module", params=[0.05, 0, 0.6])
def fetched(
    request: pytest.FixtureRequest, shared: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Tile, float]:
    root = tmp_path_factory.mktemp("flanders") / "run"
    root.mkdir()
    (root / "run.toml").write_text(RUN_TOML.format(data=shared / "data" / "flanders-2019", min_clear=request.param))
    smalti("plan", root)
    smalti("fetch", root)
    run = Run(root)
    (planned,) = planned_tiles(run)
    return read_tile(run.tiles / planned.name, need_manifest=True), request.param


def warp(path: Path, transform: Affine, how: Resampling, nodata: float | None) -> NDArray[Any]:
    """A whole raster on the tile's whole grid, by GDAL."""
    with rasterio.open(path) as dataset:
        out = np.zeros((SIZE, SIZE), dataset.dtypes[0])
        scale = dataset.transform.a / 10
        reproject(
            dataset.read(1), out, src_transform=dataset.transform, src_crs=dataset.crs, src_nodata=nodata,
            dst_transform=transform, dst_crs="EPSG:32631", dst_nodata=0, init_dest_nodata=True, resampling=how,
            XSCALE=scale, YSCALE=scale,
        )  # fmt: skip
    return out


def items_by_date(data: Path, collection: str) -> dict[datetime.date, list[dict[str, Any]]]:
    dates: dict[datetime.date, list[dict[str, Any]]] = defaultdict(list)
    for item in json.loads((data / "items.json").read_text())["features"]:
        if item["collection"] == collection:
            dates[datetime.datetime.fromisoformat(item["properties"]["datetime"]).date()].append(item)
    return dict(sorted(dates.items()))


def region_of(data: Path, transform: Affine) -> NDArray[np.bool_]:
    geometry = json.loads((data / "region.geojson").read_text())["features"][0]["geometry"]
    shape = transform_geom("EPSG:4326", "EPSG:32631", geometry)
    return rasterize([shape], (SIZE, SIZE), transform=transform, all_touched=True) > 0


def test_sentinel_2_is_what_the_rules_say(fetched: tuple[Tile, float], shared: Path) -> None:
    tile, min_clear = fetched
    data = shared / "data" / "flanders-2019"
    transform = Affine(*tile.manifest.as_json()["grid"]["transform"])
    inside = region_of(data, transform)
    days, masks, bands = [], [], []
    for day, items in items_by_date(data, "sentinel-2-l2a").items():
        (item,) = items  # one granule a date here; mosaics have their own tests
        folder = {name: data / asset["href"] for name, asset in item["assets"].items()}
        scl = warp(folder["SCL"], transform, Resampling.nearest, None)
        mask = np.isin(scl, [4, 5, 6, 7, 10, 11]) & inside
        share = mask.sum() / inside.sum()
        if share == 0 or share < min_clear:
            continue
        days.append(day)
        masks.append(mask)
        stack = [warp(folder[name], transform, Resampling.bilinear, 0) for name in BANDS]  # before 2022: no offset
        bands.append(np.where(mask[..., None], np.stack(stack, axis=-1), 0))
    assert len(days) > 20
    assert tile.manifest.as_json()["dates"]["s2"] == [day.isoformat() for day in days]
    assert tile.doys_t.tolist() == [day.timetuple().tm_yday for day in days]
    np.testing.assert_array_equal(tile.masks_thw, np.stack(masks))
    np.testing.assert_array_equal(tile.bands_thwb, np.stack(bands))


def test_sentinel_1_is_what_the_rules_say(fetched: tuple[Tile, float], shared: Path) -> None:
    tile, _ = fetched
    data = shared / "data" / "flanders-2019"
    transform = Affine(*tile.manifest.as_json()["grid"]["transform"])
    inside = region_of(data, transform)
    days, values = [], []
    for day, items in items_by_date(data, "sentinel-1-rtc").items():
        (item,) = items
        pair = []
        for name in ("vv", "vh"):
            power = warp(data / item["assets"][name]["href"], transform, Resampling.nearest, None).astype(np.float64)
            scaled = np.zeros(power.shape)
            has = np.isfinite(power) & (power > 0) & inside
            scaled[has] = np.clip((20 * np.log10(power[has]) + 50) * 200, 0, 32767)
            pair.append(scaled.astype(np.int16))
        if np.any(pair):
            days.append(day)
            values.append(np.stack(pair, axis=-1))
    assert len(days) > 50
    assert tile.sar_asc_doys_t.tolist() == [day.timetuple().tm_yday for day in days]
    np.testing.assert_array_equal(tile.sar_asc_thwp, np.stack(values))
    assert tile.sar_desc_thwp.shape == (0, SIZE, SIZE, 2)
    assert tile.sar_desc_doys_t.shape == (0,)


def test_the_region_mask_is_georeferenced(fetched: tuple[Tile, float], shared: Path, tmp_path: Path) -> None:
    tile, _ = fetched
    folder = Path(tile.bands_thwb.filename).parent  # type: ignore[attr-defined]  # a memory map knows its file
    with rasterio.open(folder / "roi.tiff") as dataset:
        assert dataset.crs.to_epsg() == 32631
        assert dataset.transform == Affine(*tile.manifest.as_json()["grid"]["transform"])
        np.testing.assert_array_equal(
            dataset.read(1) > 0, region_of(shared / "data" / "flanders-2019", dataset.transform)
        )
