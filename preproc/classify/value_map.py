"""The map of a number, RUN/map/: float32 with an interval, sheet by sheet and joined a zone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
from numpy.typing import NDArray
from rasterio.windows import Window

from infer.contract import Run, verify_files
from infer.contract.rasters import MapSheet, ValueMapManifest, ValueZone
from infer.contract.record import to_json
from preproc.classify.class_map import MapLayer, MapZoneSheets, sheet_manifest
from preproc.classify.regression import Regressor, load_regressor
from preproc.raster.cog import Layer, cog_writer
from preproc.raster.provenance import Embeddings, RunProvenance
from preproc.raster.stac import AssetRecord, write_item
from preproc.raster.strips import ROWS, Strip, strips
from preproc.raster.zones import Sheet
from preproc.run.progress import progress
from preproc.run.stage import Unit
from preproc.run.workers import within_unit

_PIXELS = 1 << 15
_REMEDY = "run `smalti predict` again"


def value_layer(facts: RunProvenance, value: str) -> MapLayer:
    """The one raster of such a map: the number and the ends of its interval."""
    content = f"{value}: median, and 90 % interval"
    bands = (value, f"{value}, 5 %", f"{value}, 95 %")
    layer = Layer("float32", float("nan"), bands, "average", {**facts.tags(), "SMALTI_CONTENT": content})
    return MapLayer("values", content, "data", layer)


@dataclass
class ValueSheetMaker:
    """Predicts sheets; each process loads the model once."""

    run: Run
    folder: Path
    """Of the model."""
    embeddings: Embeddings
    sheets: Mapping[str, Sheet]
    """Name -> sheet."""

    def __call__(self, unit: Unit) -> None:
        """Write a sheet and, last, its manifest."""
        sheet = self.sheets[unit.name]
        facts = self.embeddings.provenance(sheet.grid.tiles)
        layer = value_layer(facts, self._model.value)
        path = layer.sheet_path(self.run.map, sheet)
        unit.manifest.unlink(missing_ok=True)
        pixels, total = 0, 0.0
        steps = -(-sheet.grid.height // ROWS)
        with (
            within_unit(f"predict: {sheet.name}", steps, "strips") as done,
            cog_writer(path, sheet.grid, layer.layer) as writer,
        ):
            for strip in strips(self.run, sheet, facts, codes=facts.int8, values=not facts.int8):
                found = predict_strip(strip, self._model)
                writer.write(strip.top, 0, found)
                valid = np.isfinite(found[..., 0])
                pixels += int(valid.sum())
                total += float(found[..., 0][valid].sum(dtype=np.float64))
                done()
        about = MapSheet(
            **facts.stated(),
            zone=sheet.zone,
            row=sheet.row,
            column=sheet.column,
            epsg=sheet.grid.epsg,
            bounds=sheet.grid.bounds,
            confidence={},
            pixels=pixels,
            total=total,
        )
        about.write(unit.manifest, inputs=unit.inputs, files=[path])

    @cached_property
    def _model(self) -> Regressor:
        return load_regressor(self.folder)

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in self.__dict__.items() if key != "_model"}


def predict_strip(strip: Strip, model: Regressor) -> NDArray[np.float32]:
    """(h, W, 3) the number and the ends of its interval; NaN where there is no embedding."""
    height, width = strip.scales_hw.shape
    valid_n = np.isfinite(strip.scales_hw.reshape(-1))
    found_n3 = np.full((height * width, 3), np.nan, dtype=np.float32)
    for start in range(0, height * width, _PIXELS):
        part = slice(start, start + _PIXELS)
        found_n3[part][valid_n[part]] = model.predict(strip.valid_values(part.start, part.stop))
    return found_n3.reshape(height, width, 3)


def join_values(run: Run, value: str, facts: RunProvenance, zones: Sequence[MapZoneSheets], unit: Unit) -> None:
    """Join the sheets; writes every other file of RUN/map and, last, its manifest.

    Raises:
        SmaltiError: if a sheet is missing or damaged, or the disk is full.
    """
    unit.manifest.unlink(missing_ok=True)
    layer = value_layer(facts, value)
    pixels, total = 0, 0.0
    files, made = [], {}
    with progress("predict: joining", sum(len(zone.sheets) for zone in zones), "sheets") as bar:
        for zone in zones:
            for sheet in zone.sheets:
                path = sheet_manifest(run, sheet.name)
                about = MapSheet.read_file(path, run)
                verify_files(path, about.files, remedy=_REMEDY)
                pixels, total = pixels + (about.pixels or 0), total + (about.total or 0.0)
                bar.advance(note=sheet.name)
            if len(zone.sheets) > 1:
                _join_zone(run.map, zone, layer)
            path, item = layer.path(run.map, zone.grid.label), run.map / f"map_{zone.grid.label}.json"
            window = f"{facts.window[0]} to {facts.window[1]}"
            properties = {
                "title": f"Map of {value}, UTM zone {zone.grid.label}, {window}",
                "smalti:model": to_json(facts.encoder),
                "smalti:data_sources": list(facts.data_sources),
            }
            record = AssetRecord(layer.key, path, layer.title, layer.role, layer.layer)
            write_item(item, zone.grid, facts.window, [record], properties, of=(facts.region, facts.model))
            files += [path, item]
            grid = zone.grid
            sheets = {sheet.name: sheet_manifest(run, sheet.name).name for sheet in zone.sheets}
            made[grid.label] = ValueZone(grid.epsg, grid.width, grid.height, grid.bounds, path.name, item.name, sheets)
    mean = total / pixels if pixels else None
    manifest = ValueMapManifest(**facts.stated(), value=value, pixels=pixels, mean=mean, zones=made)
    manifest.write(unit.manifest, inputs=unit.inputs, files=files)


def _join_zone(folder: Path, zone: MapZoneSheets, layer: MapLayer) -> None:
    with cog_writer(layer.path(folder, zone.grid.label), zone.grid, layer.layer) as target:
        for sheet in zone.sheets:
            with rasterio.open(layer.sheet_path(folder, sheet)) as source:
                for top in range(0, source.height, layer.layer.block):
                    window = Window(0, top, source.width, min(layer.layer.block, source.height - top))
                    target.write(sheet.top + top, sheet.left, np.moveaxis(source.read(window=window), 0, 2))
