"""Published embeddings in geotessera's layouts, whose codes tell their own place."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
import zarr
from numpy.typing import NDArray
from pyproj import Transformer
from rasterio.transform import Affine

from preproc.exchange.geotessera import MASK_FOLDER, METADATA, NPY_FOLDER, Cell

DIM = 128


def place_codes(x_hw: NDArray[Any], y_hw: NDArray[Any]) -> NDArray[np.int8]:
    """(H, W, 128) codes that only this place has; y in the northern CRS."""
    column, row = np.floor(x_hw / 10).astype(np.int64), np.floor(y_hw / 10).astype(np.int64)
    index = np.arange(DIM)
    return ((column[..., None] * (7 + index) + row[..., None] * (11 + index * 3) + index) % 251 - 125).astype(np.int8)


def place_scales(x_hw: NDArray[Any], y_hw: NDArray[Any]) -> NDArray[np.float32]:
    return (0.001 + (np.floor(x_hw / 10) % 97 + np.floor(y_hw / 10) % 89) * 1e-5).astype(np.float32)


def _centres(west: float, north: float, shape_hw: tuple[int, int]) -> tuple[NDArray[Any], NDArray[Any]]:
    height, width = shape_hw
    x, y = np.meshgrid(west + (np.arange(width) + 0.5) * 10, north - (np.arange(height) + 0.5) * 10)
    return x, y


def made_store(
    folder: Path | Any,
    zones: dict[int, tuple[float, float, tuple[int, int]]],
    *,
    years: tuple[int, ...] = (2020, 2021),
    model: str = "https://geotessera.org/model/1.1",
    **attributes: Any,
) -> zarr.Group:
    """A store, in a folder or of zarr's, with codes and scales of each place: zone -> west, north, shape."""
    root = zarr.open_group(folder, mode="w", zarr_format=3)
    stated = {"geoemb:type": "pixel", "geoemb:dimensions": DIM, "geoemb:model": model, "geoemb:data_type": "int8"}
    root.attrs.update({**stated, **attributes})
    for zone, (west, north, (height, width)) in zones.items():
        group = root.create_group(f"utm{zone:02d}")
        transform = [10.0, 0.0, west, 0.0, -10.0, north]
        group.attrs.update({"proj:code": f"EPSG:{32600 + zone}", "spatial:transform": transform})
        x_hw, y_hw = _centres(west, north, (height, width))
        shape, sizes = (len(years), height, width), {"chunks": (1, 16, 16), "shards": (1, 64, 64)}
        scales = group.create_array("scales", shape=shape, dtype="float32", fill_value=np.inf, **sizes)
        codes = group.create_array(
            "embeddings",
            shape=(len(years), DIM, height, width),
            dtype="int8",
            fill_value=0,
            chunks=(1, DIM, 16, 16),
            shards=(1, DIM, 64, 64),
        )
        group.create_array("time", data=np.array(years, np.int32))
        scales[-1] = place_scales(x_hw, y_hw)
        codes[-1] = np.moveaxis(place_codes(x_hw, y_hw), -1, 0)
    if isinstance(folder, Path):
        zarr.consolidate_metadata(root.store)
    return root


def made_npy(
    folder: Path, cells: list[tuple[float, float]], near: tuple[float, float], *, year: int = 2021, land: bool = False
) -> None:
    """npy tiles around centres (longitude, latitude) of 0.1 degree; their pixels are filled in near a place only."""
    (folder / NPY_FOLDER).mkdir(parents=True)
    (folder / METADATA).write_text(json.dumps({"dataset_version": "1.1", "dataset_variant": "cambridge"}))
    for longitude, latitude in cells:
        cell = Cell(int(longitude * 10), int(latitude * 10))
        name, zone, west, north = cell.name, cell.zone, cell.frame.west, cell.frame.north
        shape = (1130, 730)
        x, y = Transformer.from_crs(4326, 32600 + zone, always_xy=True).transform(*near)
        row, column = int((north - y) // 10), int((x - west) // 10)
        rows, columns = slice(max(0, row - 90), row + 90), slice(max(0, column - 90), column + 90)
        x_hw, y_hw = (values[rows, columns] for values in _centres(west, north, shape))
        target = folder / NPY_FOLDER / str(year) / name
        target.mkdir(parents=True)
        codes = np.lib.format.open_memmap(target / f"{name}.npy", "w+", np.int8, (*shape, DIM))
        codes[rows, columns] = place_codes(x_hw, y_hw)
        scales = np.full(shape, np.nan, np.float32)
        scales[rows, columns] = place_scales(x_hw, y_hw)
        np.save(target / f"{name}_scales.npy", scales)
        if land:
            (folder / MASK_FOLDER).mkdir(exist_ok=True)
            profile = {"driver": "GTiff", "height": shape[0], "width": shape[1], "count": 1, "dtype": "uint8"}
            mask = np.ones(shape, np.uint8)
            mask[::2] = 0
            place = Affine(10, 0, west, 0, -10, north)
            with rasterio.open(folder / MASK_FOLDER / f"{name}.tiff", "w", **profile, transform=place) as raster:
                raster.write(mask, 1)
