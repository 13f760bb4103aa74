"""STAC items for the GeoTIFFs of a run: what, where, when, with which checksum. Hrefs are relative to the item."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, time
from pathlib import Path
from typing import Any

import numpy as np
import pystac
import shapely
from numpy.typing import NDArray
from pyproj import Transformer
from pystac.extensions.file import FileExtension
from pystac.extensions.projection import ProjectionExtension
from pystac.extensions.raster import DataType, NoDataStrings, RasterBand, RasterExtension
from shapely.geometry.polygon import orient

from infer.contract import PIXEL_SIZE, SOFTWARE, FileRecord, JsonObject, sha256_file, sha256_json, write_bytes
from preproc.raster.cog import Layer
from preproc.raster.model_item import MODEL_ITEM
from preproc.raster.provenance import RunProvenance
from preproc.raster.zones import ZoneGrid

_DECIMALS = 7
"""Of degrees: a centimetre."""
_CLASSIFICATION = "https://stac-extensions.github.io/classification/v2.0.0/schema.json"
_EMBEDDINGS = "https://stac-extensions.github.io/embeddings/v1.0.0/schema.json"
_ROLE, _ENCODER = "embeddings", "emb:encoder_model"
"""By which the extension knows an asset that holds them, and the link to the encoder."""
_ZARR = "application/vnd.zarr; version=3"
_PROCESSING = "https://stac-extensions.github.io/processing/v1.2.0/schema.json"
_SCIENTIFIC = "https://stac-extensions.github.io/scientific/v1.0.0/schema.json"
_CATALOGUES = {
    "mpc": "https://planetarycomputer.microsoft.com/api/stac/v1/collections/sentinel-2-l2a",
    "earth-search": "https://earth-search.aws.element84.com/v1/collections/sentinel-2-l2a",
}
_SENTINEL = "https://sentinel.esa.int/web/sentinel/missions/sentinel-2"
"""Of scenes from archives that have no address of their own."""
COLLECTION = "collection"
"""Name of a mosaic's collection, without its ending."""
_ID_DIGITS, _ID_WORD = 10, 40
"""Hexadecimal digits of the hash in an item's id, and the length that each word before it is cut to."""
_SHA256_MULTIHASH = "1220"
"""Code and length of SHA-256 in the multihash that file:checksum wants."""


@dataclass(frozen=True)
class AssetRecord:
    """One file of an item."""

    key: str
    path: Path
    """Already written, in the folder of the item."""
    title: str
    role: str
    layer: Layer | None = None
    """None: a picture."""
    classes: Sequence[JsonObject] = ()
    """classification:classes of a class map."""
    recorded: FileRecord | None = None
    """Its bytes and SHA-256, where a manifest has them already."""
    band_classes: Mapping[str, Sequence[JsonObject]] = field(default_factory=dict)
    """Band -> classification:classes, of a file whose other bands have none."""


def write_item(
    path: Path,
    grid: ZoneGrid,
    window: tuple[str, str],
    assets: Sequence[AssetRecord],
    properties: JsonObject,
    *,
    of: Sequence[str] = (),
    collection: str | None = None,
    embeddings: RunProvenance | None = None,
) -> None:
    """Write the STAC item of one zone's files.

    Args:
        path: of the item (.json), in the same folder as its files.
        grid: their extent and zone.
        window: first and last day.
        assets: the files.
        properties: title, description, model ...
        of: region and model, for the item's id; see `_identity`.
        collection: name of the collection beside it that it belongs to.
        embeddings: what is known of them, for an item that has them as its asset `embeddings`.
    """
    geometry, bbox = footprint(grid)
    start, end = (date.fromisoformat(day) for day in window)
    item = pystac.Item(
        id=path.stem,
        geometry=geometry,
        bbox=bbox,
        datetime=None,
        start_datetime=datetime.combine(start, time.min, UTC),
        end_datetime=datetime.combine(end, time(23, 59, 59), UTC),
        properties={**properties, "gsd": PIXEL_SIZE, "processing:level": "L4", "processing:software": _software()},
        stac_extensions=[_PROCESSING],
    )
    projection = ProjectionExtension.ext(item, add_if_missing=True)
    projection.apply(
        epsg=grid.epsg,
        shape=[grid.height, grid.width],
        transform=list(grid.transform)[:6],
        bbox=[float(value) for value in grid.bounds],
    )
    for record in assets:
        item.add_asset(record.key, _asset(record))
        _describe(item, item.assets[record.key], record)
    item.id = _identity([*of, path.stem, *window], [item.assets[record.key] for record in assets if record.layer])
    if embeddings is not None and any(record.key == "embeddings" for record in assets):
        item.stac_extensions.append(_EMBEDDINGS)
        item.properties.update(_embedding_properties(embeddings, assets))
        item.add_link(pystac.Link(_ENCODER, f"./{MODEL_ITEM}.json", pystac.MediaType.GEOJSON))
    if collection is not None:
        item.collection_id = "_".join([*map(_word, of), *window])
        item.add_link(pystac.Link("collection", f"./{collection}.json", pystac.MediaType.JSON))
    # not item.save_object: it would write the absolute path of this machine as the item's own link
    content = item.to_dict(include_self_link=False, transform_hrefs=False)
    write_bytes(path, (json.dumps(content, indent=1, allow_nan=False) + "\n").encode())


