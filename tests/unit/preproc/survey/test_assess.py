"""`smalti validate --map --reference`: a published example, oracles, and inputs that are refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import shapely
from rasterio.transform import Affine
from support.embedded import write_vector

from infer.contract import SmaltiError
from preproc.classify.class_raster import open_map, read_legend
from preproc.cli import app

EPSG, WEST, NORTH = 32618, 300_000, 4_500_000
CLASSES = ["deforestation", "forest gain", "stable forest", "stable non-forest"]
COUNTS = np.array([[66, 0, 5, 4], [0, 55, 8, 12], [1, 0, 153, 11], [2, 1, 9, 313]])
"""Olofsson et al. 2014, table 8."""


def write_map(path: Path, codes_hw: np.ndarray, *, size: float = 30.0, **changes: Any) -> Path:
    profile = {
        "driver": "GTiff", "height": codes_hw.shape[0], "width": codes_hw.shape[1], "count": 1,
        "dtype": codes_hw.dtype.name, "crs": f"EPSG:{EPSG}", "transform": Affine(size, 0, WEST, 0, -size, NORTH),
        "nodata": 0, "compress": "deflate",
    } | changes  # fmt: skip
    with rasterio.open(path, "w", **profile) as raster:
        raster.write(codes_hw, 1)
    return path


def write_legend(path: Path, names: list[str]) -> Path:
    path.write_text("code,name\n" + "".join(f"{code},{name}\n" for code, name in enumerate(names, start=1)))
    return path


def validate(*arguments: object) -> None:
    app(["validate", *map(str, arguments)], standalone_mode=False)


@pytest.fixture(scope="module")
def worked_example(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The map of ten million Landsat pixels and the 640 points of the paper."""
    folder = tmp_path_factory.mktemp("olofsson")
    codes = np.repeat(np.array([1, 2, 3, 4], np.uint8), [200_000, 150_000, 3_200_000, 6_450_000]).reshape(2500, 4000)
    rng = np.random.default_rng(2014)
    places, seen = [], []
    for row, counts in enumerate(COUNTS):
        drawn = rng.choice(np.flatnonzero(codes == row + 1), counts.sum(), replace=False)
        rows, columns = np.unravel_index(drawn, codes.shape)
        places.append(shapely.points(WEST + columns * 30 + 15, NORTH - rows * 30 - 15))
        seen += np.repeat(CLASSES, counts).tolist()
    reference = write_vector(
        folder / "points.gpkg", np.concatenate(places), {"class": np.array(seen, object)}, epsg=EPSG, to=4326
    )
    return {
        "map": write_map(folder / "map.tif", codes),
        "reference": reference,
        "legend": write_legend(folder / "legend.csv", CLASSES),
        "output": folder / "figures.json",
    }


