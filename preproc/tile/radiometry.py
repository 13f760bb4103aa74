"""From the archives' numbers to those that TESSERA was trained on (pure; ../docs/fetch.md has the rules)."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from infer.contract import BANDS
from preproc.catalogue.scene import OffsetPolicy

SCL_CLEAR = (4, 5, 6, 7, 10, 11)
"""Scene classes that count as clear: vegetation, bare, water, unclassified, thin cirrus, snow.

0 no data, 1 defective, 2 dark, 3 shadow, 8 and 9 cloud do not.
"""
MOST_POWER = 1e10
"""Linear backscatter that no radar sees (100 dB): what is larger fills pixels without a value, declared or not."""
BOA_OFFSET = 1000
"""What processing baseline 04.00 added to every digital number."""

DARK = 950
"""Clear pixels hold less than this only where the offset is gone: with it that is a reflectance below -0.005."""
DARK_SHARE = 0.02
"""Of clear pixels: where so many are dark, they are no noise on water or in shadows."""

_VISIBLE = tuple(BANDS.index(name) for name in ("B02", "B03", "B04"))
_CLEAR_TABLE = np.isin(np.arange(256), SCL_CLEAR)


def clear(scl_hw: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """(H, W) where the scene classification is one of SCL_CLEAR."""
    return _CLEAR_TABLE[scl_hw]


def remove_offset(dn: NDArray[np.uint16], policy: OffsetPolicy) -> NDArray[np.uint16]:
    """Apply the offset policy to (resampled) digital numbers: subtract 1000 where DN >= 1000, or nothing."""
    if policy is OffsetPolicy.NONE:
        return dn
    return np.where(dn >= BOA_OFFSET, dn - np.uint16(BOA_OFFSET), dn)


def offset_is_gone(dn_pb: NDArray[np.uint16]) -> bool:
    """Whether clear pixels show that baseline 04.00's offset has been removed, whatever the catalogue says.

    Args:
        dn_pb: (pixels, 10) as stored, all clear, of one scene. Water and vegetation are dark in the visible bands.
    """
    visible = dn_pb[:, _VISIBLE]
    dark = np.count_nonzero(((visible > 0) & (visible < DARK)).any(axis=1))
    return bool(dark > 0 and dark >= DARK_SHARE * len(dn_pb))


def scaled_db(power_hw: NDArray[np.float32], nodata: float | None) -> NDArray[np.int16]:
    """Linear backscatter as int16 `clip((20 log10 x + 50) * 200, 0, 32767)`, truncated; 0 where there is no value.

    Args:
        power_hw: float32 linear gamma0.
        nodata: the file's nodata value; x <= 0, x >= MOST_POWER and NaN are missing in any case.

    20, not 10: the training pipeline treats the value as an amplitude. Computed in float64, so that truncation does
    not depend on the processor's float32 logarithm.
    """
    present = power_hw > 0  # NaN is not
    present &= power_hw < MOST_POWER
    if nodata is not None and not np.isnan(nodata):
        present &= power_hw != np.float32(nodata)
    # In place: this is called for every Sentinel-1 band of every date.
    scaled = np.ones(power_hw.shape, np.float64)
    np.copyto(scaled, power_hw, where=present)
    np.log10(scaled, out=scaled)
    scaled *= 20.0
    scaled += 50.0
    scaled *= 200.0
    np.clip(scaled, 0.0, 32767.0, out=scaled)
    result = scaled.astype(np.int16)
    result *= present
    return result
