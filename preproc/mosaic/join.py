"""The last step of `stitch`: what is said of all sheets together. It reads their manifests and small pixels only."""

from __future__ import annotations

import math
import shutil
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from infer.contract import Run, SmaltiError
from infer.contract.rasters import MosaicManifest, MosaicSheet, MosaicZone, PreviewColours
from infer.contract.record import to_json
from preproc.mosaic.pca import Components, principal_components
from preproc.mosaic.sheet import PREVIEWS, SheetFiles, codes_layer, scales_layer, small_values, values_layer
from preproc.mosaic.store import STORE, depths_of, group_of, write_metadata
from preproc.raster.model_item import MODEL_ITEM, TABLE, write_model_item, write_table
from preproc.raster.observations import BANDS, observation_layer, origin_classes, reason_classes
from preproc.raster.preview import framed, write_png
from preproc.raster.provenance import RunProvenance
from preproc.raster.stac import COLLECTION, AssetRecord, footprint, write_collection, write_item
from preproc.raster.vrt import INDEX, MOST_SOURCES, write_index, write_vrt
from preproc.raster.zones import Sheet, ZoneGrid
from preproc.run.config import Stitch
from preproc.run.progress import progress, say
from preproc.run.stage import Unit

_DECIDE = 1 << 18
"""Pixels of the previews, about, that decide on their colours."""


