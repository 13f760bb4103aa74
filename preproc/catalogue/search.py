"""One search of a STAC API, followed to its last page and checked to be complete."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import date, timedelta
from typing import Any
from urllib.parse import urlencode

import numpy as np
import pystac
import shapely
from pystac_client import Client
from pystac_client.errors import ClientTypeError
from pystac_client.exceptions import APIError, ParametersError
from pystac_client.stac_api_io import StacApiIO
from shapely.geometry import MultiPolygon
from shapely.geometry.base import BaseGeometry

from infer.contract import SmaltiError
from preproc.catalogue.sources import MARGIN_DEGREES, Catalogue, Item
from preproc.reader.transport import (
    ATTEMPTS,
    THINKING_S,
    HttpTransport,
    ServiceError,
    TransientError,
    Transport,
    persist,
)
from preproc.region.region import Region, polygons_of
from preproc.run.progress import progress

WIDEST_SCENE = 300_000.0
"""Metres: no slice of Sentinel-1 is wider, no granule of Sentinel-2 nearly as wide."""
MAX_VERTICES = 400
"""Of the geometry that is sent; a finer region is simplified outwards."""

_LATER = "try again later, or plan where there is internet (a login node; behind a proxy, with https_proxy set)"

_NOT_STAC = (
    ParametersError,
    ClientTypeError,
    pystac.STACError,
    pystac.STACTypeError,
    NotImplementedError,
    ValueError,
    KeyError,
    TypeError,
    AttributeError,
)
"""What the client raises when an answer is not what STAC says it should be."""


def search_api(catalogue: Catalogue, url: str | None, region: Region, start: date, end: date) -> list[Item]:
    """All items of a catalogue's collections over a region and a window, as the service gives them.

    Args:
        catalogue: which service.
        url: another address of it, or None.
        region: in degrees.
        start: first day (UTC), inclusive.
        end: last day (UTC), inclusive.

    Raises:
        ServiceError: the service does not answer, or its pages are not complete.
        SmaltiError: the address is not that of a STAC API with the collections needed.
    """
    address = url or catalogue.url
    query: dict[str, Any] = {
        "collections": [name for product in catalogue.products for name in product.collections],
        "datetime": f"{start}T00:00:00Z/{end + timedelta(days=1)}T00:00:00Z",
        "intersects": json.loads(shapely.to_geojson(search_geometry(region))),
        "limit": catalogue.page_size,
    }
    try:
        with HttpTransport(stall_s=THINKING_S) as transport:
            return _collect(Client.open(address, stac_io=_CompletePages(transport)), query)
    except TransientError as error:
        said = f"{error}, {ATTEMPTS} times"
        raise ServiceError(f"{address}: the catalogue cannot be searched: {said}: {_LATER}") from error
    except APIError as error:
        status = getattr(error, "status_code", None)  # absent where the answer is not what it should be
        if status is None:
            raise ServiceError(f"{address}: the catalogue cannot be searched: {error}: {_LATER}") from error
        hint = "is it the address of a STAC API?" if status == 404 else _first_line(error)
        raise SmaltiError(f"{address}: the catalogue refuses the search ({status}): {hint}") from error
    except _NOT_STAC as error:
        raise SmaltiError(f"{address}: does not answer like a STAC API: {_first_line(error)}") from error


def _collect(client: Client, query: dict[str, Any]) -> list[Item]:
    """The items of all pages; searched a second time when the pages do not fit together."""
    problem = ""
    for _ in range(2):
        items: dict[tuple[str, str], Item] = {}
        count, matched = 0, None
        with progress("search", None, "items") as bar:
            for page in client.search(**query).pages_as_dicts():
                matched = _matched(page) if matched is None else matched
                if matched is not None:
                    bar.total(matched)
                count += len(page["features"])
                items |= {(str(item.get("collection")), str(item["id"])): item for item in page["features"]}
                bar.advance(len(page["features"]))
        problem = ""
        if matched is not None and len(items) < matched:
            problem = f"it announced {matched} items and gave {len(items)}"
        elif len(items) < count:
            problem = f"{count - len(items)} of {count} items came twice on its pages"
        if not problem:
            return list(items.values())
    raise ServiceError(
        f"{client.get_self_href()}: the catalogue's pages are not complete ({problem}), twice: try again later"
    )


def search_geometry(region: Region) -> BaseGeometry:
    """The region as it is sent to a catalogue: widened a little, and no more vertices than a request bears.

    Near longitude 180 more is asked for: many catalogues compare coordinates as if the Earth were flat, and a scene
    that crosses 180 may be written beyond -180 or 180, or with an edge that jumps all around the Earth. Strips along
    both sides of 180 meet the former, one a scene's width away from it meets the latter. What comes too much is left
    out later, by `within`.
    """
    tolerance = MARGIN_DEGREES
    world = shapely.box(-180, -90, 180, 90)
    while True:
        wide = region.geometry.buffer(tolerance, quad_segs=2, join_style="mitre")
        simple = wide.simplify(tolerance / 2)
        if shapely.get_num_coordinates(simple) <= MAX_VERTICES:
            break
        tolerance *= 2
    parts = polygons_of(shapely.intersection(shapely.union_all([simple, *_across_180(region)]), world))
    return parts[0] if len(parts) == 1 else MultiPolygon(parts)


def _across_180(region: Region) -> list[BaseGeometry]:
    """Strips that every scene across longitude 180 meets, however it is written; none if the region is far from it."""
    west, south, east, north = region.bounds
    metres = 111_320 * np.cos(np.radians(max(abs(south), abs(north))))
    wide = min(90.0, WIDEST_SCENE / metres)
    if west > wide - 180 and east < 180 - wide:
        return []
    low, high = south - MARGIN_DEGREES, north + MARGIN_DEGREES
    starts = (180 - MARGIN_DEGREES, -180.0, wide - 180)
    return [shapely.box(start, low, start + MARGIN_DEGREES, high) for start in starts]


def _matched(page: Any) -> int | None:
    """How many items the service says there are, if it says so."""
    for value in (page.get("numberMatched"), page.get("numMatched"), (page.get("context") or {}).get("matched")):
        if isinstance(value, int):
            return value
    return None


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:300] if lines else type(error).__name__


class _CompletePages(StacApiIO):
    """Follows `next` links to the end: an empty page in the middle does not end the search, a loop does not hang it."""

    def __init__(self, transport: Transport) -> None:
        super().__init__(max_retries=None)
        self._transport = transport

    def request(
        self,
        href: str,
        method: str | None = None,
        headers: dict[str, str] | None = None,
        parameters: dict[str, Any] | None = None,
    ) -> str:
        """As the base class, by way of our transport."""
        body = None
        if (method or "GET").upper() == "POST":
            body = json.dumps(parameters).encode()
        elif parameters:
            href = f"{href}{'&' if '?' in href else '?'}{urlencode(parameters)}"
        answer = persist(lambda: self._transport.send(href, headers=headers or {}, body=body))
        if 200 <= answer.status < 300:
            return answer.body.decode()
        error = APIError(answer.text)
        error.status_code = answer.status
        raise error

    def get_pages(
        self, url: str, method: str | None = None, parameters: dict[str, Any] | None = None
    ) -> Iterator[dict[str, Any]]:
        page = self._page(self.read_json(url, method=method, parameters=parameters))
        seen = set()
        while True:
            if page.get("features") or page.get("collections"):
                yield page
            link = next((link for link in page.get("links") or () if link.get("rel") == "next"), None)
            if link is None:
                return
            key = json.dumps(link, sort_keys=True)
            if key in seen:
                raise APIError("its pages run in a circle")
            seen.add(key)
            page = self._page(self.read_json(pystac.Link.from_dict(link), parameters=parameters))

    @staticmethod
    def _page(page: Any) -> dict[str, Any]:
        if not isinstance(page, dict) or not isinstance(page.get("features", page.get("collections")), list):
            raise APIError("a page of the search is not a feature collection")
        return page
