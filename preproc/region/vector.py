"""Vector files as people have them -> geometries, attributes and a CRS. The only place that opens one.

GDAL opens files by a list of drivers: none of them reads a second file that the first one names, asks a database or
goes to the network (no VRT, no WFS ...). GeoParquet and CSV are read here, GDAL's wheels know no Parquet.
"""

from __future__ import annotations

import codecs
import csv
import json
import re
import shutil
import warnings
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import shapely
from numpy.typing import NDArray
from pyproj import CRS, Transformer
from pyproj.exceptions import CRSError, ProjError

from infer.contract import SmaltiError, parse_json, sha256_file, sha256_json
from preproc.run.progress import say

Box = tuple[float, float, float, float]
"""West, south, east, north."""

DRIVERS = frozenset(
    {"ESRI Shapefile", "GPKG", "GeoJSON", "GeoJSONSeq", "ESRIJSON", "TopoJSON", "FlatGeobuf", "LIBKML", "KML", "GML"}
    | {"MapInfo File", "OpenFileGDB", "GPX", "MEM"}
)
"""What GDAL may open (MEM is its own memory)."""
_SLIPS = (UnboundLocalError, RecursionError, OverflowError, MemoryError)
"""How libraries fail on absurd files: pyogrio by an unset variable, of a .prj that is not UTF-8."""
_PARQUET, _CSV, _JSON = (".parquet", ".geoparquet"), (".csv", ".tsv"), (".geojson", ".json", ".geojsonl", ".geojsons")
_ZIPPED = (".shp", ".gpkg", *_JSON, ".fgb", ".kml", ".gml", ".tab", ".mif")
_FAMILIES = (
    (".shp", ".shx", ".dbf", ".prj", ".cpg"),
    (".tab", ".dat", ".map", ".id", ".ind"),
    (".mif", ".mid"),
    (".gml", ".xsd"),
)
"""Files of one name that are one data set; the first is the one that is opened."""
JOURNALS = ("-wal", "-journal")
"""Endings of what SQLite keeps beside a GeoPackage: edits that are not in it yet."""
_SQLITE = b"SQLite format 3\0"
"""How a GeoPackage begins."""
_LONGITUDE, _LATITUDE = ("longitude", "lon", "lng", "long"), ("latitude", "lat")
_WKT = ("wkt", "geometry", "geom", "the_geom")
_CSV_FIELD = 1 << 26
_DEGREES = 361.0
_FORMATS = "GeoPackage, GeoJSON, shapefile (zipped as well), GeoParquet, FlatGeobuf, KML, KMZ, GML, MapInfo, CSV"


@dataclass(frozen=True)
class Vector:
    """The features (N) of one layer."""

    path: Path
    crs: CRS
    """On Earth, geographic or projected, with a transformation to WGS 84."""
    geometries_n: NDArray[Any]
    """(N,) shapely geometries in two dimensions, None where a feature has none."""
    fids_n: NDArray[np.int64]
    """(N,) feature numbers in the file."""
    columns: Mapping[str, pa.ChunkedArray]
    """The attributes that were asked for, each (N,); whole numbers, booleans and nulls stay what they are."""

    def __len__(self) -> int:
        return len(self.fids_n)


@dataclass(frozen=True)
class _Opened:
    """A layer before its features are read."""

    crs: CRS
    fields: Sequence[str]
    read: Callable[[Sequence[str], Box | None], tuple[NDArray[np.int64], NDArray[Any], dict[str, pa.ChunkedArray]]]
    """Attributes and box -> feature numbers, geometries as WKB (or shapely objects), attributes."""
    bounds: Sequence[float] | None = None
    cut: bool = False
    """The format cuts names of attributes to ten characters."""


