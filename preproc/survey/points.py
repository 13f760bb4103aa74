"""Points in the field, as GeoPackage, CSV and KML: what people, phones and QGIS open. Equal points have equal bytes."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from xml.etree.ElementTree import Element, SubElement, tostring

import numpy as np
import shapely
from numpy.typing import NDArray

from infer.contract import write_bytes
from preproc.region.geopackage import geopackage

_DIGITS = 8
"""Of degrees: about a millimetre, so that a pixel's centre stays in its pixel."""


def write_points(
    folder: Path, stem: str, id_n: NDArray[Any], place_n2: NDArray[np.float64], columns: Mapping[str, Sequence[Any]]
) -> list[Path]:
    """Write <stem>.gpkg, <stem>.csv and <stem>.kml; returns their paths.

    Args:
        folder: where to.
        stem: of the files' names.
        id_n: (N,) whole numbers.
        place_n2: (N, 2) longitude and latitude in WGS 84.
        columns: further attributes, text or numbers; text may be empty, to be filled in.
    """
    places = np.round(place_n2, _DIGITS)
    paths = [folder / f"{stem}.{ending}" for ending in ("gpkg", "csv", "kml")]
    fields: dict[str, Any] = {"id": np.asarray(id_n, dtype=np.int64), **columns}
    write_bytes(paths[0], geopackage(stem, shapely.points(places), fields, kind="Point"))
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(["id", "longitude", "latitude", *columns])
    for row in zip(id_n.tolist(), *places.T.tolist(), *columns.values(), strict=True):
        writer.writerow(row)
    write_bytes(paths[1], stream.getvalue().encode())
    write_bytes(paths[2], _kml(stem, id_n, places))
    return paths


def _kml(name: str, id_n: NDArray[Any], places: NDArray[np.float64]) -> bytes:
    root = Element("kml", xmlns="http://www.opengis.net/kml/2.2")
    document = SubElement(root, "Document")
    SubElement(document, "name").text = name
    for number, (longitude, latitude) in zip(id_n.tolist(), places.tolist(), strict=True):
        mark = SubElement(document, "Placemark", id=f"point-{number}")
        SubElement(mark, "name").text = str(number)
        SubElement(SubElement(mark, "Point"), "coordinates").text = f"{longitude},{latitude}"
    content: bytes = tostring(root, encoding="utf-8", xml_declaration=True)
    return content
