"""From canopies and soils to Sentinel-1 gamma nought at C band, VV and VH.

A water-cloud model (Attema & Ulaby 1978, doi:10.1029/RS013i002p00357): the canopy attenuates the soil's signal and adds
its own, in linear power. Arrays end in (..., 2): VV, VH.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from preproc.simulate.crops import CROPS, Crop
from preproc.simulate.phenology import Canopy, Fields

Floats = NDArray[np.float32]
Orbit = Literal["ascending", "descending"]
ORBITS: tuple[Orbit, ...] = ("ascending", "descending")

INCIDENCE = {"ascending": 38.5, "descending": 34.0}
"""Incidence angle in degrees at the place."""
_SOIL_DRY = np.array([-15.3, -22.8], np.float32)
_SOIL_WET = np.array([6.0, 5.0], np.float32)
_FIXED = {"water": (-21.0, -28.0), "built": (-4.5, -12.5), "road": (-13.5, -20.5)}


@lru_cache(maxsize=2)
def _table(crops: tuple[Crop, ...]) -> dict[str, Floats]:
    columns = {
        "canopy": [(crop.radar.vv, crop.radar.vh) for crop in crops],
        "depth": [crop.radar.depth for crop in crops],
        "woody": [crop.radar.woody for crop in crops],
        "rough": [crop.radar.rough for crop in crops],
        "fixed": [_FIXED.get(crop.ground, (np.nan, np.nan)) for crop in crops],
    }
    return {name: np.array(values, np.float32) for name, values in columns.items()}


def decibels(power: Floats) -> Floats:
    """10 log10 of linear power."""
    return np.asarray(10 * np.log10(power), np.float32)


def backscatter(
    fields: Fields, canopy: Canopy, moisture: Floats, snow: Floats, orbit: Orbit, crops: tuple[Crop, ...] = CROPS
) -> Floats:
    """Mean backscatter, before speckle.

    Args:
        fields: parcels or pixels, any shape.
        canopy: their canopies.
        moisture: water in the topsoil, 0 to 1, broadcastable.
        snow: part of the ground under (wet) snow, 0 to 1.
        orbit: which look direction; the steeper one sees more of the soil.
        crops: what `fields.kind` counts.

    Returns:
        (..., 2) float32 linear gamma nought.
    """
    table, kind = _table(crops), fields.kind
    cosine = np.cos(np.radians(INCIDENCE[orbit]))
    look = 0.0 if orbit == "ascending" else 0.5 * np.pi + 0.3
    rows = (
        0.9
        * np.cos(2 * (fields.rows - look))
        * np.array([1.0, 0.5], np.float32)[:, None].reshape((2,) + (1,) * fields.rows.ndim)
    )
    soil_db = (
        _SOIL_DRY
        + _SOIL_WET * moisture[..., None]
        + (fields.rough + table["rough"][kind])[..., None]
        + np.moveaxis(rows, 0, -1)
        + (INCIDENCE["ascending"] - INCIDENCE[orbit]) * 0.22
        - 2.0 * snow[..., None]
    )
    biomass = canopy.biomass + table["woody"][kind]
    transparent = np.exp(-2 * table["depth"][kind] * biomass / cosine)[..., None]
    volume = 10 ** ((table["canopy"][kind] + (INCIDENCE["ascending"] - INCIDENCE[orbit]) * 0.06) / 10)
    power = volume * (1 - transparent) + 10 ** (soil_db / 10) * transparent
    fixed = table["fixed"][kind] + 3.0 * (fields.soil[..., None] - 1) * 4
    return np.where(np.isnan(fixed), power, 10 ** (fixed / 10)).astype(np.float32)


def speckle(shape: tuple[int, ...], looks: float, rng: np.random.Generator) -> Floats:
    """Multiplicative speckle of mean one: gamma distributed with `looks` looks; ones when `looks` is 0."""
    if looks == 0:
        return np.ones(shape, np.float32)
    return (rng.standard_gamma(looks, shape, np.float32) / np.float32(looks)).astype(np.float32)