def read_vector(
    path: Path,
    *,
    key: str,
    layer: str | None = None,
    encoding: str | None = None,
    attributes: Sequence[str] = (),
    box: Callable[[CRS], Box | None] | None = None,
) -> Vector:
    """Read a layer of a vector file.

    Args:
        path: a file, or the folder of a shapefile or file geodatabase.
        key: section and key of run.toml that name it, for messages, for example "[labels] path".
        layer: which one, of a file with several that have geometries.
        encoding: of the text, where the file states none or a wrong one.
        attributes: columns wanted.
        box: from the CRS of the file to the box in it that is wanted; None reads all.

    Raises:
        SmaltiError: one line that names the file, what is wrong and what to do.
    """
    section = key.split()[0]
    if not path.exists():
        raise SmaltiError(f"{path}: no such file: {key} names it")
    if not (path.is_file() or path.is_dir()):
        raise SmaltiError(f"{path}: is no regular file, which {key} must name")
    with _one_line(path, section, encoding), _settled(path) as source:
        if path.suffix.lower() in _PARQUET:
            opened = _open_parquet(path)
        elif path.suffix.lower() in _CSV:
            opened = _open_csv(path, encoding)
        else:
            opened = _open_ogr(path, source, section, layer, encoding, bool(attributes))
        _check_degrees(path, opened.crs, opened.bounds)
        for name in attributes:
            if name not in opened.fields:
                raise SmaltiError(_no_attribute(path, section, name, opened))
        wanted = list(dict.fromkeys(attributes))
        fids, raw, columns = opened.read(wanted, None if box is None else box(opened.crs))
    geometries = _geometries(path, raw)
    if len(geometries):
        _check_degrees(path, opened.crs, shapely.total_bounds(geometries))
    return Vector(path, opened.crs, geometries, fids, columns)


def fingerprint(path: Path, *, section: str = "labels") -> str:
    """SHA-256 of a vector file with all files that belong to it (a shapefile's .dbf, edits in a GeoPackage's -wal).

    Args:
        path: the file or folder.
        section: of run.toml, for messages.

    Raises:
        SmaltiError: if it is not there.
    """
    try:
        if path.is_dir():
            files = sorted(file for file in path.iterdir() if file.is_file() and not file.name.endswith("-shm"))
        else:
            files = _siblings(path)
        if not files or not path.exists():
            raise SmaltiError(f"{path}: no such file: correct the path in [{section}]")
        if not (path.is_dir() or path.is_file()):
            raise SmaltiError(f"{path}: is no regular file: correct the path in [{section}]")
        if files == [path]:
            return sha256_file(path)
        return sha256_json([(file.name, sha256_file(file)) for file in files])
    except OSError as error:
        raise SmaltiError(f"{path}: cannot be read: {error}") from error


def _siblings(path: Path) -> list[Path]:
    """The file and what belongs to it, by name. Never a pattern: names may hold brackets."""
    family = next((family for family in _FAMILIES if path.suffix.lower() == family[0]), ())
    journals = [path.with_name(path.name + ending) for ending in JOURNALS]
    beside = [
        file
        for file in (path.parent.iterdir() if family and path.parent.is_dir() else ())
        if file.stem == path.stem and file.suffix.lower() in family and file != path and file.is_file()
    ]
    beside += [file for file in journals if file.is_file() and file.stat().st_size]
    return sorted([path, *beside])


@contextmanager
def _settled(path: Path) -> Iterator[Path]:
    """The file, or a copy of one with edits in a journal: SQLite would write them into it while it is read."""
    journal = path.with_name(path.name + JOURNALS[0])
    if not (path.is_file() and journal.is_file() and journal.stat().st_size):
        yield path
        return
    with TemporaryDirectory(prefix="smalti-") as folder:
        for file in (path, journal):
            shutil.copyfile(file, Path(folder) / file.name)
        yield Path(folder) / path.name


@contextmanager
def _one_line(path: Path, section: str, encoding: str | None) -> Iterator[None]:
    """Libraries' errors and warnings become one line each that names the file."""
    ogr_errors = _ogr_errors()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            yield
        except SmaltiError:
            raise
        except UnicodeError as error:
            stated = f"{encoding}, as {section} encoding says" if encoding else "in the encoding that the file states"
            raise SmaltiError(
                f'{path}: its text is not {stated} ({_flat(error)}): set {section} encoding, for example to "cp1252"'
            ) from error
        except (*ogr_errors, *_SLIPS, ValueError, pa.ArrowException, OSError, zipfile.BadZipFile) as error:
            raise SmaltiError(
                f"{path}: cannot be read as a vector file ({_flat(error)}): smalti reads {_FORMATS}"
            ) from error
    for message in list(dict.fromkeys(_flat(warning.message) for warning in caught))[:3]:
        say(f"Warning: {path}: {message}")


