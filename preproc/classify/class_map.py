"""The wall-to-wall map, RUN/map/: its layers, sheet by sheet and joined a zone, legend, pictures, counts."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
from numpy.typing import NDArray
from rasterio.windows import Window

from infer.contract import PIXEL_SIZE, JsonObject, Run, verify_files, write_bytes
from infer.contract.classification import ClassEntry
from infer.contract.rasters import MapManifest, MappedClass, MapSheet, MapZone
from infer.contract.record import to_json
from preproc.raster.cog import Layer, cog_writer
from preproc.raster.legend import (
    class_colours,
    colour_table,
    gdal_categories,
    legend_csv,
    legend_tags,
    qgis_style,
    slugs,
)
from preproc.raster.observations import NODATA, TOO_FEW, reason_classes
from preproc.raster.preview import class_figure, picture
from preproc.raster.provenance import RunProvenance
from preproc.raster.stac import AssetRecord, write_item
from preproc.raster.zones import Sheet, ZoneGrid
from preproc.run.progress import Bar, progress
from preproc.run.stage import Unit

AREAS_ARE = "pixel counts, not an area estimate"
CONFIDENCE_IS = "probability that the classifier gives to the mapped class, in percent (1-100); not calibrated"
PROBABILITIES_ARE = "probability that the classifier gives to each class, in percent (0-100); not calibrated"
_REASONS_ARE = "why a pixel is not mapped"
_REFUSED = "#b9b3a9"
"""Colour of pixels with too few observations: grey, as what is no class."""
_HECTARES = PIXEL_SIZE**2 / 10_000
"""Of a pixel."""
_REMEDY = "run `smalti predict` again"


@dataclass(frozen=True)
class MapLayer:
    """One raster of the map."""

    key: str
    """Of the asset, and the beginning of its files' names."""
    title: str
    role: str
    """Of the asset: data, metadata."""
    layer: Layer
    classes: Sequence[JsonObject] = ()
    """classification:classes, where its values are such."""

    def path(self, folder: Path, label: str) -> Path:
        """Of a zone's file."""
        return folder / f"{self.key}_{label}.tif"

    def sheet_path(self, folder: Path, sheet: Sheet) -> Path:
        """Of a sheet's file: the zone's, where the zone is one sheet."""
        return self.path(folder if sheet.name == sheet.zone else folder / "sheets", sheet.name)

    def asset(self, path: Path) -> AssetRecord:
        """Its file in an item."""
        return AssetRecord(self.key, path, self.title, self.role, self.layer, self.classes)


@dataclass(frozen=True)
class MapZoneSheets:
    """A zone and its sheets."""

    grid: ZoneGrid
    sheets: tuple[Sheet, ...]


def map_layers(facts: RunProvenance, legend: Sequence[ClassEntry], *, probabilities: bool) -> list[MapLayer]:
    """What a class map consists of: names, types, nodata and how a coarser level is made of each."""
    tags = facts.tags()

    def layer(bands: tuple[str, ...], nodata: int, overviews: Any, content: str, **more: Any) -> Layer:
        named = {**tags, "SMALTI_CONTENT": content, **more.pop("tags", {})}
        return Layer("uint8", nodata, bands, overviews, named, **more)

    named = [
        {"value": entry.code, "name": slug, "title": entry.name, "color_hint": entry.color[1:].upper()}
        for entry, slug in zip(legend, slugs(legend), strict=True)
    ]
    coloured = layer(("class",), 0, "mode", "class codes", tags=legend_tags(legend), colours=colour_table(legend))
    layers = [
        MapLayer("classes", "Class map", "data", coloured, named),
        MapLayer("confidence", CONFIDENCE_IS, "data", layer(("confidence",), 0, "average", CONFIDENCE_IS)),
    ]
    if facts.min_clear_s2:  # elsewhere the class map says as much
        reasons = layer(("reason",), NODATA, "mode", _REASONS_ARE)
        layers.append(MapLayer("reasons", _REASONS_ARE, "metadata", reasons, reason_classes()))
    if probabilities:
        shares = layer(tuple(entry.name for entry in legend), NODATA, "average", PROBABILITIES_ARE)
        layers.append(MapLayer("probabilities", PROBABILITIES_ARE, "data", shares))
    return layers


def sheet_manifest(run: Run, name: str) -> Path:
    """Of a sheet of the map."""
    return run.map / f"sheet_{name}.json"


def join_map(
    run: Run,
    legend: Sequence[ClassEntry],
    facts: RunProvenance,
    zones: Sequence[MapZoneSheets],
    unit: Unit,
    *,
    probabilities: bool,
) -> None:
    """Join the predicted sheets; writes every other file of RUN/map and, last, its manifest.

    Raises:
        SmaltiError: if a sheet is missing or damaged, or the disk is full.
    """
    unit.manifest.unlink(missing_ok=True)
    layers = map_layers(facts, legend, probabilities=probabilities)
    made: dict[str, MapSheet] = {}
    sheets = [sheet for zone in zones for sheet in zone.sheets]
    with progress("predict: joining", len(sheets), "sheets") as bar:
        for sheet in sheets:
            path = sheet_manifest(run, sheet.name)
            made[sheet.name] = MapSheet.read_file(path, run)
            verify_files(path, made[sheet.name].files, remedy=_REMEDY)
            bar.advance(note=sheet.name)
        for zone in zones:
            if len(zone.sheets) > 1:
                _join_zone(run.map, zone, layers, bar)
    files = [run.map / "legend.csv"]
    write_bytes(files[0], legend_csv(legend))
    for zone in zones:
        files += [layer.path(run.map, zone.grid.label) for layer in layers]
        files += _write_companions(run.map, zone.grid, layers, facts, legend)
    histogram = np.zeros((256, 101), dtype=np.int64)
    for about in made.values():
        for code, counts in about.confidence.items():
            histogram[int(code)] += counts
    without: Counter[str] = sum((Counter(about.without) for about in made.values()), Counter())
    manifest = MapManifest(
        **facts.stated(),
        without=dict(sorted(without.items())),
        classes=tuple(_mapped(entry, histogram) for entry in legend),
        pixels=int(histogram.sum()),
        hectares=round(float(histogram.sum()) * _HECTARES, 2),
        areas_are=AREAS_ARE,
        confidence_is=CONFIDENCE_IS,
        zones={zone.grid.label: _zone(zone, layers) for zone in zones},
    )
    _remove_others(run, files, sheets, made)
    manifest.write(unit.manifest, inputs=unit.inputs, files=files)


