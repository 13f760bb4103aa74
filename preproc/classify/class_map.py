"""The wall-to-wall map, RUN/map/: predicted tiles -> classes and confidence per UTM zone, legend, pictures, counts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from infer.contract import PIXEL_SIZE, Run, planned_tiles, read_embedding, write_bytes
from infer.contract.classification import ClassEntry
from infer.contract.rasters import MapManifest, MappedClass, MapZone
from infer.contract.record import to_json
from preproc.classify.tile_map import read_prediction
from preproc.raster.cog import Layer, cog_writer
from preproc.raster.figure import class_figure
from preproc.raster.legend import (
    class_colours,
    colour_table,
    gdal_categories,
    legend_csv,
    legend_tags,
    qgis_style,
    slugs,
)
from preproc.raster.observations import NODATA, TOO_FEW, reason_classes, reason_codes, tally
from preproc.raster.preview import picture
from preproc.raster.provenance import RunProvenance
from preproc.raster.stac import AssetRecord, write_item
from preproc.raster.zones import ZoneGrid, zone_grids
from preproc.run.progress import Bar, progress
from preproc.run.stage import Unit

AREAS_ARE = "pixel counts, not an area estimate"
CONFIDENCE_IS = "probability that the classifier gives to the mapped class, in percent (1-100); not calibrated"
_REASONS_ARE = "why a pixel is not mapped"
_REFUSED = "#b9b3a9"
"""Colour of pixels with too few observations: grey, as what is no class."""
_HECTARES = PIXEL_SIZE**2 / 10_000
"""Of a pixel."""


@dataclass(frozen=True)
class _ZoneFiles:
    grid: ZoneGrid
    classes: Path
    classes_layer: Layer
    confidence: Path
    confidence_layer: Layer
    style: Path
    categories: Path
    item: Path
    figure: Path
    reasons: Path | None
    """Only where pixels were refused for too few observations: elsewhere the class map says as much."""
    reasons_layer: Layer

    @property
    def all(self) -> list[Path]:
        found = [self.classes, self.confidence, self.style, self.categories, self.item, self.figure]
        return found if self.reasons is None else [*found, self.reasons]


def build_map(run: Run, legend: Sequence[ClassEntry], facts: RunProvenance, unit: Unit) -> None:
    """Join the predicted tiles; writes every file of RUN/map and, last, its manifest.

    Raises:
        SmaltiError: if a tile's prediction is missing or damaged, or the disk is full.
    """
    zones = [_zone_files(run.map, grid, facts, legend) for grid in zone_grids(planned_tiles(run))]
    unit.manifest.unlink(missing_ok=True)
    histogram = np.zeros((256, 101), dtype=np.int64)
    without: Counter[str] = Counter()
    with progress("map", sum(len(zone.grid.tiles) for zone in zones), "tiles") as bar:
        for zone in zones:
            _write_zone(run, zone, histogram, without, bar)
    for zone in zones:
        _write_companions(zone, facts, legend)
    write_bytes(run.map / "legend.csv", legend_csv(legend))
    files = [run.map / "legend.csv", *(path for zone in zones for path in zone.all)]
    made = MapManifest(
        **facts.stated(),
        without=dict(sorted(without.items())),
        classes=tuple(_mapped(entry, histogram) for entry in legend),
        pixels=int(histogram.sum()),
        hectares=round(float(histogram.sum()) * _HECTARES, 2),
        areas_are=AREAS_ARE,
        confidence_is=CONFIDENCE_IS,
        zones={zone.grid.label: _zone(zone) for zone in zones},
    )
    _remove_others(run.map, files)
    made.write(unit.manifest, inputs=unit.inputs, files=files)


def _zone_files(folder: Path, grid: ZoneGrid, facts: RunProvenance, legend: Sequence[ClassEntry]) -> _ZoneFiles:
    tags = facts.tags()
    classes_tags = {**tags, "SMALTI_CONTENT": "class codes", **legend_tags(legend)}
    return _ZoneFiles(
        grid=grid,
        classes=folder / f"classes_{grid.label}.tif",
        classes_layer=Layer("uint8", 0, ("class",), "nearest", classes_tags, colour_table(legend)),
        confidence=folder / f"confidence_{grid.label}.tif",
        confidence_layer=Layer("uint8", 0, ("confidence",), "nearest", {**tags, "SMALTI_CONTENT": CONFIDENCE_IS}),
        style=folder / f"classes_{grid.label}.qml",
        categories=folder / f"classes_{grid.label}.tif.aux.xml",
        item=folder / f"map_{grid.label}.json",
        figure=folder / f"map_{grid.label}.png",
        reasons=folder / f"reasons_{grid.label}.tif" if facts.min_clear_s2 else None,
        reasons_layer=Layer("uint8", NODATA, ("reason",), "nearest", {**tags, "SMALTI_CONTENT": _REASONS_ARE}),
    )


def _write_zone(run: Run, zone: _ZoneFiles, histogram: NDArray[np.int64], without: Counter[str], bar: Bar) -> None:
    grid = zone.grid

    def tell(text: str) -> None:
        bar.advance(0, note=text)

    with ExitStack() as stack:
        classes = stack.enter_context(cog_writer(zone.classes, grid, zone.classes_layer, tell=tell))
        confidence = stack.enter_context(cog_writer(zone.confidence, grid, zone.confidence_layer, tell=tell))
        reasons = None
        if zone.reasons is not None:
            reasons = stack.enter_context(cog_writer(zone.reasons, grid, zone.reasons_layer, tell=tell))
        for tile in grid.tiles:
            values_hwc = read_prediction(run, tile.name, tile.size)
            place = grid.place(tile)
            classes.write(*place, values_hwc[..., :1])
            confidence.write(*place, values_hwc[..., 1:])
            if reasons is not None:
                codes_hw = reason_codes(read_embedding(run.embeddings, tile.name, checksums=False))
                reasons.write(*place, codes_hw[..., None])
                tally(without, codes_hw)
            cells = values_hwc[..., 0].astype(np.int64) * 101 + values_hwc[..., 1]
            histogram += np.bincount(cells.ravel(), minlength=256 * 101).reshape(256, 101)
            bar.advance(note=tile.name)
    histogram[0] = 0


def _write_companions(zone: _ZoneFiles, facts: RunProvenance, legend: Sequence[ClassEntry]) -> None:
    write_bytes(zone.style, qgis_style(legend))
    write_bytes(zone.categories, gdal_categories(legend))
    refused = ClassEntry(255, f"not mapped: fewer than {facts.min_clear_s2} clear Sentinel-2 observations", _REFUSED)

    def colours(strips: list[NDArray[Any]]) -> NDArray[np.uint8]:
        found = class_colours(strips[0][..., 0], legend)
        if zone.reasons is not None:
            found[strips[1][..., 0] == TOO_FEW] = (*refused.rgb, 255)
        return found

    files = [zone.classes] if zone.reasons is None else [zone.classes, zone.reasons]
    shown = picture(files, zone.grid, colours)
    keys = legend if zone.reasons is None else [*legend, refused]
    window = f"{facts.window[0]} to {facts.window[1]}"
    encoder = facts.model if facts.trained else facts.label
    note = f"{window} · encoder: {encoder} · UTM zone {zone.grid.label} · {facts.tags()['SMALTI_SOFTWARE']}"
    write_bytes(zone.figure, class_figure(shown, keys, "Class map", note))
    classes = [
        {"value": e.code, "name": slug, "title": e.name, "color_hint": e.color[1:].upper()}
        for e, slug in zip(legend, slugs(legend), strict=True)
    ]
    assets = [
        AssetRecord("classes", zone.classes, "Class map", "data", zone.classes_layer, classes),
        AssetRecord("confidence", zone.confidence, CONFIDENCE_IS, "data", zone.confidence_layer),
        *(
            []
            if zone.reasons is None
            else [AssetRecord("reasons", zone.reasons, _REASONS_ARE, "metadata", zone.reasons_layer, reason_classes())]
        ),
        AssetRecord("picture", zone.figure, "Class map with legend", "overview"),
    ]
    properties = {
        "title": f"Class map, UTM zone {zone.grid.label}, {window}",
        "smalti:model": to_json(facts.encoder),
        "smalti:data_sources": list(facts.data_sources),
    }
    write_item(zone.item, zone.grid, facts.window, assets, properties, of=(facts.region, facts.model))


def _mapped(entry: ClassEntry, histogram: NDArray[np.int64]) -> MappedClass:
    pixels = int(histogram[entry.code].sum())
    by_confidence = tuple(histogram[entry.code].tolist())
    return MappedClass(entry.code, entry.name, entry.color, pixels, round(pixels * _HECTARES, 2), by_confidence)


def _zone(zone: _ZoneFiles) -> MapZone:
    return MapZone(
        epsg=zone.grid.epsg,
        width=zone.grid.width,
        height=zone.grid.height,
        bounds=zone.grid.bounds,
        classes=zone.classes.name,
        confidence=zone.confidence.name,
        style=zone.style.name,
        item=zone.item.name,
        picture=zone.figure.name,
        reasons=None if zone.reasons is None else zone.reasons.name,
    )


def _remove_others(folder: Path, files: Sequence[Path]) -> None:
    """Files of an earlier map (another zone) would be taken for part of this one."""
    for path in folder.iterdir():
        ours = path.name.startswith(("classes_", "confidence_", "map_", "reasons_"))
        if ours and path.is_file() and path not in files:
            path.unlink()
