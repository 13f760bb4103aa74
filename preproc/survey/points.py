"""Points to label: as GeoPackage, CSV and KML, which people, phones and QGIS open, and as a page.

Equal points have equal bytes. The page is one HTML file that works offline, shows a point at a time and is used with
the keyboard alone.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any
from xml.etree.ElementTree import Element, SubElement, tostring

import numpy as np
import shapely
from jinja2 import Environment, PackageLoader, StrictUndefined
from numpy.typing import NDArray

from infer.contract import SOFTWARE, write_bytes
from preproc.region.geopackage import geopackage
from preproc.survey.looks import Look, as_json

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


@dataclass(frozen=True)
class LabellingPage:
    """What the page is about."""

    title: str
    key: str
    """Tells this sample from others: under it the browser keeps what was labelled so far."""
    names: Sequence[str]
    """The classes to choose from."""
    colors: Sequence[str]
    """'#rrggbb' of each."""
    window: tuple[date, date] | None
    """Of the curves."""
    saves: str
    """Name of the file that is saved."""


def render(about: LabellingPage, id_n: NDArray[np.int64], place_n2: NDArray[np.float64], looks: Sequence[Look]) -> str:
    """The page.

    Args:
        about: its title, classes and names.
        id_n: (N,) ids of the points.
        place_n2: (N, 2) longitude and latitude.
        looks: (N,) what can be shown of each.
    """
    points = [
        {"id": number, "longitude": round(longitude, 8), "latitude": round(latitude, 8), **as_json(one)}
        for number, (longitude, latitude), one in zip(id_n.tolist(), place_n2.tolist(), looks, strict=True)
    ]
    data = {
        "key": about.key,
        "saves": about.saves,
        "classes": [{"name": name, "color": color} for name, color in zip(about.names, about.colors, strict=True)],
        "start": None if about.window is None else about.window[0].isoformat(),
        "days": 365 if about.window is None else (about.window[1] - about.window[0]).days + 1,
        "points": points,
    }
    environment = Environment(
        loader=PackageLoader("preproc.survey", "."), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    values: Mapping[str, str] = {"title": about.title, "software": SOFTWARE, "data": _inert(data)}
    return environment.get_template("label.html.j2").render(values)


def _inert(data: object) -> str:
    """JSON that cannot end the script element it stands in."""
    text = json.dumps(data, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")
