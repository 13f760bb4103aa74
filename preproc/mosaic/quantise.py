"""int8 codes and scales of embeddings, as mosaics hold them. Pure."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from infer.contract import Embedding

_LARGEST = 127


def to_codes(embedding: Embedding, rows: slice, nodata: int) -> tuple[NDArray[np.int8], NDArray[np.float32], int]:
    """Codes and scales of some rows of a tile; codes that are there already are kept.

    Args:
        embedding: float32 or int8.
        rows: which.
        nodata: code of nodata pixels in the mosaic (in a tile it is 0, told by the scale).

    Returns:
        Codes (h, W, C); scales (h, W), NaN = nodata; and how many codes of valid pixels were `nodata` and became the
        nearest other one (v1.x uses -128).
    """
    if embedding.scales_hw is None:
        values_hwc = np.asarray(embedding.values_hwc[rows], dtype=np.float32)
        scales_hw = (np.abs(values_hwc).max(axis=2) / np.float32(_LARGEST)).astype(np.float32)
        codes_hwc = _divide(values_hwc, scales_hw)
    else:
        codes_hwc = np.array(embedding.values_hwc[rows])
        scales_hw = np.array(embedding.scales_hw[rows])
    valid_hw = ~np.isnan(scales_hw)
    clash_hwc = (codes_hwc == nodata) & valid_hw[..., None]
    codes_hwc[clash_hwc] = nodata + 1
    codes_hwc[~valid_hw] = nodata
    return codes_hwc, scales_hw, int(np.count_nonzero(clash_hwc))


def _divide(values_hwc: NDArray[np.float32], scales_hw: NDArray[np.float32]) -> NDArray[np.int8]:
    quotient = np.zeros_like(values_hwc)
    np.divide(values_hwc, scales_hw[..., None], out=quotient, where=scales_hw[..., None] > 0)
    codes = np.clip(np.rint(quotient), -_LARGEST, _LARGEST)
    result: NDArray[np.int8] = codes.astype(np.int8)
    return result
