"""The `stitch` stage: embeddings -> one cloud-optimised GeoTIFF per UTM zone, with STAC item and preview."""

from __future__ import annotations

import shutil
from collections import Counter
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from infer.contract import Embedding, PlannedTile, Run, SmaltiError, planned_tiles, read_embedding
from infer.contract.embedding import dequantise
from infer.contract.rasters import MosaicManifest, MosaicZone, PreviewColours
from infer.contract.record import to_json
from preproc.mosaic.pca import Components, PixelSample, principal_components, sample_limit
from preproc.mosaic.quantise import to_codes
from preproc.raster.cog import CogWriter, Layer, cog_writer, scratch_bytes
from preproc.raster.observations import (
    BANDS,
    observation_layer,
    observation_values,
    origin_classes,
    reason_classes,
    tally,
)
from preproc.raster.preview import picture, write_png
from preproc.raster.provenance import RunProvenance, read_provenance
from preproc.raster.stac import AssetRecord, write_item
from preproc.raster.zones import ZoneGrid, zone_grids
from preproc.run.config import Config
from preproc.run.progress import Bar, progress, say
from preproc.run.stage import Session, Unit, one_by_one

_ROWS = 128
"""Rows of a tile in memory at a time."""
CODES_NODATA = -128


class StitchStage:
    """`smalti stitch`."""

    name = "stitch"
    noun = "mosaics"
    sharded = False
    apart = False

    def open(self, run: Run, config: Config) -> Session:
        """The one mosaic (a file or two per zone), and what it is made from."""
        facts = read_provenance(run)
        unit = Unit(MosaicManifest.kind, run.mosaic_manifest, MosaicManifest.kind, mosaic_inputs(facts, config))
        return Session([unit], lambda due: one_by_one(due.units, lambda unit: build_mosaic(run, config, facts, unit)))


def mosaic_inputs(facts: RunProvenance, config: Config) -> dict[str, Any]:
    """What the mosaic depends on."""
    return {
        "embeddings": facts.fingerprint,
        "checkpoint": facts.checkpoint,
        "model": [facts.model, facts.label, facts.trained],
        "window": list(facts.window),
        "archive": [facts.archive, *facts.data_sources],
        "dtype": config.stitch.dtype,
    }


@dataclass(frozen=True)
class _ZoneFiles:
    """Where the files of one zone go, and what they hold."""

    grid: ZoneGrid
    pixels: Path
    layer: Layer
    scales: Path | None
    """int8 only."""
    scales_layer: Layer
    item: Path
    preview: Path
    observations: Path
    observations_layer: Layer

    @property
    def rasters(self) -> list[Path]:
        """The GeoTIFFs."""
        return [self.pixels] if self.scales is None else [self.pixels, self.scales]


def build_mosaic(run: Run, config: Config, facts: RunProvenance, unit: Unit) -> None:
    """Write every file of RUN/mosaic and, last, its manifest.

    Raises:
        SmaltiError: if an embedding is damaged, or the disk is full.
    """
    dtype = config.stitch.dtype
    zones = [_zone_files(run.mosaic, grid, facts, dtype) for grid in zone_grids(planned_tiles(run))]
    _check_space(run.mosaic, zones)
    unit.manifest.unlink(missing_ok=True)
    counts = {"pixels": 0, "codes_clipped": 0}
    without: Counter[str] = Counter()
    sample = PixelSample(sample_limit(facts.dim))
    with progress("stitch", sum(len(zone.grid.tiles) for zone in zones), "tiles") as bar:
        for zone in zones:
            _write_zone(run, zone, sample, counts, without, bar)
    if not counts["pixels"]:
        raise SmaltiError(
            f"{run.embeddings}: no pixel of any tile has an embedding: look at `smalti status {run.quoted}`"
        )
    components = principal_components(sample.values_nc())
    for zone in zones:
        _write_preview(zone, components)
        properties = _properties(facts, zone.grid)
        write_item(zone.item, zone.grid, facts.window, _assets(zone, facts), properties, of=(facts.region, facts.model))
    files = [path for zone in zones for path in (*zone.rasters, zone.observations, zone.item, zone.preview)]
    made = MosaicManifest(
        **facts.stated(),
        without=dict(sorted(without.items())),
        pixels=counts["pixels"],
        codes_clipped=counts["codes_clipped"],
        dtype=dtype,
        zones={zone.grid.label: _zone(zone) for zone in zones},
        preview=PreviewColours(tuple(round(float(share), 4) for share in components.share_3)),
    )
    _remove_others(run.mosaic, files)
    made.write(unit.manifest, inputs=unit.inputs, files=files)
    if not facts.trained:
        say(f"stitch: the model is not trained ({facts.label}): these embeddings show that the chain works, no more")


