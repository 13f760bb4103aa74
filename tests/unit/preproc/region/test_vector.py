"""Vector files of every kind: what is read from them, what is refused, what belongs to them."""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
import warnings
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pyogrio
import pytest
import shapely
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from infer.contract import SmaltiError
from preproc.classify.labels import LabelSet, read_labels
from preproc.region.vector import DRIVERS, Vector, fingerprint, read_vector

SQUARES = [shapely.box(4 + i / 100, 50, 4 + i / 100 + 0.005, 50.005) for i in range(3)]
NAMES = ["Blé", "Maïs", "Zuckerrübe"]
ZONES = {32631: (570000.0, 5530000.0, 590000.0, 5550000.0)}


def write(path: Path, driver: str, *, names: Any = NAMES, crs: str = "EPSG:4326", **more: Any) -> Path:
    data = np.array(names, dtype=object)
    wkb = np.array(shapely.to_wkb(SQUARES), dtype=object)
    pyogrio.raw.write(path, wkb, [data], ["crop"], driver=driver, crs=crs, geometry_type="Polygon", **more)
    return path


def read(path: Path, **more: Any) -> Vector:
    return read_vector(path, key="[labels] path", attributes=["crop"], **more)


def refused(message: str) -> Any:
    return pytest.raises(SmaltiError, match=message)


def zipped(folder: Path) -> Path:
    write(folder / "a.shp", "ESRI Shapefile", encoding="UTF-8")
    with zipfile.ZipFile(folder / "a.zip", "w") as archive:
        for file in folder.glob("a.*"):
            if file.suffix != ".zip":
                archive.write(file, f"inner/{file.name}")
    return folder / "a.zip"


def kmz(folder: Path) -> Path:
    write(folder / "doc.kml", "LIBKML")
    with zipfile.ZipFile(folder / "a.kmz", "w") as archive:
        archive.write(folder / "doc.kml", "doc.kml")
    return folder / "a.kmz"


def parquet(folder: Path, crs: Any = ...) -> Path:
    column: dict[str, Any] = {"encoding": "WKB", "geometry_types": ["Polygon"]}
    if crs is not ...:
        column["crs"] = crs
    geo = {"version": "1.1.0", "primary_column": "geometry", "columns": {"geometry": column}}
    table = pa.table({"crop": pa.array(NAMES).dictionary_encode(), "geometry": list(shapely.to_wkb(SQUARES))})
    pq.write_table(table.replace_schema_metadata({"geo": json.dumps(geo)}), folder / "a.parquet")
    return folder / "a.parquet"


def csv_of_points(folder: Path) -> Path:
    rows = [f"{s.centroid.x};{s.centroid.y};{name}" for s, name in zip(SQUARES, NAMES, strict=True)]
    (folder / "a.csv").write_text("\n".join(["Longitude;Latitude;crop", *rows]))
    return folder / "a.csv"


def csv_of_wkt(folder: Path) -> Path:
    rows = [f'"{s.wkt}",{name}' for s, name in zip(SQUARES, NAMES, strict=True)]
    (folder / "a.csv").write_text("\n".join(["WKT,crop", *rows]), encoding="utf-8-sig")
    return folder / "a.csv"


KINDS: dict[str, Any] = {
    "zipped shapefile": zipped,
    "KMZ": kmz,
    "GeoParquet": parquet,
    "CSV of points": csv_of_points,
    "CSV of WKT": csv_of_wkt,
    "folder": lambda p: write(p / "a.shp", "ESRI Shapefile", encoding="UTF-8").parent,
    "brackets": lambda p: write(p / "a[2024].shp", "ESRI Shapefile", encoding="UTF-8"),
    "TAB": lambda p: write(p / "a.tab", "MapInfo File"),
    "FlatGeobuf": lambda p: write(p / "a.fgb", "FlatGeobuf"),
    "GML": lambda p: write(p / "a.gml", "GML"),
    "KML": lambda p: write(p / "a.kml", "LIBKML"),
    "GeoPackage": lambda p: write(p / "a.gpkg", "GPKG"),
}


