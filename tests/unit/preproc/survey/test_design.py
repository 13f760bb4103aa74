"""Reference samples: sizes against numbers worked out by hand, draws, files, and what is refused."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pyogrio
import pytest
from hypothesis import given
from hypothesis import strategies as st
from unit.preproc.survey.test_assess import write_legend, write_map

from infer.contract import SmaltiError
from preproc.classify import class_raster
from preproc.classify.class_raster import open_map
from preproc.cli import app
from preproc.survey.draw import allocate, draw, more, ranks, total

SHARES = np.array([0.02, 0.015, 0.32, 0.645])
USERS = np.array([0.70, 0.60, 0.90, 0.95])
"""What Olofsson et al. 2014, page 53, expect of their map."""
PIXELS = np.array([200_000, 150_000, 3_200_000, 6_450_000])


def test_the_sample_size_is_that_of_olofsson_2014() -> None:
    assert total(SHARES, USERS, 0.01, 10_000_000) == 641


@pytest.mark.parametrize(
    ("how", "minimum", "expected"),
    [
        ("proportional", 2, [13, 10, 205, 413]),  # 12.82, 9.615, 205.12, 413.445
        ("neyman", 2, [23, 19, 243, 356]),  # of .253091: .0091652, .0073485, .096, .1405775
        ("equal", 2, [161, 160, 160, 160]),
        ("proportional", 75, [75, 75, 163, 328]),  # 491 shared as .32 : .645
        ("neyman", 100, [100, 100, 179, 262]),  # 441 shared as .096 : .1405775
    ],
)
def test_shares_are_those_worked_out_by_hand(how: str, minimum: int, expected: list[int]) -> None:
    assert allocate(641, SHARES, USERS, PIXELS, how=how, minimum=minimum).tolist() == expected


def test_no_stratum_gets_more_points_than_pixels() -> None:
    made = allocate(100, np.array([0.01, 0.99]), np.array([0.8, 0.8]), np.array([5, 495]), how="equal", minimum=20)
    assert made.tolist() == [5, 95]


@given(st.lists(st.tuples(st.integers(2, 10**6), st.floats(0.01, 0.99)), min_size=1, max_size=12), st.integers(1, 5000))
def test_shares_add_up_whatever_the_strata(strata: list[tuple[int, float]], count: int) -> None:
    units = np.array([pixels for pixels, _ in strata])
    users = np.array([user for _, user in strata])
    for how in ("proportional", "neyman", "equal"):
        made = allocate(count, units / units.sum(), users, units, how=how, minimum=10)
        assert (made >= np.minimum(units, 10)).all()
        assert (made <= units).all()
        if count >= np.minimum(units, 10).sum():
            assert made.sum() == min(count, units.sum())


def test_more_points_reach_the_wish_with_as_few_as_can_be() -> None:
    spread = np.sqrt(USERS * (1 - USERS))
    have = np.array([75, 75, 165, 325])
    extra = more(SHARES, spread, have, 0.008)
    variance = ((SHARES * spread) ** 2 / (have + extra)).sum()
    assert variance <= 0.008**2
    assert extra[:2].tolist() == [0, 0]  # they have more than Neyman would give them
    for h in np.flatnonzero(extra):
        fewer = have + extra - (np.arange(4) == h) * 2
        assert ((SHARES * spread) ** 2 / fewer).sum() > 0.008**2
    assert more(SHARES, spread, np.array([2, 2, 2, 2]), 0.01).sum() == pytest.approx(641 - 8, abs=4)
    assert not more(SHARES, spread, have, 0.02).any()


def label(case: dict[str, Path], folder: Path, wrong: float) -> Path:
    """The sample labelled with the map's own classes, but for a share; as the page saves it."""
    rng = np.random.default_rng(1)
    with (folder / "strata.csv").open() as file:
        units = list(csv.DictReader(file))
    other = {"wheat": "maize", "maize": "wheat", "water": "wheat"}
    features = [
        {
            "type": "Feature",
            "geometry": {"type": "Point", "coordinates": [float(unit["longitude"]), float(unit["latitude"])]},
            "properties": {
                "id": int(unit["id"]),
                "class": (other if rng.random() < wrong else {}).get(unit["stratum"], unit["stratum"]),
            },
        }
        for unit in units
    ]
    path = folder / "labelled.geojson"
    path.write_text(json.dumps({"type": "FeatureCollection", "features": features}))
    return path


