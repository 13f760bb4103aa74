"""Field data: a vector file of points or polygons -> geometries with a class and a group each, checked and counted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyogrio
import shapely
from numpy.typing import NDArray
from pyogrio.errors import DataLayerError, DataSourceError
from pyproj import CRS, Transformer
from pyproj.exceptions import CRSError, ProjError

from infer.contract import SmaltiError, sha256_file, sha256_json

_POINTS = (shapely.GeometryType.POINT, shapely.GeometryType.MULTIPOINT)
_POLYGONS = (shapely.GeometryType.POLYGON, shapely.GeometryType.MULTIPOLYGON)
_MARGIN_M = 2000.0
"""Labels are read this far beyond the tiles, so that a slightly bent outline in another CRS loses nothing."""


@dataclass(frozen=True)
class LabelSet:
    """Labelled features (N), in the CRS of their file."""

    path: Path
    crs: CRS
    geometries_n: NDArray[Any]
    """(N,) valid, non-empty shapely (multi)points and (multi)polygons."""
    classes_n: NDArray[Any]
    """(N,) str or int."""
    groups_n: NDArray[Any]
    """(N,) str."""
    fids_n: NDArray[np.int64]
    """(N,) feature numbers in the file."""
    counts: Mapping[str, int]
    """What was dropped or repaired, by reason."""

    def __len__(self) -> int:
        return len(self.geometries_n)


def fingerprint(path: Path, *, section: str = "labels") -> str:
    """SHA-256 of a vector file with its companions (a shapefile's .dbf, the files of a folder).

    Args:
        path: the file or folder.
        section: of run.toml, for messages.

    Raises:
        SmaltiError: if it is not there.
    """
    if path.is_dir():
        files = sorted(file for file in path.rglob("*") if file.is_file())
    elif path.suffix.lower() == ".shp":
        files = sorted(file for file in path.parent.glob(f"{path.stem}.*") if file.suffix.lower() in _SHAPEFILE)
    else:
        files = [path]
    if not files or not path.exists():
        raise SmaltiError(f"{path}: no such file: correct the path in [{section}]")
    try:
        if files == [path]:
            return sha256_file(path)
        return sha256_json([(file.name, sha256_file(file)) for file in files])
    except OSError as error:
        raise SmaltiError(f"{path}: cannot be read: {error}") from error


_SHAPEFILE = (".shp", ".shx", ".dbf", ".prj", ".cpg")


def read_labels(
    path: Path,
    class_attribute: str,
    group_attribute: str | None,
    layer: str | None,
    zones: Mapping[int, Sequence[Any]],
    *,
    section: str = "labels",
) -> LabelSet:
    """Read the labels that lie near the tiles.

    Args:
        path: any vector format that GDAL reads.
        class_attribute: text or whole numbers.
        group_attribute: what belongs together; None makes each feature its own group.
        layer: which layer of a file with several.
        zones: EPSG code -> (west, south, east, north) in metres around its tiles; limits what is read.
        section: of run.toml, for messages.

    Raises:
        SmaltiError: if the file, layer, CRS, attribute, values or geometries are not usable, in one line.
    """
    layer = _choose_layer(path, layer, section)
    info = _info(path, layer)
    crs = _crs(path, info["crs"])
    _check_degrees(path, crs, info["total_bounds"])
    wanted = [class_attribute] + ([group_attribute] if group_attribute is not None else [])
    available = [str(name) for name in info["fields"]]
    for name in wanted:
        if name not in available:
            raise SmaltiError(
                f"{path}: has no attribute {name!r}, which [{section}] names; it has: {', '.join(available) or 'none'}"
            )
    meta, fids, wkb, columns = _read(path, layer, list(dict.fromkeys(wanted)), _read_box(crs, zones))
    by_name = dict(zip([str(name) for name in meta["fields"]], columns, strict=True))
    classes_n, has_class = class_values(path, class_attribute, by_name[class_attribute])
    if len(fids) and not has_class.any():
        raise SmaltiError(
            f"{path}: attribute {class_attribute!r}, which [{section}] names, is empty in all {len(fids)} features "
            "near the region"
        )
    groups_n, ungrouped = _groups(path, group_attribute, by_name, fids)
    geometries_n, repaired = _geometries(path, wkb)
    empty = np.array([geometry is None or geometry.is_empty for geometry in geometries_n], dtype=bool)
    keep = has_class & ~empty
    counts = {
        "features read": len(fids),
        "features dropped: no class": int((~has_class).sum()),
        "features dropped: no geometry": int((empty & has_class).sum()),
        "invalid outlines repaired": int((repaired & keep).sum()),
        "features without a group, each taken as its own": int((ungrouped & keep).sum()),
    }
    return LabelSet(path, crs, geometries_n[keep], classes_n[keep], groups_n[keep], fids[keep], counts)


def _choose_layer(path: Path, layer: str | None, section: str) -> str:
    advice = f"correct the path in [{section}]: points or polygons (GeoJSON, GeoPackage, shapefile ...)"
    if not path.exists():
        raise SmaltiError(f"{path}: no such file: {advice}")
    try:
        layers = [str(name) for name, _ in pyogrio.list_layers(path)]
    except (DataSourceError, DataLayerError) as error:
        raise SmaltiError(f"{path}: not a readable vector file: {advice}") from error
    if layer is not None and layer not in layers:
        raise SmaltiError(f"{path}: has no layer {layer!r} ([{section}] layer); it has: {', '.join(layers)}")
    if layer is None and len(layers) != 1:
        raise SmaltiError(f"{path}: has {len(layers)} layers ({', '.join(layers)}): name one with layer in [{section}]")
    return layer if layer is not None else layers[0]


def _info(path: Path, layer: str) -> dict[str, Any]:
    try:
        info: dict[str, Any] = pyogrio.read_info(path, layer=layer)
    except (DataSourceError, DataLayerError) as error:
        raise SmaltiError(f"{path}: layer {layer!r} cannot be read: {error}") from error
    if not info["geometry_type"] and info["driver"] not in ("GeoJSON", "GeoJSONSeq", "GML"):
        raise SmaltiError(f"{path}: layer {layer!r} has no geometries: labels are points or polygons")
    return info


def _crs(path: Path, text: str | None) -> CRS:
    """The CRS of a file; files without one (shapefiles without .prj, GeoPackages with an undefined one) are refused."""
    advice = "declare it in the file (for example with `ogr2ogr -a_srs EPSG:...`)"
    if not text:
        raise SmaltiError(f"{path}: has no coordinate reference system (CRS): {advice}")
    try:
        crs = CRS.from_user_input(text)
    except CRSError as error:
        raise SmaltiError(f"{path}: its coordinate reference system is not understood ({error}): {advice}") from error
    if not (crs.is_geographic or crs.is_projected) or crs.name.lower().startswith("undefined"):
        raise SmaltiError(f"{path}: its coordinate reference system, {crs.name!r}, is not one on Earth: {advice}")
    return crs


def _read_box(crs: CRS, zones: Mapping[int, Sequence[Any]]) -> tuple[float, float, float, float] | None:
    """Bounds of the tiles in the labels' CRS, or None (read all) where a box cannot be told."""
    boxes = []
    for epsg, (west, south, east, north) in zones.items():
        to_labels = Transformer.from_crs(CRS.from_epsg(epsg), crs, always_xy=True)
        try:
            box = to_labels.transform_bounds(
                west - _MARGIN_M, south - _MARGIN_M, east + _MARGIN_M, north + _MARGIN_M, densify_pts=51
            )
        except ProjError:
            return None
        if not np.isfinite(box).all() or box[0] > box[2]:  # the latter: across the antimeridian
            return None
        boxes.append(box)
    low, high = np.min(boxes, axis=0), np.max(boxes, axis=0)
    return float(low[0]), float(low[1]), float(high[2]), float(high[3])


def _read(path: Path, layer: str, columns: list[str], box: tuple[float, ...] | None) -> tuple[Any, ...]:
    try:
        read = pyogrio.raw.read(path, layer=layer, columns=columns, bbox=box, return_fids=True, force_2d=True)
    except (DataSourceError, DataLayerError, ValueError) as error:
        raise SmaltiError(f"{path}: layer {layer!r} cannot be read: {error}") from error
    return tuple(read)


def class_values(path: Path, attribute: str, values: NDArray[Any]) -> tuple[NDArray[Any], NDArray[np.bool_]]:
    """Class of each feature as str or int, and which features have one.

    Whole numbers with gaps come from GDAL as floats; they become whole again. Other fractions are refused.

    Raises:
        SmaltiError: for fractions, dates and other types that name no class.
    """
    result = np.empty(len(values), dtype=object)
    if values.dtype.kind in "iu":
        result[:] = [int(value) for value in values]
        return result, np.ones(len(values), dtype=bool)
    if values.dtype.kind == "b":
        result[:] = ["true" if value else "false" for value in values]
        return result, np.ones(len(values), dtype=bool)
    if values.dtype.kind == "f":
        present = ~np.isnan(values)
        odd = values[present][~np.isfinite(values[present]) | (values[present] != np.round(values[present]))]
        if len(odd):
            raise SmaltiError(f"{path}: attribute {attribute!r} holds {odd[0]}: a class is text or a whole number")
        result[present] = [int(value) for value in values[present]]
        return result, present
    if values.dtype.kind in "OU" and all(value is None or isinstance(value, str | float) for value in values):
        text = ["" if value is None or isinstance(value, float) else value.strip() for value in values]
        result[:] = text
        return result, np.array([value != "" for value in text], dtype=bool)
    raise SmaltiError(f"{path}: attribute {attribute!r} is of type {values.dtype}: a class is text or a whole number")


def _groups(
    path: Path, attribute: str | None, columns: Mapping[str, NDArray[Any]], fids: NDArray[np.int64]
) -> tuple[NDArray[Any], NDArray[np.bool_]]:
    own = np.array([f"feature {fid}" for fid in fids], dtype=object)
    if attribute is None:
        return own, np.zeros(len(fids), dtype=bool)
    values, present = class_values(path, attribute, columns[attribute])
    own[present] = [str(value) for value in values[present]]
    return own, ~present


def _geometries(path: Path, wkb: NDArray[Any]) -> tuple[NDArray[Any], NDArray[np.bool_]]:
    """Valid points and polygons, and which had to be repaired."""
    try:
        geometries = shapely.from_wkb(wkb)
    except shapely.errors.GEOSException as error:
        raise SmaltiError(f"{path}: a geometry cannot be read: {error}") from error
    present = ~(shapely.is_missing(geometries) | shapely.is_empty(geometries))
    invalid = present & ~shapely.is_valid(geometries)
    geometries[invalid] = shapely.make_valid(geometries[invalid])
    kinds = shapely.get_type_id(geometries)
    for index in np.flatnonzero(present & ~np.isin(kinds, (*_POINTS, *_POLYGONS))):
        geometries[index] = _polygons_of(geometries[index])
        if geometries[index].is_empty and not invalid[index]:
            name = shapely.GeometryType(kinds[index]).name.lower()
            raise SmaltiError(f"{path}: holds a geometry of type {name}: labels are points or polygons")
    return geometries, invalid


def _polygons_of(geometry: Any) -> Any:
    parts = [part for part in shapely.get_parts(geometry) if shapely.get_type_id(part) in _POLYGONS]
    return shapely.union_all(parts) if parts else shapely.MultiPolygon()


def _check_degrees(path: Path, crs: CRS, bounds: Sequence[float] | None) -> None:
    """Refuse metres that are declared as degrees (a GeoJSON in another CRS than RFC 7946 asks for)."""
    if bounds is None or not crs.is_geographic or not np.isfinite(bounds).all():
        return
    west, south, east, north = bounds
    if not (west >= -361 and east <= 361 and south >= -91 and north <= 91):
        raise SmaltiError(
            f"{path}: is in degrees by its coordinate reference system ({crs.name}) but holds coordinates like "
            f"({west:.0f}, {south:.0f}): declare the one they are in"
        )


def to_zone(labels: LabelSet, epsg: int) -> NDArray[Any]:
    """The geometries in metres of a UTM zone; None where a feature lies beyond what the zone can express."""
    to_utm = Transformer.from_crs(labels.crs, CRS.from_epsg(epsg), always_xy=True)

    def project(points_n2: NDArray[np.float64]) -> NDArray[np.float64]:
        x, y = to_utm.transform(points_n2[:, 0], points_n2[:, 1])
        return np.column_stack([x, y])

    moved: NDArray[Any] = np.array(shapely.transform(labels.geometries_n, project), dtype=object)
    finite = np.isfinite(shapely.bounds(moved)).all(axis=1) if len(moved) else np.empty(0, dtype=bool)
    moved[~finite] = None
    return moved


def assign_codes(classes: set[Any]) -> dict[Any, int]:
    """Code of each class: whole numbers in 1..255 keep theirs; everything else is numbered from 1 in sorted order.

    Codes fit one byte because maps store them so; 0 is nodata.

    Raises:
        SmaltiError: for more than 255 classes.
    """
    ordered = sorted(classes)
    if all(isinstance(value, int) and 1 <= value <= 255 for value in ordered):
        return {value: value for value in ordered}
    if len(ordered) > 255:
        raise SmaltiError(f"[labels] class: {len(ordered)} classes, a map holds 255 at most: group them first")
    return {value: index + 1 for index, value in enumerate(ordered)}