@pytest.mark.parametrize("kind", KINDS)
def test_formats(tmp_path: Path, kind: str) -> None:
    path = KINDS[kind](tmp_path)
    before = sorted(tmp_path.iterdir())
    vector = read(path)
    assert sorted(tmp_path.iterdir()) == before
    assert dict(zip(vector.columns["crop"].to_pylist(), vector.geometries_n, strict=True)).keys() == set(NAMES)
    assert shapely.total_bounds(vector.geometries_n) == pytest.approx(shapely.total_bounds(SQUARES), abs=0.01)
    assert fingerprint(path) == fingerprint(path)
    labels = read_labels(path, "crop", None, None, ZONES)
    assert sorted(labels.classes_n) == NAMES


def test_geoparquet_is_read_where_its_crs_says_and_near_the_tiles_only(tmp_path: Path) -> None:
    path = parquet(tmp_path)
    near = read(path, box=lambda crs: (4.011, 50.0, 4.012, 50.1))
    assert near.columns["crop"].to_pylist() == ["Maïs"]
    assert near.fids_n.tolist() == [1]
    with refused("a.parquet: has no CRS"):
        read(parquet(tmp_path, None))
    pq.write_table(pa.table({"crop": NAMES}), path)
    with refused("Parquet without geometries"):
        read(path)
    path.write_bytes(b"PAR1 and no more")
    with refused("a.parquet: cannot be read as a vector file"):
        read(path)


def test_styles_that_qgis_saves_are_no_layer(tmp_path: Path) -> None:
    path = write(tmp_path / "a.gpkg", "GPKG")
    with sqlite3.connect(path) as base:
        base.execute("CREATE TABLE layer_styles (id INTEGER PRIMARY KEY, styleQML TEXT)")
        base.execute(
            "INSERT INTO gpkg_contents (table_name, data_type, identifier, srs_id) "
            "VALUES ('layer_styles', 'attributes', 'layer_styles', 0)"
        )
    base.close()
    assert len(read(path)) == 3


@pytest.mark.parametrize(
    ("made", "stated", "said"),
    [
        ("UTF-8", None, ""),
        ("CP1252", None, ""),
        ("CP1252", "1252", ""),
        ("UTF-8", "ISO-8859-1", "'BlÃ©', which looks like 'Blé'"),
        ("CP1252", "UTF-8", "its text is not in the encoding that the file states"),
    ],
)
def test_encodings_of_shapefiles(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], made: str, stated: str | None, said: str
) -> None:
    path = write(tmp_path / "a.shp", "ESRI Shapefile", encoding=made)
    (tmp_path / "a.cpg").unlink()
    if stated:
        (tmp_path / "a.cpg").write_text(stated)
    else:  # no language driver either, as R and QGIS of old wrote them
        dbf = bytearray((tmp_path / "a.dbf").read_bytes())
        dbf[29] = 0
        (tmp_path / "a.dbf").write_bytes(dbf)
    assert sorted(read_labels(path, "crop", None, None, ZONES, encoding=made).classes_n) == NAMES
    assert not capsys.readouterr().err
    if said.startswith("its"):
        with refused(said):
            read_labels(path, "crop", None, None, ZONES)
        return
    names = sorted(read_labels(path, "crop", None, None, ZONES).classes_n)
    assert said or names == NAMES
    assert said in capsys.readouterr().err
    read_vector(path, key="[region] geometry")  # its text is of no interest


def test_an_unreadable_crs_member_is_not_taken_for_wgs84(tmp_path: Path) -> None:
    path = tmp_path / "a.geojson"
    feature = {"type": "Feature", "properties": {"crop": "a"}, "geometry": {"type": "Point", "coordinates": [4, 50]}}
    named = {"type": "name", "properties": {"name": "EPSG:999999"}}
    path.write_text(json.dumps({"type": "FeatureCollection", "features": [feature], "crs": named}))
    with refused("a.geojson: its CRS is not understood"):
        read_labels(path, "crop", None, None, ZONES)