def _ogr_errors() -> tuple[type[Exception], ...]:
    # here and below: pandas comes with it, and most commands open no vector file
    from pyogrio.errors import DataLayerError, DataSourceError, FeatureError, FieldError, GeometryError

    return DataLayerError, DataSourceError, FeatureError, FieldError, GeometryError


def _flat(error: object) -> str:
    text = " ".join(str(error).split()).partition("; It might help to specify the correct driver")[0]
    return text if len(text) <= 300 else text[:300] + "..."


def _no_attribute(path: Path, section: str, name: str, opened: _Opened) -> str:
    hint = ""
    if opened.cut and name[:10] in opened.fields:
        hint = f" (shapefiles cut names to ten characters: write {name[:10]!r})"
    listed = ", ".join(opened.fields) or "none"
    return f"{path}: has no attribute {name!r}, which {section} names; it has: {listed}{hint}"


@lru_cache(maxsize=1)
def _restrict_drivers() -> None:
    """Take all other drivers for vectors out of this process's GDAL."""
    import pyogrio
    from pyogrio.core import _register_drivers

    others = [name for name in pyogrio.list_drivers() if name not in DRIVERS]
    before = pyogrio.get_gdal_config_option("GDAL_SKIP")
    pyogrio.set_gdal_config_options({"GDAL_SKIP": ",".join(others)})
    _register_drivers()  # GDAL drops what GDAL_SKIP names whenever drivers are registered
    pyogrio.set_gdal_config_options({"GDAL_SKIP": before})
    left = sorted(set(pyogrio.list_drivers()) - DRIVERS)
    if left:
        raise SmaltiError(
            f"GDAL {pyogrio.__gdal_version_string__}: its drivers {', '.join(left)} cannot be switched off"
        )


def _open_ogr(path: Path, source: Path, section: str, layer: str | None, encoding: str | None, text: bool) -> _Opened:
    import pyogrio

    _restrict_drivers()
    where, layer = _gdal_path(source, section, layer)
    shapefile = (isinstance(where, str) and where.lower().endswith(".shp")) or (
        path.is_dir() and path.suffix.lower() != ".gdb"
    )
    codec = None if encoding is None or shapefile else encoding  # GDAL itself knows it of shapefiles only
    if not text and shapefile:
        encoding = (
            "iso8859-1"  # any bytes can be read so: names of attributes that nobody asks for are no reason to stop
        )
    options: dict[str, Any] = {"encoding": codecs.lookup(encoding).name} if encoding and shapefile else {}
    layers = [(str(name), kind) for name, kind in pyogrio.list_layers(where)]
    drawn = [name for name, kind in layers if kind is not None] or [name for name, _ in layers]
    if layer is not None and layer not in [name for name, _ in layers]:
        raise SmaltiError(f"{path}: has no layer {layer!r} ({section} layer); it has: {', '.join(drawn)}")
    if layer is None and len(drawn) != 1:
        raise SmaltiError(
            f"{path}: has {len(drawn)} layers ({', '.join(drawn)}): choose one with {section} layer"
            if drawn
            else f"{path}: has no layer: {section} must name a file with features"
        )
    layer = drawn[0] if layer is None else layer
    if _is_sqlite(where):
        _refuse_queries(path, where, layer)
    info = pyogrio.read_info(where, layer=layer, **options)
    guess = shapefile and not encoding and info["encoding"] != "UTF-8"
    if not info["geometry_type"] and info["driver"] not in ("GeoJSON", "GeoJSONSeq", "GML"):
        raise SmaltiError(f"{path}: layer {layer!r} has no geometries")
    if path.suffix.lower() in _JSON and path.is_file():
        _check_legacy_crs(path)

    def read(names: Sequence[str], box: Box | None) -> Any:
        # Geometries by the one way that straightens curves and drops M, attributes by the one that keeps nulls.
        _, fids, wkb, _ = pyogrio.raw.read(
            where, layer=layer, columns=[], bbox=box, return_fids=True, force_2d=True, **options
        )
        if not names:
            return fids, wkb, {}
        meta, table = pyogrio.raw.read_arrow(
            where, layer=layer, columns=list(names), bbox=box, return_fids=True, **options
        )
        known = table.column(meta["fid_column"] or "OGC_FID").to_numpy()
        order = np.argsort(known, kind="stable")  # the two need not agree on what touches the box
        at = (
            order[np.clip(np.searchsorted(known, fids, sorter=order), 0, max(len(known) - 1, 0))]
            if len(known)
            else order
        )
        if len(at) != len(fids) or (known[at] != fids).any():
            raise SmaltiError(f"{path}: layer {layer!r} changed while it was read: run again")
        return fids, wkb, {name: _decoded(table.column(name).take(pa.array(at)), codec, guess) for name in names}

    return _Opened(
        _crs(path, info["crs"]), [str(name) for name in info["fields"]], read, info["total_bounds"], shapefile
    )


