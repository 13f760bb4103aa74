"""STAC items like Planetary Computer's, and a made-up STAC API whose pages a test writes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from preproc.catalogue.sources import MPC_S1, MPC_S2
from support.service import Answer, Request, json_answer


def item(identifier: str, when: str, *, s1: bool = False, box: tuple[float, ...] = (4, 50, 5, 51)) -> dict[str, Any]:
    product = MPC_S1 if s1 else MPC_S2
    west, south, east, north = box
    ring = [[west, south], [east, south], [east, north], [west, north], [west, south]]
    return {
        "type": "Feature",
        "stac_version": "1.0.0",
        "id": identifier,
        "collection": product.collections[0],
        "geometry": {"type": "Polygon", "coordinates": [ring]},
        "bbox": list(box),
        "properties": {
            "datetime": when,
            "proj:epsg": 32631,
            **({"sat:orbit_state": "ascending"} if s1 else {"s2:mgrs_tile": "31UES"}),
        },
        "assets": {key: {"href": f"./{identifier}/{key}.tif"} for key in product.assets.values()},
        "links": [],
    }


SEASON = [item(f"S2_{day:02d}", f"2021-06-{day:02d}T10:56:21.024000Z") for day in range(1, 29)] + [
    item(f"S1_{day:02d}", f"2021-06-{day:02d}T17:32:44Z", s1=True) for day in range(1, 29, 3)
]
ELSEWHERE = [
    item("S2_far", "2021-06-03T10:56:21Z", box=(8, 50, 9, 51)),
    item("S2_early", "2021-05-31T23:59:59.999Z"),
    item("S2_late", "2021-07-01T00:00:00Z"),
]


def collection(*items: dict[str, Any]) -> dict[str, Any]:
    return {"type": "FeatureCollection", "features": list(items)}


def write(path: Path, content: Any) -> Path:
    path.write_text(json.dumps(content))
    return path


class Api:
    """A made-up API: its pages are what a test says."""

    def __init__(self, pages: Callable[[int, str], dict[str, Any]]) -> None:
        self.pages = pages
        self.searches = 0

    def __call__(self, request: Request) -> Answer:
        root = f"http://{request.headers['Host']}"
        if request.path == "/":
            # a search link for each method, as the services have them
            conforms = ["https://api.stacspec.org/v1.0.0/core", "https://api.stacspec.org/v1.0.0/item-search"]
            links = [
                {"rel": rel, "href": root + path, "type": "application/json"}
                for rel, path in (("self", "/"), ("root", "/"))
            ]
            links += [
                {"rel": "search", "type": "application/geo+json", "href": f"{root}/search", "method": method}
                for method in ("GET", "POST")
            ]
            return json_answer(
                {
                    "type": "Catalog",
                    "id": "made-up",
                    "stac_version": "1.0.0",
                    "description": "made up",
                    "conformsTo": conforms,
                    "links": links,
                }
            )
        number = int(json.loads(request.body).get("page", 0))
        self.searches += number == 0
        return json_answer(self.pages(number, root))


def page(items: list[dict[str, Any]], root: str, following: int | None, **more: Any) -> dict[str, Any]:
    links = []
    if following is not None:
        links = [
            {"rel": "next", "href": f"{root}/search", "method": "POST", "body": {"page": following}, "merge": True}
        ]
    return {"type": "FeatureCollection", "features": items, "links": links, **more}
