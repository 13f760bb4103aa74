"""int8 codes and scales of embeddings, as mosaics hold them. Pure."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from infer.contract import Embedding

_LARGEST = 127
CODES_NODATA = -128
"""Code of nodata pixels in a GeoTIFF; in a tile and in the store it is 0, told by the scale."""


def to_codes(embedding: Embedding, rows: slice, columns: slice) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """Codes (h, W, C) and scales (h, W), NaN = nodata, of a window of a tile; codes that are there already are kept.

    Args:
        embedding: float32 or int8.
        rows: of the window.
        columns: of the window.
    """
    if embedding.scales_hw is not None:
        return np.asarray(embedding.values_hwc[rows, columns]), np.asarray(embedding.scales_hw[rows, columns])
    values_hwc = embedding.window(rows, columns)
    scales_hw = (np.abs(values_hwc).max(axis=2) / np.float32(_LARGEST)).astype(np.float32)
    return _divide(values_hwc, scales_hw), scales_hw


def without_nodata(
    codes_hwc: NDArray[np.int8], scales_hw: NDArray[np.float32]
) -> tuple[NDArray[np.int8], NDArray[np.float32], int]:
    """The same as a GeoTIFF has them, where a code of its own means nodata.

    Returns:
        Codes, CODES_NODATA where there is no embedding; scales, NaN there; and how many codes of valid pixels were
        CODES_NODATA and became the nearest other one (v1.x uses -128).
    """
    valid_hw = np.isfinite(scales_hw)
    codes_hwc = codes_hwc.copy()
    clash_hwc = codes_hwc == CODES_NODATA
    clash_hwc &= valid_hw[..., None]
    codes_hwc[clash_hwc] = CODES_NODATA + 1
    codes_hwc[~valid_hw] = CODES_NODATA
    return codes_hwc, np.where(valid_hw, scales_hw, np.float32(np.nan)), int(np.count_nonzero(clash_hwc))


def _divide(values_hwc: NDArray[np.float32], scales_hw: NDArray[np.float32]) -> NDArray[np.int8]:
    quotient = np.zeros_like(values_hwc)
    np.divide(values_hwc, scales_hw[..., None], out=quotient, where=scales_hw[..., None] > 0)
    codes = np.clip(np.rint(quotient), -_LARGEST, _LARGEST)
    result: NDArray[np.int8] = codes.astype(np.int8)
    return result
