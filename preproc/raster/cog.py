"""Cloud-optimised GeoTIFFs written tile by tile, in memory that does not grow with the mosaic.

Tiles go into an uncompressed, tiled, sparse temporary GeoTIFF; overviews are made from it level by level, window by
window; GDAL's COG driver then lays out and compresses both in one pass. All of it happens in a scratch folder beside
the output, which takes its name at the end. The bytes do not depend on the number of threads nor on the order of the
tiles (measured: docs/outputs.md).
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import rasterio
import rasterio.shutil
from numpy.typing import NDArray
from rasterio._err import CPLE_BaseError
from rasterio.errors import RasterioError, RasterioIOError
from rasterio.transform import Affine
from rasterio.windows import Window

from infer.contract import EXIT_FAILED, SmaltiError, atomic_file, temporary_path, writing
from preproc.raster.halve import halve_average, halve_nearest
from preproc.raster.zones import ZoneGrid

CACHE_MB = 128
"""GDAL's block cache while a COG is written."""
_BLOCK_BYTES = 8 << 20
"""A block (all bands) is kept below this, so that reading one pixel of a mosaic costs little."""


_FULL_BYTES = 50 << 20
"""Below this much free space an error is put down to the disk."""


@dataclass(frozen=True)
class Layer:
    """What a GeoTIFF holds, apart from where and the pixels."""

    dtype: Literal["float32", "int8", "uint8"]
    nodata: float
    """NaN for float32."""
    bands: tuple[str, ...]
    """Description of each band."""
    overviews: Literal["average", "nearest"]
    """average: float32 only; nearest: the upper left of two by two."""
    tags: Mapping[str, str] = field(default_factory=dict)
    colours: Mapping[int, tuple[int, int, int, int]] | None = None
    """Value -> red, green, blue, alpha (0..255); one uint8 band only."""

    @property
    def block(self) -> int:
        """Side of the file's blocks in pixels: 512, or less where the bands are many."""
        size = 512
        while size > 64 and size * size * len(self.bands) * np.dtype(self.dtype).itemsize > _BLOCK_BYTES:
            size //= 2
        return size


class CogWriter:
    """Takes the pixels of a mosaic, in any order."""

    def __init__(self, target: Any, layer: Layer) -> None:
        self._target = target
        self.layer = layer

    def write(self, row: int, column: int, values_hwc: NDArray[Any]) -> None:
        """Put pixels into the mosaic.

        Args:
            row: of the upper left pixel.
            column: likewise.
            values_hwc: (H, W, C) of the layer's type and bands. Memory: one more copy of a strip of it.
        """
        height, width, channels = values_hwc.shape
        if values_hwc.dtype != self.layer.dtype or channels != len(self.layer.bands):
            expected = f"{self.layer.dtype} (H, W, {len(self.layer.bands)})"
            raise ValueError(f"{values_hwc.dtype} {values_hwc.shape}, expected {expected}")
        step = self.layer.block
        first = step - row % step  # strips end where the file's blocks do, so that no block is written twice
        for start, stop in _strips(height, first, step):
            strip_chw = np.ascontiguousarray(np.moveaxis(values_hwc[start:stop], 2, 0))
            window = Window(column, row + start, width, stop - start)
            self._write_blocks(window, strip_chw)

    def _write_blocks(self, window: Window, strip_chw: NDArray[Any]) -> None:
        """Write whole blocks only: GDAL 3.10 fills the rest of a sparse, interleaved block with zeros in some bands."""
        blocks = _grown(window, self.layer.block, self._target.width, self._target.height)
        if blocks != window:
            whole_chw = self._target.read(window=blocks)
            top, left = window.row_off - blocks.row_off, window.col_off - blocks.col_off
            whole_chw[:, top : top + window.height, left : left + window.width] = strip_chw
            strip_chw = whole_chw
        self._target.write(strip_chw, window=blocks)