@dataclass(frozen=True)
class ZoneSheets:
    """A zone, its sheets, and how many of its pixels are one of its preview."""

    grid: ZoneGrid
    sheets: tuple[Sheet, ...]
    step: int

    def place(self, sheet: Sheet) -> tuple[int, int]:
        """Row and column of the preview where a sheet's pixels begin."""
        return -(-sheet.top // self.step), -(-sheet.left // self.step)


def join_sheets(run: Run, settings: Stitch, facts: RunProvenance, zones: Sequence[ZoneSheets], unit: Unit) -> None:
    """Write what RUN/mosaic needs besides its sheets and, last, its manifest.

    Raises:
        SmaltiError: if no pixel of any tile has an embedding, or a sheet is missing.
    """
    unit.manifest.unlink(missing_ok=True)
    names = [sheet.name for zone in zones for sheet in zone.sheets]
    made = {name: MosaicSheet.read_file(SheetFiles(run.mosaic, name).manifest, run) for name in names}
    if not any(sheet.pixels for sheet in made.values()):
        raise SmaltiError(
            f"{run.embeddings}: no pixel of any tile has an embedding: look at `smalti status {run.quoted}`"
        )
    components = principal_components(_deciding(run.mosaic, zones, facts.dim))
    files: list[Path] = []
    described: dict[str, MosaicZone] = {}
    if "zarr" in settings.formats:
        files += write_metadata(run.mosaic / STORE, [zone.grid for zone in zones], facts, settings.sheet)
    items: list[Path] = []
    with progress("stitch: joining", len(names), "sheets") as bar:
        for zone in zones:
            preview = run.mosaic / f"preview_{zone.grid.label}.png"
            write_png(preview, _preview(run.mosaic, zone, components))
            files.append(preview)
            for sheet in zone.sheets:
                items.append(_write_item(run.mosaic, settings, facts, zone, sheet, made[sheet.name]))
                bar.advance(note=sheet.name)
            files += _write_vrts(run.mosaic, settings, facts, zone)
            described[zone.grid.label] = _zone(settings, facts, zone)
    grids = [zone.grid for zone in zones]
    files += [*items, write_collection(run.mosaic, items, grids, facts, STORE if "zarr" in settings.formats else None)]
    model, table = run.mosaic / f"{MODEL_ITEM}.json", run.mosaic / TABLE
    write_model_item(model, facts, *footprint(grids[0]))
    write_table(table, items)
    files += [model, table]
    about = MosaicManifest(
        **facts.stated(),
        without=dict(sum((Counter(sheet.without) for sheet in made.values()), Counter())),
        pixels=sum(sheet.pixels for sheet in made.values()),
        codes_clipped=sum(sheet.codes_clipped for sheet in made.values()),
        dtype=settings.dtype,
        zones=described,
        preview=PreviewColours(tuple(round(float(share), 4) for share in components.share_3)),
        store=STORE if "zarr" in settings.formats else None,
        depths=depths_of(facts) if "zarr" in settings.formats else (),
    )
    _remove_others(run.mosaic, files, names, made)
    about.write(unit.manifest, inputs=unit.inputs, files=files)
    if not facts.trained:
        say(f"stitch: the model is not trained ({facts.label}): these embeddings show that the chain works, no more")


def _deciding(folder: Path, zones: Sequence[ZoneSheets], dim: int) -> NDArray[np.float32]:
    """(N, C) of the previews' pixels those that decide on their colours: of many every so many-th."""
    shown = sum((zone.grid.height // zone.step) * (zone.grid.width // zone.step) for zone in zones)
    every = math.ceil(math.sqrt(shown / _DECIDE)) or 1
    found = [np.empty((0, dim), dtype=np.float32)]
    for zone in zones:
        for sheet in zone.sheets:
            row, column = zone.place(sheet)
            rows, columns = slice(-row % every, None, every), slice(-column % every, None, every)
            parts = small_values(SheetFiles(folder, sheet.name), rows, columns)
            found += [values_hwc[~np.isnan(values_hwc[..., 0])] for values_hwc in parts]
    return np.concatenate(found)


def _preview(folder: Path, zone: ZoneSheets, components: Components) -> NDArray[np.uint8]:
    step, grid = zone.step, zone.grid
    rgba_hwc = np.zeros((-(-grid.height // step), -(-grid.width // step), 4), dtype=np.uint8)
    for sheet in zone.sheets:
        row, column = zone.place(sheet)
        for values_hwc in small_values(SheetFiles(folder, sheet.name)):
            height, width, _ = values_hwc.shape
            rgba_hwc[row : row + height, column : column + width] = components.colours(values_hwc)
            row += height
    return framed(rgba_hwc, grid, step).rgba_hwc


def _layers(settings: Stitch, facts: RunProvenance, files: SheetFiles) -> list[AssetRecord]:
    """The GeoTIFFs of a sheet."""
    title = "Observations a pixel, and why it has no embedding"
    classes = {"reason": reason_classes(), "origin": origin_classes()}
    layer = observation_layer(facts)
    observed = AssetRecord("observations", files.observations, title, "metadata", layer, band_classes=classes)
    if "cog" not in settings.formats:
        return [observed]
    if settings.dtype == "float32":
        return [AssetRecord("embeddings", files.raster, _capital(facts.content), "data", values_layer(facts)), observed]
    scales = scales_layer(facts, files.stem)
    return [
        AssetRecord("embeddings", files.raster, _capital(facts.content), "data", codes_layer(facts, files.stem)),
        AssetRecord("scales", files.scales, "Scale of each pixel's codes", "data", scales),
        observed,
    ]


def _write_item(
    folder: Path, settings: Stitch, facts: RunProvenance, zone: ZoneSheets, sheet: Sheet, made: MosaicSheet
) -> Path:
    files = SheetFiles(folder, sheet.name)
    assets = [replace(layer, recorded=made.files[layer.path.name]) for layer in _layers(settings, facts, files)]
    if len(zone.sheets) == 1:
        preview = folder / f"preview_{zone.grid.label}.png"
        assets.append(AssetRecord("preview", preview, "First three principal components as colours", "overview"))
    properties = {
        "title": f"{_capital(facts.content)}, UTM zone {sheet.name}, {facts.window[0]} to {facts.window[1]}",
        "smalti:model": to_json(facts.encoder),
        "smalti:data_sources": list(made.data_sources),
        "smalti:dimensions": facts.dim,
    }
    path = folder / f"{files.stem}.json"
    write_item(
        path,
        sheet.grid,
        facts.window,
        assets,
        properties,
        of=(facts.region, facts.model),
        collection=COLLECTION,
        embeddings=facts,
    )
    return path


def _write_vrts(folder: Path, settings: Stitch, facts: RunProvenance, zone: ZoneSheets) -> list[Path]:
    """A zone's sheets as one raster, where it has several: a tile index, and a VRT if that is not too long."""
    if len(zone.sheets) == 1:
        return []
    parts = {sheet.name: _layers(settings, facts, SheetFiles(folder, sheet.name)) for sheet in zone.sheets}
    paths = []
    for number, record in enumerate(_layers(settings, facts, SheetFiles(folder, zone.grid.label))):
        assert record.layer is not None
        files = [(sheet, parts[sheet.name][number].path) for sheet in zone.sheets]
        paths.append(record.path.with_suffix(INDEX))
        write_index(paths[-1], zone.grid, record.layer, files)
        if _suffix(zone, len(record.layer.bands)) == ".vrt":
            paths.append(record.path.with_suffix(".vrt"))
            write_vrt(paths[-1], zone.grid, record.layer, files)
    return paths


def _suffix(zone: ZoneSheets, bands: int) -> str:
    """How the one raster of a zone is written: as it is, as a VRT, or as an index, where a VRT would be too long."""
    if len(zone.sheets) == 1:
        return ".tif"
    return ".vrt" if len(zone.sheets) * bands <= MOST_SOURCES else INDEX


def _zone(settings: Stitch, facts: RunProvenance, zone: ZoneSheets) -> MosaicZone:
    grid, alone = zone.grid, len(zone.sheets) == 1
    cog = "cog" in settings.formats
    suffix = _suffix(zone, facts.dim)
    return MosaicZone(
        epsg=grid.epsg,
        width=grid.width,
        height=grid.height,
        bounds=grid.bounds,
        tiles=len(grid.tiles),
        raster=f"embeddings_{grid.label}{suffix}" if cog else None,
        scales=f"embeddings_{grid.label}_scales{_suffix(zone, 1)}" if cog and settings.dtype == "int8" else None,
        item=f"embeddings_{grid.label}.json" if alone else f"{COLLECTION}.json",
        preview=f"preview_{grid.label}.png",
        observations=f"observations_{grid.label}{_suffix(zone, len(BANDS))}",
        group=group_of(grid) if "zarr" in settings.formats else None,
        sheets={sheet.name: f"sheet_{sheet.name}.json" for sheet in zone.sheets},
    )


def _capital(text: str) -> str:
    return text[0].upper() + text[1:]


def _remove_others(folder: Path, files: Sequence[Path], names: Sequence[str], made: Mapping[str, MosaicSheet]) -> None:
    """Files of an earlier mosaic (another type, zone, division) would be taken for part of this one."""
    keep = {*files, *(SheetFiles(folder, name).manifest for name in names)}
    keep |= {folder / name for sheet in made.values() for name in sheet.files}
    for path in folder.iterdir():
        ours = path.name.startswith(("embeddings_", "observations_", "preview_", "sheet_", COLLECTION))
        if ours and path.is_file() and path.suffix in (".tif", ".json", ".png", ".vrt", ".gpkg") and path not in keep:
            path.unlink()
    for inner in (folder / STORE, folder / PREVIEWS):
        for path in inner.rglob("*"):
            if path.is_file() and path not in keep:
                path.unlink()
        if inner.is_dir() and not any(path.is_relative_to(inner) for path in keep):
            shutil.rmtree(inner)