def test_a_prj_that_is_no_text_is_one_line(tmp_path: Path) -> None:
    path = write(tmp_path / "a.shp", "ESRI Shapefile")
    text = (tmp_path / "a.prj").read_bytes()
    (tmp_path / "a.prj").write_bytes(text.replace(b"WGS", b"W\xa0S"))
    with refused("a.shp: cannot be read as a vector file|a.shp: its CRS|a.shp: its text"):
        read(path)


def test_no_file_leads_to_another_one(tmp_path: Path) -> None:
    secret = write(tmp_path / "secret.gpkg", "GPKG")
    vrt = (
        f'<OGRVRTDataSource><OGRVRTLayer name="secret"><SrcDataSource>{secret}</SrcDataSource></OGRVRTLayer>'
        "</OGRVRTDataSource>"
    )
    for name in ("a.vrt", "a.geojson", "a.gml", "a.kml"):
        (tmp_path / name).write_text(vrt)
        with refused("cannot be read as a vector file|has no layer"):
            read(tmp_path / name)
    with zipfile.ZipFile(tmp_path / "v.zip", "w") as archive:
        archive.writestr("a.geojson", vrt)
    with refused("v.zip: cannot be read as a vector file"):
        read(tmp_path / "v.zip")
    for text in ("PG:host=localhost", f"/vsizip/{tmp_path}/v.zip", "/vsicurl/http://localhost/a.geojson", "<OGRVRT/>"):
        with refused("no such file|cannot be read"):
            read(Path(text))
    assert set(pyogrio.list_drivers()) <= DRIVERS


def test_a_query_is_not_run(tmp_path: Path) -> None:
    path = write(tmp_path / "a.gpkg", "GPKG")
    (table,) = (str(name) for name, _ in pyogrio.list_layers(path))
    with sqlite3.connect(path) as base:
        rows = "WITH RECURSIVE r(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM r LIMIT 9)"  # without one it never ends
        base.execute(f"CREATE VIEW trap AS {rows} SELECT n AS fid, geom, crop FROM r, {table}")
        for of in ("gpkg_contents", "gpkg_geometry_columns"):
            names = [row[1] for row in base.execute(f"PRAGMA table_info({of})") if row[1] != "identifier"]
            rest = ", ".join(names[1:])
            base.execute(f"INSERT INTO {of} ({names[0]}, {rest}) SELECT 'trap', {rest} FROM {of}")
    base.close()
    with zipfile.ZipFile(tmp_path / "z.zip", "w") as archive:
        archive.write(path, "a.gpkg")
    renamed = shutil.copy(path, tmp_path / "a.dat")
    for one in (path, tmp_path / "z.zip", renamed):
        assert len(read_vector(one, key="[labels] path", layer=table)) == 3
        with refused("layer 'trap' is no table but a query, which smalti does not run"):
            read_vector(one, key="[labels] path", layer="trap")


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.gpkg")
    with refused("is no regular file"):
        read(tmp_path / "a.gpkg")
    with refused("is no regular file"):
        fingerprint(tmp_path / "a.gpkg")


@pytest.mark.parametrize("name", ["a.tab", "a[1].shp", "a.gpkg"])
def test_every_file_of_a_data_set_counts(tmp_path: Path, name: str) -> None:
    path = write(tmp_path / name, {"b": "MapInfo File", "p": "ESRI Shapefile", "g": "GPKG"}[name[-1]])
    (tmp_path / "b.gpkg-wal").write_bytes(b"of another")
    before = fingerprint(path)
    (tmp_path / "a.gpkg-wal").write_bytes(b"")
    assert fingerprint(path) == before
    beside = {"b": path.with_suffix(".dat"), "p": path.with_suffix(".dbf"), "g": tmp_path / "a.gpkg-wal"}[name[-1]]
    beside.write_bytes((beside.read_bytes() if beside.exists() else b"") + b"edited")
    assert fingerprint(path) != before