def test_the_worked_example_of_olofsson_2014_comes_out_of_the_command(
    worked_example: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    validate(*(part for name, path in worked_example.items() for part in (f"--{name}", path)))
    shown = capsys.readouterr().out
    made = json.loads(worked_example["output"].read_text())
    assert made["format"] == "smalti/map-accuracy"
    assert made["count_matrix"] == COUNTS.tolist()
    areas = [entry["area_ha"]["value"] for entry in made["per_class"]]
    margins = [1.96 * entry["area_ha"]["standard_error"] for entry in made["per_class"]]
    assert areas == pytest.approx([21_158, 11_686, 285_770, 581_386], rel=5e-4)  # three digits and more
    assert margins == pytest.approx([6_158, 3_756, 15_510, 16_282], rel=5e-4)
    for text in ("overall accuracy 0.947 ± 0.018", "21,158 ± 6,158", "11,686 ± 3,756", "581,386 ± 16,282"):
        assert text in shown


def test_an_independent_bootstrap_agrees_with_the_intervals(worked_example: dict[str, Path]) -> None:
    """Units are drawn again within strata, and everything is estimated anew with none of smalti's formulas."""
    validate(*(part for name, path in worked_example.items() for part in (f"--{name}", path)))
    made = json.loads(worked_example["output"].read_text())
    rng = np.random.default_rng(7)
    weights = np.array([0.02, 0.015, 0.32, 0.645])
    shares = np.stack(
        [weights[i] * rng.multinomial(n := row.sum(), row / n, size=20_000) / n for i, row in enumerate(COUNTS)], axis=1
    )
    overall = np.trace(shares, axis1=1, axis2=2).std()
    assert made["overall_accuracy"]["standard_error"] == pytest.approx(overall, rel=0.03)
    areas = shares.sum(axis=1).std(axis=0) * 900_000
    producers = (np.diagonal(shares, axis1=1, axis2=2) / shares.sum(axis=1)).std(axis=0)
    users = (np.diagonal(shares, axis1=1, axis2=2) / shares.sum(axis=2)).std(axis=0)
    for k, entry in enumerate(made["per_class"]):
        assert entry["area_ha"]["standard_error"] == pytest.approx(areas[k], rel=0.03)
        assert entry["users_accuracy"]["standard_error"] == pytest.approx(users[k], rel=0.03)
        assert entry["producers_accuracy"]["standard_error"] == pytest.approx(producers[k], rel=0.08)  # by linearising


@pytest.mark.parametrize("epsg", [4326, 3857, 3035])
def test_areas_are_those_on_the_ground_in_any_coordinate_system(tmp_path: Path, epsg: int) -> None:
    from pyproj import Geod, Transformer

    step = 0.01 if epsg == 4326 else 1000.0
    x, y = (4.0, 52.0) if epsg == 4326 else Transformer.from_crs(4326, epsg, always_xy=True).transform(4.0, 52.0)
    codes = np.repeat(np.array([[1], [2]], np.uint8), 40, axis=0).repeat(60, axis=1)
    path = write_map(tmp_path / "map.tif", codes, crs=f"EPSG:{epsg}", transform=Affine(step, 0, x, 0, -step, y))
    made = open_map(path)
    edge = np.linspace(0, 1, 400)
    for code, top in ((1, 0), (2, 40)):
        west, east, north, south = x, x + 60 * step, y - top * step, y - (top + 40) * step
        ring_x = np.concatenate(
            [west + edge * (east - west), east + 0 * edge, east - edge * (east - west), west + 0 * edge]
        )
        ring_y = np.concatenate(
            [north + 0 * edge, north - edge * (north - south), south + 0 * edge, south + edge * (north - south)]
        )
        lon, lat = Transformer.from_crs(epsg, 4326, always_xy=True).transform(ring_x, ring_y)
        area = abs(Geod(ellps="WGS84").polygon_area_perimeter(lon, lat)[0]) / 10_000
        assert made.hectares[code] == pytest.approx(
            area, rel=2e-3 if epsg == 3857 else 2e-4
        )  # PROJ takes Web Mercator's globe for a sphere
    assert made.even is (epsg == 3035)


def test_nodata_is_what_the_file_says_and_zero_may_be_a_class(tmp_path: Path) -> None:
    codes = np.array([[0, 0, 1], [1, 255, 255]], np.uint8)
    assert open_map(write_map(tmp_path / "a.tif", codes, nodata=255)).pixels == {0: 2, 1: 2}
    assert open_map(write_map(tmp_path / "b.tif", codes, nodata=None)).pixels == {1: 2, 255: 2}
    legend = tmp_path / "legend.csv"
    legend.write_text("code,name\n0,other\n1,crop\n")
    made = open_map(tmp_path / "b.tif", legend)
    assert made.pixels == {0: 2, 1: 2, 255: 2}
    assert made.names == {0: "other", 1: "crop", 255: "255"}


@pytest.fixture
def case(tmp_path: Path) -> dict[str, Path]:
    codes = np.repeat(np.array([1, 2], np.uint8), 200).reshape(20, 20)
    rows, columns = np.array([0, 1, 2, 15, 16, 17]), np.array([3, 4, 5, 6, 7, 8])
    places = shapely.points(WEST + columns * 30 + 15, NORTH - rows * 30 - 15)
    seen = np.array(["1", "1", "2", "2", "2", "2"], object)
    return {
        "map": write_map(tmp_path / "map.tif", codes),
        "reference": write_vector(tmp_path / "points.gpkg", places, {"class": seen}, epsg=EPSG),
    }


def run(case: dict[str, Path], *more: object) -> None:
    validate("--map", case["map"], "--reference", case["reference"], *more)


def rewrite(case: dict[str, Path], rows: list[int], columns: list[int], seen: list[object]) -> None:
    case["reference"].unlink()
    places = shapely.points(WEST + np.array(columns) * 30 + 15, NORTH - np.array(rows) * 30 - 15)
    write_vector(case["reference"], places, {"class": np.array(seen)}, epsg=EPSG)


def test_a_pixel_written_down_twice_counts_once(case: dict[str, Path], capsys: pytest.CaptureFixture[str]) -> None:
    rewrite(case, [0, 0, 1, 15, 16], [3, 3, 4, 5, 6], [1, 1, 1, 2, 2])
    run(case)
    assert "1 dropped: another point lies in the same pixel" in " ".join(capsys.readouterr().err.split())
    rewrite(case, [0, 0, 1, 15, 16], [3, 3, 4, 5, 6], [1, 2, 1, 2, 2])
    with pytest.raises(SmaltiError, match=r"points.gpkg: features 1 and 2 lie in one pixel, and one says '1', the"):
        run(case)


def test_maps_that_are_none_end_with_one_line(case: dict[str, Path], tmp_path: Path) -> None:
    whole = np.ones((20, 20), np.uint8)
    turned = Affine(30, 5, WEST, 5, -30, NORTH)
    many = np.arange(40_000, dtype=np.uint16).reshape(200, 200)
    bad = {
        "is no such file": (tmp_path / "none.tif", "no such file: give a classified GeoTIFF"),
        "text": (tmp_path / "points.csv", "not readable as GeoTIFF"),
        "float": (write_map(tmp_path / "f.tif", whole.astype(np.float32)), "a class map is one band of whole numbers"),
        "crs": (write_map(tmp_path / "c.tif", whole, crs=None), "has no coordinate reference system"),
        "turned": (write_map(tmp_path / "t.tif", whole, transform=turned), "is turned or upside down"),
        "empty": (write_map(tmp_path / "e.tif", 0 * whole), "no pixel has a class"),
        "measured": (write_map(tmp_path / "m.tif", many), "more than 1000"),
        "negative": (write_map(tmp_path / "n.tif", -2 * whole.astype(np.int16)), "holds -2: codes of classes are 0"),
    }  # fmt: skip
    (tmp_path / "points.csv").write_text("a,b\n")
    cut = tmp_path / "cut.tif"
    noise = np.random.default_rng(0).integers(1, 9, (900, 900), np.uint8)
    cut.write_bytes(write_map(tmp_path / "w.tif", noise).read_bytes()[:90_000])
    bad["cut"] = (cut, "cannot be read|not readable")
    for path, message in bad.values():
        with pytest.raises(SmaltiError, match=message) as caught:
            run({**case, "map": path}, "--output", tmp_path / "out.json")
        assert "\n" not in str(caught.value)
    assert not (tmp_path / "out.json").exists()


def test_references_that_are_none_name_the_option(case: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(SmaltiError, match="no attribute 'seen', which --class"):
        run(case, "--class", "seen")
    with pytest.raises(SmaltiError, match=r"design: .*'stratified' or 'random'"):
        run(case, "--design", "systematic")
    with pytest.raises(SmaltiError, match="--strata: 'left' is not NAME=NUMBER"):
        run(case, "--stratum", "class", "--strata", "left")
    for size in ("0", "-3", "nan", "inf", "much"):
        with pytest.raises(SmaltiError, match=r"--strata.*(is not NAME=NUMBER|greater than 0)") as caught:
            run(case, "--stratum", "class", "--strata", f"a=5,b={size}")
        assert "\n" not in str(caught.value)
    with pytest.raises(SmaltiError, match="--strata: names 'a' twice"):
        run(case, "--stratum", "class", "--strata", "a=1,a=2")
    with pytest.raises(SmaltiError, match=r"--strata has a, b"):
        run(case, "--stratum", "class", "--strata", "a=1,b=2")
    rewrite(case, [-50, -60], [3, 4], [1, 2])
    with pytest.raises(SmaltiError, match="no reference point lies on the map: check --reference"):
        run(case)
    rewrite(case, [0, 1, 2], [3, 4, 5], [1, 2, 2])
    with pytest.raises(SmaltiError, match="fewer than two reference points lie on the map's 2"):
        run(case)
    rewrite(case, [0, 1, 15], [3, 4, 5], [1.5, 2, 2])
    with pytest.raises(SmaltiError, match=r"'class' holds 1.5: a class is text or a whole number"):
        run(case)
    rewrite(case, [0, 1, 15], [3, 4, 5], [np.nan, np.nan, np.nan])
    with pytest.raises(SmaltiError, match="is empty in all 3 features"):
        run(case)
    with pytest.raises(SmaltiError, match=r"either RUN, .*or both --map and --reference"):
        validate("--map", case["map"])


def test_legends_that_are_none_end_with_one_line(tmp_path: Path) -> None:
    path = tmp_path / "legend.csv"
    for text, message in {
        "code,name\n1,wheat\n1,maize\n": "line 3: code 1 or name 'maize' is there twice",
        "code,name\n1,wheat\n2,wheat\n": "line 3: code 2 or name 'wheat' is there twice",
        "code,name\nx,wheat\n": "line 2 has code 'x'",
        "value,label\n1,wheat\n": "line 2 has code ''",
        "code,name\n70000,wheat\n": "line 2 has code '70000'",
        "": "names no class",
    }.items():
        path.write_text(text)
        with pytest.raises(SmaltiError, match=message):
            read_legend(path)
    path.write_bytes(b"code,name\n1,bl\xe9\n")
    with pytest.raises(SmaltiError, match="cannot be read"):
        read_legend(path)
