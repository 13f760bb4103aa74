"""The first three principal components of a mosaic as colours, computed exactly. Pure.

Values are rounded to whole multiples of a power of two: sums
of products of such numbers are exact in float64 as long as they stay below 2**53, so neither the order of summation nor
the linear algebra library can change a colour.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

_VALUE_BITS, _AXIS_BITS = 13, 20
"""|value| <= 2**13 and |axis entry| <= 2**20, in whole numbers: 2**27 squares of values stay below 2**53."""
_MOST_EXPONENT = 100
"""A float32 has to hold the scale, also where all values are next to nothing."""
_TOGETHER = 1 << 14
"""Pixels whose products are summed at a time."""
_STRETCH = (2, 98)
"""Percentiles that become 0 and 255."""


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
    """The components of some pixels; axes point to where their largest entry is positive.

    Args:
        values_nc: (N, C) without NaN; there may be few, then fewer colours differ, or none.
    """
    count, dim = values_nc.shape
    largest = float(np.abs(values_nc).max(initial=0.0))
    exponent = _VALUE_BITS - 1 - int(np.floor(np.log2(largest))) if largest > 0 else 0
    scale = 2.0 ** min(exponent, _MOST_EXPONENT)
    parts = [slice(start, start + _TOGETHER) for start in range(0, count, _TOGETHER)]
    sums_c: NDArray[np.float64] = np.zeros(dim)
    products_cc: NDArray[np.float64] = np.zeros((dim, dim))
    for part in parts:
        whole_nc = _whole(values_nc[part], scale)
        sums_c += whole_nc.sum(axis=0)
        products_cc += whole_nc.T @ whole_nc
    mean_c = sums_c / max(count, 1)
    covariance = products_cc / max(count, 1) - np.outer(mean_c, mean_c)
    variances, vectors = np.linalg.eigh(covariance)
    axes = np.zeros((dim, 3))
    share = np.zeros(3)
    total = float(np.clip(variances, 0, None).sum())
    for index in range(min(3, dim)):
        axis = vectors[:, -1 - index]
        axes[:, index] = axis * np.sign(axis[np.argmax(np.abs(axis))])
        share[index] = max(float(variances[-1 - index]), 0.0) / total if total > 0 else 0.0
    axes = np.rint(axes * 2.0**_AXIS_BITS)
    projected = [_whole(values_nc[part], scale) @ axes for part in parts] or [np.zeros((1, 3))]
    low, high = np.percentile(np.concatenate(projected), _STRETCH, axis=0, method="lower")
    flat = high <= low
    return Components(scale, axes, np.where(flat, low - 1, low), np.where(flat, low + 1, high), share)


def _whole(values: NDArray[np.float32], scale: float) -> NDArray[np.float64]:
    limit = 2.0**_VALUE_BITS
    rounded: NDArray[np.float64] = np.clip(np.rint(values * np.float32(scale)), -limit, limit).astype(np.float64)
    return rounded