def _zone_files(folder: Path, grid: ZoneGrid, facts: RunProvenance, dtype: Literal["float32", "int8"]) -> _ZoneFiles:
    stem = f"embeddings_{grid.label}"
    codes = dtype == "int8"
    bands = tuple(f"e{index:03d}" for index in range(facts.dim))
    note = f"value = code * {stem}_scales.tif" if codes else "value"
    tags = {**facts.tags(), "SMALTI_CONTENT": f"{facts.content}: {note}"}
    layer = (
        Layer("int8", CODES_NODATA, bands, "nearest", tags)
        if codes
        else Layer("float32", float("nan"), bands, "average", tags)
    )
    scales_tags = {**facts.tags(), "SMALTI_CONTENT": f"scales of the codes in {stem}.tif"}
    return _ZoneFiles(
        grid=grid,
        pixels=folder / f"{stem}.tif",
        layer=layer,
        scales=folder / f"{stem}_scales.tif" if codes else None,
        scales_layer=Layer("float32", float("nan"), ("scale",), "nearest", scales_tags),
        item=folder / f"{stem}.json",
        preview=folder / f"preview_{grid.label}.png",
        observations=folder / f"observations_{grid.label}.tif",
        observations_layer=observation_layer(facts),
    )


def _check_space(folder: Path, zones: list[_ZoneFiles]) -> None:
    """Refuse early what cannot fit: a zone's pixels stand uncompressed on the disk for a while."""
    pixels = {zone.grid.label: sum(tile.size**2 for tile in zone.grid.tiles) for zone in zones}
    needed = max(scratch_bytes(pixels[zone.grid.label], zone.layer) for zone in zones)
    free = shutil.disk_usage(folder if folder.exists() else folder.parent).free
    if free < needed:
        raise SmaltiError(
            f"{folder}: the mosaic needs {needed / 1e9:.1f} GB of free disk while it is written, "
            f'{free / 1e9:.1f} GB are free: make room, or set [stitch] dtype = "int8" (a quarter)'
        )


def _write_zone(
    run: Run, zone: _ZoneFiles, sample: PixelSample, counts: dict[str, int], without: Counter[str], bar: Bar
) -> None:
    def tell(text: str) -> None:
        bar.advance(0, note=text)

    with ExitStack() as stack:
        pixels = stack.enter_context(cog_writer(zone.pixels, zone.grid, zone.layer, tell=tell))
        observed = stack.enter_context(cog_writer(zone.observations, zone.grid, zone.observations_layer, tell=tell))
        scales = None
        if zone.scales is not None:
            scales = stack.enter_context(cog_writer(zone.scales, zone.grid, zone.scales_layer, tell=tell))
        for tile in zone.grid.tiles:
            embedding = _open(run, tile)
            seen_hwc = observation_values(embedding)
            observed.write(*zone.grid.place(tile), seen_hwc)
            tally(without, seen_hwc[..., BANDS.index("reason")])
            for top in range(0, tile.size, _ROWS):
                rows = slice(top, min(top + _ROWS, tile.size))
                values_hwc = embedding.window(rows, slice(None))
                sample.add(tile.epsg, tile.west, tile.north - top * 10, values_hwc)
                counts["pixels"] += int(np.count_nonzero(~np.isnan(values_hwc[..., 0])))
                place = zone.grid.place(tile)[0] + top, zone.grid.place(tile)[1]
                if scales is None:
                    pixels.write(*place, values_hwc)
                else:
                    counts["codes_clipped"] += _write_codes(pixels, scales, place, embedding, rows)
            bar.advance(note=tile.name)


