"""Regions as people have them: what is read, what is cut, what is refused with which words."""

from __future__ import annotations

import json
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import pyogrio
import pyproj
import pytest
import shapely
from shapely.geometry.base import BaseGeometry

from infer.contract import SmaltiError
from preproc.region.region import Region, load_region, make_region, region_in, split_antimeridian
from preproc.run.config import RegionSettings as Settings

SQUARE = shapely.box(4.0, 50.7, 4.1, 50.8)


def settings(**keys: Any) -> Settings:
    return Settings(start=date(2019, 1, 1), end=date(2019, 12, 31), **keys)


def load(path: Path, layer: str | None = None) -> Region:
    return load_region(settings(geometry=path, layer=layer))


def write_geojson(path: Path, *geometries: BaseGeometry | None, **members: Any) -> Path:
    features = [
        {"type": "Feature", "properties": {}, "geometry": None if g is None else json.loads(shapely.to_geojson(g))}
        for g in geometries
    ]
    path.write_text(json.dumps({"type": "FeatureCollection", "features": features, **members}))
    return path


def write_vector(path: Path, *geometries: BaseGeometry, crs: str | None, layer: str | None = None, **more: Any) -> Path:
    kind = shapely.from_wkb(shapely.to_wkb(geometries[0])).geom_type if geometries else "Polygon"
    pyogrio.raw.write(
        path,
        geometry=np.array(shapely.to_wkb(list(geometries)), dtype=object),
        field_data=[np.arange(len(geometries))],
        fields=["number"],
        geometry_type=kind,
        crs=crs,
        layer=layer,
        **more,
    )
    return path


def moved(geometry: BaseGeometry, crs: str) -> BaseGeometry:
    """An independent way into another CRS: point by point."""
    forward = pyproj.Transformer.from_crs("EPSG:4326", crs, always_xy=True)
    return shapely.transform(geometry, lambda xy: np.array([forward.transform(*point) for point in xy]))


def test_geojson_is_wgs84(tmp_path: Path) -> None:
    region = load(write_geojson(tmp_path / "fields.geojson", SQUARE))
    assert region.name == "fields"
    assert region.geometry.equals(SQUARE)


def test_geojson_with_a_legacy_crs_is_read_in_that_crs(tmp_path: Path) -> None:
    legacy = {"type": "name", "properties": {"name": "urn:ogc:def:crs:EPSG::32631"}}
    path = write_geojson(tmp_path / "old.geojson", moved(SQUARE, "EPSG:32631"), crs=legacy)
    assert load(path).bounds == pytest.approx(SQUARE.bounds, abs=1e-3)
    assert load(path).geometry.symmetric_difference(SQUARE).area < 1e-3 * SQUARE.area


@pytest.mark.parametrize("name", ["region.gpkg", "region.shp", "region.fgb"])
@pytest.mark.parametrize("crs", ["EPSG:4326", "EPSG:31370", "EPSG:3035"])
def test_vector_files_in_any_crs(tmp_path: Path, name: str, crs: str) -> None:
    there = moved(shapely.segmentize(SQUARE, 0.005), crs)
    region = load(write_vector(tmp_path / name, there, crs=crs))
    # the datum shift of Belgium's own CRS depends on the grids installed: metres
    assert region.geometry.symmetric_difference(SQUARE).area < 1e-3 * SQUARE.area


def test_straight_edges_of_another_crs_are_densified(tmp_path: Path) -> None:
    """A square of 500 km in EPSG:3035 is not a quadrangle in degrees: without densifying it is off by kilometres."""
    square = shapely.box(3_800_000, 3_000_000, 4_300_000, 3_500_000)
    region = load(write_vector(tmp_path / "big.gpkg", square, crs="EPSG:3035"))
    edge = shapely.segmentize(square.exterior, 1000)
    backward = pyproj.Transformer.from_crs("EPSG:3035", "EPSG:4326", always_xy=True)
    true = shapely.polygons(np.column_stack(backward.transform(*np.array(edge.coords).T)))
    assert shapely.hausdorff_distance(region.geometry.boundary, true.boundary, densify=0.01) < 1e-4


