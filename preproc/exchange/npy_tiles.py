"""Embeddings of a run in geotessera's cells of 0.1 degree: npy tiles (codes, scales, a mask), or float32 GeoTIFFs."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import rasterio
from numpy.typing import NDArray
from rasterio.transform import Affine

from infer.contract import PIXEL_SIZE, PlannedTile, Run, read_embedding
from preproc.exchange.geotessera import MASK_FOLDER, NPY_FOLDER, Cell, cells_of
from preproc.exchange.placement import SOUTH, Patch, Taken, take
from preproc.raster.provenance import RunProvenance

_VERSIONS = {"v1.0": "1.0", "v1.0-qat": "1.0", "v1.1": "1.1", "v2-student": "2.0", "v2-teacher": "2.0"}
"""Family -> version of the dataset, as geotessera numbers them."""


def cells_with_tiles(tiles: Sequence[PlannedTile]) -> dict[Cell, list[PlannedTile]]:
    """The cells that tiles touch, in order, each with those tiles: of the cell's own zone first."""
    found: dict[Cell, list[PlannedTile]] = {}
    for tile in tiles:
        for cell in cells_of(tile):
            found.setdefault(cell, []).append(tile)
    return {cell: sorted(found[cell], key=lambda tile: tile.epsg % 100 != cell.zone) for cell in sorted(found)}


def dataset_of(facts: RunProvenance) -> dict[str, Any]:
    """tessera_metadata.json. The variant names the checkpoint: embeddings of others do not mix with these."""
    version = _VERSIONS.get(facts.family, "0.0")
    return {
        "dataset_version": version,
        "dataset_version_path": f"v{version}".removesuffix(".0"),
        "dataset_variant": f"smalti-{facts.checkpoint[:12]}",
        "smalti_model": facts.model,
        "smalti_trained": facts.trained,
        "smalti_checkpoint": facts.checkpoint,
        "smalti_licence": facts.encoder.licence,
        "smalti_citation": facts.encoder.citation,
        "smalti_window": list(facts.window),
    }


@dataclass(frozen=True)
class CellExport:
    """One cell and the tiles that have pixels of it."""

    run: Run
    cell: Cell
    tiles: tuple[PlannedTile, ...]
    year: int
    tags: Mapping[str, str] | None = None
    """Of a GeoTIFF of float32 numbers, to be written instead of npy files."""

    def write(self, folder: Path) -> None:
        """Write the cell's files under a folder; none if no pixel of it has an embedding.

        Raises:
            FormatError: if an embedding is missing or damaged.
        """
        frame = self.cell.frame
        patches = [_patch(self.run, tile) for tile in self.tiles]
        found = take(frame, np.ones(frame.shape_hw, dtype=bool), patches, 128)
        land_hw = ~np.isnan(found.scales_hw)
        if not land_hw.any():
            return
        name = self.cell.name
        if self.tags is not None:
            _write_values(folder / f"{name}_{self.year}.tiff", self.cell, found, self.tags)
            return
        place = folder / NPY_FOLDER / str(self.year) / name
        place.mkdir(parents=True)
        np.save(place / f"{name}.npy", found.codes_hwc)
        np.save(place / f"{name}_scales.npy", found.scales_hw)
        _write_mask(folder / MASK_FOLDER / f"{name}.tiff", self.cell, land_hw)


def _patch(run: Run, tile: PlannedTile) -> Patch:
    """A tile of the run as something that may have pixels: where it has none, another may."""
    embedding = read_embedding(run.embeddings, tile.name)
    codes, scales = embedding.values_hwc, embedding.scales_hw
    assert scales is not None  # the caller has looked

    def read(rows: slice, columns: slice) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
        found = np.array(scales[rows, columns])
        found[np.isnan(found)] = np.inf
        return np.asarray(codes[rows, columns]), found

    north = tile.north - (SOUTH if tile.epsg > 32700 else 0)
    return Patch(tile.name, tile.epsg % 100, tile.west, north, (tile.size, tile.size), read)


