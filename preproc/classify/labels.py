"""Field data: a vector file of points or polygons -> geometries with a class and a group each, checked and counted."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import shapely
from numpy.typing import NDArray
from pyproj import CRS, Transformer
from pyproj.exceptions import ProjError

from infer.contract import SmaltiError
from preproc.region.vector import read_vector
from preproc.run.progress import say

_POINTS = (shapely.GeometryType.POINT, shapely.GeometryType.MULTIPOINT)
_POLYGONS = (shapely.GeometryType.POLYGON, shapely.GeometryType.MULTIPOLYGON)
_COLLECTION = (
    shapely.GeometryType.GEOMETRYCOLLECTION,
    shapely.GeometryType.MULTIPOLYGON,
    shapely.GeometryType.MULTIPOINT,
    shapely.GeometryType.MULTILINESTRING,
)
_LARGEST = 1e30
"""Of numbers that are learned: their squares are summed."""
_NAME_LIMIT = 1000
"""Characters of a class or group."""
_NO_VALUE = frozenset({"nan", "none", "null", "<na>", "na", "n/a", "#n/a", "nil", "<null>"})
"""Texts that stand for no value where a table was written without care, in lower case."""
_CONTROL = re.compile(r"\s*[\x00-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]+\s*")
"""Control characters, those that turn the direction of writing among them: they would turn a whole line of a legend."""
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
    """(N,) str or int; float where a number is learned."""
    groups_n: NDArray[Any]
    """(N,) str."""
    fids_n: NDArray[np.int64]
    """(N,) feature numbers in the file."""
    counts: Mapping[str, int]
    """What was dropped or repaired, by reason."""
    districts_n: NDArray[Any] | None = None
    """(N,) str, empty where a feature has none; None where no attribute was asked for."""

    def __len__(self) -> int:
        return len(self.geometries_n)

    def select(self, chosen_n: NDArray[np.bool_]) -> LabelSet:
        """Some of the features; what was dropped before stays told."""
        columns = {name: getattr(self, name)[chosen_n] for name in ("geometries_n", "classes_n", "groups_n", "fids_n")}
        return replace(self, **columns)


def read_labels(
    path: Path,
    class_attribute: str,
    group_attribute: str | None,
    layer: str | None,
    zones: Mapping[int, Sequence[Any]],
    *,
    encoding: str | None = None,
    section: str = "labels",
    district_attribute: str | None = None,
    numeric: bool = False,
) -> LabelSet:
    """Read the labels that lie near the tiles.

    Args:
        path: a vector file.
        class_attribute: text or whole numbers.
        group_attribute: what belongs together; None makes each feature its own group.
        layer: which layer of a file with several.
        zones: EPSG code -> (west, south, east, north) in metres around its tiles; limits what is read, unless empty.
        encoding: of the text, where the file states none or a wrong one.
        section: of run.toml, for messages.
        numeric: the attribute is a number to be learned, not a class.
        district_attribute: the part of the region that a feature is in, if it is wanted.

    Raises:
        SmaltiError: if the file, layer, CRS, attribute, values or geometries are not usable, in one line.
    """
    wanted = list(dict.fromkeys(name for name in (class_attribute, group_attribute, district_attribute) if name))
    key = f"[{section}] {'reference' if section == 'validate' else 'path'}"
    vector = read_vector(
        path, key=key, layer=layer, encoding=encoding, attributes=wanted, box=lambda crs: _read_box(crs, zones)
    )
    fids = vector.fids_n
    if numeric:
        classes_n, has_class = number_values(path, class_attribute, vector.columns[class_attribute])
    else:
        classes_n, has_class = class_values(path, class_attribute, vector.columns[class_attribute])
        for line in doubtful(path, class_attribute, vector.columns[class_attribute], section):
            say(f"Warning: {line}")
    if len(fids) and not has_class.any():
        raise SmaltiError(
            f"{path}: attribute {class_attribute!r}, which [{section}] names, is empty in all {len(fids)} features "
            "near the region"
        )
    groups_n, ungrouped = _groups(path, group_attribute, vector.columns, fids)
    geometries_n, repaired = _shapes(path, vector.geometries_n)
    empty = np.array([geometry is None or geometry.is_empty for geometry in geometries_n], dtype=bool)
    keep = has_class & ~empty
    counts = {
        "features read": len(fids),
        f"features dropped: no {'number' if numeric else 'class'}": int((~has_class).sum()),
        "features dropped: no geometry": int((empty & has_class).sum()),
        "invalid outlines repaired": int((repaired & keep).sum()),
        "features without a group, each taken as its own": int((ungrouped & keep).sum()),
    }
    districts_n = None
    if district_attribute is not None:
        values, present = class_values(path, district_attribute, vector.columns[district_attribute])
        districts_n = np.array([str(v) if has else "" for v, has in zip(values, present, strict=True)], dtype=object)
        counts["features without a district"] = int((~present & keep).sum())
        districts_n = districts_n[keep]
    return LabelSet(
        path, vector.crs, geometries_n[keep], classes_n[keep], groups_n[keep], fids[keep], counts, districts_n
    )


def _read_box(crs: CRS, zones: Mapping[int, Sequence[Any]]) -> tuple[float, float, float, float] | None:
    """Bounds of the tiles in the labels' CRS, or None (read all) where a box cannot be told."""
    if not zones:
        return None
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