def _is_sqlite(where: str | bytes) -> bool:
    """Whether GDAL will find a database there, whatever it is called."""
    if isinstance(where, bytes):
        return where.startswith(_SQLITE)
    if where.startswith("/vsizip/{"):
        outer, _, member = where.removeprefix("/vsizip/{").partition("}/")
        with zipfile.ZipFile(outer) as archive, archive.open(member) as file:
            return file.read(len(_SQLITE)) == _SQLITE
    if Path(where).is_dir():
        return False
    with Path(where).open("rb") as file:
        return file.read(len(_SQLITE)) == _SQLITE


def _refuse_queries(path: Path, where: str | bytes, layer: str) -> None:
    """A layer of a GeoPackage may be a view, a query of its author's that may never end: rows of tables alone are read.

    Raises:
        SmaltiError: if the layer is not a table.
    """
    import pyogrio

    name = layer.replace("'", "''")
    made = pyogrio.raw.read(
        where, sql=f"SELECT sql FROM sqlite_master WHERE name = '{name}' COLLATE NOCASE", read_geometry=False
    )[3][0]
    kinds = {str(text).upper().split()[1] for text in made if text is not None}
    if "TABLE" not in kinds or not kinds <= {"TABLE", "INDEX", "TRIGGER"}:
        raise SmaltiError(
            f"{path}: layer {layer!r} is no table but a query, which smalti does not run: save it as a table"
        )


def _decoded(column: pa.ChunkedArray, codec: str | None, guess: bool) -> pa.ChunkedArray:
    """Text whose bytes GDAL passes on as they are: shapefiles and MapInfo files that state no encoding.

    Args:
        column: any attribute.
        codec: what the user says; None leaves UTF-8.
        guess: take what is not UTF-8 for Windows-1252, as shapefiles without a .cpg have been written for decades.
    """
    if not (pa.types.is_string(column.type) or pa.types.is_large_string(column.type)):
        return column
    raw = column.cast(pa.large_binary()).to_pylist()
    if codec is None:
        try:
            column.to_pylist()
            return column
        except UnicodeDecodeError:
            if not guess:
                raise
            codec = "cp1252"
    return pa.chunked_array([pa.array([None if text is None else text.decode(codec) for text in raw], pa.string())])


def _gdal_path(path: Path, section: str, layer: str | None) -> tuple[str | bytes, str | None]:
    """What GDAL is to open: the path, the content, or the one data set in a zip file (then the layer is chosen)."""
    if path.suffix.lower() == ".gml" and path.is_file():
        return path.read_bytes(), layer  # of a file on disk GDAL writes a .gfs beside it
    if path.suffix.lower() not in (".zip", ".kmz") or path.is_dir() or not zipfile.is_zipfile(path):
        return str(path), layer
    with zipfile.ZipFile(path) as archive:
        names = [name for name in archive.namelist() if "__MACOSX" not in name and ".." not in Path(name).parts]
    members = [name for name in names if Path(name).suffix.lower() in _ZIPPED]
    if len(members) > 1 and layer is not None:
        members, layer = [name for name in members if Path(name).stem == layer], None
    if len(members) != 1:
        found = ", ".join(Path(name).stem for name in members) or "nothing that smalti reads"
        raise SmaltiError(f"{path}: holds {found}: zip one data set, or choose one with {section} layer")
    return f"/vsizip/{{{path}}}/{members[0]}", layer