def test_features_are_merged_and_holes_kept(tmp_path: Path) -> None:
    ring = shapely.box(4.0, 50.0, 5.0, 51.0).difference(shapely.box(4.4, 50.4, 4.6, 50.6))
    path = write_geojson(tmp_path / "r.geojson", ring, shapely.box(4.9, 50.0, 5.5, 50.5), None)
    region = load(path)
    assert region.geometry.area == pytest.approx(1 - 0.04 + 0.5 * 0.5)
    assert len(region.geometry.geoms) == 1
    assert len(region.geometry.geoms[0].interiors) == 1


def test_the_fingerprint_is_of_the_shape_alone(tmp_path: Path) -> None:
    one = load(write_geojson(tmp_path / "a.geojson", SQUARE))
    turned = shapely.Polygon(np.roll(np.array(SQUARE.exterior.coords)[:-1], 1, axis=0)[::-1])
    other = load(write_geojson(tmp_path / "b.geojson", turned))
    assert one.fingerprint == other.fingerprint
    assert one == other
    assert one.fingerprint != make_region(shapely.box(4.0, 50.7, 4.1, 50.8001), "c", source="c").fingerprint


def test_bbox() -> None:
    region = load_region(settings(bbox=(4.0, 50.7, 4.1, 50.8)))
    assert region.name == "bbox"
    assert region.geometry.equals(SQUARE)


def test_a_bbox_whose_west_is_east_of_its_east_crosses_the_antimeridian() -> None:
    region = load_region(settings(bbox=(179.5, -17.0, -179.0, -16.0)))
    assert region.geometry.area == pytest.approx(1.5)
    assert sorted(part.bounds[0] for part in region.geometry.geoms) == [-180.0, 179.5]


def test_a_wide_bbox_goes_the_way_that_it_says() -> None:
    region = load_region(settings(bbox=(-110.0, -1.0, 100.0, 1.0)))
    assert region.bounds == (-110, -1, 100, 1)
    assert region.geometry.area == pytest.approx(420)
    assert load_region(settings(bbox=(-180.0, -60.0, 180.0, 60.0))).geometry.area == pytest.approx(360 * 120)


def test_one_feature_a_line_is_read_though_it_is_not_one_json_value(tmp_path: Path) -> None:
    feature = {"type": "Feature", "properties": {"crs": "x"}, "geometry": json.loads(shapely.to_geojson(SQUARE))}
    (tmp_path / "lines.geojson").write_text(2 * f"{json.dumps(feature)}\n")
    assert load(tmp_path / "lines.geojson").geometry.equals(SQUARE)


@pytest.mark.parametrize(
    "coordinates",
    [
        [(179.5, -17), (180.5, -17), (180.5, -16), (179.5, -16)],
        [(179.5, -17), (-179.5, -17), (-179.5, -16), (179.5, -16)],
        [(-180.5, -17), (-179.5, -17), (-179.5, -16), (-180.5, -16)],
    ],
    ids=["past 180", "jumping", "past -180"],
)
def test_polygons_that_cross_the_antimeridian_are_cut(tmp_path: Path, coordinates: list[tuple[float, float]]) -> None:
    region = load(write_geojson(tmp_path / "fiji.geojson", shapely.Polygon(coordinates)))
    assert region.geometry.area == pytest.approx(1.0)
    expected = shapely.union(shapely.box(179.5, -17, 180, -16), shapely.box(-180, -17, -179.5, -16))
    assert region.geometry.equals(expected)


def test_a_hole_across_the_antimeridian_is_kept() -> None:
    outer = [(179, -18), (-179, -18), (-179, -16), (179, -16)]
    hole = [(179.9, -17.1), (-179.9, -17.1), (-179.9, -16.9), (179.9, -16.9)]
    region = make_region(shapely.Polygon(outer, [hole]), "x", source="x")
    assert region.geometry.area == pytest.approx(4 - 0.04)


def test_layers(tmp_path: Path) -> None:
    path = tmp_path / "two.gpkg"
    write_vector(path, SQUARE, crs="EPSG:4326", layer="farm")
    write_vector(path, shapely.box(5, 50, 6, 51), crs="EPSG:4326", layer="county", append=True)
    with pytest.raises(SmaltiError, match=r"two.gpkg: has 2 layers .farm, county.: choose one with \[region\] layer"):
        load(path)
    assert load(path, "county").bounds == (5, 50, 6, 51)
    with pytest.raises(SmaltiError, match=r"two.gpkg: has no layer 'village'"):
        load(path, "village")