def class_values(path: Path, attribute: str, column: pa.ChunkedArray) -> tuple[NDArray[Any], NDArray[np.bool_]]:
    """Class of each feature as str or int, and which features have one.

    Whole numbers that a table with gaps keeps as floats become whole again; other fractions are refused. Text is
    trimmed, composed (NFC) and rid of control characters, so that names that look alike are one.

    Raises:
        SmaltiError: for fractions, dates and other types that name no class, and for text that is no name.
    """
    if isinstance(column.type, pa.DictionaryType):
        column = column.cast(column.type.value_type)
    kind = column.type
    if isinstance(kind, pa.BaseExtensionType):  # JSON: what GDAL makes of an attribute of several types
        kind = kind.storage_type
    try:
        values = column.to_pylist()
    except UnicodeDecodeError as error:
        raise SmaltiError(
            f"{path}: attribute {attribute!r} holds text that is not in the encoding that the file states "
            f'({bytes(error.object[:40])!r}): set encoding in run.toml, for example to "cp1252"'
        ) from error
    result = np.empty(len(values), dtype=object)
    if pa.types.is_null(kind):
        return result, np.zeros(len(values), dtype=bool)
    made: list[Any]
    if pa.types.is_boolean(kind):
        made = [None if value is None else "true" if value else "false" for value in values]
    elif pa.types.is_integer(kind):
        made = values
    elif pa.types.is_floating(kind):
        made = [_whole(path, attribute, value) for value in values]
    elif pa.types.is_string(kind) or pa.types.is_large_string(kind):
        made = [_name(path, attribute, value) for value in values]
    else:
        raise SmaltiError(f"{path}: attribute {attribute!r} is of type {kind}: a class is text or a whole number")
    result[:] = made
    return result, np.array([value is not None for value in made], dtype=bool)


def number_values(path: Path, attribute: str, column: pa.ChunkedArray) -> tuple[NDArray[Any], NDArray[np.bool_]]:
    """Number of each feature, and which features have one (NaN and gaps are none).

    Raises:
        SmaltiError: for other types, text that is no number, and numbers without end.
    """
    kind = column.type
    numeric = pa.types.is_integer(kind) or pa.types.is_floating(kind)
    if not (numeric or pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_null(kind)):
        raise SmaltiError(f"{path}: attribute {attribute!r} is of type {kind}: [labels] value names numbers")
    found = np.empty(len(column), dtype=object)
    present = np.zeros(len(column), dtype=bool)
    for index, value in enumerate(column.to_pylist()):
        if value is None or (isinstance(value, str) and not value.strip()):
            continue
        try:
            number = float(value)
        except ValueError:
            hint = ": write 3.5, not 3,5" if "," in value else ""
            raise SmaltiError(
                f"{path}: attribute {attribute!r} holds {value[:40]!r}, which is no number{hint}"
            ) from None
        if np.isnan(number):
            continue
        if abs(number) > _LARGEST:
            raise SmaltiError(f"{path}: attribute {attribute!r} holds {number}: a map keeps float32 numbers")
        found[index], present[index] = number, True
    return found, present


def _whole(path: Path, attribute: str, value: float | None) -> int | None:
    if value is None or np.isnan(value):
        return None
    if not np.isfinite(value) or value != np.round(value):
        raise SmaltiError(f"{path}: attribute {attribute!r} holds {value}: a class is text or a whole number")
    return int(value)


def _name(path: Path, attribute: str, value: str | None) -> str | None:
    if value is None:
        return None
    if len(value) > _NAME_LIMIT:
        raise SmaltiError(
            f"{path}: attribute {attribute!r} holds a text of {len(value)} characters ({value[:20]!r}...): "
            f"names of classes and groups have {_NAME_LIMIT} at most"
        )
    if value[:1] in "{[" and value[-1:] in "}]" and len(value) > 1:
        raise SmaltiError(f"{path}: attribute {attribute!r} holds {value[:40]!r}: a class is text or a whole number")
    return unicodedata.normalize("NFC", _CONTROL.sub(" ", value)).strip() or None


def mojibake(text: str) -> str | None:
    """What the text would be if it were UTF-8 that was read as Latin-1 or Windows-1252 ("BlÃ©": "Blé"); else None."""
    if text.isascii():
        return None
    for codec in ("latin-1", "cp1252"):
        try:
            return text.encode(codec).decode("utf-8")
        except UnicodeError:
            continue
    return None


