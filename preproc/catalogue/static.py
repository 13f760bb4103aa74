"""Static archives: a STAC item collection, a static catalogue or stac-geoparquet, on disk, over HTTP or in a bucket."""

from __future__ import annotations

import json
import os.path
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pyarrow
import pyarrow.parquet
import pystac
import shapely
from pystac.stac_io import DefaultStacIO

from infer.contract import SmaltiError, parse_json, read_regular
from preproc.catalogue.header import COLLECTION, opera_items
from preproc.catalogue.sources import Item
from preproc.reader.buckets import BucketSigner
from preproc.reader.hrefs import beyond, is_bucket, is_url
from preproc.reader.ranges import RangeClient
from preproc.reader.transport import THINKING_S, HttpTransport, Transport, brief, fetch_bytes

_WHAT = "[archive] href"
_NOT_STAC = (
    pystac.STACError,
    pystac.STACTypeError,
    ValueError,
    KeyError,
    TypeError,
    AttributeError,
    RecursionError,  # a catalogue that is its own child
)


def read_static(href: str, folders: Sequence[str] = ()) -> list[tuple[Item, str]]:
    """Every item of a static archive, with the path or URL that its relative hrefs are relative to.

    Args:
        href: an item collection, an item, a catalogue or collection (JSON), or stac-geoparquet, as a path or URL; or a
            folder with a catalog.json, or with items (*.json) and OPERA RTC-S1 files.
        folders: those that a catalogue's links may lead into, see `preproc.reader.hrefs.beyond`; none if it is remote.

    Raises:
        SmaltiError: if it cannot be read or is none of these.
    """
    if not is_url(href) and Path(href).is_dir():
        return _read_folder(Path(href), folders)
    if urlsplit(href).path.endswith((".parquet", ".geoparquet")):
        return [(item, href) for item in _read_parquet(href)]
    content = _read_json(href)
    kind = content.get("type") if isinstance(content, dict) else None
    if kind == "FeatureCollection" and isinstance(content.get("features"), list):
        return [(item, href) for item in content["features"]]
    if kind == "Feature":
        return [(content, href)]
    if kind in ("Catalog", "Collection"):
        return list(_walk(href, folders))
    raise SmaltiError(f"{href}: {_WHAT} must be a STAC item collection, catalogue, collection or stac-geoparquet")


def _read_folder(folder: Path, folders: Sequence[str]) -> list[tuple[Item, str]]:
    if (folder / "catalog.json").is_file():
        return list(_walk(str(folder / "catalog.json"), folders))
    found: list[tuple[Item, str]] = [(item, str(folder / COLLECTION)) for item in opera_items(folder)]
    own = sorted(folder.glob("*.json"))
    for path in own:
        found += read_static(str(path), folders)
    if not own:  # a folder for each granule
        for path in sorted(folder.rglob("*.json")):
            content = _read_json(str(path))
            if isinstance(content, dict) and content.get("type") in ("Feature", "FeatureCollection"):
                found += read_static(str(path), folders)
    if not found:
        raise SmaltiError(
            f"{folder}: {_WHAT} is a folder without catalog.json, items (*.json) or OPERA RTC-S1 files: files alone "
            "do not say what they are, docs/recipes.md (An archive of your own) writes items for them"
        )
    return found


def _read_bytes(href: str) -> bytes:
    if is_url(href):
        if not href.startswith(("http://", "https://")) and not is_bucket(href):
            raise SmaltiError(f"{href}: {_WHAT} can be a path, or an address of http(s), s3, gs or az")
        with _opened(href) as reading:
            return reading.remote_bytes(href, _WHAT)
    try:
        return read_regular(Path(href))
    except FileNotFoundError as error:
        raise SmaltiError(f"{href}: no such file: {_WHAT} names it") from error
    except OSError as error:
        raise SmaltiError(f"{href}: {_WHAT} cannot be read: {error.strerror}") from error


def _read_json(href: str) -> Any:
    try:
        return parse_json(_read_bytes(href))
    except ValueError as error:
        raise SmaltiError(f"{href}: {_WHAT} is not valid JSON: {error}") from error