def test_collections_of_polygons_are_their_polygons(tmp_path: Path) -> None:
    nested = shapely.GeometryCollection([shapely.GeometryCollection([SQUARE]), shapely.box(5, 50, 6, 51)])
    region = load(write_geojson(tmp_path / "r.geojson", nested))
    assert region.geometry.area == pytest.approx(SQUARE.area + 1)


def test_features_that_cannot_be_placed_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    square = json.loads(shapely.to_geojson(SQUARE))
    path = raw_geojson(tmp_path, square, None, {"type": "Polygon", "coordinates": [[["a", "b"]] * 4]})
    assert load(path).geometry.equals(SQUARE)
    assert "2 of 3 features have no readable geometry" in " ".join(capsys.readouterr().err.split())


def test_region_in_utm_follows_parallels() -> None:
    """A parallel is curved in UTM: its middle lies off the chord by 5 km over six degrees; it must be followed."""
    region = make_region(shapely.box(0, 50, 6, 51), "x", source="x")
    part = region_in(region, 32631)
    forward = pyproj.Transformer.from_crs("EPSG:4326", "EPSG:32631", always_xy=True)
    for longitude in (0.01, 1.0, 3.0, 4.7):
        assert part.boundary.distance(shapely.Point(forward.transform(longitude, 50))) < 0.2


def raw_geojson(folder: Path, *geometries: Any) -> Path:
    features = [{"type": "Feature", "properties": {}, "geometry": geometry} for geometry in geometries]
    (folder / "r.geojson").write_text(json.dumps({"type": "FeatureCollection", "features": features}))
    return folder / "r.geojson"


def bow_tie() -> BaseGeometry:
    return shapely.Polygon([(4, 50), (5, 51), (5, 50), (4, 51)])


def nothing(path: Path) -> Path:
    return path / "nowhere.geojson"


def not_a_vector(path: Path) -> Path:
    (path / "r.geojson").write_text("hello")
    return path / "r.geojson"


def shapefile_without_prj(path: Path) -> Path:
    write_vector(path / "r.shp", SQUARE, crs="EPSG:4326")
    (path / "r.prj").unlink()
    return path / "r.shp"


def shapefile_without_shx(path: Path) -> Path:
    write_vector(path / "r.shp", SQUARE, crs="EPSG:4326")
    (path / "r.shx").unlink()
    return path / "r.shp"


def truncated_gpkg(path: Path) -> Path:
    write_vector(path / "r.gpkg", SQUARE, crs="EPSG:4326")
    (path / "r.gpkg").write_bytes((path / "r.gpkg").read_bytes()[:5000])
    return path / "r.gpkg"