def write_collection(
    folder: Path, items: Sequence[Path], zones: Sequence[ZoneGrid], facts: RunProvenance, store: str | None
) -> Path:
    """Write the STAC collection of a mosaic: its items, and the store as a whole.

    Args:
        folder: of the mosaic.
        items: already written, in the folder.
        zones: of the mosaic.
        facts: about the embeddings.
        store: folder of the Zarr store, if there is one.
    """
    read = [json.loads(item.read_bytes()) for item in items]
    start, end = (date.fromisoformat(day) for day in facts.window)
    interval = [datetime.combine(start, time.min, UTC), datetime.combine(end, time(23, 59, 59), UTC)]
    collection = pystac.Collection(
        id="_".join(map(_word, (facts.region, facts.model, *facts.window))),
        description=f"{facts.content} of {facts.region}, {facts.window[0]} to {facts.window[1]}",
        extent=pystac.Extent(
            pystac.SpatialExtent([footprint(grid)[1] for grid in zones]), pystac.TemporalExtent([interval])
        ),
        license=facts.encoder.licence or "other",
        extra_fields=_kind(facts),
        stac_extensions=[_EMBEDDINGS],
    )
    if facts.encoder.citation is not None:
        collection.stac_extensions.append(_SCIENTIFIC)
        collection.extra_fields["sci:citation"] = facts.encoder.citation
    collection.add_link(
        pystac.Link(
            "emb:encoder_model", f"./{MODEL_ITEM}.json", pystac.MediaType.GEOJSON, title=f"Encoder: {facts.label}"
        )
    )
    collection.add_link(pystac.Link("emb:source-data", _CATALOGUES.get(facts.archive, _SENTINEL), title=facts.archive))
    if store is not None:
        about = "All zones as one Zarr v3 store: int8 codes and a scale a pixel"
        collection.add_asset("embeddings", pystac.Asset(f"./{store}", about, media_type=_ZARR, roles=["data", _ROLE]))
    for path, entry in zip(items, read, strict=True):
        link = pystac.Link("item", f"./{path.name}", pystac.MediaType.GEOJSON, title=entry["properties"]["title"])
        collection.add_link(link)
    content = collection.to_dict(include_self_link=False, transform_hrefs=False)
    path = folder / f"{COLLECTION}.json"
    write_bytes(path, (json.dumps(content, indent=1, allow_nan=False) + "\n").encode())
    return path


def _software() -> dict[str, str]:
    name, _, version = SOFTWARE.partition(" ")
    return {name: version}


def _kind(facts: RunProvenance) -> dict[str, Any]:
    """What the extension `embeddings` asks of everything that it describes."""
    return {"emb:type": "pixel", "emb:dimensions": [facts.dim]}


def _embedding_properties(facts: RunProvenance, assets: Sequence[AssetRecord]) -> dict[str, Any]:
    """What the extension `embeddings` says of a run of the encoder, and what was done before and after it."""
    lineage = "All clear Sentinel-2 L2A and all Sentinel-1 RTC observations of each pixel in the window"
    if facts.min_clear_s2:
        lineage += f", of pixels with {facts.min_clear_s2} clear ones of Sentinel-2 or more"
    lineage += ", standardised by the checkpoint's statistics and embedded."
    found = _kind(facts)
    layer = next(record.layer for record in assets if record.key == "embeddings")
    if layer is not None and layer.dtype == "int8":
        found |= {"emb:quantization_method": "per_pixel_scale", "emb:original_data_type": "float32"}
        lineage += " A number is code times scale, one scale a pixel."
    return {**found, "processing:lineage": lineage}