def test_what_gdal_remarks_is_said_in_smaltis_lines(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "a.geojson"
    odd = {"type": "Feature", "properties": {"crop": "a"}, "geometry": {"type": "Sphere", "coordinates": [4, 50]}}
    path.write_text(json.dumps({"type": "FeatureCollection", "features": [odd]}))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        read(path)
    assert f"Warning: {path}: " in " ".join(capsys.readouterr().err.split())


_number = st.one_of(st.floats(), st.integers(-(10**12), 10**12), st.sampled_from([4, 50, 4.001, 50.001, 180, 1e308]))
_coordinate = st.one_of(_number, st.none(), st.text(max_size=3))
_nested: Any = st.recursive(_coordinate, lambda inner: st.lists(inner, max_size=5), max_leaves=24)
_ring = st.lists(st.tuples(_number, _number).map(list), min_size=0, max_size=6)
_geometry: Any = st.one_of(
    st.none(),
    st.builds(
        lambda kind, places: {"type": kind, "coordinates": places},
        st.sampled_from(["Point", "Polygon", "MultiPolygon", "LineString", "MultiPoint", "Sphere"]),
        st.one_of(_nested, st.lists(_ring, max_size=3), st.tuples(_number, _number).map(list)),
    ),
    st.just(json.loads(shapely.to_geojson(SQUARES[0]))),
)
_geometry = st.one_of(
    _geometry, st.lists(_geometry, max_size=3).map(lambda g: {"type": "GeometryCollection", "geometries": g})
)
_value = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=8), st.lists(st.integers(), max_size=2)
)
_crs = st.sampled_from(
    ["EPSG:4326", "EPSG:32631", "EPSG:5773", "IAU_2015:30100", "EPSG:4978", "EPSG:999999", "EPSG:7415", "", None, 5]
)


@settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(features=st.lists(st.tuples(_geometry, _value), max_size=4), crs=_crs, stated=st.booleans())
def test_random_files_give_labels_or_one_line(
    tmp_path: Path, features: list[tuple[Any, Any]], crs: Any, stated: bool
) -> None:
    path = tmp_path / "a.geojson"
    members: dict[str, Any] = {"crs": {"type": "name", "properties": {"name": crs}}} if stated else {}
    content = [{"type": "Feature", "properties": {"crop": v}, "geometry": g} for g, v in features]
    path.write_text(json.dumps({"type": "FeatureCollection", "features": content, **members}))
    labels: LabelSet | None = None
    message = str(path)
    try:
        labels = read_labels(path, "crop", None, None, ZONES)
    except SmaltiError as error:
        message = str(error)
    assert str(path) in message
    assert "\n" not in message
    assert labels is None or np.isfinite(shapely.bounds(labels.geometries_n)).all()


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(content=st.binary(max_size=300), suffix=st.sampled_from([".geojson", ".gpkg", ".shp", ".zip", ".csv", ".kml"]))
def test_random_bytes_give_one_line(tmp_path: Path, content: bytes, suffix: str) -> None:
    shutil.rmtree(tmp_path / "f", ignore_errors=True)
    (tmp_path / "f").mkdir()
    path = tmp_path / "f" / f"a{suffix}"
    path.write_bytes(content)
    with refused("a[.]"):
        read(path)


def test_edits_that_are_in_a_geopackages_journal_only_are_seen_and_reading_changes_nothing(tmp_path: Path) -> None:
    path = write(tmp_path / "a.gpkg", "GPKG", SPATIAL_INDEX="NO")  # whose triggers sqlite3 cannot run
    before = fingerprint(path)
    base = sqlite3.connect(path)
    base.execute("PRAGMA journal_mode = WAL")
    base.execute("PRAGMA wal_autocheckpoint = 0")
    base.execute("UPDATE a SET crop = 'Orge' WHERE crop = 'Blé'")
    base.commit()
    edited = fingerprint(path)
    assert edited != before
    assert read(path).columns["crop"].to_pylist() == ["Orge", "Maïs", "Zuckerrübe"]
    assert fingerprint(path) == edited
    base.close()
