"""Reading field data: formats, CRS, attributes, values, geometries."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import shapely
from support.embedded import EPSG, NORTH, WEST, write_vector

from infer.contract import SmaltiError
from preproc.classify.labels import LabelSet, assign_codes, class_values, read_labels, to_zone
from preproc.region.vector import fingerprint

ZONES = {EPSG: (WEST, NORTH - 640, WEST + 640, NORTH)}
SQUARES = [shapely.box(WEST + 100 * i, NORTH - 100, WEST + 100 * i + 80, NORTH - 20) for i in range(3)]
NAMES = np.array(["wheat", "maize", "wheat"], dtype=object)


def read(path: Path, attribute: str = "crop", group: str | None = None, layer: str | None = None) -> LabelSet:
    return read_labels(path, attribute, group, layer, ZONES)


def refused(message: str) -> Any:
    return pytest.raises(SmaltiError, match=message)


@pytest.mark.parametrize("suffix", ["geojson", "gpkg", "shp", "fgb"])
@pytest.mark.parametrize("to", [4326, 3035, 31370, 32632])
def test_any_format_in_any_crs_lands_on_the_same_metres(tmp_path: Path, suffix: str, to: int) -> None:
    if suffix == "geojson" and to != 4326:
        pytest.skip("GeoJSON is always WGS 84")
    path = write_vector(tmp_path / f"l.{suffix}", SQUARES, {"crop": NAMES}, to=to, geometry_type="Polygon")
    labels = read(path)
    order = np.argsort(shapely.bounds(to_zone(labels, EPSG))[:, 0])  # FlatGeobuf keeps its own order
    assert labels.classes_n[order].tolist() == NAMES.tolist()
    assert np.abs(shapely.bounds(to_zone(labels, EPSG))[order] - shapely.bounds(SQUARES)).max() < 0.1


def test_groups_default_to_the_features_themselves(tmp_path: Path) -> None:
    path = write_vector(tmp_path / "l.gpkg", SQUARES, {"crop": NAMES, "farm": np.array([7, 7, 8])})
    assert len(set(read(path).groups_n)) == 3
    assert read(path, group="farm").groups_n.tolist() == ["7", "7", "8"]


def test_class_and_group_may_be_one_attribute(tmp_path: Path) -> None:
    path = write_vector(tmp_path / "l.gpkg", SQUARES, {"crop": NAMES})
    assert read(path, group="crop").groups_n.tolist() == NAMES.tolist()


def test_null_and_blank_classes_are_dropped_and_counted(tmp_path: Path) -> None:
    names = np.array(["wheat", None, "  "], dtype=object)
    labels = read(write_vector(tmp_path / "l.gpkg", SQUARES, {"crop": names}))
    assert labels.classes_n.tolist() == ["wheat"]
    assert labels.counts["features dropped: no class"] == 2


def test_an_attribute_that_is_empty_everywhere_is_named(tmp_path: Path) -> None:
    path = write_vector(tmp_path / "l.gpkg", SQUARES, {"crop": np.full(3, np.nan)})
    with refused(r"l.gpkg: attribute 'crop', which \[labels\] names, is empty in all 3 features near the region"):
        read(path)


def test_whole_numbers_with_gaps_come_back_whole(tmp_path: Path) -> None:
    labels = read(write_vector(tmp_path / "l.gpkg", SQUARES, {"crop": np.array([9120.0, np.nan, 1110.0])}))
    assert labels.classes_n.tolist() == [9120, 1110]
    assert all(type(value) is int for value in labels.classes_n)


def test_fractions_and_dates_are_no_classes(tmp_path: Path) -> None:
    path = write_vector(tmp_path / "l.gpkg", SQUARES, {"crop": np.array([1.0, 2.5, 3.0])})
    with refused("'crop' holds 2.5: a class is text or a whole number"):
        read(path)
    with refused("'crop' holds inf: a class is text or a whole number"):
        class_values(path, "crop", pa.chunked_array([[1.0, np.inf, 3.0]]))
    dates = np.array(["2020-01-01"] * 3, dtype="datetime64[D]")
    with refused("a class is text or a whole number"):
        class_values(path, "sown", pa.chunked_array([pa.array(dates)]))


def test_truth_values_are_classes() -> None:
    values, present = class_values(Path("x"), "crop", pa.chunked_array([[True, False, None]]))
    assert values.tolist() == ["true", "false", None]
    assert present.tolist() == [True, True, False]


def test_an_unknown_attribute_is_answered_with_those_there_are(tmp_path: Path) -> None:
    path = write_vector(tmp_path / "l.gpkg", SQUARES, {"crop": NAMES, "farm": np.array([7, 7, 8])})
    with refused(re.escape("has no attribute 'croop', which [labels] names; it has: crop, farm")):
        read(path, "croop")
    with refused("has no attribute 'parcel'"):
        read(path, group="parcel")


def test_missing_files_layers_and_crs(tmp_path: Path) -> None:
    with refused("none.gpkg: no such file"):
        read(tmp_path / "none.gpkg")
    with refused("none.gpkg: no such file"):
        fingerprint(tmp_path / "none.gpkg")
    (tmp_path / "text.gpkg").write_text("hello")
    with refused("text.gpkg: cannot be read as a vector file"):
        read(tmp_path / "text.gpkg")
    bare = write_vector(tmp_path / "bare.shp", SQUARES, {"crop": NAMES}, epsg=None, geometry_type="Polygon")
    with refused("bare.shp: has no CRS"):
        read(bare)
    two = write_vector(tmp_path / "two.gpkg", SQUARES, {"crop": NAMES}, layer="a")
    write_vector(two, SQUARES, {"crop": NAMES}, layer="b", append=True)
    with refused("two.gpkg: has 2 layers .a, b.: choose one"):
        read(two)
    with refused("has no layer 'c'"):
        read(two, layer="c")
    assert len(read(two, layer="b")) == 3


def test_lines_are_refused_and_collections_give_their_polygons(tmp_path: Path) -> None:
    line = [shapely.LineString([(WEST, NORTH), (WEST + 50, NORTH - 50)])]
    with refused("of type linestring: labels are points or polygons"):
        read(write_vector(tmp_path / "l.gpkg", line, {"crop": NAMES[:1]}))
    mixed = [shapely.GeometryCollection([SQUARES[0], *line])]
    labels = read(write_vector(tmp_path / "m.gpkg", mixed, {"crop": NAMES[:1]}))
    assert shapely.area(labels.geometries_n[0]) == pytest.approx(6400)


def test_invalid_outlines_are_repaired_and_empty_ones_dropped(tmp_path: Path) -> None:
    bow = shapely.Polygon([(WEST, NORTH), (WEST + 60, NORTH - 60), (WEST + 60, NORTH), (WEST, NORTH - 60)])
    labels = read(write_vector(tmp_path / "l.gpkg", [bow, SQUARES[1], None], {"crop": NAMES}))
    assert shapely.is_valid(labels.geometries_n).all()
    assert labels.counts["invalid outlines repaired"] == 1
    assert shapely.area(labels.geometries_n[0]) == pytest.approx(60 * 60 / 2, rel=1e-6)
    assert len(labels) == 2


def test_metres_declared_as_degrees_are_noticed(tmp_path: Path) -> None:
    path = write_vector(tmp_path / "l.shp", SQUARES, {"crop": NAMES}, epsg=4326, geometry_type="Polygon")
    with refused("coordinates from 500000, 5599900 .* are not degrees"):
        read(path)


def test_a_shapefile_is_more_than_its_shp(tmp_path: Path) -> None:
    path = write_vector(tmp_path / "l.shp", SQUARES, {"crop": NAMES}, geometry_type="Polygon")
    before = fingerprint(path)
    write_vector(tmp_path / "l.shp", SQUARES, {"crop": NAMES[::-1].copy()}, geometry_type="Polygon")
    assert fingerprint(path) == before  # wheat, maize, wheat reads the same backwards
    write_vector(tmp_path / "l.shp", SQUARES, {"crop": np.roll(NAMES, 1)}, geometry_type="Polygon")
    assert fingerprint(path) != before


def column(*values: Any, kind: Any = None) -> Any:
    return pa.chunked_array([pa.array(values, kind)])


def test_values_stay_what_they_are(tmp_path: Path) -> None:
    big = [2**53 + 1, None, 2**53 + 2]
    assert class_values(Path("x"), "crop", column(*big))[0].tolist() == big
    assert class_values(Path("x"), "crop", column("1.0", " b ", ""))[0].tolist() == ["1.0", "b", None]
    assert class_values(Path("x"), "crop", column("Ble\u0301", "Blé", "a\x0b\nb", "\u202eBlé"))[0].tolist() == [
        "Blé", "Blé", "a b", "Blé",
    ]  # fmt: skip
    assert class_values(Path("x"), "crop", column(None, None))[1].tolist() == [False, False]
    path = tmp_path / "l.geojson"
    for values, right in (
        ([True, None, False], ["true", "false"]),
        (big, [big[0], big[2]]),
        ([1, "2", None], ["1", "2"]),
    ):
        write_geojson(path, values)
        assert read(path).classes_n.tolist() == right


def write_geojson(path: Path, values: list[Any]) -> None:
    features = [
        {"type": "Feature", "properties": {"crop": v}, "geometry": {"type": "Point", "coordinates": [3.001, 50.545]}}
        for v in values
    ]
    path.write_text(json.dumps({"type": "FeatureCollection", "features": features}))


def test_what_is_no_class_is_refused_or_asked_about(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "l.geojson"
    for values, message in (
        ([["a"], ["b"]], "a class is text or a whole number"),
        ([{"a": 1}, {"a": 2}], "a class is text or a whole number"),
        (["x" * 2_000_000, "y"], "a text of 2000000 characters"),
    ):
        write_geojson(path, values)
        with refused(message):
            read(path)
    write_geojson(path, ["nan", "None", "wheat", " wheat", "Wheat"])
    assert read(path).classes_n.tolist() == ["nan", "None", "wheat", "wheat", "Wheat"]
    said = " ".join(capsys.readouterr().err.split())
    assert "'None', 'nan' as text" in said
    assert "capitals or blanks only, which makes them classes of their own: 'Wheat' and 'wheat'" in said


def test_codes_in_text_are_numbers() -> None:
    assert assign_codes({"10", "2", "7"}) == {"2": 2, "7": 7, "10": 10}
    assert list(assign_codes({"300", "20", "1"})) == ["1", "20", "300"]
    assert assign_codes({"field 10", "field 2"}) == {"field 2": 1, "field 10": 2}
    assert assign_codes({"1", "01"}) == {"01": 1, "1": 2}
    assert assign_codes({"9" * 9999, "b"})


def test_codes() -> None:
    assert assign_codes({"wheat", "maize"}) == {"maize": 1, "wheat": 2}
    assert assign_codes({7, 3}) == {3: 3, 7: 7}
    assert assign_codes({9120, 1110}) == {1110: 1, 9120: 2}
    assert assign_codes({0, 1}) == {0: 1, 1: 2}
    with refused("256 classes, a map holds 255"):
        assign_codes({f"c{i}" for i in range(256)})