def _join_zone(folder: Path, zone: MapZoneSheets, layers: Sequence[MapLayer], bar: Bar) -> None:
    """One file a layer of the sheets of a zone; its coarser levels are made from it as a whole."""
    for layer in layers:
        path = layer.path(folder, zone.grid.label)
        with cog_writer(path, zone.grid, layer.layer, tell=lambda text: bar.advance(0, note=text)) as target:
            for sheet in zone.sheets:
                with rasterio.open(layer.sheet_path(folder, sheet)) as source:
                    for top in range(0, source.height, layer.layer.block):
                        window = Window(0, top, source.width, min(layer.layer.block, source.height - top))
                        values_hwc = np.moveaxis(source.read(window=window), 0, 2)
                        if (values_hwc != layer.layer.nodata).any():
                            target.write(sheet.top + top, sheet.left, values_hwc)


def _write_companions(
    folder: Path, grid: ZoneGrid, layers: Sequence[MapLayer], facts: RunProvenance, legend: Sequence[ClassEntry]
) -> list[Path]:
    label = grid.label
    style, categories = folder / f"classes_{label}.qml", folder / f"classes_{label}.tif.aux.xml"
    item, figure = folder / f"map_{label}.json", folder / f"map_{label}.png"
    write_bytes(style, qgis_style(legend))
    write_bytes(categories, gdal_categories(legend))
    refused = ClassEntry(255, f"not mapped: fewer than {facts.min_clear_s2} clear Sentinel-2 observations", _REFUSED)
    shown_layers = [layer.path(folder, label) for layer in layers if layer.key in ("classes", "reasons")]

    def colours(strips: list[NDArray[Any]]) -> NDArray[np.uint8]:
        found = class_colours(strips[0][..., 0], legend)
        if len(strips) > 1:
            found[strips[1][..., 0] == TOO_FEW] = (*refused.rgb, 255)
        return found

    shown = picture(shown_layers, grid, colours)
    keys = legend if len(shown_layers) == 1 else [*legend, refused]
    window = f"{facts.window[0]} to {facts.window[1]}"
    encoder = facts.model if facts.trained else facts.label
    note = f"{window} · encoder: {encoder} · UTM zone {label} · {facts.tags()['SMALTI_SOFTWARE']}"
    write_bytes(figure, class_figure(shown, keys, "Class map", note))
    assets = [layer.asset(layer.path(folder, label)) for layer in layers]
    assets.append(AssetRecord("picture", figure, "Class map with legend", "overview"))
    properties = {
        "title": f"Class map, UTM zone {label}, {window}",
        "smalti:model": to_json(facts.encoder),
        "smalti:data_sources": list(facts.data_sources),
    }
    write_item(item, grid, facts.window, assets, properties, of=(facts.region, facts.model))
    return [style, categories, item, figure]


def _mapped(entry: ClassEntry, histogram: NDArray[np.int64]) -> MappedClass:
    pixels = int(histogram[entry.code].sum())
    by_confidence = tuple(histogram[entry.code].tolist())
    return MappedClass(entry.code, entry.name, entry.color, pixels, round(pixels * _HECTARES, 2), by_confidence)


def _zone(zone: MapZoneSheets, layers: Sequence[MapLayer]) -> MapZone:
    grid = zone.grid
    return MapZone(
        epsg=grid.epsg,
        width=grid.width,
        height=grid.height,
        bounds=grid.bounds,
        style=f"classes_{grid.label}.qml",
        item=f"map_{grid.label}.json",
        picture=f"map_{grid.label}.png",
        sheets={sheet.name: f"sheet_{sheet.name}.json" for sheet in zone.sheets},
        **{layer.key: layer.path(Path(), grid.label).name for layer in layers},
    )


def _remove_others(run: Run, files: Sequence[Path], sheets: Sequence[Sheet], made: Mapping[str, MapSheet]) -> None:
    """Files of an earlier map (another zone, another division) would be taken for part of this one."""
    keep = {*files, *(sheet_manifest(run, sheet.name) for sheet in sheets)}
    keep |= {run.map / name for about in made.values() for name in about.files}
    for folder in (run.map, run.map / "sheets"):
        for path in folder.iterdir() if folder.is_dir() else ():
            ours = path.name.startswith(("classes_", "confidence_", "map_", "reasons_", "probabilities_", "sheet_"))
            if ours and path.is_file() and path not in keep:
                path.unlink()
    with suppress(OSError):
        (run.map / "sheets").rmdir()  # if it is empty
    tiles = run.map / "tiles"  # of version 0.1.0 before there were sheets
    if tiles.is_dir() and all(path.suffix in (".npy", ".json") for path in tiles.iterdir()):
        shutil.rmtree(tiles)