def doubtful(path: Path, attribute: str, column: pa.ChunkedArray, section: str) -> list[str]:
    """What speaks against the texts of an attribute: a wrong encoding, words for no value, names all but alike."""
    if not (pa.types.is_string(column.type) or pa.types.is_large_string(column.type)):
        return []
    texts = [value for value in column.unique().to_pylist() if value]
    lines = []
    for text in texts:
        true = mojibake(text)
        if true is not None:
            lines.append(
                f"{path}: attribute {attribute!r} holds {text[:40]!r}, which looks like {true[:40]!r} read in a wrong "
                f'encoding: set [{section}] encoding = "UTF-8", or correct the file'
            )
            break
    blanks = sorted({text for text in texts if text.strip().casefold() in _NO_VALUE})
    if blanks:
        named = ", ".join(map(repr, blanks))
        lines.append(
            f"{path}: attribute {attribute!r} holds {named} as text, which is taken as the name of a class: if it "
            "stands for no class, empty it there"
        )
    alike: dict[str, set[str]] = {}
    for text in texts:
        alike.setdefault(" ".join(text.split()).casefold(), set()).add(unicodedata.normalize("NFC", text).strip())
    twins = [sorted(names) for names in alike.values() if len(names) > 1]
    if twins:
        named = "; ".join(" and ".join(map(repr, names)) for names in twins[:3])
        lines.append(
            f"{path}: attribute {attribute!r} holds names that differ in capitals or blanks only, which makes them "
            f"classes of their own: {named}"
        )
    return lines


def _groups(
    path: Path, attribute: str | None, columns: Mapping[str, pa.ChunkedArray], fids: NDArray[np.int64]
) -> tuple[NDArray[Any], NDArray[np.bool_]]:
    own = np.array([f"feature {fid}" for fid in fids], dtype=object)
    if attribute is None:
        return own, np.zeros(len(fids), dtype=bool)
    values, present = class_values(path, attribute, columns[attribute])
    own[present] = [str(value) for value in values[present]]
    return own, ~present


def _shapes(path: Path, geometries: NDArray[Any]) -> tuple[NDArray[Any], NDArray[np.bool_]]:
    """Valid points and polygons, and which had to be repaired."""
    geometries = geometries.copy()
    present = ~(shapely.is_missing(geometries) | shapely.is_empty(geometries))
    invalid = present & ~shapely.is_valid(geometries)
    try:
        geometries[invalid] = shapely.make_valid(geometries[invalid])
    except shapely.errors.GEOSException as error:
        raise SmaltiError(f"{path}: an invalid outline cannot be repaired ({error}): repair it") from error
    kinds = shapely.get_type_id(geometries)
    for index in np.flatnonzero(present & ~np.isin(kinds, (*_POINTS, *_POLYGONS))):
        geometries[index] = _of_collection(geometries[index])
        if geometries[index].is_empty and not invalid[index]:
            name = shapely.GeometryType(kinds[index]).name.lower()
            raise SmaltiError(f"{path}: holds a geometry of type {name}: labels are points or polygons")
    return geometries, invalid


def _of_collection(geometry: Any) -> Any:
    """The polygons of a collection (and of collections in it), or the points of one without polygons."""
    parts = shapely.get_parts(geometry)
    while np.isin(shapely.get_type_id(parts), _COLLECTION).any():
        parts = shapely.get_parts(parts)
    kinds = shapely.get_type_id(parts)
    polygons = parts[np.isin(kinds, _POLYGONS)]
    if len(polygons):
        return shapely.union_all(polygons)
    return shapely.union_all(parts[np.isin(kinds, _POINTS)])


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
    """Code of each class: whole numbers in 1..255 keep theirs, also as text; all else is numbered from 1 in order.

    Codes fit one byte because maps store them so; 0 is nodata.

    Raises:
        SmaltiError: for more than 255 classes.
    """
    ordered = sorted(classes, key=_natural)
    numbers = [value if isinstance(value, int) else _number(value) for value in ordered]
    if all(number is not None and 1 <= number <= 255 for number in numbers):
        return dict(zip(ordered, numbers, strict=True))
    if len(ordered) > 255:
        raise SmaltiError(f"[labels] class: {len(ordered)} classes, a map holds 255 at most: group them first")
    return {value: index + 1 for index, value in enumerate(ordered)}


def _number(text: str) -> int | None:
    """The whole number that a text is, written as numbers are ("10", not "010")."""
    return int(text) if re.fullmatch(r"[1-9]\d{0,2}", text, re.ASCII) else None


def _natural(value: Any) -> tuple[Any, ...]:
    """Sorts numbers by value, also within text: 2 before 10, "field 2" before "field 10"."""
    if isinstance(value, int):
        return (value,)
    parts = re.split(r"(\d+)", value, flags=re.ASCII)
    return (*[(int(part[:300]), "") if index % 2 else (-1, part) for index, part in enumerate(parts)], (-1, value))
