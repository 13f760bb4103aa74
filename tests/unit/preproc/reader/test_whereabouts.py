"""A raster that is not where its item says is refused, with both boxes; whatever form the item says it in."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import shapely
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pyproj import Transformer
from support.tiny import EPSG, NORTH, SIZE, WEST, TinyArchive, fetch, write_raster

from preproc.catalogue.declared import whereabouts
from preproc.catalogue.sources import footprint
from preproc.reader.placement import RasterGrid, UnusableError
from preproc.reader.whereabouts import check_place
from preproc.region.region import split_antimeridian
from preproc.run.stage import StageFailedError

GRID = RasterGrid("EPSG:32631", (10.0, 0.0, 600000.0, 0.0, -10.0, 5700000.0), 10980, 10980)
BOX = [600000.0, 5590200.0, 709800.0, 5700000.0]
TRANSFORM = [10.0, 0.0, 600000.0, 0.0, -10.0, 5700000.0]


def moved(east: float = 0, north: float = 0, crs: str = "EPSG:32631") -> RasterGrid:
    a, b, c, d, e, f = GRID.transform
    return RasterGrid(crs, (a, b, c + east, d, e, f + north), GRID.height, GRID.width)


def outline(box: list[float], epsg: int) -> shapely.MultiPolygon:
    """A box in metres as a footprint in degrees, cut at the antimeridian."""
    back = Transformer.from_crs(epsg, 4326, always_xy=True)
    corners = shapely.transform(shapely.box(*box), lambda xy: np.column_stack(back.transform(xy[:, 0], xy[:, 1])))
    x = shapely.get_coordinates(corners)[:, 0]
    if x.max() - x.min() > 180:
        corners = shapely.transform(corners, lambda xy: xy + np.where(xy[:, :1] < 0, [[360, 0]], 0))
    return shapely.MultiPolygon(split_antimeridian(corners))


def check(grid: RasterGrid, asset: Any, properties: Any = None, epsg: int | None = EPSG, where: Any = None) -> None:
    item = {"assets": {"B04": asset}, "properties": properties or {}}
    check_place(grid, whereabouts(item, {"B04": "B04"}, epsg, where or outline(BOX, 32631))["B04"])


DECLARED: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "proj:bbox": ({"proj:bbox": BOX}, {}),
    "3D proj:bbox": ({"proj:bbox": [*BOX[:2], 0, *BOX[2:], 0]}, {}),
    "transform and shape": ({"proj:transform": TRANSFORM, "proj:shape": [10980, 10980]}, {}),
    "nine numbers": ({"proj:transform": [*TRANSFORM, 0, 0, 1], "proj:shape": [10980, 10980]}, {}),
    "GDAL's order": ({"proj:transform": [600000, 10, 0, 5700000, 0, -10], "proj:shape": [10980, 10980]}, {}),
    "of the item": ({}, {"proj:transform": TRANSFORM, "proj:shape": [10980, 10980]}),
    "a CRS of its own": ({"proj:bbox": BOX, "proj:code": "epsg:32631"}, {"proj:epsg": 32632}),
}


@pytest.mark.parametrize("form", DECLARED)
def test_a_declared_box_decides_to_the_pixel(form: str) -> None:
    asset, properties = DECLARED[form]
    check(GRID, asset, properties)
    check(moved(east=5, north=-5), asset, properties)  # half a pixel: the other convention
    for grid in (moved(east=10), moved(north=100), moved(east=-50_000), moved(crs="EPSG:32632")):
        with pytest.raises(UnusableError, match=r"is not where its item says: the file lies in .*, the item says "):
            check(grid, asset, properties)


def test_the_message_has_both_boxes() -> None:
    text = r"lies in 600100.0, 5590200.0, 709900.0, 5700000.0 \(west, south, east, north in EPSG:32631\), "
    with pytest.raises(UnusableError, match=text + r"the item says 600000.0, 5590200.0, 709800.0, 5700000.0"):
        check(moved(east=100), {"proj:bbox": BOX})


def test_without_a_declared_box_the_footprint_decides() -> None:
    swapped = RasterGrid("EPSG:32631", (10.0, 0.0, 5700000.0, 0.0, -10.0, 600000.0), 10980, 10980)
    for epsg in (32631, 32632, None):
        check(GRID, {}, epsg=epsg)
        check(GRID, {}, epsg=epsg, where=outline([600000, 5590200, 650000, 5700000], 32631))  # where the data are
        check(
            RasterGrid("EPSG:32631", (10.0, 0.0, 640000.0, 0.0, -10.0, 5640000.0), 500, 500), {}, epsg=epsg
        )  # cut out
        for grid in (moved(east=50_000), moved(north=-50_000), moved(crs="EPSG:32632"), swapped):
            with pytest.raises(UnusableError, match=r"is not where its item says|lies nowhere on Earth"):
                check(grid, {}, epsg=epsg)


@pytest.mark.parametrize("epsg", [32601, 32660])
def test_footprints_across_the_antimeridian(epsg: int) -> None:
    west = 200000.0 if epsg == 32601 else 700000.0
    box = [west, 6900000.0, west + 109800, 7009800.0]
    grid = RasterGrid(f"EPSG:{epsg}", (10.0, 0.0, box[0], 0.0, -10.0, box[3]), 10980, 10980)
    check(grid, {}, epsg=epsg, where=outline(box, epsg))
    for part in outline(box, epsg).geoms:
        check(grid, {}, epsg=epsg, where=shapely.MultiPolygon([part]))
    with pytest.raises(UnusableError, match="is not where"):
        check(grid, {}, epsg=epsg, where=outline([box[0] + 60000, box[1], box[2] + 60000, box[3]], epsg))


odd = st.one_of(st.none(), st.text(max_size=3), st.lists(st.floats() | st.integers() | st.none(), max_size=9))
FIELDS = ("proj:bbox", "proj:shape", "proj:transform", "proj:epsg", "proj:code")


@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.fixed_dictionaries({}, optional=dict.fromkeys(FIELDS, odd)))
def test_what_an_item_declares_may_be_anything(asset: dict[str, Any]) -> None:
    with contextlib.suppress(UnusableError):
        check(GRID, asset)


@pytest.mark.parametrize("asset", ["SCL", "B04", "vv"])
def test_a_shifted_file_is_missing(tmp_path: Path, asset: str) -> None:
    tiny = TinyArchive(tmp_path / "archive")
    folder, radar = tiny.s2("a", "2021-07-01"), tiny.s1("r", "2021-07-02")
    path = (radar if asset == "vv" else folder) / f"{asset}.tif"
    dtype, pixel = {"SCL": ("u1", 20), "B04": ("u2", 10), "vv": ("f4", 10)}[asset]
    write_raster(path, np.full((SIZE * 10 // pixel,) * 2, 4, dtype), pixel=pixel, west=WEST + 100, north=NORTH)
    run, config = tiny.run(tmp_path / "run")
    with pytest.raises(StageFailedError, match=rf"{asset}\.tif: is not where its item says: the file lies in"):
        fetch(run, config)


def test_no_real_item_is_refused(shared: Path) -> None:
    """Recorded items, taking their declared grids for the files': neither what they declare nor their footprints do."""
    checked = 0
    for path in (shared / "data" / "stac-items").rglob("*.json"):
        content = json.loads(path.read_text())
        content = content.get("response", content) if isinstance(content, dict) else content
        for item in content.get("features", [content]) if isinstance(content, dict) else content:
            properties = item.get("properties", {}) if isinstance(item, dict) else {}
            outlined = footprint(item) if properties else None
            for asset in item.get("assets", {}).values() if outlined is not None else ():
                grid = {**properties, **asset}
                if not {"proj:epsg", "proj:transform", "proj:shape"} <= set(grid):
                    continue
                a, b, c, d, e, f = map(float, grid["proj:transform"][:6])
                height, width = grid["proj:shape"]
                raster = RasterGrid(f"EPSG:{grid['proj:epsg']}", (a, b, c, d, e, f), height, width)
                check(raster, asset, properties, grid["proj:epsg"], outlined)
                check(raster, {}, where=outlined, epsg=None)
                checked += 1
    assert checked > 500