def _grown(window: Window, size: int, width: int, height: int) -> Window:
    """The window of whole blocks around a window, within the raster."""
    top, left = window.row_off // size * size, window.col_off // size * size
    bottom = min(-(-(window.row_off + window.height) // size) * size, height)
    right = min(-(-(window.col_off + window.width) // size) * size, width)
    return Window(left, top, right - left, bottom - top)


def _strips(length: int, first: int, step: int) -> Iterator[tuple[int, int]]:
    start, stop = 0, min(first, length)
    while start < length:
        yield start, stop
        start, stop = stop, min(stop + step, length)


@contextmanager
def cog_writer(path: Path, grid: ZoneGrid, layer: Layer) -> Iterator[CogWriter]:
    """Write one COG: pixels that are never given are nodata; the file appears, whole, when the block ends well.

    Args:
        path: the final name; an older file is replaced at once.
        grid: extent and zone.
        layer: type, bands, nodata, tags.

    Raises:
        SmaltiError: if the disk is full or refuses.
    """
    with _gdal(path), scratch_folder(path) as folder:
        base = folder / "pixels.tif"
        with rasterio.open(base, "w+", **_profile(grid.width, grid.height, grid.transform, grid.epsg, layer)) as target:
            target.update_tags(**layer.tags)
            for index, name in enumerate(layer.bands, start=1):
                target.set_band_description(index, name)
            if layer.colours is not None:
                target.write_colormap(1, dict(layer.colours))
            yield CogWriter(target, layer)
        _build_overviews(base, layer)
        cog = folder / "cog.tif"
        _translate(base, cog, layer)
        _check(cog, grid, layer)
        with atomic_file(path) as temporary:
            cog.replace(temporary)


@contextmanager
def scratch_folder(path: Path) -> Iterator[Path]:
    """A folder beside `path` that is gone afterwards; a killed process's one is recognised and swept up later."""
    folder = temporary_path(path.with_name(f"{path.name}.scratch"))
    with writing(path):
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def scratch_bytes(pixels: int, layer: Layer) -> int:
    """Bytes of temporary disk space that so many pixels take, overviews included."""
    return pixels * len(layer.bands) * np.dtype(layer.dtype).itemsize * 4 // 3


@contextmanager
def _gdal(path: Path) -> Iterator[None]:
    """GDAL with a bounded cache; what it complains about becomes one line that names the output."""
    try:
        with rasterio.Env(GDAL_CACHEMAX=CACHE_MB, GDAL_PAM_ENABLED="NO"):
            yield
    except (RasterioError, CPLE_BaseError) as error:
        free = shutil.disk_usage(path.parent).free
        advice = "" if free > _FULL_BYTES else f" (only {free / 1e6:.0f} MB are left on the disk: free some)"
        reason = " ".join(str(error).split())
        message = f"{path}: cannot be written: {reason}{advice}: run the same command again"
        raise SmaltiError(message, exit_code=EXIT_FAILED) from error


def _profile(width: int, height: int, transform: Affine, epsg: int, layer: Layer) -> dict[str, Any]:
    return {
        "driver": "GTiff",
        "width": width,
        "height": height,
        "count": len(layer.bands),
        "dtype": layer.dtype,
        "nodata": layer.nodata,
        "crs": f"EPSG:{epsg}",
        "transform": transform,
        "tiled": True,
        "blockxsize": layer.block,
        "blockysize": layer.block,
        "interleave": "pixel",
        "BIGTIFF": "YES",
        "SPARSE_OK": "TRUE",
    }


def _build_overviews(base: Path, layer: Layer) -> None:
    """Make base.ovr, base.ovr.ovr ... (GDAL reads such a chain as the overviews of `base`) down to one block."""
    finer = base
    while True:
        with rasterio.open(finer) as source:
            if max(source.width, source.height) <= layer.block:
                return
            coarser = finer.with_name(f"{finer.name}.ovr")
            width, height = (source.width + 1) // 2, (source.height + 1) // 2
            fine = source.transform
            transform = Affine(2 * fine.a, 0.0, fine.c, 0.0, 2 * fine.e, fine.f)
            profile = _profile(width, height, transform, source.crs.to_epsg(), layer)
            with rasterio.open(coarser, "w", **profile) as target:
                for window in _blocks(width, height, layer.block):
                    _halve_block(source, target, window, layer)
        finer = coarser


def _blocks(width: int, height: int, size: int) -> Iterator[Window]:
    for row in range(0, height, size):
        for column in range(0, width, size):
            yield Window(column, row, min(size, width - column), min(size, height - row))


def _halve_block(source: Any, target: Any, window: Window, layer: Layer) -> None:
    row, column = 2 * window.row_off, 2 * window.col_off
    height, width = min(2 * window.height, source.height - row), min(2 * window.width, source.width - column)
    values_chw = source.read(window=Window(column, row, width, height))
    empty = np.isnan(values_chw).all() if np.isnan(layer.nodata) else (values_chw == layer.nodata).all()
    if empty:
        return  # a block that is never written stays nodata and takes no space
    halved = halve_average(values_chw) if layer.overviews == "average" else halve_nearest(values_chw)
    target.write(halved, window=window)


def _translate(base: Path, cog: Path, layer: Layer) -> None:
    rasterio.shutil.copy(
        base,
        cog,
        driver="COG",
        BLOCKSIZE=layer.block,
        COMPRESS="DEFLATE",
        PREDICTOR="YES" if layer.colours is None else "NO",
        OVERVIEWS="FORCE_USE_EXISTING",
        OVERVIEW_COMPRESS="DEFLATE",
        BIGTIFF="IF_SAFER",
        NUM_THREADS=len(os.sched_getaffinity(0)),
    )


def _check(cog: Path, grid: ZoneGrid, layer: Layer) -> None:
    """What GDAL closed without a word is opened again before it takes its name: a full disk may be noticed late."""
    with rasterio.open(cog) as source:
        # the last block on disk is the last of the full-size level: overviews stand before it
        rows, columns = source.height - 1, source.width - 1
        source.read(window=Window(columns, rows, 1, 1))
        found = (source.width, source.height, source.count, source.dtypes[0], source.crs.to_epsg())
    expected = (grid.width, grid.height, len(layer.bands), layer.dtype, grid.epsg)
    if found != expected:
        raise RasterioIOError(f"the file that GDAL wrote is {found}, expected {expected}")
