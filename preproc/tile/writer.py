"""A tile's files: stacks that grow by one date at a time, and the region mask."""

from __future__ import annotations

import io
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import rasterio
from numpy.typing import NDArray
from rasterio.io import MemoryFile
from rasterio.transform import Affine

from infer.contract import PlannedTile, write_npy, writing

_HEADER_BYTES = 128
"""Room for the .npy header of any stack of ours: numpy pads it to a multiple of 64."""


class StackWriter:
    """An .npy file of shape (T, ...) to which dates are appended; T is known, and written, at the end.

    The file's bytes are those that `numpy.save` writes. Memory: nothing but the date being appended.
    """

    def __init__(self, path: Path, dtype: np.dtype[Any], tail: tuple[int, ...]) -> None:
        """Start an empty stack.

        Args:
            path: a temporary path.
            dtype: of the array.
            tail: all axes but the first.
        """
        self._dtype, self._tail = dtype, tail
        self.count = 0
        """Dates so far."""
        self._path = path
        with writing(path):
            self._stream = path.open("wb")
            self._stream.write(self._header())

    def append(self, values: NDArray[Any]) -> None:
        """Add one date of shape `tail`."""
        if values.shape != self._tail or values.dtype != self._dtype:
            raise ValueError(f"{values.dtype} {values.shape}, expected {self._dtype} {self._tail}")
        with writing(self._path):
            self._stream.write(np.ascontiguousarray(values).data)
        self.count += 1

    def close(self) -> None:
        """Write the final header."""
        if not self._stream.closed:
            with writing(self._path):
                self._stream.seek(0)
                self._stream.write(self._header())
                self._stream.close()

    def _header(self) -> bytes:
        buffer = io.BytesIO()
        description = {
            "descr": np.lib.format.dtype_to_descr(self._dtype),
            "fortran_order": False,
            "shape": (self.count, *self._tail),
        }
        np.lib.format.write_array_header_1_0(buffer, description)
        header = buffer.getvalue()
        if len(header) != _HEADER_BYTES:
            raise ValueError(f"the .npy header takes {len(header)} bytes, expected {_HEADER_BYTES}")
        return header

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.close()
        else:
            self._stream.close()


def write_doys(path: Path, days_of_year: list[int], dtype: np.dtype[Any]) -> None:
    """Write the days of year of a stack."""
    write_npy(path, np.asarray(days_of_year, dtype=dtype))


def write_roi(path: Path, tile: PlannedTile, inside_hw: NDArray[np.uint8]) -> None:
    """Write the region mask as a georeferenced GeoTIFF (uint8, 1 = inside, deflate)."""
    height, width = inside_hw.shape
    with MemoryFile() as memory:
        with memory.open(
            driver="GTiff",
            dtype="uint8",
            count=1,
            height=height,
            width=width,
            crs=rasterio.crs.CRS.from_epsg(tile.epsg),
            transform=Affine(*tile.transform),
            compress="deflate",
        ) as dataset:
            dataset.write(inside_hw, 1)
            dataset.set_band_description(1, "inside")
        path.write_bytes(memory.read())
