"""Labels that were drawn in an atlas: the page's GeoJSON checked, and the GeoPackage that `[labels]` takes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyogrio
import shapely

from infer.contract import JsonObject, SmaltiError, parse_json
from preproc.region.geopackage import geopackage
from preproc.region.vector import JOURNALS, read_vector

MOST_BYTES = 8 << 20
"""Of what a page may send: some 40 000 labels."""
_MOST_FILE = 4 * MOST_BYTES
"""Of a file whose labels the page begins with."""
_LAYER, _CLASS = "labels", "class"
_LONGEST_NAME = 200
_DIGITS = 7
"""Of degrees: a centimetre."""


@dataclass(frozen=True)
class Drawn:
    """Labels (N) in WGS 84."""

    shapes: Sequence[Any]
    """(N,) points, and polygons without holes."""
    classes: Sequence[str]
    """(N,) names."""

    def as_geopackage(self) -> bytes:
        """One layer of both kinds, with the attributes id and class; equal labels have equal bytes."""
        fields: dict[str, Any] = {"id": np.arange(1, len(self.classes) + 1), _CLASS: self.classes}
        return geopackage(_LAYER, self.shapes, fields, kind="Unknown")

    def as_geojson(self) -> dict[str, Any]:
        """As the page takes them."""
        pairs = zip(self.shapes, self.classes, strict=True)
        features = [
            {"type": "Feature", "properties": {_CLASS: name}, "geometry": shapely.geometry.mapping(shape)}
            for shape, name in pairs
        ]
        return {"type": "FeatureCollection", "features": features}


def drawn_from(content: bytes) -> Drawn:
    """What a page sent.

    Raises:
        SmaltiError: if it is anything but labels, one at least.
    """
    try:
        features = parse_json(content)["features"]
        shapes = [_shape(feature["geometry"]) for feature in features]
        classes = [_name(feature["properties"]) for feature in features]
    except (ValueError, TypeError, KeyError, OverflowError) as error:
        raise SmaltiError(f"these are no labels of an atlas ({error})") from error
    if not classes:
        raise SmaltiError("there are no labels yet")
    return Drawn(shapes, classes)


def _shape(geometry: JsonObject) -> Any:
    if geometry["type"] == "Point":
        return shapely.Point(_place(geometry["coordinates"]))
    if geometry["type"] != "Polygon":
        raise ValueError(f"a geometry of type {str(geometry['type'])[:20]}")
    (ring,) = geometry["coordinates"]
    places = [_place(position) for position in ring]
    if len(places) < 4 or places[0] != places[-1]:
        raise ValueError("an area with fewer than three corners")
    return shapely.Polygon(places)


def _place(position: Sequence[Any]) -> tuple[float, float]:
    longitude, latitude = (round(float(value), _DIGITS) for value in position)
    if not (math.isfinite(longitude) and abs(longitude) <= 180 and abs(latitude) <= 90):
        raise ValueError("a place that is not on Earth")
    return longitude, latitude


def _name(properties: JsonObject) -> str:
    name = properties[_CLASS]
    if not (isinstance(name, str) and name.strip() and len(name) <= _LONGEST_NAME and name.isprintable()):
        raise ValueError("a class without a name")
    return name


def read_drawn(path: Path) -> Drawn:
    """Labels of a GeoPackage that was written here before.

    Raises:
        SmaltiError: if it is another file, whose attributes would be lost, or one that another program is writing.
    """
    if busy := [ending for ending in JOURNALS if path.with_name(path.name + ending).exists()]:
        raise SmaltiError(f"{path}: another program has it open ({path.name}{busy[0]} is there): close it there")
    other = SmaltiError(f"{path}: not labels that were drawn in an atlas: name a new file for those")
    if not path.is_file() or path.stat().st_size > _MOST_FILE:
        raise other
    read = read_vector(path, key="--labels")  # refuses what is no vector file
    if len(pyogrio.list_layers(path)) != 1 or list(pyogrio.read_info(path)["fields"]) != ["id", _CLASS]:
        raise other
    columns = read_vector(path, key="--labels", attributes=[_CLASS]).columns
    try:
        if read.crs.to_epsg() != 4326:
            raise ValueError("another CRS")
        shapes = [_shape(shapely.geometry.mapping(shape)) for shape in read.geometries_n]
        return Drawn(shapes, [_name({_CLASS: name}) for name in columns[_CLASS].to_pylist()])
    except (ValueError, TypeError, AttributeError) as error:
        raise other from error
