"""OPERA RTC-S1 files without STAC items: bursts, orbits from tags, and both in one archive with Sentinel-2."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import shapely
from rasterio.transform import from_origin
from rasterio.warp import transform_bounds
from support.stac import SEASON, collection, write

from infer.contract import SmaltiError
from preproc.catalogue.items import parse_items, search_scenes
from preproc.region.region import load_region
from preproc.run.config import Config

BURST = "OPERA_L2_RTC-S1_T088-187{burst:03d}-IW2_20210604T173244Z_20210605T{made:06d}Z_S1A_30_v1.0"


def write_burst(
    folder: Path, *, burst: int = 1, made: int = 0, orbit: str | None = "ascending", bands: str = "VV VH"
) -> str:
    name = BURST.format(burst=burst, made=made)
    folder.mkdir(parents=True, exist_ok=True)
    for band in bands.split():
        profile = {
            "driver": "GTiff",
            "width": 200,
            "height": 100,
            "count": 1,
            "dtype": "float32",
            "crs": "EPSG:32631",
            "nodata": np.nan,
            "transform": from_origin(573000 + 300 * burst, 5625000, 30, 30),
        }
        with rasterio.open(folder / f"{name}_{band}.tif", "w", **profile) as dataset:
            dataset.write(np.full((1, 100, 200), 0.1, np.float32))
            if orbit is not None:
                dataset.update_tags(ORBIT_PASS_DIRECTION=orbit)
    return name


def config_for(href: Path) -> Config:
    region = {"bbox": (4.05, 50.74, 4.1, 50.76), "start": "2021-06-01", "end": "2021-06-30"}
    return Config.model_validate({"region": region, "archive": {"source": "static", "href": str(href)}})


def found(href: Path) -> Any:
    config = config_for(href)
    return parse_items(search_scenes(config, load_region(config.region)), config)


def test_a_folder_of_bursts_beside_items_of_sentinel_2(tmp_path: Path) -> None:
    name = write_burst(tmp_path / "opera" / "a")
    older = write_burst(tmp_path / "opera" / "b", burst=2)
    newer = write_burst(tmp_path / "opera" / "b", burst=2, made=1, orbit="Descending")
    write(tmp_path / "items.json", collection(*[entry for entry in SEASON if entry["id"].startswith("S2")]))
    result = found(tmp_path)
    radar = {scene.id: scene for scene in result.scenes if scene.modality == "s1"}
    assert sorted(radar) == [name, newer]
    assert list(result.duplicates) == [older]
    scene = radar[name]
    assert scene.orbit == "ascending"
    assert radar[newer].orbit == "descending"
    assert scene.acquired.isoformat() == "2021-06-04T17:32:44+00:00"
    assert scene.epsg == 32631
    assert scene.data_source == "aws"
    assert scene.assets["VH"] == str(tmp_path / "opera" / "a" / f"{name}_VH.tif")
    west, south, east, north = transform_bounds("EPSG:32631", "EPSG:4326", 573300, 5622000, 579300, 5625000)
    assert shapely.from_wkt(scene.footprint).bounds == pytest.approx((west, south, east, north), abs=1e-4)
    assert len([scene for scene in result.scenes if scene.modality == "s2"]) == 28


def test_items_of_opera_get_their_orbit_from_the_tag(tmp_path: Path) -> None:
    name = write_burst(tmp_path, orbit="descending")
    item = {
        "type": "Feature",
        "id": name,
        "collection": "OPERA_L2_RTC-S1_V1",
        "bbox": [4.0, 50.7, 4.2, 50.8],
        "properties": {"datetime": "2021-06-04T17:32:44Z"},
        "assets": {band: {"href": f"./{name}_{band}.tif"} for band in ("VV", "VH")},
    }
    (scene,) = found(write(tmp_path / "items.json", collection(item))).scenes
    assert scene.orbit == "descending"
    item["assets"]["VV"]["href"] = "./gone.tif"
    with pytest.raises(SmaltiError, match=r"gone.tif: cannot be opened, to read its orbit"):
        found(write(tmp_path / "items.json", collection(item)))


@pytest.mark.parametrize("place", ["https://archive/a", "s3://bucket/a"])
def test_remote_items_of_opera_get_their_orbit_from_the_tag(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    """By way of byte ranges, like all pixels: GDAL itself may not go to the network, and knows no s3:// address."""
    name = write_burst(tmp_path, orbit="descending")
    asked = []

    class Client(contextlib.nullcontext[Any]):
        def __init__(self, *_: Any, **__: Any) -> None:
            super().__init__(self)

        def get(self, href: str, start: int, end: int) -> tuple[bytes, int]:
            asked.append(href)
            content = (tmp_path / href.rpartition("/")[2]).read_bytes()
            return content[start:end], len(content)

    monkeypatch.setattr("preproc.reader.ranges.RangeClient", Client)
    item = {
        "type": "Feature",
        "id": name,
        "collection": "OPERA_L2_RTC-S1_V1",
        "bbox": [4.0, 50.7, 4.2, 50.8],
        "properties": {"datetime": "2021-06-04T17:32:44Z"},
        "assets": {band: {"href": f"{place}/{name}_{band}.tif"} for band in ("VV", "VH")},
    }
    (tmp_path / "items").mkdir()
    (scene,) = found(write(tmp_path / "items" / "items.json", collection(item))).scenes
    assert scene.orbit == "descending"
    assert set(asked) == {f"{place}/{name}_VV.tif"}
    (tmp_path / f"{name}_VV.tif").write_text("<html>sign in</html>" * 99)
    with pytest.raises(SmaltiError, match=f"{place}/{name}_VV.tif: cannot be opened, to read its orbit"):
        found(tmp_path / "items" / "items.json")


def test_bursts_that_cannot_be_used_are_rejected(tmp_path: Path) -> None:
    single = write_burst(tmp_path, burst=1, bands="VV")
    horizontal = write_burst(tmp_path, burst=2, bands="HH HV")
    lost = write_burst(tmp_path, burst=3, orbit=None)
    rejected = found(tmp_path).rejected
    assert "lacks VV or VH" in rejected[single]
    assert "lacks VV or VH" in rejected[horizontal] or "none of" in rejected[horizontal]
    assert "sat:orbit_state is None" in rejected[lost]


def test_a_file_that_is_no_raster(tmp_path: Path) -> None:
    (tmp_path / (BURST.format(burst=1, made=0) + "_VV.tif")).write_text("hello")
    with pytest.raises(SmaltiError, match=r"_VV.tif: cannot be opened"):
        found(tmp_path)


def test_items_made_from_files_are_plain_json(tmp_path: Path) -> None:
    write_burst(tmp_path)
    config = config_for(tmp_path)
    (item,) = search_scenes(config, load_region(config.region))
    assert json.loads(json.dumps(item)) == item