class _Reading(DefaultStacIO):
    """Reads the files of a static catalogue, over HTTP with retries."""

    def __init__(self, transport: Transport, client: RangeClient, folders: Sequence[str]) -> None:
        super().__init__()
        self.transport, self.client, self.folders = transport, client, folders

    def remote_bytes(self, href: str, what: str) -> bytes:
        """A file over the network, from a bucket with what its signer knows."""
        return self.client.get_whole(href) if is_bucket(href) else fetch_bytes(self.transport, href, what)

    def json_loads(self, txt: str, *_args: Any, **_options: Any) -> dict[str, Any]:
        content = parse_json(txt)
        if not isinstance(content, dict):
            raise ValueError("a file of the catalogue is no JSON object")
        return content

    def read_text_from_href(self, href: str) -> str:
        wrong = beyond(os.path.normpath(href) if not is_url(href) else href, self.folders)
        if wrong:
            raise SmaltiError(f"{href}: the catalogue links to it: {wrong}")
        if is_url(href):
            return self.remote_bytes(href, "a file of the catalogue").decode()
        try:
            return read_regular(Path(href)).decode()
        except OSError as error:
            raise SmaltiError(f"{href}: a file of the catalogue cannot be read: {error.strerror}") from error


@contextmanager
def _opened(href: str, folders: Sequence[str] = ()) -> Iterator[_Reading]:
    """Connections for an archive's files, some of which may lie in folders; closed at the end."""
    signer = BucketSigner(href) if is_bucket(href) else None
    transport = HttpTransport(stall_s=THINKING_S)
    with RangeClient(signer, transport=transport) as client:
        yield _Reading(transport, client, folders)


def _walk(href: str, folders: Sequence[str]) -> Iterator[tuple[Item, str]]:
    """The items of a static catalogue, depth first."""
    with _opened(href, folders) as reading:
        try:
            catalogue = pystac.read_file(href, stac_io=reading)
            assert isinstance(catalogue, pystac.Catalog)  # the caller has looked
            for item in catalogue.get_items(recursive=True):
                own = item.get_self_href() or href
                yield item.to_dict(include_self_link=False, transform_hrefs=False), own
        except _NOT_STAC as error:
            cause = error.__context__ if isinstance(error.__context__, SmaltiError) else error
            raise SmaltiError(f"{href}: the catalogue cannot be read to its end: {brief(cause)}") from error


_ITEM_COLUMNS = ("type", "stac_version", "stac_extensions", "id", "collection", "links", "assets")


def _read_parquet(href: str) -> Iterator[Item]:
    content = _read_bytes(href)
    try:
        table = pyarrow.parquet.read_table(pyarrow.BufferReader(content))
    except (pyarrow.ArrowException, OSError) as error:
        raise SmaltiError(f"{href}: {_WHAT} cannot be read as parquet: {brief(error)}") from error
    missing = {"id", "assets", "geometry"} - set(table.column_names)
    if missing:
        raise SmaltiError(f"{href}: {_WHAT} is not stac-geoparquet: it has no column {', '.join(sorted(missing))}")
    for batch in table.to_batches(max_chunksize=1000):
        for row in batch.to_pylist():
            try:
                yield _item_of(row)
            except (shapely.errors.ShapelyError, LookupError, TypeError, ValueError, AttributeError) as error:
                raise SmaltiError(f"{href}: {_WHAT} has a row that is no STAC item: {brief(error)}") from error


def _item_of(row: dict[str, Any]) -> Item:
    """A row of stac-geoparquet as the item it was made from."""
    geometry, box = row.pop("geometry"), row.pop("bbox", None)
    item = {key: _plain(row.pop(key)) for key in _ITEM_COLUMNS if row.get(key) is not None}
    item["geometry"] = None if geometry is None else json.loads(shapely.to_geojson(shapely.from_wkb(geometry)))
    if isinstance(box, dict):
        item["bbox"] = [box[key] for key in ("xmin", "ymin", "xmax", "ymax")]
    item["properties"] = {key: _plain(value) for key, value in row.items() if value is not None}
    return item


def _plain(value: Any) -> Any:
    """JSON values, without the nulls that stand for what an item does not have."""
    if isinstance(value, datetime):
        return value.isoformat().replace("+00:00", "Z")
    if isinstance(value, dict):
        return {key: _plain(inner) for key, inner in value.items() if inner is not None}
    if isinstance(value, list):
        return [_plain(inner) for inner in value]
    return value