def test_a_sample_grows_until_the_interval_is_as_wished(
    case: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    design(case, "--sizes", "wheat=60,maize=40,water=30")
    labels = label(case, case["folder"], 0.3)
    grown = tmp_path / "grown"
    design(case, "--more", "--reference", labels, "--interval", 0.03, "--draw", grown)
    shown = capsys.readouterr()
    assert "more points for overall accuracy ± 0.03" in shown.out
    before, after = ((folder / "strata.csv").read_text().splitlines() for folder in (case["folder"], grown))
    assert after[: len(before)] == before  # the same points under the same ids
    assert len(after) > len(before)
    assert len({tuple(line.split(",")[3:6]) for line in after}) == len(after)  # none twice
    app(
        ["validate", "--map", str(case["map"]), "--legend", str(case["legend"]), "--reference",
         str(label(case, grown, 0.3)), "--output", str(tmp_path / "figures.json")], standalone_mode=False,
    )  # fmt: skip
    error = json.loads((tmp_path / "figures.json").read_text())["overall_accuracy"]["standard_error"]
    assert 1.96 * error == pytest.approx(0.03, rel=0.15)  # the errors of new labels are not those of the old
    capsys.readouterr()
    design({**case, "folder": grown}, "--more", "--reference", grown / "labelled.geojson", "--interval", 0.04)
    assert "0 more points" in capsys.readouterr().out


def test_intervals_of_classes_and_areas_ask_for_points_where_they_are_wide(case: dict[str, Path]) -> None:
    from preproc.survey.design import Wishes
    from preproc.survey.further import MoreWishes, further

    design(case, "--sizes", "wheat=60,maize=40,water=30")
    labels = label(case, case["folder"], 0.3)
    sample = Wishes(case["map"], case["folder"], legend=case["legend"])
    users = further(sample, MoreWishes(0.1, "users", labels))
    assert users["maize"] > users["wheat"] > 0  # of which there are more already
    areas = further(sample, MoreWishes(0.04, "areas", labels))
    assert areas["wheat"] > areas["water"]  # a larger stratum, as often wrong
    assert further(sample, MoreWishes(0.3, "areas", labels)) == {"wheat": 0, "maize": 0, "water": 0}


def test_more_needs_a_sample_with_labels_of_the_same_map(case: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(SmaltiError, match="there is no sample yet"):
        design(case, "--more")
    design(case, "--sizes", "wheat=60,maize=40,water=30")
    with pytest.raises(SmaltiError, match="give the labels of its sample: --reference FILE"):
        design(case, "--more")
    labels = label(case, case["folder"], 0.3)
    with pytest.raises(SmaltiError, match=r"a share between 0 and 0.5, of overall, users, areas"):
        design(case, "--more", "--reference", labels, "--of", "producers")
    with pytest.raises(SmaltiError, match="--reference and --draw go with --more"):
        design(case, "--draw", tmp_path / "x")
    with pytest.raises(SmaltiError, match="holds a sample of another map"):
        design(case, "--more", "--reference", labels, "--interval", 0.03, "--draw", case["folder"])
    write_map(case["map"], np.ones((50, 50), np.uint8), size=10)
    with pytest.raises(SmaltiError, match="was drawn from another map"):
        design(case, "--more", "--reference", labels)


@pytest.mark.parametrize("pixels", [300, 200_000])
def test_fewer_points_of_a_seed_are_the_first_of_more(pixels: int) -> None:
    assert ranks(pixels, 100, 1, 3).tolist() == ranks(pixels, 140, 1, 3)[:100].tolist()
    assert len(set(ranks(pixels, 140, 1, 3).tolist())) == 140
    assert ranks(pixels, 100, 1, 3).tolist() != ranks(pixels, 100, 2, 3).tolist()


def test_every_pixel_is_as_likely(tmp_path: Path) -> None:
    codes = np.tile(np.array([[1, 2, 0], [2, 1, 1]], np.uint8), (2, 2))
    class_map = open_map(write_map(tmp_path / "map.tif", codes))
    hits = np.zeros(codes.shape, int)
    for seed in range(400):
        for _, row, column in draw(class_map, {1: 4, 2: 2}, seed).pixel_n3:
            hits[row, column] += 1
    for code, count in ((1, 4), (2, 2)):
        expected = 400 * count / (codes == code).sum()
        assert np.abs(hits[codes == code] - expected).max() < 5 * np.sqrt(expected)
    assert hits[codes == 0].sum() == 0


def test_the_draw_is_the_same_in_whatever_strips_the_map_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    codes = np.random.default_rng(2).integers(0, 4, (60, 40)).astype(np.uint8)
    path = write_map(tmp_path / "map.tif", codes)
    whole = draw(open_map(path), {1: 30, 2: 20, 3: 10}, 1)
    assert (codes[whole.pixel_n3[:, 1], whole.pixel_n3[:, 2]] == whole.code_n).all()
    monkeypatch.setattr(class_raster, "_STRIP", 280)  # seven rows
    strips = draw(open_map(path), {1: 30, 2: 20, 3: 10}, 1)
    assert (strips.pixel_n3 == whole.pixel_n3).all()


@pytest.fixture
def case(tmp_path: Path) -> dict[str, Path]:
    rng = np.random.default_rng(5)
    codes = rng.choice(np.array([0, 1, 2, 7], np.uint8), (120, 90), p=[0.1, 0.6, 0.25, 0.05])
    legend = tmp_path / "legend.csv"
    legend.write_text("code,name\n1,wheat\n2,maize\n3,barley\n7,water\n")
    return {"map": write_map(tmp_path / "map.tif", codes, size=10), "legend": legend, "folder": tmp_path / "sample"}


def design(case: dict[str, Path], *more: object) -> dict[str, object]:
    command = ["design", case["map"], "--legend", case["legend"], "--output", case["folder"], *more]
    app([str(part) for part in command], standalone_mode=False)
    return json.loads((case["folder"] / "design.json").read_text())  # type: ignore[no-any-return]


def test_the_files_hold_the_sample_and_do_not_tell_the_mapped_class(case: dict[str, Path]) -> None:
    made = design(case, "--sizes", "wheat=30,maize=20,7=10")
    assert [(s["name"], s["points"]) for s in made["strata"]] == [("wheat", 30), ("maize", 20), ("water", 10)]  # type: ignore[attr-defined, index]
    with (case["folder"] / "points.csv").open() as file:
        rows = list(csv.DictReader(file))
    with (case["folder"] / "strata.csv").open() as file:
        units = list(csv.DictReader(file))
    assert [row["id"] for row in rows] == [str(number) for number in range(1, 61)] == [unit["id"] for unit in units]
    assert list(rows[0]) == ["id", "longitude", "latitude", "class", "note"]
    strata = [unit["stratum"] for unit in units]
    assert strata != sorted(strata)
    assert len(set(strata[:12])) > 1  # ids are in random order
    assert len({(unit["row"], unit["column"]) for unit in units}) == 60
    class_map = open_map(case["map"], case["legend"])
    from pyproj import CRS

    _, _, wkb, fields = pyogrio.raw.read(case["folder"] / "points.gpkg")
    import shapely

    places = shapely.get_coordinates(shapely.from_wkb(wkb))
    codes, _ = class_map.codes_at(CRS.from_epsg(4326), places)
    assert [class_map.names[code] for code in codes] == strata  # places in degrees find their pixels again
    assert fields[0].tolist() == list(range(1, 61))
    kml = (case["folder"] / "points.kml").read_text()
    assert kml.count("<Placemark") == 60
    assert "wheat" not in kml


def test_a_sample_is_drawn_once_and_never_written_over(
    case: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    design(case, "--minimum", 5)
    before = {path.name: path.read_bytes() for path in case["folder"].iterdir()}
    (case["folder"] / "points.csv").write_text("somebody's work")
    design(case, "--minimum", 5)
    assert "complete" in capsys.readouterr().err
    assert (case["folder"] / "points.csv").read_text() == "somebody's work"
    with pytest.raises(SmaltiError, match="holds a sample of another map or other sizes"):
        design(case, "--seed", 2)
    again = {**case, "folder": tmp_path / "again"}
    design(again, "--minimum", 5)
    assert {path.name: path.read_bytes() for path in again["folder"].iterdir()} == before
    (case["folder"] / "strata.csv").write_text("x")
    with pytest.raises(SmaltiError, match=r"strata.csv"):
        design(case, "--minimum", 5)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "mine.txt").write_text("mine")
    with pytest.raises(SmaltiError, match="is there and holds no sample"):
        design({**case, "folder": tmp_path / "other"})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--standard-error", 0], "no share between 0 and 0.5"),
        (["--standard-error", "nan"], "no share between 0 and 0.5"),
        (["--allocation", "best"], "'best' is none of proportional, neyman, equal"),
        (["--minimum", 1], "needs 2 points or more"),
        (["--seed", -1], "whole numbers from 0 on"),
        (["--sizes", "wheat=30"], "'maize' gets 0 points: every class of the map is a stratum"),
        (["--sizes", "wheat=30,maize=2.5,water=9"], "'maize' gets 2.5 points"),
        (["--sizes", "wheat=30,maize=20,water=10,barley=5"], "no pixel of the map is 'barley'"),
        (
            ["--sizes", "wheat=30,maize=20,water=10,rye=5"],
            "'rye' is no class of the map, which has wheat, maize, water",
        ),
        (["--sizes", "wheat=thirty"], "'wheat=thirty' is not NAME=NUMBER"),
        (["--sizes", "wheat=30,maize=20,water=10000"], "has .* pixels: 10000 points cannot be drawn"),
        (["--users", "wheat=90"], "'wheat' is to have a share between 0 and 1"),
    ],
)
def test_wishes_that_cannot_be_met_end_with_one_line(
    case: dict[str, Path], options: list[object], message: str
) -> None:
    with pytest.raises(SmaltiError, match=message) as caught:
        design(case, *options)
    assert "\n" not in str(caught.value)
    assert not case["folder"].exists()


def test_maps_of_uneven_pixels_and_runs_without_a_map_are_refused(tmp_path: Path) -> None:
    from rasterio.transform import Affine

    codes = np.ones((50, 50), np.uint8)
    path = write_map(tmp_path / "m.tif", codes, crs="EPSG:4326", transform=Affine(0.1, 0, 4, 0, -0.1, 52))
    legend = write_legend(tmp_path / "legend.csv", ["a"])
    with pytest.raises(SmaltiError, match="differ in size on the ground"):
        design({"map": path, "legend": legend, "folder": tmp_path / "out"})
    with pytest.raises(SmaltiError, match="say where the sample of a GeoTIFF"):
        app(["design", str(path)], standalone_mode=False)
    (tmp_path / "run").mkdir()
    with pytest.raises(SmaltiError, match="run `smalti predict"):
        app(["design", str(tmp_path / "run")], standalone_mode=False)