BAD = {
    "no such file": (nothing, "no such file"),
    "not a vector": (not_a_vector, "cannot be read as a vector file"),
    "no features": (lambda p: write_geojson(p / "r.geojson"), "holds no feature"),
    "null geometry": (lambda p: write_geojson(p / "r.geojson", None), "all its features are empty|holds no feature"),
    "empty polygon": (lambda p: write_vector(p / "r.gpkg", shapely.Polygon(), crs="EPSG:4326"), "features are empty"),
    "points": (lambda p: write_geojson(p / "r.geojson", shapely.Point(4, 50)), "feature 1 is a Point"),
    "a line too": (
        lambda p: write_geojson(p / "r.geojson", SQUARE, shapely.LineString([(4, 50), (5, 51)])),
        "feature 2 is a LineString",
    ),
    "bow tie": (lambda p: write_geojson(p / "r.geojson", bow_tie()), "feature 1 is not a valid polygon .*intersection"),
    "no area": (
        lambda p: write_geojson(p / "r.geojson", shapely.Polygon([(4, 50), (5, 50), (4, 50)])),
        "not a valid polygon|no area|empty",
    ),
    "unknown crs": (
        lambda p: write_geojson(p / "r.geojson", SQUARE, crs={"type": "name", "properties": {"name": "EPSG:999999"}}),
        "CRS is not understood",
    ),
    "no prj": (shapefile_without_prj, "has no CRS .a shapefile's is in its .prj"),
    "no crs in gpkg": (lambda p: write_vector(p / "r.gpkg", SQUARE, crs=None), "has no CRS"),
    "no shx": (shapefile_without_shx, "cannot be read as a vector file"),
    "truncated": (truncated_gpkg, "cannot be read as a vector file"),
    "polar": (lambda p: write_geojson(p / "r.geojson", shapely.box(0, 83, 1, 85)), "latitude 83 to 85; UTM"),
    "antarctic": (lambda p: write_geojson(p / "r.geojson", shapely.box(0, -85, 1, -79)), "latitude -85 to -79; UTM"),
    "metres as degrees": (
        lambda p: write_geojson(p / "r.geojson", shapely.box(500000, 5600000, 500100, 5600100)),
        "are not degrees",
    ),
    "outside its CRS": (
        lambda p: write_vector(p / "r.gpkg", shapely.box(1e30, 1e30, 2e30, 2e30), crs="EPSG:32631"),
        "does not lie where its CRS",
    ),
    "unclosed ring": (
        lambda p: raw_geojson(p, {"type": "Polygon", "coordinates": [[[4, 50], [5, 50], [5, 51]]]}),
        "feature 1 has a geometry that cannot be read",
    ),
    "a ring of one point": (
        lambda p: raw_geojson(p, {"type": "Polygon", "coordinates": [[[4, 50]]]}),
        "feature 1 has a geometry that cannot be read",
    ),
    "null coordinates": (
        lambda p: raw_geojson(p, {"type": "Polygon", "coordinates": None}),
        "all its features are empty|holds no feature",
    ),
    "text coordinates": (
        lambda p: raw_geojson(p, {"type": "Polygon", "coordinates": [[["4", "50"], ["5", "50"], ["5", "51"]]]}),
        "all its features are empty|holds no feature",
    ),
    "a point in a collection": (
        lambda p: write_geojson(p / "r.geojson", shapely.GeometryCollection([SQUARE, shapely.Point(4, 50)])),
        "feature 1 holds a Point",
    ),
    "around the Earth": (
        lambda p: write_geojson(p / "r.geojson", shapely.box(0, 50, 1e9, 51)),
        "are not degrees",
    ),
    "around the Earth in another CRS": (
        lambda p: write_vector(p / "r.gpkg", shapely.box(0, 50, 1e9, 51), crs="EPSG:4258"),
        "are not degrees",
    ),
    "the Moon": (
        lambda p: write_vector(p / "r.gpkg", SQUARE, crs="IAU_2015:30100"),
        "has no way to degrees on Earth",
    ),
    "too large to cut": (
        lambda p: write_vector(p / "r.gpkg", shapely.box(-1e300, 0, 1e300, 360), crs="EPSG:3995"),
        "does not lie where its CRS|not a valid polygon",
    ),
    "infinite": (
        lambda p: write_vector(p / "r.gpkg", shapely.Polygon([(4, 50), (np.inf, 50), (5, 51)]), crs="EPSG:4326"),
        "all its features are empty",
    ),
    "heights": (lambda p: write_vector(p / "r.gpkg", SQUARE, crs="EPSG:5773"), "is not one of places on Earth"),
    "a local CRS": (
        lambda p: write_vector(p / "r.gpkg", SQUARE, crs='LOCAL_CS["site",UNIT["metre",1]]'),
        "is not one of places on Earth|has no CRS",
    ),
    "a folder": (lambda p: p, "cannot be read as a vector file"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_is_refused_is_named_in_one_line(tmp_path: Path, case: str) -> None:
    make, words = BAD[case]
    path = make(tmp_path)
    with pytest.raises(SmaltiError, match=words) as caught:
        load(path)
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    assert "\n" not in message


def test_a_world_wide_polygon_is_not_mistaken_for_a_narrow_one(tmp_path: Path) -> None:
    """Edges of 360 degrees are ambiguous: what remains has no area, and is refused rather than guessed."""
    with pytest.raises(SmaltiError, match="no area"):
        load(write_geojson(tmp_path / "world.geojson", shapely.box(-180, -60, 180, 80)))


def test_the_real_season(shared: Path) -> None:
    region = load(shared / "data" / "flanders-2019" / "region.geojson")
    assert region.bounds == pytest.approx((4.05845801968282, 50.74309444718184, 4.0676581015920155, 50.7489315922272))


@pytest.mark.parametrize("east", [1e9, 1e30])
def test_what_is_wider_than_the_earth_is_not_cut_turn_by_turn(east: float) -> None:
    assert split_antimeridian(shapely.box(4, 50, east, 51)) == []
    assert split_antimeridian(shapely.Polygon([(4, 50), (4, 51), (-east, 51), (-east, 50)])) == []
