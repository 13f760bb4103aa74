"""The labelling page: one HTML file that works offline, shows a point at a time and is used with the keyboard alone."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined
from numpy.typing import NDArray

from infer.contract import SOFTWARE
from preproc.survey.looks import Look, as_json


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
