"""The first three principal components of a mosaic as colours, computed exactly. Pure.

The pixels that decide are those with the smallest hashes of their coordinates, so they do not depend on tiles, shards
or order. Values are rounded to whole multiples of a power of two: sums of products of such numbers are exact in
float64 as long as they stay below 2**53, so neither the order of summation nor the linear algebra library can change a
colour.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from infer.contract import PIXEL_SIZE
from infer.contract.mixing import GOLDEN, mix64

_SAMPLE_VALUES = 1 << 23
"""Numbers in the sample: 65 536 pixels of 128 (32 MiB in float32)."""
_VALUE_BITS, _AXIS_BITS = 15, 20
"""|value| < 2**15 and |axis entry| <= 2**20, in whole numbers: 65 536 squares of values stay below 2**47."""
_STRETCH = (2, 98)
"""Percentiles that become 0 and 255."""


def sample_limit(dim: int) -> int:
    """Pixels in the sample of embeddings of `dim` numbers."""
    return min(_SAMPLE_VALUES // dim, 1 << 16)


class PixelSample:
    """The `limit` pixels with the smallest hashes among those seen."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._hashes: list[NDArray[np.uint64]] = []
        self._values: list[NDArray[np.float32]] = []
        self._held = 0
        self._threshold = np.uint64(np.iinfo(np.uint64).max)

    def add(self, epsg: int, west: int, north: int, values_hwc: NDArray[np.float32]) -> None:
        """Look at a window.

        Args:
            epsg: its UTM zone.
            west: easting of its left edge in metres.
            north: northing of its upper edge.
            values_hwc: (H, W, C), NaN = nodata.
        """
        height, width, _ = values_hwc.shape
        columns = west // PIXEL_SIZE + np.arange(width, dtype=np.int64)
        rows = north // PIXEL_SIZE - np.arange(height, dtype=np.int64)
        hashes_hw = _pixel_hashes(epsg, rows[:, None], columns[None, :])
        chosen = (hashes_hw <= self._threshold) & ~np.isnan(values_hwc[..., 0])
        self._hashes.append(hashes_hw[chosen])
        self._values.append(values_hwc[chosen])
        self._held += len(self._hashes[-1])
        if self._held > 2 * self._limit:
            self._shrink()

    def values_nc(self) -> NDArray[np.float32]:
        """(N, C) the sample, by ascending hash.

        Raises:
            ValueError: if no window was looked at.
        """
        self._shrink()
        return self._values[0]

    def _shrink(self) -> None:
        if not self._hashes:
            raise ValueError("no window was looked at")
        hashes, values = np.concatenate(self._hashes), np.concatenate(self._values)
        order = np.argsort(hashes, kind="stable")[: self._limit]
        self._hashes, self._values, self._held = [hashes[order]], [values[order]], len(order)
        if self._held == self._limit:
            self._threshold = self._hashes[0][-1]


@dataclass(frozen=True)
class Components:
    """How to colour a pixel: three axes in whole numbers, and what becomes 0 and 255."""

    scale: float
    """Power of two that turns a value into a whole number."""
    axes_c3: NDArray[np.float64]
    """(C, 3) whole numbers."""
    low_3: NDArray[np.float64]
    high_3: NDArray[np.float64]
    share_3: NDArray[np.float64]
    """Part of the sample's variance that each component explains."""

    def colours(self, values_hwc: NDArray[np.float32]) -> NDArray[np.uint8]:
        """(H, W, 4) red, green, blue and alpha of a window (H, W, C); nodata is transparent."""
        valid_hw = ~np.isnan(values_hwc[..., 0])
        rgba = np.zeros((*valid_hw.shape, 4), dtype=np.uint8)
        projected_n3 = _whole(values_hwc[valid_hw], self.scale) @ self.axes_c3
        stretched = (projected_n3 - self.low_3) / (self.high_3 - self.low_3)
        rgba[valid_hw, :3] = np.rint(np.clip(stretched, 0, 1) * 255).astype(np.uint8)
        rgba[valid_hw, 3] = 255
        return rgba


def principal_components(values_nc: NDArray[np.float32]) -> Components:
    """The components of a sample; axes point to where their largest entry is positive.

    Args:
        values_nc: (N, C) without NaN; N may be small, then fewer colours differ.
    """
    count, dim = values_nc.shape
    largest = float(np.abs(values_nc).max(initial=0.0))
    scale = 2.0 ** (_VALUE_BITS - 1 - int(np.floor(np.log2(largest)))) if largest > 0 else 1.0
    whole_nc = _whole(values_nc, scale)
    mean_c = whole_nc.sum(axis=0) / max(count, 1)
    covariance = whole_nc.T @ whole_nc / max(count, 1) - np.outer(mean_c, mean_c)
    variances, vectors = np.linalg.eigh(covariance)
    axes = np.zeros((dim, 3))
    share = np.zeros(3)
    total = float(np.clip(variances, 0, None).sum())
    for index in range(min(3, dim)):
        axis = vectors[:, -1 - index]
        axes[:, index] = axis * np.sign(axis[np.argmax(np.abs(axis))])
        share[index] = max(float(variances[-1 - index]), 0.0) / total if total > 0 else 0.0
    axes = np.rint(axes * 2.0**_AXIS_BITS)
    projected = whole_nc @ axes if count else np.zeros((1, 3))
    low, high = np.percentile(projected, _STRETCH, axis=0, method="lower")
    flat = high <= low
    return Components(scale, axes, np.where(flat, low - 1, low), np.where(flat, low + 1, high), share)


def _whole(values: NDArray[np.float32], scale: float) -> NDArray[np.float64]:
    limit = 2.0**_VALUE_BITS
    return np.clip(np.rint(values.astype(np.float64) * scale), -limit, limit)


def _pixel_hashes(epsg: int, rows: NDArray[np.int64], columns: NDArray[np.int64]) -> NDArray[np.uint64]:
    """A number for each pixel from zone, row and column."""
    state = np.full((1, 1), epsg, dtype=np.uint64)
    with np.errstate(over="ignore"):  # arithmetic modulo 2**64 is meant
        for part in (rows, columns):
            state = mix64((state ^ part.astype(np.uint64)) + np.uint64(GOLDEN))
    return state