def _open(run: Run, tile: PlannedTile) -> Embedding:
    embedding = read_embedding(run.embeddings, tile.name)
    if embedding.shape_hwc[:2] != (tile.size, tile.size):
        height, width, _ = embedding.shape_hwc
        raise SmaltiError(
            f"{run.embeddings / tile.name}.npy: {height} x {width} pixels, the plan says {tile.size} x {tile.size}: "
            f"run `smalti infer {run.quoted}` again"
        )
    return embedding


def _write_codes(
    pixels: CogWriter, scales: CogWriter, place: tuple[int, int], embedding: Embedding, rows: slice
) -> int:
    codes_hwc, scales_hw, clipped = to_codes(embedding, rows, CODES_NODATA)
    pixels.write(*place, codes_hwc)
    scales.write(*place, scales_hw[..., None])
    return clipped


def _write_preview(zone: _ZoneFiles, components: Components) -> None:
    def colours(strips: list[NDArray[Any]]) -> NDArray[np.uint8]:
        values_hwc = strips[0] if zone.scales is None else dequantise(strips[0], strips[1][..., 0])
        return components.colours(values_hwc)

    write_png(zone.preview, picture(zone.rasters, zone.grid, colours).rgba_hwc)


def _assets(zone: _ZoneFiles, facts: RunProvenance) -> list[AssetRecord]:
    assets = [AssetRecord("embeddings", zone.pixels, _capital(facts.content), "data", zone.layer)]
    if zone.scales is not None:
        assets.append(AssetRecord("scales", zone.scales, "Scale of each pixel's codes", "data", zone.scales_layer))
    classes = {"reason": reason_classes(), "origin": origin_classes()}
    title = "Observations a pixel, and why it has no embedding"
    observed = zone.observations, title, "metadata", zone.observations_layer
    assets.append(AssetRecord("observations", *observed, band_classes=classes))
    assets.append(AssetRecord("preview", zone.preview, "First three principal components as colours", "overview"))
    return assets


def _properties(facts: RunProvenance, grid: ZoneGrid) -> dict[str, Any]:
    return {
        "title": f"{_capital(facts.content)}, UTM zone {grid.label}, {facts.window[0]} to {facts.window[1]}",
        "smalti:model": to_json(facts.encoder),
        "smalti:data_sources": list(facts.data_sources),
        "smalti:dimensions": facts.dim,
    }


def _capital(text: str) -> str:
    return text[0].upper() + text[1:]


def _zone(zone: _ZoneFiles) -> MosaicZone:
    return MosaicZone(
        epsg=zone.grid.epsg,
        width=zone.grid.width,
        height=zone.grid.height,
        bounds=zone.grid.bounds,
        tiles=len(zone.grid.tiles),
        raster=zone.pixels.name,
        scales=zone.scales.name if zone.scales else None,
        item=zone.item.name,
        preview=zone.preview.name,
        observations=zone.observations.name,
    )


def _remove_others(folder: Path, files: list[Path]) -> None:
    """Files of an earlier mosaic (another dtype, another zone) would be taken for part of this one."""
    for path in folder.iterdir():
        ours = path.name.startswith(("embeddings_", "observations_", "preview_"))
        if ours and path.suffix in (".tif", ".json", ".png") and path not in files:
            path.unlink()
