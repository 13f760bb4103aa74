"""Cloud-optimised GeoTIFFs written tile by tile, in memory that does not grow with the mosaic.

Tiles go into an uncompressed, tiled, sparse temporary GeoTIFF; overviews are made from it level by level, window by
window; GDAL's COG driver then lays out and compresses both in one pass. All of it happens in a scratch folder beside
the output, which takes its name at the end. The bytes do not depend on the number of threads nor on the order of the
tiles (measured: docs/outputs.md).
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
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
from preproc.raster.overviews import halve_average, halve_mean, halve_mode, halve_nearest
from preproc.raster.zones import ZoneGrid

CACHE_MB = 128
"""GDAL's block cache while a COG is written."""
_BLOCK_BYTES = 2 << 20
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
    overviews: Literal["average", "nearest", "mode"]
    """Of two by two: the mean of the valid ones; the upper left; the commonest valid one (not of float32)."""
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
        self.total = 0
        """`bit_total` of everything that was given."""

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
        if not (0 <= row <= self._target.height - height and 0 <= column <= self._target.width - width):
            raise ValueError(f"{height} x {width} pixels at row {row}, column {column} leave the mosaic")
        step = self.layer.block
        first = step - row % step  # strips end where the file's blocks do, so that no block is written twice
        for start, stop in _strips(height, first, step):
            strip_chw = np.ascontiguousarray(np.moveaxis(values_hwc[start:stop], 2, 0))
            window = Window(column, row + start, width, stop - start)
            self.total += bit_total(strip_chw, self.layer.nodata)
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
def cog_writer(
    path: Path, grid: ZoneGrid, layer: Layer, *, tell: Callable[[str], None] = lambda _: None
) -> Iterator[CogWriter]:
    """Write one COG: pixels that are never given are nodata; the file appears, whole, when the block ends well.

    Args:
        path: the final name; an older file is replaced at once.
        grid: extent and zone.
        layer: type, bands, nodata, tags.
        tell: is told what is being done after the last pixel was given, which takes longer than giving them.

    Raises:
        SmaltiError: if the disk is full or refuses.
    """
    with scratch_folder(path) as folder, _gdal(path):
        base = folder / "pixels.tif"
        with rasterio.open(base, "w+", **_profile(grid.width, grid.height, grid.transform, grid.epsg, layer)) as target:
            target.update_tags(**layer.tags)
            for index, name in enumerate(layer.bands, start=1):
                target.set_band_description(index, name)
            if layer.colours is not None:
                target.write_colormap(1, dict(layer.colours))
            writer = CogWriter(target, layer)
            yield writer
        tell(f"overviews of {path.name}")
        totals = [writer.total, *_build_overviews(base, layer)]
        cog = folder / "cog.tif"
        tell(f"compressing {path.name}")
        _translate(base, cog, layer)
        tell(f"checking {path.name}")
        _check(cog, grid, layer, totals)
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
        reason = " ".join(str(error).split())
        if free < _FULL_BYTES:
            reason = f"no space left on the device ({free / 1e6:.0f} MB): free some ({reason})"
        message = f"{path}: cannot be written: {reason}: run the same command again"
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


def bit_total(values: NDArray[Any], nodata: float) -> int:
    """Sum of the valid values' bits as whole numbers: exact, and the same in any order."""
    valid = ~np.isnan(values) if np.isnan(nodata) else values != nodata
    bits = values.view(f"u{values.dtype.itemsize}")
    return int(bits.sum(where=valid, dtype=np.uint64))


def _build_overviews(base: Path, layer: Layer) -> list[int]:
    """Make base.ovr, base.ovr.ovr ... (GDAL reads such a chain as the overviews of `base`) down to one block.

    Returns:
        The `bit_total` of each.
    """
    finer = base
    totals: list[int] = []
    while True:
        with rasterio.open(finer) as source:
            if max(source.width, source.height) <= layer.block:
                return totals
            coarser = finer.with_name(f"{finer.name}.ovr")
            width, height = (source.width + 1) // 2, (source.height + 1) // 2
            fine = source.transform
            transform = Affine(2 * fine.a, 0.0, fine.c, 0.0, 2 * fine.e, fine.f)
            profile = _profile(width, height, transform, source.crs.to_epsg(), layer)
            with rasterio.open(coarser, "w", **profile) as target:
                blocks = _blocks(width, height, layer.block)
                totals.append(sum(_halve_block(source, target, window, layer) for window in blocks))
        finer = coarser


def _blocks(width: int, height: int, size: int) -> Iterator[Window]:
    for row in range(0, height, size):
        for column in range(0, width, size):
            yield Window(column, row, min(size, width - column), min(size, height - row))


def _halve_block(source: Any, target: Any, window: Window, layer: Layer) -> int:
    """Make one block of the next level; its `bit_total`."""
    row, column = 2 * window.row_off, 2 * window.col_off
    height, width = min(2 * window.height, source.height - row), min(2 * window.width, source.width - column)
    values_chw = source.read(window=Window(column, row, width, height))
    empty = np.isnan(values_chw).all() if np.isnan(layer.nodata) else (values_chw == layer.nodata).all()
    if empty:
        return 0  # a block that is never written stays nodata and takes no space
    halved = _halved(values_chw, layer)
    target.write(halved, window=window)
    return bit_total(halved, layer.nodata)


def _halved(values_chw: NDArray[Any], layer: Layer) -> NDArray[Any]:
    if layer.overviews == "nearest":
        return halve_nearest(values_chw)
    if layer.dtype == "float32":
        return halve_average(values_chw)
    halve = halve_mean if layer.overviews == "average" else halve_mode
    return halve(values_chw, int(layer.nodata))


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


def _check(cog: Path, grid: ZoneGrid, layer: Layer, totals: Sequence[int]) -> None:
    """Read everything back before the file takes its name: GDAL says nothing when a full disk swallows blocks.

    Args:
        cog: the file.
        grid: what it should cover.
        layer: what it should hold.
        totals: `bit_total` of the full size and of each overview.
    """
    with rasterio.open(cog) as source:
        found = (source.width, source.height, source.count, source.dtypes[0], source.crs.to_epsg())
        levels = [{}, *({"overview_level": index} for index in range(len(source.overviews(1))))]
    expected = (grid.width, grid.height, len(layer.bands), layer.dtype, grid.epsg)
    if found != expected or len(levels) != len(totals):
        raise RasterioIOError(f"the file that GDAL wrote is {found}, expected {expected}")
    for options, total in zip(levels, totals, strict=True):
        with rasterio.open(cog, **options) as source:
            windows = _blocks(source.width, source.height, layer.block)
            read = sum(bit_total(source.read(window=window), layer.nodata) for window in windows)
        if read != total:
            raise RasterioIOError("what was written is not what can be read back")