def _identity(words: Sequence[str], rasters: Sequence[pystac.Asset]) -> str:
    """An id that no other run's item has, so that one catalogue can hold both; equal pixels and tags have an equal one.

    The words are for people, their signs those that STAC's best practices allow; a hash of the checksums tells apart.
    """
    digest = sha256_json([[asset.href, asset.extra_fields["file:checksum"]] for asset in rasters])[:_ID_DIGITS]
    return "_".join([*filter(None, map(_word, words)), digest])


def _word(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9-]+", "-", text).strip("-")[:_ID_WORD]


def _asset(record: AssetRecord) -> pystac.Asset:
    kind = pystac.MediaType.PNG if record.layer is None else pystac.MediaType.COG
    roles = [record.role, _ROLE] if record.key == "embeddings" else [record.role]
    return pystac.Asset(href=f"./{record.path.name}", title=record.title, media_type=kind, roles=roles)


def _describe(item: pystac.Item, asset: pystac.Asset, record: AssetRecord) -> None:
    file = FileExtension.ext(asset, add_if_missing=True)
    known = record.recorded or {"sha256": sha256_file(record.path), "bytes": record.path.stat().st_size}
    file.apply(checksum=f"{_SHA256_MULTIHASH}{known['sha256']}", size=known["bytes"])
    if record.layer is None:
        return
    layer = record.layer
    nodata = NoDataStrings.NAN if np.isnan(layer.nodata) else int(layer.nodata)
    bands = [
        RasterBand.create(nodata=nodata, data_type=DataType(layer.dtype), spatial_resolution=PIXEL_SIZE)
        for _ in layer.bands
    ]
    RasterExtension.ext(asset, add_if_missing=True).apply(bands)
    asset.extra_fields["bands"] = [_band(name, record.band_classes) for name in layer.bands]  # STAC 1.1
    if record.classes:
        asset.extra_fields["classification:classes"] = [dict(entry) for entry in record.classes]
    if (record.classes or record.band_classes) and _CLASSIFICATION not in item.stac_extensions:
        item.stac_extensions.append(_CLASSIFICATION)


def _band(name: str, classes: Mapping[str, Sequence[JsonObject]]) -> dict[str, Any]:
    found: dict[str, Any] = {"name": name}
    if name in classes:
        found["classification:classes"] = [dict(entry) for entry in classes[name]]
    return found


def footprint(grid: ZoneGrid) -> tuple[dict[str, Any], list[float]]:
    """Outline of a zone's tiles in degrees (GeoJSON, cut at the antimeridian) and its box (west may exceed east).

    Tiles that lie apart give several polygons: what is not covered is not claimed.
    """
    extents = [shapely.box(*grid.tile_bounds(tile)) for tile in grid.tiles]
    covered = shapely.intersection(shapely.unary_union(extents), shapely.box(*grid.bounds))
    joined = shapely.segmentize(covered, 20_000.0)  # edges are not straight in degrees
    move = Transformer.from_crs(grid.epsg, 4326, always_xy=True)
    middle = (grid.epsg % 100) * 6 - 183

    def unwrapped(xy_n2: NDArray[np.float64]) -> NDArray[np.float64]:
        longitude, latitude = move.transform(xy_n2[:, 0], xy_n2[:, 1])
        near = (np.asarray(longitude) - middle + 180) % 360 - 180 + middle  # continuous across the antimeridian
        return np.round(np.column_stack([near, latitude]), _DECIMALS)

    outline = shapely.transform(joined, unwrapped)
    west, south, east, north = outline.bounds
    if west < -180 or east > 180:
        outline = _cut(outline)
        west, east = (value + 360 if value < -180 else value - 360 if value > 180 else value for value in (west, east))
    polygons = [orient(polygon) for polygon in shapely.get_parts(shapely.normalize(outline))]  # RFC 7946: right-handed
    whole = polygons[0] if len(polygons) == 1 else shapely.MultiPolygon(polygons)
    return json.loads(json.dumps(shapely.geometry.mapping(whole))), [west, south, east, north]


def _cut(outline: Any) -> Any:
    """A geometry that leaves -180..180, divided there."""
    pieces = []
    for turn in (-360.0, 0.0, 360.0):
        inside = shapely.intersection(outline, shapely.box(-180 + turn, -90, 180 + turn, 90))
        if not inside.is_empty:
            pieces.append(shapely.transform(inside, lambda xy, turn=turn: xy - np.array([turn, 0.0])))
    return shapely.unary_union(pieces)