def _open_parquet(path: Path) -> _Opened:
    file = pq.ParquetFile(path)
    text = (file.schema_arrow.metadata or {}).get(b"geo")
    if text is None:
        raise SmaltiError(f"{path}: is Parquet without geometries (no `geo` in its metadata): write GeoParquet")
    try:
        geo = parse_json(text)
        primary = str(geo["primary_column"])
        column = geo["columns"][primary]
        encoding, stated = column["encoding"], column.get("crs", "OGC:CRS84")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise SmaltiError(
            f"{path}: its GeoParquet metadata cannot be read ({_flat(repr(error))}): write it again"
        ) from error
    if encoding != "WKB" or primary not in file.schema_arrow.names:
        raise SmaltiError(f"{path}: its geometries are not WKB in column {primary!r}: write GeoParquet with WKB")

    def read(names: Sequence[str], box: Box | None) -> Any:
        fids, shapes, kept, seen = [], [], [], 0
        wanted = list(dict.fromkeys([*names, primary]))
        for batch in file.iter_batches(batch_size=65536, columns=wanted):
            wkb = np.array(batch.column(primary).to_pylist(), dtype=object)
            geometries = _geometries(path, wkb, first=seen)
            inside = np.ones(len(wkb), dtype=bool)
            if box is not None:
                bounds = shapely.bounds(geometries).reshape(-1, 4)
                outside = (bounds[:, 0] > box[2]) | (bounds[:, 2] < box[0]) | (bounds[:, 1] > box[3])
                inside = ~(outside | (bounds[:, 3] < box[1]))  # what has no geometry stays, and is counted
            fids.append(np.flatnonzero(inside) + seen)
            shapes.append(geometries[inside])
            kept.append(batch.select(list(names)).filter(pa.array(inside)))
            seen += len(wkb)
        empty: list[Any] = [np.empty(0, dtype=object)]
        table = pa.Table.from_batches(kept, pa.schema([file.schema_arrow.field(name) for name in names]))
        numbers = np.concatenate(fids) if fids else np.empty(0, dtype=np.int64)
        return numbers, np.concatenate(shapes or empty), {name: table.column(name) for name in names}

    return _Opened(_crs(path, stated), [name for name in file.schema_arrow.names if name != primary], read)


def _open_csv(path: Path, encoding: str | None) -> _Opened:
    """Points by columns of longitude and latitude, or WKT; WGS 84, degrees (a CSV has no place for another CRS)."""
    csv.field_size_limit(_CSV_FIELD)
    with path.open(encoding=encoding or "utf-8-sig", newline="") as file:
        head = file.readline()
        delimiter = max(",;\t|", key=head.count)
        file.seek(0)
        try:
            rows = [row for row in csv.reader(file, delimiter=delimiter) if row]
        except csv.Error as error:
            raise SmaltiError(f"{path}: is not CSV ({error})") from error
    names = [name.strip() for name in rows[0]] if rows else []
    place = {name.casefold(): index for index, name in reversed(list(enumerate(names)))}
    x, y, wkt = (
        next((place[name] for name in known if name in place), None) for known in (_LONGITUDE, _LATITUDE, _WKT)
    )
    if (x is None or y is None) and wkt is None:
        raise SmaltiError(
            f"{path}: has no columns longitude and latitude (degrees, WGS 84) and none named WKT; "
            f"it has: {', '.join(names) or 'none'}"
        )
    body = [row + [""] * (len(names) - len(row)) for row in rows[1:]]
    shapes = np.empty(len(body), dtype=object)
    for index, row in enumerate(body):
        try:
            if x is not None and y is not None:
                here = [row[at].strip() for at in (x, y)]
                # a decimal comma, where commas do not part the columns
                shapes[index] = shapely.Point(*(float(text.replace(",", ".")) for text in here)) if all(here) else None
            else:
                assert wkt is not None
                shapes[index] = shapely.from_wkt(row[wkt]) if row[wkt].strip() else None
        except (ValueError, shapely.errors.GEOSException) as error:
            raise SmaltiError(f"{path}: row {index + 2}: its place cannot be read ({_flat(error)})") from error

    def read(wanted: Sequence[str], box: Box | None) -> Any:
        inside = np.ones(len(shapes), dtype=bool)
        if box is not None:
            inside = shapely.is_missing(shapes) | shapely.intersects(shapely.box(*box), shapes)
        chosen = np.flatnonzero(inside)
        columns = {name: _typed([body[index][names.index(name)].strip() for index in chosen]) for name in wanted}
        return chosen.astype(np.int64), shapes[chosen], columns

    return _Opened(CRS.from_user_input("OGC:CRS84"), names, read)


