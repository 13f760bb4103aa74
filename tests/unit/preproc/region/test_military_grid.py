"""Squares of the military grid, against the grids of real Sentinel-2 items and the definition of the bands."""

from __future__ import annotations

import json
from datetime import date

import pyproj
import pytest
import shapely
from hypothesis import given
from hypothesis import strategies as st
from support.recorded import STAC_ITEMS

from infer.contract import SmaltiError
from preproc.region.military_grid import mgrs_bounds
from preproc.region.region import load_region, mgrs_square
from preproc.run.config import RegionSettings as Settings

BANDS = "CDEFGHJKLMNPQRSTUVWX"


def test_squares_agree_with_the_rasters_of_real_items() -> None:
    checked = set()
    for path in STAC_ITEMS.rglob("*.json"):
        content = json.loads(path.read_text())
        content = content.get("response", content) if isinstance(content, dict) else content
        items = content.get("features", [content]) if isinstance(content, dict) else content
        for item in items:
            if not isinstance(item, dict) or not str(item.get("collection", "")).startswith("sentinel-2"):
                continue
            properties, assets = item.get("properties", {}), item.get("assets", {})
            tile = properties.get("s2:mgrs_tile") or str(properties.get("grid:code", "")).removeprefix("MGRS-")
            transform = (assets.get("B02") or assets.get("blue") or {}).get("proj:transform")
            if not tile or not transform:
                continue
            epsg, west, _, _, north = mgrs_bounds(tile)
            assert epsg == properties["proj:epsg"], tile
            # granules begin up to a 60 m pixel outside their square
            assert 0 <= west - transform[2] <= 60, tile
            assert 0 <= transform[5] - north <= 60, tile
            checked.add(tile)
    assert len(checked) > 10


@given(st.floats(-180, 179.99), st.floats(-79.9, 83.9).filter(lambda value: abs(value) > 1e-6))
def test_every_place_is_in_the_square_of_its_name(longitude: float, latitude: float) -> None:
    """The name by the definition of the grid: column and row of 100 km, counted from the zone's origin."""
    zone = int((longitude + 180) // 6) + 1
    band = BANDS[min(int((latitude + 80) // 8), 19)]
    epsg = (32600 if latitude >= 0 else 32700) + zone
    x, y = pyproj.Transformer.from_crs("EPSG:4326", epsg, always_xy=True).transform(longitude, latitude)
    column = {0: "STUVWXYZ", 1: "ABCDEFGH", 2: "JKLMNPQR"}[zone % 3][int(x // 100_000) - 1]
    row = "ABCDEFGHJKLMNPQRSTUV"[(int(y // 100_000) + (0 if zone % 2 else 5)) % 20]
    name = f"{zone}{band}{column}{row}"
    found, west, south, east, north = mgrs_bounds(name)
    assert found == epsg
    assert west <= x < east
    assert south <= y < north
    assert mgrs_square(name).distance(shapely.Point(longitude, latitude)) < 1e-4


@pytest.mark.parametrize("name", ["", "31U", "31UESX", "61UES", "0UES", "31IES", "31UAS", "31UEW", "31CEE", "31UEK"])
def test_names_that_are_none(name: str) -> None:
    with pytest.raises(SmaltiError, match=r"run.toml: \[region\] mgrs: "):
        mgrs_square(name)


def test_a_region_of_squares() -> None:
    region = load_region(Settings(start=date(2021, 1, 1), end=date(2021, 12, 31), mgrs=("31UES", "T31UFS")))
    assert len(region.geometry.geoms) == 1, "neighbouring squares become one"
    assert region.bounds == pytest.approx((3.0, 50.5, 5.86, 51.45), abs=0.1)