def _write_mask(path: Path, cell: Cell, land_hw: NDArray[np.bool_]) -> None:
    """1 where there is an embedding. Of a cell's npy files it alone carries the place: CRS and transform."""
    path.parent.mkdir(parents=True, exist_ok=True)
    profile = {**_profile(cell, land_hw.shape), "count": 1, "dtype": "uint8", "compress": "DEFLATE"}
    with rasterio.open(path, "w", **profile) as raster:
        raster.write(land_hw.astype(np.uint8), 1)


def _write_values(path: Path, cell: Cell, found: Taken, tags: Mapping[str, str]) -> None:
    """A band a number, value = code * scale, band by band: all of them at once would be four times the codes."""
    profile = {**_profile(cell, found.scales_hw.shape), "count": found.codes_hwc.shape[2], "dtype": "float32"}
    profile |= {"nodata": np.nan, "tiled": True, "blockxsize": 256, "blockysize": 256, "interleave": "band"}
    with rasterio.open(path, "w", **profile, compress="LZW", bigtiff="IF_SAFER") as raster:
        for band in range(found.codes_hwc.shape[2]):
            raster.write(found.codes_hwc[..., band].astype(np.float32) * found.scales_hw, band + 1)
            raster.set_band_description(band + 1, f"Tessera_Band_{band}")
        place = {"TESSERA_TILE_LAT": f"{cell.latitude:.2f}", "TESSERA_TILE_LON": f"{cell.longitude:.2f}"}
        raster.update_tags(**tags, **place)


def _profile(cell: Cell, shape_hw: tuple[int, ...]) -> dict[str, Any]:
    south, frame = cell.latitude < 0, cell.frame
    north = frame.north + (SOUTH if south else 0)
    return {
        "driver": "GTiff",
        "height": shape_hw[0],
        "width": shape_hw[1],
        "crs": f"EPSG:{(32700 if south else 32600) + cell.zone}",
        "transform": Affine(PIXEL_SIZE, 0, frame.west, 0, -PIXEL_SIZE, north),
    }


def tiff_tags(facts: RunProvenance, year: int) -> dict[str, str]:
    """Tags by which geotessera tells datasets apart, and all that smalti knows."""
    dataset = {key.upper(): str(value) for key, value in dataset_of(facts).items() if key.startswith("dataset")}
    told = {f"TESSERA_{key}": value for key, value in dataset.items()}
    return {**told, "TESSERA_YEAR": str(year), **facts.tags()}


def tables(sizes: Mapping[str, Mapping[str, int]], year: int) -> dict[str, bytes]:
    """manifest.parquet and landmasks.parquet, by which geotessera finds tiles without a network.

    Args:
        sizes: cell's name -> its files -> bytes.
        year: of the embeddings.
    """
    tiles: dict[str, list[Any]] = {key: [] for key in ("lat", "lon", "year", "hash", "file_size", "scales_size")}
    masks: dict[str, list[Any]] = {key: [] for key in ("lat", "lon", "hash", "file_size")}
    for name, files in sizes.items():
        if not files:
            continue
        longitude, latitude = (float(part) for part in name.split("_")[1:])
        stem = f"{NPY_FOLDER}/{year}/{name}/{name}"
        row = (latitude, longitude, year, "", files[f"{stem}.npy"], files[f"{stem}_scales.npy"])
        for key, value in zip(tiles, row, strict=True):
            tiles[key].append(value)
        mask = (latitude, longitude, "", files[f"{MASK_FOLDER}/{name}.tiff"])
        for key, value in zip(masks, mask, strict=True):
            masks[key].append(value)
    tiles["grid_size"] = tiles.pop("file_size")
    return {"manifest.parquet": _parquet(tiles), "landmasks.parquet": _parquet(masks)}


def _parquet(columns: Mapping[str, list[Any]]) -> bytes:
    stream = io.BytesIO()
    pq.write_table(pa.table(dict(columns)), stream)
    return stream.getvalue()