def _typed(texts: Sequence[str]) -> pa.ChunkedArray:
    """Text of a CSV as whole numbers where all of it is ("1.0" is how tables with gaps write them), else as it is."""
    filled = [text for text in texts if text]
    if filled and all(re.fullmatch(r"-?(0|[1-9]\d{0,17})(\.0+)?", text) for text in filled):
        return pa.chunked_array([pa.array([int(text.split(".")[0]) if text else None for text in texts], pa.int64())])
    return pa.chunked_array([pa.array([text or None for text in texts], pa.string())])


def _geometries(path: Path, raw: NDArray[Any], first: int = 0) -> NDArray[Any]:
    """Geometries in two dimensions; what is no geometry (a ring that is not closed ...) is named.

    A geometry with a coordinate that is not finite lies nowhere: it is none.
    """
    try:
        with np.errstate(invalid="ignore"):  # numpy's remark on NaN among coordinates; they are dealt with below
            shapes = shapely.force_2d(shapely.from_wkb(raw)) if _is_wkb(raw) else shapely.force_2d(raw)
    except (shapely.errors.GEOSException, TypeError):
        for number, wkb in enumerate(raw, start=first + 1):
            try:
                shapely.from_wkb(wkb)
            except (shapely.errors.GEOSException, TypeError) as error:
                raise SmaltiError(
                    f"{path}: feature {number} has a geometry that cannot be read ({_flat(error)}): repair it"
                ) from error
        raise
    result: NDArray[Any] = np.array(shapes, dtype=object)
    places, of = shapely.get_coordinates(result, return_index=True)
    result[np.unique(of[~np.isfinite(places).all(axis=1)])] = None
    return result


def _is_wkb(raw: NDArray[Any]) -> bool:
    return any(isinstance(value, bytes) for value in raw)


def _crs(path: Path, stated: Any) -> CRS:
    """The CRS of a file; files without one (shapefiles without .prj, GeoPackages with an undefined one) are refused."""
    advice = "declare the one it was drawn in (for example with `ogr2ogr -a_srs EPSG:...`)"
    if not stated:
        raise SmaltiError(f"{path}: has no CRS (a shapefile's is in its .prj): {advice}")
    try:
        crs = CRS.from_json_dict(stated) if isinstance(stated, dict) else CRS.from_user_input(stated)
        if not (crs.is_geographic or crs.is_projected) or crs.name.lower().startswith("undefined"):
            raise SmaltiError(f"{path}: its CRS, {crs.name!r}, is not one of places on Earth: {advice}")
    except (CRSError, KeyError, TypeError) as error:
        raise SmaltiError(f"{path}: its CRS is not understood ({_flat(error)}): {advice}") from error
    try:
        Transformer.from_crs(crs, 4326, always_xy=True)
    except (ProjError, CRSError) as error:
        raise SmaltiError(f"{path}: its CRS, {crs.name!r}, has no way to degrees on Earth: {advice}") from error
    return crs


def _check_legacy_crs(path: Path) -> None:
    """GDAL honours a GeoJSON's `crs` member, but reads one it does not understand as WGS 84: refuse it instead."""
    content = path.read_bytes()
    if b'"crs"' not in content:
        return
    try:
        whole = parse_json(content)
    except ValueError:  # one feature a line (GeoJSONSeq): such files have no `crs` of their own
        return
    crs = whole.get("crs") if isinstance(whole, dict) else None
    if crs is None:
        return
    try:
        CRS.from_user_input(crs["properties"]["name"])
    except (CRSError, KeyError, TypeError) as error:
        raise SmaltiError(
            f"{path}: its CRS is not understood ({_flat(json.dumps(crs))}): declare its true one"
        ) from error


def _check_degrees(path: Path, crs: CRS, bounds: Sequence[float] | None) -> None:
    """Refuse metres that are declared as degrees (a GeoJSON in another CRS than RFC 7946 asks for)."""
    if bounds is None or not crs.is_geographic or not np.isfinite(bounds).all():
        return
    turn = 2 * np.pi / (crs.axis_info[0].unit_conversion_factor or 1) * (_DEGREES / 360)  # 400 grads
    west, south, east, north = bounds
    if not (west >= -turn and east <= turn and south >= -turn / 4 and north <= turn / 4):
        raise SmaltiError(
            f"{path}: coordinates from {west:.0f}, {south:.0f} to {east:.0f}, {north:.0f} are not degrees, as its CRS "
            f"({crs.name}) says: declare its true one"
        )
